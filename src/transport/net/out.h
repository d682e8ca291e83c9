/* What a seed's connection wants sent next, and how to put pieces of a stream into it: small ones
 * copied together, larger ones from where they are, the largest without a copy. */
#ifndef TRANSPORT_NET_OUT_H
#define TRANSPORT_NET_OUT_H

#include "model/layout.h"

#include <sys/uio.h>

enum {
    NET_OUT_IOV = 256,            /* pieces sent by one call */
    NET_STAGING_BYTES = 64 << 10, /* for small pieces, see struct net_out */
};

/* How a large piece is sent without copying it. */
enum net_bulk {
    NET_BULK_FILE,  /* from the page cache: sendfile() from out.fd at out.fd_offset */
    NET_BULK_PAGES, /* from memory of ours at out.pages: its pages are lent to the socket */
    NET_BULK_KINDS,
};

/* First iov, then bulk_bytes without copying. Either may be empty, not both. */
struct net_out {
    struct iovec iov[NET_OUT_IOV];
    int iov_count;
    uint64_t iov_bytes;
    enum net_bulk bulk;
    uint64_t bulk_bytes;
    int fd;
    uint64_t fd_offset;
    const uint8_t *pages;
    bool more; /* something follows at once */
    /* Pieces too small to be sent from where they are; iov points here. */
    uint64_t staged;
    uint8_t staging[NET_STAGING_BYTES];
};

/* How pieces may be sent. */
struct net_out_limits {
    uint64_t bulk_min_bytes; /* below it, a copy costs less than the calls */
    bool no_bulk[NET_BULK_KINDS];
};

/* Empties it. */
void net_out_reset(struct net_out *out);
/* Adds bytes that stay where they are until they are sent. Never more than NET_OUT_IOV pieces. */
void net_out_add(struct net_out *out, const void *data, uint64_t bytes);
/* Adds what lies at the cursor, at most `bytes` of it and as much as one call can send. The cursor
 * stays: it is moved when bytes are gone. *ret_left is what was not added. Not RF_OK: what is served
 * cannot be read. */
enum rf_code net_out_add_stream(struct net_out *out, const struct layout_cursor *cursor,
                                uint64_t bytes, const struct net_out_limits *limits,
                                uint64_t *ret_left, struct rf_error *err);

#endif
