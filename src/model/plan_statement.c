/* What each line of a plan says. */
#include "base/dtype.h"
#include "model/plan_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* One more item in a list of the plan; NULL when out of memory. Zeroed. */
static void *list_add(void **items, unsigned *count, unsigned *room, size_t item_bytes)
{
    if (*count == *room) {
        unsigned wanted = *room == 0 ? 16 : *room * 2; /* PLAN_MAX_LINES keeps it small */
        void *grown = reallocarray(*items, wanted, item_bytes);

        if (grown == NULL)
            return NULL;
        *items = grown;
        *room = wanted;
    }
    void *item = (char *)*items + *count * item_bytes;
    memset(item, 0, item_bytes);
    (*count)++;
    return item;
}

#define LIST_ADD(owner, list, counter)                                                       \
    __extension__({                                                                          \
        void *items_ = (owner)->list;                                                        \
        void *item_ = list_add(&items_, &(owner)->counter##_count, &(owner)->counter##_room, \
                               sizeof *(owner)->list);                                       \
        (owner)->list = items_;                                                              \
        item_;                                                                               \
    })

static const char *keep(const struct plan_parser *parser, const char *text)
{
    return arena_strndup(&parser->plan->arena, text, strlen(text));
}

/* ---- options ---- */

/* The text after `name=`; NULL: another word. */
static const char *option(const char *word, const char *name)
{
    size_t bytes = strlen(name);

    return strncmp(word, name, bytes) == 0 && word[bytes] == '=' ? word + bytes + 1 : NULL;
}

/* EXPRESSION or KEY:TEXT, with a ! before it when it must not hold. */
static enum rf_code condition_parse(const struct plan_parser *parser, const char *text,
                                    struct plan_condition *condition)
{
    struct arena *arena = &parser->plan->arena;

    condition->negated = *text == '!';
    text += condition->negated;
    const char *colon = strchr(text, ':');
    if (colon == NULL)
        return plan_expr_parse(parser, text, &condition->expr);
    condition->key = arena_strndup(arena, text, (size_t)(colon - text));
    condition->text = arena_strndup(arena, colon + 1, strlen(colon + 1));
    return condition->key != NULL && condition->text != NULL ? RF_OK : plan_fail_memory(parser);
}

/* if=, on= and optional, which all lines about tensors have. *ret_taken: the word was one of
 * them. */
static enum rf_code when_option(const struct plan_parser *parser, const char *word,
                                struct plan_when *when, bool *ret_taken)
{
    const char *text = option(word, "if");

    *ret_taken = true;
    if (text != NULL) {
        return condition_parse(parser, text, &when->condition);
    }
    if (strcmp(word, "optional") == 0)
        when->optional = true;
    else if (strcmp(word, "on=sparse") == 0)
        when->on = ON_SPARSE;
    else if (strcmp(word, "on=dense") == 0)
        when->on = ON_DENSE;
    else
        *ret_taken = false;
    return RF_OK;
}

static enum rf_code unknown_option(const struct plan_parser *parser, const char *word)
{
    return plan_fail(parser, "unknown word \"%.120s\"", word);
}

/* ---- before the tensors ---- */

static enum rf_code say_plan(struct plan_parser *parser, char **words, unsigned count)
{
    if (count != 2 || parser->plan->name != NULL)
        return plan_fail(parser, "`plan NAME` stands once, with one name");
    parser->plan->name = keep(parser, words[1]);
    return parser->plan->name != NULL ? RF_OK : plan_fail_memory(parser);
}

static enum rf_code say_architecture(struct plan_parser *parser, char **words, unsigned count)
{
    for (unsigned i = 1; i < count; i++) {
        const char **item = LIST_ADD(parser->plan, architectures, architecture);

        if (item == NULL)
            return plan_fail_memory(parser);
        *item = keep(parser, words[i]);
        if (*item == NULL)
            return plan_fail_memory(parser);
    }
    return RF_OK;
}

static enum rf_code say_value(struct plan_parser *parser, char **words, unsigned count)
{
    if (count != 3)
        return plan_fail(parser, "`%s NAME EXPRESSION`, without blanks in the expression",
                         words[0]);
    struct plan_value *value = LIST_ADD(parser->plan, values, value);
    if (value == NULL)
        return plan_fail_memory(parser);
    value->line = parser->line;
    value->is_default = words[0][0] == 'd';
    value->name = keep(parser, words[1]);
    if (value->name == NULL)
        return plan_fail_memory(parser);
    return plan_expr_parse(parser, words[2], &value->expr);
}

static enum rf_code say_index(struct plan_parser *parser, char **words, unsigned count)
{
    struct plan *plan = parser->plan;
    struct plan_index index = {.line = parser->line};
    enum rf_code code = RF_OK;

