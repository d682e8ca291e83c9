/* Which slice of a tensor a rank has. */
#include "model/shard_internal.h"

#include <inttypes.h>

struct shard_place shard_place_of(const struct shard *shard, uint32_t source, uint32_t tp)
{
    const struct shard_request *request = shard->request;
    const struct plan_numbers *numbers = &shard->bound[source].numbers;
    uint32_t ep_size = request->ep_size > 1 ? request->ep_size : 1;
    struct shard_place place = {.size = request->tp_size, .rank = tp};
    uint32_t ep = 0;

    for (unsigned i = 0; i < shard->plan->index_count; i++) {
        if ((numbers->present >> i & 1) == 0 || !shard->plan->indices[i].split_ep)
            continue;
        /* Experts are divided over groups first, and split inside their group. */
        place.size = request->tp_size / ep_size;
        plan_ep_place(tp, request->tp_size, ep_size, &ep, &place.rank);
        break;
    }
    return place;
}

static enum rf_code divide_fail(const struct shard *shard, uint32_t source, uint64_t n,
                                const char *what, uint32_t size)
{
    return rf_fail(shard->err, RF_E_INVAL,
                   "tensor %.*s: %" PRIu64 " %s cannot be divided by tp %" PRIu32
                   " (plan %s, line %u): choose a tp that divides them",
                   SHARD_SHOWN_NAME, shard->sources[source].name, n, what, size, shard->plan->name,
                   shard->bound[source].rule->line);
}

/* n elements along the axis, in `by` pieces that stay whole (0: any element may begin a slice). */
static enum rf_code slice_even(const struct shard *shard, uint32_t source, struct shard_place place,
                               uint64_t n, uint64_t by, struct shard_slice *slice)
{
    const struct plan_rule *rule = shard->bound[source].rule;

    if (by != 0 && n % by != 0)
        return rf_fail(shard->err, RF_E_FORMAT,
                       "tensor %.*s: %" PRIu64 " elements along axis %" PRIu32
                       " are not %s = %" PRIu64 " equal pieces (plan %s, line %u)",
                       SHARD_SHOWN_NAME, shard->sources[source].name, n, slice->axis, rule->by.text,
                       by, shard->plan->name, rule->line);
    if (by != 0 && by % place.size != 0)
        return divide_fail(shard, source, by, rule->by.text, place.size);
    if (n % place.size != 0)
        return divide_fail(shard, source, n, "elements along the axis it is split", place.size);
    slice->count = n / place.size;
    slice->start = place.rank * slice->count;
    slice->first = slice->start;
    return RF_OK;
}

/* KV heads: divided, or, when there are fewer of them than ranks, one for several ranks. */
static enum rf_code slice_kv(const struct shard *shard, uint32_t source, struct shard_place place,
                             uint64_t n, uint64_t heads, struct shard_slice *slice)
{
    if (heads == 0 || heads >= place.size) /* the plan says them; 0 was refused before */
        return slice_even(shard, source, place, n, heads, slice);
    if (place.size % heads != 0)
        return rf_fail(shard->err, RF_E_INVAL,
                       "tensor %.*s: tp %" PRIu32 " is no multiple of its %" PRIu64
                       " KV heads, so that ranks cannot share them evenly (plan %s, line %u)",
                       SHARD_SHOWN_NAME, shard->sources[source].name, place.size, heads,
                       shard->plan->name, shard->bound[source].rule->line);
    if (n % heads != 0)
        return slice_even(shard, source, place, n, heads, slice); /* which says why not */
    slice->count = n / heads;
    slice->start = place.rank / (place.size / heads) * slice->count;
    slice->first = slice->start;
    return RF_OK;
}

static bool round_up(uint64_t n, uint64_t multiple, uint64_t *ret_rounded)
{
    uint64_t rest = n % multiple;

    *ret_rounded = n;
    return rest == 0 || !__builtin_add_overflow(n, multiple - rest, ret_rounded);
}

/* A vocabulary: padded to a multiple of pad, or of pad times the ranks when that does not
 * divide. */
static enum rf_code slice_vocabulary(const struct shard *shard, uint32_t source,
                                     struct shard_place place, uint64_t n, uint64_t pad,
                                     struct shard_slice *slice)
{
    uint64_t padded = n;
    uint64_t wide;

