/* The info service of a node that is not the first: a REP socket that says where our ranks are. What
 * comes in may be anything: libzmq ends connections that are no ZeroMQ or send frames that are too
 * large, everything else is answered; and when there are too many connections, all are ended. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/nodes_internal.h"
#include "control/nodes_links.h"
#include "control/seed_url.h"

#include <inttypes.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <zmq.h>

enum {
    SERVICE_ENDPOINT_BYTES = 128,
    SERVICE_IDLE_MS = 60 * 1000,
    SERVICE_REOPEN_MS = 20, /* libzmq closes its listener at its leisure */
    SERVICE_MIN_LINKS = 16,
    SERVICE_MAX_AT_ONCE = 64, /* questions between two looks at the connections */
    SERVICE_QUEUE = 4,        /* questions, and answers, that wait on each connection */
    SERVICE_BACKLOG = 1024,   /* of its listener: libzmq's own 100 make others wait for a second */
};

static const char monitor_endpoint[] = "inproc://links";

struct service {
    struct nodes *nodes;
    void *context;
    int stop_fd;
    char endpoint[SERVICE_ENDPOINT_BYTES]; /* "tcp://10.0.0.2:15036" */
    uint16_t port;
    pthread_t thread;
    /* The thread's own once it runs: */
    void *socket;  /* NULL: the port is not free again yet */
    void *monitor; /* says which connections come and go */
    struct links links;
};

/* ---- the socket ---- */

static enum rf_code zmq_failed(const char *what, const char *endpoint, struct rf_error *err)
{
    int number = zmq_errno();

    return rf_fail(err, RF_E_SYS, "%s on %s: %s%s", what, endpoint, zmq_strerror(number),
                   number == EADDRINUSE ? " (--inter-node-transfer-engine-info-port names the port)"
                                        : "");
}

static bool set_options(void *socket)
{
    const int64_t max_bytes = ENGINE_INFO_MAX_QUESTION_BYTES;
    const int handshake_ms = NODES_HANDSHAKE_MS;
    const int no_linger = 0;
    const int queue = SERVICE_QUEUE;
    const int backlog = SERVICE_BACKLOG;
    const int on = 1;

    /* Whoever does not fetch answers gets no more of them. */
    return zmq_setsockopt(socket, ZMQ_RCVHWM, &queue, sizeof queue) == 0 &&
           zmq_setsockopt(socket, ZMQ_BACKLOG, &backlog, sizeof backlog) == 0 &&
           zmq_setsockopt(socket, ZMQ_SNDHWM, &queue, sizeof queue) == 0 &&
           zmq_setsockopt(socket, ZMQ_LINGER, &no_linger, sizeof no_linger) == 0 &&
           zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &max_bytes, sizeof max_bytes) == 0 &&
           zmq_setsockopt(socket, ZMQ_HANDSHAKE_IVL, &handshake_ms, sizeof handshake_ms) == 0 &&
           zmq_setsockopt(socket, ZMQ_IPV6, &on, sizeof on) == 0;
}

static void close_socket(struct service *service)
{
    /* First nobody may tell the monitor anything any more: libzmq's thread would wait for ever for
     * somebody to listen. */
    if (service->socket != NULL)
        zmq_socket_monitor(service->socket, NULL, 0);
    if (service->monitor != NULL)
        zmq_close(service->monitor);
    if (service->socket != NULL)
        zmq_close(service->socket);
    service->monitor = NULL;
    service->socket = NULL;
    links_clear(&service->links);
}

static bool watch_links(struct service *service)
{
    const int unlimited = 0;

    if (zmq_socket_monitor(service->socket, monitor_endpoint,
                           ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED) != 0)
        return false;
    service->monitor = zmq_socket(service->context, ZMQ_PAIR);
    return service->monitor != NULL &&
           zmq_setsockopt(service->monitor, ZMQ_RCVHWM, &unlimited, sizeof unlimited) == 0 &&
           zmq_connect(service->monitor, monitor_endpoint) == 0;
}

static enum rf_code open_socket(struct service *service, struct rf_error *err)
{
    service->socket = zmq_socket(service->context, ZMQ_REP);
    if (service->socket != NULL && set_options(service->socket) && watch_links(service) &&
        zmq_bind(service->socket, service->endpoint) == 0)
        return RF_OK;
    enum rf_code code = zmq_failed("the info service cannot listen", service->endpoint, err);
    close_socket(service);
    return code;
}

