/* Addresses, and sockets set up as transports over TCP want them, both halves: non-blocking,
 * close-on-exec, never SIGPIPE. */
#ifndef TRANSPORT_NET_SOCKET_H
#define TRANSPORT_NET_SOCKET_H

#include "base/error.h"

#include <netinet/in.h>
#include <sys/socket.h>

struct net_address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    };
    socklen_t bytes;
};

enum { NET_ADDRESS_TEXT_BYTES = 128 };

/* Parses "192.0.2.7:4000", "[2001:db8::7]:4000", "[fe80::7%eth0]:4000": numbers only, so that
 * nothing waits for a name server. RF_E_INVAL. */
enum rf_code net_address_parse(const char *text, struct net_address *ret_address,
                               struct rf_error *err);
/* The opposite; returns out. */
const char *net_address_text(const struct net_address *address, char out[NET_ADDRESS_TEXT_BYTES]);

/* Whether it stands for all addresses of a host. */
bool net_address_is_any(const struct net_address *address);

/* Listens on a host ("": all of IPv4; names are looked up) and a port (0: any). *ret_address is
 * where, with the port that it became; backlog is how many connections may wait to be accepted.
 * RF_E_INVAL: no such host; RF_E_DENIED, RF_E_SYS: the system says why. */
enum rf_code net_listen(const char *host, uint16_t port, int backlog, int *ret_fd,
                        struct net_address *ret_address, struct rf_error *err);

/* Options of a connected socket: no delay, and a peer that went away without a word is noticed
 * after silent_ms. Those of a listener are those of the connections that it accepts. */
void net_tune(int fd, uint64_t silent_ms);

/* BBR paces what is sent by timers, for the sake of long and lossy paths. Where the peer is less
 * than a millisecond away that protects nothing and doubles the time both sides spend per byte
 * (0.27 instead of 0.15 s/GB in all, 3.3 instead of 5.8 GB/s over loopback, on 2 cores): there a
 * seed uses CUBIC in its place. Whatever else the system uses stays.
 *
 * A connection that has begun with BBR is paced for ever, so the listener is set to CUBIC and
 * connections from afar are set back: *ret_far is to what, "" if nothing was changed. */
enum { NET_CONGESTION_BYTES = 16 };
void net_tune_listener(int fd, char ret_far[NET_CONGESTION_BYTES]);
void net_tune_accepted(int fd, const char *far);

#endif
