/* Destinations: where each part of a stream goes. */
#include "fork/internal.h"

#include <inttypes.h>
#include <stdlib.h>

enum rf_code fork_dest_add(struct fork_dest *dest, const struct fork_segment *segment,
                           struct rf_error *err)
{
    if (segment->bytes == 0)
        return rf_fail(err, RF_E_INVAL, "a destination of no bytes at stream offset %" PRIu64,
                       segment->stream_offset);
    if (dest->count == dest->room) {
        uint32_t room = dest->room > 0 ? dest->room * 2 : 64;
        struct fork_segment *grown = reallocarray(dest->segments, room, sizeof(*grown));

        if (grown == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " destinations", room);
        dest->segments = grown;
        dest->room = room;
    }
    dest->segments[dest->count++] = *segment;
    return RF_OK;
}

static int segment_order(const void *a, const void *b)
{
    const struct fork_segment *left = a;
    const struct fork_segment *right = b;

    if (left->stream_offset != right->stream_offset)
        return left->stream_offset < right->stream_offset ? -1 : 1;
    return 0;
}

static bool continues(const struct fork_segment *left, const struct fork_segment *right)
{
    if (left->addr != NULL || right->addr != NULL)
        return left->addr != NULL && left->addr + left->bytes == right->addr;
    return left->fd == right->fd && left->fd_offset + left->bytes == right->fd_offset;
}

enum rf_code fork_dest_finish(struct fork_dest *dest, uint64_t stream_bytes, struct rf_error *err)
{
    uint64_t at = 0;
    uint32_t kept = 0;

    if (dest->count > 0)
        qsort(dest->segments, dest->count, sizeof(*dest->segments), segment_order);
    for (uint32_t i = 0; i < dest->count; i++) {
        const struct fork_segment *segment = &dest->segments[i];

        if (segment->stream_offset != at || segment->bytes > stream_bytes - at)
            return rf_fail(err, RF_E_INVAL,
                           "the destination has %s: stream offset %" PRIu64 "+%" PRIu64
                           " follows %" PRIu64 " of %" PRIu64,
                           segment->stream_offset > at ? "a hole" : "an overlap",
                           segment->stream_offset, segment->bytes, at, stream_bytes);
        at += segment->bytes;
        if (kept > 0 && continues(&dest->segments[kept - 1], segment))
            dest->segments[kept - 1].bytes += segment->bytes;
        else
            dest->segments[kept++] = *segment;
    }
    if (at != stream_bytes)
        return rf_fail(err, RF_E_INVAL, "the destination holds %" PRIu64 " of %" PRIu64 " bytes",
                       at, stream_bytes);
    dest->count = kept;
    return RF_OK;
}

void fork_dest_free(struct fork_dest *dest)
{
    free(dest->segments);
    *dest = (struct fork_dest){.segments = NULL};
}

uint32_t fork_dest_find(const struct fork_dest *dest, uint64_t stream_offset)
{
    uint32_t low = 0;
    uint32_t high = dest->count;

    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        if (dest->segments[middle].stream_offset <= stream_offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}

uint32_t fork_dest_find_near(const struct fork_dest *dest, uint64_t stream_offset, uint32_t hint)
{
    if (hint < dest->count) {
        const struct fork_segment *segment = &dest->segments[hint];

        if (stream_offset >= segment->stream_offset &&
            stream_offset - segment->stream_offset < segment->bytes)
            return hint;
    }
    return fork_dest_find(dest, stream_offset);
}

const struct fork_segment *fork_dest_at(const struct fork_dest *dest, uint64_t stream_offset)
{
    return &dest->segments[fork_dest_find(dest, stream_offset)];
}
