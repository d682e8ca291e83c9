/* The checkpoint's tensors, out of the ranks that were cut from them. */
#include "model/store_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- index ---- */

static const struct part *part_of(const struct manifest *manifest,
                                  const struct source_holder *holder)
{
    return &manifest->ranks[holder->rank].tensors[holder->tensor].parts[holder->part];
}

/* Converted parts are left out: they are other bytes. */
static bool holds_bytes(const struct manifest *manifest, const struct tensor *tensor,
                        const struct part *part)
{
    return part->source != MANIFEST_NONE && part->bytes > 0 &&
           !part_converts(manifest, tensor, part);
}

typedef void (*holder_fn)(struct source_index *index, uint32_t source,
                          const struct source_holder *holder);

static void count_holder(struct source_index *index, uint32_t source,
                         const struct source_holder *holder)
{
    (void)holder;
    index->begin[source + 2]++;
}

static void put_holder(struct source_index *index, uint32_t source,
                       const struct source_holder *holder)
{
    index->holders[index->begin[source + 1]++] = *holder;
}

static void each_holder(const struct manifest *manifest, struct source_index *index, holder_fn fn)
{
    for (uint32_t r = 0; r < manifest->rank_count; r++) {
        for (uint32_t t = 0; t < manifest->ranks[r].tensor_count; t++) {
            const struct tensor *tensor = &manifest->ranks[r].tensors[t];

            for (uint32_t p = 0; p < tensor->part_count; p++) {
                const struct source_holder holder = {.rank = r, .tensor = t, .part = p};

                if (holds_bytes(manifest, tensor, &tensor->parts[p]))
                    fn(index, tensor->parts[p].source, &holder);
            }
        }
    }
}

static uint64_t part_end(const struct part *part)
{
    return part->start + part->count;
}

static int compare_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

/* By axis, then by where they begin, the longest first. */
static int compare_holders(const void *one, const void *other, void *ctx)
{
    const struct manifest *const *manifest = ctx;
    const struct part *a = part_of(*manifest, one);
    const struct part *b = part_of(*manifest, other);

    if (a->axis != b->axis)
        return a->axis < b->axis ? -1 : 1;
    if (a->start != b->start)
        return compare_u64(a->start, b->start);
    return compare_u64(part_end(b), part_end(a));
}

/* Orders the holders of a source and keeps those that have something others have not, so that
 * along an axis both begins and ends ascend: the last one that begins at or before an element
 * holds it if any does. Says whether the holders along some axis leave nothing out. */
static void settle_holders(const struct manifest *manifest, struct source_index *index,
                           uint32_t source)
{
    const struct manifest_source *of = &manifest->sources[source];
    struct source_holder *holders = index->holders + index->begin[source];
    uint64_t count = index->begin[source + 1] - index->begin[source];
    uint64_t kept = 0;
    uint64_t covered = 0; /* elements from the first on without a gap */

    qsort_r(holders, count, sizeof *holders, compare_holders, &manifest);
    for (uint64_t i = 0; i < count; i++) {
        const struct part *part = part_of(manifest, &holders[i]);
        const struct part *last = kept > 0 ? part_of(manifest, &holders[kept - 1]) : NULL;

        if (last != NULL && last->axis != part->axis)
            covered = 0;
        else if (last != NULL && part_end(part) <= part_end(last))
            continue;
        if (part->start <= covered)
            covered = part_end(part);
        if (covered == (of->ndim > 0 ? of->shape[part->axis] : 1))
            index->whole[source] = true;
        holders[kept++] = holders[i];
    }
    index->counts[source] = kept;
}

enum rf_code source_index_create(const struct manifest *manifest, struct source_index *ret_index,
                                 struct rf_error *err)
{
    struct source_index index = {
        .begin = calloc(manifest->source_count + (size_t)2, sizeof(uint64_t)),
        .counts = calloc(manifest->source_count + (size_t)1, sizeof(uint64_t)),
        .whole = calloc(manifest->source_count + (size_t)1, sizeof(bool)),
    };

    if (index.begin == NULL || index.counts == NULL || index.whole == NULL)
        goto fail;
    /* A counting sort, as of the files' places. */
    each_holder(manifest, &index, count_holder);
    for (uint32_t i = 2; i < manifest->source_count + 2; i++)
        index.begin[i] += index.begin[i - 1];
    uint64_t count = index.begin[manifest->source_count + (size_t)1];
    index.holders = calloc(count + 1, sizeof *index.holders);
    if (index.holders == NULL)
        goto fail;
    each_holder(manifest, &index, put_holder);
    for (uint32_t i = 0; i < manifest->source_count; i++)
        settle_holders(manifest, &index, i);
    *ret_index = index;
    return RF_OK;

fail:
    source_index_free(&index);
    return rf_fail(err, RF_E_NOMEM, "no memory to find %" PRIu32 " tensors in ranks",
                   manifest->source_count);
}

