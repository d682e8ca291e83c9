#include "transport/te/places.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a rank, as somebody else knows it ---- */

static enum rf_code check_cover(uint32_t rank, const struct te_segment *segments, uint64_t count,
                                uint64_t stream_bytes, struct rf_error *err)
{
    uint64_t end = 0;

    for (uint64_t i = 0; i < count; i++) {
        if (segments[i].bytes == 0)
            return rf_fail(err, RF_E_INVAL, "rank %" PRIu32 ": segment %" PRIu64 " of 0 bytes",
                           rank, i);
        if (segments[i].stream_offset != end ||
            __builtin_add_overflow(end, segments[i].bytes, &end))
            return rf_fail(err, RF_E_INVAL,
                           "rank %" PRIu32 ": segment %" PRIu64 ", %" PRIu64
                           " bytes, begins at %" PRIu64 ", the one before ends at %" PRIu64,
                           rank, i, segments[i].bytes, segments[i].stream_offset, end);
    }
    if (end != stream_bytes)
        return rf_fail(err, RF_E_INVAL,
                       "rank %" PRIu32 ": its segments end at %" PRIu64 ", its stream has %" PRIu64
                       " bytes",
                       rank, end, stream_bytes);
    return RF_OK;
}

/* What is registered, for people. */
static const char *registered_text(const struct te_descriptor *descriptor, char *out, size_t room)
{
    uint64_t count = descriptor->buffer_count;
    uint64_t sum = 0;

    for (uint64_t i = 0; i < count; i++) /* they do not overlap: no wrap-around */
        sum += descriptor->buffers[i].bytes;
    if (count == 0)
        (void)snprintf(out, room, "nothing");
    else
        (void)snprintf(
            out, room, "%" PRIu64 " buffers, %" PRIu64 " bytes, from %#" PRIx64 " to %#" PRIx64,
            count, sum, descriptor->buffers[0].address,
            descriptor->buffers[count - 1].address + descriptor->buffers[count - 1].bytes);
    return out;
}

static enum rf_code check_registered(const struct te_descriptor *descriptor, uint32_t rank,
                                     const struct te_segment *segments, uint64_t count,
                                     struct rf_error *err)
{
    const struct te_segment *first = NULL;
    uint64_t outside = 0;
    char text[192];

    for (uint64_t i = 0; i < count; i++) {
        if (te_descriptor_find(descriptor, segments[i].address, segments[i].bytes) != NULL)
            continue;
        if (first == NULL)
            first = &segments[i];
        outside++;
    }
    if (first == NULL)
        return RF_OK;
    return rf_fail(err, RF_E_MISMATCH,
                   "rank %" PRIu32 ": %" PRIu64 " of %" PRIu64
                   " pieces are not in registered memory, the first is %" PRIu64
                   " bytes at %#" PRIx64 "; engine %s has registered %s",
                   rank, outside, count, first->bytes, first->address, descriptor->name,
                   registered_text(descriptor, text, sizeof text));
}

/* Copies, merging neighbours that continue each other in one buffer. Returns how many are left. */
static uint64_t merge(const struct te_descriptor *descriptor, const struct te_segment *segments,
                      uint64_t count, struct te_segment *out)
{
    const struct te_buffer *buffer = NULL; /* that holds the last one */
    uint64_t made = 0;

    for (uint64_t i = 0; i < count; i++) {
        struct te_segment *last = made > 0 ? &out[made - 1] : NULL;
        const struct te_segment *next = &segments[i];

        if (last != NULL && buffer != NULL && last->address + last->bytes == next->address &&
            next->bytes <= buffer->bytes - (next->address - buffer->address)) {
            last->bytes += next->bytes;
            continue;
        }
        buffer = te_descriptor_find(descriptor, next->address, next->bytes);
        out[made++] = *next;
    }
    return made;
}

