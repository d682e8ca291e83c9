/* Bytes: files, tensors, and whole ranks as safetensors files. */
#include "control/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { DATA_NAMES_SHOWN = 6 };

/* What follows the route's prefix. */
static const char *name_after(const struct request *request, const char *prefix)
{
    return request->target.path + strlen(prefix);
}

/* ---- files ---- */

static const char *kind_name(const struct manifest_file *file)
{
    return file->kind == FILE_WEIGHTS ? "weights" : "side";
}

void route_file_list(struct request *request, struct reply *reply)
{
    struct store *store = route_store(request, reply);
    struct buf json = {0};
    char text[HASH_TEXT_BYTES];

    if (store == NULL)
        return;
    const struct manifest *manifest = store->manifest;
    buf_printf(&json, "{\"files\":[");
    for (uint32_t i = 0; i < manifest->file_count; i++) {
        const struct manifest_file *file = &manifest->files[i];
        buf_printf(&json, "%s{\"name\":", i > 0 ? "," : "");
        buf_json_string(&json, file->name, strlen(file->name));
        buf_printf(&json, ",\"kind\":\"%s\",\"bytes\":%" PRIu64, kind_name(file), file->bytes);
        if (file->kind == FILE_WEIGHTS)
            buf_printf(&json, ",\"header_bytes\":%" PRIu64, file->header_bytes);
        buf_printf(&json, ",\"%s\":\"%s\"}",
                   file->kind == FILE_WEIGHTS ? "header_digest" : "digest",
                   hash_text(manifest->algorithm, file->digest, text));
    }
    buf_printf(&json, "]}");
    reply_json(request, reply, MHD_HTTP_OK, &json);
}

static void reply_no_file(struct request *request, struct reply *reply,
                          const struct manifest *manifest, const char *name)
{
    struct buf names = {0};

    for (uint32_t i = 0; i < manifest->file_count && i < DATA_NAMES_SHOWN; i++)
        buf_printf(&names, " %.60s", manifest->files[i].name);
    if (manifest->file_count > DATA_NAMES_SHOWN)
        buf_printf(&names, " and %" PRIu32 " more (GET /v1/files)",
                   manifest->file_count - DATA_NAMES_SHOWN);
    reply_status(request, reply, MHD_HTTP_NOT_FOUND, RF_E_INVAL, "no file %.100s: there are%s",
                 name, names.bytes > 0 && !names.failed ? (const char *)names.data : " none");
    buf_free(&names);
}

void route_file(struct request *request, struct reply *reply)
{
    const char *name = name_after(request, "/v1/files/");
    struct store *store = route_store_for_bytes(request, reply, true);
    char text[HASH_TEXT_BYTES];
    char etag[HASH_TEXT_BYTES + 2];
    uint32_t index = 0;

    if (store == NULL)
        return;
    const struct manifest *manifest = store->manifest;
    while (index < manifest->file_count && strcmp(manifest->files[index].name, name) != 0)
        index++;
    if (index == manifest->file_count) {
        reply_no_file(request, reply, manifest, name);
        return;
    }
    const struct manifest_file *file = &manifest->files[index];
    size_t bytes = strlen(name);
    bool json = bytes > 5 && strcmp(name + bytes - 5, ".json") == 0;
    struct body_source source = {
        .kind = BODY_FILE,
        .index = index,
        .bytes = file->bytes,
        .type = json ? "application/json" : "application/octet-stream",
    };
    /* Of a weight file only the header's digest is known. */
    if (file->kind == FILE_SIDE) {
        snprintf(etag, sizeof etag, "\"%s\"", hash_text(manifest->algorithm, file->digest, text));
        source.etag = etag;
    }
    reply_body(request, reply, &source);
}

/* ---- tensors ---- */

