/* Whose pieces make up a slice that is needed. */
#include "base/cleanup.h"
#include "model/reshard_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { COVER_IDLE_GUESSES = 8 };

/* ---- looking for holders ---- */

/* Whether a piece is of use for a need: has position `at` along `axis`, or all. */
static bool piece_has(const struct rs_piece *piece, uint32_t axis, uint64_t at)
{
    return piece->whole ||
           (piece->axis == axis && piece->start <= at && at - piece->start < piece->count);
}

/* The first position of a need that a piece cut like this could have. */
static uint64_t need_begin(const struct rs_need *need, const struct rs_piece *piece)
{
    return piece->axis == need->axis && !need->whole ? need->start : 0;
}

/* Where along which axis the next byte is looked for. Unknown at first: as the first holder is cut.
 * */
struct search {
    bool known;
    uint32_t axis;
    uint64_t at;
};

/* A draft model may have tensors of the same names and shapes. */
static bool same_role(const struct rs *rs, const struct rs_rank *rank, uint32_t holder)
{
    return rs->holders[holder].rank->id.role == rs->wanted->ranks[rank->index].id.role;
}

static bool holder_look(const struct rs *rs, struct rs_rank *rank, const struct rs_need *need,
                        const struct search *search, uint32_t holder, struct rs_piece *ret_piece)
{
    struct rs_piece pieces[RS_MAX_SAME];
    unsigned count = same_role(rs, rank, holder) ? rs_pieces(rs, holder, need->source, pieces) : 0;

    rank->looks += 1 + count;
    for (unsigned i = 0; i < count; i++) {
        const struct rs_piece *piece = &pieces[i];
        bool has = search->known ? piece_has(piece, search->axis, search->at)
                                 : piece_has(piece, piece->axis, need_begin(need, piece));
        if (has) {
            *ret_piece = *piece;
            return true;
        }
    }
    return false;
}

/* Whoever has it. What a rank needs comes from the same few holders again and again, in their
 * order. */
static bool find_any(const struct rs *rs, struct rs_rank *rank, const struct rs_need *need,
                     const struct search *search, struct rs_piece *ret_piece)
{
    uint32_t guesses[] = {rank->hint, rank->hint + 1, rank->base};

    if (!search->known)
        guesses[1] = rank->base;
    for (unsigned i = 0; i < sizeof guesses / sizeof guesses[0]; i++) {
        if (guesses[i] < rs->holder_count &&
            holder_look(rs, rank, need, search, guesses[i], ret_piece))
            return true;
    }
    for (uint32_t h = 0; h < rs->holder_count; h++) {
        if (holder_look(rs, rank, need, search, h, ret_piece))
            return true;
    }
    return false;
}

/* Whether more is read from a holder than from another; of equal ones, whether it is the later. */
static bool comes_after(const struct reshard_holder *holders, uint32_t holder, uint32_t other)
{
    uint64_t bytes = holders[holder].read_bytes;
    uint64_t other_bytes = holders[other].read_bytes;

    return bytes > other_bytes || (bytes == other_bytes && holder > other);
}

/* The holder from which least is read, of those that come after `last` in that order; holder_count:
 * there is none. last MANIFEST_NONE: of all. */
static uint32_t idle_after(const struct rs *rs, uint32_t last)
{
    const struct reshard_holder *holders = rs->plan->holders;
    uint32_t best = rs->holder_count;

    for (uint32_t h = 0; h < rs->holder_count; h++) {
        bool later = last == MANIFEST_NONE || comes_after(holders, h, last);

        if (later && (best == rs->holder_count || holders[h].read_bytes < holders[best].read_bytes))
            best = h;
    }
    return best;
}

/* Of those that have it, the one from which least is read: mostly one of the first that are looked
 * at. */