/* The first rank that is not below this one. */
static uint32_t rank_at(const struct te_places *places, uint32_t rank)
{
    uint32_t low = 0;
    uint32_t high = places->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (places->ranks[middle].rank < rank)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static enum rf_code insert(struct te_places *places, const struct te_rank_places *rank,
                           struct rf_error *err)
{
    uint32_t at = rank_at(places, rank->rank);

    if (at < places->count && places->ranks[at].rank == rank->rank) {
        free(places->ranks[at].segments);
        places->ranks[at] = *rank;
        return RF_OK;
    }
    struct te_rank_places *more =
        realloc(places->ranks, ((size_t)places->count + 1) * sizeof *more);
    if (more == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for rank %" PRIu32, rank->rank);
    memmove(more + at + 1, more + at, (places->count - at) * sizeof *more);
    more[at] = *rank;
    places->ranks = more;
    places->count++;
    return RF_OK;
}

enum rf_code te_places_set(struct te_places *places, const struct te_descriptor *descriptor,
                           uint32_t rank, const struct te_segment *segments, uint64_t count,
                           uint64_t stream_bytes, struct rf_error *err)
{
    struct te_rank_places it = {.rank = rank, .stream_bytes = stream_bytes};
    enum rf_code code = check_cover(rank, segments, count, stream_bytes, err);

    if (code == RF_OK)
        code = check_registered(descriptor, rank, segments, count, err);
    if (code != RF_OK)
        return code;
    it.segments = calloc(count > 0 ? count : 1, sizeof *it.segments);
    if (it.segments == NULL)
        return rf_fail(err, RF_E_NOMEM, "rank %" PRIu32 ": no memory for %" PRIu64 " segments",
                       rank, count);
    it.count = merge(descriptor, segments, count, it.segments);
    code = insert(places, &it, err);
    if (code != RF_OK)
        free(it.segments);
    return code;
}

/* ---- the ranks of a seed of ours ---- */

static bool rank_of(const char *name, uint32_t *ret_rank)
{
    static const char prefix[] = "rank:";
    uint64_t rank = 0;

    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return false;
    name += sizeof prefix - 1;
    size_t digits = strspn(name, "0123456789");
    if (digits == 0 || digits > 10 || name[digits] != '\0')
        return false;
    for (size_t i = 0; i < digits; i++)
        rank = rank * 10 + (uint64_t)(name[i] - '0');
    *ret_rank = (uint32_t)rank;
    return rank <= UINT32_MAX;
}

static int compare_rank(const void *a, const void *b)
{
    const struct te_rank_places *one = a;
    const struct te_rank_places *other = b;

    return one->rank < other->rank ? -1 : one->rank > other->rank;
}

enum rf_code te_places_of_seed(struct te_places *places, const struct te_descriptor *descriptor,
                               struct rf_error *err)
{
    struct te_places made = {.count = 0};

    made.ranks = calloc(descriptor->buffer_count + 1, sizeof *made.ranks);
    if (made.ranks == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " ranks",
                       descriptor->buffer_count);
    for (uint64_t i = 0; i < descriptor->buffer_count; i++) {
        const struct te_buffer *buffer = &descriptor->buffers[i];
        struct te_rank_places it = {.stream_bytes = buffer->bytes, .count = 1};

        if (!rank_of(buffer->name, &it.rank))
            continue;
        it.segments = malloc(sizeof *it.segments);
        if (it.segments == NULL) {
            te_places_free(&made);
            return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " ranks",
                           descriptor->buffer_count);
        }
        it.segments[0] = (struct te_segment){.bytes = buffer->bytes, .address = buffer->address};
        made.ranks[made.count++] = it;
    }
    qsort(made.ranks, made.count, sizeof *made.ranks, compare_rank);
    for (uint32_t i = 1; i < made.count; i++) {
        uint32_t rank = made.ranks[i].rank;

        if (made.ranks[i - 1].rank == rank) {
            te_places_free(&made);
            return rf_fail(err, RF_E_PROTO, "rank %" PRIu32 " is there twice", rank);
        }
    }
    *places = made;
    return RF_OK;
}

/* ---- looking up ---- */

const struct te_rank_places *te_places_find(const struct te_places *places, uint32_t rank)
{
    uint32_t at = rank_at(places, rank);

    return at < places->count && places->ranks[at].rank == rank ? &places->ranks[at] : NULL;
}

void te_places_free(struct te_places *places)
{
    for (uint32_t i = 0; i < places->count; i++)
        free(places->ranks[i].segments);
    free(places->ranks);
    *places = (struct te_places){.count = 0};
}

static bool holds(const struct te_segment *segment, uint64_t offset)
{
    return offset >= segment->stream_offset && offset - segment->stream_offset < segment->bytes;
}

uint64_t te_places_segment(const struct te_rank_places *rank, uint64_t offset, uint64_t hint)
{
    uint64_t low = 0;
    uint64_t high = rank->count;

    if (hint < high && holds(&rank->segments[hint], offset))
        return hint;
    if (hint + 1 < high && holds(&rank->segments[hint + 1], offset))
        return hint + 1;
    while (low + 1 < high) {
        uint64_t middle = low + (high - low) / 2;

        if (rank->segments[middle].stream_offset <= offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}
