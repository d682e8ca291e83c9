/* Where each byte of the ranks is to come from. Nothing is read here. */
#include "base/cleanup.h"
#include "seed/load_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- places ---- */

static enum rf_code add_place(struct load_parts *parts, const struct load_place *place,
                              struct rf_error *err)
{
    if (parts->place_count == parts->place_room) {
        uint64_t room = parts->place_room == 0 ? 1024 : parts->place_room * 2;
        struct load_place *places = reallocarray(parts->places, room, sizeof *places);

        if (places == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory to plan %" PRIu64 " parts of tensors", room);
        parts->places = places;
        parts->place_room = room;
    }
    parts->places[parts->place_count++] = *place;
    return RF_OK;
}

static enum rf_code add_make(struct load_parts *parts, const struct load_make *make, uint64_t *room,
                             struct rf_error *err)
{
    if (parts->make_count == *room) {
        uint64_t wanted = *room == 0 ? 256 : *room * 2;
        struct load_make *makes = reallocarray(parts->makes, wanted, sizeof *makes);

        if (makes == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory to plan %" PRIu64 " parts of tensors",
                           wanted);
        parts->makes = makes;
        *room = wanted;
    }
    parts->makes[parts->make_count++] = *make;
    return RF_OK;
}

/* There are few: zeros, and perhaps what an engine fills scales with. */
static enum rf_code find_constant(struct load_parts *parts, const struct part *part,
                                  uint32_t *ret_index, struct rf_error *err)
{
    for (uint32_t i = 0; i < parts->constant_count; i++) {
        const struct part *other = parts->constants[i].part;

        if (other->axis != part->axis || other->start != part->start)
            continue;
        if (other->bytes < part->bytes)
            parts->constants[i].part = part;
        *ret_index = i;
        return RF_OK;
    }
    struct load_constant *constants =
        reallocarray(parts->constants, parts->constant_count + (size_t)1, sizeof *parts->constants);
    if (constants == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " constants",
                       parts->constant_count);
    parts->constants = constants;
    *ret_index = parts->constant_count;
    constants[parts->constant_count++] = (struct load_constant){.part = part};
    return RF_OK;
}

static enum rf_code fail_nowhere(const struct tensor *tensor, struct rf_error *err)
{
    return rf_fail(err, RF_E_FAILED, "tensor %.120s lies in no file that could be loaded",
                   tensor->name);
}

/* One part of a tensor: the place that it has in its rank's stream is begun by the caller. */
static enum rf_code plan_part(const struct manifest *manifest, const struct tensor *tensor,
                              const struct part *part, struct load_place *place,
                              struct load_parts *parts, uint64_t *make_room, struct rf_error *err)
{
    place->stream_offset = tensor->stream_offset + part->offset;
    place->bytes = part->bytes;
    if (part->source == MANIFEST_NONE) {
        enum rf_code code = find_constant(parts, part, &place->index, err);

        place->kind = LOAD_CONSTANT;
        return code == RF_OK ? add_place(parts, place, err) : code;
    }

    const struct manifest_source *source = &manifest->sources[part->source];
    struct stream_range range = part_range(manifest, part);
    if (source->file == MANIFEST_NONE)
        return fail_nowhere(tensor, err);
    if (range.count == 1 && !part_converts(manifest, tensor, part)) {
        place->kind = LOAD_VIEW;
        place->index = source->file;
        place->at = source->file_offset + range.offset;
        return add_place(parts, place, err);
    }
    const struct load_make make = {
        .file = source->file,
        .source_at = source->file_offset,
        .range = range,
        .from = source->dtype,
        .to = tensor->dtype,
        .bytes = part->bytes,
        .row_bytes = part->bytes / range.count,
        .place = parts->place_count,
    };
    place->kind = LOAD_MADE;
    enum rf_code code = add_make(parts, &make, make_room, err);
    return code == RF_OK ? add_place(parts, place, err) : code;
}

static enum rf_code plan_tensor(const struct manifest *manifest, uint32_t rank,
                                const struct tensor *tensor, struct load_parts *parts,
                                uint64_t *make_room, struct rf_error *err)
{
    struct load_place place = {.rank = rank};
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < tensor->part_count && code == RF_OK; i++)
        code = plan_part(manifest, tensor, &tensor->parts[i], &place, parts, make_room, err);
    if (tensor->part_count > 0)
        return code;
    if (tensor->file == MANIFEST_NONE)
        return fail_nowhere(tensor, err);
    place.kind = LOAD_VIEW;
    place.stream_offset = tensor->stream_offset;
    place.bytes = tensor->bytes;
    place.index = tensor->file;
    place.at = tensor->file_offset;
    return add_place(parts, &place, err);
}

/* ---- what is made ---- */

static int compare_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

/* In the order of the files, so that each is read from front to back; what is made of the same
 * bytes in the same way is equal. */
static int compare_makes(const void *one, const void *other)
{
    const struct load_make *a = one;
    const struct load_make *b = other;
    const uint64_t keys[][2] = {
        {a->file, b->file},
        {a->source_at, b->source_at},
        {a->range.stride, b->range.stride},
        {a->range.count, b->range.count},
        {a->to, b->to},
        {a->range.offset, b->range.offset},
        {a->range.bytes, b->range.bytes},
    };

    for (unsigned i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        int order = compare_u64(keys[i][0], keys[i][1]);
        if (order != 0)
            return order;
    }
    return 0;
}

static enum rf_code fail_large(struct rf_error *err)
{
    return rf_fail(err, RF_E_NOMEM,
                   "the tensors to be made take more than 2^64 bytes: hold fewer "
                   "ranks in one process (--ranks)");
}

