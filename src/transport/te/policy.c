#include "transport/te/policy.h"

#include "base/clock.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- what is published ---- */

static enum rf_code make_buffers(struct te_policy *policy, struct rf_error *err)
{
    const struct te_space *space = &policy->space;
    char name[32];

    policy->buffers = arena_alloc(&policy->arena, (space->count + 1) * sizeof *policy->buffers);
    for (uint32_t i = 0; i < space->count && policy->buffers != NULL; i++) {
        const struct te_place *place = &space->places[i];
        int bytes = snprintf(name, sizeof name, "rank:%" PRIu32, place->rank);
        policy->buffers[i] = (struct te_buffer){
            .address = place->base,
            .bytes = place->bytes,
            .name = arena_strndup(&policy->arena, name, (size_t)bytes),
        };
        if (policy->buffers[i].name == NULL)
            policy->buffers = NULL;
    }
    if (policy->buffers == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to publish %" PRIu32 " ranks", space->count);
    return RF_OK;
}

enum rf_code te_policy_init(struct te_policy *policy, struct rf_error *err)
{
    enum rf_code code = te_space_init(&policy->space, &policy->exporter, err);

    if (code == RF_OK)
        code = make_buffers(policy, err);
    if (code != RF_OK)
        te_policy_free(policy);
    return code;
}

void te_policy_free(struct te_policy *policy)
{
    te_space_free(&policy->space);
    arena_free(&policy->arena);
    policy->buffers = NULL;
}

/* ---- the lease of those without a token ---- */

enum rf_code te_share_begin(struct te_share *share, struct rf_error *err)
{
    const struct exporter *exporter = &share->policy->exporter;
    uint64_t now_ns = clock_now_ns();
    enum rf_code code = RF_OK;

    if (share->lease == NULL) {
        code = exporter->lease_open(exporter->ctx, "te", &share->lease, err);
        share->checked_ns = 0;
    }
    if (code == RF_OK && now_ns - share->checked_ns >= TE_SHARE_CHECK_MS * CLOCK_NS_PER_MS) {
        code = exporter->lease_check(exporter->ctx, share->lease, err);
        if (code == RF_OK)
            share->checked_ns = now_ns;
    }
    if (code != RF_OK)
        return code;
    share->used_ns = now_ns;
    share->reads++;
    return RF_OK;
}

void te_share_end(struct te_share *share)
{
    assert(share->reads > 0);
    share->reads--;
}

bool te_share_tick(struct te_share *share, uint64_t now_ns, bool over)
{
    const struct exporter *exporter = &share->policy->exporter;

    if (share->lease == NULL || share->reads > 0)
        return share->lease != NULL;
    if (!over && now_ns < share->used_ns + TE_SHARE_KEEP_MS * CLOCK_NS_PER_MS)
        return true;
    exporter->lease_release(exporter->ctx, share->lease);
    share->lease = NULL;
    return false;
}
