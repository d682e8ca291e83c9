/* The connections of the info service, which are libzmq's: it says when they come and go, and we may
 * look at their descriptors. It takes frames of a message without end before it shows any of them to
 * us, so how much has come since the last whole question is all that can be limited. No lock: the
 * service thread's. */
#ifndef CONTROL_NODES_LINKS_H
#define CONTROL_NODES_LINKS_H

#include <stdbool.h>
#include <stdint.h>

enum {
    LINKS_LOOK_MS = 20,               /* between two looks */
    LINKS_ONE_MAX_BYTES = 64 << 10,   /* of one connection without a question being whole */
    LINKS_ALL_MAX_BYTES = 2048 << 10, /* of all; each has its share when there are many */
};

struct link {
    int fd;
    uint64_t asked_bytes; /* that had come when its latest question was taken */
};

struct links {
    struct link *links; /* [max + 1] */
    uint32_t count;
    uint32_t max;
    bool too_many;
};

/* False: no memory. */
bool links_init(struct links *links, uint32_t max);
void links_free(struct links *links);
void links_opened(struct links *links, int fd);
void links_closed(struct links *links, int fd);
/* All are gone. */
void links_clear(struct links *links);
/* A question has been taken from this connection. */
void links_asked(struct links *links, int fd);
/* Ends those to which too much has come. port: the service's, which their ends of it have. */
void links_look(struct links *links, uint16_t port);

#endif
