/* Pieces of one cut as places in another. */
#include "model/convert.h"
#include "model/reshard_internal.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- lists of moves ---- */

static struct rs_list *list_of(struct rs_rank *rank, uint32_t holder)
{
    if (rank->slot[holder] > 0)
        return &rank->lists[rank->slot[holder] - 1];
    if (rank->list_count == rank->list_room) {
        uint32_t wanted = rank->list_room == 0 ? 8 : rank->list_room * 2;
        struct rs_list *grown = reallocarray(rank->lists, wanted, sizeof *grown);

        if (grown == NULL)
            return NULL;
        rank->lists = grown;
        rank->list_room = wanted;
    }
    struct rs_list *list = &rank->lists[rank->list_count++];
    *list = (struct rs_list){.holder = holder, .tensor = MANIFEST_NONE};
    rank->slot[holder] = rank->list_count;
    return list;
}

static enum rf_code list_grow(struct rs *rs, struct rs_list *list, struct rf_error *err)
{
    uint64_t wanted = list->room == 0 ? 64 : list->room * 2;
    uint64_t more = wanted - list->room;

    /* relaxed: a sum */
    if (atomic_fetch_add_explicit(&rs->move_count, more, memory_order_relaxed) + more >
        2 * (uint64_t)RESHARD_MAX_MOVES)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "the seed and the new instance are cut so differently that more than %d "
                       "moves would be needed",
                       RESHARD_MAX_MOVES);
    struct reshard_move *grown = reallocarray(list->moves, wanted, sizeof *grown);
    if (grown == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " moves", wanted);
    list->moves = grown;
    list->room = wanted;
    return RF_OK;
}

/* Rows that go on at the same distances. A single piece has any distance to the next one. */
static bool rows_join(struct reshard_move *last, const struct reshard_move *next)
{
    bool single = last->read.count == 1;
    uint64_t stride = single ? next->read.offset - last->read.offset : last->read.stride;
    uint64_t write_stride = single ? next->write_offset - last->write_offset : last->write_stride;

    if (last->read.bytes != next->read.bytes || last->from != next->from || last->to != next->to ||
        next->read.offset <= last->read.offset || next->write_offset <= last->write_offset ||
        next->read.offset - last->read.offset != last->read.count * stride ||
        next->write_offset - last->write_offset != last->read.count * write_stride ||
        (next->read.count > 1 &&
         (next->read.stride != stride || next->write_stride != write_stride)))
        return false;
    last->read.stride = stride;
    last->write_stride = write_stride;
    last->read.count += next->read.count;
    return true;
}

bool rs_move_join(struct reshard_move *last, const struct reshard_move *next, bool rows)
{
    /* Bytes that are not converted have no dtype. */
    if (last->read.count == 1 && next->read.count == 1 && last->from == last->to &&
        next->from == next->to && last->read.offset + last->read.bytes == next->read.offset &&
        last->write_offset + last->read.bytes == next->write_offset) {
        last->read.bytes += next->read.bytes;
        return true;
    }
    return rows && rows_join(last, next);
}

