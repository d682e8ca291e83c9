/* `rfork inspect`: what a seed, folder or file holds. */
#include "base/size.h"
#include "cli/commands.h"
#include "cli/inspect.h"
#include "cli/jsonout.h"
#include "cli/output.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    AT_LOOK = offsetof(struct inspect_command, look),
    AT_SHARD = offsetof(struct inspect_command, shard),
};

static const struct option_spec inspect_options[] = {
    {.name = "tensors",
     .type = OPTION_FLAG,
     .offset = offsetof(struct inspect_command, tensors),
     .help = "List every tensor: name, dtype, shape, bytes; of a slice also where it lies in the "
             "whole, and what it is made of."},
    {.name = "digest",
     .type = OPTION_FLAG,
     .offset = offsetof(struct inspect_command, digest),
     .help = "Work out the root digest: reads every byte of a folder; waits for a seed that is "
             "still at it."},
    {.name = "json",
     .type = OPTION_FLAG,
     .offset = offsetof(struct inspect_command, json),
     .help = "Print one JSON object instead of lines."},
    LOOK_ROWS(AT_LOOK),
    {.type = OPTION_HEADING, .help = "Ranks that serve would hold of a DIR"},
    SHARD_ROW_TP(AT_SHARD),
    SHARD_ROW_EP(AT_SHARD),
    SHARD_ROW_RANKS(AT_SHARD),
    SHARD_ROW_LAYOUT(AT_SHARD),
    SHARD_ROW_PLAN(AT_SHARD),
};

static const struct command_spec inspect_spec = {
    .name = "inspect",
    .operands = "URL|DIR|FILE",
    .min_operands = 1,
    .max_operands = 1,
    .summary = "say what a seed, folder or file holds",
    .text =
        "Says what model a seed, a folder or a .safetensors file holds: identity, ranks, tensors, "
        "dtypes, files and root digest. Reads headers only, unless --digest is given.\n"
        "With --tp, --layout or --plan it says what a serve with these options would hold.\n",
    OPTION_ROWS(inspect_options),
    .examples = "  rfork inspect http://127.0.0.1:30000\n"
                "  rfork inspect --tensors --json models/llama\n"
                "  rfork inspect --digest model.safetensors\n"
                "  rfork inspect --tp 8 --layout sglang models/llama\n",
    .exits = "  0 done; 2 wrong command line; 3 no such file; 4 not a model, or not what\n"
             "  the plan says; 8 no seed answers; 9 a deadline passed; 13 no plan for this\n"
             "  architecture\n",
};

/* ---- for people ---- */

static const char *or_dash(const char *text)
{
    return text != NULL && text[0] != '\0' ? text : "-";
}

static void print_seed(const struct inspect *inspect)
{
    const struct instance_info *info = &inspect->subject.info;

    output_put("seed           %s, %s%s%s\n", client_url(inspect->subject.client), info->state,
               info->state_reason[0] != '\0' ? ": " : "", info->state_reason);
    output_put("instance       %s, rfork %s, host %s\n", info->instance_id, or_dash(info->version),
               or_dash(info->host_id));
    output_put("transports    ");
    for (uint32_t i = 0; i < info->endpoint_count; i++)
        output_put("%s %s %s", i > 0 ? "," : "", info->endpoints[i].transport,
                   info->endpoints[i].address);
    output_put("%s\n", info->endpoint_count == 0 ? " none" : "");
    if (info->refused_transports[0] != '\0')
        output_put("not offered    %s\n", info->refused_transports);
}

static void print_dtypes(const struct inspect *inspect)
{
    const char *between = "";
    char text[SIZE_TEXT_BYTES];

    output_put("dtypes         ");
    for (unsigned i = 0; i < RF_DTYPE_COUNT; i++) {
        const struct subject_dtype *dtype = &inspect->dtypes[i];

        if (dtype->tensors == 0)
            continue;
        output_put("%s%s: %" PRIu64 " tensor%s, %s", between, rf_dtype_name((enum rf_dtype)i),
                   dtype->tensors, dtype->tensors == 1 ? "" : "s", size_text(dtype->bytes, text));
        between = "; ";
    }
    output_put("%s\n", inspect->tensors == 0 ? "none" : "");
}

