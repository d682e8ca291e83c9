/* Which rule of a plan knows which tensor of a checkpoint. */
#include "base/cleanup.h"
#include "model/shard_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- names ---- */

static enum rf_code names_index(struct shard *shard)
{
    shard->names = strmap_create(shard->source_count);
    if (shard->names == NULL)
        return rf_fail(shard->err, RF_E_NOMEM, "no memory for %" PRIu32 " names",
                       shard->source_count);
    for (uint32_t i = 0; i < shard->source_count; i++) {
        const struct manifest_source *source = &shard->sources[i];
        enum rf_code code = strmap_add(shard->names, source->name, source->name_bytes, i, NULL);

        if (code == RF_E_INVAL)
            return rf_fail(shard->err, RF_E_FORMAT, "tensor %.*s: twice in the checkpoint",
                           SHARD_SHOWN_NAME, source->name);
        if (code != RF_OK)
            return rf_fail(shard->err, code, "no memory for %" PRIu32 " names",
                           shard->source_count);
    }
    return RF_OK;
}

/* ---- the ranges of indices ---- */

enum rf_code shard_index_know(struct shard *shard, unsigned i)
{
    const struct plan_index *index = &shard->plan->indices[i];
    struct shard_index *known = &shard->indices[i];
    uint64_t first = 0;
    uint64_t count = 0;
    enum rf_code code = RF_OK;

    if (known->known)
        return RF_OK;
    if (index->first.count > 0)
        code = plan_eval(&shard->values, &index->first, index->line, &first, shard->err);
    if (code == RF_OK)
        code = plan_eval(&shard->values, &index->count, index->line, &count, shard->err);
    if (code != RF_OK)
        return code;
    if (first > PLAN_MAX_INDEX_COUNT || count > PLAN_MAX_INDEX_COUNT)
        return rf_fail(shard->err, RF_E_FORMAT,
                       "config.json: %" PRIu64 " %ss from %" PRIu64 " on; allowed are %d", count,
                       index->name, first, PLAN_MAX_INDEX_COUNT);
    *known =
        (struct shard_index){.first = (uint32_t)first, .count = (uint32_t)count, .known = true};
    return RF_OK;
}

static unsigned rule_indices(const struct plan_pattern *pattern)
{
    unsigned present = 0;

    for (unsigned i = 0; i < pattern->count; i++) {
        if (pattern->pieces[i].kind == PIECE_INDEX)
            present |= 1u << pattern->pieces[i].index;
    }
    return present;
}

static enum rf_code indices_know(struct shard *shard)
{
    for (unsigned r = 0; r < shard->plan->rule_count; r++) {
        unsigned present = rule_indices(&shard->plan->rules[r].pattern);

        for (unsigned i = 0; i < shard->plan->index_count; i++) {
            enum rf_code code = (present >> i & 1) != 0 ? shard_index_know(shard, i) : RF_OK;

            if (code == RF_E_FORMAT && shard->plan->rules[r].when.optional)
                continue; /* the family may be without these tensors */
            if (code != RF_OK)
                return code;
        }
    }
    return RF_OK;
}

bool shard_in_range(const struct shard *shard, const struct plan_numbers *numbers)
{
    for (unsigned i = 0; i < shard->plan->index_count; i++) {
        if ((numbers->present >> i & 1) != 0 &&
            (numbers->value[i] < shard->indices[i].first ||
             numbers->value[i] - shard->indices[i].first >= shard->indices[i].count))
            return false;
    }
    return true;
}

/* ---- rules ---- */

/* The rules that know names of one form, numbers left out: thousands of tensors have a few dozen
 * forms. */
struct form {
    uint16_t rules[4];
    unsigned count; /* more than there is room for: look at all */
};

struct forms {
    struct strmap *map;
    struct form *items;
    uint32_t count;
    uint32_t room;
    struct arena arena;
};

/* The name with each number that stands alone between dots replaced by #. */
static size_t form_of(const char *name, size_t bytes, char *out)
{
    size_t used = 0;

    for (size_t i = 0; i < bytes;) {
        size_t end = i;
        bool digits = true;

        for (; end < bytes && name[end] != '.'; end++)
            digits = digits && name[end] >= '0' && name[end] <= '9';
        if (digits && end > i) {
            out[used++] = '#';
        } else {
            memcpy(out + used, name + i, end - i);
            used += end - i;
        }
        if (end < bytes)
            out[used++] = '.';
        i = end + 1;
    }
    return used;
}

