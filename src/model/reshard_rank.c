/* One wanted rank: what it needs, and from whom. */
#include "model/compare.h"
#include "model/reshard_internal.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- what is needed ---- */

static enum rf_code share_later(struct rs_rank *rank, const struct rs_need *need,
                                struct rf_error *err)
{
    if (rank->shared_count == rank->shared_room) {
        uint32_t wanted = rank->shared_room == 0 ? 64 : rank->shared_room * 2;
        struct rs_need *grown = reallocarray(rank->shared, wanted, sizeof *grown);

        if (grown == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for what several holders have");
        rank->shared = grown;
        rank->shared_room = wanted;
    }
    rank->shared[rank->shared_count++] = *need;
    return RF_OK;
}

static enum rf_code fill_add(struct rs_rank *rank, uint64_t offset, const struct part *constant,
                             struct rf_error *err)
{
    if (rank->fill_count == rank->fill_room) {
        uint32_t wanted = rank->fill_room == 0 ? 16 : rank->fill_room * 2;
        struct reshard_fill *grown = reallocarray(rank->fills, wanted, sizeof *grown);

        if (grown == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for what is filled");
        rank->fills = grown;
        rank->fill_room = wanted;
    }
    rank->fills[rank->fill_count++] = (struct reshard_fill){offset, constant};
    rank->fill_bytes += constant->bytes;
    return RF_OK;
}

/* ---- what was planned before ---- */

/* What is whole follows from the rest. */
static bool template_fits(const struct rs *rs, const struct rs_template *template,
                          const struct rs_need *need)
{
    const struct rs_need *as = &template->need;

    return template->used && template->class == rs->classes[need->source] &&
           as->start == need->start && as->count == need->count && as->axis == need->axis &&
           as->dtype == need->dtype;
}

/* The one that fits, or the one to be made anew: what a rank needs is of a few dozen kinds, some of
 * which alternate and must not drive each other out. */
static struct rs_template *template_of(const struct rs *rs, struct rs_rank *rank,
                                       const struct rs_need *need)
{
    uint64_t key = rs->classes[need->source] + 0x9e3779b97f4a7c15 * need->start +
                   UINT64_C(31) * need->axis + 7 * (uint64_t)need->dtype;
    uint64_t slot = key ^ key >> 32;

    for (unsigned i = 0; i < RS_TEMPLATE_PROBES; i++) {
        struct rs_template *template = &rank->templates[(slot + i) % RS_TEMPLATES];

        if (!template->used || template_fits(rs, template, need))
            return template;
    }
    return &rank->templates[(slot + rank->turn++ % RS_TEMPLATE_PROBES) % RS_TEMPLATES];
}

/* Whether the holder has this source as it had the other; *ret_at: where. */
static bool share_fits(const struct rs *rs, const struct rs_share *share, uint32_t source,
                       uint64_t *ret_at)
{
    const struct rs_holder *holder = &rs->holders[share->holder];
    struct rs_place place = holder->places[source];

    if (place.cut == RS_NOWHERE || holder->extra_count > 0)
        return false;
    *ret_at = place.at;
    return place.cut == share->cut ||
           rs_cut_same(&holder->cuts[place.cut], &holder->cuts[share->cut]);
}

/* How many parts from the first on (which the template fits) the template fits, too, at equal
 * distances on both sides: a run of experts. */
static uint32_t run_length(const struct rs *rs, const struct rs_template *template,
                           const struct part *parts, uint32_t count,
                           struct rs_steps steps[RS_MAX_SHARES])
{
    const struct part *first = parts;
    uint32_t length = 1;

