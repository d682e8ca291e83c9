/* How one instance maps a rank's stream onto its own memory. */
#ifndef MODEL_LAYOUT_H
#define MODEL_LAYOUT_H

#include "base/error.h"
#include "memory/region.h"
#include "model/manifest.h"
#include "wire/chunk.h"

struct segment {
    uint64_t stream_offset;
    uint64_t bytes; /* > 0 */
    struct region *region;
    uint64_t region_offset;
};

/* Segments by stream offset, covering [0, stream_bytes) without hole or overlap; neighbours that
 * continue each other are merged. Holds a reference on each region. Immutable after
 * layout_finish(). */
struct layout {
    struct segment *segments;
    uint32_t count;
    uint32_t room;
    uint64_t stream_bytes;
};

/* Zero-initialise, add in any order, finish. */
enum rf_code layout_add(struct layout *layout, uint64_t stream_offset, uint64_t bytes,
                        struct region *region, uint64_t region_offset, struct rf_error *err);
/* Sorts, merges, checks that [0, stream_bytes) is covered exactly once and that regions are large
 * enough. */
enum rf_code layout_finish(struct layout *layout, uint64_t stream_bytes, struct rf_error *err);
void layout_free(struct layout *layout);

/* Index of the segment that holds the offset (< stream_bytes). */
uint32_t layout_find(const struct layout *layout, uint64_t stream_offset);

/* A walk over ranges of the stream as pieces of memory, in order. */
struct layout_cursor {
    const struct layout *layout;
    const struct stream_range *ranges;
    uint32_t range_count;
    uint32_t range;   /* current */
    uint64_t repeat;  /* current i < count of that range */
    uint64_t done;    /* bytes done of the current piece of the range */
    uint32_t segment; /* hint */
};

/* ranges (checked with stream_ranges_check()) and layout are borrowed. */
void layout_cursor_init(struct layout_cursor *cursor, const struct layout *layout,
                        const struct stream_range *ranges, uint32_t range_count);
/* The next piece: at most max_bytes, inside one segment. false at the end. Does not advance. */
bool layout_cursor_peek(struct layout_cursor *cursor, uint64_t max_bytes,
                        struct segment *ret_piece);
/* Advances by that many bytes, at most what peek returned. */
void layout_cursor_skip(struct layout_cursor *cursor, uint64_t bytes);

#endif
