/* One rank's tensors: the slices that the outputs of a layout are for it. */
#include "base/cleanup.h"
#include "model/convert.h"
#include "model/shard_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A tensor while it is put together. */
struct rank_tensor {
    const struct shard_output *output;
    enum rf_dtype dtype;
    uint32_t ndim;
    uint64_t shape[RF_MAX_DIMS];
    uint64_t global[RF_MAX_DIMS];
    uint64_t start[RF_MAX_DIMS];
    bool sliced;    /* global and start mean something */
    uint64_t bytes; /* of the parts so far */
};

struct rank_adding {
    const struct shard *shard;
    struct manifest_builder *builder;
    uint32_t tp;
    uint32_t ep;
    uint32_t ep_size;
    struct part *parts;
    uint32_t part_count;
    uint32_t part_room;
};

static enum rf_code part_add(struct rank_adding *adding, const struct part *part)
{
    if (adding->part_count == adding->part_room) {
        uint32_t wanted = adding->part_room == 0 ? 256 : adding->part_room * 2;
        struct part *grown = reallocarray(adding->parts, wanted, sizeof *grown);

        if (grown == NULL)
            return rf_fail(adding->shard->err, RF_E_NOMEM, "no memory for parts of a tensor");
        adding->parts = grown;
        adding->part_room = wanted;
    }
    adding->parts[adding->part_count++] = *part;
    return RF_OK;
}

/* Adds a slice of a source, and the zeros behind it, to the parts. */
static enum rf_code slice_add(struct rank_adding *adding, uint32_t source,
                              const struct shard_slice *slice, enum rf_dtype dtype)
{
    const struct manifest_source *of = &adding->shard->sources[source];
    uint64_t zero_bytes = slice->padding;
    enum rf_code code = RF_OK;

    /* Without bytes there is nothing to say, unless it is all there is. */
    if (slice->count > 0 && of->bytes > 0) {
        const struct part part = {
            .source = source, .axis = slice->axis, .start = slice->start, .count = slice->count};
        code = part_add(adding, &part);
    }
    if (code != RF_OK || zero_bytes == 0 || of->bytes == 0)
        return code;
    /* Only vocabularies are padded: along their first axis. */
    uint64_t row = convert_bytes(of->dtype, of->bytes / of->shape[0], dtype);
    if (__builtin_mul_overflow(zero_bytes, row, &zero_bytes))
        return rf_fail(adding->shard->err, RF_E_INVAL, "tensor %.*s: padded to over 2^64 bytes",
                       SHARD_SHOWN_NAME, of->name);
    return part_add(adding, &(struct part){.source = MANIFEST_NONE, .count = zero_bytes});
}

/* ---- what an element is ---- */

/* The dtype a layout gives a source's elements. */
static enum rf_code dtype_of(const struct rank_adding *adding, const struct shard_output *output,
                             uint32_t source, enum rf_dtype *ret_dtype)
{
    const struct shard *shard = adding->shard;
    enum rf_dtype from = shard->sources[source].dtype;
    enum rf_dtype to = from;
    bool floating = from == RF_DTYPE_F32 || from == RF_DTYPE_F16 || from == RF_DTYPE_BF16;

    if (output->dtype != PLAN_NONE)
        to = (enum rf_dtype)output->dtype;
    else if (shard->layout != NULL && shard->layout->model_dtype && floating)
        model_config_dtype(shard->request->config, &to);
    *ret_dtype = to;
    if (to == from || (convert_known(from, to) && rf_dtype_bits(from) < rf_dtype_bits(to)))
        return RF_OK;
    return rf_fail(shard->err, RF_E_FORMAT,
                   "tensor %.*s: %s in the checkpoint, but %s in layout %s: that would change it; "
                   "only BF16 and F16 become F32",
                   SHARD_SHOWN_NAME, shard->sources[source].name, rf_dtype_name(from),
                   rf_dtype_name(to), shard->request->layout);
}

/* What is laid end to end in a fused scale must be of whole blocks, but for the last. */
static enum rf_code blocks_check(const struct rank_adding *adding, uint32_t source)
{
    const struct shard *shard = adding->shard;
    const struct shard_source *bound = &shard->bound[source];
    struct shard_slice slice;

    if (bound->rule->kind != KIND_SCALE)
        return RF_OK;
    struct shard_place place = shard_place_of(shard, source, adding->tp);
    enum rf_code code = shard_slice(shard, bound->scaled, place, 0, &slice);
    if (code != RF_OK)
        return code;
    uint64_t rows = slice.axis == 0 ? slice.count : shard->sources[bound->scaled].shape[0];
    if (rows % shard->block[0] == 0)
        return RF_OK;
    return rf_fail(shard->err, RF_E_INVAL,
                   "tensor %.*s: %" PRIu64 " rows are not whole blocks of %" PRIu64
                   ", so that its scales cannot be fused with what follows",
                   SHARD_SHOWN_NAME, shard->sources[bound->scaled].name, rows, shard->block[0]);
}

