#include "base/cleanup.h"
#include "model/manifest_internal.h"
#include "model/name_sort.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

/* A tensor as it was added; its strings and arrays are in the manifest's arena already. */
struct pending {
    struct tensor tensor;
    struct part *parts; /* the tensor's, which are not final before the sources are sorted */
    const char *alias_of_name;
};

struct rank_pending {
    struct rank_id id;
    struct pending *tensors;
    uint32_t count;
    uint32_t room;
};

struct manifest_builder {
    struct manifest *manifest; /* its files grow in place, its ranks are made by manifest_build() */
    struct manifest_file *files;
    uint32_t file_room;
    struct manifest_source *sources; /* manifest->source_count of them */
    uint32_t source_room;
    struct rank_pending *ranks;
    uint32_t rank_count;
    uint32_t rank_room;
    uint32_t tensor_count; /* of all ranks */
    uint64_t part_count;   /* of all tensors */
};

/* Makes room for one more in an array; NULL when out of memory, and then the array is as it was. */
static void *grow(void *array, uint32_t count, uint32_t *room, size_t item_bytes)
{
    if (count < *room)
        return array;
    uint32_t wanted = *room == 0 ? 16 : *room * 2; /* limits keep count far below 2^31 */
    void *grown = reallocarray(array, wanted, item_bytes);
    if (grown != NULL)
        *room = wanted;
    return grown;
}

static const char *copy_text(struct manifest *manifest, const char *text)
{
    return arena_strndup(&manifest->arena, text != NULL ? text : "",
                         text != NULL ? strlen(text) : 0);
}

static const uint64_t *copy_dims(struct manifest *manifest, const uint64_t *dims, uint32_t ndim)
{
    uint64_t *copy = arena_alloc(&manifest->arena, ndim * sizeof *copy);

    if (copy != NULL && ndim > 0)
        memcpy(copy, dims, ndim * sizeof *copy);
    return copy;
}

struct manifest_builder *manifest_builder_create(const struct manifest_identity *identity,
                                                 struct rf_error *err)
{
    struct manifest_builder *builder = calloc(1, sizeof *builder);

    if (builder == NULL)
        goto fail;
    builder->manifest = manifest_alloc();
    if (builder->manifest == NULL)
        goto fail;

    struct manifest *manifest = builder->manifest;
    manifest->model = copy_text(manifest, identity->model);
    manifest->architecture = copy_text(manifest, identity->architecture);
    manifest->quantisation = copy_text(manifest, identity->quantisation);
    manifest->layout = copy_text(manifest, identity->layout);
    manifest->stage = identity->stage;
    manifest->weight_version = identity->weight_version;
    manifest->algorithm = identity->algorithm;
    manifest->chunk_bytes =
        identity->chunk_bytes != 0 ? identity->chunk_bytes : MANIFEST_DEFAULT_CHUNK_BYTES;
    if (manifest->model == NULL || manifest->architecture == NULL ||
        manifest->quantisation == NULL || manifest->layout == NULL)
        goto fail;
    if (identity_check(manifest, RF_E_INVAL, err) != RF_OK) {
        manifest_builder_destroy(builder);
        return NULL;
    }
    return builder;

fail:
    manifest_builder_destroy(builder);
    rf_fail(err, RF_E_NOMEM, "no memory for a manifest");
    return NULL;
}

void manifest_builder_destroy(struct manifest_builder *builder)
{
    if (builder == NULL)
        return;
    for (uint32_t i = 0; i < builder->rank_count; i++)
        free(builder->ranks[i].tensors);
    free(builder->ranks);
    free(builder->files);
    free(builder->sources);
    manifest_unref(builder->manifest);
    free(builder);
}

enum rf_code manifest_add_file(struct manifest_builder *builder, const struct manifest_file *file,
                               struct rf_error *err)
{
    struct manifest *manifest = builder->manifest;
    enum rf_code code = file_check(file, RF_E_INVAL, err);

