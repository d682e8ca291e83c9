#include "control/remote_reshard.h"

#include "base/cleanup.h"
#include "base/size.h"
#include "control/remote_agree.h"
#include "control/remote_internal.h"
#include "control/remote_views.h"
#include "model/compare.h"
#include "model/shard.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char config_name[] = "config.json";

struct remote_reshard {
    struct remote **remotes;
    uint32_t remote_count;
    struct manifest *wanted;
    struct reshard *plan;
};

/* ---- what is wanted ---- */

static enum rf_code fetch_config(struct remote *remote, struct model_config **ret_config,
                                 struct rf_error *err)
{
    const struct manifest *manifest = remote->manifest;
    BUF_AUTO struct buf content = {.data = NULL};
    uint32_t file = 0;

    while (file < manifest->file_count && (manifest->files[file].kind != FILE_SIDE ||
                                           strcmp(manifest->files[file].name, config_name) != 0))
        file++;
    if (file == manifest->file_count)
        return rf_fail(err, RF_E_MISMATCH,
                       "%s has no %s: how its tensors are to be cut cannot be told; only an "
                       "instance of the same shape can fork from it",
                       client_url(remote->client), config_name);
    enum rf_code code = remote_fetch_file(remote, file, &content, err);
    if (code != RF_OK)
        return code;
    code = model_config_parse((const char *)content.data, content.bytes, ret_config, err);
    return code == RF_OK
               ? RF_OK
               : rf_error_wrap(err, code, "%s of %s", config_name, client_url(remote->client));
}

/* The shape's request in full, as far as it is left to the seed. */
static struct shard_request request_of(const struct manifest *seed,
                                       const struct remote_shape *shape)
{
    const struct rank_id *id = &seed->ranks[0].id;
    struct shard_request request = {
        .layout = shape->layout != NULL ? shape->layout : seed->layout,
        .tp_size = shape->tp_size > 0 ? shape->tp_size : id->tp_size,
        .ep_size = shape->ep_size,
        .ranks = shape->ranks,
        .rank_count = shape->rank_count,
        .role = id->role,
    };

    if (request.ep_size == 0)
        request.ep_size = request.tp_size == id->tp_size ? id->ep_size : 1;
    return request;
}

bool remote_shape_is_own(const struct remote *remote, const struct remote_shape *shape)
{
    const struct manifest *seed = remote->manifest;
    const struct rank_id *id = &seed->ranks[0].id;

    return seed->stage == STAGE_PROCESSED && seed->rank_count == id->tp_size &&
           (shape->tp_size == 0 || shape->tp_size == id->tp_size) &&
           (shape->ep_size == 0 || shape->ep_size == id->ep_size) && shape->ranks == NULL &&
           shape->plan == NULL &&
           (shape->layout == NULL || strcmp(shape->layout, seed->layout) == 0);
}

static enum rf_code want_shape(struct remote *remote, const struct remote_shape *shape,
                               struct manifest **ret_wanted, struct rf_error *err)
{
    struct manifest *seed = remote->manifest;
    struct shard_request request = request_of(seed, shape);
    struct model_config *config = NULL;
    struct plan *built_in = NULL;

    if (seed->stage == STAGE_PROCESSED)
        return rf_fail(err, RF_E_MISMATCH,
                       "%s does not say what its tensors are made of: nothing but all of its "
                       "%" PRIu32 " ranks can be made of them, in layout %.60s",
                       client_url(remote->client), seed->rank_count, seed->layout);
    /* What a folder holds that was not cut at all: no plan is needed for that. */
    bool first = shape->ranks == NULL || (shape->rank_count == 1 && shape->ranks[0] == 0);
    if (first && request.tp_size == 1 && request.ep_size <= 1 && shape->plan == NULL &&
        strcmp(request.layout, "checkpoint") == 0)
        return shard_whole(seed, ret_wanted, err);
    enum rf_code code =
        shape->plan != NULL ? RF_OK : plan_for_architecture(seed->architecture, &built_in, err);

    if (code == RF_OK)
        code = fetch_config(remote, &config, err);
    request.plan = shape->plan != NULL ? shape->plan : built_in;
    request.config = config;
    if (code == RF_OK)
        code = shard_like(seed, &request, ret_wanted, err);
    model_config_destroy(config);
    plan_destroy(built_in);
    return code;
}

