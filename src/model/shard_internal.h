/* What the files of sharding share: a plan bound to a config and to a checkpoint's tensors. */
#ifndef MODEL_SHARD_INTERNAL_H
#define MODEL_SHARD_INTERNAL_H

#include "base/strmap.h"
#include "model/plan_internal.h"
#include "model/shard.h"

enum { SHARD_SHOWN_NAME = 120 };

/* A checkpoint's tensor and the rule that knows it. */
struct shard_source {
    const struct plan_rule *rule;
    struct plan_numbers numbers;
    uint32_t scaled; /* KIND_SCALE: the tensor whose scales these are */
    bool has_scale;
    bool used; /* by the layout */
};

/* A rule's values with this config, worked out when the first tensor asks for them. */
struct shard_rule {
    bool known;
    uint64_t by;  /* 0: the plan does not say */
    uint64_t pad; /* 0: none */
    uint64_t shape[PLAN_MAX_DIMS];
};

struct shard_index {
    uint32_t first;
    uint32_t count;
    bool known; /* its expressions were worked out */
};

/* One tensor that every rank has: what it is called, and what it is made of. */
struct shard_output {
    const char *name;
    unsigned line;       /* of the plan; 0: layout checkpoint */
    uint32_t first_item; /* in items[] */
    uint32_t item_count; /* in all elements together */
    uint32_t per_element;
    uint32_t elements; /* 0: not stacked */
    uint32_t divided;  /* of the elements: those that expert-parallel groups divide among them */
    bool alike;        /* all elements are made of tensors of the same rules, shapes and dtypes */
    uint64_t pad;      /* 0: as the source's rule says */
    int dtype;         /* enum rf_dtype, or PLAN_NONE: the source's */
    bool constant;
    float value;
};

/* Where a rank stands among those that share a tensor. */
struct shard_place {
    uint32_t size;
    uint32_t rank;
};

/* A rank's slice of one source: elements [start, start + count) along the axis, then zeros for
 * padding more. */
struct shard_slice {
    uint32_t axis;
    uint64_t start;
    uint64_t count;
    uint64_t padding;
    uint64_t whole; /* along the axis, of all ranks together, with padding */
    uint64_t first; /* where the slice begins in that */
};

struct shard {
    const struct plan *plan;
    const struct shard_request *request;
    const struct plan_layout *layout; /* NULL: checkpoint */
    struct plan_values values;
    const struct manifest_source *sources;
    struct shard_source *bound; /* [source_count] */
    uint32_t source_count;
    struct strmap *names;
    struct shard_rule *rules; /* [plan->rule_count] */
    struct shard_index indices[PLAN_MAX_INDICES];
    uint64_t block[2]; /* of scales: rows and columns that share one; 0: the config does not say */
    struct shard_output *outputs;
    uint32_t output_count;
    uint32_t output_room;
    uint32_t *items; /* indices of sources */
    uint32_t item_count;
    uint32_t item_room;
    struct arena arena;
    struct rf_error *err;
};

/* Finds each source's rule, checks its shape, and that none is missing. */
enum rf_code shard_bind(struct shard *shard);
/* Finds each scale's weight, and that no weight is without. Other tensors are bound already. */
enum rf_code shard_scales_bind(struct shard *shard);
/* Fails with both shapes; `because` says whose the wanted one is. */
enum rf_code shard_shape_fail(const struct shard *shard, uint32_t index, const uint64_t *wanted,
                              uint32_t ndim, const char *because);
/* Works out the range of an index, once. */
enum rf_code shard_index_know(struct shard *shard, unsigned index);
/* Whether all numbers are in the ranges of their indices (nothing is, of an index that is not
 * known). */
bool shard_in_range(const struct shard *shard, const struct plan_numbers *numbers);
/* Fills outputs[] and items[]; every source is used or dropped then. */
enum rf_code shard_outputs(struct shard *shard);
/* The slice that a place has of a source. pad: of the output, 0 if it does not say. */
enum rf_code shard_slice(const struct shard *shard, uint32_t source, struct shard_place place,
                         uint64_t pad, struct shard_slice *ret_slice);
/* Which of the request's ranks share this source, and where rank tp stands among them. */
struct shard_place shard_place_of(const struct shard *shard, uint32_t source, uint32_t tp);
/* Adds the tensors of one rank. */
enum rf_code shard_rank_add(const struct shard *shard, struct manifest_builder *builder,
                            uint32_t tp);

#endif
