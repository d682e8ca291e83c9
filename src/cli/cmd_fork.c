/* `rfork fork`: takes a model from a seed, into a folder, or into memory and away again. */
#include "base/cleanup.h"
#include "base/size.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/probe.h"
#include "cli/progress.h"
#include "cli/seeds.h"
#include "format/model_folder.h"
#include "memory/region.h"

#include <inttypes.h>
#include <stdio.h>

struct fork_command {
    const char *output;
    uint64_t shard_bytes;
    bool dry_run;
    bool no_sync;
    bool json;
    struct transfer_options transfer;
    struct shard_options shard;
};

enum {
    AT_TRANSFER = offsetof(struct fork_command, transfer),
    AT_ASK = offsetof(struct fork_command, transfer.ask),
    AT_SHARD = offsetof(struct fork_command, shard),
};

static const struct option_spec fork_options[] = {
    {.name = "output",
     .letter = 'o',
     .type = OPTION_TEXT,
     .arg = "DIR",
     .offset = offsetof(struct fork_command, output),
     .help = "Write a model folder: the seed's own files, byte for byte. DIR must not exist, or "
             "be empty; it appears when it is complete. Without -o the weights are taken into "
             "memory, verified and dropped."},
    {.name = "dry-run",
     .type = OPTION_FLAG,
     .offset = offsetof(struct fork_command, dry_run),
     .help = "Say what would move, by which path, why, and about how long it would take."},
    SHARD_ROW_TP(AT_SHARD),
    SHARD_ROW_EP(AT_SHARD),
    SHARD_ROW_RANKS(AT_SHARD),
    SHARD_ROW_LAYOUT(AT_SHARD),
    SHARD_ROW_PLAN(AT_SHARD),
    TRANSFER_ROW_TRANSPORT(AT_TRANSFER),
    TRANSFER_ROW_CONNECTIONS(AT_TRANSFER),
    TRANSFER_ROW_COPY(AT_TRANSFER),
    TRANSFER_ROW_NO_VERIFY(AT_TRANSFER),
    TRANSFER_ROW_VERIFY(AT_TRANSFER),
    TRANSFER_ROW_RETRIES(AT_TRANSFER),
    TRANSFER_ROW_TIMEOUT(AT_TRANSFER),
    TRANSFER_ROW_WAIT_READY(AT_TRANSFER),
    ASK_ROW_SEED_API(AT_ASK),
    ASK_ROW_TE_DATA_HOST(AT_ASK),
    {.name = "model-path",
     .type = OPTION_TEXT,
     .arg = "DIR",
     .offset = offsetof(struct fork_command, transfer.model_path),
     .help = "Folder of the model, of an SGLang seed, which says no shapes and dtypes: they come "
             "from the headers of DIR's weight files (no weights are read), side files too."},
    {.name = "shard-size",
     .type = OPTION_SIZE,
     .arg = "SIZE",
     .fallback = "5GB",
     .min = 1 << 20,
     .offset = offsetof(struct fork_command, shard_bytes),
     .help = "Largest weight file to write with -o where the seed loaded none itself."},
    {.name = "no-sync",
     .type = OPTION_FLAG,
     .offset = offsetof(struct fork_command, no_sync),
     .help = "With -o: do not wait until the files are on disk. Faster; a power cut may cost "
             "them."},
    {.name = "json",
     .type = OPTION_FLAG,
     .offset = offsetof(struct fork_command, json),
     .help = "Print one JSON object instead of lines."},
};

