/* tcp against raw sockets: loopback, two namespaces, a shaped link; and what each costs the
 * seed's CPU. */
#include "base/clock.h"
#include "base/size.h"
#include "base/thread.h"
#include "cli/bench/bench.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "control/remote.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    RAW_VARIANTS = 4, /* 1, 2, 4, 8 connections */
    SHAPED_MTU = 9000,
};

#define SHAPED_BYTES_PER_S UINT64_C(500000000)

static enum rf_code touch_piece(void *ctx, uint64_t item, struct rf_error *err)
{
    (void)err;
    memset((uint8_t *)ctx + item * (16 << 20), 1, 16 << 20);
    return RF_OK;
}

uint64_t bench_touched_bytes(uint64_t bytes)
{
    return (bytes + (16 << 20) - 1) / (16 << 20) * (16 << 20);
}

enum rf_code bench_touched(uint64_t bytes, uint8_t **ret_at, struct rf_error *err)
{
    uint64_t whole = bench_touched_bytes(bytes);
    void *at = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at == MAP_FAILED)
        return rf_fail_sys(err, "mmap %" PRIu64 " bytes", bytes);
    (void)madvise(at, whole, MADV_HUGEPAGE);
    enum rf_code code = thread_parallel(thread_cpus(), whole / (16 << 20), touch_piece, at, err);
    if (code != RF_OK) {
        munmap(at, whole);
        return code;
    }
    *ret_at = at;
    return RF_OK;
}

enum rf_code bench_dest(struct bench *bench, uint8_t **ret_dest, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    if (bench->dest == NULL)
        code = bench_touched(bench->size_bytes, &bench->dest, err);
    if (code == RF_OK)
        *ret_dest = bench->dest;
    return code;
}

/* One way of going over the network, and where both kinds of sender wait there. */
struct path {
    const char *name;
    struct holder *holder;
    const char *host;
    const char *name_space; /* of the seed; "-": ours */
    uint64_t bytes;
    char url[BENCH_TEXT_BYTES];
    uint16_t raw_port;
};

struct tcp_samples {
    struct samples raw[RAW_VARIANTS];
    struct samples raw_cpu[RAW_VARIANTS]; /* seconds per GiB */
    struct samples ours;
    struct samples ours_cpu;
    unsigned connections;
};

static enum rf_code path_open(struct path *path, struct rf_error *err)
{
    char answer[BENCH_TEXT_BYTES];
    enum rf_code code = holder_ask(path->holder, answer, err, "raw %" PRIu64 " %s %s", path->bytes,
                                   path->host, path->name_space);

    if (code != RF_OK)
        return code;
    path->raw_port = (uint16_t)strtoul(answer, NULL, 10);
    return holder_ask(path->holder, path->url, err, "publish %" PRIu64 " %s %s", path->bytes,
                      path->host, path->name_space);
}

static enum rf_code path_close(struct path *path, struct rf_error *err)
{
    char answer[BENCH_TEXT_BYTES];

    return holder_ask(path->holder, answer, err, "stop");
}

/* From the first request to the last verified byte, lease and manifest included. */
static enum rf_code take_ours(const struct path *path, const char *transport, unsigned connections,
                              bool verify, uint8_t *dst, struct remote_result *ret_result,
                              double *ret_seconds, struct rf_error *err)
{
    const struct remote_options options = {.transport = transport,
                                           .connections = connections,
                                           .verify = verify,
                                           .cancel = signals_flag(),
                                           .cancel_fd = signals_fd()};
    struct fork_dest dest = {.count = 0};
    const struct fork_segment whole = {.bytes = path->bytes, .addr = dst, .fd = -1};
    struct remote *remote = NULL;
    uint64_t start_ns = clock_now_ns();
    enum rf_code code = fork_dest_add(&dest, &whole, err);

    if (code == RF_OK)
        code = fork_dest_finish(&dest, path->bytes, err);
    if (code == RF_OK)
        code = remote_open(path->url, &options, 0, &remote, err);
    if (code == RF_OK)
        code = remote_fork_dest(remote, 0, &dest, ret_result, err);
    if (code == RF_OK)
        *ret_seconds = clock_seconds(start_ns, clock_now_ns());
    remote_close(remote);
    fork_dest_free(&dest);
    return code;
}

static double per_gib(double seconds, uint64_t bytes)
{
    return seconds / ((double)bytes / (double)(1 << 30));
}

