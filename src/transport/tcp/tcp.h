/* The two halves of `tcp`: what transport.h promises, implemented in seed.c and session.c. */
#ifndef TRANSPORT_TCP_TCP_H
#define TRANSPORT_TCP_TCP_H

#include "transport/transport.h"

enum {
    TCP_BACKLOG = 4096,
    TCP_HANDSHAKE_MS =
        10 * 1000, /* from accept() to a complete hello, or less if idle connections get less */
    TCP_IDLE_MS =
        60 *
        1000, /* without a request, or without a byte taken, unless the options say otherwise */
    TCP_LINGER_MS = 2 * 1000,   /* for the peer to have read our last words */
    TCP_MAX_CONNECTIONS = 1024, /* unless the options say otherwise */
    TCP_MAX_THREADS = 4,        /* of a seed, unless the options say otherwise */
    TCP_TIMEOUT_MS = 10 * 1000, /* of a reader, unless the options say otherwise */
};

enum rf_code tcp_seed_start(const struct exporter *exporter,
                            const struct transport_seed_options *options,
                            struct transport_seed **ret_seed, struct endpoint *ret_endpoint,
                            struct rf_error *err);
uint32_t tcp_seed_drain(struct transport_seed *seed, uint64_t deadline_ns);
void tcp_seed_stop(struct transport_seed *seed);

enum rf_code tcp_session_open(const struct endpoint *endpoint,
                              const struct transport_open_options *options,
                              struct transport_session **ret_session, struct rf_error *err);
enum rf_code tcp_session_submit(struct transport_session *session, struct read *read,
                                struct rf_error *err);
enum rf_code tcp_session_progress(struct transport_session *session, uint64_t deadline_ns,
                                  struct read **ret_done, struct rf_error *err);
void tcp_session_close(struct transport_session *session);

#endif