static const struct command_spec fork_spec = {
    .name = "fork",
    .operands = "URL...",
    .min_operands = 1,
    .max_operands = REMOTE_MAX_SEEDS,
    .summary = "take a model from a seed",
    .text =
        "Takes the weights of the seed at URL, verifies every chunk against the seed's digests, "
        "and writes them to a folder (-o) or drops them again: a drill, and the way to "
        "measure.\n"
        "With --tp it takes what an instance of that tensor-parallel size would hold, however "
        "the seed is cut. Several URLs are seeds that hold different ranks of one model.\n",
    OPTION_ROWS(fork_options),
    .examples = "  rfork fork http://10.0.0.5:30000 -o models/llama\n"
                "  rfork fork --json --transport tcp --connections 4 http://10.0.0.5:30000\n"
                "  rfork fork --dry-run http://10.0.0.5:30000\n"
                "  rfork fork --dry-run --tp 2 --ranks 0 http://10.0.0.5:30000\n",
    .exits = "  0 done; 2 wrong command line, or DIR is in the way; 6 not what the seed has;\n"
             "  7 corrupt bytes; 8 no seed answers; 9 a deadline passed; 11 memory or disk\n"
             "  full; 12 interrupted; 13 no plan for this architecture\n",
};

/* ---- what came of it ---- */

static enum rf_code say_json(const struct fork_command *command, const struct seeds *seeds,
                             const struct remote_result *result, struct rf_error *err)
{
    struct jsonout out = {.comma = false};

    jsonout_open(&out, NULL, '{');
    transfer_json(seeds->remotes[0], seeds_manifest(seeds), result, &out);
    jsonout_text_or_null(&out, "output", command->output);
    jsonout_close(&out, '}');
    return jsonout_print(&out, err);
}

static void say_lines(const struct fork_command *command, const struct seeds *seeds,
                      const struct remote_result *result)
{
    struct buf line BUF_AUTO = {0};
    char root[HASH_TEXT_BYTES];
    char bytes[SIZE_TEXT_BYTES];
    char seconds[SIZE_TEXT_BYTES];
    char rate[SIZE_TEXT_BYTES];
    char ranks[128];

    buf_printf(&line, "%s: ", seeds_manifest(seeds)->model);
    if (seeds->reshard != NULL)
        buf_printf(&line, "ranks %s, ",
                   shards_ranks_text(seeds_manifest(seeds), ranks, sizeof(ranks)));
    buf_printf(&line, "%s in %s", size_text(result->bytes, bytes),
               size_seconds_text(result->seconds, seconds));
    if (!result->mapped && result->seconds > 0)
        buf_printf(&line, ", %s", size_rate_text((double)result->bytes / result->seconds, rate));
    buf_printf(&line, ", %s", result->verified ? "verified" : "not verified");
    if (result->unverified[0] != '\0')
        buf_printf(&line, " (%s)", result->unverified);
    if (result->chunks_retried > 0)
        buf_printf(&line, ", %" PRIu64 " chunks read again", result->chunks_retried);
    if (command->output != NULL)
        buf_printf(&line, "; wrote %s", command->output);
    if (command->output != NULL && seeds_manifest(seeds)->rank_count > 1)
        buf_printf(&line, ", a weight file for each of %" PRIu32 " ranks",
                   seeds_manifest(seeds)->rank_count);
    if (line.failed)
        return;
    rf_text_sanitise((char *)line.data);
    output_line("%s", (const char *)line.data);
    output_line("by %s: %s", result->transport, result->reason);
    if (transfer_root_text(seeds->remotes[0], result, root)[0] != '\0')
        output_line("root digest %s%s", root, result->verified ? "" : ", as the seed says");
}

/* ---- doing it ---- */

static enum rf_code fork_into_memory(const struct fork_command *command, struct seeds *seeds,
                                     struct remote_result *ret_result, struct rf_error *err)
{
    struct store *store = NULL;
    enum rf_code code = seeds_take(seeds, &command->transfer, &store, ret_result, err);

    if (code == RF_OK)
        store_destroy(store);
    return code;
}

static enum rf_code fork_into_folder(const struct fork_command *command, struct seeds *seeds,
                                     struct remote_result *ret_result, struct rf_error *err)
{
    const struct remote_folder_options folder = {
        .path = command->output,
        .durable = !command->no_sync,
        .shard_bytes = command->shard_bytes,
    };

