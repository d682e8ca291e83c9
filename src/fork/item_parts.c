/* An item taken apart: what to ask for, and where what comes goes. */
#include "base/cleanup.h"
#include "fork/item.h"
#include "model/convert.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Pieces of a move with the same bytes: part of its first, whole ones, part of its last. */
struct clip {
    struct stream_range read;
    uint64_t write_offset;
    uint64_t write_stride;
};

enum { MAX_CLIPS = 3 };

/* What `bytes` of a move's source are at its target. */
static uint64_t at_target(const struct fork_move *move, uint64_t bytes)
{
    return move->from == move->to ? bytes : convert_bytes(move->from, bytes, move->to);
}

/* `count` pieces from the piece with this index on, of each the bytes [skip, skip + bytes). */
static struct clip clip_of(const struct fork_move *move, uint64_t index, uint64_t count,
                           uint64_t skip, uint64_t bytes)
{
    return (struct clip){
        .read = {.offset = move->read.offset + index * move->read.stride + skip,
                 .bytes = bytes,
                 .stride = count > 1 ? move->read.stride : 0,
                 .count = count},
        .write_offset = move->write_offset + index * move->write_stride + at_target(move, skip),
        .write_stride = count > 1 ? move->write_stride : 0,
    };
}

/* Bytes [lo, hi) of a move's pieces laid end to end. */
static unsigned clip_move(const struct fork_move *move, uint64_t lo, uint64_t hi,
                          struct clip clips[MAX_CLIPS])
{
    uint64_t piece = move->read.bytes;
    uint64_t index = lo / piece;
    uint64_t skip = lo % piece;
    unsigned count = 0;

    if (lo < hi && skip > 0) {
        uint64_t bytes = piece - skip < hi - lo ? piece - skip : hi - lo;

        clips[count++] = clip_of(move, index, 1, skip, bytes);
        lo += bytes;
        index++;
    }
    uint64_t whole = (hi - lo) / piece;
    if (whole > 0)
        clips[count++] = clip_of(move, index, whole, 0, piece);
    lo += whole * piece;
    if (lo < hi)
        clips[count++] = clip_of(move, index + whole, 1, 0, hi - lo);
    return count;
}

bool range_equal(const struct stream_range *a, const struct stream_range *b)
{
    return a->offset == b->offset && a->bytes == b->bytes && a->stride == b->stride &&
           a->count == b->count;
}

uint64_t range_bytes_before(const struct stream_range *range, uint64_t offset)
{
    if (offset <= range->offset)
        return 0;
    uint64_t past = offset - range->offset;
    uint64_t piece = range->count > 1 ? past / range->stride : 0;
    if (piece >= range->count)
        return range->bytes * range->count;
    uint64_t in_piece = past - piece * range->stride;
    return piece * range->bytes + (in_piece < range->bytes ? in_piece : range->bytes);
}

static enum rf_code make_room(const struct item *item, struct item_parts *parts,
                              struct rf_error *err)
{
    uint32_t needed = item->move_count * MAX_CLIPS;

    if (needed > parts->extent_room) {
        struct extent *extents = reallocarray(parts->extents, needed, sizeof(*extents));

        if (extents != NULL) {
            parts->extents = extents;
            parts->extent_room = needed;
        }
    }
    if (item->kind == ITEM_CHUNK)
        needed = 1;
    if (needed > parts->range_room) {
        struct stream_range *ranges = reallocarray(parts->ranges, needed, sizeof(*ranges));

        if (ranges != NULL) {
            parts->ranges = ranges;
            parts->range_room = needed;
        }
    }
    if (parts->range_room < needed || parts->extent_room < item->move_count * MAX_CLIPS)
        return rf_fail(err, RF_E_NOMEM, "no memory for a read of %" PRIu32 " moves",
                       item->move_count);
    return RF_OK;
}

