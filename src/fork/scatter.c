/* From the buffer that an item arrived in to the places of its pieces. */
#include "fork/internal.h"
#include "model/convert.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

enum { SCATTER_CONVERT_BYTES = 2048 }; /* at once, before they widen */

static enum rf_code write_all(const struct fork_segment *at, uint64_t skip, const uint8_t *data,
                              uint64_t bytes, struct rf_error *err)
{
    while (bytes > 0) {
        ssize_t put = pwrite(at->fd, data, bytes, (off_t)(at->fd_offset + skip));

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return rf_fail_sys(err,
                               "writing %" PRIu64 " bytes at %" PRIu64 " of the destination file",
                               bytes, at->fd_offset + skip);
        data += put;
        skip += (uint64_t)put;
        bytes -= (uint64_t)put;
    }
    return RF_OK;
}

/* Puts bytes to a place of a target's stream. */
static enum rf_code put(struct item_slot *slot, uint32_t target, uint64_t write,
                        const uint8_t *data, uint64_t bytes, struct rf_error *err)
{
    const struct fork_dest *dest = slot->plan->targets[target].dest;
    enum rf_code code = RF_OK;

    while (code == RF_OK && bytes > 0) {
        slot->hint = fork_dest_find_near(dest, write, slot->hint);
        const struct fork_segment *segment = &dest->segments[slot->hint];
        uint64_t skip = write - segment->stream_offset;
        uint64_t piece = segment->bytes - skip < bytes ? segment->bytes - skip : bytes;

        if (segment->addr != NULL)
            memcpy(segment->addr + skip, data, piece);
        else
            code = write_all(segment, skip, data, piece, err);
        write += piece;
        data += piece;
        bytes -= piece;
    }
    return code;
}

/* The part of a piece that is there, as far as it is whole elements. */
static enum rf_code put_converted(struct item_slot *slot, const struct extent *extent,
                                  uint64_t write, const uint8_t *data, uint64_t bytes,
                                  struct rf_error *err)
{
    uint8_t wide[SCATTER_CONVERT_BYTES * sizeof(uint64_t)];
    enum rf_code code = RF_OK;

    while (code == RF_OK && bytes > 0) {
        uint64_t piece = bytes < SCATTER_CONVERT_BYTES ? bytes : SCATTER_CONVERT_BYTES;
        uint64_t made = convert_bytes(extent->from, piece, extent->to);

        code = convert_elements(extent->from, data, piece, extent->to, wide, err);
        if (code == RF_OK)
            code = put(slot, extent->target, write, wide, made, err);
        write += made;
        data += piece;
        bytes -= piece;
    }
    return code;
}

/* What of one extent lies in [at, at + bytes) of the item. *used falls to where an element that is
 * not whole begins. */
static enum rf_code scatter_extent(struct item_slot *slot, const struct extent *extent,
                                   const uint8_t *data, uint64_t at, uint64_t bytes, uint64_t *used,
                                   struct rf_error *err)
{
    uint64_t element = rf_dtype_bits((enum rf_dtype)extent->from) / 8;
    enum rf_code code = RF_OK;

    for (uint64_t i = extent_piece_at(extent, at); code == RF_OK && i < extent->count; i++) {
        uint64_t begin = extent->at + i * extent->at_stride;
        uint64_t skip = begin < at ? at - begin : 0;
        uint64_t write = extent->write_offset + i * extent->write_stride;

        if (begin >= at + bytes)
            break;
        uint64_t there = at + bytes - (begin + skip);
        uint64_t piece = extent->bytes - skip < there ? extent->bytes - skip : there;
        if (extent->from == extent->to) {
            code = put(slot, extent->target, write + skip, data + (begin + skip - at), piece, err);
            continue;
        }
        uint64_t rest = piece % element;
        code = put_converted(slot, extent, write + convert_bytes(extent->from, skip, extent->to),
                             data + (begin + skip - at), piece - rest, err);
        if (rest > 0)
            *used = begin + skip + piece - rest - at;
    }
    return code;
}

enum rf_code item_slot_scatter(struct item_slot *slot, const uint8_t *data, uint64_t at,
                               uint64_t bytes, uint64_t *ret_used, struct rf_error *err)
{
    const struct item_parts *parts = &slot->parts;
    enum rf_code code = RF_OK;
    uint64_t used = bytes;

    while (slot->first < parts->extent_count &&
           extent_piece_at(&parts->extents[slot->first], at) == parts->extents[slot->first].count)
        slot->first++;
    for (uint32_t i = slot->first; code == RF_OK && i < parts->extent_count; i++) {
        if (parts->extents[i].at >= at + bytes)
            break;
        code = scatter_extent(slot, &parts->extents[i], data, at, bytes, &used, err);
    }
    if (code == RF_OK)
        *ret_used = used;
    return code;
}
