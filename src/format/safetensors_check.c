#include "format/safetensors_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum rf_code st_check_length(const char *name, uint64_t json_bytes, uint64_t file_bytes,
                             struct rf_error *err)
{
    if (json_bytes > ST_MAX_HEADER_BYTES) {
        return rf_fail(err, RF_E_FORMAT,
                       "%s: not a safetensors file: its first 8 bytes give a header of %" PRIu64
                       " bytes, more than %d",
                       name, json_bytes, ST_MAX_HEADER_BYTES);
    }
    if (file_bytes < ST_LENGTH_BYTES + json_bytes) {
        return rf_fail(err, RF_E_FORMAT,
                       "%s: the file is truncated: %" PRIu64
                       " bytes, its header alone needs %" PRIu64 "; copy or download it again",
                       name, file_bytes, ST_LENGTH_BYTES + json_bytes);
    }
    return RF_OK;
}

/* By offset, then by end: so do tensors of no bytes come before the one that starts where they
 * are. */
static int compare_tensors(const void *left, const void *right)
{
    const struct st_tensor *a = left;
    const struct st_tensor *b = right;

    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    return strcmp(a->name, b->name);
}

static void sort_tensors(struct st_header *header)
{
    /* Nearly every writer lays tensors out in the order in which it lists them. */
    for (uint32_t i = 1; i < header->tensor_count; i++) {
        if (compare_tensors(&header->tensors[i - 1], &header->tensors[i]) > 0) {
            qsort(header->tensors, header->tensor_count, sizeof(*header->tensors), compare_tensors);
            return;
        }
    }
}

enum rf_code st_check_names(const char *name, const struct st_tensor *tensors, uint32_t count,
                            enum rf_code bad_code, struct rf_error *err)
{
    struct strmap *names = strmap_create(count);
    enum rf_code code = names == NULL ? RF_E_NOMEM : RF_OK;
    uint32_t i = 0;

    for (; i < count && code == RF_OK; i++)
        code = strmap_add(names, tensors[i].name, tensors[i].name_bytes, i, NULL);
    strmap_destroy(names);
    if (code == RF_E_NOMEM)
        return rf_fail(err, code, "%s: out of memory for the names of %" PRIu32 " tensors", name,
                       count);
    if (code != RF_OK) {
        return rf_fail(err, bad_code,
                       "%s: tensor \"" ST_NAME_FMT
                       "\": the name is there twice; names must be unique",
                       name, tensors[i - 1].name);
    }
    return RF_OK;
}

/* "[2, 3]", cut where it does not fit. */
static const char *shape_text(const struct st_tensor *tensor, char *out, size_t room)
{
    size_t at = (size_t)snprintf(out, room, "[");

    for (uint32_t i = 0; i < tensor->ndim && at < room; i++)
        at += (size_t)snprintf(out + at, room - at, "%s%" PRIu64, i > 0 ? ", " : "",
                               tensor->shape[i]);
    if (at < room)
        snprintf(out + at, room - at, "]");
    return out;
}

enum rf_code st_check_shape(const char *name, const struct st_tensor *tensor, enum rf_code bad_code,
                            uint64_t *ret_bytes, struct rf_error *err)
{
    uint64_t bits = 1;
    bool overflow = false;
    char shape[128];

    for (uint32_t i = 0; i < tensor->ndim; i++)
        overflow |= __builtin_mul_overflow(bits, tensor->shape[i], &bits);
    overflow |= __builtin_mul_overflow(bits, (uint64_t)rf_dtype_bits(tensor->dtype), &bits);
    if (overflow) {
        return rf_fail(err, bad_code,
                       "%s: tensor \"" ST_NAME_FMT
                       "\": shape %s of %s has more than 2^64 bits; the "
                       "file is damaged: copy or download it again",
                       name, tensor->name, shape_text(tensor, shape, sizeof(shape)),
                       rf_dtype_name(tensor->dtype));
    }
    if (bits % 8 != 0) {
        return rf_fail(err, bad_code,
                       "%s: tensor \"" ST_NAME_FMT "\": shape %s of %s is %" PRIu64
                       " bits, not whole bytes",
                       name, tensor->name, shape_text(tensor, shape, sizeof(shape)),
                       rf_dtype_name(tensor->dtype), bits);
    }
    *ret_bytes = bits / 8;
    return RF_OK;
}

