/* Where an instance's weights come from: files, or a seed. */
#include "base/size.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/seeds.h"
#include "cli/serve.h"
#include "cli/signals.h"
#include "memory/region.h"
#include "seed/load.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- from disk ---- */

static void say_needs(const struct serve_command *command, const struct load_needs *needs,
                      const struct model_folder *folder, const struct manifest *manifest,
                      const char *model)
{
    char tensors[SIZE_TEXT_BYTES];
    char viewed[SIZE_TEXT_BYTES];
    char made[SIZE_TEXT_BYTES];
    char ranks[64];
    char parts[256] = "";
    char memory[SIZE_TEXT_BYTES];
    char available[SIZE_TEXT_BYTES];

    size_text(needs->tensor_bytes, tensors);
    size_text(needs->memory_bytes, memory);
    size_text(needs->available_bytes, available);
    size_text(needs->viewed_bytes, viewed);
    size_text(needs->made_bytes, made);
    if (command->shards.given)
        snprintf(parts, sizeof(parts), " of ranks %s, %s shown where it is, %s made;",
                 shards_ranks_text(manifest, ranks, sizeof(ranks)), viewed, made);
    if (command->mmap)
        output_note("%.200s: %s in %" PRIu64 " tensors, %" PRIu32 " file%s;%s serving from the "
                    "page cache, taking %s of memory for %sheaders and side files",
                    model, tensors, needs->tensor_count, folder->weights_count,
                    folder->weights_count == 1 ? "" : "s", parts, memory,
                    needs->made_bytes > 0 ? "what is made, " : "");
    else
        output_note("%.200s: %s in %" PRIu64 " tensors, %" PRIu32 " file%s;%s taking %s of shared "
                    "memory, %s available",
                    model, tensors, needs->tensor_count, folder->weights_count,
                    folder->weights_count == 1 ? "" : "s", parts, memory, available);
}

/* Whoever starts a seed for SGLang's clients wants what they ask for: their layout, unless another
 * is named. A model that nobody wrote a plan for is served as it is, if it need not be cut. */
static enum rf_code open_for_sglang(const struct serve_command *command,
                                    const struct model_folder *folder, struct load_options *options,
                                    struct load_shards *shards, struct load **ret_load,
                                    struct rf_error *err)
{
    struct rf_error error;

    *shards = command->shards.load;
    shards->layout = "sglang";
    options->shards = shards;
    enum rf_code code = load_open(folder, options, ret_load, &error);
    if (code == RF_OK)
        return RF_OK;
    bool unknown = code == RF_E_UNSUPPORTED || code == RF_E_FORMAT;
    if (command->shards.given || !unknown) {
        *err = error;
        return code;
    }
    output_note("served in the layout of the checkpoint, as SGLang's is not known: %s", error.text);
    options->shards = NULL;
    return load_open(folder, options, ret_load, err);
}

static enum rf_code load_folder_open(const struct serve_command *command,
                                     const struct model_folder *folder, struct serve_loaded *loaded,
                                     struct rf_error *err)
{
    struct load *load = NULL;
    struct load_needs needs;
    struct load_shards shards;
    struct load_options options = {
        .memory = command->mmap ? LOAD_FILES : LOAD_MEMFD,
        .direct = command->direct,
        .threads = (unsigned)command->threads,
        .chunk_bytes = (uint32_t)command->chunk_bytes,
        .model_name = command->model_name,
        .shards = command->shards.given ? &command->shards.load : NULL,
        .progress = progress_add,
    };
    enum rf_code code = hash_parse(command->digest, &options.algorithm, err);

    if (code == RF_OK && command->sglang.start_seed && command->shard.layout == NULL)
        code = open_for_sglang(command, folder, &options, &shards, &load, err);
    else if (code == RF_OK)
        code = load_open(folder, &options, &load, err);
    if (code != RF_OK)
        return code;
    load_needs(load, &needs);
    snprintf(loaded->model, sizeof(loaded->model), "%s", load_manifest(load)->model);
    say_needs(command, &needs, folder, load_manifest(load), loaded->model);
    progress_begin(loaded->model, needs.load_bytes);
    code = load_run(load, &loaded->store, err);
    progress_end();
    load_close(load);
    loaded->source = command->mmap ? "page-cache" : "disk";
    loaded->from_files = true;
    loaded->viewed_bytes = needs.viewed_bytes;
    loaded->made_bytes = needs.made_bytes;
    return code;
}

