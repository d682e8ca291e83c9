/* The Unix socket a seed listens on. */
#ifndef TRANSPORT_MAP_LISTEN_H
#define TRANSPORT_MAP_LISTEN_H

#include "transport/map/address.h"

#include <sys/types.h>

struct map_listener {
    int fd;         /* non-blocking */
    int lock_fd;    /* -1 for an abstract name */
    char name[256]; /* the endpoint's address */
    dev_t dev;      /* of the socket file, so that nobody else's is removed */
    ino_t ino;
};

/* path NULL: an abstract name nobody can guess. Otherwise a socket file of mode 0600; one that a
 * dead process left is replaced. RF_E_INVAL: not a socket, in use, too long. RF_E_SYS,
 * RF_E_DENIED from the system. */
enum rf_code map_listen(const char *path, struct map_listener *ret_listener, struct rf_error *err);

/* Closes, and removes the socket file if it is still ours. */
void map_listener_close(struct map_listener *listener);

#endif