static enum rf_code shapes_fail(const struct rank_adding *adding, const char *a, const char *b)
{
    return rf_fail(adding->shard->err, RF_E_FORMAT,
                   "tensors %.*s and %.*s: shapes or dtypes that do not go together in one tensor",
                   SHARD_SHOWN_NAME, a, SHARD_SHOWN_NAME, b);
}

/* One element: its sources' slices, laid end to end along their first axis. */
struct element {
    uint32_t ndim;
    uint64_t shape[RF_MAX_DIMS];
    enum rf_dtype dtype;
    struct shard_slice slice; /* of its only source */
};

static enum rf_code element_take(struct rank_adding *adding, const struct shard_output *output,
                                 uint32_t source, bool first, struct element *element)
{
    const struct shard *shard = adding->shard;
    const struct manifest_source *of = &shard->sources[source];
    struct shard_place place = shard_place_of(shard, source, adding->tp);
    struct shard_slice slice = {.axis = 0};
    enum rf_dtype dtype = RF_DTYPE_U8;
    enum rf_code code = shard_slice(shard, source, place, output->pad, &slice);

    if (code == RF_OK)
        code = dtype_of(adding, output, source, &dtype);
    if (code != RF_OK)
        return code;
    uint64_t shape[RF_MAX_DIMS];
    for (uint32_t i = 0; i < of->ndim; i++)
        shape[i] = i == slice.axis ? slice.count + slice.padding : of->shape[i];
    if (first) {
        *element = (struct element){.ndim = of->ndim, .dtype = dtype, .slice = slice};
        memcpy(element->shape, shape, of->ndim * sizeof *shape);
    } else {
        uint32_t one = shard->items[output->first_item];
        if (of->ndim == 0 || of->ndim != element->ndim || dtype != element->dtype ||
            memcmp(shape + 1, element->shape + 1, (of->ndim - 1) * sizeof *shape) != 0 ||
            __builtin_add_overflow(element->shape[0], shape[0], &element->shape[0]))
            return shapes_fail(adding, shard->sources[one].name, of->name);
    }
    return slice_add(adding, source, &slice, dtype);
}

static enum rf_code element_add(struct rank_adding *adding, const struct shard_output *output,
                                uint32_t first_item, struct element *element)
{
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < output->per_element && code == RF_OK; i++) {
        uint32_t source = adding->shard->items[first_item + i];

        code = element_take(adding, output, source, i == 0, element);
        if (code == RF_OK && i + 1 < output->per_element)
            code = blocks_check(adding, source);
    }
    return code;
}

/* ---- a tensor ---- */

static void tensor_begin(struct rank_tensor *tensor, const struct element *element, bool stacked)
{
    uint32_t at = stacked ? 1 : 0;

    tensor->dtype = element->dtype;
    tensor->ndim = element->ndim + at;
    memcpy(tensor->shape + at, element->shape, element->ndim * sizeof *element->shape);
    memcpy(tensor->global + at, element->shape, element->ndim * sizeof *element->shape);
    memset(tensor->start, 0, sizeof tensor->start);
    /* A slice of one source is a slice of what all ranks have of it; of a fused tensor there is no
     * whole that anybody knows. */
    tensor->sliced = tensor->output->per_element == 1;
    if (tensor->sliced && element->ndim > 0) {
        tensor->global[at + element->slice.axis] = element->slice.whole;
        tensor->start[at + element->slice.axis] = element->slice.first;
    }
}

static bool same_element(const struct element *a, const struct element *b)
{
    return a->ndim == b->ndim && a->dtype == b->dtype &&
           memcmp(a->shape, b->shape, a->ndim * sizeof *a->shape) == 0;
}

/* Another element like the one that the first `count` parts are of. */
static enum rf_code element_repeat(struct rank_adding *adding, const struct shard_output *output,
                                   uint32_t element, uint32_t first, uint32_t count)
{
    const uint32_t *items = adding->shard->items + output->first_item;
    uint32_t source = 0;
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < count && code == RF_OK; i++) {
        struct part part = adding->parts[i];

        /* Parts come in the order of their sources; padding and sources without bytes have none. */
        if (part.source != MANIFEST_NONE) {
            while (items[first * output->per_element + source] != part.source)
                source++;
            part.source = items[element * output->per_element + source];
        }
        code = part_add(adding, &part);
    }
    return code;
}