enum rf_code rs_move_add(struct rs *rs, struct rs_rank *rank, uint32_t holder,
                         const struct reshard_move *move, struct rf_error *err)
{
    struct rs_list *list = list_of(rank, holder);
    uint64_t bytes = move->read.bytes * move->read.count;

    if (list == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for moves");
    list->read_bytes += bytes;
    if (rank->sharing)
        rs->plan->holders[holder].read_bytes += bytes;
    /* Experts of a stack are rows at equal distances; of other tensors that is chance. */
    bool rows = list->tensor == rank->tensor;
    list->tensor = rank->tensor;
    if (list->count > 0 && rs_move_join(&list->moves[list->count - 1], move, rows))
        return RF_OK;
    if (list->count == list->room) {
        enum rf_code code = list_grow(rs, list, err);
        if (code != RF_OK)
            return code;
    }
    list->moves[list->count++] = *move;
    return RF_OK;
}

/* How many of the moves that follow `move`, which was just joined to `last`, can be, too: all that
 * are left, or none that it would know of. */
static uint64_t steps_join(struct reshard_move *last, const struct reshard_move *move,
                           const struct rs_steps *steps, uint64_t left)
{
    if (last->read.count == 1) {
        if (steps->read != move->read.bytes || steps->write != move->read.bytes)
            return 0;
        last->read.bytes += left * move->read.bytes;
        return left;
    }
    if (steps->read != move->read.count * last->read.stride ||
        steps->write != move->read.count * last->write_stride)
        return 0;
    last->read.count += left * move->read.count;
    return left;
}

enum rf_code rs_moves_add(struct rs *rs, struct rs_rank *rank, uint32_t holder,
                          const struct reshard_move *move, const struct rs_steps *steps,
                          struct rf_error *err)
{
    struct reshard_move next = *move;
    uint64_t bytes = move->read.bytes * move->read.count;
    enum rf_code code = rs_move_add(rs, rank, holder, &next, err);

    for (uint64_t i = 1; i < steps->count && code == RF_OK; i++) {
        struct rs_list *list = list_of(rank, holder);
        uint64_t before = list->count;

        next.read.offset += steps->read;
        next.write_offset += steps->write;
        code = rs_move_add(rs, rank, holder, &next, err);
        if (code == RF_OK && before > 0 && list->count == before) {
            uint64_t joined =
                steps_join(&list->moves[before - 1], &next, steps, steps->count - 1 - i);

            i += joined;
            next.read.offset += joined * steps->read;
            next.write_offset += joined * steps->write;
            list->read_bytes += joined * bytes;
            if (rank->sharing)
                rs->plan->holders[holder].read_bytes += joined * bytes;
        }
    }
    return code;
}

/* ---- geometry ---- */

/* Rows of equal bytes at equal distances on both sides; where they touch on both, they are one. */
struct rows {
    uint64_t read_at;
    uint64_t read_stride;
    uint64_t write_at;
    uint64_t write_stride;
    uint64_t elements; /* of a row */
    uint64_t count;
};

/* Bytes of so many elements. Where elements are parts of a byte, what is cut is whole bytes. */
static uint64_t bytes_of(enum rf_dtype dtype, uint64_t elements)
{
    return elements * rf_dtype_bits(dtype) / 8;
}

static void template_record(struct rs_template *template, const struct rs_need *need,
                            const struct rs_piece *piece, const struct reshard_move *move)
{
    if (template->share_count++ >= RS_MAX_SHARES)
        return;
    struct rs_share *share = &template->shares[template->share_count - 1];
    for (unsigned i = 0; i + 1 < template->share_count; i++)
        template->apart = template->apart &&template->shares[i].holder != piece->holder;
    *share = (struct rs_share){.holder = piece->holder, .cut = piece->cut, .move = *move};
    share->move.read.offset -= piece->at;
    share->move.write_offset -= need->at;
}

static enum rf_code rows_add(struct rs *rs, struct rs_rank *rank, const struct rs_need *need,
                             const struct rs_piece *piece, const struct rows *rows,
                             struct rf_error *err)
{
    bool touch = rows->read_stride == rows->elements && rows->write_stride == rows->elements;
    uint64_t elements = touch ? rows->elements * rows->count : rows->elements;
    uint64_t count = touch ? 1 : rows->count;
    const struct reshard_move move = {
        .read = {.offset = piece->at + bytes_of(piece->dtype, rows->read_at),
                 .bytes = bytes_of(piece->dtype, elements),
                 .stride = count > 1 ? bytes_of(piece->dtype, rows->read_stride) : 0,
                 .count = count},
        .write_offset = need->at + bytes_of(need->dtype, rows->write_at),
        .write_stride = count > 1 ? bytes_of(need->dtype, rows->write_stride) : 0,
        .from = (uint8_t)piece->dtype,
        .to = (uint8_t)need->dtype,
    };

    if (rank->recording != NULL)
        template_record(rank->recording, need, piece, &move);
    return rs_move_add(rs, rank, piece->holder, &move, err);
}

/* Elements of one step along the axis, and rows before it. */
static uint64_t inner_of(const struct rs_source *source, uint32_t axis)
{
    uint64_t inner = 1;

    for (uint32_t i = axis + 1; i < source->ndim; i++)
        inner *= source->shape[i];
    return inner;
}

static uint64_t outer_of(const struct rs_source *source, uint32_t axis)
{
    uint64_t outer = 1;

    for (uint32_t i = 0; i < axis; i++)
        outer *= source->shape[i];
    return outer;
}

/* Both are cut along one axis (a whole one is cut along any): [from, to) of it. */
static enum rf_code emit_along(struct rs *rs, struct rs_rank *rank, const struct rs_need *need,
                               const struct rs_piece *piece, uint64_t from, uint64_t to,
                               struct rf_error *err)
{
    const struct rs_source *source = &rs->sources[need->source];
    uint32_t axis = piece->whole ? need->axis : piece->axis;
    uint64_t n = rs_length(source, axis);
    uint64_t inner = inner_of(source, axis);
    uint64_t piece_start = piece->whole ? 0 : piece->start;
    uint64_t piece_count = piece->whole ? n : piece->count;
    uint64_t need_start = need->whole ? 0 : need->start;
    uint64_t need_count = need->whole ? n : need->count;
    const struct rows rows = {
        .read_at = (from - piece_start) * inner,
        .read_stride = piece_count * inner,
        .write_at = (from - need_start) * inner,
        .write_stride = need_count * inner,
        .elements = (to - from) * inner,
        .count = outer_of(source, axis),
    };

    return rows_add(rs, rank, need, piece, &rows, err);
}

/* The holder cut along one axis and the wanted rank along another: rows of the inner one of the
 * two, for each step of the outer one that both have. */
static enum rf_code emit_across(struct rs *rs, struct rs_rank *rank, const struct rs_need *need,
                                const struct rs_piece *piece, uint64_t from, uint64_t to,
                                struct rf_error *err)
{
    const struct rs_source *source = &rs->sources[need->source];
    bool piece_outside = piece->axis < need->axis;
    uint32_t low = piece_outside ? piece->axis : need->axis;
    uint32_t high = piece_outside ? need->axis : piece->axis;
    uint64_t low_n = source->shape[low];
    uint64_t high_n = source->shape[high];
    uint64_t inner = inner_of(source, high);
    uint64_t middle = 1;
    uint64_t outer = outer_of(source, low);
    enum rf_code code = RF_OK;

    for (uint32_t i = low + 1; i < high; i++)
        middle *= source->shape[i];
    if (outer > RS_MAX_ROWS)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "tensor %.*s of the checkpoint: cut along axis %" PRIu32 " at the seed and "
                       "%" PRIu32 " here, behind %" PRIu64 " rows: more than %d moves",
                       RS_SHOWN_NAME, source->name, piece->axis, need->axis, outer, RS_MAX_ROWS);
    for (uint64_t o = 0; o < outer && code == RF_OK; o++) {
        struct rows rows;

        if (piece_outside) {
            rows = (struct rows){
                .read_at =
                    ((o * piece->count + from - piece->start) * middle * high_n + need->start) *
                    inner,
                .read_stride = high_n * inner,
                .write_at = (o * low_n + from) * middle * need->count * inner,
                .write_stride = need->count * inner,
                .elements = need->count * inner,
                .count = (to - from) * middle,
            };
        } else {
            rows = (struct rows){
                .read_at =
                    ((o * low_n + need->start) * middle * piece->count + from - piece->start) *
                    inner,
                .read_stride = piece->count * inner,
                .write_at = (o * need->count * middle * high_n + from) * inner,
                .write_stride = high_n * inner,
                .elements = (to - from) * inner,
                .count = need->count * middle,
            };
        }
        code = rows_add(rs, rank, need, piece, &rows, err);
    }
    return code;
}

enum rf_code rs_emit(struct rs *rs, struct rs_rank *rank, const struct rs_need *need,
                     const struct rs_piece *piece, uint64_t from, uint64_t to, struct rf_error *err)
{
    if (piece->whole || need->whole || piece->axis == need->axis)
        return emit_along(rs, rank, need, piece, from, to, err);
    return emit_across(rs, rank, need, piece, from, to, err);
}
