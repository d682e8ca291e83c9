/* Name-by-name comparison of two tensor tables: what `rfork diff` prints and what a fork checks
 * before a byte moves. */
#ifndef MODEL_COMPARE_H
#define MODEL_COMPARE_H

#include "model/manifest.h"

enum difference_kind {
    DIFF_MISSING, /* in a, not in b */
    DIFF_EXTRA,   /* in b, not in a */
    DIFF_DTYPE,
    DIFF_SHAPE,
    DIFF_SLICE,
    DIFF_ALIAS,
    /* same shape and slice, made of other pieces of the checkpoint; only looked at where both
     * sides say what a tensor is made of */
    DIFF_PARTS,
    DIFF_CONTENT, /* only reported by callers that compare digests */
    DIFF_IDENTITY,
};

struct difference {
    enum difference_kind kind;
    const char *name;       /* borrowed from the tables */
    const struct tensor *a; /* NULL if missing on that side */
    const struct tensor *b;
    const struct tensor *a_target; /* DIFF_ALIAS: whose bytes a is; NULL: it has its own */
    const struct tensor *b_target;
    const struct manifest_source *a_sources; /* DIFF_PARTS: what the parts count in */
    const struct manifest_source *b_sources;
};

typedef void (*difference_fn)(void *ctx, const struct difference *difference);

/* Calls fn for each difference, in the order of names (both tables are sorted: one merge pass).
 * Returns how many. */
uint64_t compare_tensors(const struct manifest_rank *a, const struct manifest_rank *b,
                         difference_fn fn, void *ctx);

/* One line: `model.norm.weight: shape [576] here, [960] there`. a_is and b_is name the sides. */
void difference_text(const struct difference *difference, const char *a_is, const char *b_is,
                     struct buf *out);

/* RF_OK if equal, else RF_E_MISMATCH with a line that counts the differences and shows the first
 * ones. */
enum rf_code compare_explain(const struct manifest_rank *want, const struct manifest_rank *have,
                             struct rf_error *err);

#endif
