#include "model/compare.h"

#include "model/manifest_internal.h"

#include <inttypes.h>

/* ---- finding ---- */

static bool dims_equal(const uint64_t *a, const uint64_t *b, uint32_t ndim)
{
    static const uint64_t zeros[RF_MAX_DIMS];

    if (a == b || ndim == 0)
        return true;
    return memcmp(a != NULL ? a : zeros, b != NULL ? b : zeros, ndim * sizeof *a) == 0;
}

static const struct tensor *target_of(const struct manifest_rank *rank, const struct tensor *tensor)
{
    return tensor->alias_of != MANIFEST_NONE ? &rank->tensors[tensor->alias_of] : NULL;
}

/* Aliases are equal when they lead to tensors of the same name, wherever those are in their
 * tables. */
static bool targets_equal(const struct tensor *a, const struct tensor *b)
{
    if (a == NULL || b == NULL)
        return a == b;
    return tensor_name_compare(a, b) == 0;
}

/* Sources are numbered in each manifest: equal ones have equal names. */
static bool part_equal(const struct manifest_rank *of_a, const struct part *a,
                       const struct manifest_rank *of_b, const struct part *b)
{
    if (a->axis != b->axis || a->start != b->start || a->count != b->count)
        return false;
    if (a->source == MANIFEST_NONE || b->source == MANIFEST_NONE)
        return a->source == b->source;
    return (of_a->sources == of_b->sources && a->source == b->source) ||
           strcmp(of_a->sources[a->source].name, of_b->sources[b->source].name) == 0;
}

/* A side that does not say what a tensor is made of leaves it at shape and slice. */
static bool parts_equal(const struct manifest_rank *of_a, const struct tensor *a,
                        const struct manifest_rank *of_b, const struct tensor *b)
{
    if (a->part_count == 0 || b->part_count == 0)
        return true;
    for (uint32_t i = 0; i < a->part_count && i < b->part_count; i++) {
        if (!part_equal(of_a, &a->parts[i], of_b, &b->parts[i]))
            return false;
    }
    return a->part_count == b->part_count;
}

struct report {
    difference_fn fn;
    void *ctx;
    uint64_t count;
};

static void report(struct report *to, const struct difference *difference)
{
    to->count++;
    if (to->fn != NULL)
        to->fn(to->ctx, difference);
}

static void report_one_sided(struct report *to, enum difference_kind kind,
                             const struct tensor *tensor)
{
    struct difference difference = {.kind = kind, .name = tensor->name};

    if (kind == DIFF_MISSING)
        difference.a = tensor;
    else
        difference.b = tensor;
    report(to, &difference);
}

static void compare_pair(struct report *to, const struct manifest_rank *rank_a,
                         const struct tensor *a, const struct manifest_rank *rank_b,
                         const struct tensor *b)
{
    bool shape = a->ndim == b->ndim && dims_equal(a->shape, b->shape, a->ndim);
    struct difference difference = {.name = a->name, .a = a, .b = b};

    if (a->dtype != b->dtype) {
        difference.kind = DIFF_DTYPE;
        report(to, &difference);
    }
    if (!shape) {
        difference.kind = DIFF_SHAPE;
        report(to, &difference);
    }
    /* Of other shapes the slices differ by necessity, and of other slices the parts: one line
     * says it all. */
    if (shape && (!dims_equal(a->global_shape, b->global_shape, a->ndim) ||
                  !dims_equal(a->slice_start, b->slice_start, a->ndim))) {
        difference.kind = DIFF_SLICE;
        report(to, &difference);
    } else if (shape && !parts_equal(rank_a, a, rank_b, b)) {
        difference.kind = DIFF_PARTS;
        difference.a_sources = rank_a->sources;
        difference.b_sources = rank_b->sources;
        report(to, &difference);
    }
    difference.a_target = target_of(rank_a, a);
    difference.b_target = target_of(rank_b, b);
    if (!targets_equal(difference.a_target, difference.b_target)) {
        difference.kind = DIFF_ALIAS;
        report(to, &difference);
    }
}