    if (code != RF_OK)
        return code;
    if (manifest->file_count == MANIFEST_MAX_FILES)
        return rf_fail(err, RF_E_INVAL, "file %.*s: more than %d files", MANIFEST_SHOWN_NAME,
                       file->name, MANIFEST_MAX_FILES);
    struct manifest_file *files =
        grow(builder->files, manifest->file_count, &builder->file_room, sizeof *files);
    const char *name = copy_text(manifest, file->name);
    if (files == NULL || name == NULL) {
        if (files != NULL)
            builder->files = files;
        return rf_fail(err, RF_E_NOMEM, "file %.*s: no memory", MANIFEST_SHOWN_NAME, file->name);
    }
    builder->files = files;
    manifest->files = files; /* tensor_check() looks here; moved to the arena in the end */
    struct manifest_file *added = &files[manifest->file_count++];
    *added = *file;
    added->name = name;
    unsigned digest_bytes = hash_bytes(manifest->algorithm);
    memset(added->digest + digest_bytes, 0, HASH_MAX_BYTES - digest_bytes);
    return RF_OK;
}

enum rf_code manifest_add_source(struct manifest_builder *builder,
                                 const struct manifest_source *source, uint32_t *ret_index,
                                 struct rf_error *err)
{
    struct manifest *manifest = builder->manifest;
    struct manifest_source copy = *source;

    copy.name_bytes = (uint32_t)strnlen(source->name, RF_MAX_NAME_BYTES + 1);
    if (manifest->source_count == MANIFEST_MAX_SOURCES)
        return rf_fail(err, RF_E_INVAL, "source %.*s: more than %d sources", MANIFEST_SHOWN_NAME,
                       source->name, MANIFEST_MAX_SOURCES);
    enum rf_code code = source_check(manifest, &copy, RF_E_INVAL, err);
    if (code != RF_OK)
        return code;
    struct manifest_source *sources =
        grow(builder->sources, manifest->source_count, &builder->source_room, sizeof *sources);
    if (sources == NULL)
        return rf_fail(err, RF_E_NOMEM, "source %.*s: no memory", MANIFEST_SHOWN_NAME,
                       source->name);
    builder->sources = sources;
    manifest->sources = sources; /* parts_check() looks here; sorted into the arena in the end */
    copy.name = arena_strndup(&manifest->arena, source->name, copy.name_bytes);
    copy.shape = copy_dims(manifest, source->shape, source->ndim);
    if (copy.name == NULL || copy.shape == NULL)
        return rf_fail(err, RF_E_NOMEM, "source %.*s: no memory", MANIFEST_SHOWN_NAME,
                       source->name);
    if (ret_index != NULL)
        *ret_index = manifest->source_count;
    sources[manifest->source_count++] = copy;
    return RF_OK;
}

const struct manifest_source *manifest_builder_sources(const struct manifest_builder *builder,
                                                       uint32_t *ret_count)
{
    *ret_count = builder->manifest->source_count;
    return builder->sources;
}

enum rf_code manifest_add_rank(struct manifest_builder *builder, const struct rank_id *id,
                               struct rf_error *err)
{
    char text[64];

    if (builder->rank_count == MANIFEST_MAX_RANKS)
        return rf_fail(err, RF_E_INVAL, "rank %s: more than %d ranks", rank_id_text(id, text),
                       MANIFEST_MAX_RANKS);
    struct rank_pending *ranks =
        grow(builder->ranks, builder->rank_count, &builder->rank_room, sizeof *ranks);
    if (ranks == NULL)
        return rf_fail(err, RF_E_NOMEM, "rank %s: no memory", rank_id_text(id, text));
    builder->ranks = ranks;
    ranks[builder->rank_count++] = (struct rank_pending){.id = *id};
    return RF_OK;
}

/* ---- tensors ---- */

/* Moves what a checked tensor points to into the arena. */
static bool tensor_keep(struct manifest *manifest, struct tensor *tensor)
{
    bool sharded = tensor->global_shape != tensor->shape;

    tensor->name = arena_strndup(&manifest->arena, tensor->name, tensor->name_bytes);
    tensor->shape = copy_dims(manifest, tensor->shape, tensor->ndim);
    tensor->global_shape =
        sharded ? copy_dims(manifest, tensor->global_shape, tensor->ndim) : tensor->shape;
    if (tensor->slice_start != NULL) {
        tensor->slice_start = copy_dims(manifest, tensor->slice_start, tensor->ndim);
        if (tensor->slice_start == NULL)
            return false;
    }
    return tensor->name != NULL && tensor->shape != NULL && tensor->global_shape != NULL;
}