    if (!template->apart)
        return 1;
    for (; length < count; length++) {
        const struct part *part = &parts[length];

        if (part->source == MANIFEST_NONE || part->axis != first->axis ||
            part->start != first->start || part->count != first->count || part->bytes == 0)
            break;
        uint64_t write = part->offset - part[-1].offset;
        unsigned alike = 0;
        for (; alike < template->share_count; alike++) {
            const struct rs_place *places = rs->holders[template->shares[alike].holder].places;
            const struct rs_place *place = &places[part->source];
            uint64_t read = place->at - places[part[-1].source].at;

            /* Of the same cut: of the same class, too. */
            if (place->cut != places[first->source].cut ||
                (length > 1 && (read != steps[alike].read || write != steps[alike].write)))
                break;
            steps[alike].read = read;
            steps[alike].write = write;
        }
        if (alike < template->share_count)
            break;
    }
    return length;
}

/* Plans a need as one before, and those of the parts that follow it (part_count of them, its own
 * the first) that go on in the same way; *ret_done: how many. */
static enum rf_code template_take(struct rs *rs, struct rs_rank *rank,
                                  const struct rs_template *template, const struct rs_need *need,
                                  const struct part *parts, uint32_t part_count, uint32_t *ret_done,
                                  struct rf_error *err)
{
    uint64_t at[RS_MAX_SHARES];
    struct rs_steps steps[RS_MAX_SHARES] = {{.count = 0}};
    enum rf_code code = RF_OK;

    *ret_done = 0;
    if (template->shared) {
        *ret_done = 1;
        return share_later(rank, need, err);
    }
    for (unsigned i = 0; i < template->share_count; i++) {
        if (!share_fits(rs, &template->shares[i], need->source, &at[i]))
            return RF_OK;
    }
    if (template->share_count == 0)
        return RF_OK;
    *ret_done = run_length(rs, template, parts, part_count, steps);
    rank->tensor = need->tensor;
    for (unsigned i = 0; i < template->share_count && code == RF_OK; i++) {
        const struct rs_share *share = &template->shares[i];
        struct reshard_move move = share->move;

        move.read.offset += at[i];
        move.write_offset += need->at;
        steps[i].count = *ret_done;
        code = rs_moves_add(rs, rank, share->holder, &move, &steps[i], err);
    }
    return code;
}

/* Plans a need and those of the parts that follow it which are like it; *ret_done: how many in
 * all. part_count 1: of a tensor without parts. */
static enum rf_code need_plan(struct rs *rs, struct rs_rank *rank, struct rs_need *need,
                              const struct part *parts, uint32_t part_count, uint32_t *ret_done,
                              struct rf_error *err)
{
    struct rs_template *template = template_of(rs, rank, need);
    enum rf_code code = RF_OK;

    *ret_done = 0;
    if (template_fits(rs, template, need))
        code = template_take(rs, rank, template, need, parts, part_count, ret_done, err);
    if (code != RF_OK || *ret_done > 0)
        return code;
    *ret_done = 1;
    *template = (struct rs_template){.used = true,
                                     .need = *need,
                                     .class = rs->classes[need->source],
                                     .apart = true,
                                     .shared = rs_shared(rs, rank, need)};
    if (template->shared)
        return share_later(rank, need, err);
    rank->recording = template;
    code = rs_cover(rs, rank, need, false, err);
    rank->recording = NULL;
    if (template->share_count > RS_MAX_SHARES)
        template->share_count = 0;
    return code;
}

static enum rf_code tensor_opaque(const struct rs *rs, const struct rs_rank *rank,
                                  const struct tensor *tensor, struct rf_error *err)
{
    char text[64];

    return rf_fail(err, RF_E_MISMATCH,
                   "rank %s: tensor %.*s: nothing says of what it is made, and no seed has a rank "
                   "that is equal to this one",
                   rank_id_text(&rs->wanted->ranks[rank->index].id, text), RS_SHOWN_NAME,
                   tensor->name);
}

/* Plans a part and those behind it that are like it; *ret_done: how many. */
static enum rf_code part_plan(struct rs *rs, struct rs_rank *rank, const struct tensor *tensor,
                              struct rs_need *need, uint32_t index, uint32_t *ret_done,
                              struct rf_error *err)
{
    const struct part *part = &tensor->parts[index];

    *ret_done = 1;
    need->at = tensor->stream_offset + part->offset;
    if (part->bytes == 0)
        return RF_OK;
    if (part->source == MANIFEST_NONE)
        return fill_add(rank, need->at, part, err);
    need->source = part->source;
    need->axis = part->axis;
    need->start = part->start;
    need->count = part->count;
    need->whole =
        part->start == 0 && part->count == rs_length(rs_like(rs, part->source), part->axis);
    return need_plan(rs, rank, need, part, tensor->part_count - index, ret_done, err);
}

static enum rf_code tensor_plan(struct rs *rs, struct rs_rank *rank, uint32_t index,
                                struct rf_error *err)
{
    const struct tensor *tensor = &rs->wanted->ranks[rank->index].tensors[index];
    struct rs_need need = {.tensor = index, .dtype = tensor->dtype};
    enum rf_code code = RF_OK;
    uint32_t done = 0;

