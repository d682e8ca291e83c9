/* Addresses of Unix sockets, and which processes may be at their other end. */
#ifndef TRANSPORT_MAP_ADDRESS_H
#define TRANSPORT_MAP_ADDRESS_H

#include "base/error.h"

#include <sys/socket.h>
#include <sys/un.h>

/* Every abstract name of ours begins so. A reader connects to no other: an endpoint comes from a
 * peer, and must not be able to send a reader to the sockets of other programs' abstract names. */
#define MAP_ABSTRACT_PREFIX "@rfork-"

struct map_address {
    struct sockaddr_un un;
    socklen_t bytes;
};

/* "/run/rfork.sock" or "@rfork-...". RF_E_INVAL: neither, or too long for a Unix socket. */
enum rf_code map_address_parse(const char *text, struct map_address *ret_address,
                               struct rf_error *err);

/* Tries to connect without waiting. 0: somebody listens there; otherwise errno of connect(). */
int map_address_knock(const struct map_address *address);

/* Whether who listens there would take us for one of its own: runs as our effective uid, or we are
 * root. True when it cannot be told. Does not wait. */
bool map_address_admits(const struct map_address *address);

/* Whether the process at the other end of a connected socket is one whose word we take: our own
 * effective uid, or root. root_trusts_all: and if we are root, anybody. RF_E_DENIED naming both
 * uids. */
enum rf_code map_peer_check(int fd, bool root_trusts_all, struct rf_error *err);

#endif