/* Copies and checks the parts of a tensor that is good otherwise. */
static enum rf_code parts_keep(struct manifest_builder *builder, struct tensor *tensor,
                               struct part **ret_parts, struct rf_error *err)
{
    size_t bytes = tensor->part_count * sizeof *tensor->parts;

    if (tensor->part_count == 0) {
        tensor->parts = NULL;
        return RF_OK;
    }
    if (tensor->part_count > MANIFEST_MAX_PARTS - builder->part_count)
        return rf_fail(err, RF_E_INVAL, "tensor %.*s: more than %d parts in all",
                       MANIFEST_SHOWN_NAME, tensor->name, MANIFEST_MAX_PARTS);
    struct part *parts = arena_alloc(&builder->manifest->arena, bytes);
    if (parts == NULL)
        return rf_fail(err, RF_E_NOMEM, "tensor %.*s: no memory for its parts", MANIFEST_SHOWN_NAME,
                       tensor->name);
    memcpy(parts, tensor->parts, bytes);
    tensor->parts = parts;
    *ret_parts = parts;
    builder->part_count += tensor->part_count;
    return parts_check(builder->manifest, tensor, parts, RF_E_INVAL, err);
}

enum rf_code manifest_add_tensor(struct manifest_builder *builder, const struct tensor *tensor,
                                 const char *alias_of_name, struct rf_error *err)
{
    struct tensor copy = *tensor;
    struct part *parts = NULL;

    if (builder->rank_count == 0)
        return rf_fail(err, RF_E_INVAL, "tensor %.*s: no rank was added before it",
                       MANIFEST_SHOWN_NAME, tensor->name);
    if (builder->tensor_count == MANIFEST_MAX_TENSORS)
        return rf_fail(err, RF_E_INVAL, "tensor %.*s: more than %d tensors", MANIFEST_SHOWN_NAME,
                       tensor->name, MANIFEST_MAX_TENSORS);
    if (alias_of_name != NULL && tensor->part_count > 0)
        return rf_fail(err, RF_E_INVAL, "tensor %.*s: an alias has no parts", MANIFEST_SHOWN_NAME,
                       tensor->name);

    struct rank_pending *rank = &builder->ranks[builder->rank_count - 1];
    copy.name_bytes = (uint32_t)strnlen(tensor->name, RF_MAX_NAME_BYTES + 1);
    copy.global_shape = tensor->global_shape != NULL ? tensor->global_shape : tensor->shape;
    copy.alias_of = MANIFEST_NONE;
    copy.order = rank->count;
    enum rf_code code = tensor_check(builder->manifest, &copy, RF_E_INVAL, err);
    if (code == RF_OK)
        code = parts_keep(builder, &copy, &parts, err);
    if (code != RF_OK)
        return code;

    struct pending *tensors = grow(rank->tensors, rank->count, &rank->room, sizeof *tensors);
    if (tensors == NULL)
        return rf_fail(err, RF_E_NOMEM, "tensor %.*s: no memory", MANIFEST_SHOWN_NAME,
                       tensor->name);
    rank->tensors = tensors;
    struct pending *added = &tensors[rank->count];
    *added = (struct pending){.tensor = copy, .parts = parts};
    if (alias_of_name != NULL)
        added->alias_of_name = copy_text(builder->manifest, alias_of_name);
    if (!tensor_keep(builder->manifest, &added->tensor) ||
        (alias_of_name != NULL && added->alias_of_name == NULL))
        return rf_fail(err, RF_E_NOMEM, "tensor %.*s: no memory", MANIFEST_SHOWN_NAME,
                       tensor->name);
    rank->count++;
    builder->tensor_count++;
    return RF_OK;
}

/* ---- building ---- */

static enum rf_code resolve_aliases(const struct rank_pending *from, struct manifest_rank *to,
                                    struct rf_error *err)
{
    for (uint32_t i = 0; i < to->tensor_count; i++) {
        struct tensor *tensor = &to->tensors[i];
        const char *target_name = from->tensors[tensor->order].alias_of_name;

        if (target_name == NULL)
            continue;
        const struct tensor *target = manifest_find(to, target_name);
        if (target == NULL)
            return rf_fail(err, RF_E_INVAL, "tensor %.*s: alias of %.*s, which is not in its rank",
                           MANIFEST_SHOWN_NAME, tensor->name, MANIFEST_SHOWN_NAME, target_name);
        tensor->alias_of = (uint32_t)(target - to->tensors);
    }
    return RF_OK;
}