/* ---- agreeing ---- */

static enum rf_code plan_moves(struct remote_reshard *reshard, struct rf_error *err)
{
    rf_autofree const struct manifest **seeds =
        calloc((size_t)reshard->remote_count + 1, sizeof(const struct manifest *));

    if (seeds == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " seeds", reshard->remote_count);
    for (uint32_t i = 0; i < reshard->remote_count; i++)
        seeds[i] = reshard->remotes[i]->manifest;
    /* First what the manifests say, tensor by tensor, then what only asking tells. */
    enum rf_code code =
        reshard_plan(seeds, reshard->remote_count, reshard->wanted, &reshard->plan, err);
    for (uint32_t i = 1; code == RF_OK && i < reshard->remote_count; i++)
        code = remote_agree(reshard->remotes[0], reshard->remotes[i], err);
    return code;
}

/* Takes the wanted manifest over. */
static enum rf_code create(struct remote *const *remotes, uint32_t remote_count,
                           struct manifest *wanted, struct remote_reshard **ret_reshard,
                           struct rf_error *err)
{
    struct remote_reshard *reshard = calloc(1, sizeof(*reshard));
    enum rf_code code = RF_E_NOMEM;

    if (reshard == NULL) {
        manifest_unref(wanted);
        return rf_fail(err, RF_E_NOMEM, "no memory for a fork");
    }
    reshard->wanted = wanted;
    reshard->remote_count = remote_count;
    reshard->remotes = calloc((size_t)remote_count + 1, sizeof(struct remote *));
    if (reshard->remotes != NULL) {
        memcpy(reshard->remotes, remotes, remote_count * sizeof(struct remote *));
        code = plan_moves(reshard, err);
    } else {
        rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " seeds", remote_count);
    }
    if (code != RF_OK) {
        remote_reshard_destroy(reshard);
        return code;
    }
    *ret_reshard = reshard;
    return RF_OK;
}

enum rf_code remote_reshard_plan(struct remote *const *remotes, uint32_t remote_count,
                                 const struct remote_shape *shape,
                                 struct remote_reshard **ret_reshard, struct rf_error *err)
{
    struct manifest *wanted = NULL;
    enum rf_code code = want_shape(remotes[0], shape, &wanted, err);

    return code == RF_OK ? create(remotes, remote_count, wanted, ret_reshard, err) : code;
}

enum rf_code remote_reshard_whole(struct remote *const *remotes, uint32_t remote_count,
                                  struct remote_reshard **ret_reshard, struct rf_error *err)
{
    struct manifest *wanted = NULL;
    enum rf_code code = shard_whole(remotes[0]->manifest, &wanted, err);

    return code == RF_OK ? create(remotes, remote_count, wanted, ret_reshard, err) : code;
}

void remote_reshard_destroy(struct remote_reshard *reshard)
{
    if (reshard == NULL)
        return;
    reshard_destroy(reshard->plan);
    manifest_unref(reshard->wanted);
    free(reshard->remotes);
    free(reshard);
}

/* Whether a rank is one whole rank of the seed's, tensor by tensor. */
static bool rank_is_plain(const struct remote_reshard *reshard, uint32_t index)
{
    const struct manifest_rank *wanted = &reshard->wanted->ranks[index];
    const struct manifest_rank *seed = &reshard->remotes[0]->manifest->ranks[index];
    const struct reshard_rank *from = &reshard->plan->ranks[index];
    const struct reshard_group *group = from->groups;

    return rank_id_compare(&wanted->id, &seed->id) == 0 && from->move_count == 1 &&
           from->fill_count == 0 && group->holder == index && group->moves[0].read.offset == 0 &&
           group->moves[0].read.count == 1 && group->moves[0].write_offset == 0 &&
           group->moves[0].from == group->moves[0].to &&
           group->moves[0].read.bytes == seed->stream_bytes &&
           wanted->stream_bytes == seed->stream_bytes &&
           compare_tensors(wanted, seed, NULL, NULL) == 0;
}

