/* Which tensors a layout has, and what they are made of. The same for all ranks. */
#include "base/cleanup.h"
#include "model/shard_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static enum rf_code fail_memory(const struct shard *shard)
{
    return rf_fail(shard->err, RF_E_NOMEM, "plan %s: no memory for its tensors", shard->plan->name);
}

static enum rf_code item_add(struct shard *shard, uint32_t source)
{
    if (shard->item_count == shard->item_room) {
        uint32_t wanted = shard->item_room == 0 ? 1024 : shard->item_room * 2;
        uint32_t *grown = reallocarray(shard->items, wanted, sizeof *grown);

        if (grown == NULL || shard->item_count > MANIFEST_MAX_PARTS)
            return fail_memory(shard);
        shard->items = grown;
        shard->item_room = wanted;
    }
    shard->items[shard->item_count++] = source;
    shard->bound[source].used = true;
    return RF_OK;
}

static enum rf_code output_add(struct shard *shard, const struct shard_output *output)
{
    if (shard->output_count == shard->output_room) {
        uint32_t wanted = shard->output_room == 0 ? 1024 : shard->output_room * 2;
        struct shard_output *grown = reallocarray(shard->outputs, wanted, sizeof *grown);

        if (grown == NULL)
            return fail_memory(shard);
        shard->outputs = grown;
        shard->output_room = wanted;
    }
    shard->outputs[shard->output_count++] = *output;
    return RF_OK;
}

/* ---- layout checkpoint ---- */

static enum rf_code outputs_checkpoint(struct shard *shard)
{
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < shard->source_count && code == RF_OK; i++) {
        struct shard_output output = {
            .name = shard->sources[i].name,
            .first_item = shard->item_count,
            .item_count = 1,
            .per_element = 1,
            .dtype = PLAN_NONE,
        };
        code = item_add(shard, i);
        if (code == RF_OK)
            code = output_add(shard, &output);
    }
    return code;
}

/* ---- other layouts ---- */

/* What one line makes for one layer. */
struct making {
    const struct plan_make *make;
    struct plan_numbers numbers;
    struct shard_output output;
    uint32_t missing; /* of the tensors it is made from */
    char missing_name[SHARD_SHOWN_NAME + 1];
};

static enum rf_code making_take(struct shard *shard, struct making *making,
                                const struct plan_pattern *from)
{
    char name[RF_MAX_NAME_BYTES + 1];
    size_t bytes = 0;
    uint32_t source = 0;

    if (!plan_name_make(from, &making->numbers, name, sizeof name, &bytes))
        return rf_fail(shard->err, RF_E_FORMAT, "plan %s: line %u: a name over %d bytes",
                       shard->plan->name, making->make->line, RF_MAX_NAME_BYTES);
    if (!strmap_find(shard->names, name, bytes, &source)) {
        if (making->missing++ == 0) {
            size_t shown = bytes < SHARD_SHOWN_NAME ? bytes : SHARD_SHOWN_NAME;
            memcpy(making->missing_name, name, shown);
            making->missing_name[shown] = '\0';
        }
        return RF_OK;
    }
    making->output.item_count++;
    return item_add(shard, source);
}

static enum rf_code making_stack(struct shard *shard, struct making *making)
{
    const struct plan_make *make = making->make;
    const struct shard_index *index = &shard->indices[make->stack];
    enum rf_code code = RF_OK;

    making->output.divided = index->count;
    making->output.elements =
        index->count + (make->from_count - make->stack_count) / make->stack_count;
    for (uint32_t i = 0; i < index->count && code == RF_OK; i++) {
        making->numbers.value[make->stack] = index->first + i;
        for (unsigned f = 0; f < make->stack_count && code == RF_OK; f++)
            code = making_take(shard, making, &make->from[f]);
    }
    return code;
}

static bool source_alike(const struct shard *shard, uint32_t a, uint32_t b)
{
    const struct manifest_source *x = &shard->sources[a];
    const struct manifest_source *y = &shard->sources[b];

    return shard->bound[a].rule == shard->bound[b].rule && x->dtype == y->dtype &&
           x->ndim == y->ndim &&
           (x->ndim == 0 || memcmp(x->shape, y->shape, x->ndim * sizeof *x->shape) == 0);
}

/* Whether what holds for the first element of a stack holds for all, so that it need not be worked
 * out for each expert. */
static bool elements_alike(const struct shard *shard, const struct shard_output *output)
{
    const uint32_t *items = shard->items + output->first_item;

    for (uint32_t i = output->per_element; i < output->item_count; i++) {
        uint32_t first = items[i % output->per_element];

        if (!source_alike(shard, first, items[i]) ||
            (shard->bound[first].rule->kind == KIND_SCALE &&
             !source_alike(shard, shard->bound[first].scaled, shard->bound[items[i]].scaled)))
            return false;
    }
    return true;
}

/* All of its tensors are there, or none, which an optional line allows. */
static enum rf_code making_end(struct shard *shard, struct making *making)
{
    const struct plan_make *make = making->make;
    char name[RF_MAX_NAME_BYTES + 1];
    size_t bytes = 0;

    if (!make->constant && make->when.optional && making->output.item_count == 0)
        return RF_OK;
    if (making->missing > 0)
        return rf_fail(shard->err, RF_E_FORMAT,
                       "tensor %s: missing in the checkpoint; layout %s of plan %s, line %u, makes "
                       "%.*s from it",
                       making->missing_name, shard->layout->name, shard->plan->name, make->line,
                       SHARD_SHOWN_NAME, make->target.text);
    if (!make->constant && making->output.item_count == 0)
        return rf_fail(shard->err, RF_E_FORMAT,
                       "plan %s: line %u: makes %.*s of nothing: the config has no %ss",
                       shard->plan->name, make->line, SHARD_SHOWN_NAME, make->target.text,
                       shard->plan->indices[make->stack].name);
    if (!plan_name_make(&make->target, &making->numbers, name, sizeof name, &bytes))
        return rf_fail(shard->err, RF_E_FORMAT, "plan %s: line %u: a name over %d bytes",
                       shard->plan->name, make->line, RF_MAX_NAME_BYTES);
    making->output.name = arena_strndup(&shard->arena, name, bytes);
    if (making->output.name == NULL)
        return fail_memory(shard);
    if (making->output.elements > 0)
        making->output.alike = elements_alike(shard, &making->output);
    return output_add(shard, &making->output);
}

