#include "model/manifest_internal.h"

#include <assert.h>
#include <inttypes.h>

static const char *stage_name(enum manifest_stage stage)
{
    static const char *const names[STAGE_COUNT] = {"checkpoint", "fused", "processed"};

    return names[stage]; /* checked by identity_check() */
}

static void put_text(struct buf *out, const char *key, const char *text)
{
    buf_printf(out, "\"%s\":", key);
    buf_json_string(out, text, strlen(text));
    buf_append(out, ",", 1);
}

static void put_dims(struct buf *out, const char *key, const uint64_t *dims, uint32_t ndim)
{
    buf_printf(out, "\"%s\":[", key);
    for (uint32_t i = 0; i < ndim; i++)
        buf_printf(out, "%s%" PRIu64, i > 0 ? "," : "", dims != NULL ? dims[i] : 0);
    buf_append(out, "],", 2);
}

/* As [source, axis, start, count]; a constant as [null, element bytes, element, bytes], zeros as
 * their number of bytes. */
static void put_parts(struct buf *out, const struct tensor *tensor)
{
    buf_printf(out, "\"parts\":[");
    for (uint32_t i = 0; i < tensor->part_count; i++) {
        const struct part *part = &tensor->parts[i];

        if (part->source == MANIFEST_NONE && part->axis == 0)
            buf_printf(out, "%s%" PRIu64, i > 0 ? "," : "", part->count);
        else if (part->source == MANIFEST_NONE)
            buf_printf(out, "%s[null,%" PRIu32 ",%" PRIu64 ",%" PRIu64 "]", i > 0 ? "," : "",
                       part->axis, part->start, part->count);
        else
            buf_printf(out, "%s[%" PRIu32 ",%" PRIu32 ",%" PRIu64 ",%" PRIu64 "]", i > 0 ? "," : "",
                       part->source, part->axis, part->start, part->count);
    }
    buf_append(out, "],", 2);
}

static void put_sources(struct buf *out, const struct manifest *manifest)
{
    buf_printf(out, "\"sources\":[");
    for (uint32_t i = 0; i < manifest->source_count && !out->failed; i++) {
        const struct manifest_source *source = &manifest->sources[i];

        buf_append(out, i > 0 ? ",{\"name\":" : "{\"name\":", i > 0 ? 9 : 8);
        buf_json_string(out, source->name, source->name_bytes);
        buf_printf(out, ",\"dtype\":\"%s\",", rf_dtype_name(source->dtype));
        put_dims(out, "shape", source->shape, source->ndim);
        if (source->file != MANIFEST_NONE)
            buf_printf(out, "\"file\":%" PRIu32 ",\"file_offset\":%" PRIu64 ",", source->file,
                       source->file_offset);
        buf_printf(out, "\"bytes\":%" PRIu64 "}", source->bytes);
    }
    buf_append(out, "],", 2);
}

static void put_tensor(struct buf *out, const struct manifest_rank *rank,
                       const struct tensor *tensor)
{
    buf_append(out, "{\"name\":", 8);
    buf_json_string(out, tensor->name, tensor->name_bytes);
    buf_printf(out, ",\"dtype\":\"%s\",", rf_dtype_name(tensor->dtype));
    put_dims(out, "shape", tensor->shape, tensor->ndim);
    if (tensor->global_shape != tensor->shape) {
        put_dims(out, "global_shape", tensor->global_shape, tensor->ndim);
        put_dims(out, "slice_start", tensor->slice_start, tensor->ndim);
    }
    if (tensor->alias_of != MANIFEST_NONE)
        put_text(out, "alias_of", rank->tensors[tensor->alias_of].name);
    if (tensor->file != MANIFEST_NONE)
        buf_printf(out, "\"file\":%" PRIu32 ",\"file_offset\":%" PRIu64 ",", tensor->file,
                   tensor->file_offset);
    if (tensor->part_count > 0)
        put_parts(out, tensor);
    buf_printf(out, "\"bytes\":%" PRIu64 ",\"stream_offset\":%" PRIu64 ",\"order\":%" PRIu32 "}",
               tensor->bytes, tensor->stream_offset, tensor->order);
}

