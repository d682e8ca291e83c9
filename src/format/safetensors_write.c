#include "base/json_scan.h"
#include "format/safetensors_check.h"

#include <endian.h>
#include <inttypes.h>
#include <string.h>

enum { ST_ALIGN = 8 };

static const char what[] = "new safetensors file";

/* Whether the name, dtype and number of dimensions can be written at all. */
static bool is_writable(const struct st_tensor *tensor)
{
    return tensor->ndim <= RF_MAX_DIMS && (unsigned)tensor->dtype < RF_DTYPE_COUNT &&
           tensor->name_bytes <= RF_MAX_NAME_BYTES &&
           memchr(tensor->name, '\0', tensor->name_bytes) == NULL &&
           strcmp(tensor->name, "__metadata__") != 0 &&
           json_utf8_ok(tensor->name, tensor->name_bytes);
}

static enum rf_code check_tensor(const struct st_tensor *tensor, struct rf_error *err)
{
    uint64_t bytes = 0;

    if (!is_writable(tensor)) {
        return rf_fail(err, RF_E_INVAL,
                       "%s: tensor \"" ST_NAME_FMT "\": this name, dtype (%d) or number of "
                       "dimensions (%" PRIu32 ") cannot be in a safetensors file",
                       what, tensor->name, (int)tensor->dtype, tensor->ndim);
    }
    enum rf_code code = st_check_shape(what, tensor, RF_E_INVAL, &bytes, err);
    if (code == RF_OK && bytes != tensor->bytes) {
        return rf_fail(err, RF_E_INVAL,
                       "%s: tensor \"" ST_NAME_FMT "\": %" PRIu64
                       " bytes given, its shape needs %" PRIu64,
                       what, tensor->name, tensor->bytes, bytes);
    }
    return code;
}

static void put_metadata(struct buf *out, const struct st_metadata *metadata, uint32_t count)
{
    buf_append(out, "\"__metadata__\":{", 16);
    for (uint32_t i = 0; i < count; i++) {
        const struct st_metadata *item = &metadata[i];

        if (i > 0)
            buf_append(out, ",", 1);
        buf_json_string(out, item->key, item->key_bytes > 0 ? item->key_bytes : strlen(item->key));
        buf_append(out, ":", 1);
        buf_json_string(out, item->value,
                        item->value_bytes > 0 ? item->value_bytes : strlen(item->value));
    }
    buf_append(out, "}", 1);
}

static void put_tensor(struct buf *out, const struct st_tensor *tensor, uint64_t begin,
                       uint64_t end)
{
    buf_json_string(out, tensor->name, tensor->name_bytes);
    buf_printf(out, ":{\"dtype\":\"%s\",\"shape\":[", rf_dtype_name(tensor->dtype));
    for (uint32_t i = 0; i < tensor->ndim; i++)
        buf_printf(out, "%s%" PRIu64, i > 0 ? "," : "", tensor->shape[i]);
    buf_printf(out, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", begin, end);
}

static enum rf_code put_tensors(struct buf *out, const struct st_tensor *tensors, uint32_t count,
                                bool comma, struct rf_error *err)
{
    uint64_t end = 0;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t begin = end;
        enum rf_code code = check_tensor(&tensors[i], err);

        if (code != RF_OK)
            return code;
        if (__builtin_add_overflow(end, tensors[i].bytes, &end))
            return rf_fail(err, RF_E_INVAL, "%s: more than 2^64 bytes of tensors", what);
        if (i > 0 || comma)
            buf_append(out, ",", 1);
        put_tensor(out, &tensors[i], begin, end);
    }
    return RF_OK;
}

enum rf_code st_header_write(const struct st_tensor *tensors, uint32_t count,
                             const struct st_metadata *metadata, uint32_t metadata_count,
                             struct buf *out, struct rf_error *err)
{
    struct buf json BUF_AUTO = {.data = NULL};
    enum rf_code code = st_check_names(what, tensors, count, RF_E_INVAL, err);

    if (code != RF_OK)
        return code;
    buf_append(&json, "{", 1);
    if (metadata_count > 0)
        put_metadata(&json, metadata, metadata_count);
    code = put_tensors(&json, tensors, count, metadata_count > 0, err);
    if (code != RF_OK)
        return code;
    buf_append(&json, "}", 1);
    while (!json.failed && json.bytes % ST_ALIGN != 0)
        buf_append(&json, " ", 1);
    if (!json.failed && json.bytes > ST_MAX_HEADER_BYTES) {
        return rf_fail(err, RF_E_INVAL,
                       "%s: the header of %" PRIu32 " tensors has %zu bytes, more than %d; use "
                       "several files",
                       what, count, json.bytes, ST_MAX_HEADER_BYTES);
    }
    uint64_t length = htole64(json.bytes);
    if (!json.failed) {
        buf_append(out, &length, sizeof(length));
        buf_append(out, json.data, json.bytes);
    }
    if (json.failed || out->failed)
        return rf_fail(err, RF_E_NOMEM, "%s: out of memory for its header", what);
    return RF_OK;
}
