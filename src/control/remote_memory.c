/* Taking a model into memory: the seed's own pages, or a copy of ours. */
#include "base/cleanup.h"
#include "base/size.h"
#include "base/thread.h"
#include "control/remote_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static bool store_has_region(const struct store *store, const struct region *region)
{
    for (uint32_t i = 0; i < store->region_count; i++) {
        if (store->regions[i] == region)
            return true;
    }
    return false;
}

enum rf_code remote_add_regions(struct store *store, const struct layout *layout,
                                struct rf_error *err)
{
    const struct region *last = NULL;

    for (uint32_t i = 0; i < layout->count; i++) {
        struct region *region = layout->segments[i].region;

        if (region == last || store_has_region(store, region))
            continue;
        enum rf_code code = store_add_region(store, region, err);
        if (code != RF_OK)
            return code;
        last = region;
    }
    return RF_OK;
}

/* The session stays open: the seed knows its readers by it. */
enum rf_code remote_map_layout(struct remote *remote, uint32_t rank, struct layout *layout,
                               struct remote_result *result, struct rf_error *err)
{
    struct fork_options options;

    remote_fork_options(remote, &options);
    enum rf_code code = remote_keep_lease(remote, err);
    if (code == RF_OK)
        code = fork_map_rank(remote->manifest, rank, &remote->choice, remote->lease.token, &options,
                             layout, &remote->sessions[rank], err);
    if (code != RF_OK)
        return rf_error_wrap(err, code, "map rank %" PRIu32 " of %s", rank,
                             client_url(remote->client));
    result->mapped = true;
    result->bytes += remote->manifest->ranks[rank].stream_bytes;
    result->chunks += manifest_chunk_count(remote->manifest, rank);
    return RF_OK;
}

static enum rf_code map_rank(struct remote *remote, uint32_t rank, struct store *store,
                             struct remote_result *result, struct rf_error *err)
{
    struct store_rank *into = &store->ranks[rank];
    enum rf_code code = remote_map_layout(remote, rank, &into->layout, result, err);

    if (code == RF_OK)
        code = remote_add_regions(store, &into->layout, err);
    /* What the seed knows already need not be computed again; what it does not, is made here
     * later. */
    if (code == RF_OK)
        code = client_digests(remote->client, rank, 0, into->digests, err);
    return code;
}

enum rf_code remote_map(struct remote *remote, uint32_t rank, struct layout *ret_layout,
                        struct remote_result *ret_result, struct rf_error *err)
{
    struct remote_result result = {.bytes = 0};
    rf_autofree struct digest_table **none = NULL;

    if (rank >= remote->manifest->rank_count)
        return rf_fail(err, RF_E_MISMATCH, "rank %" PRIu32 ": %s has %" PRIu32 " of them", rank,
                       client_url(remote->client), remote->manifest->rank_count);
    if (remote->sessions[rank] != NULL)
        return rf_fail(err, RF_E_INVAL, "rank %" PRIu32 " is mapped already", rank);
    none = calloc(remote->manifest->rank_count, sizeof(struct digest_table *));
    if (none == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a fork");
    enum rf_code code = remote_map_layout(remote, rank, ret_layout, &result, err);
    if (code == RF_OK)
        code = remote_finish(remote, none, &result, err);
    if (code == RF_OK)
        *ret_result = result;
    return code;
}

enum rf_code remote_refuse_large(const struct remote *remote, uint64_t wanted, struct rf_error *err)
{
    uint64_t there = memory_available();
    char wanted_text[SIZE_TEXT_BYTES];
    char there_text[SIZE_TEXT_BYTES];

    if (wanted <= there)
        return RF_OK;
    return rf_fail(err, RF_E_NOMEM,
                   "a copy of %s needs %s of memory, %s is available here: free some, or, on the "
                   "seed's own host, share its pages (--transport map)",
                   client_url(remote->client), size_text(wanted, wanted_text),
                   size_text(there, there_text));
}

enum rf_code remote_prepare_region(void *ctx, uint64_t stream_offset, uint64_t bytes,
                                   struct rf_error *err)
{
    return region_populate(ctx, stream_offset, bytes, err);
}

/* One copied rank while it is being filled. */
struct copy_rank {
    struct region *region; /* NULL: the rank has no bytes */
    struct fork_dest dest;
};

static enum rf_code copy_begin(struct copy_rank *copy, uint64_t bytes, struct rf_error *err)
{
    if (bytes == 0)
        return RF_OK;
    enum rf_code code = region_create_memfd("rfork-weights", bytes, &copy->region, err);
    if (code != RF_OK)
        return code;
    struct fork_segment whole = {
        .bytes = bytes, .addr = region_data_writable(copy->region), .fd = -1};
    code = fork_dest_add(&copy->dest, &whole, err);
    return code == RF_OK ? fork_dest_finish(&copy->dest, bytes, err) : code;
}

/* Constants; those that are zeros are there already. */
static void copy_fill(struct copy_rank *copy, const struct reshard_rank *from)
{
    for (uint32_t i = 0; i < from->fill_count; i++) {
        const struct reshard_fill *fill = &from->fills[i];

        if (fill->constant->axis != 0)
            part_fill(fill->constant, region_data_writable(copy->region) + fill->offset,
                      fill->constant->bytes);
    }
}

static enum rf_code copy_end(struct copy_rank *copy, const struct reshard *plan,
                             struct store *store, uint32_t rank, struct rf_error *err)
{
    uint64_t bytes = store->manifest->ranks[rank].stream_bytes;
    struct layout *layout = &store->ranks[rank].layout;