bool remote_reshard_is_plain(const struct remote_reshard *reshard)
{
    const struct manifest *seed = reshard->remotes[0]->manifest;
    bool plain = reshard->remote_count == 1 && reshard->wanted->rank_count == seed->rank_count &&
                 strcmp(reshard->wanted->layout, seed->layout) == 0;

    for (uint32_t i = 0; plain && i < seed->rank_count; i++)
        plain = rank_is_plain(reshard, i);
    return plain;
}

struct manifest *remote_reshard_manifest(const struct remote_reshard *reshard)
{
    return reshard->wanted;
}

/* ---- what it would be ---- */

static bool all_map(const struct remote_reshard *reshard)
{
    for (uint32_t i = 0; i < reshard->remote_count; i++) {
        if (reshard->remotes[i]->choice.transport->map == NULL)
            return false;
    }
    return true;
}

void remote_reshard_forecast(const struct remote_reshard *reshard, uint32_t rank,
                             enum remote_memory memory, struct remote_forecast *ret_forecast)
{
    const struct reshard_rank *of = &reshard->plan->ranks[rank];
    bool share = memory == REMOTE_SHARE && all_map(reshard);
    struct remote_forecast forecast = {.filled_bytes = of->fill_bytes};

    for (uint32_t g = 0; g < of->group_count; g++) {
        for (uint64_t i = 0; i < of->groups[g].move_count; i++) {
            const struct reshard_move *move = &of->groups[g].moves[i];
            uint64_t bytes = move->read.bytes * move->read.count;

            if (share && remote_view_fits(move))
                forecast.mapped_bytes += bytes;
            else
                forecast.copied_bytes += bytes;
        }
    }
    *ret_forecast = forecast;
}

uint32_t remote_reshard_holders(const struct remote_reshard *reshard)
{
    return reshard->plan->holder_count;
}

uint64_t remote_reshard_bytes(const struct remote_reshard *reshard, uint32_t rank, uint32_t holder,
                              struct remote **ret_remote, const struct rank_id **ret_id)
{
    const struct reshard_holder *from = &reshard->plan->holders[holder];
    const struct reshard_rank *of = &reshard->plan->ranks[rank];
    uint64_t bytes = 0;

    *ret_remote = reshard->remotes[from->seed];
    *ret_id = &(*ret_remote)->manifest->ranks[from->rank].id;
    for (uint32_t g = 0; g < of->group_count; g++)
        bytes += of->groups[g].holder == holder ? of->groups[g].read_bytes : 0;
    return bytes;
}

/* ---- doing it ---- */

/* Appends what one rank reads from one holder. */
static uint64_t add_group(const struct reshard_group *group, uint32_t rank, struct fork_move *moves)
{
    for (uint64_t i = 0; i < group->move_count; i++) {
        const struct reshard_move *from = &group->moves[i];

        moves[i] = (struct fork_move){
            .read = from->read,
            .write_offset = from->write_offset,
            .write_stride = from->write_stride,
            .source = group->holder,
            .target = rank,
            .from = from->from,
            .to = from->to,
        };
    }
    return group->move_count;
}

/* The moves of all ranks as a fork's. Holders are counted as its sources are: all ranks of the
 * first seed, then those of the next. */
static enum rf_code make_moves(const struct remote_reshard *reshard, struct fork_move **ret_moves,
                               uint64_t *ret_count, struct rf_error *err)
{
    const struct reshard *plan = reshard->plan;
    struct fork_move *moves;
    uint64_t count = 0;
    uint64_t at = 0;

    for (uint32_t i = 0; i < plan->rank_count; i++)
        count += plan->ranks[i].move_count;
    moves = calloc((size_t)count + 1, sizeof(*moves));
    if (moves == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " moves", count);
    for (uint32_t i = 0; i < plan->rank_count; i++) {
        for (uint32_t g = 0; g < plan->ranks[i].group_count; g++)
            at += add_group(&plan->ranks[i].groups[g], i, moves + at);
    }
    *ret_moves = moves;
    *ret_count = count;
    return RF_OK;
}

static enum rf_code copy_all(const struct remote_reshard *reshard, struct store *store,
                             struct remote_result *result, struct rf_error *err)
{
    rf_autofree struct fork_move *moves = NULL;
    struct remote_run run = {.remotes = reshard->remotes, .remote_count = reshard->remote_count};
    enum rf_code code =
        remote_refuse_large(reshard->remotes[0], manifest_total_bytes(reshard->wanted), err);

