/* Sources, and the parts of them that a rank's tensors are made of. */
#include "base/dtype.h"
#include "model/convert.h"
#include "model/manifest_internal.h"

#include <assert.h>
#include <inttypes.h>

/* ---- where a part lies ---- */

bool part_shape_of(const struct manifest_source *source, const struct part *part,
                   struct part_shape *ret_shape)
{
    uint64_t n = source->ndim > 0 ? source->shape[part->axis] : 1;
    uint64_t outer = 1;
    uint64_t bits = rf_dtype_bits(source->dtype);

    /* No bytes at all, or all of them: whatever the dimensions are, which then may not multiply. */
    if (source->bytes == 0 || (part->start == 0 && part->count == n)) {
        *ret_shape =
            (struct part_shape){.outer = 1, .n = 1, .inner = source->bytes, .start = 0, .count = 1};
        return true;
    }
    for (uint32_t i = 0; i < part->axis; i++)
        outer *= source->shape[i]; /* no zero among them: at most the source's 2^63 bits */
    for (uint32_t i = part->axis + 1; i < source->ndim; i++)
        bits *= source->shape[i];
    *ret_shape = (struct part_shape){
        .outer = outer, .n = n, .inner = bits / 8, .start = part->start, .count = part->count};
    return bits % 8 == 0;
}

struct stream_range part_range(const struct manifest *manifest, const struct part *part)
{
    struct part_shape shape;

    assert(part->source != MANIFEST_NONE);
    part_shape_of(&manifest->sources[part->source], part, &shape);
    return (struct stream_range){
        .offset = shape.start * shape.inner,
        .bytes = shape.count * shape.inner,
        .stride = shape.outer > 1 ? shape.n * shape.inner : 0,
        .count = shape.outer,
    };
}

bool part_converts(const struct manifest *manifest, const struct tensor *tensor,
                   const struct part *part)
{
    return part->source != MANIFEST_NONE && manifest->sources[part->source].dtype != tensor->dtype;
}

void part_fill(const struct part *part, void *dst, uint64_t bytes)
{
    uint8_t element[8];
    uint8_t *out = dst;

    assert(part->source == MANIFEST_NONE && part->axis <= sizeof element);
    if (part->axis == 0) {
        memset(out, 0, bytes);
        return;
    }
    wire_put_uint(element, part->start, sizeof element);
    for (uint64_t i = 0; i < bytes; i++)
        out[i] = element[i % part->axis];
}

/* ---- checking ---- */

enum rf_code source_check(const struct manifest *manifest, struct manifest_source *source,
                          enum rf_code code, struct rf_error *err)
{
    /* A source is a tensor that is nowhere but in a file: what holds for one holds for the
     * other. */
    struct tensor as_tensor = {
        .name = source->name,
        .name_bytes = source->name_bytes,
        .dtype = source->dtype,
        .ndim = source->ndim,
        .shape = source->shape,
        .global_shape = source->shape,
        .file = source->file,
        .file_offset = source->file_offset,
        .alias_of = MANIFEST_NONE,
    };
    enum rf_code bad = tensor_check(manifest, &as_tensor, code, err);

    if (bad != RF_OK)
        return rf_error_wrap(err, bad, "source");
    source->bytes = as_tensor.bytes;
    return RF_OK;
}

static enum rf_code part_fail(const struct tensor *tensor, uint32_t index, enum rf_code code,
                              struct rf_error *err, const char *why, const char *source)
{
    return rf_fail(err, code, "tensor %.*s: part %" PRIu32 " of %" PRIu32 ": %s%.*s",
                   MANIFEST_SHOWN_NAME, tensor->name, index, tensor->part_count, why,
                   MANIFEST_SHOWN_NAME, source);
}

/* Zeros are said in one way only. */
static bool constant_ok(const struct part *part)
{
    if (part->axis == 0)
        return part->start == 0;
    return part->axis <= 8 && part->start != 0 && part->count % part->axis == 0 &&
           (part->axis == 8 || part->start >> (8 * part->axis) == 0);
}