    if (bytes == 0)
        return layout_finish(layout, 0, err);
    if (plan != NULL)
        copy_fill(copy, &plan->ranks[rank]);
    enum rf_code code = region_seal(copy->region, err);
    if (code == RF_OK)
        code = store_add_region(store, copy->region, err);
    if (code == RF_OK)
        code = layout_add(layout, 0, bytes, copy->region, 0, err);
    return code == RF_OK ? layout_finish(layout, bytes, err) : code;
}

enum rf_code remote_copy_ranks(const struct remote_run *run, const struct reshard *plan,
                               struct store *store, struct remote_result *result,
                               struct rf_error *err)
{
    uint32_t count = store->manifest->rank_count;
    struct remote_run filled = *run;
    rf_autofree struct copy_rank *copies = calloc((size_t)count + 1, sizeof(*copies));
    rf_autofree struct fork_target *targets = calloc((size_t)count + 1, sizeof(*targets));
    enum rf_code code = RF_OK;

    if (copies == NULL || targets == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks", count);
    for (uint32_t i = 0; code == RF_OK && i < count; i++) {
        code = copy_begin(&copies[i], store->manifest->ranks[i].stream_bytes, err);
        targets[i] = (struct fork_target){.dest = &copies[i].dest,
                                          .prepare = remote_prepare_region,
                                          .prepare_ctx = copies[i].region};
    }
    filled.targets = targets;
    filled.target_count = count;
    if (code == RF_OK)
        code = remote_run(&filled, result, err);
    for (uint32_t i = 0; code == RF_OK && i < count; i++)
        code = copy_end(&copies[i], plan, store, i, err);
    for (uint32_t i = 0; i < count; i++) {
        fork_dest_free(&copies[i].dest);
        region_unref(copies[i].region);
    }
    return code;
}

/* All ranks as they are. */
static enum rf_code copy_all(struct remote *remote, struct store *store,
                             struct digest_table *const *tables, struct remote_result *result,
                             struct rf_error *err)
{
    uint32_t count = remote->manifest->rank_count;
    rf_autofree struct fork_move *moves = calloc((size_t)count + 1, sizeof(*moves));
    struct remote_run run = {
        .remotes = &remote, .remote_count = 1, .moves = moves, .tables = tables};

    if (moves == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks", count);
    enum rf_code code = remote_refuse_large(remote, manifest_total_bytes(remote->manifest), err);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t bytes = remote->manifest->ranks[i].stream_bytes;

        if (bytes > 0)
            moves[run.move_count++] =
                (struct fork_move){.read = {.bytes = bytes, .count = 1}, .source = i, .target = i};
    }
    return code == RF_OK ? remote_copy_ranks(&run, NULL, store, result, err) : code;
}

enum rf_code remote_take_files(struct remote *remote, struct store *store, struct rf_error *err)
{
    for (uint32_t i = 0; i < remote->manifest->file_count; i++) {
        BUF_AUTO struct buf content = {.data = NULL};
        enum rf_code code = remote_fetch_file(remote, i, &content, err);

        if (code != RF_OK)
            return code;
        store->files[i].bytes = content.bytes;
        store->files[i].data = content.data;
        content = (struct buf){.data = NULL};
    }
    return RF_OK;
}

/* All digests of the seed, and every mapped byte against them. */
static enum rf_code verify_mapped_pages(struct remote *remote, struct store *store,
                                        struct rf_error *err)
{
    for (uint32_t i = 0; i < remote->manifest->rank_count; i++) {
        struct digest_table *table = store->ranks[i].digests;

        while (digest_table_known(table) < digest_table_count(table)) {
            enum rf_code code = client_digests(remote->client, i, 1000, table, err);

            if (code != RF_OK)
                return code;
            if (remote->options->cancel != NULL &&
                atomic_load_explicit(remote->options->cancel, memory_order_acquire))
                return rf_fail(err, RF_E_CANCELLED, "cancelled");
        }
    }
    return store_verify(store, thread_cpus(), err);
}

static enum rf_code map_all(struct remote *remote, struct store *store,
                            struct remote_result *result, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; code == RF_OK && i < remote->manifest->rank_count; i++)
        code = map_rank(remote, i, store, result, err);
    return code;
}

enum rf_code remote_fork_memory(struct remote *remote, enum remote_memory memory,
                                bool verify_mapped, struct store **ret_store,
                                struct remote_result *ret_result, struct rf_error *err)
{
    const struct manifest *manifest = remote->manifest;
    struct remote_result result = {
        .mapped = memory == REMOTE_SHARE && remote->choice.transport->map != NULL,
    };
    struct store *store = NULL;
    rf_autofree struct digest_table **tables =
        calloc((size_t)manifest->rank_count + 1, sizeof(struct digest_table *));
    enum rf_code code = remote_refuse_verify(&remote, 1, verify_mapped, err);

    if (code == RF_OK)
        code = tables != NULL ? store_create(remote->manifest, &store, err)
                              : rf_fail(err, RF_E_NOMEM, "no memory for digests");

    if (code != RF_OK)
        return code;
    for (uint32_t i = 0; i < manifest->rank_count; i++)
        tables[i] = store->ranks[i].digests;
    code = result.mapped ? map_all(remote, store, &result, err)
                         : copy_all(remote, store, tables, &result, err);
    if (!result.mapped)
        remote_say_verified(&remote, 1, &result);
    if (code == RF_OK && result.mapped && verify_mapped) {
        code = verify_mapped_pages(remote, store, err);
        result.verified = code == RF_OK;
    }
    if (code == RF_OK)
        code = remote_take_files(remote, store, err);
    if (code == RF_OK)
        code = remote_finish(remote, tables, &result, err);
    if (code != RF_OK) {
        store_destroy(store);
        return code;
    }
    *ret_store = store;
    *ret_result = result;
    return RF_OK;
}