void source_index_free(struct source_index *index)
{
    free(index->begin);
    free(index->counts);
    free(index->holders);
    free(index->whole);
    *index = (struct source_index){0};
}

/* ---- reading ---- */

/* A run of a source's bytes in a rank's stream. */
struct source_run {
    uint32_t rank;
    uint64_t stream_offset;
    uint64_t bytes;
};

static bool run_in(const struct manifest *manifest, const struct source_holder *holder,
                   uint64_t offset, struct source_run *ret_run)
{
    const struct tensor *tensor = &manifest->ranks[holder->rank].tensors[holder->tensor];
    const struct part *part = part_of(manifest, holder);
    struct stream_range range = part_range(manifest, part);

    if (offset < range.offset)
        return false;
    uint64_t inside = offset - range.offset;
    uint64_t row = range.stride > 0 ? inside / range.stride : 0;
    inside -= row * range.stride;
    if (row >= range.count || inside >= range.bytes)
        return false;
    *ret_run = (struct source_run){
        .rank = holder->rank,
        .stream_offset = tensor->stream_offset + part->offset + row * range.bytes + inside,
        .bytes = range.bytes - inside,
    };
    return true;
}

/* The last holder along an axis that begins at or before an element; NULL if none does. */
static const struct source_holder *holder_at(const struct store *store, uint32_t source,
                                             uint32_t axis, uint64_t element)
{
    const struct source_index *index = store_sources(store);
    const struct source_holder *holders = index->holders + index->begin[source];
    uint64_t low = 0;
    uint64_t high = index->counts[source];

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        const struct part *part = part_of(store->manifest, &holders[middle]);

        if (part->axis < axis || (part->axis == axis && part->start <= element))
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 && part_of(store->manifest, &holders[low - 1])->axis == axis ? &holders[low - 1]
                                                                                : NULL;
}

static bool run_find(const struct store *store, uint32_t source, uint64_t offset,
                     struct source_run *ret_run)
{
    const struct manifest_source *of = &store->manifest->sources[source];
    uint64_t inner_bits = rf_dtype_bits(of->dtype);

    /* From the last axis to the first: below each, so many bits are one element of it. */
    for (uint32_t axis = of->ndim > 0 ? of->ndim : 1; axis-- > 0;) {
        uint64_t n = of->ndim > 0 ? of->shape[axis] : 1;
        uint64_t element = offset * 8 / inner_bits % n; /* offset < 2^60 */
        const struct source_holder *holder = holder_at(store, source, axis, element);

        if (holder != NULL && run_in(store->manifest, holder, offset, ret_run))
            return true;
        inner_bits *= n; /* of a tensor with bytes: no zero, and no more than it has */
    }
    return false;
}

static enum rf_code fail_missing(const struct store *store, uint32_t source, uint64_t offset,
                                 struct rf_error *err)
{
    const struct manifest_source *of = &store->manifest->sources[source];

    return rf_fail(err, RF_E_UNSUPPORTED,
                   "byte %" PRIu64 " of the %" PRIu64
                   " of tensor %.120s is in no rank that is held "
                   "here, or only in another dtype: fork the ranks instead of reading files",
                   offset, of->bytes, of->name);
}

enum rf_code source_read(const struct store *store, uint32_t source, uint64_t offset, uint8_t *to,
                         uint64_t bytes, struct rf_error *err)
{
    uint64_t end = offset + bytes;

    while (offset < end) {
        struct source_run run;

        if (!run_find(store, source, offset, &run))
            return fail_missing(store, source, offset, err);
        uint64_t piece = run.bytes < end - offset ? run.bytes : end - offset;
        enum rf_code code = store_read_stream(store, run.rank, run.stream_offset, to, piece, err);
        if (code != RF_OK)
            return code;
        to += piece;
        offset += piece;
    }
    return RF_OK;
}

enum rf_code source_check_held(const struct store *store, uint32_t source, uint64_t offset,
                               uint64_t bytes, struct rf_error *err)
{
    uint64_t end = offset + bytes;

    if (store_sources(store)->whole[source])
        return RF_OK;
    while (offset < end) {
        struct source_run run;

        if (!run_find(store, source, offset, &run))
            return fail_missing(store, source, offset, err);
        offset += run.bytes;
    }
    return RF_OK;
}
