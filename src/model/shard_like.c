/* Wanted manifests made from what a seed says of itself. */
#include "model/shard.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- a seed's sources ---- */

static bool is_whole(const struct manifest *seed)
{
    const struct rank_id *id = &seed->ranks[0].id;

    return seed->rank_count == 1 && seed->source_count == 0 && seed->stage == STAGE_CHECKPOINT &&
           id->tp_size == 1 && id->pp_size == 1 && id->ep_size == 1 && id->dp_size == 1;
}

static enum rf_code seed_check(const struct manifest *seed, struct rf_error *err)
{
    if (seed->stage == STAGE_PROCESSED)
        return rf_fail(err, RF_E_MISMATCH,
                       "%.120s: the seed's tensors are processed: nothing but its own ranks can be "
                       "made of them",
                       seed->model);
    if (seed->source_count == 0 && !is_whole(seed))
        return rf_fail(err, RF_E_MISMATCH,
                       "%.120s: the seed does not say of which tensors its %" PRIu32
                       " ranks are slices: only an instance of the same shape can fork from it",
                       seed->model, seed->rank_count);
    return RF_OK;
}

static struct manifest_builder *builder_like(const struct manifest *seed, const char *layout,
                                             struct rf_error *err)
{
    const struct manifest_identity identity = {
        .model = seed->model,
        .architecture = seed->architecture,
        .quantisation = seed->quantisation,
        .layout = layout,
        .stage = shard_stage(layout),
        .weight_version = seed->weight_version,
        .algorithm = seed->algorithm,
        .chunk_bytes = seed->chunk_bytes,
    };
    struct manifest_builder *builder = manifest_builder_create(&identity, err);

    for (uint32_t i = 0; builder != NULL && i < seed->file_count; i++) {
        if (manifest_add_file(builder, &seed->files[i], err) != RF_OK) {
            manifest_builder_destroy(builder);
            builder = NULL;
        }
    }
    return builder;
}

static enum rf_code sources_like(const struct manifest *seed, struct manifest_builder *builder,
                                 struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < seed->source_count && code == RF_OK; i++)
        code = manifest_add_source(builder, &seed->sources[i], NULL, err);
    for (uint32_t i = 0; seed->source_count == 0 && i < seed->ranks[0].tensor_count; i++) {
        const struct tensor *tensor = &seed->ranks[0].tensors[i];
        const struct manifest_source source = {
            .name = tensor->name,
            .dtype = tensor->dtype,
            .ndim = tensor->ndim,
            .shape = tensor->shape,
            .file = tensor->file,
            .file_offset = tensor->file_offset,
        };

        if (tensor->alias_of != MANIFEST_NONE)
            continue;
        code = manifest_add_source(builder, &source, NULL, err);
        if (code != RF_OK)
            return code;
    }
    return code;
}

static enum rf_code finish(struct manifest_builder *builder, enum rf_code code,
                           struct manifest **ret_manifest, struct rf_error *err)
{
    if (code != RF_OK) {
        manifest_builder_destroy(builder);
        return code;
    }
    return manifest_build(builder, ret_manifest, err);
}

enum rf_code shard_like(const struct manifest *seed, const struct shard_request *request,
                        struct manifest **ret_manifest, struct rf_error *err)
{
    enum rf_code code = seed_check(seed, err);

    if (code != RF_OK)
        return code;
    struct rf_error why = {.code = RF_E_NOMEM};
    struct manifest_builder *builder = builder_like(seed, request->layout, &why);
    if (builder == NULL) {
        if (err != NULL)
            *err = why;
        return why.code;
    }
    code = sources_like(seed, builder, err);
    if (code == RF_OK)
        code = shard_ranks(builder, request, err);
    return finish(builder, code, ret_manifest, err);
}

/* ---- the whole ---- */

struct placed {
    const struct manifest_source *source;
};

/* As the files have them, which is the order a folder is loaded in. */
static int compare_places(const void *a, const void *b)
{
    const struct manifest_source *x = ((const struct placed *)a)->source;
    const struct manifest_source *y = ((const struct placed *)b)->source;

    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    if (x->file_offset != y->file_offset)
        return x->file_offset < y->file_offset ? -1 : 1;
    return strcmp(x->name, y->name); /* without bytes they share a place */
}

static enum rf_code tensors_whole(const struct manifest *seed, struct manifest_builder *builder,
                                  struct rf_error *err)
{
    const struct rank_id only = {
        .tp_size = 1, .pp_size = 1, .ep_size = 1, .dp_size = 1, .role = seed->ranks[0].id.role};
    struct placed *placed = calloc(seed->source_count + (size_t)1, sizeof *placed);
    enum rf_code code =
        placed != NULL
            ? manifest_add_rank(builder, &only, err)
            : rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " tensors", seed->source_count);

    for (uint32_t i = 0; i < seed->source_count && code == RF_OK; i++)
        placed[i].source = &seed->sources[i];
    if (code == RF_OK)
        qsort(placed, seed->source_count, sizeof *placed, compare_places);
    for (uint32_t i = 0; i < seed->source_count && code == RF_OK; i++) {
        const struct manifest_source *source = placed[i].source;
        const struct tensor tensor = {
            .name = source->name,
            .dtype = source->dtype,
            .ndim = source->ndim,
            .shape = source->shape,
            .file = source->file,
            .file_offset = source->file_offset,
        };

        code = manifest_add_tensor(builder, &tensor, NULL, err);
    }
    free(placed);
    return code;
}

enum rf_code shard_whole(struct manifest *seed, struct manifest **ret_manifest,
                         struct rf_error *err)
{
    enum rf_code code = seed_check(seed, err);

    if (code != RF_OK)
        return code;
    if (is_whole(seed)) {
        *ret_manifest = manifest_ref(seed);
        return RF_OK;
    }
    struct rf_error why = {.code = RF_E_NOMEM};
    struct manifest_builder *builder = builder_like(seed, "checkpoint", &why);
    if (builder == NULL) {
        if (err != NULL)
            *err = why;
        return why.code;
    }
    code = tensors_whole(seed, builder, err);
    return finish(builder, code, ret_manifest, err);
}