    if (code == RF_OK)
        code = make_moves(reshard, &moves, &run.move_count, err);
    run.moves = moves;
    if (code == RF_OK)
        code = remote_copy_ranks(&run, reshard->plan, store, result, err);
    if (code == RF_OK)
        remote_say_verified(reshard->remotes, reshard->remote_count, result);
    return code;
}

enum rf_code remote_reshard_memory(struct remote_reshard *reshard, enum remote_memory memory,
                                   bool verify_mapped, struct store **ret_store,
                                   struct remote_result *ret_result, struct rf_error *err)
{
    struct remote *first = reshard->remotes[0];
    struct remote_result result = {.mapped = memory == REMOTE_SHARE && all_map(reshard)};
    struct store *store = NULL;
    enum rf_code code =
        remote_refuse_verify(reshard->remotes, reshard->remote_count, verify_mapped, err);

    if (code == RF_OK)
        code = store_create(reshard->wanted, &store, err);
    if (code != RF_OK)
        return code;
    if (result.mapped)
        code = remote_views_make(reshard->remotes, reshard->remote_count, reshard->plan,
                                 verify_mapped, store, &result, err);
    else
        code = copy_all(reshard, store, &result, err);
    if (code == RF_OK)
        code = remote_take_files(first, store, err);
    if (code != RF_OK) {
        store_destroy(store);
        return code;
    }
    remote_describe(first, &result);
    *ret_store = store;
    *ret_result = result;
    return RF_OK;
}

/* Constants in memory of the caller's, which may hold anything. */
static enum rf_code fill_dest(const struct reshard_rank *from, const struct fork_dest *dest,
                              struct rf_error *err)
{
    for (uint32_t i = 0; i < from->fill_count; i++) {
        const struct reshard_fill *fill = &from->fills[i];
        const struct fork_segment *at = fork_dest_at(dest, fill->offset);
        uint64_t skip = fill->offset - at->stream_offset;

        if (at->addr == NULL || fill->constant->bytes > at->bytes - skip)
            return rf_fail(err, RF_E_UNSUPPORTED,
                           "%" PRIu64 " constant bytes at %" PRIu64
                           " of the stream have no place in one piece of memory",
                           fill->constant->bytes, fill->offset);
        part_fill(fill->constant, at->addr + skip, fill->constant->bytes);
    }
    return RF_OK;
}

enum rf_code remote_reshard_dests(struct remote_reshard *reshard, const struct fork_dest *dests,
                                  uint32_t count, struct remote_result *ret_result,
                                  struct rf_error *err)
{
    struct remote *first = reshard->remotes[0];
    rf_autofree struct fork_move *moves = NULL;
    rf_autofree struct fork_target *targets = calloc((size_t)count + 1, sizeof(*targets));
    struct remote_result result = {.bytes = 0};
    struct remote_run run = {
        .remotes = reshard->remotes,
        .remote_count = reshard->remote_count,
        .targets = targets,
        .target_count = count,
    };

    if (reshard->wanted->rank_count != count)
        return rf_fail(err, RF_E_UNSUPPORTED, "%" PRIu32 " ranks for %" PRIu32 " destination%s",
                       reshard->wanted->rank_count, count, count == 1 ? "" : "s");
    if (targets == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks", count);
    remote_say_verified(reshard->remotes, reshard->remote_count, &result);
    enum rf_code code = make_moves(reshard, &moves, &run.move_count, err);
    run.moves = moves;
    for (uint32_t i = 0; code == RF_OK && i < count; i++) {
        targets[i] = (struct fork_target){.dest = &dests[i]};
        code = fill_dest(&reshard->plan->ranks[i], &dests[i], err);
    }
    if (code == RF_OK)
        code = remote_run(&run, &result, err);
    if (code != RF_OK)
        return code;
    remote_describe(first, &result);
    *ret_result = result;
    return RF_OK;
}

enum rf_code remote_reshard_folder(struct remote_reshard *reshard,
                                   const struct remote_folder_options *folder,
                                   struct remote_result *ret_result, struct rf_error *err)
{
    return remote_write_folder(reshard->remotes[0], reshard, folder, ret_result, err);
}
