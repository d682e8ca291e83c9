/* Writing a model folder: weight files at the places the seed's files had, or made anew where it
 * had none. */
#include "base/cleanup.h"
#include "base/log.h"
#include "control/remote_internal.h"
#include "control/remote_reshard.h"
#include "format/model_folder.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER_DEFAULT_SHARD_BYTES UINT64_C(5000000000) /* as Hugging Face's own writers cut */

enum { FOLDER_INDEX_NAME_BYTES = 64 };

struct out {
    struct remote *remote;
    struct remote_reshard *reshard;  /* NULL: the seed's one rank as it is */
    const struct manifest *manifest; /* of what is written */
    struct folder_writer *writer;
    struct fork_dest *dests; /* [rank_count] */
};

static enum rf_code put_all(int fd, const char *name, const uint8_t *data, uint64_t bytes,
                            struct rf_error *err)
{
    for (uint64_t at = 0; at < bytes;) {
        ssize_t put = pwrite(fd, data + at, bytes - at, (off_t)at);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return rf_fail_sys(err, "write %s", name);
        at += (uint64_t)put;
    }
    return RF_OK;
}

static enum rf_code put_file(struct out *out, const char *name, uint64_t file_bytes,
                             const struct buf *content, int *ret_fd, struct rf_error *err)
{
    enum rf_code code = folder_writer_file(out->writer, name, file_bytes, ret_fd, err);

    if (code == RF_OK)
        code = put_all(*ret_fd, name, content->data, content->bytes, err);
    return code;
}

/* ---- the seed's own files ---- */

static bool same_place(const struct tensor *tensor, const struct st_tensor *in_file, uint32_t file,
                       uint64_t data_offset)
{
    return tensor != NULL && tensor->file == file && tensor->dtype == in_file->dtype &&
           tensor->ndim == in_file->ndim && tensor->file_offset == data_offset + in_file->offset &&
           (tensor->ndim == 0 ||
            memcmp(tensor->shape, in_file->shape, tensor->ndim * sizeof(uint64_t)) == 0);
}

/* A header that says something else than the manifest would make a folder that loads, and is
 * wrong. */
static enum rf_code check_header(const struct manifest *manifest, uint32_t file,
                                 const struct buf *content, struct rf_error *err)
{
    const struct manifest_file *entry = &manifest->files[file];
    struct st_header header = {.tensor_count = 0};
    uint32_t ours = 0;

    if (content->bytes < 8)
        return rf_fail(err, RF_E_PROTO, "%s: a header of %zu bytes", entry->name, content->bytes);
    enum rf_code code = st_header_parse(entry->name, content->data + 8, content->bytes - 8,
                                        entry->bytes, &header, err);
    if (code != RF_OK)
        return code;
    for (uint32_t i = 0; i < manifest->ranks[0].tensor_count; i++)
        ours += manifest->ranks[0].tensors[i].file == file;
    if (ours != header.tensor_count)
        code = rf_fail(err, RF_E_PROTO,
                       "%s: its header has %" PRIu32 " tensors, the manifest %" PRIu32, entry->name,
                       header.tensor_count, ours);
    for (uint32_t i = 0; code == RF_OK && i < header.tensor_count; i++) {
        const struct st_tensor *tensor = &header.tensors[i];

        if (!same_place(manifest_find(&manifest->ranks[0], tensor->name), tensor, file,
                        header.data_offset))
            code = rf_fail(err, RF_E_PROTO, "%s: tensor %s is not where the manifest says",
                           entry->name, tensor->name);
    }
    st_header_free(&header);
    return code;
}

static enum rf_code prepare_files(struct out *out, struct rf_error *err)
{
    const struct manifest *manifest = out->manifest;
    const struct manifest_rank *rank = &manifest->ranks[0];
    rf_autofree int *fds = calloc((size_t)manifest->file_count + 1, sizeof(*fds));

    if (fds == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " files", manifest->file_count);
    for (uint32_t i = 0; i < manifest->file_count; i++) {
        BUF_AUTO struct buf content = {.data = NULL};
        enum rf_code code = remote_fetch_file(out->remote, i, &content, err);

        if (code == RF_OK && manifest->files[i].kind == FILE_WEIGHTS)
            code = check_header(manifest, i, &content, err);
        if (code == RF_OK)
            code = put_file(out, manifest->files[i].name, manifest->files[i].bytes, &content,
                            &fds[i], err);
        if (code != RF_OK)
            return code;
    }
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];
        struct fork_segment segment = {.stream_offset = tensor->stream_offset,
                                       .bytes = tensor->bytes,
                                       .fd_offset = tensor->file_offset};

        if (tensor->bytes == 0 || tensor->alias_of != MANIFEST_NONE)
            continue;
        if (tensor->file == MANIFEST_NONE)
            return rf_fail(err, RF_E_PROTO, "tensor %s belongs to no file, others do",
                           tensor->name);
        segment.fd = fds[tensor->file];
        enum rf_code code = fork_dest_add(&out->dests[0], &segment, err);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