uint64_t compare_tensors(const struct manifest_rank *a, const struct manifest_rank *b,
                         difference_fn fn, void *ctx)
{
    struct report to = {.fn = fn, .ctx = ctx};
    uint32_t i = 0;
    uint32_t j = 0;

    while (i < a->tensor_count && j < b->tensor_count) {
        int order = tensor_name_compare(&a->tensors[i], &b->tensors[j]);

        if (order < 0) {
            report_one_sided(&to, DIFF_MISSING, &a->tensors[i++]);
        } else if (order > 0) {
            report_one_sided(&to, DIFF_EXTRA, &b->tensors[j++]);
        } else {
            compare_pair(&to, a, &a->tensors[i], b, &b->tensors[j]);
            i++;
            j++;
        }
    }
    while (i < a->tensor_count)
        report_one_sided(&to, DIFF_MISSING, &a->tensors[i++]);
    while (j < b->tensor_count)
        report_one_sided(&to, DIFF_EXTRA, &b->tensors[j++]);
    return to.count;
}

/* ---- telling ---- */

static void put_dims(struct buf *out, const uint64_t *dims, uint32_t ndim)
{
    buf_append(out, "[", 1);
    for (uint32_t i = 0; i < ndim; i++)
        buf_printf(out, "%s%" PRIu64, i > 0 ? ", " : "", dims != NULL ? dims[i] : 0);
    buf_append(out, "]", 1);
}

static void put_target(struct buf *out, const struct tensor *target)
{
    if (target == NULL)
        buf_printf(out, "bytes of its own");
    else
        buf_printf(out, "an alias of %s", target->name);
}

enum { PARTS_SHOWN = 4 };

static void put_parts(struct buf *out, const struct tensor *tensor,
                      const struct manifest_source *sources)
{
    for (uint32_t i = 0; i < tensor->part_count && i < PARTS_SHOWN; i++) {
        const struct part *part = &tensor->parts[i];

        if (i > 0)
            buf_printf(out, " + ");
        if (part->source == MANIFEST_NONE)
            buf_printf(out, "%" PRIu64 " %s bytes", part->count,
                       part->axis == 0 ? "zero" : "constant");
        else
            buf_printf(out, "%.*s[%" PRIu64 ":%" PRIu64 " of axis %" PRIu32 "]",
                       MANIFEST_SHOWN_NAME, sources[part->source].name, part->start,
                       part->start + part->count, part->axis);
    }
    if (tensor->part_count > PARTS_SHOWN)
        buf_printf(out, " + %" PRIu32 " more", tensor->part_count - PARTS_SHOWN);
}

/* The word before both sides, for the kinds that need one. */
static const char *kind_word(enum difference_kind kind)
{
    switch (kind) {
    case DIFF_DTYPE:
        return "dtype ";
    case DIFF_SHAPE:
        return "shape ";
    case DIFF_SLICE:
        return "slice ";
    case DIFF_PARTS:
        return "made of ";
    default:
        return "";
    }
}

/* What the difference is on one side; NULL: the side does not have the tensor. */
static void put_side(struct buf *out, enum difference_kind kind, const struct tensor *tensor,
                     const struct tensor *target)
{
    if (tensor == NULL) {
        buf_printf(out, "none");
        return;
    }
    if (kind == DIFF_ALIAS) {
        put_target(out, target);
        return;
    }
    if (kind == DIFF_DTYPE || kind == DIFF_MISSING || kind == DIFF_EXTRA)
        buf_printf(out, "%s", rf_dtype_name(tensor->dtype));
    if (kind == DIFF_DTYPE)
        return;
    if (kind == DIFF_MISSING || kind == DIFF_EXTRA)
        buf_append(out, " ", 1);
    put_dims(out, tensor->shape, tensor->ndim);
    if (kind == DIFF_SLICE) {
        buf_printf(out, " at ");
        put_dims(out, tensor->slice_start, tensor->ndim);
        buf_printf(out, " of ");
        put_dims(out, tensor->global_shape, tensor->ndim);
    }
}