/* The next `bytes` of the made memory. */
static bool take_memory(uint64_t *end, uint64_t bytes, uint64_t *ret_at)
{
    uint64_t at = 0;

    if (__builtin_add_overflow(*end, LOAD_MADE_ALIGN_BYTES - 1, &at))
        return false;
    at -= at % LOAD_MADE_ALIGN_BYTES;
    *ret_at = at;
    return !__builtin_add_overflow(at, bytes, end);
}

/* Gives memory to each make and constant and tells the places; equal makes become one. */
static enum rf_code settle_makes(struct load_parts *parts, struct rf_error *err)
{
    uint64_t count = 0;

    if (parts->make_count > 0)
        qsort(parts->makes, parts->make_count, sizeof *parts->makes, compare_makes);
    for (uint64_t i = 0; i < parts->make_count; i++) {
        struct load_make make = parts->makes[i];

        if (count == 0 || compare_makes(&parts->makes[count - 1], &make) != 0) {
            if (!take_memory(&parts->made_bytes, make.bytes, &make.at))
                return fail_large(err);
            parts->makes[count++] = make;
        }
        parts->places[make.place].index = (uint32_t)(count - 1); /* < MANIFEST_MAX_PARTS */
    }
    parts->make_count = count;
    for (uint32_t i = 0; i < parts->constant_count; i++) {
        struct load_constant *constant = &parts->constants[i];

        if (!take_memory(&parts->made_bytes, constant->part->bytes, &constant->at))
            return fail_large(err);
    }
    return RF_OK;
}

/* ---- what is viewed ---- */

static int compare_views(const void *one, const void *other)
{
    const struct load_span *a = one;
    const struct load_span *b = other;
    int order = compare_u64(a->file, b->file);

    return order != 0 ? order : compare_u64(a->file_offset, b->file_offset);
}

/* The views of all ranks laid over each other: each byte of a file is in one span, if in any. A
 * span begins with a page of the file and of memory, at the cost of up to a page that nobody
 * shows. */
static void merge_views(struct load_parts *parts, const struct load_span *views, uint64_t count)
{
    uint64_t seen = 0; /* end of what was viewed so far in this file */
    uint64_t at = 0;

    for (uint64_t i = 0; i < count; i++) {
        const struct load_span *view = &views[i];
        uint64_t from = view->file_offset - view->file_offset % LOAD_PAGE_BYTES;
        uint64_t end = view->file_offset + view->bytes; /* inside the file */
        struct load_span *last =
            parts->span_count > 0 ? &parts->spans[parts->span_count - 1] : NULL;

        if (last == NULL || last->file != view->file)
            seen = 0;
        if (end > seen)
            parts->viewed_bytes += end - (view->file_offset > seen ? view->file_offset : seen);
        seen = end > seen ? end : seen;
        if (last != NULL && last->file == view->file && from <= last->file_offset + last->bytes) {
            last->bytes = seen - last->file_offset;
            continue;
        }
        parts->spans[parts->span_count++] =
            (struct load_span){.file = view->file, .file_offset = from, .bytes = end - from};
    }
    for (uint64_t i = 0; i < parts->span_count; i++) {
        at += (LOAD_PAGE_BYTES - at % LOAD_PAGE_BYTES) % LOAD_PAGE_BYTES;
        parts->spans[i].at = at;
        at += parts->spans[i].bytes; /* no more than the files have, and a page for each part */
    }
    parts->span_bytes = at;
}

static enum rf_code settle_views(struct load_parts *parts, struct rf_error *err)
{
    rf_autofree struct load_span *views = calloc(parts->place_count + 1, sizeof *views);
    uint64_t count = 0;

    parts->spans = calloc(parts->place_count + 1, sizeof *parts->spans);
    if (views == NULL || parts->spans == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to plan %" PRIu64 " parts of tensors",
                       parts->place_count);
    for (uint64_t i = 0; i < parts->place_count; i++) {
        const struct load_place *place = &parts->places[i];

        if (place->kind == LOAD_VIEW)
            views[count++] = (struct load_span){
                .file = place->index, .file_offset = place->at, .bytes = place->bytes};
    }
    qsort(views, count, sizeof *views, compare_views);
    merge_views(parts, views, count);
    return RF_OK;
}

const struct load_span *load_parts_span(const struct load_parts *parts, uint32_t file, uint64_t at)
{
    const struct load_span key = {.file = file, .file_offset = at};
    uint64_t low = 0;
    uint64_t high = parts->span_count;

    /* The last one that does not begin behind it. */
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;

        if (compare_views(&parts->spans[middle], &key) <= 0)
            low = middle;
        else
            high = middle;
    }
    return &parts->spans[low];
}

/* ---- all ---- */

enum rf_code load_parts_plan(const struct manifest *manifest, struct load_parts *ret_parts,
                             struct rf_error *err)
{
    struct load_parts parts = {.place_count = 0};
    uint64_t make_room = 0;
    enum rf_code code = RF_OK;

    for (uint32_t r = 0; r < manifest->rank_count && code == RF_OK; r++) {
        const struct manifest_rank *rank = &manifest->ranks[r];

        for (uint32_t i = 0; i < rank->placed_count && code == RF_OK; i++)
            code =
                plan_tensor(manifest, r, &rank->tensors[rank->placed[i]], &parts, &make_room, err);
    }
    if (code == RF_OK)
        code = settle_makes(&parts, err);
    if (code == RF_OK)
        code = settle_views(&parts, err);
    if (code != RF_OK) {
        load_parts_free(&parts);
        return code;
    }
    *ret_parts = parts;
    return RF_OK;
}

void load_parts_free(struct load_parts *parts)
{
    free(parts->places);
    free(parts->spans);
    free(parts->makes);
    free(parts->constants);
    *parts = (struct load_parts){.place_count = 0};
}
