/* rfork bench: what this machine can do, and how close to it each path gets. */
#include "base/size.h"
#include "base/thread.h"
#include "cli/bench/bench.h"
#include "cli/commands.h"
#include "cli/jsonout.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "memory/region.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>

struct bench_values {
    uint64_t size;
    uint64_t map_size;
    uint64_t load_size;
    uint64_t rounds;
    uint64_t connections;
    const char *only;
    const char *folder;
    bool json;
};

typedef enum rf_code (*bench_fn)(struct bench *bench, struct rf_error *err);

static const struct {
    const char *name;
    bench_fn fn;
} parts[] = {
    {"loopback", bench_tcp_loopback},
    {"namespaces", bench_tcp_namespaces},
    {"shaped", bench_tcp_shaped},
    {"map", bench_map},
    {"copy", bench_copy},
    {"memory", bench_memory},
    {"header", bench_header},
    {"manifest", bench_manifest},
    {"start", bench_start},
    {"ranks", bench_ranks},
    {"ranks-memory", bench_ranks_memory},
    {"reshard-tcp", bench_reshard_tcp},
    {"reshard-map", bench_reshard_map},
    {"reshard-plan", bench_reshard_plan},
    {"reshard-moves", bench_reshard_moves},
};

enum { PART_COUNT = sizeof(parts) / sizeof(parts[0]) };

static const struct option_spec rows[] = {
    {.name = "size",
     .type = OPTION_SIZE,
     .arg = "SIZE",
     .fallback = "4GiB",
     .min = 16 << 20,
     .offset = offsetof(struct bench_values, size),
     .help = "Bytes that tcp and copy move; the model that is resharded has as many, and at most "
             "2 GiB."},
    {.name = "map-size",
     .type = OPTION_SIZE,
     .arg = "SIZE",
     .fallback = "8GiB",
     .min = 256 << 20,
     .offset = offsetof(struct bench_values, map_size),
     .help = "The largest model that is mapped; from 256 MiB on, each twice the one before."},
    {.name = "load-size",
     .type = OPTION_SIZE,
     .arg = "SIZE",
     .fallback = "4GiB",
     .min = 256 << 20,
     .max = UINT64_C(128) << 30,
     .offset = offsetof(struct bench_values, load_size),
     .help = "Bytes of the model that is written to --folder and served from there."},
    {.name = "rounds",
     .type = OPTION_COUNT,
     .arg = "N",
     .fallback = "5",
     .min = 1,
     .max = BENCH_MAX_ROUNDS,
     .offset = offsetof(struct bench_values, rounds),
     .help = "How often each is measured, alternating with its ceiling; medians count."},
    {.name = "connections",
     .type = OPTION_COUNT,
     .arg = "N",
     .fallback = "0",
     .max = 64,
     .offset = offsetof(struct bench_values, connections),
     .help = "Connections (or copying threads) of a fork; 0: its own choice."},
    {.name = "only",
     .type = OPTION_TEXT,
     .arg = "PARTS",
     .offset = offsetof(struct bench_values, only),
     .help = "Only these, separated by commas: loopback, namespaces, shaped, map, copy, memory, "
             "header, manifest, start, ranks, ranks-memory, reshard-tcp, reshard-map, "
             "reshard-plan, reshard-moves."},
    {.name = "folder",
     .type = OPTION_TEXT,
     .arg = "DIR",
     .fallback = "/tmp",
     .env = "TMPDIR",
     .offset = offsetof(struct bench_values, folder),
     .help = "Where models on disk are made, and removed again."},
    {.name = "json",
     .type = OPTION_FLAG,
     .offset = offsetof(struct bench_values, json),
     .help = "One JSON object with all samples instead of the table."},
};