static enum rf_code raw_round(const struct path *path, uint8_t *dst, struct tcp_samples *samples,
                              struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (unsigned i = 0; code == RF_OK && i < RAW_VARIANTS; i++) {
        double before = 0;
        double after = 0;
        double seconds = 0;

        code = holder_cpu(path->holder, &before, err);
        if (code == RF_OK)
            code = raw_take(path->host, path->raw_port, dst, path->bytes, 1U << i, &seconds, err);
        if (code == RF_OK)
            code = holder_cpu(path->holder, &after, err);
        if (code != RF_OK)
            break;
        samples_add(&samples->raw[i], (double)path->bytes / seconds);
        samples_add(&samples->raw_cpu[i], per_gib(after - before, path->bytes));
    }
    return code;
}

static enum rf_code ours_round(const struct path *path, unsigned connections, uint8_t *dst,
                               struct tcp_samples *samples, struct rf_error *err)
{
    struct remote_result result = {.bytes = 0};
    double before = 0;
    double after = 0;
    double seconds = 0;
    enum rf_code code = holder_cpu(path->holder, &before, err);

    if (code == RF_OK)
        code = take_ours(path, "tcp", connections, true, dst, &result, &seconds, err);
    if (code == RF_OK)
        code = holder_cpu(path->holder, &after, err);
    if (code != RF_OK)
        return code;
    if (!result.verified || result.bytes != path->bytes)
        return rf_fail(err, RF_E_FAILED, "the fork was not verified, or not complete");
    samples_add(&samples->ours, (double)path->bytes / seconds);
    samples_add(&samples->ours_cpu, per_gib(after - before, path->bytes));
    samples->connections = result.connections;
    return RF_OK;
}

static enum rf_code tcp_rounds(struct bench *bench, const struct path *path, unsigned rounds,
                               struct tcp_samples *samples, struct rf_error *err)
{
    uint8_t *dst = NULL;
    enum rf_code code = bench_dest(bench, &dst, err);

    for (unsigned i = 0; code == RF_OK && i < rounds; i++) {
        code = raw_round(path, dst, samples, err);
        if (code == RF_OK)
            code = ours_round(path, bench->connections, dst, samples, err);
        if (code == RF_OK && signals_came())
            code = rf_fail(err, RF_E_CANCELLED, "interrupted");
    }
    return code;
}

static unsigned best_raw(const struct tcp_samples *samples)
{
    unsigned best = 0;

    for (unsigned i = 1; i < RAW_VARIANTS; i++) {
        if (samples_median(&samples->raw[i]) > samples_median(&samples->raw[best]))
            best = i;
    }
    return best;
}

static struct bench_result *report_rate(struct bench *bench, const struct path *path,
                                        const struct tcp_samples *samples)
{
    unsigned best = best_raw(samples);
    struct bench_result *result = bench_result(bench, path->name);
    char text[SIZE_TEXT_BYTES];

    result->samples = samples->ours;
    result->ceiling_samples = samples->raw[best];
    bench_judge_rate(result, 0.9);
    snprintf(result->note, sizeof(result->note),
             "%s, verified, %u connections; raw: best of 1, 2, 4, 8 is %u",
             size_text(path->bytes, text), samples->connections, 1U << best);
    return result;
}

static void report_cpu(struct bench *bench, const struct path *path,
                       const struct tcp_samples *samples)
{
    char name[BENCH_TEXT_BYTES];

    snprintf(name, sizeof(name), "%.100s: seed CPU per GiB", path->name);
    struct bench_result *result = bench_result(bench, name);
    result->samples = samples->ours_cpu;
    result->ceiling_samples = samples->raw_cpu[best_raw(samples)];
    result->unit = "s/GiB";
    result->value = samples_median(&samples->ours_cpu);
    result->ceiling = samples_median(&result->ceiling_samples);
    result->judged = result->ceiling > 0 ? result->value / result->ceiling : 0;
    result->target = 1.1;
    result->at_most = true;
    snprintf(result->value_text, sizeof(result->value_text), "%.3f s", result->value);
    snprintf(result->ceiling_text, sizeof(result->ceiling_text), "%.3f s", result->ceiling);
    snprintf(result->note, sizeof(result->note),
             "user and system time of the seed's process; ratio to the raw sender's");
}

static enum rf_code run_path(struct bench *bench, struct path *path, struct tcp_samples *samples,
                             unsigned rounds, struct rf_error *err)
{
    enum rf_code code = bench_holder(bench, &path->holder, err);

    if (code == RF_OK)
        code = path_open(path, err);
    if (code != RF_OK)
        return code;
    code = tcp_rounds(bench, path, rounds, samples, err);
    struct rf_error ignored;
    enum rf_code closed = path_close(path, code == RF_OK ? err : &ignored);
    return code != RF_OK ? code : closed;
}

enum rf_code bench_tcp_loopback(struct bench *bench, struct rf_error *err)
{
    struct path path = {.name = "tcp, loopback",
                        .host = "127.0.0.1",
                        .name_space = "-",
                        .bytes = bench->size_bytes};
    struct tcp_samples samples = {.connections = 0};
    enum rf_code code = run_path(bench, &path, &samples, bench->rounds, err);