static void put_rank(struct buf *out, const struct manifest *manifest, uint32_t index)
{
    const struct manifest_rank *rank = &manifest->ranks[index];
    const struct rank_id *id = &rank->id;
    char text[64];

    buf_printf(out,
               "{\"rank\":%" PRIu32 ",\"name\":\"%s\",\"tp\":[%" PRIu32 ",%" PRIu32
               "],\"pp\":[%" PRIu32 ",%" PRIu32 "],\"ep\":[%" PRIu32 ",%" PRIu32
               "],\"dp\":[%" PRIu32 ",%" PRIu32 "],\"role\":\"%s\",",
               index, rank_id_text(id, text), id->tp, id->tp_size, id->pp, id->pp_size, id->ep,
               id->ep_size, id->dp, id->dp_size, id->role == ROLE_DRAFT ? "draft" : "target");
    buf_printf(out, "\"stream_bytes\":%" PRIu64 ",\"chunks\":%" PRIu64 ",\"tensors\":[",
               rank->stream_bytes, manifest_chunk_count(manifest, index));
    for (uint32_t i = 0; i < rank->tensor_count && !out->failed; i++) {
        if (i > 0)
            buf_append(out, ",", 1);
        put_tensor(out, rank, &rank->tensors[i]);
    }
    buf_append(out, "]}", 2);
}

static void put_files(struct buf *out, const struct manifest *manifest)
{
    char text[HASH_TEXT_BYTES];

    buf_append(out, "\"files\":[", 9);
    for (uint32_t i = 0; i < manifest->file_count; i++) {
        const struct manifest_file *file = &manifest->files[i];

        buf_append(out, i > 0 ? ",{" : "{", i > 0 ? 2 : 1);
        put_text(out, "name", file->name);
        buf_printf(out,
                   "\"kind\":\"%s\",\"bytes\":%" PRIu64 ",\"header_bytes\":%" PRIu64
                   ",\"digest\":\"%s\"}",
                   file->kind == FILE_WEIGHTS ? "weights" : "side", file->bytes, file->header_bytes,
                   hash_text(manifest->algorithm, file->digest, text));
    }
    buf_append(out, "],", 2);
}

void manifest_json(const struct manifest *manifest, uint32_t rank, struct buf *out)
{
    uint32_t first = rank == MANIFEST_NONE ? 0 : rank;
    uint32_t end = rank == MANIFEST_NONE ? manifest->rank_count : rank + 1;
    char text[HASH_TEXT_BYTES];

    assert(end <= manifest->rank_count);
    buf_append(out, "{", 1);
    put_text(out, "id", hash_text(manifest->algorithm, manifest->id, text));
    put_text(out, "model", manifest->model);
    put_text(out, "architecture", manifest->architecture);
    put_text(out, "quantisation", manifest->quantisation);
    put_text(out, "layout", manifest->layout);
    put_text(out, "stage", stage_name(manifest->stage));
    put_text(out, "algorithm", hash_name(manifest->algorithm));
    buf_printf(out,
               "\"weight_version\":%" PRIu64 ",\"chunk_bytes\":%" PRIu32 ",\"total_bytes\":%" PRIu64
               ",\"rank_count\":%" PRIu32 ",",
               manifest->weight_version, manifest->chunk_bytes, manifest_total_bytes(manifest),
               manifest->rank_count);
    put_files(out, manifest);
    if (manifest->source_count > 0)
        put_sources(out, manifest);
    buf_append(out, "\"ranks\":[", 9);
    for (uint32_t i = first; i < end; i++) {
        if (i > first)
            buf_append(out, ",", 1);
        put_rank(out, manifest, i);
    }
    buf_append(out, "]}\n", 3);
}
