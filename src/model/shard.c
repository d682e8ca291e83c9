#include "model/shard.h"

#include "base/cleanup.h"
#include "model/shard_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum manifest_stage shard_stage(const char *layout)
{
    return strcmp(layout, "checkpoint") == 0 ? STAGE_CHECKPOINT : STAGE_FUSED;
}

/* ---- asking ---- */

static enum rf_code layout_fail(const struct shard_request *request, struct rf_error *err)
{
    BUF_AUTO struct buf known = {0};

    buf_printf(&known, "checkpoint");
    for (unsigned i = 0; i < request->plan->layout_count; i++)
        buf_printf(&known, ", %s", request->plan->layouts[i].name);
    return rf_fail(err, RF_E_INVAL, "layout \"%.60s\": plan %s has %s", request->layout,
                   request->plan->name, known.data != NULL ? (const char *)known.data : "none");
}

/* The wrong plan file would be told by the first tensor that it does not know, or not at all. */
static enum rf_code architecture_check(const struct shard_request *request, struct rf_error *err)
{
    const struct plan *plan = request->plan;
    const char *own = request->config != NULL ? model_config_architecture(request->config) : "";
    BUF_AUTO struct buf known = {0};

    if (own[0] == '\0' || plan->architecture_count == 0 || plan_has_architecture(plan, own))
        return RF_OK;
    for (unsigned i = 0; i < plan->architecture_count; i++)
        buf_printf(&known, "%s%.120s", i > 0 ? ", " : "", plan->architectures[i]);
    return rf_fail(
        err, RF_E_FORMAT,
        "plan %s is for %.300s, the model is a %.120s: if it is cut in the same way, add "
        "it to the plan's line `architecture`",
        plan->name, known.data != NULL ? (const char *)known.data : "others", own);
}

static enum rf_code request_check(const struct shard_request *request, struct rf_error *err)
{
    if (!plan_has_layout(request->plan, request->layout))
        return layout_fail(request, err);
    enum rf_code code = architecture_check(request, err);
    if (code != RF_OK)
        return code;
    if (request->tp_size == 0 || request->tp_size > MANIFEST_MAX_RANKS)
        return rf_fail(err, RF_E_INVAL, "tp %" PRIu32 ": allowed are 1 to %d", request->tp_size,
                       MANIFEST_MAX_RANKS);
    if (request->ep_size > 1 && request->tp_size % request->ep_size != 0)
        return rf_fail(err, RF_E_INVAL, "ep %" PRIu32 ": does not divide tp %" PRIu32,
                       request->ep_size, request->tp_size);
    for (uint32_t i = 0; request->ranks != NULL && i < request->rank_count; i++) {
        if (request->ranks[i] >= request->tp_size)
            return rf_fail(err, RF_E_INVAL,
                           "rank %" PRIu32 ": with tp %" PRIu32 " there are 0 to %" PRIu32,
                           request->ranks[i], request->tp_size, request->tp_size - 1);
    }
    return RF_OK;
}

/* Experts are divided into groups of equally many. */
static enum rf_code experts_check(const struct shard *shard)
{
    uint32_t ep_size = shard->request->ep_size;
    bool any = false;

    for (unsigned i = 0; i < shard->plan->index_count; i++) {
        const struct plan_index *index = &shard->plan->indices[i];

        if (!index->split_ep || !shard->indices[i].known || ep_size <= 1)
            continue;
        any = true;
        if (shard->indices[i].count % ep_size != 0)
            return rf_fail(shard->err, RF_E_INVAL,
                           "%" PRIu32 " %ss cannot be divided by ep %" PRIu32 " (plan %s, line %u)",
                           shard->indices[i].count, index->name, ep_size, shard->plan->name,
                           index->line);
    }
    if (ep_size > 1 && !any)
        return rf_fail(shard->err, RF_E_INVAL, "ep %" PRIu32 ": plan %s knows no experts", ep_size,
                       shard->plan->name);
    for (uint32_t i = 0; i < shard->output_count && ep_size > 1; i++) {
        if (shard->outputs[i].elements > shard->outputs[i].divided)
            return rf_fail(shard->err, RF_E_INVAL,
                           "tensor %.*s: layout %s keeps a shared expert with the others, which "
                           "cannot be with ep %" PRIu32,
                           SHARD_SHOWN_NAME, shard->outputs[i].name, shard->request->layout,
                           ep_size);
    }
    return RF_OK;
}

/* ---- making ---- */

static void shard_free(struct shard *shard)
{
    plan_values_free(&shard->values);
    strmap_destroy(shard->names);
    free(shard->bound);
    free(shard->rules);
    free(shard->outputs);
    free(shard->items);
    arena_free(&shard->arena);
}

static enum rf_code shard_prepare(struct shard *shard)
{
    shard->bound = calloc(shard->source_count + (size_t)1, sizeof *shard->bound);
    shard->rules = calloc(shard->plan->rule_count + (size_t)1, sizeof *shard->rules);
    if (shard->bound == NULL || shard->rules == NULL)
        return rf_fail(shard->err, RF_E_NOMEM, "no memory to shard %" PRIu32 " tensors",
                       shard->source_count);
    enum rf_code code =
        plan_values_create(shard->plan, shard->request->config, &shard->values, shard->err);
    if (code == RF_OK)
        code = shard_bind(shard);
    if (code == RF_OK)
        code = shard_outputs(shard);
    return code == RF_OK ? experts_check(shard) : code;
}

enum rf_code shard_ranks(struct manifest_builder *builder, const struct shard_request *request,
                         struct rf_error *err)
{
    struct shard shard = {.plan = request->plan, .request = request, .err = err};
    enum rf_code code = request_check(request, err);

    if (code != RF_OK)
        return code;
    shard.layout = plan_layout(request->plan, request->layout);
    shard.sources = manifest_builder_sources(builder, &shard.source_count);
    code = shard_prepare(&shard);
    uint32_t count = request->ranks != NULL ? request->rank_count : request->tp_size;
    for (uint32_t i = 0; i < count && code == RF_OK; i++)
        code = shard_rank_add(&shard, builder, request->ranks != NULL ? request->ranks[i] : i);
    shard_free(&shard);
    return code;
}
