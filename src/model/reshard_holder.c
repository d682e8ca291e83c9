/* Where holders have the tensors of the checkpoint. */
#include "model/reshard_internal.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- how they are cut ---- */

bool rs_cut_same(const struct rs_cut *a, const struct rs_cut *b)
{
    return a->start == b->start && a->count == b->count && a->class == b->class &&
           a->axis == b->axis && a->dtype == b->dtype && a->whole == b->whole;
}

static struct rs_cut cut_of(const struct rs *rs, const struct tensor *tensor,
                            const struct part *part, uint32_t source)
{
    struct rs_cut cut = {.class = rs->classes[source], .dtype = (uint8_t)tensor->dtype};

    if (part == NULL) {
        cut.whole = true;
        cut.count = rs_length(rs_like(rs, source), 0);
        return cut;
    }
    cut.axis = (uint8_t)part->axis; /* below RF_MAX_DIMS */
    cut.start = part->start;
    cut.count = part->count;
    cut.whole = part->start == 0 && part->count == rs_length(rs_like(rs, source), part->axis);
    return cut;
}

/* The number of a cut; mostly the one that came last. Only the first are told from each other: a
 * number more for the same cut costs those that compare it some time, and nothing else. */
static enum rf_code cut_number(struct rs_holder *holder, const struct rs_cut *cut,
                               uint32_t *ret_number, struct rf_error *err)
{
    uint32_t near = holder->cut_count < RS_CUTS_NEAR ? holder->cut_count : RS_CUTS_NEAR;

    if (holder->cut_count > 0 && rs_cut_same(&holder->cuts[holder->cut_last], cut)) {
        *ret_number = holder->cut_last;
        return RF_OK;
    }
    for (uint32_t i = 0; i < near; i++) {
        if (rs_cut_same(&holder->cuts[i], cut)) {
            *ret_number = holder->cut_last = i;
            return RF_OK;
        }
    }
    if (holder->cut_count == holder->cut_room) {
        uint32_t wanted = holder->cut_room == 0 ? RS_CUTS_NEAR : holder->cut_room * 2;
        struct rs_cut *grown = reallocarray(holder->cuts, wanted, sizeof *grown);

        if (grown == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory to index a rank");
        holder->cuts = grown;
        holder->cut_room = wanted;
    }
    holder->cuts[holder->cut_count] = *cut;
    *ret_number = holder->cut_last = holder->cut_count++;
    return RF_OK;
}

/* ---- an index ---- */

static enum rf_code place_add(struct rs_holder *holder, uint32_t source, struct rs_place place,
                              struct rf_error *err)
{
    if (holder->places[source].cut == RS_NOWHERE) {
        holder->places[source] = place;
        holder->place_count++;
        return RF_OK;
    }
    if (holder->extra_count == holder->extra_room) {
        uint32_t wanted = holder->extra_room == 0 ? 64 : holder->extra_room * 2;
        struct rs_extra *grown = reallocarray(holder->extras, wanted, sizeof *grown);

        if (grown == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory to index a rank");
        holder->extras = grown;
        holder->extra_room = wanted;
    }
    holder->extras[holder->extra_count++] = (struct rs_extra){source, place};
    return RF_OK;
}

static enum rf_code part_index(const struct rs *rs, struct rs_holder *holder,
                               const struct tensor *tensor, const struct part *part,
                               uint32_t source, struct rf_error *err)
{
    const struct rs_cut cut = cut_of(rs, tensor, part, source);
    struct rs_place place = {.at = tensor->stream_offset + (part != NULL ? part->offset : 0)};
    enum rf_code code = cut_number(holder, &cut, &place.cut, err);

    return code == RF_OK ? place_add(holder, source, place, err) : code;
}

/* The source of a part that has bytes of one, or MANIFEST_NONE. */
static uint32_t part_source(const struct rs_holder *holder, const struct part *part)
{
    return part->source == MANIFEST_NONE || part->bytes == 0 ? MANIFEST_NONE
                                                             : holder->map[part->source];
}

static enum rf_code tensor_index(const struct rs *rs, struct rs_holder *holder,
                                 const struct tensor *tensor, uint32_t *cursor,
                                 struct rf_error *err)
{
    uint32_t source = MANIFEST_NONE;
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < tensor->part_count && code == RF_OK; i++) {
        source = part_source(holder, &tensor->parts[i]);
        if (source != MANIFEST_NONE)
            code = part_index(rs, holder, tensor, &tensor->parts[i], source, err);
    }
    if (code != RF_OK || tensor->part_count > 0 || tensor->bytes == 0 ||
        !rs_whole_tensors(holder->manifest))
        return code;
    code = rs_tensor_match(rs, tensor, cursor, &source, err);
    if (code == RF_OK && source != MANIFEST_NONE)
        code = part_index(rs, holder, tensor, NULL, source, err);
    return code;
}

static int compare_extras(const void *a, const void *b)
{
    uint32_t x = ((const struct rs_extra *)a)->source;
    uint32_t y = ((const struct rs_extra *)b)->source;

    return x < y ? -1 : x > y;
}

static enum rf_code extras_check(const struct rs *rs, const struct rs_holder *holder,
                                 struct rf_error *err)
{
    char text[64];

    for (uint32_t i = RS_MAX_SAME - 1; i < holder->extra_count; i++) {
        uint32_t source = holder->extras[i].source;

        if (holder->extras[i - (RS_MAX_SAME - 1)].source == source)
            return rf_fail(err, RF_E_UNSUPPORTED, "rank %s: has %.*s in more than %d places",
                           rank_id_text(&holder->rank->id, text), RS_SHOWN_NAME,
                           rs->sources[source].name, RS_MAX_SAME);
    }
    return RF_OK;
}

/* ---- the index of another one ---- */

/* Whether the tensor's parts lie where the places say; cuts become this holder's. */
static bool tensor_alike(const struct rs *rs, struct rs_holder *holder,
                         const struct rs_holder *like, const struct tensor *tensor)
{
    for (uint32_t i = 0; i < tensor->part_count; i++) {
        const struct part *part = &tensor->parts[i];
        uint32_t source = part_source(holder, part);

        if (source == MANIFEST_NONE)
            continue;
        const struct rs_place place = like->places[source];
        if (place.cut == RS_NOWHERE || place.at != tensor->stream_offset + part->offset)
            return false;
        struct rs_cut *cut = &holder->cuts[place.cut];
        if (cut->class == RS_NO_CLASS)
            *cut = cut_of(rs, tensor, part, source);
        if (cut->start != part->start || cut->count != part->count || cut->axis != part->axis ||
            cut->dtype != tensor->dtype)
            return false;
        holder->place_count++;
    }
    return tensor->part_count > 0 || tensor->bytes == 0;
}

/* Ranks of one instance mostly have everything at the same places and differ only in which slices
 * of it they have: then one index is enough, which stays in the cache, and the cuts are each one's
 * own. */
static enum rf_code index_borrow(const struct rs *rs, struct rs_holder *holder,
                                 const struct rs_holder *like, bool *ret_done, struct rf_error *err)
{
    bool alike = like->extra_count == 0;

    *ret_done = false;
    if (!alike)
        return RF_OK;
    holder->cuts = calloc(like->cut_count + (size_t)1, sizeof *holder->cuts);
    if (holder->cuts == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to index a rank");
    for (uint32_t i = 0; i < like->cut_count; i++)
        holder->cuts[i].class = RS_NO_CLASS;
    for (uint32_t i = 0; i < holder->rank->tensor_count && alike; i++) {
        const struct tensor *tensor = &holder->rank->tensors[i];

        if (tensor->alias_of == MANIFEST_NONE)
            alike = tensor_alike(rs, holder, like, tensor);
    }
    /* No two parts are at one place: as many as there are is all of them. */
    if (alike && holder->place_count == like->place_count) {
        holder->places = like->places;
        holder->cut_count = like->cut_count;
        *ret_done = true;
        return RF_OK;
    }
    free(holder->cuts);
    holder->cuts = NULL;
    holder->place_count = 0;
    return RF_OK;
}

enum rf_code rs_index(struct rs *rs, uint32_t index, struct rf_error *err)
{
    struct rs_holder *holder = &rs->holders[index];
    enum rf_code code = RF_OK;
    uint32_t cursor = 0;
    bool done = false;

    if (index > 0)
        code = index_borrow(rs, holder, &rs->holders[0], &done, err);
    if (code != RF_OK || done)
        return code;
    holder->places = malloc((rs->source_count + (size_t)1) * sizeof *holder->places);
    if (holder->places == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to index %" PRIu32 " tensors", rs->source_count);
    holder->own = true;
    memset(holder->places, 0xff, rs->source_count * sizeof *holder->places); /* RS_NOWHERE */
    for (uint32_t i = 0; i < holder->rank->tensor_count && code == RF_OK; i++) {
        const struct tensor *tensor = &holder->rank->tensors[i];

        if (tensor->alias_of == MANIFEST_NONE)
            code = tensor_index(rs, holder, tensor, &cursor, err);
    }
    if (code == RF_OK && holder->extra_count > 0) {
        qsort(holder->extras, holder->extra_count, sizeof *holder->extras, compare_extras);
        code = extras_check(rs, holder, err);
    }
    return code;
}

void rs_holder_free(struct rs_holder *holder)
{
    if (holder->own)
        free(holder->places);
    free(holder->cuts);
    free(holder->extras);
}

/* ---- looking ---- */

static struct rs_piece piece_of(const struct rs_holder *holder, uint32_t index,
                                struct rs_place place)
{
    const struct rs_cut *cut = &holder->cuts[place.cut];

    return (struct rs_piece){.holder = index,
                             .cut = place.cut,
                             .axis = cut->axis,
                             .start = cut->start,
                             .count = cut->count,
                             .whole = cut->whole,
                             .dtype = cut->dtype,
                             .at = place.at};
}

unsigned rs_pieces(const struct rs *rs, uint32_t index, uint32_t source,
                   struct rs_piece out[RS_MAX_SAME])
{
    const struct rs_holder *holder = &rs->holders[index];
    unsigned count = 0;

    if (holder->places[source].cut == RS_NOWHERE)
        return 0;
    out[count++] = piece_of(holder, index, holder->places[source]);
    if (holder->extra_count == 0)
        return count;
    uint32_t low = 0;
    uint32_t high = holder->extra_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (holder->extras[middle].source < source)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < holder->extra_count && holder->extras[low].source == source; low++)
        out[count++] = piece_of(holder, index, holder->extras[low].place);
    return count;
}
