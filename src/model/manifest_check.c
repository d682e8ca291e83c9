/* Everything that must hold in a manifest, whether a program builds it or a peer sends it. */
#include "base/cleanup.h"
#include "base/dtype.h"
#include "format/model_folder.h"
#include "model/manifest_internal.h"
#include "model/name_sort.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- parts ---- */

static enum rf_code text_check(const char *what, const char *text, enum rf_code code,
                               struct rf_error *err)
{
    size_t bytes = strnlen(text, MANIFEST_MAX_TEXT_BYTES + 1);

    if (bytes > MANIFEST_MAX_TEXT_BYTES)
        return rf_fail(err, code, "manifest: %s is longer than %d bytes", what,
                       MANIFEST_MAX_TEXT_BYTES);
    if (!manifest_text_ok(text, bytes))
        return rf_fail(err, code, "manifest: %s \"%.*s\" is not plain UTF-8 text", what,
                       MANIFEST_SHOWN_NAME, text);
    return RF_OK;
}

enum rf_code identity_check(const struct manifest *manifest, enum rf_code code,
                            struct rf_error *err)
{
    const struct {
        const char *what;
        const char *text;
    } texts[] = {
        {"model", manifest->model},
        {"architecture", manifest->architecture},
        {"quantisation", manifest->quantisation},
        {"layout", manifest->layout},
    };

    for (unsigned i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        enum rf_code bad = text_check(texts[i].what, texts[i].text, code, err);
        if (bad != RF_OK)
            return bad;
    }
    if ((unsigned)manifest->stage >= STAGE_COUNT)
        return rf_fail(err, code, "manifest: unknown stage %u", (unsigned)manifest->stage);
    if (hash_name(manifest->algorithm) == NULL)
        return rf_fail(err, code, "manifest: unknown digest algorithm %u",
                       (unsigned)manifest->algorithm);
    if (manifest->chunk_bytes < MANIFEST_MIN_CHUNK_BYTES ||
        manifest->chunk_bytes > MANIFEST_MAX_CHUNK_BYTES ||
        manifest->chunk_bytes % MANIFEST_LEAF_BYTES != 0)
        return rf_fail(err, code,
                       "manifest: chunks of %" PRIu32
                       " bytes; allowed are multiples of %d from %d to %d",
                       manifest->chunk_bytes, MANIFEST_LEAF_BYTES, MANIFEST_MIN_CHUNK_BYTES,
                       MANIFEST_MAX_CHUNK_BYTES);
    return RF_OK;
}

enum rf_code file_check(const struct manifest_file *file, enum rf_code code, struct rf_error *err)
{
    if (!folder_name_ok(file->name) || !manifest_text_ok(file->name, strlen(file->name)))
        return rf_fail(err, code, "file \"%.*s\": not a name for a file inside a model folder",
                       MANIFEST_SHOWN_NAME, file->name);
    if (file->kind == FILE_SIDE) {
        if (file->header_bytes != 0 || file->bytes > MANIFEST_MAX_SIDE_BYTES)
            return rf_fail(err, code,
                           "file %.*s: %" PRIu64 " bytes with a header of %" PRIu64
                           "; a side file has at most %d and no header",
                           MANIFEST_SHOWN_NAME, file->name, file->bytes, file->header_bytes,
                           MANIFEST_MAX_SIDE_BYTES);
        return RF_OK;
    }
    if (file->kind != FILE_WEIGHTS)
        return rf_fail(err, code, "file %.*s: unknown kind %u", MANIFEST_SHOWN_NAME, file->name,
                       (unsigned)file->kind);
    if (file->header_bytes < 8 || file->header_bytes > 8 + ST_MAX_HEADER_BYTES ||
        file->header_bytes > file->bytes || file->bytes > MANIFEST_MAX_STREAM_BYTES)
        return rf_fail(err, code,
                       "file %.*s: %" PRIu64 " bytes with a header of %" PRIu64
                       "; a header has 8 to %d bytes and lies inside the file",
                       MANIFEST_SHOWN_NAME, file->name, file->bytes, file->header_bytes,
                       8 + ST_MAX_HEADER_BYTES);
    return RF_OK;
}

/* The piece must lie inside the global shape. Brings both arrays into their one form:
 * global_shape is shape itself when they are equal, slice_start is NULL when it is all zero. */
static enum rf_code slice_check(struct tensor *tensor, enum rf_code code, struct rf_error *err)
{
    bool sharded = false;
    bool starts = false;
    uint64_t global_bytes;