    return seeds_take_folder(seeds, &folder, ret_result, err);
}

static enum rf_code fork_now(const struct fork_command *command, struct seeds *seeds,
                             struct rf_error *err)
{
    const struct manifest *manifest = seeds_manifest(seeds);
    struct remote_result result;

    progress_begin(manifest->model, manifest_total_bytes(manifest));
    enum rf_code code = command->output != NULL ? fork_into_folder(command, seeds, &result, err)
                                                : fork_into_memory(command, seeds, &result, err);
    progress_end();
    if (code != RF_OK)
        return code;
    if (command->json)
        return say_json(command, seeds, &result, err);
    say_lines(command, seeds, &result);
    return RF_OK;
}

/* ---- --dry-run ---- */

struct forecast {
    bool maps;
    bool known; /* rate was measured */
    double seconds;
    uint64_t move_bytes;
    struct probe_result probe;
};

static enum rf_code forecast_json(const struct fork_command *command, const struct seeds *seeds,
                                  const struct forecast *forecast, struct rf_error *err)
{
    const struct remote *remote = seeds->remotes[0];
    const struct manifest *manifest = seeds_manifest(seeds);
    struct jsonout out = {.comma = false};

    jsonout_open(&out, NULL, '{');
    jsonout_bool(&out, "dry_run", true);
    jsonout_text(&out, "url", client_url(remote_client(remote)));
    jsonout_text(&out, "model", manifest->model);
    jsonout_u64(&out, "tensors", seeds_tensor_count(seeds));
    jsonout_u64(&out, "bytes", manifest_total_bytes(manifest));
    jsonout_u64(&out, "files", manifest->file_count);
    jsonout_text(&out, "transport", remote_choice(remote)->transport->name);
    jsonout_text(&out, "reason", remote_choice(remote)->reason);
    jsonout_bool(&out, "mapped", forecast->maps);
    jsonout_u64(&out, "move_bytes", forecast->move_bytes);
    if (forecast->known) {
        jsonout_double(&out, "estimated_seconds", forecast->seconds);
        jsonout_double(&out, "probe_bytes_per_s", forecast->probe.bytes_per_s);
    } else {
        jsonout_null(&out, "estimated_seconds");
        jsonout_null(&out, "probe_bytes_per_s");
    }
    jsonout_u64(&out, "probe_bytes", forecast->probe.bytes);
    jsonout_u64(&out, "probe_connections", forecast->probe.connections);
    jsonout_text_or_null(&out, "root_digest",
                         seeds->reshard == NULL ? remote_info(remote)->root_digest : NULL);
    seeds_json_plan(seeds, &command->transfer, &out);
    jsonout_text_or_null(&out, "output", command->output);
    jsonout_close(&out, '}');
    return jsonout_print(&out, err);
}

static void forecast_lines(const struct fork_command *command, const struct seeds *seeds,
                           const struct forecast *forecast)
{
    const struct remote *remote = seeds->remotes[0];
    const struct manifest *manifest = seeds_manifest(seeds);
    char bytes[SIZE_TEXT_BYTES];
    char seconds[SIZE_TEXT_BYTES];
    char rate[SIZE_TEXT_BYTES];
    char probed[SIZE_TEXT_BYTES];

    output_line("%s: %s in %" PRIu64 " tensors, %" PRIu32 " files%s%s", manifest->model,
                size_text(manifest_total_bytes(manifest), bytes), seeds_tensor_count(seeds),
                manifest->file_count, command->output != NULL ? " would be written to " : "",
                command->output != NULL ? command->output : "");
    output_line("by %s: %s", remote_choice(remote)->transport->name, remote_choice(remote)->reason);
    seeds_print_plan(seeds, &command->transfer);
    if (forecast->maps && forecast->move_bytes > 0)
        output_line("%s would be copied out of the seed's memory, the rest is shared",
                    size_text(forecast->move_bytes, bytes));
    else if (forecast->maps)
        output_line("no bytes would move: the seed's memory is shared; a few milliseconds");
    else if (forecast->known)
        output_line("about %s: a probe of %s ran at %s over %u connections%s",
                    size_seconds_text(forecast->seconds, seconds),
                    size_text(forecast->probe.bytes, probed),
                    size_rate_text(forecast->probe.bytes_per_s, rate), forecast->probe.connections,
                    command->output != NULL ? "; a slow disk adds to it" : "");
    else
        output_line("how long is not known: there are too few bytes to time");
}

