/* A checkpoint cut into ranks by `rfork serve`: how soon it is ready, and what memory it takes. */
#include "base/clock.h"
#include "base/size.h"
#include "cli/bench/bench.h"
#include "cli/signals.h"
#include "memory/region.h"
#include "seed/load.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { RANKS_TP = 4, RANKS_PAGE_BYTES = 4096 };

#define RANKS_READY_FACTOR 1.2
#define RANKS_READY_EXTRA  0.2 /* seconds */

/* What the loader is going to make, as it says itself before it does. */
static enum rf_code made_bytes(const struct qwen *qwen, const char *layout, uint64_t *ret_bytes,
                               struct rf_error *err)
{
    const struct load_shards shards = {.tp_size = RANKS_TP, .ep_size = 1, .layout = layout};
    const struct load_options options = {.memory = LOAD_FILES, .shards = &shards};
    struct model_folder folder;
    struct load_needs needs;
    struct load *load = NULL;
    enum rf_code code = model_folder_open(qwen->folder, &folder, err);

    if (code != RF_OK)
        return code;
    code = load_open(&folder, &options, &load, err);
    if (code == RF_OK) {
        load_needs(load, &needs);
        *ret_bytes = needs.made_bytes;
        load_close(load);
    }
    model_folder_close(&folder);
    return code;
}

/* Seconds until it is ready; *ret_memory: what of its memory it made itself. */
static enum rf_code serve_once(const struct qwen *qwen, const char *layout, double *ret_seconds,
                               uint64_t *ret_memory, struct rf_error *err)
{
    char folder[256];
    char layout_text[32];
    char tp[16];
    char *words[] = {(char[]){"rfork"},
                     (char[]){"serve"},
                     (char[]){"--mmap"},
                     (char[]){"--port"},
                     (char[]){"0"},
                     (char[]){"--tp"},
                     tp,
                     (char[]){"--layout"},
                     layout_text,
                     (char[]){"--model-path"},
                     folder,
                     NULL};
    char url[BENCH_TEXT_BYTES];
    struct program program;

    snprintf(folder, sizeof(folder), "%s", qwen->folder);
    snprintf(layout_text, sizeof(layout_text), "%s", layout);
    snprintf(tp, sizeof(tp), "%d", RANKS_TP);
    uint64_t start_ns = clock_now_ns();
    enum rf_code code = program_start(words, &program, err);
    if (code != RF_OK)
        return code;
    code = program_ready(&program, url, err);
    *ret_seconds = clock_seconds(start_ns, clock_now_ns());
    *ret_memory = program_shared_memory(&program);
    program_end(&program, SIGTERM);
    return code;
}

/* ---- ready ---- */

struct ready {
    struct samples seconds;
    struct samples copy_seconds;
    uint64_t made;
};

/* memcpy() of what must be made, in memory that is given back at once: what the seed then gets from
 * the system was touched, too. (Elsewhere than in the first round, on a virtual machine, it would
 * be its host that is timed.) */
static enum rf_code copy_once(uint64_t bytes, double *ret_seconds, struct rf_error *err)
{
    uint8_t *memory = NULL;
    enum rf_code code = bench_touched(2 * bytes, &memory, err);

    if (code != RF_OK)
        return code;
    uint64_t start_ns = clock_now_ns();
    memory_copy(memory, memory + bytes, bytes, 0);
    *ret_seconds = clock_seconds(start_ns, clock_now_ns());
    munmap(memory, bench_touched_bytes(2 * bytes));
    return RF_OK;
}

static enum rf_code ready_rounds(struct bench *bench, const struct qwen *qwen, struct ready *ready,
                                 struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (unsigned i = 0; code == RF_OK && i < bench->rounds; i++) {
        double copy_seconds = 0;
        double seconds = 0;
        uint64_t ignored;

        code = copy_once(ready->made, &copy_seconds, err);
        if (code == RF_OK)
            code = serve_once(qwen, "sglang", &seconds, &ignored, err);
        samples_add(&ready->copy_seconds, copy_seconds);
        samples_add(&ready->seconds, seconds);
        if (code == RF_OK && signals_came())
            code = rf_fail(err, RF_E_CANCELLED, "interrupted");
    }
    return code;
}

static void report_ready(struct bench *bench, const struct qwen *qwen, const struct ready *ready)
{
    char name[BENCH_TEXT_BYTES];
    char text[SIZE_TEXT_BYTES];
    char made[SIZE_TEXT_BYTES];
    char copy[SIZE_TEXT_BYTES];
    double copy_seconds = samples_median(&ready->copy_seconds);

    snprintf(name, sizeof(name), "serve --mmap --tp %d --layout sglang, %s in cache: ready",
             RANKS_TP, size_text(qwen->bytes, text));
    struct bench_result *result = bench_result(bench, name);
    result->samples = ready->seconds;
    result->ceiling_samples = ready->copy_seconds;
    result->unit = "s";
    result->value = samples_median(&ready->seconds);
    result->ceiling = RANKS_READY_FACTOR * copy_seconds + RANKS_READY_EXTRA;
    result->judged = result->value / result->ceiling;
    result->target = 1;
    result->at_most = true;
    snprintf(result->value_text, sizeof(result->value_text), "%s",
             size_seconds_text(result->value, text));
    snprintf(result->ceiling_text, sizeof(result->ceiling_text), "%s",
             size_seconds_text(result->ceiling, text));
    snprintf(result->note, sizeof(result->note),
             "ceiling: %.1f x memcpy of the %s that must be made (%s, all threads) and %.0f ms",
             RANKS_READY_FACTOR, size_text(ready->made, made),
             size_seconds_text(copy_seconds, copy), RANKS_READY_EXTRA * 1000);
}

enum rf_code bench_ranks(struct bench *bench, struct rf_error *err)
{
    struct ready ready = {.made = 0};
    struct qwen qwen = {.bytes = 0};
    enum rf_code code = qwen_create(bench->folder, bench->load_bytes, &qwen, err);

    if (code == RF_OK)
        code = made_bytes(&qwen, "sglang", &ready.made, err);
    if (code == RF_OK)
        code = ready_rounds(bench, &qwen, &ready, err);
    if (code == RF_OK)
        report_ready(bench, &qwen, &ready);
    qwen_remove(&qwen);
    return code;
}

/* ---- memory ---- */

enum rf_code bench_ranks_memory(struct bench *bench, struct rf_error *err)
{
    struct qwen qwen = {.bytes = 0};
    uint64_t memory = 0;
    char name[BENCH_TEXT_BYTES];
    char text[SIZE_TEXT_BYTES];
    char rows[SIZE_TEXT_BYTES];
    double seconds = 0;
    enum rf_code code = qwen_create(bench->folder, bench->load_bytes, &qwen, err);

    if (code == RF_OK)
        code = serve_once(&qwen, "checkpoint", &seconds, &memory, err);
    qwen_remove(&qwen);
    if (code != RF_OK)
        return code;
    snprintf(name, sizeof(name), "serve --mmap --tp %d, %s: memory made", RANKS_TP,
             size_text(qwen.bytes, text));
    struct bench_result *result = bench_result(bench, name);
    samples_add(&result->samples, (double)memory);
    /* What is made lies in whole pages. */
    bench_judge_most(
        result, "bytes",
        (double)(qwen.row_bytes + RANKS_PAGE_BYTES - qwen.row_bytes % RANKS_PAGE_BYTES));
    snprintf(result->note, sizeof(result->note),
             "shared memory of the process beside the files' own pages; row-sliced tensors: %s",
             size_text(qwen.row_bytes, rows));
    return code;
}