static bool form_rules(const struct shard *shard, const struct manifest_source *source,
                       struct form *form)
{
    struct plan_numbers numbers;

    *form = (struct form){.count = 0};
    for (unsigned r = 0; r < shard->plan->rule_count; r++) {
        if (!plan_match(&shard->plan->rules[r].pattern, source->name, source->name_bytes, &numbers))
            continue;
        if (form->count < sizeof form->rules / sizeof form->rules[0])
            form->rules[form->count] = (uint16_t)r;
        form->count++;
    }
    return form->count <= sizeof form->rules / sizeof form->rules[0];
}

/* What is known about the name's form; NULL: nothing can be kept about it. */
static const struct form *form_find(const struct shard *shard, struct forms *forms,
                                    const struct manifest_source *source)
{
    char text[RF_MAX_NAME_BYTES + 1];
    size_t bytes = form_of(source->name, source->name_bytes, text);
    uint32_t at = 0;

    if (forms->map == NULL || shard->plan->literal_numbers || bytes == 0)
        return NULL;
    if (strmap_find(forms->map, text, bytes, &at))
        return &forms->items[at];
    if (forms->count == forms->room) {
        uint32_t wanted = forms->room == 0 ? 64 : forms->room * 2;
        struct form *grown = reallocarray(forms->items, wanted, sizeof *grown);
        if (grown == NULL)
            return NULL;
        forms->items = grown;
        forms->room = wanted;
    }
    struct form *form = &forms->items[forms->count];
    char *key = arena_strndup(&forms->arena, text, bytes);
    if (!form_rules(shard, source, form) || key == NULL ||
        strmap_add(forms->map, key, bytes, forms->count, NULL) != RF_OK)
        return NULL;
    forms->count++;
    return form;
}

/* Tries one rule; a second one that fits is the plan's mistake. */
static enum rf_code rule_try(struct shard *shard, uint32_t index, unsigned r)
{
    const struct manifest_source *source = &shard->sources[index];
    const struct plan_rule *rule = &shard->plan->rules[r];
    struct shard_source *bound = &shard->bound[index];
    struct plan_numbers numbers;

    if (!plan_match(&rule->pattern, source->name, source->name_bytes, &numbers) ||
        !shard_in_range(shard, &numbers))
        return RF_OK;
    if (bound->rule != NULL)
        return rf_fail(shard->err, RF_E_FORMAT,
                       "tensor %.*s: plan %s knows it in line %u and in %u", SHARD_SHOWN_NAME,
                       source->name, shard->plan->name, bound->rule->line, rule->line);
    bound->rule = rule;
    bound->numbers = numbers;
    return RF_OK;
}

static enum rf_code rule_find(struct shard *shard, struct forms *forms, uint32_t index)
{
    const struct manifest_source *source = &shard->sources[index];
    const struct form *form = form_find(shard, forms, source);
    unsigned count = form != NULL ? form->count : shard->plan->rule_count;
    enum rf_code code = RF_OK;

    for (unsigned i = 0; i < count && code == RF_OK; i++)
        code = rule_try(shard, index, form != NULL ? form->rules[i] : i);
    if (code == RF_OK && shard->bound[index].rule == NULL)
        return rf_fail(shard->err, RF_E_FORMAT,
                       "tensor %.*s: no line of plan %s knows it (or its layer or expert number is "
                       "beyond what the config says); a line `tensor NAME KIND` would",
                       SHARD_SHOWN_NAME, source->name, shard->plan->name);
    return code;
}

/* ---- shapes ---- */

static enum rf_code rule_know(struct shard *shard, const struct plan_rule *rule)
{
    struct shard_rule *known = &shard->rules[rule - shard->plan->rules];
    enum rf_code code = RF_OK;

    if (known->known)
        return RF_OK;
    if (rule->by.count > 0)
        code = plan_eval(&shard->values, &rule->by, rule->line, &known->by, shard->err);
    if (code == RF_OK && rule->by.count > 0 && known->by == 0)
        return rf_fail(shard->err, RF_E_FORMAT, "config.json: %s is 0", rule->by.text);
    if (code == RF_OK && rule->pad.count > 0)
        code = plan_eval(&shard->values, &rule->pad, rule->line, &known->pad, shard->err);
    for (int i = 0; i < rule->ndim && code == RF_OK; i++)
        code = plan_eval(&shard->values, &rule->shape[i], rule->line, &known->shape[i], shard->err);
    known->known = code == RF_OK;
    return code;
}

