#include "control/sglang_folder.h"

#include "base/cleanup.h"
#include "control/sglang_manifest.h"
#include "seed/load.h"

#include <inttypes.h>
#include <string.h>

/* ---- which layout ---- */

struct search {
    struct sglang_folder *folder;
    const struct weight_map *maps;
    uint32_t count;
    uint32_t ep_size;
    uint64_t least; /* differences of the layout that comes nearest; UINT64_MAX: none was made */
    struct rf_error error; /* about that one */
};

/* RF_OK: the folder has the manifest; else why not, which need not be the end. */
static enum rf_code try_layout(struct search *search, const struct load_shards *shards,
                               struct rf_error *err)
{
    const struct load_options options = {.memory = LOAD_FILES, .shards = shards};
    const char *layout = shards != NULL ? shards->layout : "checkpoint";
    struct load *load = NULL;
    uint64_t differences = UINT64_MAX;
    enum rf_code code = load_open(&search->folder->folder, &options, &load, err);

    if (code == RF_OK)
        code = sglang_manifest_check(load_manifest(load), search->maps, search->count, &differences,
                                     err);
    if (code == RF_OK) {
        search->folder->manifest = manifest_ref(load_manifest(load));
    } else if (differences < search->least || search->error.code == RF_OK) {
        search->least = differences;
        search->error = *err;
        rf_error_wrap(&search->error, code, "in layout %s", layout);
    }
    load_close(load);
    return code;
}

static enum rf_code find_layout(struct search *search, struct rf_error *err)
{
    static const char *const layouts[] = {"sglang", "sglang-shared-fused", "checkpoint"};
    struct rf_error why;
    enum rf_code code = RF_E_MISMATCH;

    for (unsigned i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
        const struct load_shards shards = {.tp_size = search->count,
                                           .ep_size = search->ep_size > 0 ? search->ep_size : 1,
                                           .layout = layouts[i]};
        /* One rank as the files have it needs no plan, nor a config. */
        bool plain = search->count == 1 && strcmp(layouts[i], "checkpoint") == 0;

        code = try_layout(search, plain ? NULL : &shards, &why);
        if (code == RF_OK || code == RF_E_NOMEM || code == RF_E_SYS || code == RF_E_CHANGED)
            break;
    }
    if (code == RF_OK)
        return RF_OK;
    if (err != NULL)
        *err = search->least != UINT64_MAX ? search->error : why;
    return search->least != UINT64_MAX ? search->error.code : code;
}

/* ---- the folder ---- */

/* Identity and side files; its one rank is empty. */
static enum rf_code read_sides(struct sglang_folder *folder, struct rf_error *err)
{
    const struct load_options options = {.memory = LOAD_FILES};
    struct load *load = NULL;
    enum rf_code code = load_open(&folder->folder, &options, &load, err);

    if (code == RF_OK)
        folder->manifest = manifest_ref(load_manifest(load));
    load_close(load);
    return code;
}

static enum rf_code read_config(struct sglang_folder *folder, struct rf_error *err)
{
    const struct model_folder *files = &folder->folder;
    rf_autofree char *data = NULL;
    size_t bytes = 0;
    uint32_t i = files->weights_count;

    while (i < files->file_count && strcmp(files->files[i].name, "config.json") != 0)
        i++;
    if (i == files->file_count)
        return RF_OK;
    enum rf_code code = model_folder_read(files, &files->files[i], &data, &bytes, err);
    if (code == RF_OK)
        code = model_config_parse(data, bytes, &folder->config, err);
    return code == RF_OK ? RF_OK : rf_error_wrap(err, code, "%s/config.json", files->path);
}

enum rf_code sglang_folder_open(const char *path, const struct weight_map *maps, uint32_t count,
                                uint32_t ep_size, struct sglang_folder *ret_folder,
                                struct rf_error *err)
{
    struct sglang_folder folder = {.manifest = NULL};
    struct search search = {
        .folder = &folder, .maps = maps, .count = count, .ep_size = ep_size, .least = UINT64_MAX};
    enum rf_code code = model_folder_open_any(path, &folder.folder, err);

    if (code != RF_OK)
        return code;
    if (folder.folder.weights_count == 0) {
        code = read_config(&folder, err);
        if (code == RF_OK)
            code = read_sides(&folder, err);
    } else {
        code = find_layout(&search, err);
        if (code == RF_E_MISMATCH)
            rf_error_wrap(err, code,
                          "the seed's tensors are not what %.100s makes (leave it out to take "
                          "them as they are)",
                          path);
    }
    if (code != RF_OK) {
        sglang_folder_close(&folder);
        return code;
    }
    *ret_folder = folder;
    return RF_OK;
}

void sglang_folder_close(struct sglang_folder *folder)
{
    if (folder->folder.path != NULL)
        model_folder_close(&folder->folder);
    manifest_unref(folder->manifest);
    model_config_destroy(folder->config);
    *folder = (struct sglang_folder){.manifest = NULL};
}

bool sglang_folder_has_weights(const struct sglang_folder *folder)
{
    return folder->folder.weights_count > 0;
}

/* The header of a weight file, length and all. */
static enum rf_code read_header(const struct folder_file *file, struct buf *out,
                                struct rf_error *err)
{
    uint64_t bytes = file->header.data_offset;
    uint8_t *to = buf_reserve(out, bytes);

    if (to == NULL)
        return rf_fail(err, RF_E_NOMEM, "%s: no memory for its header of %" PRIu64 " bytes",
                       file->name, bytes);
    enum rf_code code = model_folder_header(file, to, err);
    if (code == RF_OK)
        out->bytes += bytes;
    return code;
}

enum rf_code sglang_folder_file(const struct sglang_folder *folder, uint32_t file, struct buf *out,
                                struct rf_error *err)
{
    const struct folder_file *entry = &folder->folder.files[file];
    rf_autofree char *data = NULL;
    size_t bytes = 0;

    if (entry->kind == FOLDER_WEIGHTS)
        return read_header(entry, out, err);
    enum rf_code code = model_folder_read(&folder->folder, entry, &data, &bytes, err);
    if (code != RF_OK)
        return code;
    buf_append(out, data, bytes);
    return out->failed ? rf_fail(err, RF_E_NOMEM, "%s: no memory for it", entry->name) : RF_OK;
}