static bool find_idle(const struct rs *rs, struct rs_rank *rank, const struct rs_need *need,
                      const struct search *search, struct rs_piece *ret_piece)
{
    uint32_t idle = MANIFEST_NONE;
    bool found = false;

    for (unsigned i = 0; i < COVER_IDLE_GUESSES; i++) {
        idle = idle_after(rs, idle);
        if (idle == rs->holder_count)
            return false;
        if (holder_look(rs, rank, need, search, idle, ret_piece))
            return true;
    }
    for (uint32_t h = 0; h < rs->holder_count; h++) {
        struct rs_piece piece;

        if ((!found ||
             rs->plan->holders[h].read_bytes < rs->plan->holders[ret_piece->holder].read_bytes) &&
            holder_look(rs, rank, need, search, h, &piece)) {
            *ret_piece = piece;
            found = true;
        }
    }
    return found;
}

/* ---- covering a need ---- */

/* Ranks cut evenly: which of them would have this position. */
static void missing_rank_text(const struct rs *rs, const struct rs_rank *rank,
                              const struct rs_need *need, const struct search *search, char out[64])
{
    for (uint32_t h = 0; h < rs->holder_count; h++) {
        struct rs_piece pieces[RS_MAX_SAME];
        const struct rank_id *id = &rs->holders[h].rank->id;
        unsigned count = same_role(rs, rank, h) ? rs_pieces(rs, h, need->source, pieces) : 0;

        for (unsigned i = 0; i < count; i++) {
            const struct rs_piece *piece = &pieces[i];
            uint64_t n = rs_length(&rs->sources[need->source], piece->axis);
            uint64_t at = search->known ? search->at : need_begin(need, piece);
            struct rank_id missing = *id;

            /* The last ranks may have less of it, or padding only. */
            if (piece->whole || n / piece->count + (n % piece->count != 0) != id->tp_size ||
                (search->known && piece->axis != search->axis))
                continue;
            missing.tp = (uint32_t)(at / piece->count);
            missing.ep = (uint32_t)((uint64_t)missing.tp * missing.ep_size / missing.tp_size);
            rank_id_text(&missing, out);
            return;
        }
    }
    snprintf(out, 64, "none of those that are known");
}

/* Whether every tensor-parallel rank is there, and none has any of a source: then it is no rank
 * that is missing, but the engine's layout has no use for that tensor. */
static bool left_out(const struct rs *rs, uint32_t source)
{
    uint32_t size = rs->holder_count > 0 ? rs->holders[0].rank->id.tp_size : 0;
    rf_autofree bool *there = calloc(size + (size_t)1, sizeof *there);
    uint32_t count = 0;

    for (uint32_t h = 0; h < rs->holder_count && there != NULL; h++) {
        struct rs_piece pieces[RS_MAX_SAME];
        const struct rank_id *id = &rs->holders[h].rank->id;

        if (strcmp(rs->holders[h].manifest->layout, "checkpoint") == 0 || id->tp_size != size ||
            rs_pieces(rs, h, source, pieces) > 0)
            return false;
        count += !there[id->tp];
        there[id->tp] = true;
    }
    return size > 0 && count == size;
}

static enum rf_code missing_fail(const struct rs *rs, const struct rs_rank *rank,
                                 const struct rs_need *need, const struct search *search,
                                 struct rf_error *err)
{
    const struct manifest_rank *wanted = &rs->wanted->ranks[rank->index];
    const struct rs_source *source = &rs->sources[need->source];
    uint32_t axis = search->known ? search->axis : need->axis;
    uint64_t at = search->known ? search->at : need->start;
    char text[64];
    char other[64];

    if (left_out(rs, need->source))
        return rf_fail(err, RF_E_MISMATCH,
                       "rank %s: tensor %.*s needs %.*s, which none of the %" PRIu32
                       " ranks of the seed has: layout %s leaves it out; take it from a seed "
                       "with --layout checkpoint",
                       rank_id_text(&wanted->id, text), RS_SHOWN_NAME,
                       wanted->tensors[need->tensor].name, RS_SHOWN_NAME, source->name,
                       rs->holder_count, rs->holders[0].manifest->layout);
    missing_rank_text(rs, rank, need, search, other);
    return rf_fail(err, RF_E_MISMATCH,
                   "rank %s: tensor %.*s needs elements %" PRIu64 " to %" PRIu64 " of axis %" PRIu32
                   " of %.*s; no seed has element %" PRIu64 " of axis %" PRIu32 ", of the %" PRIu32
                   " ranks that are there; it would be in %s",
                   rank_id_text(&wanted->id, text), RS_SHOWN_NAME,
                   wanted->tensors[need->tensor].name, need->start, need->start + need->count - 1,
                   need->axis, RS_SHOWN_NAME, source->name, at, axis, rs->holder_count, other);
}