static const struct command_spec spec = {
    .name = "bench",
    .operands = "",
    .summary = "measure every path on this machine against its ceiling",
    .text =
        "Measures each path next to the ceiling it is held against, alternating in the same run "
        "after touching all memory, and compares medians: tcp with raw sockets, copying with "
        "memcpy, a shaped link with its rate.\n"
        "Parts that need root (network namespaces) are skipped without it, and say so.\n",
    OPTION_ROWS(rows),
    .examples = "  rfork bench\n"
                "  rfork bench --size 512MiB --map-size 1GiB --only loopback,map --json\n",
    .exits = "  0   all targets were met\n"
             "  1   measured, but a target was missed\n",
};

static bool word_in(const char *list, const char *word)
{
    size_t bytes = strlen(word);

    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, word, bytes) == 0 && (at[bytes] == ',' || at[bytes] == '\0'))
            return true;
    }
    return false;
}

static bool part_known(const char *word, size_t bytes)
{
    for (unsigned i = 0; i < PART_COUNT; i++) {
        if (strlen(parts[i].name) == bytes && strncmp(parts[i].name, word, bytes) == 0)
            return true;
    }
    return false;
}

static int check_only(const char *only)
{
    for (const char *at = only; at != NULL && *at != '\0';) {
        size_t bytes = strcspn(at, ",");

        if (!part_known(at, bytes))
            return output_usage("bench", "--only: no part is called \"%.*s\"", (int)bytes, at);
        at += bytes + (at[bytes] == ',');
    }
    return 0;
}

/* ---- printing ---- */

static void print_judged(const struct bench_result *result, char out[BENCH_TEXT_BYTES])
{
    const char *verdict = bench_met(result) ? "ok" : "MISSED";

    if (result->skipped)
        snprintf(out, BENCH_TEXT_BYTES, "skipped");
    else if (result->target <= 0)
        snprintf(out, BENCH_TEXT_BYTES, "%.2f", result->judged);
    else if (result->ceiling > 0 || strcmp(result->unit, "ratio") == 0)
        snprintf(out, BENCH_TEXT_BYTES, "%.2f %s %.2f %s", result->judged,
                 result->at_most ? "<=" : ">=", result->target, verdict);
    else
        snprintf(out, BENCH_TEXT_BYTES, "%s", verdict);
}

static void print_table(const struct bench *bench)
{
    output_line("%-58s %12s %12s  %s", "what", "measured", "ceiling", "judged");
    for (unsigned i = 0; i < bench->result_count; i++) {
        const struct bench_result *result = &bench->results[i];
        char judged[BENCH_TEXT_BYTES];

        print_judged(result, judged);
        output_line("%-58s %12s %12s  %s", result->name, result->skipped ? "-" : result->value_text,
                    result->ceiling_text[0] != '\0' ? result->ceiling_text : "-", judged);
        output_line("    %s", result->note);
    }
}

static void json_samples(struct jsonout *out, const char *key, const struct samples *samples)
{
    jsonout_open(out, key, '[');
    for (unsigned i = 0; i < samples->count; i++)
        jsonout_double(out, NULL, samples->values[i]);
    jsonout_close(out, ']');
}

static void json_result(struct jsonout *out, const struct bench_result *result)
{
    jsonout_open(out, NULL, '{');
    jsonout_text(out, "name", result->name);
    jsonout_text(out, "note", result->note);
    jsonout_bool(out, "skipped", result->skipped);
    if (!result->skipped) {
        jsonout_text(out, "unit", result->unit);
        jsonout_double(out, "value", result->value);
        jsonout_double(out, "ceiling", result->ceiling);
        jsonout_double(out, "judged", result->judged);
        jsonout_double(out, "target", result->target);
        jsonout_text(out, "target_is", result->at_most ? "at_most" : "at_least");
        jsonout_bool(out, "met", bench_met(result));
        json_samples(out, "samples", &result->samples);
        json_samples(out, "ceiling_samples", &result->ceiling_samples);
    }
    jsonout_close(out, '}');
}

static enum rf_code print_json(const struct bench *bench, struct rf_error *err)
{
    struct jsonout out = {.comma = false};
    struct utsname name = {.release = ""};