    for (uint32_t i = 0; i < tensor->ndim; i++) {
        uint64_t start = tensor->slice_start != NULL ? tensor->slice_start[i] : 0;
        uint64_t end;

        if (__builtin_add_overflow(start, tensor->shape[i], &end) || end > tensor->global_shape[i])
            return rf_fail(err, code,
                           "tensor %.*s: dimension %" PRIu32 ": %" PRIu64 " elements from %" PRIu64
                           " on are not inside the global shape's %" PRIu64,
                           MANIFEST_SHOWN_NAME, tensor->name, i, tensor->shape[i], start,
                           tensor->global_shape[i]);
        sharded = sharded || tensor->shape[i] != tensor->global_shape[i];
        starts = starts || start != 0;
    }
    if (sharded &&
        !dtype_tensor_bytes(tensor->dtype, tensor->global_shape, tensor->ndim, &global_bytes))
        return rf_fail(err, code,
                       "tensor %.*s: the global shape is more than 2^64 bytes, or a part of a byte",
                       MANIFEST_SHOWN_NAME, tensor->name);
    if (!sharded)
        tensor->global_shape = tensor->shape;
    if (!starts)
        tensor->slice_start = NULL;
    return RF_OK;
}

static enum rf_code place_check(const struct manifest *manifest, const struct tensor *tensor,
                                enum rf_code code, struct rf_error *err)
{
    uint64_t end;

    if (tensor->file == MANIFEST_NONE) {
        if (tensor->file_offset != 0)
            return rf_fail(err, code, "tensor %.*s: offset %" PRIu64 " in no file",
                           MANIFEST_SHOWN_NAME, tensor->name, tensor->file_offset);
        return RF_OK;
    }
    if (tensor->file >= manifest->file_count)
        return rf_fail(err, code, "tensor %.*s: in file %" PRIu32 " of %" PRIu32,
                       MANIFEST_SHOWN_NAME, tensor->name, tensor->file, manifest->file_count);

    const struct manifest_file *file = &manifest->files[tensor->file];
    if (file->kind != FILE_WEIGHTS || tensor->file_offset < file->header_bytes ||
        __builtin_add_overflow(tensor->file_offset, tensor->bytes, &end) || end > file->bytes)
        return rf_fail(err, code,
                       "tensor %.*s: %" PRIu64 " bytes at %" PRIu64
                       " are not in the data of %.*s, bytes %" PRIu64 " to %" PRIu64,
                       MANIFEST_SHOWN_NAME, tensor->name, tensor->bytes, tensor->file_offset,
                       MANIFEST_SHOWN_NAME, file->name, file->header_bytes, file->bytes);
    return RF_OK;
}

enum rf_code tensor_check(const struct manifest *manifest, struct tensor *tensor, enum rf_code code,
                          struct rf_error *err)
{
    if (tensor->name_bytes > RF_MAX_NAME_BYTES)
        return rf_fail(err, code,
                       "tensor \"%.*s\": a name of %" PRIu32 " bytes; allowed are at most %d",
                       MANIFEST_SHOWN_NAME, tensor->name, tensor->name_bytes, RF_MAX_NAME_BYTES);
    if (!manifest_name_ok(tensor->name, tensor->name_bytes))
        return rf_fail(err, code, "tensor \"%.*s\": the name is not UTF-8 text",
                       MANIFEST_SHOWN_NAME, tensor->name);
    if ((unsigned)tensor->dtype >= RF_DTYPE_COUNT || tensor->ndim > RF_MAX_DIMS)
        return rf_fail(err, code,
                       "tensor %.*s: dtype %u of %d, %" PRIu32 " dimensions of at most %d",
                       MANIFEST_SHOWN_NAME, tensor->name, (unsigned)tensor->dtype, RF_DTYPE_COUNT,
                       tensor->ndim, RF_MAX_DIMS);
    if (!dtype_tensor_bytes(tensor->dtype, tensor->shape, tensor->ndim, &tensor->bytes) ||
        tensor->bytes > MANIFEST_MAX_STREAM_BYTES)
        return rf_fail(
            err, code,
            "tensor %.*s: its %s elements take more than 2^60 bytes, or a part of a byte",
            MANIFEST_SHOWN_NAME, tensor->name, rf_dtype_name(tensor->dtype));

    enum rf_code bad = slice_check(tensor, code, err);
    if (bad != RF_OK)
        return bad;
    return place_check(manifest, tensor, code, err);
}

/* ---- the whole ---- */

static enum rf_code files_settle(const struct manifest *manifest, enum rf_code code,
                                 struct rf_error *err)
{
    rf_autofree struct name_item *items = calloc(manifest->file_count + (size_t)1, sizeof *items);