/* The rank's tensors in the order of their names. */
static enum rf_code rank_build(struct manifest *manifest, const struct rank_pending *from,
                               struct manifest_rank *to, struct rf_error *err)
{
    rf_autofree struct name_item *items = malloc((from->count + (size_t)1) * sizeof *items);

    to->id = from->id;
    to->tensor_count = from->count;
    to->tensors = arena_alloc(&manifest->arena, (size_t)from->count * sizeof *to->tensors);
    if (items == NULL || to->tensors == NULL)
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory for %" PRIu32 " tensors", from->count);
    for (uint32_t i = 0; i < from->count; i++) {
        const struct tensor *tensor = &from->tensors[i].tensor;
        items[i] =
            (struct name_item){.name = tensor->name, .bytes = tensor->name_bytes, .index = i};
    }
    if (!name_sort(items, from->count))
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory to sort %" PRIu32 " tensors",
                       from->count);
    for (uint32_t i = 0; i < from->count; i++)
        to->tensors[i] = from->tensors[items[i].index].tensor;
    return resolve_aliases(from, to, err);
}

/* Puts the sources into the order of their names, and tells the parts. */
static enum rf_code sources_build(struct manifest_builder *builder, struct rf_error *err)
{
    struct manifest *manifest = builder->manifest;
    uint32_t count = manifest->source_count;
    rf_autofree struct name_item *items = malloc((count + (size_t)1) * sizeof *items);
    rf_autofree uint32_t *place = malloc((count + (size_t)1) * sizeof *place);

    manifest->sources = arena_alloc(&manifest->arena, count * sizeof *manifest->sources);
    if (items == NULL || place == NULL || manifest->sources == NULL)
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory for %" PRIu32 " sources", count);
    for (uint32_t i = 0; i < count; i++)
        items[i] = (struct name_item){
            .name = builder->sources[i].name, .bytes = builder->sources[i].name_bytes, .index = i};
    if (!name_sort(items, count))
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory to sort %" PRIu32 " sources", count);
    for (uint32_t i = 0; i < count; i++) {
        manifest->sources[i] = builder->sources[items[i].index];
        place[items[i].index] = i;
    }
    for (uint32_t i = 0; i < builder->rank_count; i++) {
        for (uint32_t j = 0; j < builder->ranks[i].count; j++) {
            struct pending *pending = &builder->ranks[i].tensors[j];

            for (uint32_t k = 0; k < pending->tensor.part_count; k++) {
                if (pending->parts[k].source != MANIFEST_NONE)
                    pending->parts[k].source = place[pending->parts[k].source];
            }
        }
    }
    return RF_OK;
}

static enum rf_code build(struct manifest_builder *builder, struct rf_error *err)
{
    struct manifest *manifest = builder->manifest;
    size_t file_bytes = manifest->file_count * sizeof *manifest->files;

    manifest->files = arena_alloc(&manifest->arena, file_bytes);
    manifest->ranks = arena_alloc(&manifest->arena, builder->rank_count * sizeof *manifest->ranks);
    if (manifest->files == NULL || manifest->ranks == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a manifest");
    if (file_bytes > 0)
        memcpy(manifest->files, builder->files, file_bytes);
    enum rf_code code = sources_build(builder, err);
    if (code != RF_OK)
        return code;
    for (uint32_t i = 0; i < builder->rank_count; i++) {
        manifest->ranks[i] = (struct manifest_rank){0};
        code = rank_build(manifest, &builder->ranks[i], &manifest->ranks[i], err);
        if (code != RF_OK)
            return code;
    }
    manifest->rank_count = builder->rank_count;
    code = manifest_settle(manifest, RF_E_INVAL, err);
    return code == RF_OK ? manifest_make_id(manifest, err) : code;
}

enum rf_code manifest_build(struct manifest_builder *builder, struct manifest **ret_manifest,
                            struct rf_error *err)
{
    enum rf_code code = build(builder, err);

    if (code == RF_OK)
        *ret_manifest = rf_take(builder->manifest, NULL);
    manifest_builder_destroy(builder);
    return code;
}