    (void)uname(&name);
    jsonout_open(&out, NULL, '{');
    jsonout_text(&out, "version", rf_version());
    jsonout_text(&out, "kernel", name.release);
    jsonout_text(&out, "machine", name.machine);
    jsonout_u64(&out, "cpus", thread_cpus());
    jsonout_u64(&out, "memory_available", memory_available());
    jsonout_u64(&out, "size", bench->size_bytes);
    jsonout_u64(&out, "rounds", bench->rounds);
    jsonout_open(&out, "results", '[');
    for (unsigned i = 0; i < bench->result_count; i++)
        json_result(&out, &bench->results[i]);
    jsonout_close(&out, ']');
    jsonout_close(&out, '}');
    return jsonout_print(&out, err);
}

/* ---- running ---- */

static enum rf_code check_memory(const struct bench *bench, struct rf_error *err)
{
    uint64_t held =
        bench->size_bytes > bench->map_max_bytes ? bench->size_bytes : bench->map_max_bytes;
    uint64_t cut = 3 * bench_reshard_bytes(bench);
    uint64_t wanted =
        held + bench->size_bytes + (bench->load_bytes > cut ? bench->load_bytes : cut);
    char wanted_text[SIZE_TEXT_BYTES];
    char there_text[SIZE_TEXT_BYTES];

    if (wanted <= memory_available())
        return RF_OK;
    return rf_fail(err, RF_E_NOMEM,
                   "the benchmark needs %s of memory, %s is available: pass smaller --size, "
                   "--map-size and --load-size",
                   size_text(wanted, wanted_text), size_text(memory_available(), there_text));
}

static enum rf_code run_parts(struct bench *bench, const char *only, struct rf_error *err)
{
    enum rf_code code = check_memory(bench, err);

    for (unsigned i = 0; code == RF_OK && i < PART_COUNT; i++) {
        if (only != NULL && !word_in(only, parts[i].name))
            continue;
        output_note("bench: %s ...", parts[i].name);
        code = parts[i].fn(bench, err);
        if (code == RF_OK && signals_came())
            code = rf_fail(err, RF_E_CANCELLED, "interrupted");
        if (code != RF_OK)
            break;
    }
    return code;
}

static bool all_met(const struct bench *bench)
{
    for (unsigned i = 0; i < bench->result_count; i++) {
        if (!bench_met(&bench->results[i]))
            return false;
    }
    return true;
}

int cmd_bench(int argc, char **argv)
{
    struct bench_values values = {.json = false};
    struct rf_error error = {.code = RF_OK};
    unsigned operands = 0;

    /* The program starts itself again with this; it is nobody else's business, and in no table. */
    if (argc == 3 && strcmp(argv[1], "--holder") == 0)
        return holder_main(strtoull(argv[2], NULL, 10));
    int status = options_parse(&spec, argc, argv, &values, &operands);
    if (status == OPTIONS_GO_ON && check_only(values.only) != 0)
        status = RF_E_INVAL;
    if (status != OPTIONS_GO_ON)
        return status;

    struct bench *bench = calloc(1, sizeof(*bench));
    if (bench == NULL)
        return output_fail(RF_E_NOMEM, "no memory");
    *bench = (struct bench){.size_bytes = values.size,
                            .map_max_bytes = values.map_size,
                            .load_bytes = values.load_size,
                            .rounds = (unsigned)values.rounds,
                            .connections = (unsigned)values.connections,
                            .folder = values.folder};
    enum rf_code code = run_parts(bench, values.only, &error);
    if (code == RF_OK && values.json)
        code = print_json(bench, &error);
    else if (code == RF_OK)
        print_table(bench);
    status = code != RF_OK ? output_error(&error) : all_met(bench) ? 0 : 1;
    holder_stop(bench->holder);
    if (bench->dest != NULL)
        munmap(bench->dest, bench_touched_bytes(bench->size_bytes));
    free(bench);
    return output_end(status);
}
