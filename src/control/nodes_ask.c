/* The first node asks others about their ranks: a REQ socket for each question, all of them watched
 * by one thread, none of which the HTTP side waits for with a thread of its own. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/nodes_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <zmq.h>

enum {
    ASKER_IDLE_MS = 60 * 1000, /* without a question it sleeps; this is no deadline of anything */
    ASKER_ENDPOINT_BYTES = 320,
};

struct question {
    void *socket;
    uint64_t rank;
    uint64_t deadline_ns;
};

struct asker {
    struct nodes *nodes;
    void *context;
    int wake_fd;
    atomic_bool stop; /* release by asker_stop(), acquire by the thread */
    pthread_t thread;
    /* The thread's own: */
    struct question questions[NODES_MAX_ASKING];
    unsigned count;
};

/* ---- one question ---- */

static enum rf_code zmq_failed(const char *what, struct rf_error *err)
{
    return rf_fail(err, RF_E_FAILED, "%s: %s", what, zmq_strerror(zmq_errno()));
}

static bool set_options(void *socket)
{
    const int64_t max_bytes = ENGINE_INFO_MAX_BYTES;
    const int no_linger = 0;
    const int on = 1;

    return zmq_setsockopt(socket, ZMQ_LINGER, &no_linger, sizeof no_linger) == 0 &&
           zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &max_bytes, sizeof max_bytes) == 0 &&
           zmq_setsockopt(socket, ZMQ_IPV6, &on, sizeof on) == 0;
}

static enum rf_code open_question(struct asker *asker, uint64_t rank, void **ret_socket,
                                  struct rf_error *err)
{
    const struct nodes *nodes = asker->nodes;
    const char *host = nodes->hosts[nodes_of_rank(nodes, rank)];
    struct buf text BUF_AUTO = {0};
    char endpoint[ASKER_ENDPOINT_BYTES];

    snprintf(endpoint, sizeof endpoint,
             strchr(host, ':') != NULL ? "tcp://[%.256s]:%u" : "tcp://%.256s:%u", host,
             nodes->options.info_port);
    engine_question_make(rank, &text);
    void *socket = text.failed ? NULL : zmq_socket(asker->context, ZMQ_REQ);
    if (socket == NULL)
        return text.failed ? rf_fail(err, RF_E_NOMEM, "no memory for a question")
                           : zmq_failed("cannot be asked", err);
    if (!set_options(socket) || zmq_connect(socket, endpoint) != 0 ||
        zmq_send(socket, text.data, text.bytes, ZMQ_DONTWAIT) < 0) {
        enum rf_code code = zmq_failed("cannot be asked", err);
        zmq_close(socket);
        return code;
    }
    *ret_socket = socket;
    return RF_OK;
}

/* Takes the answer, which is there. */
static enum rf_code read_answer(const struct question *question, zmq_msg_t *message,
                                struct engine_info *ret_info, struct rf_error *err)
{
    if (zmq_msg_recv(message, question->socket, ZMQ_DONTWAIT) < 0)
        return zmq_failed("its answer cannot be read", err);
    if (zmq_msg_more(message))
        return rf_fail(err, RF_E_PROTO, "its answer makes no sense: it is more than one frame");
    return engine_answer_parse(zmq_msg_data(message), zmq_msg_size(message), question->rank,
                               ret_info, err);
}

/* Over, one way or the other. */
static void end_question(struct asker *asker, unsigned at, bool answered)
{
    const struct question *question = &asker->questions[at];
    struct rf_error err = {.code = RF_OK};
    struct engine_info info = {.rank = 0};
    zmq_msg_t message;

    zmq_msg_init(&message);
    if (answered)
        read_answer(question, &message, &info, &err);
    else
        rf_fail(&err, RF_E_TIMEOUT, "no answer within %" PRIu64 " ms",
                asker->nodes->options.timeout_ms);
    nodes_asked(asker->nodes, question->rank, &info, &err);
    zmq_msg_close(&message);
    zmq_close(question->socket);
    asker->questions[at] = asker->questions[--asker->count];
}

