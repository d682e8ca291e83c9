/* Files as they would lie on disk, out of headers and streams. */
#include "model/store_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- index ---- */

static int compare_places(const void *a, const void *b)
{
    const struct file_place *at_a = a;
    const struct file_place *at_b = b;

    if (at_a->file_offset != at_b->file_offset)
        return at_a->file_offset < at_b->file_offset ? -1 : 1;
    if (at_a->rank != at_b->rank)
        return at_a->rank < at_b->rank ? -1 : 1;
    return at_a->tensor < at_b->tensor ? -1 : at_a->tensor > at_b->tensor;
}

/* What is at a place, tensor or source. */
struct placed {
    const char *name;
    uint64_t file_offset;
    uint64_t bytes;
};

static struct placed placed_at(const struct manifest *manifest, const struct file_place *place)
{
    if (place->rank == MANIFEST_NONE) {
        const struct manifest_source *source = &manifest->sources[place->tensor];
        return (struct placed){source->name, source->file_offset, source->bytes};
    }
    const struct tensor *tensor = &manifest->ranks[place->rank].tensors[place->tensor];
    return (struct placed){tensor->name, tensor->file_offset, tensor->bytes};
}

/* Tensors of one file may be the same bytes twice (replicated ranks, aliases), but not overlap. */
static enum rf_code places_check(const struct manifest *manifest, const struct file_index *index,
                                 uint32_t file, struct rf_error *err)
{
    for (uint64_t i = index->begin[file] + 1; i < index->begin[file + 1]; i++) {
        struct placed before = placed_at(manifest, &index->places[i - 1]);
        struct placed placed = placed_at(manifest, &index->places[i]);
        bool same = before.file_offset == placed.file_offset && before.bytes == placed.bytes;

        if (!same && before.file_offset + before.bytes > placed.file_offset)
            return rf_fail(err, RF_E_INVAL,
                           "file %s: tensor %.120s at %" PRIu64 "+%" PRIu64
                           " overlaps %.120s at %" PRIu64,
                           manifest->files[file].name, before.name, before.file_offset,
                           before.bytes, placed.name, placed.file_offset);
    }
    return RF_OK;
}

typedef void (*place_fn)(struct file_index *index, uint32_t file, const struct file_place *place);

static void count_place(struct file_index *index, uint32_t file, const struct file_place *place)
{
    (void)place;
    index->begin[file + 2]++;
}

static void put_place(struct file_index *index, uint32_t file, const struct file_place *place)
{
    index->places[index->begin[file + 1]++] = *place;
}

static void each_place(const struct manifest *manifest, struct file_index *index, place_fn fn)
{
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        for (uint32_t j = 0; j < manifest->ranks[i].tensor_count; j++) {
            const struct tensor *tensor = &manifest->ranks[i].tensors[j];
            const struct file_place place = {tensor->file_offset, i, j};

            if (tensor->file != MANIFEST_NONE && tensor->bytes > 0)
                fn(index, tensor->file, &place);
        }
    }
    for (uint32_t i = 0; i < manifest->source_count; i++) {
        const struct manifest_source *source = &manifest->sources[i];
        const struct file_place place = {source->file_offset, MANIFEST_NONE, i};

        if (source->file != MANIFEST_NONE && source->bytes > 0)
            fn(index, source->file, &place);
    }
}

enum rf_code file_index_create(const struct manifest *manifest, struct file_index *ret_index,
                               struct rf_error *err)
{
    struct file_index index = {.begin = calloc(manifest->file_count + (size_t)2, sizeof(uint64_t))};
    uint64_t count = 0;

    if (index.begin == NULL)
        goto fail;
    /* Counting sort by file: begin[i + 1] counts file i, then becomes where file i is filled
     * from. */
    each_place(manifest, &index, count_place);
    for (uint32_t i = 2; i < manifest->file_count + 2; i++)
        index.begin[i] += index.begin[i - 1];
    count = index.begin[manifest->file_count + (size_t)1];
    index.places = calloc(count + 1, sizeof *index.places);
    if (index.places == NULL)
        goto fail;
    each_place(manifest, &index, put_place);
    for (uint32_t i = 0; i < manifest->file_count; i++) {
        qsort(index.places + index.begin[i], index.begin[i + 1] - index.begin[i],
              sizeof *index.places, compare_places);
        enum rf_code code = places_check(manifest, &index, i, err);
        if (code != RF_OK) {
            file_index_free(&index);
            return code;
        }
    }
    *ret_index = index;
    return RF_OK;

fail:
    file_index_free(&index);
    return rf_fail(err, RF_E_NOMEM, "no memory to find %" PRIu64 " tensors in %" PRIu32 " files",
                   count, manifest->file_count);
}

void file_index_free(struct file_index *index)
{
    free(index->begin);
    free(index->places);
    *index = (struct file_index){0};
}

/* The last place of the file that begins at or before the offset; the file's first one if none
 * does. */
