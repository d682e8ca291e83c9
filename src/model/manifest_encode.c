/* The binary form of a manifest: byte tables in docs/wire-protocol.md. What manifest_decode()
 * accepts, manifest_encode() turns into the same bytes again. */
#include "model/manifest_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

void manifest_set_id(struct manifest *manifest, const uint8_t *data, size_t bytes)
{
    hash_once(manifest->algorithm, data, bytes - MANIFEST_CHECK_BYTES, manifest->id);
}

static bool is_sharded(const struct tensor *tensor)
{
    return tensor->global_shape != tensor->shape;
}

size_t tensor_facts_bytes(const struct tensor *tensor)
{
    size_t dims = is_sharded(tensor) ? 3 * (size_t)tensor->ndim : tensor->ndim;

    return TENSOR_FIXED_BYTES + tensor->name_bytes + 8 * dims +
           (tensor->alias_of != MANIFEST_NONE ? 4 : 0) +
           (tensor->part_count > 0 ? 4 + (size_t)tensor->part_count * PART_BYTES : 0);
}

size_t source_facts_bytes(const struct manifest_source *source)
{
    return SOURCE_FIXED_BYTES + source->name_bytes + 8 * (size_t)source->ndim;
}

static void dims_set(struct wire_out *out, const uint64_t *dims, uint32_t ndim)
{
    for (uint32_t i = 0; i < ndim; i++)
        wire_set_u64(out, dims != NULL ? dims[i] : 0);
}

void source_facts_set(struct wire_out *out, const struct manifest_source *source)
{
    wire_set_u16(out, (uint16_t)source->name_bytes);
    wire_set_u8(out, (uint8_t)source->dtype);
    wire_set_u8(out, (uint8_t)source->ndim);
    wire_set_bytes(out, source->name, source->name_bytes);
    dims_set(out, source->shape, source->ndim);
}

static void parts_set(struct wire_out *out, const struct tensor *tensor)
{
    wire_set_u32(out, tensor->part_count);
    for (uint32_t i = 0; i < tensor->part_count; i++) {
        const struct part *part = &tensor->parts[i];

        wire_set_u32(out, part->source);
        wire_set_u8(out, (uint8_t)part->axis);
        wire_set_u64(out, part->start);
        wire_set_u64(out, part->count);
    }
}

void tensor_facts_set(struct wire_out *out, const struct tensor *tensor)
{
    bool sharded = is_sharded(tensor);
    bool alias = tensor->alias_of != MANIFEST_NONE;

    wire_set_u16(out, (uint16_t)tensor->name_bytes);
    wire_set_u8(out, (uint8_t)tensor->dtype);
    wire_set_u8(out, (uint8_t)tensor->ndim);
    wire_set_u8(out, (uint8_t)((sharded ? TENSOR_SHARDED : 0) | (alias ? TENSOR_ALIAS : 0) |
                               (tensor->part_count > 0 ? TENSOR_PARTS : 0)));
    wire_set_bytes(out, tensor->name, tensor->name_bytes);
    dims_set(out, tensor->shape, tensor->ndim);
    if (sharded) {
        dims_set(out, tensor->global_shape, tensor->ndim);
        dims_set(out, tensor->slice_start, tensor->ndim);
    }
    if (alias)
        wire_set_u32(out, tensor->alias_of);
    if (tensor->part_count > 0)
        parts_set(out, tensor);
}

/* All before the ranks. */
static uint64_t head_bytes(const struct manifest *manifest)
{
    uint64_t bytes = IDENTITY_FIXED_BYTES + strlen(manifest->model) +
                     strlen(manifest->architecture) + strlen(manifest->quantisation) +
                     strlen(manifest->layout);

    for (uint32_t i = 0; i < manifest->file_count; i++)
        bytes +=
            FILE_FIXED_BYTES + strlen(manifest->files[i].name) + hash_bytes(manifest->algorithm);
    for (uint32_t i = 0; i < manifest->source_count; i++)
        bytes += source_facts_bytes(&manifest->sources[i]) + SOURCE_PLACE_BYTES +
                 (manifest->sources[i].file != MANIFEST_NONE ? 8 : 0);
    return bytes;
}

static uint64_t rank_bytes(const struct manifest_rank *rank)
{
    uint64_t bytes = RANK_FIXED_BYTES;

    for (uint32_t i = 0; i < rank->tensor_count; i++)
        bytes += tensor_facts_bytes(&rank->tensors[i]) + TENSOR_PLACE_BYTES +
                 (rank->tensors[i].file != MANIFEST_NONE ? 8 : 0);
    return bytes;
}

/* *ret_most: of the head or a rank. */
static enum rf_code bytes_of(const struct manifest *manifest, uint64_t *ret_bytes,
                             uint64_t *ret_most, struct rf_error *err)
{
    uint64_t most = head_bytes(manifest);
    uint64_t bytes = most + MANIFEST_CHECK_BYTES;

    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        uint64_t more = rank_bytes(&manifest->ranks[i]);

        bytes += more;
        if (more > most)
            most = more;
    }
    if (bytes > MANIFEST_MAX_BYTES)
        return rf_fail(err, RF_E_INVAL,
                       "manifest: %" PRIu64 " bytes in binary form, allowed are %d", bytes,
                       MANIFEST_MAX_BYTES);
    *ret_bytes = bytes;
    *ret_most = most;
    return RF_OK;
}

