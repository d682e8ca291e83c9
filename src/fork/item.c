#include "fork/item.h"

#include "model/convert.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- moves ---- */

static bool converts(const struct fork_move *move)
{
    return move->from != move->to;
}

static int compare_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

/* Equal reads next to each other; those that convert behind those that do not. */
static int compare_moves(const void *left, const void *right)
{
    const struct fork_move *a = left;
    const struct fork_move *b = right;
    int order = compare_u64(a->source, b->source);

    if (order == 0)
        order = (int)converts(a) - (int)converts(b);
    if (order == 0)
        order = compare_u64(a->read.offset, b->read.offset);
    if (order == 0)
        order = compare_u64(a->read.bytes, b->read.bytes);
    if (order == 0)
        order = compare_u64(a->read.stride, b->read.stride);
    if (order == 0)
        order = compare_u64(a->read.count, b->read.count);
    if (order == 0)
        order = compare_u64(a->target, b->target);
    return order != 0 ? order : compare_u64(a->write_offset, b->write_offset);
}

static uint64_t move_end(const struct fork_move *move)
{
    return move->read.offset + (move->read.count - 1) * move->read.stride + move->read.bytes;
}

static uint64_t move_bytes(const struct fork_move *move)
{
    return move->read.bytes * move->read.count;
}

static enum rf_code check_move(const struct fork_plan *plan, const struct fork_move *move,
                               struct rf_error *err)
{
    const struct fork_source *source;
    uint64_t bytes = 0;

    if (move->source >= plan->source_count || move->target >= plan->target_count)
        return rf_fail(err, RF_E_INVAL,
                       "a move from source %" PRIu32 " to target %" PRIu32 ": there are %" PRIu32
                       " and %" PRIu32,
                       move->source, move->target, plan->source_count, plan->target_count);
    if (converts(move) && !convert_known((enum rf_dtype)move->from, (enum rf_dtype)move->to))
        return rf_fail(err, RF_E_UNSUPPORTED, "a move from dtype %u to %u: no such conversion",
                       move->from, move->to);
    source = &plan->sources[move->source];
    return stream_ranges_check(&move->read, 1, source->manifest->ranks[source->rank].stream_bytes,
                               &bytes, err);
}

static uint64_t piece_at_target(const struct fork_move *move)
{
    return converts(move) ? convert_bytes(move->from, move->read.bytes, move->to)
                          : move->read.bytes;
}

/* A piece that lies beside the destination would be written beside it. */
static enum rf_code check_target(const struct fork_plan *plan, const struct fork_move *move,
                                 struct rf_error *err)
{
    const struct fork_dest *dest = plan->targets[move->target].dest;
    const struct fork_segment *last = dest->count > 0 ? &dest->segments[dest->count - 1] : NULL;
    uint64_t there = last != NULL ? last->stream_offset + last->bytes : 0;
    uint64_t bytes = piece_at_target(move);
    uint64_t end;

    if (__builtin_mul_overflow(move->write_stride, move->read.count - 1, &end) ||
        __builtin_add_overflow(end, move->write_offset, &end) ||
        __builtin_add_overflow(end, bytes, &end) || end > there)
        return rf_fail(err, RF_E_INVAL,
                       "a move to %" PRIu64 " of target %" PRIu32 ", which has %" PRIu64 " bytes",
                       move->write_offset, move->target, there);
    return RF_OK;
}

static uint64_t bytes_at_target(const struct fork_move *move)
{
    return piece_at_target(move) * move->read.count;
}

static enum rf_code check_moves(const struct fork_plan *plan, struct item_list *list,
                                struct rf_error *err)
{
    bool sorted = true;

    for (uint64_t i = 0; i < plan->move_count; i++) {
        enum rf_code code = check_move(plan, &plan->moves[i], err);

        if (code == RF_OK)
            code = check_target(plan, &plan->moves[i], err);
        if (code != RF_OK)
            return code;
        list->new_bytes += bytes_at_target(&plan->moves[i]);
        sorted = sorted && (i == 0 || compare_moves(&plan->moves[i - 1], &plan->moves[i]) <= 0);
    }
    if (!sorted)
        qsort(plan->moves, plan->move_count, sizeof(*plan->moves), compare_moves);
    return RF_OK;
}