/* Elements [begin, end) of a stack. */
static enum rf_code elements_add(struct rank_adding *adding, struct rank_tensor *tensor,
                                 uint32_t begin, uint32_t end)
{
    const struct shard_output *output = tensor->output;
    struct element all = {.ndim = 0};
    enum rf_code code =
        element_add(adding, output, output->first_item + begin * output->per_element, &all);
    uint32_t parts = adding->part_count;

    if (code != RF_OK)
        return code;
    if (all.ndim == RF_MAX_DIMS)
        return shapes_fail(adding, output->name, output->name);
    tensor_begin(tensor, &all, true);
    for (uint32_t i = begin + 1; i < end && code == RF_OK; i++) {
        uint32_t item = output->first_item + i * output->per_element;
        struct element element = {.ndim = 0};

        if (output->alike) {
            code = element_repeat(adding, output, i, begin, parts);
            continue;
        }
        code = element_add(adding, output, item, &element);
        if (code == RF_OK && !same_element(&all, &element))
            code = shapes_fail(adding, adding->shard->sources[adding->shard->items[item]].name,
                               output->name);
    }
    return code;
}

/* All elements of a stack that this rank has. */
static enum rf_code stack_add(struct rank_adding *adding, struct rank_tensor *tensor)
{
    const struct shard_output *output = tensor->output;
    uint32_t begin = 0;
    uint32_t end = output->elements;

    if (adding->ep_size > 1)
        plan_ep_experts(output->divided, adding->ep, adding->ep_size, &begin, &end);
    enum rf_code code = elements_add(adding, tensor, begin, end);
    tensor->shape[0] = end - begin;
    tensor->global[0] = output->elements;
    tensor->start[0] = begin;
    return code;
}

static enum rf_code constant_add(struct rank_adding *adding, struct rank_tensor *tensor)
{
    uint32_t bits;

    memcpy(&bits, &tensor->output->value, sizeof bits);
    tensor->dtype = RF_DTYPE_F32;
    tensor->ndim = 0;
    return part_add(adding, &(struct part){.source = MANIFEST_NONE,
                                           .axis = bits != 0 ? sizeof bits : 0,
                                           .start = bits,
                                           .count = sizeof bits});
}

static enum rf_code tensor_add(struct rank_adding *adding, const struct shard_output *output)
{
    struct rank_tensor made = {.output = output};
    struct element element = {.ndim = 0};
    enum rf_code code;

    adding->part_count = 0;
    if (output->constant) {
        code = constant_add(adding, &made);
    } else if (output->elements > 0) {
        code = stack_add(adding, &made);
    } else {
        code = element_add(adding, output, output->first_item, &element);
        if (code == RF_OK)
            tensor_begin(&made, &element, false);
    }
    if (code == RF_OK && adding->part_count == 0) /* nothing has bytes: say what it is made of */
        code = part_add(
            adding, &(struct part){.source = adding->shard->items[output->first_item], .count = 0});
    if (code != RF_OK)
        return code;
    const struct tensor tensor = {
        .name = output->name,
        .dtype = made.dtype,
        .ndim = made.ndim,
        .shape = made.shape,
        .global_shape = made.sliced ? made.global : NULL,
        .slice_start = made.sliced ? made.start : NULL,
        .file = MANIFEST_NONE,
        .parts = adding->parts,
        .part_count = adding->part_count,
    };
    return manifest_add_tensor(adding->builder, &tensor, NULL, adding->shard->err);
}

/* ---- a rank ---- */

/* Whether a tensor that is not stacked is of an expert that another group has. */
static bool is_elsewhere(const struct rank_adding *adding, const struct shard_output *output)
{
    const struct shard *shard = adding->shard;

    if (adding->ep_size == 1 || output->elements > 0 || output->constant)
        return false;
    const struct plan_numbers *numbers = &shard->bound[shard->items[output->first_item]].numbers;
    for (unsigned i = 0; i < shard->plan->index_count; i++) {
        const struct shard_index *index = &shard->indices[i];
        uint32_t begin;
        uint32_t end;

        if ((numbers->present >> i & 1) == 0 || !shard->plan->indices[i].split_ep)
            continue;
        plan_ep_experts(index->count, adding->ep, adding->ep_size, &begin, &end);
        uint32_t at = numbers->value[i] - index->first;
        return at < begin || at >= end;
    }
    return false;
}

enum rf_code shard_rank_add(const struct shard *shard, struct manifest_builder *builder,
                            uint32_t tp)
{
    uint32_t ep_size = shard->request->ep_size > 1 ? shard->request->ep_size : 1;
    struct rank_adding adding = {.shard = shard, .builder = builder, .tp = tp, .ep_size = ep_size};
    uint32_t moe_tp;

    plan_ep_place(tp, shard->request->tp_size, ep_size, &adding.ep, &moe_tp);
    const struct rank_id id = {
        .tp = tp,
        .tp_size = shard->request->tp_size,
        .pp_size = 1,
        .ep = adding.ep,
        .ep_size = ep_size,
        .dp_size = 1,
        .role = shard->request->role,
    };
    enum rf_code code = manifest_add_rank(builder, &id, shard->err);

    for (uint32_t i = 0; i < shard->output_count && code == RF_OK; i++) {
        if (!is_elsewhere(&adding, &shard->outputs[i]))
            code = tensor_add(&adding, &shard->outputs[i]);
    }
    free(adding.parts);
    return code;
}
