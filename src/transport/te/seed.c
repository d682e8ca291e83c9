/* The seed's half: two listeners, for handshakes and for data. What is said on their connections is
 * shake.h's and data.h's, everything about sockets net/server.h's. */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/thread.h"
#include "transport/net/server.h"
#include "transport/net/socket.h"
#include "transport/te/data.h"
#include "transport/te/shake.h"
#include "transport/te/te.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <net/if.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    SEED_MAX_THREADS = 4,        /* unless the options say otherwise */
    SEED_LINGER_MS = 2000,       /* for the peer to have read our last words */
    SEED_CROWDED_MS = 1000,      /* for a question, while more than half of the places are taken */
    SEED_DATA_CROWDED_MS = 5000, /* readers open thousands of connections and then use them */
    SEED_DATA_FULL_MS = 1000,    /* the same, when there is no place for others */
    SEED_HOST_BYTES = INET6_ADDRSTRLEN + 1 + IF_NAMESIZE,
};

struct transport_seed {
    struct te_policy policy;
    struct te_share *shares;        /* [threads] */
    char far[NET_CONGESTION_BYTES]; /* see net_tune_listener() */
    uint64_t idle_ms;
    struct net_server *server;
};

/* ---- te_shake as net_protocol wants it ---- */

/* An IPv4 address that a socket of IPv6 took is IPv4's. */
static void unmap(struct net_address *address)
{
    if (address->any.sa_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr))
        return;
    struct net_address v4 = {.bytes = sizeof v4.v4};
    v4.v4.sin_family = AF_INET;
    v4.v4.sin_port = address->v6.sin6_port;
    memcpy(&v4.v4.sin_addr, address->v6.sin6_addr.s6_addr + 12, sizeof v4.v4.sin_addr);
    *address = v4;
}

static void host_text(const struct net_address *address, char out[SEED_HOST_BYTES])
{
    if (getnameinfo(&address->any, address->bytes, out, SEED_HOST_BYTES, NULL, 0, NI_NUMERICHOST) !=
        0)
        out[0] = '\0';
}

static void *shake_create(void *ctx, unsigned worker, int fd)
{
    struct transport_seed *seed = ctx;
    struct net_address here = {.bytes = sizeof here.v6};
    char host[SEED_HOST_BYTES] = "";

    if (seed->policy.host[0] == '\0' && getsockname(fd, &here.any, &here.bytes) == 0) {
        unmap(&here);
        host_text(&here, host);
    }
    return te_shake_create(&seed->policy, &seed->shares[worker], host);
}

static void shake_destroy(void *conn)
{
    te_shake_destroy(conn);
}

static uint8_t *shake_space(void *conn, size_t *ret_bytes)
{
    return te_shake_space(conn, ret_bytes);
}

static void shake_arrived(void *conn, size_t bytes)
{
    te_shake_arrived(conn, bytes);
}

static bool shake_out(void *conn, struct net_out *ret_out, enum rf_code *ret_code,
                      struct rf_error *err)
{
    (void)err;
    *ret_code = RF_OK;
    return te_shake_out(conn, ret_out);
}

static void shake_sent(void *conn, uint64_t bytes)
{
    te_shake_sent(conn, bytes);
}

static void shake_no_bulk(void *conn, enum net_bulk bulk)
{
    (void)conn; /* there is none */
    (void)bulk;
}

static void shake_drain(void *conn)
{
    te_shake_drain(conn);
}

static bool shake_is_finished(const void *conn)
{
    return te_shake_is_finished(conn);
}

static bool shake_has_output(const void *conn)
{
    return te_shake_has_output(conn);
}

static uint32_t shake_reads(const void *conn)
{
    (void)conn;
    return 0;
}

static const struct net_protocol shake_protocol = {
    .create = shake_create,
    .destroy = shake_destroy,
    .space = shake_space,
    .arrived = shake_arrived,
    .out = shake_out,
    .sent = shake_sent,
    .no_bulk = shake_no_bulk,
    .drain = shake_drain,
    .is_finished = shake_is_finished,
    .has_output = shake_has_output,
    .reads = shake_reads,
};

/* ---- te_data as net_protocol wants it ---- */

static void *data_create(void *ctx, unsigned worker, int fd)
{
    struct transport_seed *seed = ctx;

    (void)fd;
    return te_data_create(&seed->policy, &seed->shares[worker]);
}