    if (items == NULL)
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory for %" PRIu32 " file names",
                       manifest->file_count);
    for (uint32_t i = 0; i < manifest->file_count; i++) {
        const struct manifest_file *file = &manifest->files[i];

        if (i > 0 && file->kind < manifest->files[i - 1].kind)
            return rf_fail(err, code, "file %.*s: weight files come before side files",
                           MANIFEST_SHOWN_NAME, file->name);
        items[i] = (struct name_item){.name = file->name, .bytes = (uint32_t)strlen(file->name)};
    }
    if (!name_sort(items, manifest->file_count))
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory to sort %" PRIu32 " file names",
                       manifest->file_count);
    for (uint32_t i = 1; i < manifest->file_count; i++) {
        if (strcmp(items[i - 1].name, items[i].name) == 0)
            return rf_fail(err, code, "file %.*s: twice in the manifest", MANIFEST_SHOWN_NAME,
                           items[i].name);
    }
    return RF_OK;
}

static enum rf_code sources_settle(const struct manifest *manifest, enum rf_code code,
                                   struct rf_error *err)
{
    for (uint32_t i = 1; i < manifest->source_count; i++) {
        const struct manifest_source *source = &manifest->sources[i];
        int after =
            name_compare(source->name, source->name_bytes, source[-1].name, source[-1].name_bytes);

        if (after <= 0)
            return rf_fail(err, code, "source %.*s: %s", MANIFEST_SHOWN_NAME, source->name,
                           after == 0 ? "twice in the manifest"
                                      : "out of place, sources are ordered by name");
    }
    return RF_OK;
}

static enum rf_code rank_id_check(const struct rank_id *id, enum rf_code code, struct rf_error *err)
{
    const uint32_t axes[][2] = {
        {id->tp, id->tp_size}, {id->pp, id->pp_size}, {id->ep, id->ep_size}, {id->dp, id->dp_size}};
    static const char *const names[] = {"tp", "pp", "ep", "dp"};

    for (unsigned i = 0; i < sizeof axes / sizeof axes[0]; i++) {
        if (axes[i][0] >= axes[i][1] || axes[i][1] > MANIFEST_MAX_RANKS)
            return rf_fail(err, code,
                           "rank: %s %" PRIu32 " of %" PRIu32 "; it counts from 0, of at most %d",
                           names[i], axes[i][0], axes[i][1], MANIFEST_MAX_RANKS);
    }
    if ((unsigned)id->role >= ROLE_COUNT)
        return rf_fail(err, code, "rank: unknown role %u", (unsigned)id->role);
    return RF_OK;
}

static int compare_id_pointers(const void *a, const void *b)
{
    return rank_id_compare(*(const struct rank_id *const *)a, *(const struct rank_id *const *)b);
}

static bool same_sizes(const struct rank_id *a, const struct rank_id *b)
{
    return a->tp_size == b->tp_size && a->pp_size == b->pp_size && a->ep_size == b->ep_size &&
           a->dp_size == b->dp_size;
}

static enum rf_code rank_ids_settle(const struct manifest *manifest, enum rf_code code,
                                    struct rf_error *err)
{
    const struct rank_id *of_role[ROLE_COUNT] = {NULL};
    rf_autofree const struct rank_id **sorted =
        calloc(manifest->rank_count + (size_t)1, sizeof(const struct rank_id *));
    char text[64];
    char other[64];

    if (sorted == NULL)
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory for %" PRIu32 " ranks",
                       manifest->rank_count);
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        const struct rank_id *id = &manifest->ranks[i].id;
        enum rf_code bad = rank_id_check(id, code, err);

        if (bad != RF_OK)
            return bad;
        if (of_role[id->role] == NULL)
            of_role[id->role] = id;
        if (!same_sizes(id, of_role[id->role]))
            return rf_fail(err, code, "ranks %s and %s do not agree in the sizes of their axes",
                           rank_id_text(of_role[id->role], other), rank_id_text(id, text));
        sorted[i] = id;
    }
    qsort(sorted, manifest->rank_count, sizeof(const struct rank_id *), compare_id_pointers);
    for (uint32_t i = 1; i < manifest->rank_count; i++) {
        if (rank_id_compare(sorted[i - 1], sorted[i]) == 0)
            return rf_fail(err, code, "rank %s: twice in the manifest",
                           rank_id_text(sorted[i], text));
    }
    return RF_OK;
}

static enum rf_code alias_check(const struct manifest_rank *rank, const struct tensor *tensor,
                                enum rf_code code, struct rf_error *err)
{
    if (tensor->alias_of >= rank->tensor_count)
        return rf_fail(err, code, "tensor %.*s: alias of tensor %" PRIu32 " of %" PRIu32,
                       MANIFEST_SHOWN_NAME, tensor->name, tensor->alias_of, rank->tensor_count);