/* ---- cutting ---- */

static enum rf_code list_add(struct item_list *list, const struct item *item, struct rf_error *err)
{
    if (list->count == list->room) {
        uint64_t room = list->room > 0 ? list->room * 2 : 256;
        struct item *grown = reallocarray(list->items, room, sizeof(*grown));

        if (grown == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for a fork of %" PRIu64 " reads", room);
        list->items = grown;
        list->room = room;
    }
    list->items[list->count++] = *item;
    list->bytes += item->bytes;
    return RF_OK;
}

/* One source while its moves are cut. */
struct cutter {
    const struct fork_plan *plan;
    struct item_list *list;
    uint32_t source;
    uint64_t stream_bytes;
    uint64_t chunk_bytes;
    uint64_t first; /* of the moves that may reach into the chunk */
    uint64_t end;   /* of the source's moves that do not convert */
    uint64_t steps;
    struct item slices; /* being gathered; bytes 0: none */
};

static enum rf_code flush_slices(struct cutter *cutter, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    if (cutter->slices.bytes > 0)
        code = list_add(cutter->list, &cutter->slices, err);
    cutter->slices.bytes = 0;
    return code;
}

/* What moves [first, last) take of [lo, hi), what is taken twice by equal moves counted once. */
static uint64_t bytes_taken(const struct cutter *cutter, uint64_t first, uint64_t last, uint64_t lo,
                            uint64_t hi)
{
    const struct fork_move *moves = cutter->plan->moves;
    uint64_t bytes = 0;

    for (uint64_t i = first; i < last; i++) {
        if (i == first || !range_equal(&moves[i].read, &moves[i - 1].read))
            bytes +=
                range_bytes_before(&moves[i].read, hi) - range_bytes_before(&moves[i].read, lo);
    }
    return bytes;
}

/* Puts slices of one chunk to those of the chunk before, as long as the read stays handy. */
static enum rf_code add_slices(struct cutter *cutter, uint64_t first, uint64_t last, uint64_t lo,
                               uint64_t hi, uint64_t bytes, struct rf_error *err)
{
    struct item *slices = &cutter->slices;
    enum rf_code code = RF_OK;

    if (slices->bytes > 0 && slices->bytes + bytes <= FORK_ITEM_BYTES &&
        first >= slices->first_move && last - slices->first_move <= FORK_MAX_ITEM_MOVES) {
        slices->move_count = (uint32_t)(last - slices->first_move);
        slices->hi = hi;
        slices->bytes += bytes;
        return RF_OK;
    }
    code = flush_slices(cutter, err);
    while (code == RF_OK && first < last) {
        uint64_t count = last - first < FORK_MAX_ITEM_MOVES ? last - first : FORK_MAX_ITEM_MOVES;

        *slices = (struct item){
            .kind = ITEM_SLICES,
            .source = cutter->source,
            .first_move = first,
            .move_count = (uint32_t)count,
            .lo = lo,
            .hi = hi,
            .bytes = bytes_taken(cutter, first, first + count, lo, hi),
        };
        first += count;
        if (first < last)
            code = flush_slices(cutter, err);
    }
    return code;
}

static enum rf_code cut_chunk(struct cutter *cutter, uint64_t lo, uint64_t hi, struct rf_error *err)
{
    const struct fork_move *moves = cutter->plan->moves;
    uint64_t last;