/* Whether what a piece holds can become what the need wants. */
static enum rf_code dtype_check(const struct rs *rs, const struct rs_need *need,
                                const struct rs_piece *piece, struct rf_error *err)
{
    enum rf_dtype own = rs->sources[need->source].dtype;

    /* Each is the source's dtype, or widened from it: back and forth nothing is lost. */
    if ((piece->dtype == own || need->dtype == own) || piece->dtype == need->dtype)
        return RF_OK;
    return rf_fail(err, RF_E_MISMATCH, "tensor %.*s of the checkpoint: %s at the seed, %s wanted",
                   RS_SHOWN_NAME, rs->sources[need->source].name, rf_dtype_name(piece->dtype),
                   rf_dtype_name(need->dtype));
}

/* One holder's share of a need, from search->at on; *ret_end: where along the axis it ends, and
 * *ret_all where the need does. */
static enum rf_code share_take(struct rs *rs, struct rs_rank *rank, const struct rs_need *need,
                               struct search *search, const struct rs_piece *piece,
                               uint64_t *ret_all, struct rf_error *err)
{
    const struct rs_source *source = &rs->sources[need->source];
    bool along = piece->whole || piece->axis == need->axis;

    if (!search->known) {
        search->known = true;
        search->axis = piece->whole ? need->axis : piece->axis;
        search->at = along && !need->whole ? need->start : 0;
    }
    bool own = search->axis == need->axis && !need->whole;
    uint64_t end = own ? need->start + need->count : rs_length(source, search->axis);
    *ret_all = end;
    /* A whole piece is cut along whatever axis the others are. */
    struct rs_piece as = *piece;
    if (piece->whole) {
        as.whole = false;
        as.axis = search->axis;
        as.start = 0;
        as.count = rs_length(source, search->axis);
    }
    if (as.start + as.count < end)
        end = as.start + as.count;
    uint64_t from = search->at;
    search->at = end;
    rank->hint = piece->holder;
    enum rf_code code = dtype_check(rs, need, piece, err);
    return code == RF_OK ? rs_emit(rs, rank, need, &as, from, end, err) : code;
}

enum rf_code rs_cover(struct rs *rs, struct rs_rank *rank, const struct rs_need *need, bool idle,
                      struct rf_error *err)
{
    struct search search = {.known = false};
    uint64_t end = 0;
    enum rf_code code = RF_OK;
    bool first = true;

    rank->tensor = need->tensor;
    do {
        struct rs_piece piece;

        if (rank->looks > RS_MAX_LOOKS)
            return rf_fail(
                err, RF_E_UNSUPPORTED,
                "tensor %.*s of the checkpoint: too many ranks have it in too many pieces",
                RS_SHOWN_NAME, rs->sources[need->source].name);
        bool found = idle ? find_idle(rs, rank, need, &search, &piece)
                          : find_any(rs, rank, need, &search, &piece);
        if (!found)
            return missing_fail(rs, rank, need, &search, err);
        if (first)
            rank->base = piece.holder;
        first = false;
        code = share_take(rs, rank, need, &search, &piece, &end, err);
    } while (code == RF_OK && search.at < end);
    return code;
}

bool rs_shared(const struct rs *rs, struct rs_rank *rank, const struct rs_need *need)
{
    const struct search search = {.known = false};
    unsigned count = 0;

    for (uint32_t h = 0; h < rs->holder_count && count < 2; h++) {
        struct rs_piece piece;
        count += holder_look(rs, rank, need, &search, h, &piece) ? 1 : 0;
    }
    return count > 1;
}