/* The names between which it would be. */
static void reply_no_tensor(struct request *request, struct reply *reply,
                            const struct manifest_rank *rank, uint32_t index, const char *name)
{
    uint32_t low = 0;
    uint32_t high = rank->tensor_count;
    char near[256] = "";

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (strcmp(rank->tensors[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low > 0)
        snprintf(near, sizeof near, " %.100s", rank->tensors[low - 1].name);
    size_t used = strlen(near);
    if (low < rank->tensor_count)
        snprintf(near + used, sizeof near - used, " %.100s", rank->tensors[low].name);
    reply_status(request, reply, MHD_HTTP_NOT_FOUND, RF_E_INVAL,
                 "no tensor %.100s in rank %" PRIu32 ", which has %" PRIu32 "; nearest:%s", name,
                 index, rank->tensor_count, near[0] != '\0' ? near : " none");
}

static void tensor_headers(struct reply *reply, const struct tensor *tensor)
{
    struct buf shape = {0};

    buf_printf(&shape, "[");
    for (uint32_t i = 0; i < tensor->ndim; i++)
        buf_printf(&shape, "%s%" PRIu64, i > 0 ? "," : "", tensor->shape[i]);
    buf_printf(&shape, "]");
    reply_header(reply, "X-Rfork-Dtype", rf_dtype_name(tensor->dtype));
    if (!shape.failed)
        reply_header(reply, "X-Rfork-Shape", (const char *)shape.data);
    buf_free(&shape);
}

void route_tensor(struct request *request, struct reply *reply)
{
    const char *name = name_after(request, "/v1/tensors/");
    struct store *store = route_store_for_bytes(request, reply, false);
    struct rf_error err = {.code = RF_OK};
    uint32_t index = 0;

    if (store == NULL)
        return;
    if (route_rank_argument(request, store, &index, &err) != RF_OK) {
        reply_error(request, reply, &err);
        return;
    }
    const struct manifest_rank *rank = &store->manifest->ranks[index];
    const struct tensor *tensor = manifest_find(rank, name);
    if (tensor == NULL) {
        reply_no_tensor(request, reply, rank, index, name);
        return;
    }
    const struct body_source source = {
        .kind = BODY_STREAM,
        .index = index,
        .offset = tensor->stream_offset,
        .bytes = tensor->bytes,
        .type = "application/octet-stream",
    };
    reply_body(request, reply, &source);
    tensor_headers(reply, tensor);
}

/* ---- ranks ---- */

void route_rank(struct request *request, struct reply *reply)
{
    static const char ending[] = ".safetensors";
    const char *name = name_after(request, "/v1/ranks/");
    struct store *store = route_store_for_bytes(request, reply, false);
    struct rf_error err = {.code = RF_OK};
    uint64_t index = 0;
    uint64_t bytes = 0;

    if (store == NULL)
        return;
    uint32_t count = store->manifest->rank_count;
    const char *dot = strchr(name, '.');
    if (dot == NULL || strcmp(dot, ending) != 0 ||
        !target_digits(name, (size_t)(dot - name), UINT32_MAX, &index) || index >= count) {
        reply_status(request, reply, MHD_HTTP_NOT_FOUND, RF_E_INVAL,
                     "no /v1/ranks/%.64s: there are 0.safetensors to %" PRIu32 ".safetensors", name,
                     count - 1);
        return;
    }
    struct blob *head = cache_rank_header(&request->server->cache, store, (uint32_t)index, &err);
    if (head == NULL) {
        reply_error(request, reply, &err);
        return;
    }
    if (__builtin_add_overflow(head->bytes.bytes, store->manifest->ranks[index].stream_bytes,
                               &bytes)) {
        blob_unref(head);
        reply_status(request, reply, MHD_HTTP_INTERNAL_SERVER_ERROR, RF_E_FAILED,
                     "rank %" PRIu64 " is too large for a file", index);
        return;
    }
    const struct body_source source = {
        .head = head,
        .kind = BODY_STREAM,
        .index = (uint32_t)index,
        .bytes = bytes,
        .type = "application/vnd.safetensors",
    };
    reply_body(request, reply, &source);
}
