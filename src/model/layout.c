#include "model/layout.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

/* Whether b goes on where a ends, in the stream and in the region. */
static bool continues(const struct segment *a, const struct segment *b)
{
    return a->region == b->region && a->stream_offset + a->bytes == b->stream_offset &&
           a->region_offset + a->bytes == b->region_offset;
}

enum rf_code layout_add(struct layout *layout, uint64_t stream_offset, uint64_t bytes,
                        struct region *region, uint64_t region_offset, struct rf_error *err)
{
    struct segment segment = {stream_offset, bytes, region, region_offset};
    uint64_t end;

    if (bytes == 0)
        return RF_OK; /* an empty tensor */
    if (__builtin_add_overflow(stream_offset, bytes, &end) ||
        __builtin_add_overflow(region_offset, bytes, &end) || end > region_bytes(region))
        return rf_fail(err, RF_E_INVAL,
                       "stream %" PRIu64 "+%" PRIu64 ": no such bytes at %" PRIu64
                       " of a region of %" PRIu64,
                       stream_offset, bytes, region_offset, region_bytes(region));
    /* Tensors come mostly in the order of the stream and of memory: what is merged here need not be
     * sorted later. */
    if (layout->count > 0 && continues(&layout->segments[layout->count - 1], &segment)) {
        layout->segments[layout->count - 1].bytes += bytes;
        return RF_OK;
    }
    if (layout->count == layout->room) {
        uint32_t room = layout->room == 0 ? 16 : layout->room * 2;
        struct segment *segments = NULL;

        if (layout->room <= UINT32_MAX / 2)
            segments = reallocarray(layout->segments, room, sizeof *segments);
        if (segments == NULL)
            return rf_fail(err, RF_E_NOMEM, "layout: no memory for %" PRIu32 " segments", room);
        layout->segments = segments;
        layout->room = room;
    }
    segment.region = region_ref(region);
    layout->segments[layout->count++] = segment;
    return RF_OK;
}

static int compare_segments(const void *a, const void *b)
{
    uint64_t at_a = ((const struct segment *)a)->stream_offset;
    uint64_t at_b = ((const struct segment *)b)->stream_offset;

    return at_a < at_b ? -1 : at_a > at_b;
}

static void sort_segments(struct layout *layout)
{
    for (uint32_t i = 1; i < layout->count; i++) {
        if (layout->segments[i - 1].stream_offset > layout->segments[i].stream_offset) {
            qsort(layout->segments, layout->count, sizeof *layout->segments, compare_segments);
            return;
        }
    }
}

static void merge_segments(struct layout *layout)
{
    uint32_t kept = 0;

    for (uint32_t i = 1; i < layout->count; i++) {
        if (continues(&layout->segments[kept], &layout->segments[i])) {
            layout->segments[kept].bytes += layout->segments[i].bytes;
            region_unref(layout->segments[i].region);
        } else {
            layout->segments[++kept] = layout->segments[i];
        }
    }
    if (layout->count > 0)
        layout->count = kept + 1;
}

enum rf_code layout_finish(struct layout *layout, uint64_t stream_bytes, struct rf_error *err)
{
    uint64_t covered = 0;

    sort_segments(layout);
    for (uint32_t i = 0; i < layout->count; i++) {
        const struct segment *segment = &layout->segments[i];

        if (segment->stream_offset != covered)
            return rf_fail(err, RF_E_INVAL,
                           "layout: stream bytes %" PRIu64 " to %" PRIu64 " are %s",
                           segment->stream_offset < covered ? segment->stream_offset : covered,
                           segment->stream_offset < covered ? covered : segment->stream_offset,
                           segment->stream_offset < covered ? "in two places" : "nowhere");
        covered += segment->bytes; /* no wrap: layout_add() checked each end */
    }
    if (covered != stream_bytes)
        return rf_fail(err, RF_E_INVAL, "layout: covers %" PRIu64 " bytes of a stream of %" PRIu64,
                       covered, stream_bytes);
    merge_segments(layout);
    layout->stream_bytes = stream_bytes;
    return RF_OK;
}

void layout_free(struct layout *layout)
{
    for (uint32_t i = 0; i < layout->count; i++)
        region_unref(layout->segments[i].region);
    free(layout->segments);
    *layout = (struct layout){0};
}

uint32_t layout_find(const struct layout *layout, uint64_t stream_offset)
{
    uint32_t low = 0;
    uint32_t high = layout->count;

    assert(stream_offset < layout->stream_bytes);
    /* The last one that begins at or before the offset; the first begins at 0. */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        if (layout->segments[middle].stream_offset <= stream_offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* ---- cursor ---- */

void layout_cursor_init(struct layout_cursor *cursor, const struct layout *layout,
                        const struct stream_range *ranges, uint32_t range_count)
{
    *cursor = (struct layout_cursor){
        .layout = layout,
        .ranges = ranges,
        .range_count = range_count,
    };
}

static bool holds(const struct segment *segment, uint64_t offset)
{
    return offset >= segment->stream_offset && offset - segment->stream_offset < segment->bytes;
}

/* Moves the hint to the segment that holds the offset: nearly always the one it is at, or the
 * next. */
static const struct segment *cursor_segment(struct layout_cursor *cursor, uint64_t offset)
{
    const struct layout *layout = cursor->layout;

    if (!holds(&layout->segments[cursor->segment], offset)) {
        if (cursor->segment + 1 < layout->count &&
            holds(&layout->segments[cursor->segment + 1], offset))
            cursor->segment++;
        else
            cursor->segment = layout_find(layout, offset);
    }
    return &layout->segments[cursor->segment];
}

bool layout_cursor_peek(struct layout_cursor *cursor, uint64_t max_bytes, struct segment *ret_piece)
{
    if (cursor->range == cursor->range_count)
        return false;

    const struct stream_range *range = &cursor->ranges[cursor->range];
    uint64_t offset = range->offset + cursor->repeat * range->stride + cursor->done;
    uint64_t bytes = range->bytes - cursor->done;
    const struct segment *segment = cursor_segment(cursor, offset);
    uint64_t inside = offset - segment->stream_offset;

    if (bytes > segment->bytes - inside)
        bytes = segment->bytes - inside;
    *ret_piece = (struct segment){
        .stream_offset = offset,
        .bytes = bytes < max_bytes ? bytes : max_bytes,
        .region = segment->region,
        .region_offset = segment->region_offset + inside,
    };
    return true;
}

void layout_cursor_skip(struct layout_cursor *cursor, uint64_t bytes)
{
    if (bytes == 0)
        return;
    assert(cursor->range < cursor->range_count);
    const struct stream_range *range = &cursor->ranges[cursor->range];

    assert(bytes <= range->bytes - cursor->done);
    cursor->done += bytes;
    if (cursor->done < range->bytes)
        return;
    cursor->done = 0;
    if (++cursor->repeat < range->count)
        return;
    cursor->repeat = 0;
    cursor->range++;
}