/* ---- files made here ---- */

/* Tensors that have no bytes of their own: what files can tell of them is in their metadata. */
struct aliases {
    uint32_t *list; /* indices of the rank's tensors */
    uint32_t count;
};

static bool same_kind(const struct tensor *one, const struct tensor *other)
{
    return one->dtype == other->dtype && one->ndim == other->ndim &&
           (one->ndim == 0 ||
            memcmp(one->shape, other->shape, one->ndim * sizeof(*one->shape)) == 0);
}

static enum rf_code find_aliases(const struct manifest_rank *rank, struct aliases *ret_aliases,
                                 struct rf_error *err)
{
    rf_autofree uint32_t *list = calloc((size_t)rank->tensor_count + 1, sizeof(*list));
    uint32_t count = 0;

    if (list == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to plan the files");
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];

        if (tensor->alias_of == MANIFEST_NONE)
            continue;
        if (!same_kind(tensor, &rank->tensors[tensor->alias_of]))
            return rf_fail(err, RF_E_UNSUPPORTED,
                           "tensor %.120s has the bytes of %.120s and another dtype or shape: a "
                           "safetensors file cannot tell that; fork it into memory",
                           tensor->name, rank->tensors[tensor->alias_of].name);
        list[count++] = i;
    }
    *ret_aliases = (struct aliases){.list = rf_take(list, NULL), .count = count};
    return RF_OK;
}

/* A run of a rank's tensors that becomes one file. */
struct shard {
    uint32_t rank;
    uint32_t from;
    uint32_t to;
    uint64_t bytes;
};

static uint32_t cut_shards(const struct manifest_rank *rank, uint64_t shard_bytes,
                           struct shard *shards)
{
    uint32_t count = 1;

    shards[0] = (struct shard){.from = 0};
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        struct shard *last = &shards[count - 1];
        uint64_t bytes = rank->tensors[i].alias_of == MANIFEST_NONE ? rank->tensors[i].bytes : 0;

        if (last->bytes > 0 &&
            bytes > shard_bytes - (last->bytes < shard_bytes ? last->bytes : shard_bytes)) {
            shards[count++] = (struct shard){.from = i};
            last = &shards[count - 1];
        }
        last->bytes += bytes;
        last->to = i + 1;
    }
    return count;
}

/* "format" as Hugging Face's readers want it, and the aliases of the shard's tensors. */
static bool shard_metadata(const struct manifest_rank *rank, const struct aliases *aliases,
                           const struct shard *shard, struct arena *arena,
                           struct st_metadata *metadata, uint32_t *ret_count)
{
    bool ok = true;

    metadata[0] = (struct st_metadata){.key = "format", .value = "pt"};
    *ret_count = 1;
    for (uint32_t i = 0; i < aliases->count && ok; i++) {
        const struct tensor *tensor = &rank->tensors[aliases->list[i]];

        if (tensor->alias_of >= shard->from && tensor->alias_of < shard->to)
            ok = st_alias_entry(arena, tensor->name, tensor->name_bytes,
                                rank->tensors[tensor->alias_of].name, &metadata[(*ret_count)++]);
    }
    return ok;
}

static enum rf_code shard_header(const struct manifest_rank *rank, const struct aliases *aliases,
                                 const struct shard *shard, struct buf *header,
                                 struct rf_error *err)
{
    uint32_t count = 0;
    uint32_t metadata_count = 0;
    struct arena keys = {0};
    rf_autofree struct st_tensor *tensors =
        calloc((size_t)(shard->to - shard->from) + 1, sizeof(*tensors));
    rf_autofree struct st_metadata *metadata =
        calloc((size_t)aliases->count + 1, sizeof(*metadata));

