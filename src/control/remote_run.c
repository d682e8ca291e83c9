/* Moving bytes: the ranks of seeds as the sources of one fork. */
#include "base/cleanup.h"
#include "control/remote_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct running {
    const struct remote_run *run;
    struct fork_peer *peers;     /* [peer_count] runs of ranks that one connection reaches */
    struct remote **owners;      /* [peer_count] */
    struct fork_source *sources; /* [source_count] */
    bool *used;                  /* [source_count] by a move */
    uint32_t source_count;
    uint32_t peer_count;
};

static enum rf_code fetch_digests(void *ctx, uint32_t source, struct digest_table *table,
                                  uint64_t deadline_ns, struct rf_error *err)
{
    const struct running *running = ctx;
    const struct fork_source *of = &running->sources[source];
    struct remote *remote = running->owners[of->peer];

    return client_digests(remote->client, of->rank, (uint64_t)clock_left_ms(deadline_ns), table,
                          err);
}

static void running_free(struct running *running)
{
    for (uint32_t i = 0; running->sources != NULL && i < running->source_count; i++) {
        bool lent = running->run->tables != NULL && running->run->tables[i] != NULL;

        if (!lent)
            digest_table_destroy(running->sources[i].table);
    }
    free(running->peers);
    free(running->owners);
    free(running->sources);
    free(running->used);
}

/* The tables of sources that are read; without verification none are needed. */
static enum rf_code make_tables(struct running *running, struct rf_error *err)
{
    for (uint32_t i = 0; i < running->source_count; i++) {
        struct fork_source *source = &running->sources[i];
        uint64_t chunks = manifest_chunk_count(source->manifest, source->rank);

        if (running->run->tables != NULL)
            source->table = running->run->tables[i];
        if (source->table != NULL || !running->used[i])
            continue;
        source->table = digest_table_create(source->manifest->algorithm, chunks);
        if (source->table == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " digests", chunks);
    }
    return RF_OK;
}

/* The ranks of a remote, and the peers that have them: one for all ranks of a seed of ours. */
static void add_sources(struct running *running, struct remote *remote)
{
    for (uint32_t rank = 0; rank < remote->manifest->rank_count; rank++) {
        struct fork_peer *last = &running->peers[running->peer_count];
        struct remote_peer peer;

        remote_peer(remote, rank, &peer);
        if (rank == 0 || last[-1].choice != peer.choice) {
            *last = (struct fork_peer){.choice = peer.choice,
                                       .token = peer.token,
                                       .name = peer.name,
                                       .directory = peer.directory};
            running->owners[running->peer_count++] = remote;
        }
        running->sources[running->source_count++] = (struct fork_source){
            .manifest = remote->manifest, .peer = running->peer_count - 1, .rank = rank};
    }
}

static enum rf_code running_init(struct running *running, struct rf_error *err)
{
    const struct remote_run *run = running->run;
    size_t count = 1;

    for (uint32_t i = 0; i < run->remote_count; i++)
        count += run->remotes[i]->manifest->rank_count;
    running->peers = calloc(count, sizeof(*running->peers));
    running->owners = calloc(count, sizeof(struct remote *));
    running->sources = calloc(count, sizeof(*running->sources));
    running->used = calloc(count, sizeof(*running->used));
    if (running->peers == NULL || running->owners == NULL || running->sources == NULL ||
        running->used == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a fork from %zu ranks", count - 1);
    for (uint32_t i = 0; i < run->remote_count; i++)
        add_sources(running, run->remotes[i]);
    for (uint64_t i = 0; i < run->move_count; i++)
        running->used[run->moves[i].source] = true;
    return make_tables(running, err);
}

/* When a seed went away, its own last word (if it still has one) says more than a reset
 * connection. */
static enum rf_code ask_why(const struct remote_run *run, enum rf_code code, struct rf_error *err)
{
    struct rf_error last;