    for (uint32_t i = 0; i < tensor->part_count && code == RF_OK; i += done)
        code = part_plan(rs, rank, tensor, &need, i, &done, err);
    if (code != RF_OK || tensor->part_count > 0)
        return code;
    if (!rs_whole_tensors(rs->wanted) ||
        !rs_source_find(rs, tensor->name, tensor->name_bytes, &rank->cursor, &need.source))
        return tensor_opaque(rs, rank, tensor, err);
    need.at = tensor->stream_offset;
    need.whole = true;
    need.count = rs_length(&rs->sources[need.source], 0);
    return need_plan(rs, rank, &need, NULL, 1, &done, err);
}

/* Whether a holder has this very rank, so that its whole stream is the one wanted. */
static bool holder_same(const struct rs *rs, const struct rs_rank *rank, uint32_t index)
{
    const struct rs_holder *holder = &rs->holders[index];
    const struct manifest_rank *wanted = &rs->wanted->ranks[rank->index];

    if (rank_id_compare(&holder->rank->id, &wanted->id) != 0 ||
        holder->rank->stream_bytes != wanted->stream_bytes ||
        strcmp(holder->manifest->layout, rs->wanted->layout) != 0 ||
        holder->manifest->stage != rs->wanted->stage)
        return false;
    if (memcmp(holder->manifest->id, rs->wanted->id, sizeof rs->wanted->id) == 0)
        return true;
    return compare_tensors(holder->rank, wanted, NULL, NULL) == 0;
}

enum rf_code rs_rank_plan(struct rs *rs, struct rs_rank *rank, struct rf_error *err)
{
    const struct manifest_rank *wanted = &rs->wanted->ranks[rank->index];
    enum rf_code code = RF_OK;

    rank->slot = calloc(rs->holder_count + (size_t)1, sizeof *rank->slot);
    rank->templates = calloc(RS_TEMPLATES, sizeof *rank->templates);
    if (rank->slot == NULL || rank->templates == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to plan a rank");
    for (uint32_t h = 0; h < rs->holder_count && !rank->same; h++)
        rank->same = holder_same(rs, rank, h);
    for (uint32_t i = 0; i < wanted->tensor_count && !rank->same && code == RF_OK; i++) {
        const struct tensor *tensor = &wanted->tensors[i];
        if (tensor->alias_of == MANIFEST_NONE && tensor->bytes > 0)
            code = tensor_plan(rs, rank, i, err);
    }
    return code;
}

/* ---- sharing ---- */

static enum rf_code same_take(struct rs *rs, struct rs_rank *rank, struct rf_error *err)
{
    const struct manifest_rank *wanted = &rs->wanted->ranks[rank->index];
    const struct reshard_move move = {.read = {.bytes = wanted->stream_bytes, .count = 1},
                                      .from = RF_DTYPE_U8,
                                      .to = RF_DTYPE_U8};
    uint32_t best = MANIFEST_NONE;

    if (wanted->stream_bytes == 0)
        return RF_OK;
    for (uint32_t h = 0; h < rs->holder_count; h++) {
        if ((best == MANIFEST_NONE ||
             rs->plan->holders[h].read_bytes < rs->plan->holders[best].read_bytes) &&
            holder_same(rs, rank, h))
            best = h;
    }
    rank->sharing = true;
    return rs_move_add(rs, rank, best, &move, err);
}

static enum rf_code share_begin(struct rs *rs, struct rs_rank *rank, struct rf_error *err)
{
    if (rank->same)
        return same_take(rs, rank, err);
    rank->sharing = true;
    for (uint32_t l = 0; l < rank->list_count; l++)
        rank->lists[l].planned = rank->lists[l].count;
    return RF_OK;
}

/* Tensor by tensor, each for all ranks, which mostly need the same ones in the same order: where
 * holders have it is in the cache then. 23 ms for 64 ranks from 32 with 1,070 tensors that several
 * have. */
enum rf_code rs_ranks_share(struct rs *rs, struct rf_error *err)
{
    uint32_t rank_count = rs->wanted->rank_count;
    uint32_t most = 0;
    enum rf_code code = RF_OK;