static void print_files(const struct manifest *manifest)
{
    char bytes[SIZE_TEXT_BYTES];

    for (uint32_t i = 0; i < manifest->file_count; i++)
        output_put("%-15s%s, %s\n",
                   manifest->files[i].kind == FILE_WEIGHTS ? "weight file" : "side file",
                   manifest->files[i].name, size_text(manifest->files[i].bytes, bytes));
}

static void inspect_lines(const struct inspect *inspect)
{
    static const char *const stages[] = {"checkpoint", "fused", "processed"};
    const struct manifest *manifest = inspect->subject.manifest;
    char bytes[SIZE_TEXT_BYTES];

    output_put("model          %s (%s)\n", manifest->model,
               manifest->architecture[0] != '\0' ? manifest->architecture : "unknown architecture");
    if (inspect->subject.client != NULL)
        print_seed(inspect);
    else
        output_put("path           %s\n", inspect->subject.text);
    output_put("stage          %s, layout %s, quantisation %s, weight version %" PRIu64 "\n",
               manifest->stage < STAGE_COUNT ? stages[manifest->stage] : "?", manifest->layout,
               or_dash(manifest->quantisation), manifest->weight_version);
    output_put("tensors        %" PRIu64 ", %s\n", inspect->tensors,
               size_text(manifest_total_bytes(manifest), bytes));
    print_dtypes(inspect);
    inspect_print_ranks(inspect);
    print_files(manifest);
    output_put("manifest       %s\n", inspect->id);
    if (inspect->root[0] != '\0')
        output_put("root digest    %s\n", inspect->root);
    else if (inspect->subject.sglang != NULL)
        output_put("root digest    none: asked in SGLang's way, the seed has no digests\n");
    else
        output_put("root digest    not made yet: --digest %s\n",
                   inspect->subject.client != NULL ? "waits for it" : "reads all bytes");
    if (inspect->command->tensors)
        inspect_print_tensors(manifest);
}

/* ---- for programs ---- */

static void json_seed(const struct inspect *inspect, struct jsonout *out)
{
    const struct instance_info *info = &inspect->subject.info;

    jsonout_text(out, "url", client_url(inspect->subject.client));
    jsonout_text(out, "state", info->state);
    jsonout_text(out, "state_reason", info->state_reason);
    jsonout_text(out, "instance_id", info->instance_id);
    jsonout_text(out, "version", info->version);
    jsonout_text(out, "host_id", info->host_id);
    jsonout_u64(out, "digest_chunks_known", info->digest_chunks_known);
    jsonout_u64(out, "digest_chunks_total", info->digest_chunks_total);
    jsonout_open(out, "endpoints", '[');
    for (uint32_t i = 0; i < info->endpoint_count; i++) {
        jsonout_open(out, NULL, '{');
        jsonout_text(out, "transport", info->endpoints[i].transport);
        jsonout_text(out, "address", info->endpoints[i].address);
        jsonout_close(out, '}');
    }
    jsonout_close(out, ']');
    jsonout_text(out, "refused_transports", info->refused_transports);
}

static void json_dtypes(const struct inspect *inspect, struct jsonout *out)
{
    jsonout_open(out, "dtypes", '{');
    for (unsigned i = 0; i < RF_DTYPE_COUNT; i++) {
        if (inspect->dtypes[i].tensors == 0)
            continue;
        jsonout_open(out, rf_dtype_name((enum rf_dtype)i), '{');
        jsonout_u64(out, "tensors", inspect->dtypes[i].tensors);
        jsonout_u64(out, "bytes", inspect->dtypes[i].bytes);
        jsonout_close(out, '}');
    }
    jsonout_close(out, '}');
}

/* manifest_json() knows all of ranks, tensors and files; here is what belongs to this view of
 * it. */
