#include "seed/load.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/size.h"
#include "base/thread.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LOAD_MAX_THREADS = 8,
    LOAD_ALIGN = 2 << 20, /* of each file in memory: huge pages, and O_DIRECT's alignment */
    LOAD_TEXT_BYTES = 256,
    LOAD_SPARE_BYTES = 64 << 20, /* what must be left to the rest of the machine */
};

/* ---- what the config says ---- */

struct config_facts {
    char architecture[LOAD_TEXT_BYTES];
    char quantisation[LOAD_TEXT_BYTES];
};

static void copy_text(char out[LOAD_TEXT_BYTES], const json_t *value)
{
    if (json_is_string(value))
        snprintf(out, LOAD_TEXT_BYTES, "%s", json_string_value(value));
}

/* A config that is not JSON is a side file like any other: the weights can be served without it. */
static void config_facts_read(const char *data, size_t bytes, struct config_facts *ret_facts)
{
    json_error_t error;
    json_t *config = json_loadb(data, bytes, 0, &error);

    if (config == NULL) {
        log_warn("config not understood", "line=%d why=\"%s\"", error.line, error.text);
        return;
    }
    copy_text(ret_facts->architecture, json_array_get(json_object_get(config, "architectures"), 0));
    const json_t *quantisation = json_object_get(config, "quantization_config");
    if (json_is_object(quantisation)) {
        snprintf(ret_facts->quantisation, LOAD_TEXT_BYTES, "unknown");
        copy_text(ret_facts->quantisation, json_object_get(quantisation, "quant_method"));
    }
    json_decref(config);
}

/* ---- building ---- */

struct load {
    const struct model_folder *folder;
    const struct load_options *options;
    struct store_file *files; /* [folder->file_count], moved into the store */
    struct config_facts facts;
    struct manifest *manifest;
    struct store *store;
};

static void load_free(struct load *load)
{
    for (uint32_t i = 0; load->files != NULL && i < load->folder->file_count; i++)
        free(load->files[i].data);
    free(load->files);
    manifest_unref(load->manifest);
    store_destroy(load->store);
}

static enum rf_code read_exactly(const char *name, int fd, uint8_t *data, uint64_t bytes,
                                 struct rf_error *err)
{
    for (uint64_t done = 0; done < bytes;) {
        ssize_t got = pread(fd, data + done, bytes - done, (off_t)done);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return rf_fail_sys(err, "read %s at %" PRIu64, name, done);
        if (got == 0)
            return rf_fail(err, RF_E_CHANGED,
                           "%s: ends at byte %" PRIu64 ", its header goes to %" PRIu64, name, done,
                           bytes);
        done += (uint64_t)got;
    }
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
        if (strcmp(file->name, "config.json") == 0)
            config_facts_read(data, bytes, &load->facts);
        return RF_OK;
    }
    blob->bytes = file->header.data_offset;
    blob->data = malloc(blob->bytes);
    if (blob->data == NULL)
        return rf_fail(err, RF_E_NOMEM, "%s: no memory for its header of %" PRIu64 " bytes",
                       file->name, blob->bytes);
    return read_exactly(file->name, file->fd, blob->data, blob->bytes, err);
}