static enum rf_code make_one(struct shard *shard, const struct plan_make *make, int index,
                             uint32_t number)
{
    struct making making = {
        .make = make,
        .output = {.line = make->line,
                   .first_item = shard->item_count,
                   .per_element = make->stack_count,
                   .dtype = make->dtype,
                   .constant = make->constant,
                   .value = make->value},
    };
    int64_t layer = index == PLAN_NONE ? PLAN_NONE : (int64_t)number;
    bool counts = false;
    enum rf_code code =
        plan_counts(&shard->values, &make->when, make->line, layer, &counts, shard->err);

    if (code != RF_OK || !counts)
        return code;
    if (index != PLAN_NONE)
        making.numbers.value[index] = number;
    if (make->pad.count > 0)
        code = plan_eval(&shard->values, &make->pad, make->line, &making.output.pad, shard->err);
    if (code == RF_OK && make->stack != PLAN_NONE)
        code = making_stack(shard, &making);
    unsigned first = make->stack != PLAN_NONE ? make->stack_count : 0;
    for (unsigned f = first; f < make->from_count && code == RF_OK; f++)
        code = making_take(shard, &making, &make->from[f]);
    return code == RF_OK ? making_end(shard, &making) : code;
}

/* The index in the name that a line makes: its layer. */
static int make_index(const struct plan_make *make)
{
    for (unsigned i = 0; i < make->target.count; i++) {
        if (make->target.pieces[i].kind == PIECE_INDEX)
            return (int)make->target.pieces[i].index;
    }
    return PLAN_NONE;
}

/* Works out the ranges of all numbers that lines count through. */
static enum rf_code make_indices_know(struct shard *shard)
{
    const struct plan_layout *layout = shard->layout;
    enum rf_code code = RF_OK;

    for (unsigned m = 0; m < layout->make_count && code == RF_OK; m++) {
        int index = make_index(&layout->makes[m]);
        int stack = layout->makes[m].stack;

        if (index != PLAN_NONE)
            code = shard_index_know(shard, (unsigned)index);
        if (code == RF_OK && stack != PLAN_NONE)
            code = shard_index_know(shard, (unsigned)stack);
    }
    return code;
}

/* Lines [begin, end) of one index, layer by layer. */
static enum rf_code makes_run(struct shard *shard, unsigned begin, unsigned end, int index)
{
    uint32_t first = index != PLAN_NONE ? shard->indices[index].first : 0;
    uint32_t count = index != PLAN_NONE ? shard->indices[index].count : 1;
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < count && code == RF_OK; i++) {
        for (unsigned m = begin; m < end && code == RF_OK; m++)
            code = make_one(shard, &shard->layout->makes[m], index, first + i);
    }
    return code;
}

static enum rf_code outputs_layout(struct shard *shard)
{
    const struct plan_layout *layout = shard->layout;
    enum rf_code code = make_indices_know(shard);

    for (unsigned begin = 0; begin < layout->make_count && code == RF_OK;) {
        int index = make_index(&layout->makes[begin]);
        unsigned end = begin + 1;

        while (index != PLAN_NONE && end < layout->make_count &&
               make_index(&layout->makes[end]) == index)
            end++;
        code = makes_run(shard, begin, end, index);
        begin = end;
    }
    return code;
}

/* ---- what is left ---- */

static enum rf_code dropped(const struct shard *shard, const struct manifest_source *source,
                            bool *ret_dropped)
{
    *ret_dropped = false;
    for (unsigned d = 0; d < shard->layout->drop_count && !*ret_dropped; d++) {
        const struct plan_drop *drop = &shard->layout->drops[d];
        struct plan_numbers numbers;
        int64_t layer = PLAN_NONE;

        if (!plan_match(&drop->pattern, source->name, source->name_bytes, &numbers) ||
            !shard_in_range(shard, &numbers))
            continue;
        for (unsigned i = shard->plan->index_count; i > 0; i--) {
            if ((numbers.present >> (i - 1) & 1) != 0)
                layer = numbers.value[i - 1];
        }
        enum rf_code code =
            plan_counts(&shard->values, &drop->when, drop->line, layer, ret_dropped, shard->err);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

static enum rf_code unused_check(struct shard *shard)
{
    for (uint32_t i = 0; i < shard->source_count; i++) {
        bool is_dropped = false;

        if (shard->bound[i].used)
            continue;
        enum rf_code code = dropped(shard, &shard->sources[i], &is_dropped);
        if (code != RF_OK)
            return code;
        if (!is_dropped)
            return rf_fail(
                shard->err, RF_E_FORMAT,
                "tensor %.*s: layout %s of plan %s makes nothing of it; a line `drop NAME` "
                "below `layout %s` would leave it out",
                SHARD_SHOWN_NAME, shard->sources[i].name, shard->layout->name, shard->plan->name,
                shard->layout->name);
    }
    return RF_OK;
}

enum rf_code shard_outputs(struct shard *shard)
{
    if (shard->layout == NULL)
        return outputs_checkpoint(shard);
    enum rf_code code = outputs_layout(shard);
    return code == RF_OK ? unused_check(shard) : code;
}