static uint64_t place_find(const struct file_index *index, uint32_t file, uint64_t offset)
{
    uint64_t low = index->begin[file];
    uint64_t high = index->begin[file + 1];

    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;

        if (index->places[middle].file_offset <= offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* ---- reading ---- */

enum rf_code store_read_stream(const struct store *store, uint32_t rank, uint64_t offset, void *dst,
                               uint64_t bytes, struct rf_error *err)
{
    uint8_t *to = dst;
    uint64_t end;

    if (rank >= store->manifest->rank_count)
        return rf_fail(err, RF_E_INVAL, "rank %" PRIu32 " of %" PRIu32, rank,
                       store->manifest->rank_count);
    const struct layout *layout = &store->ranks[rank].layout;
    if (__builtin_add_overflow(offset, bytes, &end) || end > layout->stream_bytes)
        return rf_fail(err, RF_E_INVAL,
                       "rank %" PRIu32 ": bytes %" PRIu64 "+%" PRIu64
                       " are not inside the stream of %" PRIu64,
                       rank, offset, bytes, layout->stream_bytes);
    if (bytes == 0)
        return RF_OK;
    for (uint32_t i = layout_find(layout, offset); offset < end; i++) {
        const struct segment *segment = &layout->segments[i];
        uint64_t inside = offset - segment->stream_offset;
        uint64_t piece = segment->bytes - inside;

        if (piece > end - offset)
            piece = end - offset;
        enum rf_code code =
            region_read(segment->region, segment->region_offset + inside, to, piece, err);
        if (code != RF_OK)
            return code;
        to += piece;
        offset += piece;
    }
    return RF_OK;
}

/* Bytes of what is at a place; `to` NULL only asks whether they could be read. */
static enum rf_code read_place(const struct store *store, const struct file_place *place,
                               uint64_t inside, uint8_t *to, uint64_t bytes, struct rf_error *err)
{
    if (place->rank == MANIFEST_NONE)
        return to != NULL ? source_read(store, place->tensor, inside, to, bytes, err)
                          : source_check_held(store, place->tensor, inside, bytes, err);
    if (to == NULL)
        return RF_OK;
    const struct tensor *tensor = &store->manifest->ranks[place->rank].tensors[place->tensor];
    return store_read_stream(store, place->rank, tensor->stream_offset + inside, to, bytes, err);
}

/* The data of a weight file: [offset, end), which begins behind the header; `to` as above. */
static enum rf_code read_tensors(const struct store *store, uint32_t file, uint64_t offset,
                                 uint8_t *to, uint64_t end, struct rf_error *err)
{
    const struct manifest *manifest = store->manifest;
    const struct file_index *index = store_index(store);

    for (uint64_t i = place_find(index, file, offset); offset < end; i++) {
        struct placed placed = {.bytes = 0};

        if (i < index->begin[file + 1])
            placed = placed_at(manifest, &index->places[i]);
        if (placed.bytes == 0 || placed.file_offset > offset)
            return rf_fail(
                err, RF_E_FORMAT,
                "file %s: byte %" PRIu64
                " belongs to no tensor of this manifest; fetch the rank as a file instead",
                manifest->files[file].name, offset);
        uint64_t inside = offset - placed.file_offset;
        if (inside >= placed.bytes)
            continue; /* the place before a gap, or the same bytes once more */
        uint64_t piece = placed.bytes - inside;
        if (piece > end - offset)
            piece = end - offset;
        enum rf_code code = read_place(store, &index->places[i], inside, to, piece, err);
        if (code != RF_OK)
            return rf_error_wrap(err, code, "file %s", manifest->files[file].name);
        to = to != NULL ? to + piece : NULL;
        offset += piece;
    }
    return RF_OK;
}

enum rf_code store_check_file(const struct store *store, uint32_t file, uint64_t offset,
                              uint64_t bytes, struct rf_error *err)
{
    const struct manifest_file *entry = &store->manifest->files[file];
    uint64_t from = offset > entry->header_bytes ? offset : entry->header_bytes;
    uint64_t end = 0;

    if (entry->kind != FILE_WEIGHTS || __builtin_add_overflow(offset, bytes, &end) ||
        end > entry->bytes || from >= end)
        return RF_OK; /* nothing of it is a tensor's; store_read_file() says what else is wrong */
    return read_tensors(store, file, from, NULL, end, err);
}

enum rf_code store_read_file(const struct store *store, uint32_t file, uint64_t offset, void *dst,
                             uint64_t bytes, struct rf_error *err)
{
    const struct manifest *manifest = store->manifest;
    uint8_t *to = dst;
    uint64_t end;

    if (file >= manifest->file_count)
        return rf_fail(err, RF_E_INVAL, "file %" PRIu32 " of %" PRIu32, file, manifest->file_count);
    const struct manifest_file *entry = &manifest->files[file];
    const struct store_file *blob = &store->files[file];
    uint64_t blob_bytes = entry->kind == FILE_SIDE ? entry->bytes : entry->header_bytes;
    if (__builtin_add_overflow(offset, bytes, &end) || end > entry->bytes)
        return rf_fail(err, RF_E_INVAL,
                       "file %s: bytes %" PRIu64 "+%" PRIu64 " are not inside its %" PRIu64,
                       entry->name, offset, bytes, entry->bytes);
    if (blob->bytes != blob_bytes || (blob->data == NULL && blob_bytes > 0))
        return rf_fail(err, RF_E_INVAL,
                       "file %s: %" PRIu64 " bytes of it are here, %" PRIu64
                       " are needed; the store is not "
                       "filled yet",
                       entry->name, blob->bytes, blob_bytes);
    if (offset < blob_bytes && bytes > 0) {
        uint64_t piece = (end < blob_bytes ? end : blob_bytes) - offset;

        memcpy(to, blob->data + offset, piece);
        to += piece;
        offset += piece;
    }
    return offset < end ? read_tensors(store, file, offset, to, end, err) : RF_OK;
}
