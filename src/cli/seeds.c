#include "cli/seeds.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/size.h"
#include "cli/output.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening ---- */

static enum rf_code agree(struct seeds *seeds, const struct shard_options *shard,
                          struct rf_error *err)
{
    struct remote_shape shape = {
        .tp_size = (uint32_t)shard->tp,
        .ep_size = (uint32_t)shard->ep,
        .layout = shard->layout,
    };

    if (seeds->count == 1 && !shards_asked(shard))
        return RF_OK;
    if (shard->ranks != NULL && shard->tp == 0)
        return rf_fail(err, RF_E_INVAL, "--ranks: of how many? give --tp N");
    enum rf_code code = shards_resolve(shard, &seeds->shards, err);
    if (code != RF_OK)
        return code;
    shape.plan = seeds->shards.plan;
    if (shard->ranks != NULL) {
        shape.ranks = seeds->shards.ranks.list;
        shape.rank_count = seeds->shards.ranks.count;
    }
    if (seeds->count == 1 && remote_shape_is_own(seeds->remotes[0], &shape))
        return RF_OK;
    code = remote_reshard_plan(seeds->remotes, seeds->count, &shape, &seeds->reshard, err);
    if (code == RF_OK && remote_reshard_is_plain(seeds->reshard)) {
        /* Then all its digests are the seed's too. */
        remote_reshard_destroy(seeds->reshard);
        seeds->reshard = NULL;
    }
    return code;
}

/* A seed that is whole is written as it is. */
static enum rf_code agree_whole(struct seeds *seeds, struct rf_error *err)
{
    if (seeds->count == 1 && remote_folder_is_plain(seeds->remotes[0]))
        return RF_OK;
    return remote_reshard_whole(seeds->remotes, seeds->count, &seeds->reshard, err);
}

static enum rf_code open_all(char *const *urls, unsigned count, uint64_t wait_ready_ms,
                             const struct shard_options *shard, struct seeds *seeds,
                             struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (unsigned i = 0; code == RF_OK && i < count; i++) {
        code = remote_open(urls[i], &seeds->options, wait_ready_ms, &seeds->remotes[i], err);
        seeds->count += code == RF_OK;
    }
    if (code == RF_OK)
        code = shard != NULL ? agree(seeds, shard, err) : agree_whole(seeds, err);
    return code;
}

enum rf_code seeds_open(char *const *urls, unsigned count, const struct transfer_options *transfer,
                        const struct shard_options *shard, struct seeds *ret_seeds,
                        struct rf_error *err)
{
    struct seeds *seeds = ret_seeds;

    *seeds = (struct seeds){.count = 0};
    transfer_remote_options(transfer, &seeds->options);
    if (count > REMOTE_MAX_SEEDS)
        return rf_fail(err, RF_E_INVAL, "%u seeds: at most %d can be forked from at once", count,
                       REMOTE_MAX_SEEDS);
    enum rf_code code = open_all(urls, count, transfer->wait_ready_ms, shard, seeds, err);
    if (code == RF_E_MISMATCH && seeds->count == 1 && remote_others_may_have(seeds->remotes[0])) {
        log_info("ranks are missing: asking for those of other nodes", "url=%s", urls[0]);
        seeds_close(seeds);
        seeds->options.seed_api = REMOTE_API_SGLANG;
        code = open_all(urls, count, transfer->wait_ready_ms, shard, seeds, err);
    }
    return code;
}

enum rf_code seeds_open_list(const char *urls, const struct transfer_options *transfer,
                             const struct shard_options *shard, struct seeds *ret_seeds,
                             struct rf_error *err)
{
    rf_autofree char *text = strdup(urls);
    char *list[REMOTE_MAX_SEEDS + 1];
    unsigned count = 0;
    char *rest = NULL;