    if (count > 3 && strcmp(words[count - 1], "split=ep") == 0) {
        index.split_ep = true;
        count--;
    }
    if (count < 3 || count > 4)
        return plan_fail(parser, "`index NAME [FIRST] COUNT [split=ep]`");
    if (plan->index_count == PLAN_MAX_INDICES)
        return plan_fail(parser, "more than %d indices", PLAN_MAX_INDICES);
    for (unsigned i = 0; i < plan->index_count; i++) {
        if (strcmp(plan->indices[i].name, words[1]) == 0)
            return plan_fail(parser, "index %.120s: is in line %u already", words[1],
                             plan->indices[i].line);
    }
    index.name = keep(parser, words[1]);
    if (index.name == NULL)
        return plan_fail_memory(parser);
    if (count == 4)
        code = plan_expr_parse(parser, words[2], &index.first);
    if (code == RF_OK)
        code = plan_expr_parse(parser, words[count - 1], &index.count);
    plan->indices[plan->index_count] = index;
    plan->index_count += code == RF_OK;
    return code;
}

/* ---- tensors of the checkpoint ---- */

static enum rf_code shape_parse(const struct plan_parser *parser, char *text,
                                struct plan_rule *rule)
{
    size_t bytes = strlen(text);

    if (bytes < 2 || text[bytes - 1] != ']')
        return plan_fail(parser, "\"%.120s\": a shape is [A,B], without blanks", text);
    text[bytes - 1] = '\0';
    rule->ndim = 0;
    if (bytes == 2)
        return RF_OK;
    for (char *at = text + 1; at != NULL;) {
        char *next = strchr(at, ',');

        if (next != NULL)
            *next++ = '\0';
        if (rule->ndim == PLAN_MAX_DIMS)
            return plan_fail(parser, "a shape of more than %d dimensions", PLAN_MAX_DIMS);
        enum rf_code code = plan_expr_parse(parser, at, &rule->shape[rule->ndim++]);
        if (code != RF_OK)
            return code;
        at = next;
    }
    return RF_OK;
}

static enum rf_code rule_option(const struct plan_parser *parser, char *word,
                                struct plan_rule *rule)
{
    const char *text;
    bool taken = false;
    enum rf_code code = when_option(parser, word, &rule->when, &taken);

    if (taken)
        return code;
    if (*word == '[')
        return shape_parse(parser, word, rule);
    text = option(word, "by");
    if (text != NULL)
        return plan_expr_parse(parser, text, &rule->by);
    text = option(word, "pad");
    if (text != NULL)
        return plan_expr_parse(parser, text, &rule->pad);
    text = option(word, "axis");
    if (text == NULL)
        return unknown_option(parser, word);
    if (text[0] < '0' || text[0] >= '0' + PLAN_MAX_DIMS || text[1] != '\0')
        return plan_fail(parser, "axis \"%.20s\" is none of 0 to %d", text, PLAN_MAX_DIMS - 1);
    rule->axis = text[0] - '0';
    return RF_OK;
}

static enum rf_code rule_check(const struct plan_parser *parser, const struct plan_rule *rule)
{
    bool splits = rule->kind != KIND_REPLICATED && rule->kind != KIND_SCALE;

    if (rule->kind == KIND_KV && rule->by.count == 0)
        return plan_fail(parser, "kv needs by=HEADS: how many heads there are to share");
    if (!splits && (rule->by.count > 0 || rule->axis != PLAN_NONE || rule->pad.count > 0))
        return plan_fail(parser, "by=, axis= and pad= are for tensors that are split");
    if (rule->pad.count > 0 && rule->kind != KIND_EMBEDDING)
        return plan_fail(parser, "pad= is for embeddings");
    return RF_OK;
}

static enum rf_code say_tensor(struct plan_parser *parser, char **words, unsigned count)
{
    static const char *const kinds[KIND_COUNT] = {"column",     "row", "embedding",
                                                  "replicated", "kv",  "scale"};
    struct plan_rule *rule = LIST_ADD(parser->plan, rules, rule);
    unsigned kind = 0;

    if (rule == NULL)
        return plan_fail_memory(parser);
    rule->line = parser->line;
    rule->axis = PLAN_NONE;
    rule->ndim = PLAN_NONE;
    if (count < 3)
        return plan_fail(parser, "`tensor NAME KIND [SHAPE] ...`");
    while (kind < KIND_COUNT && strcmp(words[2], kinds[kind]) != 0)
        kind++;
    if (kind == KIND_COUNT)
        return plan_fail(parser,
                         "kind \"%.40s\" is none of column, row, embedding, replicated, kv, scale",
                         words[2]);
    rule->kind = (enum plan_kind)kind;
    enum rf_code code = plan_pattern_parse(parser, words[1], &rule->pattern);
    for (unsigned i = 3; i < count && code == RF_OK; i++)
        code = rule_option(parser, words[i], rule);
    return code == RF_OK ? rule_check(parser, rule) : code;
}

