/* What the files of plans share, and shard*.c. */
#ifndef MODEL_PLAN_INTERNAL_H
#define MODEL_PLAN_INTERNAL_H

#include "base/arena.h"
#include "model/config.h"
#include "model/plan.h"

enum {
    PLAN_MAX_LINE_BYTES = 4096,
    PLAN_MAX_WORDS = 64,
    PLAN_MAX_PIECES = 16, /* of a pattern */
    PLAN_MAX_INDICES = 8,
    PLAN_MAX_DIMS = 8,
    PLAN_MAX_FACTORS = 16, /* of an expression */
    PLAN_MAX_FROM = 32,    /* tensors that one line makes something of */
    PLAN_MAX_SETS = 64,
    PLAN_MAX_LAYOUT_NAME = 64,
    PLAN_MAX_INDEX_COUNT = 1 << 16,
    PLAN_NONE = -1,
};

/* Sum of products: op is '+' or '-' where a product begins, '*' or '/' where it goes on. */
struct plan_factor {
    char op;
    const char *key; /* NULL: the number */
    uint64_t number;
};

struct plan_expr {
    const char *text;
    const struct plan_factor *factors;
    unsigned count; /* 0: not given */
};

struct plan_condition {
    struct plan_expr expr; /* not 0; or, with a text: */
    const char *key;
    const char *text; /* what the config's key says. NULL: the expression counts */
    bool negated;
};

enum plan_piece_kind { PIECE_TEXT, PIECE_INDEX, PIECE_ANY };

struct plan_piece {
    enum plan_piece_kind kind;
    unsigned index; /* PIECE_INDEX: in plan->indices */
    const char *text;
    size_t bytes;
};

struct plan_pattern {
    const char *text;
    const struct plan_piece *pieces;
    unsigned count;
};

/* The values of a pattern's indices in one name. */
struct plan_numbers {
    uint32_t value[PLAN_MAX_INDICES];
    unsigned present; /* bit i: index i is in the pattern */
};

struct plan_index {
    const char *name;
    unsigned line;
    struct plan_expr first; /* not given: 0 */
    struct plan_expr count;
    bool split_ep; /* divided over expert-parallel groups */
};

/* A name for a value: `let` always, `default` when the config does not have it. */
struct plan_value {
    const char *name;
    unsigned line;
    bool is_default;
    struct plan_expr expr;
};

enum plan_kind {
    KIND_COLUMN,
    KIND_ROW,
    KIND_EMBEDDING,
    KIND_REPLICATED,
    KIND_KV,
    KIND_SCALE,
    KIND_COUNT,
};

enum plan_on { ON_ALL, ON_SPARSE, ON_DENSE };

/* What makes a line count or not. */
struct plan_when {
    struct plan_condition condition;
    enum plan_on on;
    bool optional;
};

struct plan_rule {
    unsigned line;
    struct plan_pattern pattern;
    enum plan_kind kind;
    int axis;             /* PLAN_NONE: the kind's own */
    struct plan_expr by;  /* how many pieces must stay whole */
    struct plan_expr pad; /* to a multiple of this before it is split */
    struct plan_expr shape[PLAN_MAX_DIMS];
    int ndim; /* PLAN_NONE: the plan does not say */
    struct plan_when when;
};

struct plan_make {
    unsigned line;
    struct plan_pattern target;
    struct plan_when when;
    struct plan_expr pad;
    int dtype;     /* enum rf_dtype, or PLAN_NONE */
    int stack;     /* an index, or PLAN_NONE */
    bool constant; /* a scalar, made from nothing */
    float value;
    const struct plan_pattern *from;
    unsigned from_count;
    unsigned stack_count; /* of `from`: those that are there for each value of stack; then, after
                           * `and`, what makes one more element */
};

struct plan_drop {
    unsigned line;
    struct plan_pattern pattern;
    struct plan_when when;
};

struct plan_layout {
    const char *name;
    unsigned line;
    bool model_dtype; /* floating tensors have the config's dtype */
    struct plan_make *makes;
    unsigned make_count;
    unsigned make_room;
    struct plan_drop *drops;
    unsigned drop_count;
    unsigned drop_room;
};

struct plan {
    struct arena arena;
    const char *name;
    const char **architectures;
    unsigned architecture_count;
    unsigned architecture_room;
    struct plan_value *values;
    unsigned value_count;
    unsigned value_room;
    struct plan_index indices[PLAN_MAX_INDICES];
    unsigned index_count;
    struct plan_rule *rules;
    unsigned rule_count;
    unsigned rule_room;
    struct plan_layout *layouts;
    unsigned layout_count;
    unsigned layout_room;
    bool literal_numbers; /* a pattern has a number between dots: names that differ only in their
                           * numbers may match differently */
};

const struct plan_layout *plan_layout(const struct plan *plan, const char *name);

/* ---- patterns ---- */

/* Whether the whole name matches. {index} matches a decimal number of the index's range, `*`
 * anything up to where the rest matches. counts[i] and firsts[i] are the ranges of the indices. */
bool plan_match(const struct plan_pattern *pattern, const char *name, size_t bytes,
                struct plan_numbers *ret_numbers);
/* The name with these numbers put in; it fits in RF_MAX_NAME_BYTES or false. No `*` in it. */
bool plan_name_make(const struct plan_pattern *pattern, const struct plan_numbers *numbers,
                    char *out, size_t room, size_t *ret_bytes);

/* ---- values ---- */

/* A plan's names for one config. */
struct plan_values {
    const struct plan *plan;
    const struct model_config *config;
    struct plan_computed *computed; /* [plan->value_count] */
};

enum rf_code plan_values_create(const struct plan *plan, const struct model_config *config,
                                struct plan_values *ret_values, struct rf_error *err);
void plan_values_free(struct plan_values *values);
/* RF_E_FORMAT names the key that is missing, and the line of the plan that needs it. */
enum rf_code plan_eval(const struct plan_values *values, const struct plan_expr *expr,
                       unsigned line, uint64_t *ret_value, struct rf_error *err);
/* Whether a line counts: its condition holds, and it is of a layer of its sort. layer PLAN_NONE:
 * there is none. */
enum rf_code plan_counts(const struct plan_values *values, const struct plan_when *when,
                         unsigned line, int64_t layer, bool *ret_counts, struct rf_error *err);

/* ---- parsing ---- */

struct plan_parser {
    struct plan *plan;
    const char *file;
    unsigned line;
    unsigned lines_made;
    struct plan_layout *layout; /* the one that lines belong to, or NULL */
    struct {
        const char *name;
        const char *text;
    } sets[PLAN_MAX_SETS];
    unsigned set_count;
    struct rf_error *err;
};

enum rf_code plan_fail(const struct plan_parser *parser, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
enum rf_code plan_fail_memory(const struct plan_parser *parser);
enum rf_code plan_expr_parse(const struct plan_parser *parser, const char *text,
                             struct plan_expr *ret_expr);
enum rf_code plan_pattern_parse(const struct plan_parser *parser, const char *text,
                                struct plan_pattern *ret_pattern);
/* One statement, its words without blanks. */
enum rf_code plan_statement(struct plan_parser *parser, char **words, unsigned count);

#endif
