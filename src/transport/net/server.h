/* A seed over stream sockets: a few threads, each waiting on its share of the connections, that
 * accept, receive, send (without copying where that can be), keep deadlines, drain and stop. What is
 * said on a connection is its protocol's business, a state machine without I/O. */
#ifndef TRANSPORT_NET_SERVER_H
#define TRANSPORT_NET_SERVER_H

#include "transport/net/out.h"

enum { NET_MAX_LISTENERS = 4 };

/* One kind of connection; all functions are called by the connection's thread, none blocks. */
struct net_protocol {
    /* ctx is the listener's; worker counts threads from 0, and is the connection's for good. fd is
     * its socket, for looking only. NULL: out of memory. */
    void *(*create)(void *ctx, unsigned worker, int fd);
    void (*destroy)(void *conn);
    /* Where bytes that arrive go; *ret_bytes is 0 while it has enough to do and takes none. */
    uint8_t *(*space)(void *conn, size_t *ret_bytes);
    /* So many have arrived there. */
    void (*arrived)(void *conn, size_t bytes);
    /* Fills *ret_out with what is to be sent now; false if there is nothing. Not RF_OK in *ret_code:
     * an answer that has begun cannot be ended, close the connection. */
    bool (*out)(void *conn, struct net_out *ret_out, enum rf_code *ret_code, struct rf_error *err);
    /* So many bytes of it, in its order, are gone. */
    void (*sent)(void *conn, uint64_t bytes);
    /* The system cannot send that way: such pieces are to be copied from now on. */
    void (*no_bulk)(void *conn, enum net_bulk bulk);
    /* Takes no more requests, and ends those it has. */
    void (*drain)(void *conn);
    /* All is said, close when the peer has heard it. What still comes is thrown away. */
    bool (*is_finished)(const void *conn);
    bool (*has_output)(const void *conn);
    uint32_t (*reads)(const void *conn); /* not answered completely */
};

struct net_listener {
    const struct net_protocol *protocol;
    void *ctx;                /* for create() */
    int fd;                   /* listens, not blocking; the server's, also when it does not start */
    uint32_t max_connections; /* no more are accepted before one has ended */
    uint64_t hello_ms;        /* from accepting to the first request */
    uint64_t crowded_ms;      /* the same, while more than `crowd` connections are there */
    uint32_t crowd;
    /* The same, while nobody can be accepted for want of places; 0: no difference. Those that came
     * before are meant too. */
    uint64_t full_ms;
    uint64_t idle_ms;                /* without a request, or without a byte taken */
    uint64_t linger_ms;              /* for the peer to have read the last words */
    void (*tune)(void *ctx, int fd); /* of a socket just accepted; may be NULL */
};

struct net_server_options {
    const char *name; /* of its threads, 15 bytes, and in messages */
    struct net_listener listeners[NET_MAX_LISTENERS];
    unsigned listener_count;
    unsigned threads; /* at least 1 */
    /* Called by each worker's thread now and then, and a last time (over) when no more of its
     * connections will do anything; returns whether it wants to be called again soon though there is
     * no connection. May be NULL. */
    bool (*tick)(void *ctx, unsigned worker, uint64_t now_ns, bool over);
    void *tick_ctx;
};

struct net_server;

/* Listeners' descriptors are taken over in every case. RF_E_NOMEM, RF_E_SYS. */
enum rf_code net_server_start(const struct net_server_options *options,
                              struct net_server **ret_server, struct rf_error *err);
/* No new connections and requests; reads under way may end until the deadline. Returns how many were
 * cut off. */
uint32_t net_server_drain(struct net_server *server, uint64_t deadline_ns);
/* Ends at once: connections are destroyed, threads joined. NULL is fine. */
void net_server_stop(struct net_server *server);

#endif