    for (uint32_t r = 0; r < rank_count && code == RF_OK; r++) {
        code = share_begin(rs, &rs->ranks[r], err);
        if (!rs->ranks[r].same && rs->ranks[r].shared_count > most)
            most = rs->ranks[r].shared_count;
    }
    for (uint32_t i = 0; i < most && code == RF_OK; i++) {
        for (uint32_t r = 0; r < rank_count && code == RF_OK; r++) {
            struct rs_rank *rank = &rs->ranks[r];

            if (!rank->same && i < rank->shared_count)
                code = rs_cover(rs, rank, &rank->shared[i], true, err);
        }
    }
    return code;
}

/* ---- finishing ---- */

static int compare_moves(const void *a, const void *b)
{
    const struct reshard_move *x = a;
    const struct reshard_move *y = b;

    if (x->read.offset != y->read.offset)
        return x->read.offset < y->read.offset ? -1 : 1;
    return x->write_offset < y->write_offset ? -1 : x->write_offset > y->write_offset;
}

static void run_sort(struct reshard_move *moves, uint64_t count)
{
    for (uint64_t i = 1; i < count; i++) {
        if (compare_moves(&moves[i - 1], &moves[i]) > 0) {
            qsort(moves, count, sizeof *moves, compare_moves);
            return;
        }
    }
}

/* Two runs: what only one holder has, nearly always in order, and the few moves that were added
 * later because several have them. */
static enum rf_code list_sort(struct rs_list *list, struct rf_error *err)
{
    uint64_t later = list->count - list->planned;
    uint64_t left = list->planned;
    uint64_t out = list->count;

    run_sort(list->moves, list->planned);
    if (later == 0)
        return RF_OK;
    struct reshard_move *spare = malloc(later * sizeof *spare);
    if (spare == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to sort %" PRIu64 " moves", list->count);
    memcpy(spare, list->moves + list->planned, later * sizeof *spare);
    run_sort(spare, later);
    while (later > 0) {
        bool take_left = left > 0 && compare_moves(&list->moves[left - 1], &spare[later - 1]) > 0;
        list->moves[--out] = take_left ? list->moves[--left] : spare[--later];
    }
    free(spare);
    return RF_OK;
}

/* Joins neighbours that go on where the one before ends; they were not neighbours when they were
 * added. */
static void list_merge(struct rs_list *list)
{
    uint64_t kept = 0;

    for (uint64_t i = 1; i < list->count; i++) {
        if (!rs_move_join(&list->moves[kept], &list->moves[i], false) && ++kept != i)
            list->moves[kept] = list->moves[i];
    }
    if (list->count > 0)
        list->count = kept + 1;
}

static int compare_lists(const void *a, const void *b)
{
    uint32_t x = ((const struct rs_list *)a)->holder;
    uint32_t y = ((const struct rs_list *)b)->holder;

    return x < y ? -1 : x > y;
}

enum rf_code rs_rank_finish(struct rs *rs, struct rs_rank *rank, struct rf_error *err)
{
    struct reshard_rank *to = &rs->plan->ranks[rank->index];

    to->groups = calloc(rank->list_count + (size_t)1, sizeof *to->groups);
    if (to->groups == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a plan");
    if (rank->list_count > 0)
        qsort(rank->lists, rank->list_count, sizeof *rank->lists, compare_lists);
    for (uint32_t i = 0; i < rank->list_count; i++) {
        struct rs_list *list = &rank->lists[i];

        enum rf_code code = list_sort(list, err);
        if (code != RF_OK)
            return code;
        list_merge(list);
        to->groups[i] = (struct reshard_group){.holder = list->holder,
                                               .moves = list->moves,
                                               .move_count = list->count,
                                               .read_bytes = list->read_bytes};
        list->moves = NULL;
        to->move_count += list->count;
        to->read_bytes += list->read_bytes;
    }
    to->group_count = rank->list_count;
    to->fills = rank->fills;
    to->fill_count = rank->fill_count;
    to->fill_bytes = rank->fill_bytes;
    rank->fills = NULL;
    return RF_OK;
}