static void dims_text(const uint64_t *dims, uint32_t ndim, struct buf *out)
{
    buf_printf(out, "[");
    for (uint32_t i = 0; i < ndim; i++)
        buf_printf(out, "%s%" PRIu64, i > 0 ? ", " : "", dims[i]);
    buf_printf(out, "]");
}

enum rf_code shard_shape_fail(const struct shard *shard, uint32_t index, const uint64_t *wanted,
                              uint32_t ndim, const char *because)
{
    const struct manifest_source *source = &shard->sources[index];
    BUF_AUTO struct buf is = {0};
    BUF_AUTO struct buf should = {0};

    dims_text(source->shape, source->ndim, &is);
    dims_text(wanted, ndim, &should);
    if (is.failed || should.failed)
        return rf_fail(shard->err, RF_E_NOMEM, "no memory");
    return rf_fail(shard->err, RF_E_FORMAT,
                   "tensor %.*s: shape %s in the checkpoint, %s by %s (plan %s, line %u)",
                   SHARD_SHOWN_NAME, source->name, (const char *)is.data, (const char *)should.data,
                   because, shard->plan->name, shard->bound[index].rule->line);
}

static enum rf_code shape_check(struct shard *shard, uint32_t index)
{
    const struct manifest_source *source = &shard->sources[index];
    const struct plan_rule *rule = shard->bound[index].rule;
    enum rf_code code = rule_know(shard, rule);
    const struct shard_rule *known = &shard->rules[rule - shard->plan->rules];

    if (code != RF_OK || rule->ndim == PLAN_NONE)
        return code;
    if (source->ndim != (uint32_t)rule->ndim ||
        memcmp(source->shape, known->shape, source->ndim * sizeof *source->shape) != 0)
        return shard_shape_fail(shard, index, known->shape, (uint32_t)rule->ndim, "config.json");
    return RF_OK;
}

/* ---- what is missing ---- */

/* Numbers of a pattern one after the other, the last index fastest; false after the last ones. */
static bool numbers_next(const struct shard *shard, struct plan_numbers *numbers)
{
    for (unsigned i = shard->plan->index_count; i > 0; i--) {
        const struct shard_index *index = &shard->indices[i - 1];

        if ((numbers->present >> (i - 1) & 1) == 0)
            continue;
        if (++numbers->value[i - 1] < index->first + index->count)
            return true;
        numbers->value[i - 1] = index->first;
    }
    return false;
}

/* The layer that a line's names are of: its first index, which on= is about. */
static int64_t layer_of(const struct plan_numbers *numbers)
{
    for (unsigned i = 0; i < PLAN_MAX_INDICES; i++) {
        if ((numbers->present >> i & 1) != 0)
            return numbers->value[i];
    }
    return PLAN_NONE;
}

static enum rf_code missing_find(struct shard *shard, const struct plan_rule *rule,
                                 struct plan_numbers numbers)
{
    char name[RF_MAX_NAME_BYTES + 1];

    do {
        size_t bytes = 0;
        uint32_t at = 0;
        bool counts = false;
        enum rf_code code = plan_counts(&shard->values, &rule->when, rule->line, layer_of(&numbers),
                                        &counts, shard->err);

        if (code != RF_OK)
            return code;
        if (counts && plan_name_make(&rule->pattern, &numbers, name, sizeof name, &bytes) &&
            !strmap_find(shard->names, name, bytes, &at))
            return rf_fail(shard->err, RF_E_FORMAT,
                           "tensor %.*s: missing in the checkpoint; plan %s, line %u, needs it",
                           SHARD_SHOWN_NAME, name, shard->plan->name, rule->line);
    } while (numbers_next(shard, &numbers));
    return rf_fail(shard->err, RF_E_FORMAT,
                   "plan %s: line %u: tensors are missing in the checkpoint", shard->plan->name,
                   rule->line);
}

/* How many tensors a rule needs. Only its first index, the layer, makes a difference between
 * them. */
static enum rf_code rule_needs(struct shard *shard, const struct plan_rule *rule,
                               struct plan_numbers *numbers, uint64_t *ret_count)
{
    uint64_t each = 1;
    uint64_t count = 0;
    int layer = PLAN_NONE;

