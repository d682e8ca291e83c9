/* Forks into another tensor-parallel size: over tcp against a fork that cuts nothing, and on the
 * same host against memcpy. */
#include "base/clock.h"
#include "base/size.h"
#include "base/thread.h"
#include "cli/bench/bench.h"
#include "cli/signals.h"
#include "control/remote_reshard.h"
#include "memory/region.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { RESHARD_MAX_RANKS = 4, RESHARD_DIGEST_WAIT_MS = 1000 };

#define RESHARD_MAX_BYTES  (UINT64_C(2) << 30)
#define RESHARD_DIGESTS_MS 300000

static const char *const layouts[] = {"checkpoint", "sglang"};
enum { LAYOUT_COUNT = sizeof(layouts) / sizeof(layouts[0]) };

/* ---- seeds ---- */

struct seed_program {
    struct program program;
    bool running;
    char url[BENCH_TEXT_BYTES];
};

/* Digests are made in the background, which must be over before anything is timed. */
static enum rf_code wait_digests(const char *url, struct rf_error *err)
{
    const struct remote_options options = {.transport = "tcp", .cancel_fd = -1};
    struct remote *remote = NULL;
    uint64_t deadline_ns = clock_deadline_ns(RESHARD_DIGESTS_MS);
    enum rf_code code = remote_open(url, &options, 0, &remote, err);

    for (uint32_t i = 0; code == RF_OK && i < remote_manifest(remote)->rank_count; i++) {
        const struct manifest *manifest = remote_manifest(remote);
        struct digest_table *table =
            digest_table_create(manifest->algorithm, manifest_chunk_count(manifest, i));

        if (table == NULL)
            code = rf_fail(err, RF_E_NOMEM, "no memory for digests");
        while (code == RF_OK && digest_table_known(table) < digest_table_count(table)) {
            code = client_digests(remote_client(remote), i, RESHARD_DIGEST_WAIT_MS, table, err);
            if (code == RF_OK && clock_left_ms(deadline_ns) == 0)
                code = rf_fail(err, RF_E_TIMEOUT, "%s: no digests within %d s", url,
                               RESHARD_DIGESTS_MS / 1000);
        }
        digest_table_destroy(table);
    }
    remote_close(remote);
    return code;
}

/* tp 0: the checkpoint as it is. */
static enum rf_code seed_start(const struct qwen *qwen, unsigned tp, const char *layout,
                               struct seed_program *seed, struct rf_error *err)
{
    char folder[256];
    char tp_word[] = "--tp";
    char tp_text[16];
    char layout_text[32];
    char *words[] = {(char[]){"rfork"},
                     (char[]){"serve"},
                     (char[]){"--port"},
                     (char[]){"0"},
                     (char[]){"--model-path"},
                     folder,
                     tp > 0 ? tp_word : NULL,
                     tp_text,
                     (char[]){"--layout"},
                     layout_text,
                     NULL};

    snprintf(folder, sizeof(folder), "%s", qwen->folder);
    snprintf(tp_text, sizeof(tp_text), "%u", tp);
    snprintf(layout_text, sizeof(layout_text), "%s", layout);
    enum rf_code code = program_start(words, &seed->program, err);
    if (code != RF_OK)
        return code;
    seed->running = true;
    code = program_ready(&seed->program, seed->url, err);
    return code == RF_OK ? wait_digests(seed->url, err) : code;
}

static void seed_end(struct seed_program *seed)
{
    if (seed->running)
        program_end(&seed->program, SIGTERM);
}

uint64_t bench_reshard_bytes(const struct bench *bench)
{
    return bench->size_bytes < RESHARD_MAX_BYTES ? bench->size_bytes : RESHARD_MAX_BYTES;
}

/* ---- over tcp ---- */

struct over_tcp {
    const char *layout;
    const char *url;   /* of the seed of four ranks */
    const char *plain; /* of the one that is not cut */
    uint8_t *memory;
    uint64_t memory_bytes;
    unsigned connections;
    uint64_t bytes; /* of all new ranks */
    struct samples resharded;
    struct samples unsharded;
};