void difference_text(const struct difference *difference, const char *a_is, const char *b_is,
                     struct buf *out)
{
    enum difference_kind kind = difference->kind;

    size_t begin = out->bytes;

    buf_printf(out, "%s: %s", difference->name, kind_word(kind));
    if (kind == DIFF_PARTS) {
        put_parts(out, difference->a, difference->a_sources);
        buf_printf(out, " %s, ", a_is);
        put_parts(out, difference->b, difference->b_sources);
        buf_printf(out, " %s", b_is);
    } else if (kind == DIFF_CONTENT || kind == DIFF_IDENTITY) {
        buf_printf(out, "%s %s than %s", kind == DIFF_CONTENT ? "other bytes" : "another model",
                   b_is, a_is);
    } else if (kind == DIFF_EXTRA) { /* the side that has it comes first */
        put_side(out, kind, difference->b, NULL);
        buf_printf(out, " %s, none %s", b_is, a_is);
    } else {
        put_side(out, kind, difference->a, difference->a_target);
        buf_printf(out, " %s, ", a_is);
        put_side(out, kind, difference->b, difference->b_target);
        buf_printf(out, " %s", b_is);
    }
    /* Names may hold anything; a line is a line. */
    if (!out->failed)
        rf_text_sanitise((char *)out->data + begin);
}

/* ---- explaining ---- */

enum { KIND_COUNT = DIFF_IDENTITY + 1, EXPLAIN_SHOWN = 3 };

struct explain {
    uint64_t counts[KIND_COUNT];
    uint64_t shown;
    struct buf lines;
};

static void explain_one(void *ctx, const struct difference *difference)
{
    struct explain *explain = ctx;

    explain->counts[difference->kind]++;
    if (explain->shown == EXPLAIN_SHOWN)
        return;
    buf_printf(&explain->lines, "; ");
    difference_text(difference, "wanted", "there", &explain->lines);
    explain->shown++;
}

enum rf_code compare_explain(const struct manifest_rank *want, const struct manifest_rank *have,
                             struct rf_error *err)
{
    static const char *const kinds[KIND_COUNT] = {
        [DIFF_MISSING] = "missing",      [DIFF_EXTRA] = "not wanted",  [DIFF_DTYPE] = "other dtype",
        [DIFF_SHAPE] = "other shape",    [DIFF_SLICE] = "other slice", [DIFF_ALIAS] = "other alias",
        [DIFF_PARTS] = "made otherwise",
    };
    struct explain explain = {.shown = 0};
    BUF_AUTO struct buf counts = {0};
    uint64_t count = compare_tensors(want, have, explain_one, &explain);

    if (count == 0) {
        buf_free(&explain.lines);
        return RF_OK;
    }
    for (unsigned i = 0; i < KIND_COUNT; i++) {
        if (explain.counts[i] > 0)
            buf_printf(&counts, "%s%" PRIu64 " %s", counts.bytes > 0 ? ", " : "", explain.counts[i],
                       kinds[i]);
    }
    if (explain.shown < count)
        buf_printf(&explain.lines, "; ...");
    rf_fail(err, RF_E_MISMATCH,
            "%" PRIu64 " difference%s among %" PRIu32 " tensors wanted and %" PRIu32 " there: %s%s",
            count, count == 1 ? "" : "s", want->tensor_count, have->tensor_count,
            counts.data != NULL ? (const char *)counts.data : "",
            explain.lines.data != NULL ? (const char *)explain.lines.data : "");
    buf_free(&explain.lines);
    return RF_E_MISMATCH;
}
