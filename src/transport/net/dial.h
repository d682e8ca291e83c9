/* Reaching a peer. Every wait ends at a deadline, or when somebody cancels it. */
#ifndef TRANSPORT_NET_DIAL_H
#define TRANSPORT_NET_DIAL_H

#include "base/buf.h"
#include "transport/net/socket.h"
#include "transport/transport.h"

#include <stdatomic.h>

/* Verdict on an endpoint that is reached by IP: usable if it names an address; within and between say
 * what that means for two of the same host, and of two. */
void net_judge(const struct endpoint *endpoint, int rank, const char *within, const char *between,
               struct transport_verdict *ret_verdict);

/* Who is at the other end, for messages, and how long anything may take. */
struct net_peer {
    const char *kind; /* "seed" */
    char text[NET_ADDRESS_TEXT_BYTES];
    uint64_t timeout_ms;
    const atomic_bool *cancel; /* may be NULL */
    int cancel_fd;             /* -1, or becomes readable at the same time */
};

bool net_is_cancelled(const struct net_peer *peer);

/* Waits until events happen on fd (-1: only for the rest). RF_E_TIMEOUT at the deadline;
 * RF_E_CANCELLED. Fills no error: net_fail_wait() does. */
enum rf_code net_wait(const struct net_peer *peer, int fd, short events, uint64_t deadline_ns);
/* Waits for bytes of answers, and for the socket to take more where something is unsent: at most
 * until the peer, last heard at heard_ns, has been silent for too long with `open` reads asked for,
 * which fills err as RF_E_CANCELLED does and sets *ret_over; RF_E_TIMEOUT without it is the caller's
 * deadline. */
enum rf_code net_wait_answer(const struct net_peer *peer, int fd, bool unsent, uint64_t heard_ns,
                             uint32_t open, uint64_t deadline_ns, bool *ret_over,
                             struct rf_error *err);
/* Lets poll() sleep until so many bytes are there; *low_water is what the socket is set to. */
void net_set_low_water(int fd, int bytes, int *low_water);
/* Puts into words that waiting ended with a code, while doing `what` ("connecting"). */
enum rf_code net_fail_wait(const struct net_peer *peer, enum rf_code code, const char *what,
                           struct rf_error *err);
/* The same for what the system said: RF_E_UNREACHABLE, or RF_E_TIMEOUT. */
enum rf_code net_fail_gone(const struct net_peer *peer, const char *what, int sys_errno,
                           struct rf_error *err);

/* Begins to connect; whether it works shows later. */
enum rf_code net_connect_begin(const struct net_peer *peer, const struct net_address *address,
                               int *ret_fd, struct rf_error *err);
enum rf_code net_connect(const struct net_peer *peer, const struct net_address *address,
                         uint64_t deadline_ns, int *ret_fd, struct rf_error *err);

/* Requests that the socket has not taken yet. */
struct net_unsent {
    struct buf out;
    size_t sent;
    bool broken; /* the peer hears nothing any more; what it said before comes first */
};
/* Hands them to the socket, as many as it takes. A peer that is gone shows when we read. */
void net_flush(struct net_unsent *unsent, int fd);
static inline bool net_has_unsent(const struct net_unsent *unsent)
{
    return unsent->sent < unsent->out.bytes;
}

/* All of it, or not RF_OK. A peer that closes is RF_E_UNREACHABLE. */
enum rf_code net_send_all(const struct net_peer *peer, int fd, const void *data, size_t bytes,
                          const char *what, uint64_t deadline_ns, struct rf_error *err);
enum rf_code net_receive_all(const struct net_peer *peer, int fd, void *data, size_t bytes,
                             const char *what, uint64_t deadline_ns, struct rf_error *err);

enum { NET_MAX_RESOLVED = 16 };

/* Addresses of a host: a name, an IPv4 or an IPv6 address without brackets. A name server that does
 * not answer is not waited for beyond the deadline. RF_E_UNREACHABLE: there is no such host. */
enum rf_code net_resolve(const struct net_peer *peer, const char *host, uint16_t port,
                         uint64_t deadline_ns, struct net_address found[NET_MAX_RESOLVED],
                         unsigned *ret_count, struct rf_error *err);

/* Whether they are of the same host: ports do not count, ::ffff:1.2.3.4 is 1.2.3.4. */
bool net_same_host(const struct net_address *a, const struct net_address *b);
void net_set_port(struct net_address *address, uint16_t port);

#endif
