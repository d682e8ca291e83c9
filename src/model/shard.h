/* Making ranks from a checkpoint's tensors by a plan: which slices each rank's tensors are made of.
 * Pure: no byte of a tensor is touched. */
#ifndef MODEL_SHARD_H
#define MODEL_SHARD_H

#include "model/config.h"
#include "model/manifest.h"
#include "model/plan.h"

struct shard_request {
    const struct plan *plan;
    const struct model_config *config;
    const char *layout; /* "checkpoint", or one the plan describes: "sglang" */
    uint32_t tp_size;
    uint32_t ep_size; /* experts are divided over so many groups of tp ranks; 0 or 1: not */
    const uint32_t
        *ranks; /* [rank_count] tp numbers, in the order they are to be added; NULL: all */
    uint32_t rank_count;
    enum manifest_role role;
};

/* What the identity of a manifest with ranks in this layout must say. */
enum manifest_stage shard_stage(const char *layout);

/* Adds the request's ranks, with all their tensors and parts, to a builder that has its sources
 * (manifest_add_source()). A tensor's `order` is the layout's own: of `checkpoint` the order in
 * which the sources were added, else the order of the plan.
 *
 * Errors, each a line that names tensor, key and numbers: RF_E_INVAL: the layout, a rank number,
 * sizes that do not divide (heads, KV heads, experts, vocabulary, blocks of scales);
 * RF_E_FORMAT: the config lacks a key the plan needs, tensors are missing, no rule knows a
 * tensor, two rules do, a tensor's shape is not what the config says; RF_E_NOMEM. The builder is
 * of no further use then. */
enum rf_code shard_ranks(struct manifest_builder *builder, const struct shard_request *request,
                         struct rf_error *err);

/* A wanted manifest for an instance that shards differently from its seed: identity, side files
 * and sources are the seed's, ranks the request's. A seed that is not sharded (one rank, no
 * sources) gives its tensors as sources, aliases left out. RF_E_MISMATCH: the seed's tensors are
 * processed, or it does not say what its ranks are made of. Else as shard_ranks(). */
enum rf_code shard_like(const struct manifest *seed, const struct shard_request *request,
                        struct manifest **ret_manifest, struct rf_error *err);

/* The whole checkpoint, as one rank of layout "checkpoint", from a sharded seed: its tensors are
 * the seed's sources, and have their files. A seed that is not sharded is its own: a reference
 * to it. RF_E_MISMATCH as above. */
enum rf_code shard_whole(struct manifest *seed, struct manifest **ret_manifest,
                         struct rf_error *err);

#endif