/* The address to bind, as libzmq wants it: it knows interfaces, but no names. */
static enum rf_code find_endpoint(struct service *service, struct rf_error *err)
{
    const struct nodes *nodes = service->nodes;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    char host[NI_MAXHOST] = "";
    char name[SEED_URL_HOST_BYTES];
    size_t bytes = strlen(nodes->host);
    bool bracketed = bytes >= 2 && nodes->host[0] == '[' && nodes->host[bytes - 1] == ']';

    snprintf(name, sizeof name, "%.*s", (int)(bytes - (bracketed ? 2 : 0)),
             nodes->host + bracketed);
    int rc = getaddrinfo(name, NULL, &hints, &found);
    if (rc == 0) {
        rc = getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof host, NULL, 0,
                         NI_NUMERICHOST);
        freeaddrinfo(found);
    }
    if (rc != 0)
        return rf_fail(err, RF_E_INVAL, "host %.200s: cannot be listened on: %s", nodes->host,
                       gai_strerror(rc));
    snprintf(service->endpoint, sizeof service->endpoint,
             strchr(host, ':') != NULL ? "tcp://[%.64s]:%u" : "tcp://%.64s:%u", host,
             nodes->options.info_port);
    return RF_OK;
}

/* Which port it has become, for the next time. */
static void keep_endpoint(struct service *service)
{
    size_t bytes = sizeof service->endpoint;
    uint64_t port = 0;

    if (zmq_getsockopt(service->socket, ZMQ_LAST_ENDPOINT, service->endpoint, &bytes) != 0)
        return;
    const char *colon = strrchr(service->endpoint, ':');
    if (colon != NULL && target_digits(colon + 1, strlen(colon + 1), UINT16_MAX, &port))
        service->port = (uint16_t)port;
}

/* ---- answers ---- */

static void put_success(const struct nodes *nodes, uint64_t rank, const struct info_found *found,
                        struct buf *out)
{
    char session[ENGINE_INFO_SESSION_BYTES];

    nodes_session(found, nodes->hosts != NULL ? nodes->hosts[nodes->options.node_rank] : NULL,
                  session);
    buf_printf(out, "{\"success\":true,");
    engine_info_begin(rank, session, out);
    buf_append(out, found->tensors->bytes.data, found->tensors->bytes.bytes);
}

static void put_answer(struct nodes *nodes, const void *text, size_t bytes, struct buf *out)
{
    struct engine_question question;
    struct info_found found;
    struct rf_error err = {.code = RF_OK};
    char reason[RF_ERROR_TEXT_BYTES];

    if (engine_question_parse(text, bytes, &question, &err) != RF_OK) {
        snprintf(reason, sizeof reason, "%s", err.text);
    } else if (!question.knows_action) {
        snprintf(reason, sizeof reason, "Unknown action: %s", question.action);
    } else if (!question.has_rank) {
        snprintf(reason, sizeof reason, "Missing rank parameter");
    } else if (nodes_own(nodes, question.rank, &found, &err) == RF_OK) {
        put_success(nodes, question.rank, &found, out);
        blob_unref(found.tensors);
        return;
    } else {
        /* Of a rank that is ours the reason is added. */
        bool own = nodes_is_own(nodes, question.rank);
        snprintf(reason, sizeof reason,
                 "Rank %" PRIu64 " not available on node %" PRIu32 "%s%.300s", question.rank,
                 nodes->options.node_rank, own ? ": " : "", own ? err.text : "");
    }
    engine_answer_refuse(reason, out);
}

/* One question and its answer; false: there is none. */
static bool serve_one(struct service *service)
{
    struct buf out BUF_AUTO = {0};
    zmq_msg_t message;
    unsigned frames = 0;
    bool more = true;

    zmq_msg_init(&message);
    /* The first frame stays; libzmq gives us all of a message or nothing of it. */
    if (zmq_msg_recv(&message, service->socket, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&message);
        return false;
    }
    for (more = zmq_msg_more(&message); more; frames++) {
        zmq_msg_t rest;
        zmq_msg_init(&rest);
        more = zmq_msg_recv(&rest, service->socket, ZMQ_DONTWAIT) >= 0 && zmq_msg_more(&rest);
        zmq_msg_close(&rest);
    }
    links_asked(&service->links, zmq_msg_get(&message, ZMQ_SRCFD));
    if (frames > 0)
        engine_answer_refuse("a question is one frame", &out);
    else
        put_answer(service->nodes, zmq_msg_data(&message), zmq_msg_size(&message), &out);
    zmq_msg_close(&message);
    /* A REP socket must answer before it takes the next one, with nothing if need be. */
    if (zmq_send(service->socket, out.failed ? "" : (const char *)out.data,
                 out.failed ? 0 : out.bytes, ZMQ_DONTWAIT) < 0)
        log_debug("info service", "answer=lost reason=\"%s\"", zmq_strerror(zmq_errno()));
    return true;
}