/* ---- layouts ---- */

static enum rf_code say_layout(struct plan_parser *parser, char **words, unsigned count)
{
    struct plan *plan = parser->plan;

    if (count < 2 || count > 3 || (count == 3 && strcmp(words[2], "dtype=config") != 0))
        return plan_fail(parser, "`layout NAME [dtype=config]`");
    if (strlen(words[1]) > PLAN_MAX_LAYOUT_NAME)
        return plan_fail(parser, "a layout's name has at most %d bytes", PLAN_MAX_LAYOUT_NAME);
    if (strcmp(words[1], "checkpoint") == 0 || plan_layout(plan, words[1]) != NULL)
        return plan_fail(parser, "layout %.120s is there already", words[1]);
    struct plan_layout *layout = LIST_ADD(plan, layouts, layout);
    if (layout == NULL)
        return plan_fail_memory(parser);
    layout->line = parser->line;
    layout->model_dtype = count == 3;
    layout->name = keep(parser, words[1]);
    parser->layout = layout;
    return layout->name != NULL ? RF_OK : plan_fail_memory(parser);
}

static int index_of(const struct plan *plan, const char *name)
{
    for (unsigned i = 0; i < plan->index_count; i++) {
        if (strcmp(plan->indices[i].name, name) == 0)
            return (int)i;
    }
    return PLAN_NONE;
}

static enum rf_code make_option(const struct plan_parser *parser, const char *word,
                                struct plan_make *make)
{
    bool taken = false;
    enum rf_code code = when_option(parser, word, &make->when, &taken);

    if (taken)
        return code;
    const char *text = option(word, "pad");
    if (text != NULL)
        return plan_expr_parse(parser, text, &make->pad);
    text = option(word, "dtype");
    if (text != NULL) {
        enum rf_dtype dtype;
        if (!dtype_parse(text, strlen(text), &dtype))
            return plan_fail(parser, "dtype \"%.40s\" is none of the safetensors format", text);
        make->dtype = (int)dtype;
        return RF_OK;
    }
    text = option(word, "constant");
    if (text != NULL) {
        char *end = NULL;
        make->constant = true;
        make->value = strtof(text, &end);
        return end != text && *end == '\0'
                   ? RF_OK
                   : plan_fail(parser, "constant \"%.40s\" is no number", text);
    }
    text = option(word, "stack");
    if (text == NULL)
        return unknown_option(parser, word);
    make->stack = index_of(parser->plan, text);
    if (make->stack == PLAN_NONE)
        return plan_fail(parser, "stack=%.60s: no line `index %.60s ...` before", text, text);
    return RF_OK;
}

static unsigned pattern_indices(const struct plan_pattern *pattern, bool *ret_any)
{
    unsigned present = 0;

    for (unsigned i = 0; i < pattern->count; i++) {
        if (pattern->pieces[i].kind == PIECE_INDEX)
            present |= 1u << pattern->pieces[i].index;
        *ret_any = *ret_any || pattern->pieces[i].kind == PIECE_ANY;
    }
    return present;
}

/* What a line is made from may have the numbers of its target and of its stack, no others. */
static enum rf_code from_check(const struct plan_parser *parser, const struct plan_make *make,
                               unsigned target, unsigned stack)
{
    bool any = false;

    for (unsigned i = 0; i < make->from_count; i++) {
        bool stacked = i < make->stack_count;
        unsigned from = pattern_indices(&make->from[i], &any);

        if ((from & ~(target | (stacked ? stack : 0))) != 0)
            return plan_fail(parser, "\"%.120s\": has a number that nothing gives a value",
                             make->from[i].text);
        if (stacked && (from & stack) != stack)
            return plan_fail(parser, "\"%.120s\": does not have the index that is stacked",
                             make->from[i].text);
    }
    return any ? plan_fail(parser, "* is for tensors of the checkpoint, not for what is made")
               : RF_OK;
}

static enum rf_code make_check(const struct plan_parser *parser, const struct plan_make *make)
{
    bool any = false;
    unsigned target = pattern_indices(&make->target, &any);
    unsigned stack = make->stack != PLAN_NONE ? 1u << make->stack : 0;