static const char *folder_base_name(const char *path, char out[LOAD_TEXT_BYTES])
{
    rf_autofree char *real = realpath(path, NULL);
    const char *from = real != NULL ? real : path;
    const char *slash = strrchr(from, '/');

    snprintf(out, LOAD_TEXT_BYTES, "%s", slash != NULL && slash[1] != '\0' ? slash + 1 : from);
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

static enum rf_code add_tensors(struct load *load, struct manifest_builder *builder,
                                struct rf_error *err)
{
    uint32_t order = 0;

    for (uint32_t i = 0; i < load->folder->weights_count; i++) {
        const struct st_header *header = &load->folder->files[i].header;

        for (uint32_t t = 0; t < header->tensor_count; t++) {
            const struct st_tensor *from = &header->tensors[t];
            struct tensor tensor = {
                .name = from->name,
                .name_bytes = from->name_bytes,
                .dtype = from->dtype,
                .ndim = from->ndim,
                .shape = from->shape,
                .file = i,
                .file_offset = header->data_offset + from->offset,
                .order = order,
                .alias_of = MANIFEST_NONE,
            };
            enum rf_code code = manifest_add_tensor(builder, &tensor, NULL, err);

            order++;
            if (code != RF_OK)
                return code;
        }
    }
    return RF_OK;
}

static enum rf_code build_manifest(struct load *load, struct rf_error *err)
{
    char base[LOAD_TEXT_BYTES];
    const struct load_options *options = load->options;
    enum hash_algorithm algorithm = options->algorithm != 0 ? options->algorithm : HASH_XXH3_128;
    const struct rank_id only = {
        .tp_size = 1, .pp_size = 1, .ep_size = 1, .dp_size = 1, .role = ROLE_TARGET};
    struct manifest_identity identity = {
        .model = options->model_name != NULL ? options->model_name
                                             : folder_base_name(load->folder->path, base),
        .architecture = load->facts.architecture,
        .quantisation = load->facts.quantisation[0] != '\0' ? load->facts.quantisation : "none",
        .layout = "checkpoint",
        .stage = STAGE_CHECKPOINT,
        .algorithm = algorithm,
        .chunk_bytes = options->chunk_bytes,
    };
    struct manifest_builder *builder = manifest_builder_create(&identity, err);

    if (builder == NULL)
        return err != NULL && err->code != RF_OK ? err->code : RF_E_NOMEM;
    enum rf_code code = add_files(load, builder, algorithm, err);
    if (code == RF_OK)
        code = manifest_add_rank(builder, &only, err);
    if (code == RF_OK)
        code = add_tensors(load, builder, err);
    if (code != RF_OK) {
        manifest_builder_destroy(builder);
        return code;
    }
    return manifest_build(builder, &load->manifest, err);
}

static enum rf_code load_describe(struct load *load, struct rf_error *err)
{
    load->files = calloc(load->folder->file_count, sizeof(*load->files));
    if (load->files == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " files",
                       load->folder->file_count);
    for (uint32_t i = 0; i < load->folder->file_count; i++) {
        enum rf_code code = read_blob(load, i, err);

        if (code != RF_OK)
            return code;
    }
    return build_manifest(load, err);
}

/* ---- placing the bytes ---- */

static uint64_t align_up(uint64_t bytes)
{
    return (bytes + LOAD_ALIGN - 1) / LOAD_ALIGN * LOAD_ALIGN;
}

void load_needs(const struct model_folder *folder, const struct load_options *options,
                struct load_needs *ret_needs)
{
    struct load_needs needs = {.available_bytes = memory_available()};

    for (uint32_t i = 0; i < folder->weights_count; i++) {
        const struct folder_file *file = &folder->files[i];

        needs.tensor_bytes += file->header.data_bytes;
        needs.tensor_count += file->header.tensor_count;
        if (options->memory == LOAD_MEMFD)
            needs.memory_bytes += align_up(file->bytes);
    }
    /* Side files and headers are held in memory in both cases. */
    needs.memory_bytes += folder->side_bytes;
    *ret_needs = needs;
}

static enum rf_code load_refuse_large(const struct load *load, struct rf_error *err)
{
    struct load_needs needs;
    char wanted[SIZE_TEXT_BYTES];
    char there[SIZE_TEXT_BYTES];

    load_needs(load->folder, load->options, &needs);
    if (needs.memory_bytes <= needs.available_bytes &&
        needs.available_bytes - needs.memory_bytes >= LOAD_SPARE_BYTES)
        return RF_OK;
    return rf_fail(err, RF_E_NOMEM,
                   "%s: needs %s of memory, %s is available here: free some, or serve it from the "
                   "page cache with --mmap",
                   load->folder->path, size_text(needs.memory_bytes, wanted),
                   size_text(needs.available_bytes, there));
}

/* Where each weight file begins: (region, offset of the file's byte 0 in it). */
struct placement {
    struct region *region;
    uint64_t base;
};

static enum rf_code place_in_memory(struct load *load, struct placement *placements,
                                    struct rf_error *err)
{
    const struct model_folder *folder = load->folder;
    struct region *region = NULL;
    uint64_t base = 0;
    unsigned threads = load->options->threads;
    enum rf_code code = load_refuse_large(load, err);

    if (code != RF_OK)
        return code;
    for (uint32_t i = 0; i < folder->weights_count; i++)
        base += align_up(folder->files[i].bytes);
    code = region_create_memfd("rfork-weights", base, &region, err);
    if (code != RF_OK)
        return code;
    if (threads == 0)
        threads = thread_cpus() < LOAD_MAX_THREADS ? thread_cpus() : LOAD_MAX_THREADS;
    base = 0;
    for (uint32_t i = 0; code == RF_OK && i < folder->weights_count; i++) {
        const struct folder_file *file = &folder->files[i];

        placements[i] = (struct placement){.region = region, .base = base};
        code = region_load(region, base, file->name, file->fd, 0, file->bytes, threads,
                           load->options->direct, load->options->progress,
                           load->options->progress_ctx, err);
        base += align_up(file->bytes);
    }
    if (code == RF_OK)
        code = region_seal(region, err);
    if (code == RF_OK)
        code = store_add_region(load->store, region, err);
    region_unref(region);
    return code;
}

static enum rf_code place_in_files(struct load *load, struct placement *placements,
                                   struct rf_error *err)
{
    for (uint32_t i = 0; i < load->folder->weights_count; i++) {
        const struct folder_file *file = &load->folder->files[i];
        struct region *region;
        enum rf_code code = region_create_file(file->name, file->fd, &region, err);

        if (code != RF_OK)
            return code;
        code = store_add_region(load->store, region, err);
        if (code == RF_OK && region_bytes(region) != file->bytes)
            code =
                rf_fail(err, RF_E_CHANGED, "%s: is %" PRIu64 " bytes, was %" PRIu64 " a moment ago",
                        file->name, region_bytes(region), file->bytes);
        placements[i] = (struct placement){.region = region, .base = 0};
        region_unref(region);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

static enum rf_code lay_out(struct load *load, const struct placement *placements,
                            struct rf_error *err)
{
    const struct manifest_rank *rank = &load->manifest->ranks[0];
    struct layout *layout = &load->store->ranks[0].layout;

    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];
        const struct placement *at = &placements[tensor->file];

        if (tensor->bytes == 0)
            continue;
        enum rf_code code = layout_add(layout, tensor->stream_offset, tensor->bytes, at->region,
                                       at->base + tensor->file_offset, err);
        if (code != RF_OK)
            return code;
    }
    return layout_finish(layout, rank->stream_bytes, err);
}

/* The folder was looked at a while ago: what lies in memory now must still be that. */
static enum rf_code check_headers(const struct load *load, const struct placement *placements,
                                  struct rf_error *err)
{
    for (uint32_t i = 0; i < load->folder->weights_count; i++) {
        const struct store_file *blob = &load->files[i];
        rf_autofree uint8_t *now = malloc(blob->bytes);

        if (now == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for a header of %" PRIu64 " bytes",
                           blob->bytes);
        enum rf_code code =
            region_read(placements[i].region, placements[i].base, now, blob->bytes, err);
        if (code != RF_OK)
            return code;
        if (memcmp(now, blob->data, blob->bytes) != 0)
            return rf_fail(err, RF_E_CHANGED, "%s: its header changed while it was being loaded",
                           load->folder->files[i].name);
    }
    return RF_OK;
}

enum rf_code load_folder(const struct model_folder *folder, const struct load_options *options,
                         struct store **ret_store, struct rf_error *err)
{
    struct load load = {.folder = folder, .options = options};
    rf_autofree struct placement *placements =
        calloc(folder->weights_count + 1, sizeof(*placements));
    enum rf_code code = placements != NULL ? RF_OK : rf_fail(err, RF_E_NOMEM, "no memory");

    if (code == RF_OK)
        code = load_describe(&load, err);
    if (code == RF_OK)
        code = store_create(load.manifest, &load.store, err);
    if (code == RF_OK)
        code = options->memory == LOAD_MEMFD ? place_in_memory(&load, placements, err)
                                             : place_in_files(&load, placements, err);
    if (code == RF_OK)
        code = check_headers(&load, placements, err);
    if (code == RF_OK)
        code = lay_out(&load, placements, err);
    if (code == RF_OK) {
        memcpy(load.store->files, load.files, folder->file_count * sizeof(*load.files));
        memset(load.files, 0, folder->file_count * sizeof(*load.files));
        *ret_store = rf_take(load.store, NULL);
    }
    load_free(&load);
    return code;
}

enum rf_code load_manifest(const struct model_folder *folder, const struct load_options *options,
                           struct manifest **ret_manifest, struct rf_error *err)
{
    struct load load = {.folder = folder, .options = options};
    enum rf_code code = load_describe(&load, err);

    if (code == RF_OK)
        *ret_manifest = rf_take(load.manifest, NULL);
    load_free(&load);
    return code;
}