/* ---- the thread ---- */

/* An event is two frames: its number (16 bits) and value (32, here the descriptor), and the address. */
static void count_links(struct service *service)
{
    for (;;) {
        uint16_t event = 0;
        uint32_t fd = 0;
        uint8_t frame[8] = {0};
        char address[256];
        if (zmq_recv(service->monitor, frame, sizeof frame, ZMQ_DONTWAIT) <
            (int)(sizeof event + sizeof fd))
            return;
        zmq_recv(service->monitor, address, sizeof address, ZMQ_DONTWAIT);
        memcpy(&event, frame, sizeof event);
        memcpy(&fd, frame + sizeof event, sizeof fd);
        if (event == ZMQ_EVENT_ACCEPTED)
            links_opened(&service->links, (int)fd);
        else if (event == ZMQ_EVENT_DISCONNECTED)
            links_closed(&service->links, (int)fd);
    }
}

/* Nobody needs many connections here: nodes ask once each and hang up. */
static void shed_links(struct service *service)
{
    if (!service->links.too_many) {
        links_look(&service->links, service->port);
        return;
    }
    log_warn("info service ends all connections", "max=%" PRIu32, service->links.max);
    close_socket(service);
}

static void serve(struct service *service)
{
    zmq_pollitem_t items[] = {
        {.fd = service->stop_fd, .events = ZMQ_POLLIN},
        {.socket = service->monitor, .events = ZMQ_POLLIN},
        {.socket = service->socket, .events = ZMQ_POLLIN},
    };

    if (zmq_poll(items, 3, service->links.count > 0 ? LINKS_LOOK_MS : SERVICE_IDLE_MS) < 0)
        return;
    count_links(service);
    for (unsigned i = 0; i < SERVICE_MAX_AT_ONCE && serve_one(service); i++)
        ;
    shed_links(service);
}

static bool is_stopped(const struct service *service, long timeout_ms)
{
    zmq_pollitem_t item = {.fd = service->stop_fd, .events = ZMQ_POLLIN};

    return zmq_poll(&item, 1, timeout_ms) > 0;
}

static void *service_main(void *arg)
{
    struct service *service = arg;

    while (!is_stopped(service, service->socket != NULL ? 0 : SERVICE_REOPEN_MS)) {
        if (service->socket != NULL || open_socket(service, NULL) == RF_OK)
            serve(service);
    }
    close_socket(service);
    return NULL;
}

static void service_free(struct service *service)
{
    close_socket(service);
    if (service->context != NULL)
        zmq_ctx_term(service->context);
    if (service->stop_fd >= 0)
        close(service->stop_fd);
    links_free(&service->links);
    free(service);
}

static uint32_t max_links(void)
{
    struct rlimit files = {.rlim_cur = 0};

    if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur / 8 >= NODES_MAX_LINKS)
        return NODES_MAX_LINKS;
    return files.rlim_cur / 8 > SERVICE_MIN_LINKS ? (uint32_t)(files.rlim_cur / 8)
                                                  : SERVICE_MIN_LINKS;
}

enum rf_code service_start(struct nodes *nodes, struct service **ret_service, struct rf_error *err)
{
    struct service *service = calloc(1, sizeof *service);
    enum rf_code code = RF_OK;

    if (service == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for the info service");
    service->nodes = nodes;
    service->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    service->context = zmq_ctx_new();
    if (service->stop_fd < 0)
        code = rf_fail_sys(err, "eventfd");
    else if (!links_init(&service->links, max_links()))
        code = rf_fail(err, RF_E_NOMEM, "no memory for the info service");
    else if (service->context == NULL)
        code = zmq_failed("ZeroMQ cannot start", "this host", err);
    if (code == RF_OK)
        code = find_endpoint(service, err);
    if (code == RF_OK)
        code = open_socket(service, err);
    if (code == RF_OK) {
        keep_endpoint(service);
        code = thread_start(&service->thread, "rf-nodes-info", service_main, service, err);
    }
    if (code != RF_OK) {
        service_free(service);
        return code;
    }
    log_info("info service listens", "endpoint=%s", service->endpoint);
    *ret_service = service;
    return RF_OK;
}

uint16_t service_port(const struct service *service)
{
    return service->port;
}

void service_stop(struct service *service)
{
    uint64_t one = 1;

    if (service == NULL)
        return;
    (void)!write(service->stop_fd, &one, sizeof one);
    pthread_join(service->thread, NULL);
    service_free(service);
}