    if (tensors == NULL || metadata == NULL ||
        !shard_metadata(rank, aliases, shard, &keys, metadata, &metadata_count)) {
        arena_free(&keys);
        return rf_fail(err, RF_E_NOMEM, "no memory for a header of %" PRIu32 " tensors",
                       shard->to - shard->from);
    }
    for (uint32_t i = shard->from; i < shard->to; i++) {
        const struct tensor *tensor = &rank->tensors[i];

        /* As in Hugging Face's files: of tied tensors one is stored. */
        if (tensor->alias_of != MANIFEST_NONE)
            continue;
        tensors[count++] = (struct st_tensor){
            .name = tensor->name,
            .name_bytes = tensor->name_bytes,
            .dtype = tensor->dtype,
            .ndim = tensor->ndim,
            .shape = tensor->shape,
            .bytes = tensor->bytes,
        };
    }
    enum rf_code code = st_header_write(tensors, count, metadata, metadata_count, header, err);
    arena_free(&keys);
    return code;
}

static void shard_name(uint32_t index, uint32_t count, char out[FOLDER_INDEX_NAME_BYTES])
{
    if (count == 1)
        snprintf(out, FOLDER_INDEX_NAME_BYTES, "model.safetensors");
    else
        snprintf(out, FOLDER_INDEX_NAME_BYTES, "model-%05" PRIu32 "-of-%05" PRIu32 ".safetensors",
                 index + 1, count);
}

static enum rf_code write_shard(struct out *out, const struct aliases *aliases,
                                const struct shard *shard, const char *name, struct rf_error *err)
{
    const struct manifest_rank *rank = &out->manifest->ranks[shard->rank];
    BUF_AUTO struct buf header = {.data = NULL};
    uint64_t at;
    int fd = -1;
    enum rf_code code = shard_header(rank, aliases, shard, &header, err);

    if (code == RF_OK)
        code = put_file(out, name, header.bytes + shard->bytes, &header, &fd, err);
    at = header.bytes;
    for (uint32_t i = shard->from; code == RF_OK && i < shard->to; i++) {
        const struct tensor *tensor = &rank->tensors[i];
        struct fork_segment segment = {.stream_offset = tensor->stream_offset,
                                       .bytes = tensor->bytes,
                                       .fd = fd,
                                       .fd_offset = at};

        if (tensor->alias_of != MANIFEST_NONE || tensor->bytes == 0)
            continue;
        code = fork_dest_add(&out->dests[shard->rank], &segment, err);
        at += tensor->bytes;
    }
    return code;
}

static enum rf_code write_index(struct out *out, const struct shard *shards, uint32_t count,
                                struct rf_error *err)
{
    const struct manifest_rank *rank = &out->manifest->ranks[0];
    BUF_AUTO struct buf json = {.data = NULL};
    char name[FOLDER_INDEX_NAME_BYTES];
    const char *comma = "";
    int fd = -1;

    buf_printf(&json, "{\"metadata\":{\"total_size\":%" PRIu64 "},\"weight_map\":{",
               rank->stream_bytes);
    for (uint32_t i = 0; i < count; i++) {
        shard_name(i, count, name);
        for (uint32_t t = shards[i].from; t < shards[i].to; t++) {
            if (rank->tensors[t].alias_of != MANIFEST_NONE)
                continue;
            buf_printf(&json, "%s\n", comma);
            buf_json_string(&json, rank->tensors[t].name, rank->tensors[t].name_bytes);
            buf_printf(&json, ":\"%s\"", name);
            comma = ",";
        }
    }
    buf_printf(&json, "}}\n");
    if (json.failed)
        return rf_fail(err, RF_E_NOMEM, "no memory for the index of %" PRIu32 " tensors",
                       rank->tensor_count);
    return put_file(out, "model.safetensors.index.json", json.bytes, &json, &fd, err);
}

static enum rf_code put_side_files(struct out *out, struct rf_error *err)
{
    const struct manifest *manifest = out->manifest;
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; code == RF_OK && i < manifest->file_count; i++) {
        BUF_AUTO struct buf content = {.data = NULL};
        int fd = -1;

        code = remote_fetch_file(out->remote, i, &content, err);
        if (code == RF_OK)
            code = put_file(out, manifest->files[i].name, manifest->files[i].bytes, &content, &fd,
                            err);
    }
    return code;
}

/* Ranks that nobody can put together again: a file for each. */
static enum rf_code prepare_ranks(struct out *out, struct rf_error *err)
{
    const struct manifest *manifest = out->manifest;
    enum rf_code code = RF_OK;
    char name[FOLDER_INDEX_NAME_BYTES];

    for (uint32_t i = 0; code == RF_OK && i < manifest->rank_count; i++) {
        struct shard shard;
        struct aliases aliases = {.count = 0};

        (void)cut_shards(&manifest->ranks[i], UINT64_MAX, &shard);
        shard.rank = i;
        snprintf(name, sizeof(name), "model-rank-%05" PRIu32 "-of-%05" PRIu32 ".safetensors",
                 manifest->ranks[i].id.tp, manifest->ranks[i].id.tp_size);
        code = find_aliases(&manifest->ranks[i], &aliases, err);
        if (code == RF_OK)
            code = write_shard(out, &aliases, &shard, name, err);
        free(aliases.list);
    }
    return code == RF_OK ? put_side_files(out, err) : code;
}