    if (code == RF_OK) {
        report_rate(bench, &path, &samples);
        report_cpu(bench, &path, &samples);
    }
    return code;
}

/* Runs a path whose seed is in the other namespace; the calling thread is in the reader's
 * meanwhile. */
static enum rf_code run_across(struct bench *bench, uint64_t rate, unsigned mtu, struct path *path,
                               struct tcp_samples *samples, unsigned rounds, struct rf_error *err)
{
    struct netpair *pair = NULL;
    enum rf_code code = netpair_create(rate, mtu, &pair, err);

    if (code != RF_OK)
        return code;
    path->host = netpair_seed_address(pair);
    path->name_space = netpair_seed_namespace(pair);
    /* The holder must be there already: it would be born into the reader's namespace otherwise. */
    code = bench_holder(bench, &path->holder, err);
    if (code == RF_OK)
        code = netpair_enter(pair, err);
    if (code == RF_OK)
        code = run_path(bench, path, samples, rounds, err);
    netpair_leave(pair);
    netpair_destroy(pair);
    return code;
}

enum rf_code bench_tcp_namespaces(struct bench *bench, struct rf_error *err)
{
    struct path path = {.name = "tcp, two namespaces (veth)", .bytes = bench->size_bytes};
    struct tcp_samples samples = {.connections = 0};
    struct rf_error error;
    enum rf_code code = run_across(bench, 0, 1500, &path, &samples, bench->rounds, &error);

    if (code == RF_E_UNSUPPORTED) {
        bench_skip(bench, path.name, error.text);
        return RF_OK;
    }
    if (code != RF_OK)
        return rf_fail(err, code, "%s", error.text);
    report_rate(bench, &path, &samples);
    report_cpu(bench, &path, &samples);
    return RF_OK;
}

enum rf_code bench_tcp_shaped(struct bench *bench, struct rf_error *err)
{
    struct path path = {.name = "tcp, link shaped to 500 MB/s", .bytes = bench->size_bytes};
    struct tcp_samples samples = {.connections = 0};
    struct rf_error error;
    enum rf_code code;

    /* A few seconds each way are enough here: the link does not swing. */
    if (path.bytes > (UINT64_C(2) << 30))
        path.bytes = UINT64_C(2) << 30;
    code = run_across(bench, SHAPED_BYTES_PER_S, SHAPED_MTU, &path, &samples,
                      bench->rounds < 3 ? bench->rounds : 3, &error);
    if (code == RF_E_UNSUPPORTED) {
        bench_skip(bench, path.name, error.text);
        return RF_OK;
    }
    if (code != RF_OK)
        return rf_fail(err, code, "%s", error.text);
    struct bench_result *result = report_rate(bench, &path, &samples);
    double raw = result->ceiling;
    char raw_text[SIZE_TEXT_BYTES];
    result->ceiling = (double)SHAPED_BYTES_PER_S;
    result->judged = result->value / result->ceiling;
    result->target = 0.97;
    snprintf(result->ceiling_text, sizeof(result->ceiling_text), "500 MB/s");
    snprintf(result->note, sizeof(result->note),
             "of the link's own rate, headers included (MTU %d); best raw %s", SHAPED_MTU,
             size_rate_text(raw, raw_text));
    return RF_OK;
}

/* ---- the same host, copying out of the seed's pages ---- */

static enum rf_code copy_ceiling(const struct path *path, unsigned threads, uint8_t *dst,
                                 struct samples *samples, unsigned rounds, struct rf_error *err)
{
    const struct remote_options options = {.transport = "map", .cancel_fd = -1};
    struct remote *remote = NULL;
    struct layout layout = {.count = 0};
    struct remote_result result;
    enum rf_code code = remote_open(path->url, &options, 0, &remote, err);

    if (code == RF_OK)
        code = remote_map(remote, 0, &layout, &result, err);
    if (code == RF_OK && layout.count != 1)
        code = rf_fail(err, RF_E_FAILED, "the mapping has %" PRIu32 " segments", layout.count);
    /* The first pass touches the mapping and is not counted. */
    for (unsigned i = 0; code == RF_OK && i <= rounds; i++) {
        const uint8_t *src =
            region_data(layout.segments[0].region) + layout.segments[0].region_offset;
        uint64_t start_ns = clock_now_ns();

        memory_copy(dst, src, path->bytes, threads);
        if (i > 0)
            samples_add(samples, (double)path->bytes / clock_seconds(start_ns, clock_now_ns()));
    }
    layout_free(&layout);
    remote_close(remote);
    return code;
}