/* Adds a clip of a move; *at is where the read's bytes of it begin. */
static void add_extent(struct item_parts *parts, const struct item *item,
                       const struct fork_move *move, const struct clip *clip, uint64_t at)
{
    bool whole = item->kind == ITEM_CHUNK;

    parts->extents[parts->extent_count++] = (struct extent){
        .at = whole ? clip->read.offset - item->lo : at,
        .at_stride = clip->read.count == 1 ? 0
                     : whole               ? clip->read.stride
                                           : clip->read.bytes,
        .bytes = clip->read.bytes,
        .count = clip->read.count,
        .write_offset = clip->write_offset,
        .write_stride = clip->write_stride,
        .target = move->target,
        .from = move->from,
        .to = move->to,
    };
    parts->piece_count += clip->read.count;
}

/* Extents of all moves; the ranges too where the item is not a whole chunk. Returns the bytes that
 * are taken. */
static uint64_t add_moves(const struct fork_plan *plan, const struct item *item,
                          struct item_parts *parts)
{
    const struct fork_move *moves = plan->moves + item->first_move;
    struct clip clips[MAX_CLIPS];
    uint64_t before = 0; /* where the move before begins */
    uint64_t at = 0;

    for (uint32_t i = 0; i < item->move_count; i++) {
        const struct fork_move *move = &moves[i];
        bool linear = item->kind == ITEM_LINEAR;
        bool again = i > 0 && range_equal(&move->read, &moves[i - 1].read);
        uint64_t lo = linear ? item->lo : range_bytes_before(&move->read, item->lo);
        uint64_t hi = linear ? item->hi : range_bytes_before(&move->read, item->hi);
        uint64_t to = again ? before : at;
        unsigned count = clip_move(move, lo, hi, clips);

        before = to;
        parts->converts = parts->converts || move->from != move->to;
        parts->shares = parts->shares || (again && hi > lo);
        for (unsigned c = 0; c < count; c++) {
            add_extent(parts, item, move, &clips[c], to);
            if (!again && item->kind != ITEM_CHUNK)
                parts->ranges[parts->range_count++] = clips[c].read;
            to += clips[c].read.bytes * clips[c].read.count;
        }
        at = again ? at : to;
    }
    return at;
}

static int compare_extents(const void *a, const void *b)
{
    const struct extent *left = a;
    const struct extent *right = b;

    return left->at < right->at ? -1 : left->at > right->at;
}

static void sort_extents(struct item_parts *parts)
{
    for (uint32_t i = 1; i < parts->extent_count; i++) {
        if (parts->extents[i - 1].at > parts->extents[i].at) {
            qsort(parts->extents, parts->extent_count, sizeof(*parts->extents), compare_extents);
            return;
        }
    }
}

enum rf_code item_take_apart(const struct fork_plan *plan, const struct item *item,
                             struct item_parts *parts, struct rf_error *err)
{
    enum rf_code code = make_room(item, parts, err);

    if (code != RF_OK)
        return code;
    parts->range_count = 0;
    parts->extent_count = 0;
    parts->piece_count = 0;
    parts->converts = false;
    parts->shares = false;
    uint64_t taken = add_moves(plan, item, parts);
    if (item->kind == ITEM_CHUNK) {
        parts->ranges[0] =
            (struct stream_range){.offset = item->lo, .bytes = item->bytes, .count = 1};
        parts->range_count = 1;
    } else {
        assert(taken == item->bytes);
    }
    parts->holes = taken != item->bytes;
    sort_extents(parts);
    return RF_OK;
}

void item_parts_free(struct item_parts *parts)
{
    free(parts->ranges);
    free(parts->extents);
    *parts = (struct item_parts){.ranges = NULL};
}

uint64_t extent_piece_at(const struct extent *extent, uint64_t at)
{
    if (at < extent->at + extent->bytes)
        return 0;
    if (extent->count == 1)
        return 1;
    uint64_t piece = (at - extent->at) / extent->at_stride;
    if (piece >= extent->count)
        return extent->count;
    return piece + (at - extent->at - piece * extent->at_stride >= extent->bytes);
}

uint64_t extent_target_bytes(const struct extent *extent)
{
    if (extent->from == extent->to)
        return extent->bytes;
    return convert_bytes((enum rf_dtype)extent->from, extent->bytes, (enum rf_dtype)extent->to);
}