static enum rf_code check_bytes(const char *name, const struct st_tensor *tensor,
                                struct rf_error *err)
{
    uint64_t wanted = 0;
    char shape[128];
    enum rf_code code = st_check_shape(name, tensor, RF_E_FORMAT, &wanted, err);

    if (code != RF_OK || wanted == tensor->bytes)
        return code;
    return rf_fail(err, RF_E_FORMAT,
                   "%s: tensor \"" ST_NAME_FMT "\": data offsets %" PRIu64 " to %" PRIu64
                   " are %" PRIu64 " bytes, but shape %s of %s needs %" PRIu64
                   "; the file is damaged: copy or download it again",
                   name, tensor->name, tensor->offset, tensor->offset + tensor->bytes,
                   tensor->bytes, shape_text(tensor, shape, sizeof(shape)),
                   rf_dtype_name(tensor->dtype), wanted);
}

/* tensor does not start at `end`, where the one before it (NULL: none) ends. */
static enum rf_code fail_place(const char *name, const struct st_tensor *tensor,
                               const struct st_tensor *before, uint64_t end, struct rf_error *err)
{
    if (before == NULL) {
        return rf_fail(err, RF_E_FORMAT,
                       "%s: tensor \"" ST_NAME_FMT "\": the first one starts at byte %" PRIu64
                       " of the data, not at 0; write the file again without holes",
                       name, tensor->name, tensor->offset);
    }
    if (tensor->offset > end) {
        return rf_fail(err, RF_E_FORMAT,
                       "%s: tensor \"%.80s\": starts at byte %" PRIu64
                       " of the data, but \"%.80s\" before it ends at %" PRIu64
                       "; write the file again without holes",
                       name, tensor->name, tensor->offset, before->name, end);
    }
    return rf_fail(err, RF_E_FORMAT,
                   "%s: tensor \"%.80s\": bytes %" PRIu64 " to %" PRIu64
                   " of the data overlap \"%.80s\", bytes %" PRIu64 " to %" PRIu64
                   "; write the file again, each tensor with its own bytes",
                   name, tensor->name, tensor->offset, tensor->offset + tensor->bytes, before->name,
                   before->offset, before->offset + before->bytes);
}

enum rf_code st_check(const char *name, struct st_header *header, struct rf_error *err)
{
    const struct st_tensor *before = NULL;
    uint64_t end = 0;
    enum rf_code code =
        st_check_names(name, header->tensors, header->tensor_count, RF_E_FORMAT, err);

    if (code != RF_OK)
        return code;
    sort_tensors(header);
    for (uint32_t i = 0; i < header->tensor_count; i++) {
        const struct st_tensor *tensor = &header->tensors[i];

        if (tensor->offset != end)
            return fail_place(name, tensor, before, end, err);
        code = check_bytes(name, tensor, err);
        if (code != RF_OK)
            return code;
        end = tensor->offset + tensor->bytes; /* both came from one end offset: cannot wrap */
        before = tensor;
    }
    if (end == header->data_bytes)
        return RF_OK;
    uint64_t have = header->data_offset + header->data_bytes;
    if (end < header->data_bytes) {
        return rf_fail(err, RF_E_FORMAT,
                       "%s: %" PRIu64 " bytes at the end belong to no tensor: the file has %" PRIu64
                       " bytes, its header says %" PRIu64 "; copy or download it again",
                       name, header->data_bytes - end, have, header->data_offset + end);
    }
    uint64_t need = 0;
    if (__builtin_add_overflow(header->data_offset, end, &need))
        need = UINT64_MAX;
    return rf_fail(err, RF_E_FORMAT,
                   "%s: the file is truncated: %" PRIu64 " bytes, its header says %" PRIu64
                   "; copy or download it again",
                   name, have, need);
}