static void data_destroy(void *conn)
{
    te_data_destroy(conn);
}

static uint8_t *data_space(void *conn, size_t *ret_bytes)
{
    return te_data_space(conn, ret_bytes);
}

static void data_arrived(void *conn, size_t bytes)
{
    te_data_arrived(conn, bytes);
}

static bool data_out(void *conn, struct net_out *ret_out, enum rf_code *ret_code,
                     struct rf_error *err)
{
    return te_data_out(conn, ret_out, ret_code, err);
}

static void data_sent(void *conn, uint64_t bytes)
{
    te_data_sent(conn, bytes);
}

static void data_no_bulk(void *conn, enum net_bulk bulk)
{
    te_data_no_bulk(conn, bulk);
}

static void data_drain(void *conn)
{
    te_data_drain(conn);
}

static bool data_is_finished(const void *conn)
{
    return te_data_is_finished(conn);
}

static bool data_has_output(const void *conn)
{
    return te_data_has_output(conn);
}

static uint32_t data_reads(const void *conn)
{
    return te_data_reads(conn);
}

static const struct net_protocol data_protocol = {
    .create = data_create,
    .destroy = data_destroy,
    .space = data_space,
    .arrived = data_arrived,
    .out = data_out,
    .sent = data_sent,
    .no_bulk = data_no_bulk,
    .drain = data_drain,
    .is_finished = data_is_finished,
    .has_output = data_has_output,
    .reads = data_reads,
};

static bool tick(void *ctx, unsigned worker, uint64_t now_ns, bool over)
{
    struct transport_seed *seed = ctx;

    return te_share_tick(&seed->shares[worker], now_ns, over);
}

static void tune(void *ctx, int fd)
{
    const struct transport_seed *seed = ctx;

    net_tune_accepted(fd, seed->far);
}

/* ---- starting and stopping ---- */

/* As many data connections as may be, and as this process has descriptors for: other things need
 * some too. More of them wait in the backlog. */
