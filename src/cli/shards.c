#include "cli/shards.h"

#include "base/cleanup.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

bool shards_asked(const struct shard_options *options)
{
    return options->tp > 0 || options->ep > 0 || options->ranks != NULL || options->plan != NULL ||
           options->layout != NULL;
}

static enum rf_code plan_read(const char *path, struct plan **ret_plan, struct rf_error *err)
{
    rf_autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
    rf_autofree char *text = malloc(PLAN_MAX_BYTES + 1);
    size_t bytes = 0;

    if (fd < 0)
        return rf_fail_sys(err, "--plan: open %s", path);
    if (text == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for the plan %s", path);
    /* One more than there may be, so that the parser sees a file that is too long. */
    while (bytes <= PLAN_MAX_BYTES) {
        ssize_t got = read(fd, text + bytes, PLAN_MAX_BYTES + 1 - bytes);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return rf_fail_sys(err, "--plan: read %s", path);
        if (got == 0)
            break;
        bytes += (size_t)got;
    }
    return plan_parse(path, text, bytes, ret_plan, err);
}

enum rf_code shards_resolve(const struct shard_options *options, struct shards *ret_shards,
                            struct rf_error *err)
{
    const char *layout = options->layout != NULL ? options->layout : "checkpoint";
    uint32_t tp = options->tp > 0 ? (uint32_t)options->tp : 1;
    struct shards shards = {.given = tp > 1 || options->ep > 1 || options->plan != NULL ||
                                     strcmp(layout, "checkpoint") != 0};
    enum rf_code code = ranks_parse(options->ranks, tp, &shards.ranks, err);

    if (code != RF_OK)
        return rf_error_wrap(err, code, "--ranks");
    if (options->plan != NULL)
        code = plan_read(options->plan, &shards.plan, err);
    if (code != RF_OK) {
        shards_free(&shards);
        return code;
    }
    shards.load = (struct load_shards){
        .tp_size = tp,
        .ep_size = options->ep > 0 ? (uint32_t)options->ep : 1,
        .ranks = shards.ranks.list,
        .rank_count = shards.ranks.count,
        .layout = layout,
        .plan = shards.plan,
    };
    *ret_shards = shards;
    return RF_OK;
}

void shards_free(struct shards *shards)
{
    plan_destroy(shards->plan);
    free(shards->ranks.list);
    *shards = (struct shards){.given = false};
}

const char *shards_ranks_text(const struct manifest *manifest, char *out, size_t room)
{
    size_t used = 0;

    out[0] = '\0';
    for (uint32_t i = 0; i < manifest->rank_count && used < room;) {
        const struct rank_id *id = &manifest->ranks[i].id;
        uint32_t run = 1;

        if (id->pp_size != 1 || id->dp_size != 1 || id->role != ROLE_TARGET) {
            snprintf(out, room, "%" PRIu32, manifest->rank_count);
            return out;
        }
        while (i + run < manifest->rank_count && manifest->ranks[i + run].id.tp == id->tp + run)
            run++;
        used += (size_t)snprintf(out + used, room - used, "%s%" PRIu32, i > 0 ? "," : "", id->tp);
        if (run > 1 && used < room)
            used += (size_t)snprintf(out + used, room - used, "%s%" PRIu32, run > 2 ? "-" : ",",
                                     id->tp + run - 1);
        i += run;
    }
    if (used < room)
        snprintf(out + used, room - used, "/%" PRIu32, manifest->ranks[0].id.tp_size);
    return out;
}