    if (pad == 0 && n % place.size != 0)
        return rf_fail(shard->err, RF_E_INVAL,
                       "tensor %.*s: a vocabulary of %" PRIu64 " cannot be divided by tp %" PRIu32
                       ", and nothing says to pad it: choose another tp, or write pad=64 into line "
                       "%u of the plan",
                       SHARD_SHOWN_NAME, shard->sources[source].name, n, place.size,
                       shard->bound[source].rule->line);
    if (pad != 0 && (!round_up(n, pad, &padded) ||
                     (padded % place.size != 0 && (__builtin_mul_overflow(pad, place.size, &wide) ||
                                                   !round_up(n, wide, &padded)))))
        return rf_fail(shard->err, RF_E_INVAL,
                       "tensor %.*s: %" PRIu64 " padded by %" PRIu64 " is too large",
                       SHARD_SHOWN_NAME, shard->sources[source].name, n, pad);
    uint64_t each = padded / place.size;
    uint64_t first = place.rank * each;
    slice->whole = padded;
    slice->first = first;
    slice->start = first < n ? first : n;
    slice->count = n - slice->start < each ? n - slice->start : each;
    slice->padding = each - slice->count;
    return RF_OK;
}

static enum rf_code slice_plain(const struct shard *shard, uint32_t source,
                                struct shard_place place, uint64_t pad, struct shard_slice *slice)
{
    const struct manifest_source *of = &shard->sources[source];
    const struct plan_rule *rule = shard->bound[source].rule;
    const struct shard_rule *known = &shard->rules[rule - shard->plan->rules];
    uint32_t axis = rule->kind == KIND_ROW ? 1 : 0;

    if (rule->axis != PLAN_NONE)
        axis = (uint32_t)rule->axis;
    if (rule->kind == KIND_REPLICATED) {
        uint64_t n = of->ndim > 0 ? of->shape[0] : 1;
        *slice = (struct shard_slice){.count = n, .whole = n};
        return RF_OK;
    }
    if (axis >= of->ndim)
        return rf_fail(shard->err, RF_E_FORMAT,
                       "tensor %.*s: has %" PRIu32 " dimensions, and is to be split along axis "
                       "%" PRIu32 " (plan %s, line %u)",
                       SHARD_SHOWN_NAME, of->name, of->ndim, axis, shard->plan->name, rule->line);
    uint64_t n = of->shape[axis];
    *slice = (struct shard_slice){.axis = axis, .whole = n};
    if (rule->kind == KIND_KV)
        return slice_kv(shard, source, place, n, known->by, slice);
    if (rule->kind == KIND_EMBEDDING)
        return slice_vocabulary(shard, source, place, n, pad != 0 ? pad : known->pad, slice);
    return slice_even(shard, source, place, n, known->by, slice);
}

/* Scales follow their weight, in blocks: a slice must be of whole ones. */
static enum rf_code slice_scale(const struct shard *shard, uint32_t source,
                                struct shard_place place, struct shard_slice *slice)
{
    uint32_t scaled = shard->bound[source].scaled;
    const struct manifest_source *weight = &shard->sources[scaled];
    enum rf_code code = slice_plain(shard, scaled, place, 0, slice);

    if (code != RF_OK)
        return code;
    uint64_t block = shard->block[slice->axis]; /* the weight has two axes */
    uint64_t n = weight->shape[slice->axis];
    if (slice->start % block != 0 ||
        (slice->count % block != 0 && !(slice->start == 0 && slice->count == n)))
        return rf_fail(shard->err, RF_E_INVAL,
                       "tensor %.*s: with tp %" PRIu32 " a rank has %" PRIu64 " of %" PRIu64
                       " elements along axis %" PRIu32 " from %" PRIu64
                       " on, which are not whole blocks of %" PRIu64
                       " that share a scale: choose a "
                       "smaller tp",
                       SHARD_SHOWN_NAME, weight->name, place.size, slice->count, n, slice->axis,
                       slice->start, block);
    slice->start /= block;
    slice->count = slice->count / block + (slice->count % block != 0);
    slice->first = slice->start;
    slice->whole = shard->sources[source].shape[slice->axis];
    return RF_OK;
}

enum rf_code shard_slice(const struct shard *shard, uint32_t source, struct shard_place place,
                         uint64_t pad, struct shard_slice *ret_slice)
{
    if (shard->bound[source].rule->kind == KIND_SCALE)
        return slice_scale(shard, source, place, ret_slice);
    return slice_plain(shard, source, place, pad, ret_slice);
}