    *numbers = (struct plan_numbers){.present = rule_indices(&rule->pattern)};
    for (unsigned i = 0; i < shard->plan->index_count; i++) {
        if ((numbers->present >> i & 1) == 0)
            continue;
        numbers->value[i] = shard->indices[i].first;
        if (layer == PLAN_NONE)
            layer = (int)i;
        else if (__builtin_mul_overflow(each, shard->indices[i].count, &each))
            return rf_fail(shard->err, RF_E_FORMAT, "plan %s: line %u: too many tensors",
                           shard->plan->name, rule->line);
    }
    uint32_t layers = layer == PLAN_NONE ? 1 : shard->indices[layer].count;
    for (uint32_t i = 0; i < layers; i++) {
        bool counts = false;
        int64_t at = layer == PLAN_NONE ? PLAN_NONE : (int64_t)shard->indices[layer].first + i;
        enum rf_code code =
            plan_counts(&shard->values, &rule->when, rule->line, at, &counts, shard->err);

        if (code != RF_OK)
            return code;
        if (counts && __builtin_add_overflow(count, each, &count))
            return rf_fail(shard->err, RF_E_FORMAT, "plan %s: line %u: too many tensors",
                           shard->plan->name, rule->line);
    }
    *ret_count = count;
    return RF_OK;
}

/* What rules need, as tensors are found for them. */
struct rule_have {
    uint64_t count;
    int64_t layer; /* the last one asked about, and the answer */
    bool counts;
};

/* How many tensors each rule was found for, of those it needs. Names are unique, so that
 * counting them is enough; which one is missing is looked up when one is. */
static enum rf_code have_count(struct shard *shard, struct rule_have *have)
{
    for (unsigned r = 0; r < shard->plan->rule_count; r++)
        have[r] = (struct rule_have){.layer = INT64_MIN};
    for (uint32_t i = 0; i < shard->source_count; i++) {
        const struct shard_source *bound = &shard->bound[i];
        struct rule_have *of = &have[bound->rule - shard->plan->rules];
        int64_t layer = layer_of(&bound->numbers);

        if (bound->rule->when.optional)
            continue;
        if (layer != of->layer) {
            enum rf_code code = plan_counts(&shard->values, &bound->rule->when, bound->rule->line,
                                            layer, &of->counts, shard->err);
            if (code != RF_OK)
                return code;
            of->layer = layer;
        }
        of->count += of->counts ? 1 : 0;
    }
    return RF_OK;
}

static enum rf_code missing_check(struct shard *shard)
{
    rf_autofree struct rule_have *have = calloc(shard->plan->rule_count, sizeof *have);
    enum rf_code code =
        have != NULL ? have_count(shard, have) : rf_fail(shard->err, RF_E_NOMEM, "no memory");

    for (unsigned r = 0; r < shard->plan->rule_count && code == RF_OK; r++) {
        const struct plan_rule *rule = &shard->plan->rules[r];
        struct plan_numbers numbers;
        uint64_t needs = 0;
        bool any = rule->pattern.pieces[rule->pattern.count - 1].kind == PIECE_ANY ||
                   (rule->pattern.count > 1 &&
                    rule->pattern.pieces[rule->pattern.count - 2].kind == PIECE_ANY);

        if (rule->when.optional || any)
            continue;
        code = rule_needs(shard, rule, &numbers, &needs);
        if (code == RF_OK && have[r].count < needs)
            code = missing_find(shard, rule, numbers);
    }
    return code;
}

/* ---- the whole ---- */

enum rf_code shard_bind(struct shard *shard)
{
    struct forms forms = {.map = strmap_create(256)};
    enum rf_code code = names_index(shard);

    if (code == RF_OK)
        code = indices_know(shard);
    for (uint32_t i = 0; i < shard->source_count && code == RF_OK; i++)
        code = rule_find(shard, &forms, i);
    if (code == RF_OK)
        code = missing_check(shard);
    for (uint32_t i = 0; i < shard->source_count && code == RF_OK; i++)
        code = shape_check(shard, i);
    if (code == RF_OK)
        code = shard_scales_bind(shard);
    strmap_destroy(forms.map);
    free(forms.items);
    arena_free(&forms.arena);
    return code;
}
