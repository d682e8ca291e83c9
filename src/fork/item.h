/* What a fork is made of: reads of a rank's stream, and where their bytes go. Pure.
 *
 * All moves from one source that touch the same chunk of its stream become one read. Where they
 * take (nearly) all of the chunk the read is the whole chunk, which has a digest in the seed's
 * table; where they take less, it asks for just their ranges, and for a digest of its own. A
 * plain fork is the case of one move: the whole stream. */
#ifndef FORK_ITEM_H
#define FORK_ITEM_H

#include "fork/fork.h"

enum {
    FORK_ITEM_BYTES = 8 << 20, /* ranges are gathered into one read up to about so many */
    /* A chunk is read whole when no more than one byte in so many is not needed: the norms that
     * only one holder is asked for would else break up chunks everywhere. */
    FORK_HOLE_PART = 256,
    FORK_MAX_ITEM_MOVES = CHUNK_MAX_RANGES / 3, /* a move clipped at both ends has three ranges */
};

/* Planning looks at so many pairs of chunk and move at most: beyond it somebody made a manifest to
 * keep us busy. */
#define FORK_MAX_PLAN_STEPS (UINT64_C(1) << 30)

enum item_kind {
    ITEM_CHUNK,  /* [lo, hi) of the source's stream, whole: one chunk */
    ITEM_SLICES, /* what the moves take of [lo, hi) of the source's stream */
    ITEM_LINEAR, /* bytes [lo, hi) of the one move's pieces laid end to end: whole elements */
};

struct item {
    uint64_t first_move;
    uint64_t lo;
    uint64_t hi;
    uint64_t bytes; /* that the read brings */
    uint32_t move_count;
    uint32_t source;
    enum item_kind kind;
};

struct item_list {
    struct item *items; /* by source */
    uint64_t count;
    uint64_t room;
    uint64_t bytes;     /* of all reads */
    uint64_t new_bytes; /* of all moves, as they are at the targets */
};

/* Sorts plan->moves and cuts them into items. RF_E_INVAL: a move outside its source's stream;
 * RF_E_UNSUPPORTED: moves of too many small pieces; RF_E_NOMEM. */
enum rf_code item_list_make(const struct fork_plan *plan, struct item_list *ret_list,
                            struct rf_error *err);
void item_list_free(struct item_list *list);

/* A strided copy from what an item's read brings to a target: piece i of `bytes` at at + i *
 * at_stride of the read's bytes goes to write_offset + i * write_stride of the target's stream. */
struct extent {
    uint64_t at;
    uint64_t at_stride;
    uint64_t bytes;
    uint64_t count;
    uint64_t write_offset;
    uint64_t write_stride;
    uint32_t target;
    uint8_t from;
    uint8_t to;
};

/* An item taken apart; reused from one to the next. */
struct item_parts {
    struct stream_range *ranges; /* of the READ */
    uint32_t range_count;
    uint32_t range_room;
    struct extent *extents; /* by `at` */
    uint32_t extent_count;
    uint32_t extent_room;
    uint64_t piece_count; /* of all extents */
    bool converts;
    bool shares; /* some bytes go to more than one place */
    bool holes;  /* some bytes go nowhere */
};

/* RF_E_NOMEM. */
enum rf_code item_take_apart(const struct fork_plan *plan, const struct item *item,
                             struct item_parts *parts, struct rf_error *err);
void item_parts_free(struct item_parts *parts);

/* The first of an extent's pieces that ends behind `at` of the read's bytes; extent->count if none
 * does. */
uint64_t extent_piece_at(const struct extent *extent, uint64_t at);

/* What a piece of an extent is at its target. */
uint64_t extent_target_bytes(const struct extent *extent);

/* How many of a range's bytes lie before an offset of the stream. */
uint64_t range_bytes_before(const struct stream_range *range, uint64_t offset);
bool range_equal(const struct stream_range *a, const struct stream_range *b);

#endif