static uint32_t most_connections(const struct transport_seed_options *options)
{
    uint32_t wanted = options->max_connections != 0 ? options->max_connections : TE_MAX_CONNECTIONS;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return wanted;
    uint64_t ours = limit.rlim_cur - limit.rlim_cur / 4;
    if (wanted <= ours)
        return wanted;
    log_debug("fewer connections than wanted", "wanted=%" PRIu32 " descriptors=%ju", wanted,
              (uintmax_t)limit.rlim_cur);
    return ours > 0 ? (uint32_t)ours : 1;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The system may cut our backlog short without a word. */
static void look_at_backlog(void)
{
    rf_autoclose int fd = open("/proc/sys/net/core/somaxconn", O_RDONLY | O_CLOEXEC);
    char text[16] = "";

    ssize_t got = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    long most = got > 0 ? strtol(text, NULL, 10) : TE_BACKLOG;
    if (most < TE_BACKLOG)
        log_warn("short accept queue: readers that connect for each tensor will be slow",
                 "net.core.somaxconn=%ld wanted=%d", most, TE_BACKLOG);
}

/* Both listeners, on neighbouring ports if one was chosen. */
static enum rf_code listen_twice(struct transport_seed *seed,
                                 const struct transport_seed_options *options, int *ret_shake_fd,
                                 int *ret_data_fd, struct net_address *ret_address,
                                 struct rf_error *err)
{
    struct net_address data;
    uint16_t next = options->port != 0 ? (uint16_t)(options->port + 1) : 0;

    if (options->port == UINT16_MAX)
        return rf_fail(err, RF_E_INVAL, "port %u: the data plane needs the next one",
                       options->port);
    enum rf_code code =
        net_listen(options->host, options->port, TE_BACKLOG, ret_shake_fd, ret_address, err);
    if (code != RF_OK)
        return options->port == 0 ? code : rf_error_wrap(err, code, "--te-port %u", options->port);
    code = net_listen(options->host, next, TE_BACKLOG, ret_data_fd, &data, err);
    if (code != RF_OK)
        return next == 0 ? code
                         : rf_error_wrap(err, code, "the data plane, one behind --te-port %u",
                                         options->port);
    if (!net_address_is_any(ret_address))
        host_text(ret_address, seed->policy.host);
    seed->policy.handshake_port = ntohs(ret_address->v4.sin_port); /* v6's is at the same place */
    seed->policy.data_port = ntohs(data.v4.sin_port);
    /* Options of a listener are those of its connections, which may live for one request. */
    net_tune(*ret_shake_fd, seed->idle_ms);
    net_tune(*ret_data_fd, seed->idle_ms);
    net_tune_listener(*ret_data_fd, seed->far);
    look_at_backlog();
    return RF_OK;
}

static enum rf_code start(struct transport_seed *seed, const struct transport_seed_options *options,
                          struct net_address *ret_address, struct rf_error *err)
{
    unsigned few = (unsigned)least(thread_cpus(), SEED_MAX_THREADS);
    uint64_t hello_ms = least(seed->idle_ms, TE_HANDSHAKE_MS);
    uint32_t connections = most_connections(options);
    struct net_server_options server = {
        .name = "rf-te-seed",
        .listeners = {{
                          .protocol = &shake_protocol,
                          .ctx = seed,
                          .fd = -1,
                          .max_connections = (uint32_t)least(TE_MAX_HANDSHAKES, connections),
                          .hello_ms = hello_ms,
                          .crowded_ms = least(hello_ms, SEED_CROWDED_MS),
                          .crowd = (uint32_t)least(TE_MAX_HANDSHAKES, connections) / 2,
                          .idle_ms = hello_ms,
                          .linger_ms = SEED_LINGER_MS,
                      },
                      {
                          .protocol = &data_protocol,
                          .ctx = seed,
                          .fd = -1,
                          .max_connections = connections,
                          .hello_ms = hello_ms,
                          .crowded_ms = least(hello_ms, SEED_DATA_CROWDED_MS),
                          .crowd = connections / 2,
                          .full_ms = least(hello_ms, SEED_DATA_FULL_MS),
                          .idle_ms = seed->idle_ms,
                          .linger_ms = SEED_LINGER_MS,
                      }},
        .listener_count = 2,
        .threads = options->threads != 0 ? options->threads : few,
        .tick = tick,
        .tick_ctx = seed,
    };
    int *shake_fd = &server.listeners[0].fd;
    int *data_fd = &server.listeners[1].fd;

    seed->shares = calloc(server.threads, sizeof *seed->shares);
    if (seed->shares == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a te seed");
    for (unsigned i = 0; i < server.threads; i++)
        seed->shares[i].policy = &seed->policy;
    enum rf_code code = listen_twice(seed, options, shake_fd, data_fd, ret_address, err);
    if (code != RF_OK) {
        if (*shake_fd >= 0)
            close(*shake_fd);
        return code;
    }
    if (seed->far[0] != '\0')
        server.listeners[1].tune = tune;
    return net_server_start(&server, &seed->server, err);
}

static void seed_free(struct transport_seed *seed)
{
    te_policy_free(&seed->policy);
    free(seed->shares);
    free(seed);
}

enum rf_code te_seed_start(const struct exporter *exporter,
                           const struct transport_seed_options *options,
                           struct transport_seed **ret_seed, struct endpoint *ret_endpoint,
                           struct rf_error *err)
{
    struct transport_seed *seed = calloc(1, sizeof *seed);
    struct net_address address = {.bytes = 0};
    struct endpoint endpoint = {.transport = "te"};

    if (seed == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a te seed");
    seed->policy.exporter = *exporter;
    seed->idle_ms = options->idle_timeout_ms != 0 ? options->idle_timeout_ms : TE_IDLE_MS;
    enum rf_code code = te_policy_init(&seed->policy, err);
    if (code == RF_OK)
        code = start(seed, options, &address, err);
    if (code != RF_OK) {
        seed_free(seed);
        return code;
    }
    net_address_text(&address, endpoint.address);
    transport_host_id(endpoint.host_id);
    log_debug("te seed started", "address=%s data_port=%u ranks=%" PRIu32, endpoint.address,
              seed->policy.data_port, seed->policy.space.count);
    *ret_seed = seed;
    *ret_endpoint = endpoint;
    return RF_OK;
}

uint32_t te_seed_drain(struct transport_seed *seed, uint64_t deadline_ns)
{
    return net_server_drain(seed->server, deadline_ns);
}

void te_seed_stop(struct transport_seed *seed)
{
    if (seed == NULL)
        return;
    net_server_stop(seed->server);
    seed_free(seed);
}

uint64_t te_seed_base(const struct transport_seed *seed, uint32_t rank)
{
    return te_space_base(&seed->policy.space, rank);
}