    if (any)
        return plan_fail(parser, "* is for tensors of the checkpoint, not for what is made");
    if ((target & (target - 1)) != 0)
        return plan_fail(parser, "one number at most in a name that is made, its layer");
    if (make->constant)
        return make->dtype == RF_DTYPE_F32 && make->from_count == 0 && stack == 0
                   ? RF_OK
                   : plan_fail(parser, "a constant is a scalar with dtype=F32, made from nothing");
    if ((target & stack) != 0)
        return plan_fail(parser, "the index that is stacked is in the name that is made");
    if (stack == 0 && make->stack_count < make->from_count)
        return plan_fail(parser, "`and` is for what is stacked: stack=INDEX is missing");
    return from_check(parser, make, target, stack);
}

static enum rf_code from_parse(const struct plan_parser *parser, char **words, unsigned count,
                               struct plan_make *make)
{
    struct plan_pattern *from = arena_alloc(&parser->plan->arena, PLAN_MAX_FROM * sizeof *from);

    if (from == NULL)
        return plan_fail_memory(parser);
    make->from = from;
    make->stack_count = UINT32_MAX;
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(words[i], "and") == 0 && make->stack_count == UINT32_MAX &&
            make->from_count > 0) {
            make->stack_count = make->from_count;
            continue;
        }
        if (make->from_count == PLAN_MAX_FROM)
            return plan_fail(parser, "made from more than %d", PLAN_MAX_FROM);
        enum rf_code code = plan_pattern_parse(parser, words[i], &from[make->from_count++]);
        if (code != RF_OK)
            return code;
    }
    if (make->from_count == 0)
        return plan_fail(parser, "`make NAME ... from NAME ...`: made from nothing");
    if (make->stack_count == UINT32_MAX)
        make->stack_count = make->from_count;
    return (make->from_count - make->stack_count) % make->stack_count == 0
               ? RF_OK
               : plan_fail(parser, "after `and` come as many as before it for each element more");
}

static enum rf_code say_make(struct plan_parser *parser, char **words, unsigned count)
{
    unsigned from = 2;

    if (parser->layout == NULL)
        return plan_fail(parser, "`make` stands below a line `layout NAME`");
    if (count < 2)
        return plan_fail(parser, "`make NAME ... from NAME ...`");
    struct plan_make *make = LIST_ADD(parser->layout, makes, make);
    if (make == NULL)
        return plan_fail_memory(parser);
    make->line = parser->line;
    make->dtype = PLAN_NONE;
    make->stack = PLAN_NONE;
    enum rf_code code = plan_pattern_parse(parser, words[1], &make->target);
    while (code == RF_OK && from < count && strcmp(words[from], "from") != 0)
        code = make_option(parser, words[from++], make);
    if (code != RF_OK)
        return code;
    /* Without `from` a tensor keeps its name. */
    if (from == count && !make->constant)
        code = from_parse(parser, &words[1], 1, make);
    else if (from < count)
        code = from_parse(parser, words + from + 1, count - from - 1, make);
    return code == RF_OK ? make_check(parser, make) : code;
}

static enum rf_code say_drop(struct plan_parser *parser, char **words, unsigned count)
{
    if (parser->layout == NULL)
        return plan_fail(parser, "`drop` stands below a line `layout NAME`");
    if (count < 2)
        return plan_fail(parser, "`drop NAME`");
    struct plan_drop *drop = LIST_ADD(parser->layout, drops, drop);
    if (drop == NULL)
        return plan_fail_memory(parser);
    drop->line = parser->line;
    enum rf_code code = plan_pattern_parse(parser, words[1], &drop->pattern);
    for (unsigned i = 2; i < count && code == RF_OK; i++) {
        bool taken = false;

        code = when_option(parser, words[i], &drop->when, &taken);
        if (!taken)
            return unknown_option(parser, words[i]);
    }
    return code;
}

enum rf_code plan_statement(struct plan_parser *parser, char **words, unsigned count)
{
    static const struct {
        const char *word;
        enum rf_code (*say)(struct plan_parser *parser, char **words, unsigned count);
    } statements[] = {
        {"plan", say_plan},     {"architecture", say_architecture},
        {"let", say_value},     {"default", say_value},
        {"index", say_index},   {"tensor", say_tensor},
        {"layout", say_layout}, {"make", say_make},
        {"drop", say_drop},
    };

    for (unsigned i = 0; i < sizeof statements / sizeof statements[0]; i++) {
        if (strcmp(words[0], statements[i].word) == 0)
            return statements[i].say(parser, words, count);
    }
    return plan_fail(parser,
                     "\"%.60s\" begins no line; plan, architecture, let, default, index, set, "
                     "tensor, layout, make and drop do",
                     words[0]);
}
