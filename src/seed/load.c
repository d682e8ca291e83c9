#include "seed/load.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/strmap.h"
#include "model/config.h"
#include "model/shard.h"
#include "seed/load_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOAD_NAME_BYTES = 256 };

/* ---- headers and side files ---- */

/* A config that is not understood is a side file like any other as long as nothing is cut by it. */
static enum rf_code read_config(struct load *load, const char *data, size_t bytes,
                                struct rf_error *err)
{
    struct rf_error error;
    enum rf_code code = model_config_parse(data, bytes, &load->config, &error);

    if (code == RF_OK)
        return RF_OK;
    if (load->options.shards != NULL || code == RF_E_NOMEM) {
        if (err != NULL)
            *err = error;
        return rf_error_wrap(err, code, "%s/config.json", load->folder->path);
    }
    log_warn("config not understood", "why=\"%s\"", error.text);
    return RF_OK;
}

/* The header of a weight file, or a side file whole. */
static enum rf_code read_blob(struct load *load, uint32_t index, struct rf_error *err)
{
    const struct folder_file *file = &load->folder->files[index];
    struct store_file *blob = &load->files[index];
    size_t bytes = 0;

    if (file->kind == FOLDER_SIDE) {
        char *data = NULL;
        enum rf_code code = model_folder_read(load->folder, file, &data, &bytes, err);

        if (code != RF_OK)
            return code;
        *blob = (struct store_file){.data = (uint8_t *)data, .bytes = bytes};
        return strcmp(file->name, "config.json") == 0 ? read_config(load, data, bytes, err) : RF_OK;
    }
    blob->bytes = file->header.data_offset;
    blob->data = malloc(blob->bytes);
    if (blob->data == NULL)
        return rf_fail(err, RF_E_NOMEM, "%s: no memory for its header of %" PRIu64 " bytes",
                       file->name, blob->bytes);
    return model_folder_header(file, blob->data, err);
}

static const char *folder_base_name(const char *path, char out[LOAD_NAME_BYTES])
{
    rf_autofree char *real = realpath(path, NULL);
    const char *from = real != NULL ? real : path;
    const char *slash = strrchr(from, '/');

    snprintf(out, LOAD_NAME_BYTES, "%s", slash != NULL && slash[1] != '\0' ? slash + 1 : from);
    rf_text_sanitise(out);
    return out;
}

static enum rf_code add_files(struct load *load, struct manifest_builder *builder,
                              enum hash_algorithm algorithm, struct rf_error *err)
{
    for (uint32_t i = 0; i < load->folder->file_count; i++) {
        const struct folder_file *file = &load->folder->files[i];
        bool weights = file->kind == FOLDER_WEIGHTS;
        struct manifest_file entry = {
            .name = file->name,
            .kind = weights ? FILE_WEIGHTS : FILE_SIDE,
            .bytes = weights ? file->bytes : load->files[i].bytes,
            .header_bytes = weights ? load->files[i].bytes : 0,
        };

        hash_once(algorithm, load->files[i].data, load->files[i].bytes, entry.digest);
        enum rf_code code = manifest_add_file(builder, &entry, err);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

/* ---- the manifest ---- */

/* The files' tensors, as the one rank's or as what the ranks are cut from. */
static enum rf_code add_tensor(const struct load *load, struct manifest_builder *builder,
                               uint32_t file, const struct st_tensor *from, struct rf_error *err)
{
    uint64_t offset = load->folder->files[file].header.data_offset + from->offset;
    const struct manifest_source source = {
        .name = from->name,
        .dtype = from->dtype,
        .ndim = from->ndim,
        .shape = from->shape,
        .file = file,
        .file_offset = offset,
    };
    const struct tensor tensor = {
        .name = from->name,
        .dtype = from->dtype,
        .ndim = from->ndim,
        .shape = from->shape,
        .file = file,
        .file_offset = offset,
        .alias_of = MANIFEST_NONE,
    };

    return load->add_ranks != NULL ? manifest_add_source(builder, &source, NULL, err)
                                   : manifest_add_tensor(builder, &tensor, NULL, err);
}

static enum rf_code alias_fail(const char *file, const struct st_metadata *entry, const char *why,
                               struct rf_error *err)
{
    return rf_fail(err, RF_E_FORMAT, "%.160s: its metadata says that %.120s is tensor %.120s, %s",
                   file, st_alias_name(entry), entry->value, why);
}

/* Of a file whose metadata tells of tied tensors. */
static enum rf_code add_aliases(const struct folder_file *file, const struct strmap *names,
                                struct manifest_builder *builder, struct rf_error *err)
{
    const struct st_header *header = &file->header;
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < header->metadata_count && code == RF_OK; i++) {
        const struct st_metadata *entry = &header->metadata[i];
        const char *name = st_alias_name(entry);
        uint32_t target = 0;

        if (name == NULL)
            continue;
        if (strlen(entry->key) != entry->key_bytes || strlen(name) > RF_MAX_NAME_BYTES)
            return alias_fail(file->name, entry, "under a name that no tensor may have", err);
        if (strmap_find(names, name, strlen(name), &target))
            return alias_fail(file->name, entry, "and has both", err);
        if (!strmap_find(names, entry->value, entry->value_bytes, &target))
            return alias_fail(file->name, entry, "which it does not have", err);
        const struct tensor tensor = {
            .name = name,
            .dtype = header->tensors[target].dtype,
            .ndim = header->tensors[target].ndim,
            .shape = header->tensors[target].shape,
            .file = MANIFEST_NONE,
            .alias_of = MANIFEST_NONE,
        };
        code = manifest_add_tensor(builder, &tensor, header->tensors[target].name, err);
    }
    return code;
}

static enum rf_code find_aliases(const struct folder_file *file, struct manifest_builder *builder,
                                 struct rf_error *err)
{
    const struct st_header *header = &file->header;
    struct strmap *names = NULL;
    bool any = false;