/* Ranks one after the other in memory that is there. */
static enum rf_code place_ranks(const struct over_tcp *run, const struct manifest *manifest,
                                struct fork_dest dests[RESHARD_MAX_RANKS], struct rf_error *err)
{
    enum rf_code code = RF_OK;
    uint64_t at = 0;

    if (manifest->rank_count > RESHARD_MAX_RANKS ||
        manifest_total_bytes(manifest) > run->memory_bytes)
        return rf_fail(err, RF_E_FAILED, "%" PRIu32 " ranks of %" PRIu64 " bytes have no room",
                       manifest->rank_count, manifest_total_bytes(manifest));
    for (uint32_t i = 0; code == RF_OK && i < manifest->rank_count; i++) {
        const struct fork_segment whole = {
            .bytes = manifest->ranks[i].stream_bytes, .addr = run->memory + at, .fd = -1};

        code = fork_dest_add(&dests[i], &whole, err);
        if (code == RF_OK)
            code = fork_dest_finish(&dests[i], whole.bytes, err);
        at += whole.bytes;
    }
    return code;
}

static enum rf_code take_resharded(const struct over_tcp *run, struct remote *remote,
                                   struct fork_dest dests[RESHARD_MAX_RANKS],
                                   struct remote_result *ret_result, struct rf_error *err)
{
    const struct remote_shape shape = {.tp_size = 2, .layout = run->layout};
    struct remote_reshard *reshard = NULL;
    enum rf_code code = remote_reshard_plan(&remote, 1, &shape, &reshard, err);

    if (code != RF_OK)
        return code;
    const struct manifest *wanted = remote_reshard_manifest(reshard);
    code = place_ranks(run, wanted, dests, err);
    if (code == RF_OK)
        code = remote_reshard_dests(reshard, dests, wanted->rank_count, ret_result, err);
    remote_reshard_destroy(reshard);
    return code;
}

static enum rf_code take_unsharded(const struct over_tcp *run, struct remote *remote,
                                   struct fork_dest dests[RESHARD_MAX_RANKS],
                                   struct remote_result *ret_result, struct rf_error *err)
{
    enum rf_code code = place_ranks(run, remote_manifest(remote), dests, err);

    return code == RF_OK ? remote_fork_dest(remote, 0, &dests[0], ret_result, err) : code;
}

/* From the first request to the last verified byte; manifest, lease and plan included. */
static enum rf_code take(struct over_tcp *run, bool reshards, double *ret_rate,
                         struct rf_error *err)
{
    const struct remote_options options = {.transport = "tcp",
                                           .connections = run->connections,
                                           .verify = true,
                                           .cancel = signals_flag(),
                                           .cancel_fd = signals_fd()};
    struct fork_dest dests[RESHARD_MAX_RANKS] = {{.count = 0}};
    struct remote_result result = {.bytes = 0};
    struct remote *remote = NULL;
    uint64_t start_ns = clock_now_ns();
    enum rf_code code = remote_open(reshards ? run->url : run->plain, &options, 0, &remote, err);

    if (code == RF_OK)
        code = reshards ? take_resharded(run, remote, dests, &result, err)
                        : take_unsharded(run, remote, dests, &result, err);
    *ret_rate = (double)result.bytes / clock_seconds(start_ns, clock_now_ns());
    remote_close(remote);
    for (unsigned i = 0; i < RESHARD_MAX_RANKS; i++)
        fork_dest_free(&dests[i]);
    if (code == RF_OK && !result.verified)
        code = rf_fail(err, RF_E_FAILED, "the fork was not verified");
    if (code == RF_OK && reshards)
        run->bytes = result.bytes;
    return code;
}

static enum rf_code tcp_rounds(struct bench *bench, struct over_tcp *run, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (unsigned i = 0; code == RF_OK && i < bench->rounds; i++) {
        double unsharded = 0;
        double resharded = 0;

        code = take(run, false, &unsharded, err);
        if (code == RF_OK)
            code = take(run, true, &resharded, err);
        samples_add(&run->unsharded, unsharded);
        samples_add(&run->resharded, resharded);
    }
    return code;
}