static void begin_questions(struct asker *asker)
{
    struct rf_error err = {.code = RF_OK};
    uint64_t rank = 0;

    while (asker->count < NODES_MAX_ASKING && nodes_next_wanted(asker->nodes, &rank)) {
        struct question *question = &asker->questions[asker->count];
        question->rank = rank;
        question->deadline_ns = clock_deadline_ns(asker->nodes->options.timeout_ms);
        if (open_question(asker, rank, &question->socket, &err) == RF_OK)
            asker->count++;
        else
            nodes_asked(asker->nodes, rank, NULL, &err);
    }
}

/* ---- the thread ---- */

static long wait_ms(const struct asker *asker)
{
    uint64_t first_ns = clock_deadline_ns(ASKER_IDLE_MS);

    for (unsigned i = 0; i < asker->count; i++) {
        if (asker->questions[i].deadline_ns < first_ns)
            first_ns = asker->questions[i].deadline_ns;
    }
    return clock_left_ms(first_ns);
}

static void *asker_main(void *arg)
{
    struct asker *asker = arg;
    zmq_pollitem_t items[NODES_MAX_ASKING + 1];
    uint64_t count;

    while (!atomic_load_explicit(&asker->stop, memory_order_acquire)) {
        begin_questions(asker);
        items[0] = (zmq_pollitem_t){.fd = asker->wake_fd, .events = ZMQ_POLLIN};
        for (unsigned i = 0; i < asker->count; i++)
            items[i + 1] =
                (zmq_pollitem_t){.socket = asker->questions[i].socket, .events = ZMQ_POLLIN};
        if (zmq_poll(items, (int)asker->count + 1, wait_ms(asker)) < 0)
            continue; /* EINTR: nothing was looked at */
        if ((items[0].revents & ZMQ_POLLIN) != 0)
            (void)!read(asker->wake_fd, &count, sizeof count);
        /* From the last: one that ends is replaced by the last. */
        for (unsigned i = asker->count; i-- > 0;) {
            bool answered = (items[i + 1].revents & ZMQ_POLLIN) != 0;
            if (answered || clock_left_ms(asker->questions[i].deadline_ns) == 0)
                end_question(asker, i, answered);
        }
    }
    while (asker->count > 0)
        end_question(asker, asker->count - 1, false);
    return NULL;
}

static void asker_free(struct asker *asker)
{
    if (asker->wake_fd >= 0)
        close(asker->wake_fd);
    if (asker->context != NULL)
        zmq_ctx_term(asker->context);
    free(asker);
}

enum rf_code asker_start(struct nodes *nodes, struct asker **ret_asker, struct rf_error *err)
{
    struct asker *asker = calloc(1, sizeof *asker);
    enum rf_code code = RF_OK;

    if (asker == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to ask other nodes");
    asker->nodes = nodes;
    asker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    asker->context = zmq_ctx_new();
    if (asker->wake_fd < 0)
        code = rf_fail_sys(err, "eventfd");
    else if (asker->context == NULL)
        code = zmq_failed("ZeroMQ cannot start", err);
    else
        code = thread_start(&asker->thread, "rf-nodes-ask", asker_main, asker, err);
    if (code != RF_OK) {
        asker_free(asker);
        return code;
    }
    *ret_asker = asker;
    return RF_OK;
}

void asker_wake(struct asker *asker)
{
    uint64_t one = 1;

    if (asker != NULL)
        (void)!write(asker->wake_fd, &one, sizeof one);
}

void asker_stop(struct asker *asker)
{
    if (asker == NULL)
        return;
    atomic_store_explicit(&asker->stop, true, memory_order_release);
    asker_wake(asker);
    pthread_join(asker->thread, NULL);
    asker_free(asker);
}
