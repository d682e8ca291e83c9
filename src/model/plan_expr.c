/* Values that a plan works out from a config. */
#include "model/plan_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- parsing ---- */

static bool is_key_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '.';
}

/* One key or number; returns its characters, 0 after a failure. */
static size_t factor_parse(const struct plan_parser *parser, const char *text,
                           struct plan_factor *factor)
{
    size_t bytes = 0;

    while (is_key_char(text[bytes]))
        bytes++;
    if (bytes == 0) {
        plan_fail(parser, "a key of the config or a number is missing before \"%.120s\"", text);
        return 0;
    }
    if (strspn(text, "0123456789") >= bytes) {
        if (bytes > 18) {
            plan_fail(parser, "%.40s: too large", text);
            return 0;
        }
        factor->number = strtoull(text, NULL, 10);
        return bytes;
    }
    factor->key = arena_strndup(&parser->plan->arena, text, bytes);
    if (factor->key == NULL) {
        plan_fail_memory(parser);
        return 0;
    }
    return bytes;
}

enum rf_code plan_expr_parse(const struct plan_parser *parser, const char *text,
                             struct plan_expr *ret_expr)
{
    struct arena *arena = &parser->plan->arena;
    struct plan_factor factors[PLAN_MAX_FACTORS] = {{.op = '+'}};
    unsigned count = 0;
    const char *at = text;

    for (;;) {
        size_t used = factor_parse(parser, at, &factors[count]);

        if (used == 0)
            return parser->err != NULL ? parser->err->code : RF_E_FORMAT;
        at += used;
        count++;
        if (*at == '\0')
            break;
        if (strchr("+-*/", *at) == NULL)
            return plan_fail(parser, "\"%.120s\": %.1s is none of + - * /", text, at);
        if (count == PLAN_MAX_FACTORS)
            return plan_fail(parser, "\"%.120s\": more than %d values", text, PLAN_MAX_FACTORS);
        factors[count] = (struct plan_factor){.op = *at++};
    }
    struct plan_factor *kept = arena_alloc(arena, count * sizeof *kept);
    const char *copy = arena_strndup(arena, text, strlen(text));
    if (kept == NULL || copy == NULL)
        return plan_fail_memory(parser);
    memcpy(kept, factors, count * sizeof *kept);
    *ret_expr = (struct plan_expr){.text = copy, .factors = kept, .count = count};
    return RF_OK;
}

/* ---- working out ---- */

/* A `let` or `default` that was worked out, or could not be. */
struct plan_computed {
    bool ok;
    uint64_t value;
    struct rf_error why;
};

static int value_find(const struct plan *plan, const char *key, unsigned before)
{
    for (unsigned i = before; i > 0; i--) {
        if (strcmp(plan->values[i - 1].name, key) == 0)
            return (int)(i - 1);
    }
    return PLAN_NONE;
}

/* What a key means to those values that come before number `before`. */
static enum rf_code key_eval(const struct plan_values *values, const char *key, unsigned before,
                             const char *text, unsigned line, uint64_t *ret_value,
                             struct rf_error *err)
{
    const struct plan *plan = values->plan;
    int at = value_find(plan, key, before);
    bool found = false;

    if (at == PLAN_NONE || plan->values[at].is_default) {
        enum rf_code code = model_config_number(values->config, key, ret_value, &found, err);
        if (code != RF_OK || found)
            return code;
    }
    if (at == PLAN_NONE)
        return rf_fail(err, RF_E_FORMAT,
                       "config.json: has no %s, which plan %s needs in line %u for %s", key,
                       plan->name, line, text);
    if (!values->computed[at].ok) {
        if (err != NULL)
            *err = values->computed[at].why;
        return values->computed[at].why.code;
    }
    *ret_value = values->computed[at].value;
    return RF_OK;
}

/* product *= or /= value; a division must come out even. */
static bool factor_apply(char op, uint64_t value, uint64_t *product)
{
    if (op == '*')
        return !__builtin_mul_overflow(*product, value, product);
    if (op == '/') {
        if (value == 0 || *product % value != 0)
            return false;
        *product /= value;
        return true;
    }
    *product = value;
    return true;
}

static bool term_apply(char op, uint64_t product, uint64_t *sum)
{
    return op == '-' ? !__builtin_sub_overflow(*sum, product, sum)
                     : !__builtin_add_overflow(*sum, product, sum);
}

static enum rf_code expr_eval(const struct plan_values *values, const struct plan_expr *expr,
                              unsigned before, unsigned line, uint64_t *ret_value,
                              struct rf_error *err)
{
    uint64_t sum = 0;
    uint64_t product = 0;
    char sign = '+';
    bool ok = true;

    for (unsigned i = 0; i < expr->count && ok; i++) {
        const struct plan_factor *factor = &expr->factors[i];
        uint64_t value = factor->number;

        if (factor->key != NULL) {
            enum rf_code code =
                key_eval(values, factor->key, before, expr->text, line, &value, err);
            if (code != RF_OK)
                return code;
        }
        if (factor->op == '+' || factor->op == '-') {
            ok = i == 0 || term_apply(sign, product, &sum);
            sign = factor->op;
        }
        ok = ok && factor_apply(factor->op, value, &product);
    }
    if (!ok || !term_apply(sign, product, &sum))
        return rf_fail(err, RF_E_FORMAT,
                       "plan %s: line %u: %s is no whole number from 0 on with this config",
                       values->plan->name, line, expr->text);
    *ret_value = sum;
    return RF_OK;
}

enum rf_code plan_eval(const struct plan_values *values, const struct plan_expr *expr,
                       unsigned line, uint64_t *ret_value, struct rf_error *err)
{
    return expr_eval(values, expr, values->plan->value_count, line, ret_value, err);
}

enum rf_code plan_values_create(const struct plan *plan, const struct model_config *config,
                                struct plan_values *ret_values, struct rf_error *err)
{
    struct plan_values values = {
        .plan = plan,
        .config = config,
        .computed = calloc(plan->value_count + (size_t)1, sizeof *values.computed),
    };

    if (values.computed == NULL)
        return rf_fail(err, RF_E_NOMEM, "plan %s: no memory for its values", plan->name);
    /* In their order: each can use those before it, so that nothing goes in circles. What cannot be
     * worked out may not be needed either. */
    for (unsigned i = 0; i < plan->value_count; i++) {
        struct plan_computed *computed = &values.computed[i];
        computed->ok = expr_eval(&values, &plan->values[i].expr, i, plan->values[i].line,
                                 &computed->value, &computed->why) == RF_OK;
    }
    *ret_values = values;
    return RF_OK;
}

void plan_values_free(struct plan_values *values)
{
    free(values->computed);
    values->computed = NULL;
}

enum rf_code plan_counts(const struct plan_values *values, const struct plan_when *when,
                         unsigned line, int64_t layer, bool *ret_counts, struct rf_error *err)
{
    uint64_t value = 1;
    bool counts = true;
    bool sparse = false;
    enum rf_code code = RF_OK;

    if (when->condition.text != NULL) {
        counts = model_config_says(values->config, when->condition.key, when->condition.text) !=
                 when->condition.negated;
    } else if (when->condition.expr.count > 0) {
        code = plan_eval(values, &when->condition.expr, line, &value, err);
        counts = (value != 0) != when->condition.negated;
    }
    if (code == RF_OK && when->on != ON_ALL && layer >= 0) {
        code = model_config_sparse(values->config, (uint64_t)layer, &sparse, err);
        counts = counts && sparse == (when->on == ON_SPARSE);
    }
    if (code == RF_OK)
        *ret_counts = counts;
    return code;
}