/* Fills part->bytes. */
static enum rf_code part_check(const struct manifest *manifest, const struct tensor *tensor,
                               uint32_t index, struct part *part, enum rf_code code,
                               struct rf_error *err)
{
    struct part_shape shape;
    uint64_t end;

    if (part->source == MANIFEST_NONE) {
        part->bytes = part->count;
        if (!constant_ok(part))
            return part_fail(
                tensor, index, code, err,
                "no constant: elements of 1 to 8 bytes that are not all zero, or zeros", "");
        return RF_OK;
    }
    if (part->source >= manifest->source_count)
        return part_fail(tensor, index, code, err, "of a source that is not there", "");

    const struct manifest_source *source = &manifest->sources[part->source];
    uint64_t n = source->ndim == 0 ? 1 : 0;
    if (part->axis < source->ndim)
        n = source->shape[part->axis];
    else if (part->axis > 0 || source->ndim > 0)
        return part_fail(tensor, index, code, err, "along an axis that is not there in ",
                         source->name);
    if (__builtin_add_overflow(part->start, part->count, &end) || end > n)
        return rf_fail(err, code,
                       "tensor %.*s: part %" PRIu32 ": %" PRIu64 " elements from %" PRIu64
                       " on of axis %" PRIu32 " are not inside the %" PRIu64 " of %.*s",
                       MANIFEST_SHOWN_NAME, tensor->name, index, part->count, part->start,
                       part->axis, n, MANIFEST_SHOWN_NAME, source->name);
    if (!part_shape_of(source, part, &shape))
        return part_fail(tensor, index, code, err, "elements that are not whole bytes, of ",
                         source->name);
    /* No product is larger than the source. */
    part->bytes = shape.outer * shape.count * shape.inner;
    if (source->dtype == tensor->dtype)
        return RF_OK;
    if (!convert_known(source->dtype, tensor->dtype) ||
        rf_dtype_bits(source->dtype) > rf_dtype_bits(tensor->dtype))
        return rf_fail(err, code, "tensor %.*s: part %" PRIu32 ": %s is not made of %.*s, %s",
                       MANIFEST_SHOWN_NAME, tensor->name, index, rf_dtype_name(tensor->dtype),
                       MANIFEST_SHOWN_NAME, source->name, rf_dtype_name(source->dtype));
    part->bytes = convert_bytes(source->dtype, part->bytes, tensor->dtype);
    return RF_OK;
}

enum rf_code parts_check(const struct manifest *manifest, const struct tensor *tensor,
                         struct part *parts, enum rf_code code, struct rf_error *err)
{
    uint64_t offset = 0;

    if (tensor->part_count > 0 &&
        (tensor->alias_of != MANIFEST_NONE || tensor->file != MANIFEST_NONE))
        return rf_fail(err, code,
                       "tensor %.*s: has parts, and is an alias or in a file; it can be one only",
                       MANIFEST_SHOWN_NAME, tensor->name);
    for (uint32_t i = 0; i < tensor->part_count; i++) {
        enum rf_code bad = part_check(manifest, tensor, i, &parts[i], code, err);

        if (bad != RF_OK)
            return bad;
        /* Nothing can be said in two ways: only a tensor without bytes has a part without. */
        if (parts[i].bytes == 0 && (tensor->bytes > 0 || tensor->part_count > 1))
            return part_fail(tensor, i, code, err, "has no bytes", "");
        parts[i].offset = offset;
        if (__builtin_add_overflow(offset, parts[i].bytes, &offset) || offset > tensor->bytes)
            break;
    }
    if (tensor->part_count > 0 && offset != tensor->bytes)
        return rf_fail(err, code,
                       "tensor %.*s: its %" PRIu32 " parts are %s %" PRIu64
                       " bytes of its %" PRIu64,
                       MANIFEST_SHOWN_NAME, tensor->name, tensor->part_count,
                       offset > tensor->bytes ? "more than it has room for, at" : "only", offset,
                       tensor->bytes);
    return RF_OK;
}
