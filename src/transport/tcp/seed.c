/* The seed's half: the protocol is conn.h's, everything about sockets net/server.h's. */
#include "base/log.h"
#include "base/thread.h"
#include "transport/net/server.h"
#include "transport/net/socket.h"
#include "transport/tcp/conn.h"
#include "transport/tcp/tcp.h"

#include <stdlib.h>

enum {
    SEED_SPARE_CONNECTIONS = 64, /* beyond the limit, to be told so */
    SEED_CROWDED_MS = 1000,      /* for a hello, while more than half of the places are taken */
};

struct transport_seed {
    struct tcp_policy policy;
    char far[NET_CONGESTION_BYTES]; /* see net_tune_listener() */
    uint64_t idle_ms;
    struct net_server *server;
};

/* ---- tcp_conn as net_protocol wants it ---- */

static void *conn_create(void *ctx, unsigned worker, int fd)
{
    struct transport_seed *seed = ctx;

    (void)worker;
    (void)fd;
    return tcp_conn_create(&seed->policy);
}

static void conn_destroy(void *conn)
{
    tcp_conn_destroy(conn);
}

static uint8_t *conn_space(void *conn, size_t *ret_bytes)
{
    return tcp_conn_space(conn, ret_bytes);
}

static void conn_arrived(void *conn, size_t bytes)
{
    tcp_conn_arrived(conn, bytes);
}

static bool conn_out(void *conn, struct net_out *ret_out, enum rf_code *ret_code,
                     struct rf_error *err)
{
    return tcp_conn_out(conn, ret_out, ret_code, err);
}

static void conn_sent(void *conn, uint64_t bytes)
{
    (void)tcp_conn_sent(conn, bytes);
}

static void conn_no_bulk(void *conn, enum net_bulk bulk)
{
    tcp_conn_no_bulk(conn, bulk);
}

static void conn_drain(void *conn)
{
    tcp_conn_drain(conn);
}

static bool conn_is_finished(const void *conn)
{
    return tcp_conn_is_finished(conn);
}

static bool conn_has_output(const void *conn)
{
    return tcp_conn_has_output(conn);
}

static uint32_t conn_reads(const void *conn)
{
    return tcp_conn_reads(conn);
}

static const struct net_protocol protocol = {
    .create = conn_create,
    .destroy = conn_destroy,
    .space = conn_space,
    .arrived = conn_arrived,
    .out = conn_out,
    .sent = conn_sent,
    .no_bulk = conn_no_bulk,
    .drain = conn_drain,
    .is_finished = conn_is_finished,
    .has_output = conn_has_output,
    .reads = conn_reads,
};

/* ---- starting and stopping ---- */

static void tune(void *ctx, int fd)
{
    const struct transport_seed *seed = ctx;

    net_tune(fd, seed->idle_ms);
    net_tune_accepted(fd, seed->far);
}

static enum rf_code start(struct transport_seed *seed, const struct transport_seed_options *options,
                          struct net_address *ret_address, struct rf_error *err)
{
    unsigned cpus = thread_cpus();
    unsigned few = cpus < TCP_MAX_THREADS ? cpus : TCP_MAX_THREADS;
    uint64_t hello_ms = seed->idle_ms < TCP_HANDSHAKE_MS ? seed->idle_ms : TCP_HANDSHAKE_MS;
    struct net_server_options server = {
        .name = "rf-tcp-seed",
        .listeners = {{
            .protocol = &protocol,
            .ctx = seed,
            .max_connections = seed->policy.max_readers + SEED_SPARE_CONNECTIONS,
            .hello_ms = hello_ms,
            .crowded_ms = hello_ms < SEED_CROWDED_MS ? hello_ms : SEED_CROWDED_MS,
            .crowd = seed->policy.max_readers / 2,
            .idle_ms = seed->idle_ms,
            .linger_ms = TCP_LINGER_MS,
            .tune = tune,
        }},
        .listener_count = 1,
        .threads = options->threads != 0 ? options->threads : few,
    };
    int *fd = &server.listeners[0].fd;

    enum rf_code code = net_listen(options->host, options->port, TCP_BACKLOG, fd, ret_address, err);
    if (code != RF_OK)
        return code;
    net_tune_listener(*fd, seed->far);
    return net_server_start(&server, &seed->server, err);
}

enum rf_code tcp_seed_start(const struct exporter *exporter,
                            const struct transport_seed_options *options,
                            struct transport_seed **ret_seed, struct endpoint *ret_endpoint,
                            struct rf_error *err)
{
    struct transport_seed *seed = calloc(1, sizeof *seed);
    struct net_address address = {.bytes = 0};
    struct endpoint endpoint = {.transport = "tcp"};

    if (seed == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a tcp seed");
    seed->policy.exporter = *exporter;
    seed->policy.max_readers =
        options->max_connections != 0 ? options->max_connections : TCP_MAX_CONNECTIONS;
    seed->idle_ms = options->idle_timeout_ms != 0 ? options->idle_timeout_ms : TCP_IDLE_MS;
    enum rf_code code = start(seed, options, &address, err);
    if (code != RF_OK) {
        free(seed);
        return code;
    }
    net_address_text(&address, endpoint.address);
    transport_host_id(endpoint.host_id);
    log_debug("tcp seed started", "address=%s", endpoint.address);
    *ret_seed = seed;
    *ret_endpoint = endpoint;
    return RF_OK;
}

uint32_t tcp_seed_drain(struct transport_seed *seed, uint64_t deadline_ns)
{
    return net_server_drain(seed->server, deadline_ns);
}

void tcp_seed_stop(struct transport_seed *seed)
{
    if (seed == NULL)
        return;
    net_server_stop(seed->server);
    free(seed);
}