    if (code != RF_E_UNREACHABLE && code != RF_E_PROTO)
        return code;
    for (uint32_t i = 0; i < run->remote_count; i++) {
        if (remote_look(run->remotes[i], &last) == RF_E_CHANGED)
            return rf_fail(err, RF_E_CHANGED, "%s", last.text);
    }
    return code;
}

enum rf_code remote_run(const struct remote_run *run, struct remote_result *result,
                        struct rf_error *err)
{
    struct remote *first = run->remotes[0];
    struct running running = {.run = run};
    struct fork_options options;
    struct fork_stats stats = {.bytes = 0};
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; code == RF_OK && i < run->remote_count; i++)
        code = remote_keep_lease(run->remotes[i], err);
    if (code == RF_OK)
        code = running_init(&running, err);
    if (code == RF_OK) {
        const struct fork_plan plan = {
            .peers = running.peers,
            .sources = running.sources,
            .targets = run->targets,
            .moves = run->moves,
            .move_count = run->move_count,
            .peer_count = running.peer_count,
            .source_count = running.source_count,
            .target_count = run->target_count,
        };

        remote_fork_options(first, &options);
        options.verify = remote_verifies(run->remotes, run->remote_count);
        options.digests = fetch_digests;
        options.digests_ctx = &running;
        code = fork_run(&plan, &options, &stats, err);
        if (code != RF_OK && run->remote_count > 1) /* which of them, the error says */
            code = rf_error_wrap(err, ask_why(run, code, err), "fork from %" PRIu32 " seeds by %s",
                                 run->remote_count, first->choice.endpoint.transport);
        else if (code != RF_OK)
            code = rf_error_wrap(err, ask_why(run, code, err), "fork from %s by %s",
                                 client_url(first->client), first->choice.endpoint.transport);
    }
    running_free(&running);
    if (code != RF_OK)
        return code;
    result->bytes += stats.bytes;
    result->wire_bytes += stats.wire_bytes;
    result->chunks += stats.chunks;
    result->chunks_retried += stats.chunks_retried;
    if (stats.connections > result->connections)
        result->connections = stats.connections;
    return RF_OK;
}

static void tables_free(struct digest_table **tables, uint32_t count)
{
    for (uint32_t i = 0; tables != NULL && i < count; i++)
        digest_table_destroy(tables[i]);
    free(tables);
}

enum rf_code remote_fork_dests(struct remote *remote, const struct fork_dest *dests,
                               struct remote_result *ret_result, struct rf_error *err)
{
    const struct manifest *manifest = remote->manifest;
    uint32_t count = manifest->rank_count;
    struct remote_result result = {.bytes = 0};
    struct digest_table **tables = calloc(count + (size_t)1, sizeof(struct digest_table *));
    rf_autofree struct fork_target *targets = calloc(count + (size_t)1, sizeof(*targets));
    rf_autofree struct fork_move *moves = calloc(count + (size_t)1, sizeof(*moves));
    bool ok = tables != NULL && targets != NULL && moves != NULL;
    struct remote_run run = {.remotes = &remote,
                             .remote_count = 1,
                             .targets = targets,
                             .target_count = count,
                             .moves = moves,
                             .tables = tables};

    remote_say_verified(&remote, 1, &result);
    for (uint32_t i = 0; i < count && ok; i++) {
        targets[i].dest = &dests[i];
        tables[i] = digest_table_create(manifest->algorithm, manifest_chunk_count(manifest, i));
        ok = tables[i] != NULL;
        if (manifest->ranks[i].stream_bytes > 0)
            moves[run.move_count++] =
                (struct fork_move){.read = {.bytes = manifest->ranks[i].stream_bytes, .count = 1},
                                   .source = i,
                                   .target = i};
    }
    enum rf_code code = ok ? remote_run(&run, &result, err)
                           : rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks", count);
    if (code == RF_OK)
        code = remote_finish(remote, tables, &result, err);
    tables_free(tables, count);
    if (code == RF_OK)
        *ret_result = result;
    return code;
}

enum rf_code remote_fork_dest(struct remote *remote, uint32_t rank, const struct fork_dest *dest,
                              struct remote_result *ret_result, struct rf_error *err)
{
    const struct manifest *manifest = remote->manifest;
    struct remote_result result = {.bytes = 0};

    remote_say_verified(&remote, 1, &result);
    if (rank >= manifest->rank_count)
        return rf_fail(err, RF_E_MISMATCH, "rank %" PRIu32 ": %s has %" PRIu32 " of them", rank,
                       client_url(remote->client), manifest->rank_count);
    struct digest_table **tables = calloc(manifest->rank_count, sizeof(struct digest_table *));
    if (tables != NULL)
        tables[rank] =
            digest_table_create(manifest->algorithm, manifest_chunk_count(manifest, rank));
    if (tables == NULL || tables[rank] == NULL) {
        free(tables);
        return rf_fail(err, RF_E_NOMEM, "no memory for digests");
    }
    const struct fork_target target = {.dest = dest};
    struct fork_move whole = {.read = {.bytes = manifest->ranks[rank].stream_bytes, .count = 1},
                              .source = rank};
    const struct remote_run run = {
        .remotes = &remote,
        .remote_count = 1,
        .targets = &target,
        .target_count = 1,
        .moves = &whole,
        .move_count = whole.read.bytes > 0 ? 1 : 0,
        .tables = tables,
    };
    enum rf_code code = remote_run(&run, &result, err);
    if (code == RF_OK)
        code = remote_finish(remote, tables, &result, err);
    digest_table_destroy(tables[rank]);
    free(tables);
    if (code == RF_OK)
        *ret_result = result;
    return code;
}