static void text_set(struct wire_out *out, const char *text)
{
    size_t bytes = strlen(text); /* checked: at most RF_MAX_NAME_BYTES */

    wire_set_u16(out, (uint16_t)bytes);
    wire_set_bytes(out, text, bytes);
}

static void identity_set(struct wire_out *out, const struct manifest *manifest)
{
    wire_set_bytes(out, MANIFEST_MAGIC, MANIFEST_MAGIC_BYTES);
    wire_set_u16(out, MANIFEST_VERSION);
    wire_set_u16(out, 0);
    wire_set_u8(out, (uint8_t)manifest->stage);
    wire_set_u8(out, (uint8_t)manifest->algorithm);
    wire_set_u16(out, 0);
    wire_set_u32(out, manifest->chunk_bytes);
    wire_set_u64(out, manifest->weight_version);
    text_set(out, manifest->model);
    text_set(out, manifest->architecture);
    text_set(out, manifest->quantisation);
    text_set(out, manifest->layout);
    wire_set_u32(out, manifest->file_count);
    wire_set_u32(out, manifest->source_count);
    wire_set_u32(out, manifest->rank_count);
}

static void file_set(struct wire_out *out, const struct manifest *manifest,
                     const struct manifest_file *file)
{
    wire_set_u8(out, (uint8_t)file->kind);
    text_set(out, file->name);
    wire_set_u64(out, file->bytes);
    wire_set_u64(out, file->header_bytes);
    wire_set_bytes(out, file->digest, hash_bytes(manifest->algorithm));
}

static void source_set(struct wire_out *out, const struct manifest_source *source)
{
    source_facts_set(out, source);
    wire_set_u32(out, source->file);
    if (source->file != MANIFEST_NONE)
        wire_set_u64(out, source->file_offset);
}

static void rank_set(struct wire_out *out, const struct manifest_rank *rank)
{
    uint32_t words[RANK_ID_WORDS];

    rank_id_words(&rank->id, words);
    for (unsigned i = 0; i < RANK_ID_WORDS; i++)
        wire_set_u32(out, words[i]);
    wire_set_u32(out, rank->tensor_count);
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];

        tensor_facts_set(out, tensor);
        wire_set_u32(out, tensor->order);
        wire_set_u32(out, tensor->file);
        if (tensor->file != MANIFEST_NONE)
            wire_set_u64(out, tensor->file_offset);
    }
}

static void head_set(struct wire_out *out, const struct manifest *manifest)
{
    identity_set(out, manifest);
    for (uint32_t i = 0; i < manifest->file_count; i++)
        file_set(out, manifest, &manifest->files[i]);
    for (uint32_t i = 0; i < manifest->source_count; i++)
        source_set(out, &manifest->sources[i]);
}

enum rf_code manifest_encode(const struct manifest *manifest, struct buf *out, struct rf_error *err)
{
    uint64_t bytes = 0;
    uint64_t most = 0;
    uint8_t check[HASH_MAX_BYTES];
    enum rf_code code = bytes_of(manifest, &bytes, &most, err);

    if (code != RF_OK)
        return code;
    uint8_t *begin = buf_reserve(out, bytes);
    if (begin == NULL)
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory for its %" PRIu64 " bytes", bytes);

    struct wire_out at = {.at = begin};
    head_set(&at, manifest);
    for (uint32_t i = 0; i < manifest->rank_count; i++)
        rank_set(&at, &manifest->ranks[i]);
    hash_once(HASH_XXH3_128, begin, (size_t)(at.at - begin), check);
    wire_set_bytes(&at, check, MANIFEST_CHECK_BYTES);
    assert(at.at == begin + bytes);
    out->bytes += bytes;
    return RF_OK;
}

enum rf_code manifest_make_id(struct manifest *manifest, struct rf_error *err)
{
    uint64_t bytes = 0;
    uint64_t most = 0;
    enum rf_code code = bytes_of(manifest, &bytes, &most, err);

    if (code != RF_OK)
        return code;
    uint8_t *piece = malloc(most);
    struct hash_state *state = hash_state_create(manifest->algorithm);
    if (piece != NULL && state != NULL) {
        struct wire_out head = {.at = piece};

        head_set(&head, manifest);
        hash_update(state, piece, (size_t)(head.at - piece));
        for (uint32_t i = 0; i < manifest->rank_count; i++) {
            struct wire_out rank = {.at = piece};

            rank_set(&rank, &manifest->ranks[i]);
            hash_update(state, piece, (size_t)(rank.at - piece));
        }
        hash_final(state, manifest->id);
    } else {
        code = rf_fail(err, RF_E_NOMEM, "manifest: no memory for its %" PRIu64 " bytes", bytes);
    }
    hash_state_destroy(state);
    free(piece);
    return code;
}