static enum rf_code load_files(const struct serve_command *command, struct serve_loaded *loaded,
                               struct rf_error *err)
{
    struct model_folder folder;
    enum rf_code code = model_folder_open(command->model_path, &folder, err);

    if (code != RF_OK)
        return code;
    code = load_folder_open(command, &folder, loaded, err);
    model_folder_close(&folder);
    return code;
}

/* ---- from a seed ---- */

static void say_taking(const struct serve_command *command, const struct seeds *seeds)
{
    const struct manifest *manifest = seeds_manifest(seeds);
    uint64_t tensors = seeds_tensor_count(seeds);
    char bytes[SIZE_TEXT_BYTES];
    char available[SIZE_TEXT_BYTES];

    size_text(manifest_total_bytes(manifest), bytes);
    if (seeds_map(seeds, &command->transfer))
        output_note("%.200s: %s in %" PRIu64 " tensors from %s; sharing its memory%s",
                    manifest->model, bytes, tensors, command->from,
                    seeds->reshard != NULL ? " where slices lie there in one piece" : "");
    else
        output_note("%.200s: %s in %" PRIu64 " tensors from %s; taking %s of shared memory, %s "
                    "available",
                    manifest->model, bytes, tensors, command->from, bytes,
                    size_text(memory_available(), available));
}

static enum rf_code load_seed(const struct serve_command *command, struct serve_loaded *loaded,
                              struct rf_error *err)
{
    struct transfer_options options = command->transfer;
    const struct transfer_options *transfer = &options;
    struct remote_result result;
    struct seeds seeds;

    /* SGLang's users name models of the hub here, which need not be on this machine. */
    bool there = command->model_path != NULL && access(command->model_path, F_OK) == 0;
    if (there)
        options.model_path = command->model_path;
    enum rf_code code = seeds_open_list(command->from, transfer, &command->shard, &seeds, err);

    if (code == RF_OK) {
        const struct manifest *manifest = seeds_manifest(&seeds);

        say_taking(command, &seeds);
        snprintf(loaded->model, sizeof(loaded->model), "%s", manifest->model);
        progress_begin(loaded->model, manifest_total_bytes(manifest));
        code = seeds_take(&seeds, transfer, &loaded->store, &result, err);
        progress_end();
    }
    seeds_close(&seeds);
    if (code != RF_OK)
        return code;
    if (result.unverified[0] != '\0' && command->model_path != NULL && !there)
        output_note(
            "%s is no folder here: the seed's tensors were taken as they are, without their "
            "shapes and dtypes",
            command->model_path);
    if (result.unverified[0] != '\0')
        output_note("not verified: %s; digests are made of what came", result.unverified);
    loaded->source = command->from;
    loaded->verified = result.verified;
    snprintf(loaded->transport, sizeof(loaded->transport), "%s", result.transport);
    snprintf(loaded->reason, sizeof(loaded->reason), "%s", result.reason);
    return RF_OK;
}

/* ---- which of them ---- */

/* Whether another source may be better off: the seed is not there, not ready, full, or went
 * away. What is wrong with its bytes, or with the command line, must be seen. */
static bool may_fall_back(enum rf_code code)
{
    return code == RF_E_UNREACHABLE || code == RF_E_TIMEOUT || code == RF_E_CHANGED ||
           code == RF_E_NOMEM;
}

enum rf_code serve_load(const struct serve_command *command, struct serve_loaded *ret_loaded,
                        struct rf_error *err)
{
    bool falls_back = strcmp(command->load_format, "auto") == 0 && command->model_path != NULL;
    struct rf_error error;

    if (command->from == NULL)
        return load_files(command, ret_loaded, err);
    atomic_store_explicit(&ret_loaded->notices_cancel, true, memory_order_release);
    enum rf_code code = load_seed(command, ret_loaded, &error);
    atomic_store_explicit(&ret_loaded->notices_cancel, false, memory_order_release);
    if (code != RF_OK && falls_back && may_fall_back(code) && !signals_came()) {
        output_note("no weights from the seed (%s); loading %s instead", error.text,
                    command->model_path);
        return load_files(command, ret_loaded, err);
    }
    if (code != RF_OK && err != NULL)
        *err = error;
    return code;
}