    const struct tensor *target = &rank->tensors[tensor->alias_of];
    if (target->alias_of != MANIFEST_NONE)
        return rf_fail(
            err, code,
            "tensor %.*s: alias of %.*s, which is an alias itself; name the tensor that has "
            "the bytes",
            MANIFEST_SHOWN_NAME, tensor->name, MANIFEST_SHOWN_NAME, target->name);
    if (target->bytes != tensor->bytes)
        return rf_fail(err, code,
                       "tensor %.*s: %" PRIu64 " bytes, but %.*s, whose alias it is, has %" PRIu64,
                       MANIFEST_SHOWN_NAME, tensor->name, tensor->bytes, MANIFEST_SHOWN_NAME,
                       target->name, target->bytes);
    return RF_OK;
}

/* Names in strict order, so that none is there twice; places in the engine's order all
 * different. */
static enum rf_code order_check(const struct manifest_rank *rank, enum rf_code code,
                                struct rf_error *err)
{
    rf_autofree uint64_t *taken = calloc(rank->tensor_count / 64 + (size_t)1, sizeof *taken);

    if (taken == NULL)
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory for %" PRIu32 " tensors",
                       rank->tensor_count);
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];
        int after = i == 0 ? 1 : tensor_name_compare(tensor, tensor - 1);

        if (after <= 0)
            return rf_fail(err, code, "tensor %.*s: %s", MANIFEST_SHOWN_NAME, tensor->name,
                           after == 0 ? "twice in the rank"
                                      : "out of place, tensors are ordered by name");
        if (tensor->order >= rank->tensor_count ||
            (taken[tensor->order / 64] >> (tensor->order % 64) & 1) != 0)
            return rf_fail(err, code, "tensor %.*s: place %" PRIu32 " of %" PRIu32 " is %s",
                           MANIFEST_SHOWN_NAME, tensor->name, tensor->order, rank->tensor_count,
                           tensor->order >= rank->tensor_count ? "none" : "taken");
        taken[tensor->order / 64] |= UINT64_C(1) << (tensor->order % 64);
    }
    return RF_OK;
}

static enum rf_code stream_settle(struct manifest *manifest, struct manifest_rank *rank,
                                  enum rf_code code, struct rf_error *err)
{
    uint64_t offset = 0;
    uint32_t placed = 0;

    rank->placed = arena_alloc(&manifest->arena, (size_t)rank->tensor_count * sizeof *rank->placed);
    if (rank->placed == NULL)
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory for %" PRIu32 " tensors",
                       rank->tensor_count);
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        struct tensor *tensor = &rank->tensors[i];

        tensor->stream_offset = offset;
        if (tensor->alias_of != MANIFEST_NONE || tensor->bytes == 0)
            continue;
        rank->placed[placed++] = i;
        offset += tensor->bytes; /* both at most 2^60 */
        if (offset > MANIFEST_MAX_STREAM_BYTES)
            return rf_fail(err, code, "tensor %.*s: the stream grows over 2^60 bytes",
                           MANIFEST_SHOWN_NAME, tensor->name);
    }
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        struct tensor *tensor = &rank->tensors[i];

        if (tensor->alias_of == MANIFEST_NONE)
            continue;
        enum rf_code bad = alias_check(rank, tensor, code, err);
        if (bad != RF_OK)
            return bad;
        tensor->stream_offset = rank->tensors[tensor->alias_of].stream_offset;
    }
    rank->placed_count = placed;
    rank->stream_bytes = offset;
    return RF_OK;
}

enum rf_code manifest_settle(struct manifest *manifest, enum rf_code code, struct rf_error *err)
{
    uint64_t chunks = 0;
    char text[64];

    if (manifest->rank_count == 0)
        return rf_fail(err, code, "manifest: no ranks; there is always one, of size 1 if need be");
    enum rf_code bad = files_settle(manifest, code, err);
    if (bad == RF_OK)
        bad = sources_settle(manifest, code, err);
    if (bad == RF_OK)
        bad = rank_ids_settle(manifest, code, err);
    for (uint32_t i = 0; i < manifest->rank_count && bad == RF_OK; i++) {
        struct manifest_rank *rank = &manifest->ranks[i];

        rank->sources = manifest->sources;
        bad = order_check(rank, code, err);
        if (bad == RF_OK)
            bad = stream_settle(manifest, rank, code, err);
        if (bad != RF_OK)
            return rf_error_wrap(err, bad, "rank %s", rank_id_text(&rank->id, text));
        chunks += manifest_chunk_count(manifest, i); /* at most 2^44 each, of 2^12 ranks */
    }
    if (bad == RF_OK && chunks > MANIFEST_MAX_CHUNKS)
        bad = rf_fail(err, code,
                      "manifest: %" PRIu64 " chunks of %" PRIu32
                      " bytes; at most %d are allowed, make them larger",
                      chunks, manifest->chunk_bytes, MANIFEST_MAX_CHUNKS);
    return bad;
}