static enum rf_code inspect_json(const struct inspect *inspect, struct rf_error *err)
{
    const struct manifest *manifest = inspect->subject.manifest;
    struct jsonout out = {.comma = false};

    jsonout_open(&out, NULL, '{');
    jsonout_text(&out, "kind", inspect->subject.client != NULL ? "seed" : "files");
    if (inspect->subject.client != NULL)
        json_seed(inspect, &out);
    else
        jsonout_text(&out, "path", inspect->subject.text);
    jsonout_text(&out, "model", manifest->model);
    jsonout_text(&out, "architecture", manifest->architecture);
    jsonout_u64(&out, "tensors", inspect->tensors);
    jsonout_u64(&out, "bytes", manifest_total_bytes(manifest));
    json_dtypes(inspect, &out);
    jsonout_u64(&out, "ranks", manifest->rank_count);
    inspect_json_ranks(inspect, &out);
    jsonout_u64(&out, "files", manifest->file_count);
    jsonout_text(&out, "manifest_id", inspect->id);
    jsonout_text_or_null(&out, "root_digest", inspect->root);
    if (inspect->command->tensors) {
        buf_printf(&out.buf, ", \"manifest\": ");
        manifest_json(manifest, MANIFEST_NONE, &out.buf);
    }
    jsonout_close(&out, '}');
    return jsonout_print(&out, err);
}

/* ---- the command ---- */

static enum rf_code inspect_run(struct inspect *inspect, struct rf_error *err)
{
    const struct manifest *manifest = inspect->subject.manifest;
    uint8_t root[HASH_MAX_BYTES];

    inspect->tensors = subject_dtypes(manifest, inspect->dtypes);
    hash_text(manifest->algorithm, manifest->id, inspect->id);
    if (inspect->subject.client != NULL)
        snprintf(inspect->root, sizeof(inspect->root), "%s", inspect->subject.info.root_digest);
    if (inspect->command->digest && inspect->root[0] == '\0') {
        enum rf_code code = subject_root(&inspect->subject, root, err);

        if (code != RF_OK)
            return code;
        hash_text(manifest->algorithm, root, inspect->root);
    }
    if (inspect->command->json)
        return inspect_json(inspect, err);
    inspect_lines(inspect);
    return RF_OK;
}

/* What no single option can check; prints what is wrong. OPTIONS_GO_ON or an exit code. */
static int inspect_check(const struct inspect_command *command, const char *text,
                         struct shards *ret_shards)
{
    struct rf_error error;

    int exit_code = ask_check("inspect", &command->look.ask);

    if (exit_code != OPTIONS_GO_ON)
        return exit_code;
    if (subject_is_url(text) && shards_asked(&command->shard))
        return output_usage("inspect", "inspect: --tp, --ep, --ranks, --layout and --plan are "
                                       "about a folder: a seed has the ranks that it has");
    if (shards_resolve(&command->shard, ret_shards, &error) == RF_OK)
        return OPTIONS_GO_ON;
    return error.code == RF_E_INVAL ? output_usage("inspect", "inspect: %s", error.text)
                                    : output_error(&error);
}

int cmd_inspect(int argc, char **argv)
{
    struct inspect_command command = {.json = false};
    struct inspect inspect = {.command = &command};
    struct shards shards = {.given = false};
    struct rf_error error;
    unsigned operands;
    int exit_code = options_parse(&inspect_spec, argc, argv, &command, &operands);

    if (exit_code == OPTIONS_GO_ON)
        exit_code = inspect_check(&command, argv[1], &shards);
    if (exit_code != OPTIONS_GO_ON)
        return exit_code;
    enum rf_code code = shards.given
                            ? subject_open_shards(argv[1], &shards.load, &inspect.subject, &error)
                            : subject_open(argv[1], &command.look, NULL, &inspect.subject, &error);
    if (code == RF_OK)
        code = inspect_run(&inspect, &error);
    subject_close(&inspect.subject);
    shards_free(&shards);
    return output_end(code != RF_OK ? output_error(&error) : RF_OK);
}