/* What would move: all of it, or of a mapping what does not lie there in one piece. */
static uint64_t bytes_to_move(const struct seeds *seeds, bool maps)
{
    struct remote_forecast forecast;
    uint64_t bytes = 0;

    if (seeds->reshard == NULL)
        return maps ? 0 : manifest_total_bytes(seeds_manifest(seeds));
    for (uint32_t i = 0; i < seeds_manifest(seeds)->rank_count; i++) {
        remote_reshard_forecast(seeds->reshard, i, maps ? REMOTE_SHARE : REMOTE_COPY, &forecast);
        bytes += forecast.copied_bytes;
    }
    return bytes;
}

static enum rf_code fork_dry(const struct fork_command *command, struct seeds *seeds,
                             struct rf_error *err)
{
    struct forecast forecast = {.maps = command->output == NULL &&
                                        seeds_map(seeds, &command->transfer)};
    enum rf_code code = command->output != NULL ? folder_writer_check(command->output, err) : RF_OK;

    if (code != RF_OK)
        return code;
    forecast.move_bytes = bytes_to_move(seeds, forecast.maps);
    if (!forecast.maps)
        code = probe_run(seeds->remotes[0], &command->transfer, &forecast.probe, err);
    if (code != RF_OK)
        return code;
    if (forecast.probe.bytes_per_s > 0) {
        forecast.known = true;
        forecast.seconds = (double)forecast.move_bytes / forecast.probe.bytes_per_s;
    }
    if (command->json)
        return forecast_json(command, seeds, &forecast, err);
    forecast_lines(command, seeds, &forecast);
    return RF_OK;
}

/* ---- the command ---- */

static int fork_check(const struct fork_command *command)
{
    if (command->output != NULL && (command->transfer.copy || command->transfer.verify))
        return output_usage("fork",
                            "fork: %s is about weights in memory; with -o they are always "
                            "copied and verified",
                            command->transfer.copy ? "--copy" : "--verify");
    if (command->output == NULL && command->no_sync)
        return output_usage("fork", "fork: --no-sync is about the files that -o writes");
    if (command->output != NULL && shards_asked(&command->shard))
        return output_usage("fork",
                            "fork: --tp, --ep, --ranks, --layout and --plan are about ranks in "
                            "memory; -o writes the whole checkpoint, however the seed is cut");
    return transfer_check("fork", &command->transfer);
}

int cmd_fork(int argc, char **argv)
{
    struct fork_command command = {.output = NULL};
    struct seeds seeds = {.count = 0};
    struct rf_error error;
    unsigned operands;
    int exit_code = options_parse(&fork_spec, argc, argv, &command, &operands);

    if (exit_code == OPTIONS_GO_ON)
        exit_code = fork_check(&command);
    if (exit_code != OPTIONS_GO_ON)
        return exit_code;
    enum rf_code code = seeds_open(argv + 1, operands, &command.transfer,
                                   command.output == NULL ? &command.shard : NULL, &seeds, &error);
    if (code == RF_OK)
        code = command.dry_run ? fork_dry(&command, &seeds, &error)
                               : fork_now(&command, &seeds, &error);
    seeds_close(&seeds);
    return output_end(code != RF_OK ? output_error(&error) : RF_OK);
}
