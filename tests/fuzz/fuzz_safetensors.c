/* Two bytes, little-endian: how many bytes of data follow the header; the rest: the header's
 * JSON. What is accepted must keep the promises of safetensors.h and survive being written and
 * read again. */
#include "base/json_scan.h"
#include "format/safetensors.h"

#include <stdlib.h>
#include <string.h>

static void require(bool holds)
{
    if (!holds)
        abort();
}

static void check_tensors(const struct st_header *header)
{
    uint64_t end = 0;

    for (uint32_t i = 0; i < header->tensor_count; i++) {
        const struct st_tensor *tensor = &header->tensors[i];

        require(tensor->offset == end);
        end += tensor->bytes;
        require(strlen(tensor->name) == tensor->name_bytes);
        require(json_utf8_ok(tensor->name, tensor->name_bytes));
        require(tensor->ndim <= RF_MAX_DIMS && (unsigned)tensor->dtype < RF_DTYPE_COUNT);
        for (uint32_t dim = 0; dim < tensor->ndim; dim++)
            require(tensor->shape[dim] != 0 || tensor->bytes == 0);
    }
    require(end == header->data_bytes);
}

static void check_metadata(const struct st_header *header)
{
    for (uint32_t i = 0; i < header->metadata_count; i++) {
        const struct st_metadata *item = &header->metadata[i];

        require(item->key[item->key_bytes] == '\0' && item->value[item->value_bytes] == '\0');
        require(json_utf8_ok(item->key, item->key_bytes));
        require(json_utf8_ok(item->value, item->value_bytes));
    }
}

static void check_same(const struct st_header *a, const struct st_header *b)
{
    require(a->tensor_count == b->tensor_count && a->metadata_count == b->metadata_count);
    for (uint32_t i = 0; i < a->tensor_count; i++) {
        const struct st_tensor *left = &a->tensors[i];
        const struct st_tensor *right = &b->tensors[i];

        require(strcmp(left->name, right->name) == 0 && left->dtype == right->dtype);
        require(left->offset == right->offset && left->bytes == right->bytes);
        require(left->ndim == right->ndim &&
                memcmp(left->shape, right->shape, left->ndim * sizeof(*left->shape)) == 0);
    }
    for (uint32_t i = 0; i < a->metadata_count; i++) {
        const struct st_metadata *left = &a->metadata[i];
        const struct st_metadata *right = &b->metadata[i];

        require(left->key_bytes == right->key_bytes && left->value_bytes == right->value_bytes);
        require(memcmp(left->value, right->value, left->value_bytes) == 0);
    }
}

static void check_written(const struct st_header *header)
{
    struct buf out BUF_AUTO = {.data = NULL};
    struct st_header again;

    require(st_header_write(header->tensors, header->tensor_count, header->metadata,
                            header->metadata_count, &out, NULL) == RF_OK);
    require(out.bytes % 8 == 0);
    require(st_header_parse("again", out.data + 8, out.bytes - 8, out.bytes + header->data_bytes,
                            &again, NULL) == RF_OK);
    check_same(header, &again);
    st_header_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rf_error err = {.code = RF_OK};
    struct st_header header;

    if (size < 2)
        return 0;
    uint64_t data_bytes = (uint64_t)data[0] | (uint64_t)data[1] << 8;
    enum rf_code code =
        st_header_parse("file", data + 2, size - 2, 8 + size - 2 + data_bytes, &header, &err);
    if (code != RF_OK) {
        require(code == RF_E_FORMAT && err.code == code && err.text[0] != '\0');
        return 0;
    }
    check_tensors(&header);
    check_metadata(&header);
    check_written(&header);
    st_header_free(&header);
    return 0;
}