static enum rf_code prepare_new(struct out *out, uint64_t shard_bytes, struct rf_error *err)
{
    const struct manifest *manifest = out->manifest;
    rf_autofree struct shard *shards =
        calloc((size_t)manifest->ranks[0].tensor_count + 1, sizeof(*shards));
    enum rf_code code = RF_OK;
    char name[FOLDER_INDEX_NAME_BYTES];

    struct aliases aliases = {.count = 0};

    if (shards == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to plan the files");
    code = find_aliases(&manifest->ranks[0], &aliases, err);
    if (code != RF_OK)
        return code;
    uint32_t count = cut_shards(&manifest->ranks[0],
                                shard_bytes > 0 ? shard_bytes : FOLDER_DEFAULT_SHARD_BYTES, shards);
    for (uint32_t i = 0; code == RF_OK && i < count; i++) {
        shard_name(i, count, name);
        code = write_shard(out, &aliases, &shards[i], name, err);
    }
    free(aliases.list);
    if (code == RF_OK && count > 1)
        code = write_index(out, shards, count, err);
    return code == RF_OK ? put_side_files(out, err) : code;
}

/* ---- all of it ---- */

static bool has_weight_files(const struct manifest *manifest)
{
    return manifest->file_count > 0 && manifest->files[0].kind == FILE_WEIGHTS;
}

bool remote_folder_is_plain(const struct remote *remote)
{
    const struct manifest *manifest = remote->manifest;

    return manifest->source_count == 0 &&
           (manifest->rank_count == 1 || manifest->stage == STAGE_PROCESSED);
}

static enum rf_code prepare(struct out *out, const struct remote_folder_options *folder,
                            struct rf_error *err)
{
    if (has_weight_files(out->manifest))
        return prepare_files(out, err);
    if (out->manifest->rank_count > 1)
        return prepare_ranks(out, err);
    return prepare_new(out, folder->shard_bytes, err);
}

static enum rf_code transfer(struct out *out, struct remote_result *result, struct rf_error *err)
{
    for (uint32_t i = 0; i < out->manifest->rank_count; i++) {
        enum rf_code code =
            fork_dest_finish(&out->dests[i], out->manifest->ranks[i].stream_bytes, err);

        if (code != RF_OK)
            return code;
    }
    return out->reshard != NULL ? remote_reshard_dests(out->reshard, &out->dests[0], 1, result, err)
                                : remote_fork_dests(out->remote, out->dests, result, err);
}

enum rf_code remote_write_folder(struct remote *remote, struct remote_reshard *reshard,
                                 const struct remote_folder_options *folder,
                                 struct remote_result *ret_result, struct rf_error *err)
{
    struct out out = {
        .remote = remote,
        .reshard = reshard,
        .manifest = reshard != NULL ? remote_reshard_manifest(reshard) : remote->manifest,
    };
    rf_autofree struct fork_dest *dests =
        calloc((size_t)out.manifest->rank_count + 1, sizeof(*dests));
    struct remote_result result = {.bytes = 0};

    if (dests == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a folder");
    out.dests = dests;
    remote_say_verified(&remote, 1, &result);
    enum rf_code code = folder_writer_create(folder->path, &out.writer, err);
    if (code == RF_OK)
        code = prepare(&out, folder, err);
    if (code == RF_OK)
        code = transfer(&out, &result, err);
    if (code == RF_OK)
        code = folder_writer_commit(out.writer, folder->durable, err);
    folder_writer_destroy(out.writer);
    for (uint32_t i = 0; i < out.manifest->rank_count; i++)
        fork_dest_free(&dests[i]);
    if (code == RF_OK) {
        result.seconds = clock_seconds(remote->opened_ns, clock_now_ns());
        *ret_result = result;
    }
    return code;
}

enum rf_code remote_fork_folder(struct remote *remote, const struct remote_folder_options *folder,
                                struct remote_result *ret_result, struct rf_error *err)
{
    struct remote_reshard *whole = NULL;

    if (remote_folder_is_plain(remote))
        return remote_write_folder(remote, NULL, folder, ret_result, err);
    enum rf_code code = remote_reshard_whole(&remote, 1, &whole, err);
    if (code == RF_OK)
        code = remote_write_folder(remote, whole, folder, ret_result, err);
    remote_reshard_destroy(whole);
    return code;
}