    for (uint32_t i = 0; i < header->metadata_count; i++)
        any = any || st_alias_name(&header->metadata[i]) != NULL;
    if (!any)
        return RF_OK;
    names = strmap_create(header->tensor_count);
    enum rf_code code = names != NULL ? RF_OK : RF_E_NOMEM;
    for (uint32_t i = 0; i < header->tensor_count && code == RF_OK; i++)
        code = strmap_add(names, header->tensors[i].name, header->tensors[i].name_bytes, i, NULL);
    code = code == RF_OK ? add_aliases(file, names, builder, err)
                         : rf_fail(err, code, "%s: no memory for its tied tensors", file->name);
    strmap_destroy(names);
    return code;
}

static enum rf_code add_tensors(const struct load *load, struct manifest_builder *builder,
                                struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < load->folder->weights_count; i++) {
        const struct st_header *header = &load->folder->files[i].header;

        for (uint32_t t = 0; t < header->tensor_count && code == RF_OK; t++)
            code = add_tensor(load, builder, i, &header->tensors[t], err);
        /* What is cut into ranks is cut by the plan, which knows what the config ties. */
        if (code == RF_OK && load->add_ranks == NULL)
            code = find_aliases(&load->folder->files[i], builder, err);
    }
    return code;
}

static enum rf_code add_shards(const struct load *load, struct manifest_builder *builder,
                               struct rf_error *err)
{
    const struct load_shards *shards = load->options.shards;
    struct plan *builtin = NULL;
    struct shard_request request = {
        .plan = shards->plan,
        .config = load->config,
        .layout = shards->layout,
        .tp_size = shards->tp_size,
        .ep_size = shards->ep_size,
        .ranks = shards->ranks,
        .rank_count = shards->rank_count,
        .role = ROLE_TARGET,
    };
    enum rf_code code = RF_OK;

    if (load->config == NULL)
        return rf_fail(err, RF_E_FORMAT,
                       "%s: has no config.json, which says how its tensors are cut into ranks",
                       load->folder->path);
    if (shards->plan == NULL)
        code = plan_for_architecture(model_config_architecture(load->config), &builtin, err);
    if (shards->plan == NULL)
        request.plan = builtin;
    if (code == RF_OK)
        code = shard_ranks(builder, &request, err);
    plan_destroy(builtin);
    return code;
}

static struct manifest_builder *begin_manifest(const struct load *load, struct rf_error *err)
{
    char base[LOAD_NAME_BYTES];
    const struct load_options *options = &load->options;
    const struct model_config *config = load->config;
    const char *layout = options->shards != NULL ? options->shards->layout : "checkpoint";
    const struct manifest_identity identity = {
        .model = options->model_name != NULL ? options->model_name
                                             : folder_base_name(load->folder->path, base),
        .architecture = config != NULL ? model_config_architecture(config) : "",
        .quantisation = config != NULL ? model_config_quantisation(config) : "none",
        .layout = layout,
        .stage = options->shards != NULL ? shard_stage(layout) : STAGE_CHECKPOINT,
        .algorithm = options->algorithm,
        .chunk_bytes = options->chunk_bytes,
    };

    return manifest_builder_create(&identity, err);
}

static enum rf_code build_manifest(struct load *load, struct rf_error *err)
{
    const struct rank_id only = {
        .tp_size = 1, .pp_size = 1, .ep_size = 1, .dp_size = 1, .role = ROLE_TARGET};
    struct manifest_builder *builder = begin_manifest(load, err);

