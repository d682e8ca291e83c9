/* The reader's half of one exchange as a state machine without sockets: what a seed sends goes
 * in, bytes and descriptors, and a layout over read-only regions comes out. Everything that goes
 * in is untrusted. */
#ifndef TRANSPORT_MAP_INTAKE_H
#define TRANSPORT_MAP_INTAKE_H

#include "model/layout.h"
#include "wire/map.h"

enum { MAP_INTAKE_SEGMENTS = 2048 }; /* decoded at a time */

enum map_intake_stage { INTAKE_GRANT, INTAKE_TEXT, INTAKE_SIZES, INTAKE_SEGMENTS, INTAKE_DONE };

struct map_intake {
    enum map_intake_stage stage;
    bool begun; /* something has arrived */
    struct map_grant grant;
    int fds[MAP_MAX_FDS]; /* arrived, not adopted yet */
    uint32_t fd_count;
    struct region *regions[MAP_MAX_FDS];
    uint32_t region_count;
    struct layout layout;
    uint32_t segments_left;
    uint64_t stream_bytes; /* sum of the segments */
    enum rf_code refused;  /* when done: RF_OK, or the seed's answer */
    struct rf_error refusal;
    size_t have; /* of `goal` bytes in buf */
    size_t goal;
    uint8_t buf[MAP_INTAKE_SEGMENTS * MAP_SEGMENT_BYTES];
};

/* NULL when out of memory. */
struct map_intake *map_intake_create(void);
/* Closes and frees what was not taken out of it. NULL is fine. */
void map_intake_destroy(struct map_intake *intake);

/* Where the next bytes belong: never one beyond the end of the answer. NULL when it is done. */
uint8_t *map_intake_where(struct map_intake *intake, size_t *ret_bytes);

/* So many bytes have been put there, and came with these descriptors, which are taken over in
 * every case. RF_E_PROTO, RF_E_NOMEM, RF_E_SYS: the exchange is over. */
enum rf_code map_intake_took(struct map_intake *intake, size_t bytes, const int *fds,
                             uint32_t fd_count, struct rf_error *err);

/* Whether all of it is there: then `refused` says how it went, and if RF_OK, `layout` is
 * finished. */
bool map_intake_done(const struct map_intake *intake);

#endif
