/* Tensor-parallel plans: which tensors a model family has, how each is split, and what an engine's
 * layout makes of them. The text format is in docs/sharding.md. Immutable; any thread. */
#ifndef MODEL_PLAN_H
#define MODEL_PLAN_H

#include "base/buf.h"
#include "base/error.h"

struct plan;

enum {
    PLAN_MAX_BYTES = 1 << 20,
    PLAN_MAX_LINES = 4096, /* after alternatives are written out */
};

/* Parses a plan text; `name` is for messages ("file.plan:12: ..."). RF_E_FORMAT names the line and
 * what is wrong; RF_E_NOMEM. Free with plan_destroy(). */
enum rf_code plan_parse(const char *name, const char *text, size_t bytes, struct plan **ret_plan,
                        struct rf_error *err);
void plan_destroy(struct plan *plan);

/* The built-in plan for an architecture ("LlamaForCausalLM"). RF_E_UNSUPPORTED names it, the
 * architectures there are, and how to write a plan. */
enum rf_code plan_for_architecture(const char *architecture, struct plan **ret_plan,
                                   struct rf_error *err);
/* Text of the i-th built-in plan and its name; NULL beyond the last. */
const char *plan_builtin(unsigned i, const char **ret_name);

const char *plan_name(const struct plan *plan);
bool plan_has_architecture(const struct plan *plan, const char *architecture);
/* "checkpoint" always is one. */
bool plan_has_layout(const struct plan *plan, const char *layout);

/* Which layers a pipeline stage holds, the way SGLang divides them: [*ret_first, *ret_end). layers
 * >= stages > stage. */
void plan_stage_layers(uint32_t layers, uint32_t stage, uint32_t stages, uint32_t *ret_first,
                       uint32_t *ret_end);
/* Which experts an expert-parallel rank holds: [*ret_first, *ret_end). ep_size divides experts. */
void plan_ep_experts(uint32_t experts, uint32_t ep, uint32_t ep_size, uint32_t *ret_first,
                     uint32_t *ret_end);
/* Where tensor-parallel rank tp stands among experts that are divided over ep_size groups of
 * tp_size / ep_size ranks: which group, and which shard inside it. ep_size divides tp_size. */
void plan_ep_place(uint32_t tp, uint32_t tp_size, uint32_t ep_size, uint32_t *ret_ep,
                   uint32_t *ret_moe_tp);

#endif
