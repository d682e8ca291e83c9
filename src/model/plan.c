#include "model/plan.h"

#include "model/plan_internal.h"
#include "model/plans/builtin.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    const char *text;
} builtins[] = {
    {"llama", plan_text_llama},
    {"qwen2", plan_text_qwen2},
    {"qwen3", plan_text_qwen3},
    {"qwen3_moe", plan_text_qwen3_moe},
    {"deepseek_v3", plan_text_deepseek_v3},
};

enum { BUILTIN_COUNT = sizeof builtins / sizeof builtins[0] };

const char *plan_builtin(unsigned i, const char **ret_name)
{
    if (i >= BUILTIN_COUNT)
        return NULL;
    if (ret_name != NULL)
        *ret_name = builtins[i].name;
    return builtins[i].text;
}

enum rf_code plan_for_architecture(const char *architecture, struct plan **ret_plan,
                                   struct rf_error *err)
{
    BUF_AUTO struct buf known = {0};

    for (unsigned i = 0; i < BUILTIN_COUNT; i++) {
        struct plan *plan = NULL;
        enum rf_code code =
            plan_parse(builtins[i].name, builtins[i].text, strlen(builtins[i].text), &plan, err);

        if (code != RF_OK)
            return code;
        if (plan_has_architecture(plan, architecture)) {
            *ret_plan = plan;
            return RF_OK;
        }
        for (unsigned j = 0; j < plan->architecture_count; j++)
            buf_printf(&known, "%s%s", known.bytes > 0 ? ", " : "", plan->architectures[j]);
        plan_destroy(plan);
    }
    return rf_fail(err, RF_E_UNSUPPORTED,
                   "architecture \"%.120s\": no plan says how to shard it; there are plans for %s; "
                   "write one of a few lines (docs/sharding.md) and name it with --plan FILE",
                   architecture, known.data != NULL ? (const char *)known.data : "none");
}

void plan_destroy(struct plan *plan)
{
    if (plan == NULL)
        return;
    for (unsigned i = 0; i < plan->layout_count; i++) {
        free(plan->layouts[i].makes);
        free(plan->layouts[i].drops);
    }
    free(plan->layouts);
    free(plan->architectures);
    free(plan->values);
    free(plan->rules);
    arena_free(&plan->arena);
    free(plan);
}

const char *plan_name(const struct plan *plan)
{
    return plan->name;
}

bool plan_has_architecture(const struct plan *plan, const char *architecture)
{
    for (unsigned i = 0; i < plan->architecture_count; i++) {
        if (strcmp(plan->architectures[i], architecture) == 0)
            return true;
    }
    return false;
}

const struct plan_layout *plan_layout(const struct plan *plan, const char *name)
{
    for (unsigned i = 0; i < plan->layout_count; i++) {
        if (strcmp(plan->layouts[i].name, name) == 0)
            return &plan->layouts[i];
    }
    return NULL;
}

bool plan_has_layout(const struct plan *plan, const char *layout)
{
    return strcmp(layout, "checkpoint") == 0 || plan_layout(plan, layout) != NULL;
}

/* ---- placement ---- */

void plan_stage_layers(uint32_t layers, uint32_t stage, uint32_t stages, uint32_t *ret_first,
                       uint32_t *ret_end)
{
    assert(stages > 0 && stage < stages && layers >= stages);
    uint32_t base = layers / stages;
    uint32_t longer = layers % stages; /* the last ones have one layer more */
    uint32_t shorter = stages - longer;
    uint32_t before = stage > shorter ? stage - shorter : 0;

    *ret_first = stage * base + before;
    *ret_end = *ret_first + base + (stage >= shorter ? 1 : 0);
}

void plan_ep_experts(uint32_t experts, uint32_t ep, uint32_t ep_size, uint32_t *ret_first,
                     uint32_t *ret_end)
{
    assert(ep < ep_size && experts % ep_size == 0);
    *ret_first = ep * (experts / ep_size);
    *ret_end = *ret_first + experts / ep_size;
}

void plan_ep_place(uint32_t tp, uint32_t tp_size, uint32_t ep_size, uint32_t *ret_ep,
                   uint32_t *ret_moe_tp)
{
    assert(tp < tp_size && ep_size > 0 && tp_size % ep_size == 0);
    uint32_t moe_tp_size = tp_size / ep_size;

    *ret_ep = tp / moe_tp_size;
    *ret_moe_tp = tp % moe_tp_size;
}
