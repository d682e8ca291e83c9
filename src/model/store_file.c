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

static bool has_place(const struct tensor *tensor)
{
    return tensor->file != MANIFEST_NONE && tensor->bytes > 0;
}

static const struct tensor *tensor_of(const struct manifest *manifest,
                                      const struct file_place *place)
{
    return &manifest->ranks[place->rank].tensors[place->tensor];
}

/* Tensors of one file may be the same bytes twice (replicated ranks, aliases), but not overlap. */
static enum rf_code places_check(const struct manifest *manifest, const struct file_index *index,
                                 uint32_t file, struct rf_error *err)
{
    for (uint64_t i = index->begin[file] + 1; i < index->begin[file + 1]; i++) {
        const struct tensor *before = tensor_of(manifest, &index->places[i - 1]);
        const struct tensor *tensor = tensor_of(manifest, &index->places[i]);
        bool same = before->file_offset == tensor->file_offset && before->bytes == tensor->bytes;

        if (!same && before->file_offset + before->bytes > tensor->file_offset)
            return rf_fail(err, RF_E_INVAL,
                           "file %s: tensor %.120s at %" PRIu64 "+%" PRIu64
                           " overlaps %.120s at %" PRIu64,
                           manifest->files[file].name, before->name, before->file_offset,
                           before->bytes, tensor->name, tensor->file_offset);
    }
    return RF_OK;
}

enum rf_code file_index_create(const struct manifest *manifest, struct file_index *ret_index,
                               struct rf_error *err)
{
    struct file_index index = {.begin = calloc(manifest->file_count + (size_t)2, sizeof(uint64_t))};
    uint64_t count = 0;

    if (index.begin == NULL)
        goto fail;
    /* Counting sort by file: begin[i + 1] counts file i, then becomes where file i is filled from. */
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        for (uint32_t j = 0; j < manifest->ranks[i].tensor_count; j++) {
            if (has_place(&manifest->ranks[i].tensors[j])) {
                index.begin[manifest->ranks[i].tensors[j].file + 2]++;
                count++;
            }
        }
    }
    for (uint32_t i = 2; i < manifest->file_count + 2; i++)
        index.begin[i] += index.begin[i - 1];
    index.places = calloc(count + 1, sizeof *index.places);
    if (index.places == NULL)
        goto fail;
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        for (uint32_t j = 0; j < manifest->ranks[i].tensor_count; j++) {
            const struct tensor *tensor = &manifest->ranks[i].tensors[j];
            if (has_place(tensor))
                index.places[index.begin[tensor->file + 1]++] =
                    (struct file_place){tensor->file_offset, i, j};
        }
    }
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

/* The last place of the file that begins at or before the offset; the file's first one if none does. */
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

/* The data of a weight file: [offset, end), which begins behind the header. */
static enum rf_code read_tensors(const struct store *store, uint32_t file, uint64_t offset,
                                 uint8_t *to, uint64_t end, struct rf_error *err)
{
    const struct manifest *manifest = store->manifest;
    const struct file_index *index = store_index(store);

    for (uint64_t i = place_find(index, file, offset); offset < end; i++) {
        const struct tensor *tensor = NULL;

        if (i < index->begin[file + 1])
            tensor = tensor_of(manifest, &index->places[i]);
        if (tensor == NULL || tensor->file_offset > offset)
            return rf_fail(
                err, RF_E_FORMAT,
                "file %s: byte %" PRIu64
                " belongs to no tensor of this manifest; fetch the rank as a file instead",
                manifest->files[file].name, offset);
        uint64_t inside = offset - tensor->file_offset;
        if (inside >= tensor->bytes)
            continue; /* the place before a gap, or the same bytes once more */
        uint64_t piece = tensor->bytes - inside;
        if (piece > end - offset)
            piece = end - offset;
        enum rf_code code = store_read_stream(store, index->places[i].rank,
                                              tensor->stream_offset + inside, to, piece, err);
        if (code != RF_OK)
            return rf_error_wrap(err, code, "file %s", manifest->files[file].name);
        to += piece;
        offset += piece;
    }
    return RF_OK;
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