static void report_tcp(struct bench *bench, const struct over_tcp *run)
{
    char name[BENCH_TEXT_BYTES];
    char text[SIZE_TEXT_BYTES];

    snprintf(name, sizeof(name), "reshard 4 to 2 over tcp, layout %s", run->layout);
    struct bench_result *result = bench_result(bench, name);
    result->samples = run->resharded;
    result->ceiling_samples = run->unsharded;
    bench_judge_rate(result, 0.85);
    snprintf(result->note, sizeof(result->note),
             "%s, verified; ceiling: the same model, not cut, from another seed",
             size_text(run->bytes, text));
}

static enum rf_code tcp_layout(struct bench *bench, const struct qwen *qwen, struct over_tcp *run,
                               struct rf_error *err)
{
    struct seed_program sharded = {.running = false};
    enum rf_code code = seed_start(qwen, 4, run->layout, &sharded, err);

    run->url = sharded.url;
    if (code == RF_OK)
        code = tcp_rounds(bench, run, err);
    seed_end(&sharded);
    run->url = NULL;
    if (code == RF_OK)
        report_tcp(bench, run);
    return code;
}

enum rf_code bench_reshard_tcp(struct bench *bench, struct rf_error *err)
{
    struct seed_program plain = {.running = false};
    struct qwen qwen = {.bytes = 0};
    uint8_t *memory = NULL;
    enum rf_code code = qwen_create(bench->folder, bench_reshard_bytes(bench), &qwen, err);
    uint64_t memory_bytes = qwen.bytes + qwen.bytes / 16; /* both ranks have the norms */

    if (code == RF_OK)
        code = bench_touched(memory_bytes, &memory, err);
    if (code == RF_OK)
        code = seed_start(&qwen, 0, "checkpoint", &plain, err);
    for (unsigned i = 0; code == RF_OK && i < LAYOUT_COUNT; i++) {
        struct over_tcp run = {.layout = layouts[i],
                               .plain = plain.url,
                               .memory = memory,
                               .memory_bytes = memory_bytes,
                               .connections = bench->connections};

        code = tcp_layout(bench, &qwen, &run, err);
    }
    seed_end(&plain);
    if (memory != NULL)
        munmap(memory, bench_touched_bytes(memory_bytes));
    qwen_remove(&qwen);
    return code;
}

/* ---- on one host ---- */

struct mapped {
    const char *layout;
    const char *url;
    uint64_t bytes;
    uint64_t copied;
    struct samples ours;   /* of the copied bytes */
    struct samples memcpy; /* of as many, into memory that was got for them */
    struct samples bare;   /* of as many, into memory that was there */
};

static enum rf_code map_once(struct mapped *run, double *ret_seconds, struct rf_error *err)
{
    const struct remote_options options = {.transport = "map", .cancel_fd = -1};
    const struct remote_shape shape = {.tp_size = 4, .layout = run->layout};
    struct remote_reshard *reshard = NULL;
    struct remote *remote = NULL;
    struct store *store = NULL;
    struct remote_result result;
    uint64_t start_ns = clock_now_ns();
    enum rf_code code = remote_open(run->url, &options, 0, &remote, err);

    if (code == RF_OK)
        code = remote_reshard_plan(&remote, 1, &shape, &reshard, err);
    if (code == RF_OK)
        code = remote_reshard_memory(reshard, REMOTE_SHARE, false, &store, &result, err);
    *ret_seconds = clock_seconds(start_ns, clock_now_ns());
    if (code == RF_OK && !result.mapped)
        code = rf_fail(err, RF_E_FAILED, "the fork was not mapped");
    if (code == RF_OK) {
        run->bytes = result.bytes;
        run->copied = result.copied_bytes;
    }
    store_destroy(store);
    remote_reshard_destroy(reshard);
    remote_close(remote);
    return code;
}

struct populate {
    struct region *region;
    const uint8_t *from;
};

enum { POPULATE_BYTES = 8 << 20 };

static enum rf_code populate_piece(void *ctx, uint64_t item, struct rf_error *err)
{
    const struct populate *populate = ctx;
    uint64_t at = item * POPULATE_BYTES;
    uint64_t left = region_bytes(populate->region) - at;
    uint64_t bytes = left < POPULATE_BYTES ? left : POPULATE_BYTES;
    enum rf_code code = region_populate(populate->region, at, bytes, err);