static enum rf_code copy_rounds(struct bench *bench, struct path *path, bool verify,
                                struct bench_result *result, unsigned *ret_threads,
                                struct rf_error *err)
{
    uint8_t *dst = NULL;
    enum rf_code code = bench_dest(bench, &dst, err);

    for (unsigned i = 0; code == RF_OK && i < bench->rounds; i++) {
        struct remote_result taken = {.bytes = 0};
        double seconds = 0;

        code = take_ours(path, "map", bench->connections, verify, dst, &taken, &seconds, err);
        if (code != RF_OK)
            break;
        samples_add(&result->samples, (double)path->bytes / seconds);
        *ret_threads = taken.connections;
        code = copy_ceiling(path, taken.connections, dst, &result->ceiling_samples, 1, err);
    }
    return code;
}

enum rf_code bench_copy(struct bench *bench, struct rf_error *err)
{
    struct path path = {
        .name = "copy", .host = "127.0.0.1", .name_space = "-", .bytes = bench->size_bytes};
    enum rf_code code = bench_holder(bench, &path.holder, err);

    if (code == RF_OK)
        code = path_open(&path, err);
    for (int verify = 0; code == RF_OK && verify < 2; verify++) {
        struct bench_result *result =
            bench_result(bench, verify != 0 ? "copy on one host, verified" : "copy on one host");
        unsigned threads = 0;

        code = copy_rounds(bench, &path, verify != 0, result, &threads, err);
        bench_judge_rate(result, verify != 0 ? 0 : 0.9);
        snprintf(result->note, sizeof(result->note),
                 "of memcpy between the same two mappings, %u threads%s", threads,
                 verify != 0 ? "; hashing is extra here, no target" : "");
    }
    if (code == RF_OK)
        code = path_close(&path, err);
    return code;
}

/* ---- the same host, mapping ---- */

static enum rf_code map_once(const char *url, double *ret_seconds, struct rf_error *err)
{
    const struct remote_options options = {.transport = "map", .cancel_fd = -1};
    struct remote *remote = NULL;
    struct store *store = NULL;
    struct remote_result result;
    uint64_t start_ns = clock_now_ns();
    enum rf_code code = remote_open(url, &options, 0, &remote, err);

    if (code == RF_OK)
        code = remote_fork_memory(remote, REMOTE_SHARE, false, &store, &result, err);
    if (code == RF_OK && !result.mapped)
        code = rf_fail(err, RF_E_FAILED, "the fork was not mapped");
    *ret_seconds = clock_seconds(start_ns, clock_now_ns());
    store_destroy(store);
    remote_close(remote);
    return code;
}

static enum rf_code map_size(struct bench *bench, struct holder *holder, uint64_t bytes,
                             struct bench_result **ret_result, struct rf_error *err)
{
    char url[BENCH_TEXT_BYTES];
    char name[BENCH_TEXT_BYTES];
    char answer[BENCH_TEXT_BYTES];
    char text[SIZE_TEXT_BYTES];
    enum rf_code code = holder_ask(holder, url, err, "publish %" PRIu64 " 127.0.0.1 -", bytes);

    if (code != RF_OK)
        return code;
    snprintf(name, sizeof(name), "map, %s: ready", size_text(bytes, text));
    struct bench_result *result = bench_result(bench, name);
    for (unsigned i = 0; code == RF_OK && i < bench->rounds; i++) {
        double seconds = 0;

        code = map_once(url, &seconds, err);
        samples_add(&result->samples, seconds);
    }
    if (code == RF_OK)
        code = holder_ask(holder, answer, err, "stop");
    bench_judge_most(result, "s", 0.05);
    snprintf(result->note, sizeof(result->note),
             "from the first request to a model that can be served");
    *ret_result = result;
    return code;
}

enum rf_code bench_map(struct bench *bench, struct rf_error *err)
{
    struct holder *holder = NULL;
    struct bench_result *smallest = NULL;
    struct bench_result *largest = NULL;
    enum rf_code code = bench_holder(bench, &holder, err);

    for (uint64_t bytes = 256 << 20; code == RF_OK && bytes <= bench->map_max_bytes; bytes *= 2) {
        code = map_size(bench, holder, bytes, &largest, err);
        if (smallest == NULL)
            smallest = largest;
    }
    if (code != RF_OK || smallest == NULL)
        return code;
    struct bench_result *flat = bench_result(bench, "map: largest over smallest");
    flat->value = largest->value / smallest->value;
    flat->judged = flat->value;
    flat->at_most = true;
    flat->target = 2; /* "flat": 32 times the bytes, and less than twice a few milliseconds */
    flat->unit = "ratio";
    snprintf(flat->value_text, sizeof(flat->value_text), "%.2f", flat->value);
    snprintf(flat->note, sizeof(flat->note), "%.80s to %.80s", smallest->name, largest->name);
    return RF_OK;
}