    while (cutter->first < cutter->end && move_end(&moves[cutter->first]) <= lo)
        cutter->first++;
    for (last = cutter->first; last < cutter->end && moves[last].read.offset < hi; last++) {
    }
    cutter->steps += last - cutter->first + 1;
    if (cutter->steps > FORK_MAX_PLAN_STEPS)
        return rf_fail(
            err, RF_E_UNSUPPORTED,
            "the two sides cut their tensors into pieces too small and too many to plan");
    uint64_t taken = bytes_taken(cutter, cutter->first, last, lo, hi);
    uint64_t holes = hi - lo - (taken < hi - lo ? taken : hi - lo);
    if (taken == 0)
        return RF_OK;
    if (holes > (hi - lo) / FORK_HOLE_PART)
        return add_slices(cutter, cutter->first, last, lo, hi, taken, err);
    struct item whole = {
        .kind = ITEM_CHUNK,
        .source = cutter->source,
        .first_move = cutter->first,
        .move_count = (uint32_t)(last - cutter->first),
        .lo = lo,
        .hi = hi,
        .bytes = hi - lo,
    };
    enum rf_code code = flush_slices(cutter, err);
    return code == RF_OK ? list_add(cutter->list, &whole, err) : code;
}

static enum rf_code cut_chunks(struct cutter *cutter, struct rf_error *err)
{
    const struct fork_move *moves = cutter->plan->moves;
    enum rf_code code = RF_OK;

    for (uint64_t lo = 0; code == RF_OK && lo < cutter->stream_bytes;) {
        uint64_t left = cutter->stream_bytes - lo;

        code = cut_chunk(cutter, lo, lo + (left < cutter->chunk_bytes ? left : cutter->chunk_bytes),
                         err);
        if (cutter->first == cutter->end)
            break;
        /* Over chunks of which nothing is wanted. */
        uint64_t next =
            moves[cutter->first].read.offset / cutter->chunk_bytes * cutter->chunk_bytes;
        lo += cutter->chunk_bytes;
        lo = next > lo ? next : lo;
    }
    return code == RF_OK ? flush_slices(cutter, err) : code;
}

/* Elements that are converted must arrive whole, which chunks do not care for. */
static enum rf_code cut_converting(struct item_list *list, const struct fork_plan *plan,
                                   uint64_t index, struct rf_error *err)
{
    const struct fork_move *move = &plan->moves[index];
    uint64_t bytes = move_bytes(move);
    enum rf_code code = RF_OK;

    for (uint64_t lo = 0; code == RF_OK && lo < bytes; lo += FORK_ITEM_BYTES) {
        uint64_t left = bytes - lo;
        struct item item = {
            .kind = ITEM_LINEAR,
            .source = move->source,
            .first_move = index,
            .move_count = 1,
            .lo = lo,
            .hi = lo + (left < FORK_ITEM_BYTES ? left : FORK_ITEM_BYTES),
        };

        item.bytes = item.hi - item.lo;
        code = list_add(list, &item, err);
    }
    return code;
}

enum rf_code item_list_make(const struct fork_plan *plan, struct item_list *ret_list,
                            struct rf_error *err)
{
    struct item_list list = {.count = 0};
    enum rf_code code = check_moves(plan, &list, err);
    uint64_t steps = 0;

    for (uint64_t at = 0; code == RF_OK && at < plan->move_count;) {
        uint32_t of = plan->moves[at].source;
        const struct fork_source *source = &plan->sources[of];
        struct cutter cutter = {
            .plan = plan,
            .list = &list,
            .source = of,
            .stream_bytes = source->manifest->ranks[source->rank].stream_bytes,
            .chunk_bytes = source->manifest->chunk_bytes,
            .first = at,
            .steps = steps,
        };

        while (at < plan->move_count && plan->moves[at].source == of && !converts(&plan->moves[at]))
            at++;
        cutter.end = at;
        if (cutter.first < at)
            code = cut_chunks(&cutter, err);
        steps = cutter.steps;
        for (; code == RF_OK && at < plan->move_count && plan->moves[at].source == of; at++)
            code = cut_converting(&list, plan, at, err);
    }
    if (code != RF_OK) {
        item_list_free(&list);
        return code;
    }
    *ret_list = list;
    return RF_OK;
}

void item_list_free(struct item_list *list)
{
    free(list->items);
    *list = (struct item_list){.items = NULL};
}
