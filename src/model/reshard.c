#include "model/reshard.h"

#include "base/thread.h"
#include "model/reshard_internal.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- is it the same model ---- */

static enum rf_code identity_same(const struct manifest *seed, const struct manifest *wanted,
                                  struct rf_error *err)
{
    const struct {
        const char *what;
        const char *seed;
        const char *wanted;
    } texts[] = {
        {"model", seed->model, wanted->model},
        {"architecture", seed->architecture, wanted->architecture},
        {"quantisation", seed->quantisation, wanted->quantisation},
    };

    for (unsigned i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        if (strcmp(texts[i].seed, texts[i].wanted) != 0)
            return rf_fail(err, RF_E_MISMATCH, "%s \"%.*s\" wanted, the seed has \"%.*s\"",
                           texts[i].what, RS_SHOWN_NAME, texts[i].wanted, RS_SHOWN_NAME,
                           texts[i].seed);
    }
    if (seed->weight_version != wanted->weight_version)
        return rf_fail(err, RF_E_MISMATCH,
                       "weight version %" PRIu64 " wanted, the seed has %" PRIu64,
                       wanted->weight_version, seed->weight_version);
    if ((seed->stage == STAGE_PROCESSED) != (wanted->stage == STAGE_PROCESSED))
        return rf_fail(
            err, RF_E_MISMATCH,
            "%s has processed tensors, and the other does not: neither can be made of the "
            "other",
            seed->stage == STAGE_PROCESSED ? "the seed" : "the new instance");
    return RF_OK;
}

static enum rf_code seeds_check(const struct manifest *const *seeds, uint32_t seed_count,
                                const struct manifest *wanted, struct rf_error *err)
{
    if (seed_count == 0 || seed_count > RESHARD_MAX_SEEDS)
        return rf_fail(err, RF_E_INVAL, "%" PRIu32 " seeds; allowed are 1 to %d", seed_count,
                       RESHARD_MAX_SEEDS);
    for (uint32_t i = 0; i < seed_count; i++) {
        enum rf_code code = identity_same(seeds[i], wanted, err);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

/* ---- in parallel ---- */

static enum rf_code index_item(void *ctx, uint64_t item, struct rf_error *err)
{
    return rs_index(ctx, (uint32_t)item + 1, err);
}

static enum rf_code plan_item(void *ctx, uint64_t item, struct rf_error *err)
{
    struct rs *rs = ctx;
    return rs_rank_plan(rs, &rs->ranks[item], err);
}

static enum rf_code finish_item(void *ctx, uint64_t item, struct rf_error *err)
{
    struct rs *rs = ctx;
    return rs_rank_finish(rs, &rs->ranks[item], err);
}

/* ---- the whole ---- */

static enum rf_code holders_list(struct rs *rs, struct rf_error *err)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < rs->seed_count; i++)
        count += rs->seeds[i]->rank_count; /* at most 2^12 times 2^12 */
    if ((uint64_t)count * (rs->source_count + UINT64_C(1)) > RS_MAX_ENTRIES)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "%" PRIu32 " ranks of seeds with %" PRIu32
                       " tensors of the checkpoint are more than can be planned with",
                       count, rs->source_count);
    rs->holders = calloc(count + (size_t)1, sizeof *rs->holders);
    rs->plan->holders = calloc(count + (size_t)1, sizeof *rs->plan->holders);
    if (rs->holders == NULL || rs->plan->holders == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks of seeds", count);
    for (uint32_t i = 0; i < rs->seed_count; i++) {
        for (uint32_t r = 0; r < rs->seeds[i]->rank_count; r++) {
            rs->plan->holders[rs->holder_count] = (struct reshard_holder){.seed = i, .rank = r};
            rs->holders[rs->holder_count++] = (struct rs_holder){
                .manifest = rs->seeds[i], .rank = &rs->seeds[i]->ranks[r], .map = rs->maps[i]};
        }
    }
    rs->plan->holder_count = rs->holder_count;
    return RF_OK;
}