    *ret_seeds = (struct seeds){.count = 0};
    if (text == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for the seeds' URLs");
    for (char *url = strtok_r(text, ",", &rest); url != NULL && count <= REMOTE_MAX_SEEDS;
         url = strtok_r(NULL, ",", &rest))
        list[count++] = url;
    if (count == 0)
        return rf_fail(err, RF_E_INVAL, "\"%.100s\" names no seed", urls);
    return seeds_open(list, count, transfer, shard, ret_seeds, err);
}

void seeds_close(struct seeds *seeds)
{
    remote_reshard_destroy(seeds->reshard);
    for (uint32_t i = 0; i < seeds->count; i++)
        remote_close(seeds->remotes[i]);
    shards_free(&seeds->shards);
    seeds->count = 0;
    seeds->reshard = NULL;
}

/* ---- taking ---- */

struct manifest *seeds_manifest(const struct seeds *seeds)
{
    return seeds->reshard != NULL ? remote_reshard_manifest(seeds->reshard)
                                  : remote_manifest(seeds->remotes[0]);
}

uint64_t seeds_tensor_count(const struct seeds *seeds)
{
    const struct manifest *manifest = seeds_manifest(seeds);
    uint64_t count = 0;

    for (uint32_t i = 0; i < manifest->rank_count; i++)
        count += manifest->ranks[i].tensor_count;
    return count;
}

bool seeds_map(const struct seeds *seeds, const struct transfer_options *transfer)
{
    bool map = true;

    for (uint32_t i = 0; i < seeds->count; i++)
        map = map && transfer_maps(transfer, seeds->remotes[i]);
    return map;
}

static enum remote_memory memory_of(const struct transfer_options *transfer)
{
    return transfer->copy ? REMOTE_COPY : REMOTE_SHARE;
}

enum rf_code seeds_take(struct seeds *seeds, const struct transfer_options *transfer,
                        struct store **ret_store, struct remote_result *ret_result,
                        struct rf_error *err)
{
    if (seeds->reshard != NULL)
        return remote_reshard_memory(seeds->reshard, memory_of(transfer), transfer->verify,
                                     ret_store, ret_result, err);
    return remote_fork_memory(seeds->remotes[0], memory_of(transfer), transfer->verify, ret_store,
                              ret_result, err);
}

enum rf_code seeds_take_folder(struct seeds *seeds, const struct remote_folder_options *folder,
                               struct remote_result *ret_result, struct rf_error *err)
{
    if (seeds->reshard != NULL)
        return remote_reshard_folder(seeds->reshard, folder, ret_result, err);
    return remote_fork_folder(seeds->remotes[0], folder, ret_result, err);
}

/* ---- what would happen ---- */

static void print_rank(const struct seeds *seeds, uint32_t rank, enum remote_memory memory)
{
    struct buf line BUF_AUTO = {0};
    struct remote_forecast forecast;
    const char *from = "; from";
    char id[64];
    char bytes[SIZE_TEXT_BYTES];

    remote_reshard_forecast(seeds->reshard, rank, memory, &forecast);
    buf_printf(&line, "rank %s: ", rank_id_text(&seeds_manifest(seeds)->ranks[rank].id, id));
    if (forecast.mapped_bytes > 0)
        buf_printf(&line, "%s shared, ", size_text(forecast.mapped_bytes, bytes));
    buf_printf(&line, "%s copied", size_text(forecast.copied_bytes, bytes));
    if (forecast.filled_bytes > 0)
        buf_printf(&line, ", %s filled in", size_text(forecast.filled_bytes, bytes));
    for (uint32_t i = 0; i < remote_reshard_holders(seeds->reshard); i++) {
        struct remote *remote;
        const struct rank_id *holder;
        uint64_t read = remote_reshard_bytes(seeds->reshard, rank, i, &remote, &holder);

        if (read == 0)
            continue;
        buf_printf(&line, "%s %s %s", from, rank_id_text(holder, id), size_text(read, bytes));
        if (seeds->count > 1)
            buf_printf(&line, " (%s)", client_url(remote_client(remote)));
        from = ",";
    }
    if (!line.failed)
        output_line("%s", (const char *)line.data);
}

void seeds_print_plan(const struct seeds *seeds, const struct transfer_options *transfer)
{
    uint32_t count = seeds_manifest(seeds)->rank_count;

    for (uint32_t i = 0; seeds->reshard != NULL && i < count; i++)
        print_rank(seeds, i, memory_of(transfer));
}

static void json_rank(const struct seeds *seeds, uint32_t rank, enum remote_memory memory,
                      struct jsonout *out)
{
    struct remote_forecast forecast;
    char id[64];

    remote_reshard_forecast(seeds->reshard, rank, memory, &forecast);
    jsonout_open(out, NULL, '{');
    jsonout_text(out, "rank", rank_id_text(&seeds_manifest(seeds)->ranks[rank].id, id));
    jsonout_u64(out, "bytes", seeds_manifest(seeds)->ranks[rank].stream_bytes);
    jsonout_u64(out, "mapped_bytes", forecast.mapped_bytes);
    jsonout_u64(out, "copied_bytes", forecast.copied_bytes);
    jsonout_u64(out, "filled_bytes", forecast.filled_bytes);
    jsonout_open(out, "from", '[');
    for (uint32_t i = 0; i < remote_reshard_holders(seeds->reshard); i++) {
        struct remote *remote;
        const struct rank_id *holder;
        uint64_t read = remote_reshard_bytes(seeds->reshard, rank, i, &remote, &holder);

        if (read == 0)
            continue;
        jsonout_open(out, NULL, '{');
        jsonout_text(out, "url", client_url(remote_client(remote)));
        jsonout_text(out, "rank", rank_id_text(holder, id));
        jsonout_u64(out, "bytes", read);
        jsonout_close(out, '}');
    }
    jsonout_close(out, ']');
    jsonout_close(out, '}');
}

void seeds_json_plan(const struct seeds *seeds, const struct transfer_options *transfer,
                     struct jsonout *out)
{
    uint32_t count = seeds_manifest(seeds)->rank_count;

    jsonout_open(out, "plan", '[');
    for (uint32_t i = 0; seeds->reshard != NULL && i < count; i++)
        json_rank(seeds, i, memory_of(transfer), out);
    jsonout_close(out, ']');
}