    if (code == RF_OK)
        memcpy(region_data_writable(populate->region) + at, populate->from + at, bytes);
    return code;
}

/* memcpy into shared memory that is taken from the system for it, as a fork's must be. */
static enum rf_code copy_fresh(const uint8_t *from, uint64_t bytes, double *ret_seconds,
                               struct rf_error *err)
{
    struct populate populate = {.from = from};
    uint64_t start_ns = clock_now_ns();
    enum rf_code code = region_create_memfd("rfork-bench", bytes, &populate.region, err);

    if (code == RF_OK)
        code = thread_parallel(thread_cpus(), (bytes + POPULATE_BYTES - 1) / POPULATE_BYTES,
                               populate_piece, &populate, err);
    *ret_seconds = clock_seconds(start_ns, clock_now_ns());
    region_unref(populate.region);
    return code;
}

/* All in memory that was touched just before and given back: on a virtual machine it would be its
 * host that is timed otherwise. */
static enum rf_code map_round(struct mapped *run, struct rf_error *err)
{
    uint8_t *memory = NULL;
    double ours = 0;
    double fresh = 0;
    enum rf_code code = bench_touched(2 * run->copied, &memory, err);

    if (code != RF_OK)
        return code;
    uint64_t start_ns = clock_now_ns();
    memory_copy(memory + run->copied, memory, run->copied, 0);
    double bare = clock_seconds(start_ns, clock_now_ns());
    munmap(memory + bench_touched_bytes(run->copied),
           bench_touched_bytes(2 * run->copied) - bench_touched_bytes(run->copied));
    code = copy_fresh(memory, run->copied, &fresh, err);
    munmap(memory, bench_touched_bytes(run->copied));
    if (code == RF_OK)
        code = map_once(run, &ours, err);
    samples_add(&run->ours, (double)run->copied / ours);
    samples_add(&run->memcpy, (double)run->copied / fresh);
    samples_add(&run->bare, (double)run->copied / bare);
    return code;
}

static void report_map(struct bench *bench, const struct mapped *run)
{
    char name[BENCH_TEXT_BYTES];
    char text[SIZE_TEXT_BYTES];
    char copied[SIZE_TEXT_BYTES];
    char bare[SIZE_TEXT_BYTES];

    snprintf(name, sizeof(name), "reshard 2 to 4 on one host, layout %s", run->layout);
    struct bench_result *result = bench_result(bench, name);
    result->samples = run->ours;
    result->ceiling_samples = run->memcpy;
    bench_judge_rate(result, 0.8);
    snprintf(result->note, sizeof(result->note),
             "%s of %s cannot be mapped; ceiling: memcpy of them into new memory (%s into old)",
             size_text(run->copied, copied), size_text(run->bytes, text),
             size_rate_text(samples_median(&run->bare), bare));
}

static enum rf_code map_layout(struct bench *bench, const struct qwen *qwen, const char *layout,
                               struct rf_error *err)
{
    struct mapped run = {.layout = layout};
    struct seed_program seed = {.running = false};
    double ignored;
    enum rf_code code = seed_start(qwen, 2, layout, &seed, err);

    run.url = seed.url;
    if (code == RF_OK)
        code = map_once(&run, &ignored, err);
    if (code == RF_OK && run.copied == 0)
        code = rf_fail(err, RF_E_FAILED, "all of it was mapped");
    for (unsigned i = 0; code == RF_OK && i < bench->rounds; i++) {
        code = map_round(&run, err);
        if (code == RF_OK && signals_came())
            code = rf_fail(err, RF_E_CANCELLED, "interrupted");
    }
    if (code == RF_OK)
        report_map(bench, &run);
    seed_end(&seed);
    return code;
}

enum rf_code bench_reshard_map(struct bench *bench, struct rf_error *err)
{
    struct qwen qwen = {.bytes = 0};
    enum rf_code code = qwen_create(bench->folder, bench_reshard_bytes(bench), &qwen, err);

    for (unsigned i = 0; code == RF_OK && i < LAYOUT_COUNT; i++)
        code = map_layout(bench, &qwen, layouts[i], err);
    qwen_remove(&qwen);
    return code;
}
