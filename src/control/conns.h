/* The connections of the HTTP server: how long each may take, which one goes when there are too
 * many, and who waits for news. libmicrohttpd knows one time limit only, of inactivity: a byte
 * now and then keeps a connection for ever.
 *
 * Any thread may call any function. Connections are closed by shutdown(): libmicrohttpd then
 * notices it itself, on the thread that owns the connection. */
#ifndef CONTROL_CONNS_H
#define CONTROL_CONNS_H

#include "model/digest.h"

#include <stdatomic.h>

struct MHD_Connection;

struct conns_options {
    /* Beyond it the one that is missed least has to go. Twice as many may be open until their
     * threads have noticed; libmicrohttpd must see to it that they never are more. */
    uint32_t max;
    uint64_t request_timeout_ms;
    uint64_t idle_timeout_ms;
};

struct conns;
struct conn;

/* Asked now and then, under a lock, while a request waits: true ends the wait. Must be quick. */
typedef bool (*conn_ready_fn)(void *ctx);

enum rf_code conns_create(const struct conns_options *options, struct conns **ret_conns,
                          struct rf_error *err);
/* All connections have been closed. NULL is fine. */
void conns_destroy(struct conns *conns);

/* Whether one more may come in: not while stopping. Ends another one if there are too many. */
bool conns_admit(struct conns *conns);
/* NULL when out of memory: then the connection is not watched, only counted by libmicrohttpd. */
struct conn *conns_open(struct conns *conns, int fd, struct MHD_Connection *mhd);
/* fd is closed only after this. NULL is fine in all that follow. */
void conns_close(struct conns *conns, struct conn *conn);

/* A request's headers are complete; its body is still to come, or not. */
void conns_request(struct conns *conns, struct conn *conn, bool body_to_come);
/* The answer has gone out: the next request is waited for. */
void conns_idle(struct conns *conns, struct conn *conn);
/* Some of the answer has gone out. Takes no lock. */
void conn_progress(struct conn *conn);

/* Suspends the connection, and resumes it once ready() says so, the deadline has passed, or its
 * place is needed. RF_E_CANCELLED, and no wait, when the server stops. */
enum rf_code conns_wait(struct conns *conns, struct conn *conn, conn_ready_fn ready, void *ctx,
                        uint64_t deadline_ns);
/* Whether the wait was ended to make room: the connection should be closed after the answer. */
bool conn_hurried(const struct conn *conn);

/* Ends all waits; admits no more of them, and no more connections. */
void conns_stop(struct conns *conns);
/* After conns_stop(): waits until no request is being answered, or the deadline. */
void conns_quiet(struct conns *conns, uint64_t deadline_ns);
/* After conns_stop(): ends all connections; waits until none is left, or the deadline. */
void conns_end(struct conns *conns, uint64_t deadline_ns);

struct conns_stats {
    uint32_t open;
    uint32_t waiting_for_request;
    uint32_t polling;
    uint32_t answering;
    uint64_t accepted;
    uint64_t timed_out; /* requests whose headers or body never became complete, and idle ones */
    uint64_t evicted;   /* ended to make room */
};
void conns_stats(struct conns *conns, struct conns_stats *ret_stats);

#endif