static enum rf_code ranks_list(struct rs *rs, struct rf_error *err)
{
    uint32_t count = rs->wanted->rank_count;

    rs->ranks = calloc(count, sizeof *rs->ranks);
    rs->plan->ranks = calloc(count, sizeof *rs->plan->ranks);
    if (rs->ranks == NULL || rs->plan->ranks == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to plan %" PRIu32 " ranks", count);
    rs->plan->rank_count = count;
    for (uint32_t i = 0; i < count; i++)
        rs->ranks[i].index = i;
    return RF_OK;
}

/* What only one holder has is planned in parallel; then, by one thread, what several have, so that
 * the loads do not depend on the threads. */
static enum rf_code ranks_plan(struct rs *rs, struct rf_error *err)
{
    unsigned threads = thread_cpus();
    enum rf_code code = rs->holder_count > 0 ? rs_index(rs, 0, err) : RF_OK;

    if (code == RF_OK && rs->holder_count > 1)
        code = thread_parallel(threads, rs->holder_count - 1, index_item, rs, err);
    if (code == RF_OK)
        code = thread_parallel(threads, rs->wanted->rank_count, plan_item, rs, err);
    for (uint32_t i = 0; i < rs->wanted->rank_count && code == RF_OK; i++) {
        for (uint32_t l = 0; l < rs->ranks[i].list_count; l++)
            rs->plan->holders[rs->ranks[i].lists[l].holder].read_bytes +=
                rs->ranks[i].lists[l].read_bytes;
    }
    if (code == RF_OK)
        code = rs_ranks_share(rs, err);
    if (code == RF_OK)
        code = thread_parallel(threads, rs->wanted->rank_count, finish_item, rs, err);
    return code;
}

static void rs_free(struct rs *rs)
{
    for (uint32_t i = 0; rs->ranks != NULL && i < rs->wanted->rank_count; i++) {
        struct rs_rank *rank = &rs->ranks[i];

        for (uint32_t l = 0; l < rank->list_count; l++)
            free(rank->lists[l].moves);
        free(rank->lists);
        free(rank->slot);
        free(rank->templates);
        free(rank->shared);
        free(rank->fills);
    }
    for (uint32_t i = 0; rs->holders != NULL && i < rs->holder_count; i++)
        rs_holder_free(&rs->holders[i]);
    for (uint32_t i = 0; rs->maps != NULL && i < rs->seed_count; i++)
        free(rs->maps[i]);
    free(rs->ranks);
    free(rs->holders);
    free(rs->maps);
    free(rs->sources);
    free(rs->classes);
    free(rs->models);
}

enum rf_code reshard_plan(const struct manifest *const *seeds, uint32_t seed_count,
                          const struct manifest *wanted, struct reshard **ret_plan,
                          struct rf_error *err)
{
    struct rs rs = {.seeds = seeds, .seed_count = seed_count, .wanted = wanted};
    enum rf_code code = seeds_check(seeds, seed_count, wanted, err);

    if (code != RF_OK)
        return code;
    rs.plan = calloc(1, sizeof *rs.plan);
    if (rs.plan == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a plan");
    code = rs_sources(&rs, err);
    if (code == RF_OK)
        code = holders_list(&rs, err);
    if (code == RF_OK)
        code = ranks_list(&rs, err);
    if (code == RF_OK)
        code = ranks_plan(&rs, err);
    rs_free(&rs);
    if (code != RF_OK) {
        reshard_destroy(rs.plan);
        return code;
    }
    *ret_plan = rs.plan;
    return RF_OK;
}

void reshard_destroy(struct reshard *plan)
{
    if (plan == NULL)
        return;
    for (uint32_t i = 0; plan->ranks != NULL && i < plan->rank_count; i++) {
        for (uint32_t g = 0; g < plan->ranks[i].group_count; g++)
            free(plan->ranks[i].groups[g].moves);
        free(plan->ranks[i].groups);
        free(plan->ranks[i].fills);
    }
    free(plan->ranks);
    free(plan->holders);
    free(plan);
}