    if (builder == NULL)
        return err != NULL && err->code != RF_OK ? err->code : RF_E_NOMEM;
    enum rf_code code = add_files(load, builder, load->options.algorithm, err);
    if (code == RF_OK && load->add_ranks == NULL)
        code = manifest_add_rank(builder, &only, err);
    if (code == RF_OK)
        code = add_tensors(load, builder, err);
    if (code == RF_OK && load->add_ranks != NULL)
        code = load->add_ranks(load, builder, err);
    if (code != RF_OK) {
        manifest_builder_destroy(builder);
        return code;
    }
    return manifest_build(builder, &load->manifest, err);
}

static enum rf_code describe(struct load *load, struct rf_error *err)
{
    load->files = calloc(load->folder->file_count + (size_t)1, sizeof(*load->files));
    if (load->files == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " files",
                       load->folder->file_count);
    for (uint32_t i = 0; i < load->folder->file_count; i++) {
        enum rf_code code = read_blob(load, i, err);

        if (code != RF_OK)
            return code;
    }
    enum rf_code code = build_manifest(load, err);
    return code == RF_OK ? load_parts_plan(load->manifest, &load->parts, err) : code;
}

/* ---- the whole ---- */

enum rf_code load_open_ranks(const struct model_folder *folder, const struct load_options *options,
                             load_ranks_fn add_ranks, struct load **ret_load, struct rf_error *err)
{
    struct load *load = calloc(1, sizeof *load);

    if (load == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to load %s", folder->path);
    load->folder = folder;
    load->add_ranks = add_ranks;
    load->options = *options;
    if (load->options.algorithm == 0)
        load->options.algorithm = HASH_XXH3_128;
    enum rf_code code = describe(load, err);
    if (code != RF_OK) {
        load_close(load);
        return code;
    }
    *ret_load = load;
    return RF_OK;
}

enum rf_code load_open(const struct model_folder *folder, const struct load_options *options,
                       struct load **ret_load, struct rf_error *err)
{
    return load_open_ranks(folder, options, options->shards != NULL ? add_shards : NULL, ret_load,
                           err);
}

void load_close(struct load *load)
{
    if (load == NULL)
        return;
    for (uint32_t i = 0; load->files != NULL && i < load->folder->file_count; i++)
        free(load->files[i].data);
    free(load->files);
    load_parts_free(&load->parts);
    model_config_destroy(load->config);
    manifest_unref(load->manifest);
    free(load);
}

struct manifest *load_manifest(const struct load *load)
{
    return load->manifest;
}

void load_needs(const struct load *load, struct load_needs *ret_needs)
{
    const struct load_parts *parts = &load->parts;
    struct load_needs needs = {
        .available_bytes = memory_available(),
        .viewed_bytes = parts->viewed_bytes,
        .made_bytes = parts->made_bytes,
        .load_bytes = parts->made_bytes,
        .tensor_bytes = manifest_total_bytes(load->manifest),
    };
    uint64_t held = 0; /* headers and side files, in both cases */

    for (uint32_t i = 0; i < load->folder->file_count; i++)
        held += load->files[i].bytes;
    for (uint32_t i = 0; i < load->manifest->rank_count; i++)
        needs.tensor_count += load->manifest->ranks[i].tensor_count;
    if (load->options.memory == LOAD_MEMFD &&
        __builtin_add_overflow(needs.load_bytes, parts->span_bytes, &needs.load_bytes))
        needs.load_bytes = UINT64_MAX;
    if (__builtin_add_overflow(needs.load_bytes, held, &needs.memory_bytes))
        needs.memory_bytes = UINT64_MAX;
    *ret_needs = needs;
}

enum rf_code load_run(struct load *load, struct store **ret_store, struct rf_error *err)
{
    struct store *store = NULL;
    enum rf_code code = store_create(load->manifest, &store, err);

    if (code == RF_OK)
        code = load_place_all(load, store, err);
    if (code != RF_OK) {
        store_destroy(store);
        return code;
    }
    memcpy(store->files, load->files, load->folder->file_count * sizeof(*load->files));
    memset(load->files, 0, load->folder->file_count * sizeof(*load->files));
    *ret_store = store;
    return RF_OK;
}

enum rf_code load_folder(const struct model_folder *folder, const struct load_options *options,
                         struct store **ret_store, struct rf_error *err)
{
    struct load *load = NULL;
    enum rf_code code = load_open(folder, options, &load, err);

    if (code == RF_OK)
        code = load_run(load, ret_store, err);
    load_close(load);
    return code;
}
