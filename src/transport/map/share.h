/* What a seed grants: for each rank read-only descriptors of its sealed memory, and the table
 * that says where in them the stream lies, encoded once. Immutable afterwards. */
#ifndef TRANSPORT_MAP_SHARE_H
#define TRANSPORT_MAP_SHARE_H

#include "transport/transport.h"
#include "wire/map.h"

struct map_share {
    struct buf table;     /* grant header, sizes of the descriptors, segments: as it goes out */
    int fds[MAP_MAX_FDS]; /* owned by map_shares */
    uint32_t fd_count;
    uint64_t bytes; /* of the stream */
};

struct map_shared_fd {
    const struct region *region;
    int fd;
};

struct map_shares {
    struct map_share *ranks;
    uint32_t count;
    struct map_shared_fd *open; /* each region once, whatever the number of ranks in it */
    uint32_t open_count;
};

/* Looks at every rank of the exporter. RF_E_UNSUPPORTED: a region that is not shared memory, or
 * is not sealed yet; more regions than one message carries. */
enum rf_code map_shares_make(const struct exporter *exporter, struct map_shares *ret_shares,
                             struct rf_error *err);
void map_shares_free(struct map_shares *shares);

#endif
