/* `rfork serve`: its command line. serve.c is what it does, serve_load.c where the weights come
 * from. */
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/serve.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    AT_TRANSFER = offsetof(struct serve_command, transfer),
    AT_ASK = offsetof(struct serve_command, transfer.ask),
    AT_SHARD = offsetof(struct serve_command, shard),
    AT_SGLANG = offsetof(struct serve_command, sglang),
};

static const struct option_spec serve_options[] = {
    {.type = OPTION_HEADING, .help = "Where the weights come from"},
    {.name = "model-path",
     .aliases = "model",
     .type = OPTION_TEXT,
     .arg = "DIR|FILE",
     .offset = offsetof(struct serve_command, model_path),
     .help = "A Hugging Face folder, or one .safetensors file."},
    {.name = "from",
     .type = OPTION_TEXT,
     .arg = "URL[,URL...]",
     .offset = offsetof(struct serve_command, from),
     .help = "A running seed to fork from: http://HOST:PORT. Several, with commas between them: "
             "seeds that hold different ranks of one model."},
    {.name = "load-format",
     .type = OPTION_TEXT,
     .arg = "auto|safetensors|remote_instance",
     .fallback = "auto",
     .offset = offsetof(struct serve_command, load_format),
     .help = "remote_instance: from a seed. safetensors: from --model-path. auto: from the seed if "
             "one is given and answers, else from --model-path."},
    {.type = OPTION_HEADING, .help = "Loading from disk"},
    {.name = "mmap",
     .type = OPTION_FLAG,
     .offset = offsetof(struct serve_command, mmap),
     .help = "Serve straight from the page cache: no load time and no memory of our own, but no "
             "map transport, and serving ends when a file changes."},
    {.name = "direct",
     .type = OPTION_SWITCH,
     .fallback = "yes",
     .offset = offsetof(struct serve_command, direct),
     .help = "Read past the page cache where the file system can."},
    {.name = "threads",
     .type = OPTION_COUNT,
     .arg = "N",
     .min = 1,
     .max = 256,
     .offset = offsetof(struct serve_command, threads),
     .help = "Threads that read files. Up to 8 if not given."},
    {.name = "chunk-size",
     .type = OPTION_SIZE,
     .arg = "SIZE",
     .fallback = "8MiB",
     .min = MANIFEST_MIN_CHUNK_BYTES,
     .max = MANIFEST_MAX_CHUNK_BYTES,
     .offset = offsetof(struct serve_command, chunk_bytes),
     .help = "Unit of transfer and digest, a multiple of 64KiB. A fork has its seed's."},
    {.name = "digest",
     .type = OPTION_CHOICE,
     .arg = "xxh3-128|sha256",
     .fallback = "xxh3-128",
     .offset = offsetof(struct serve_command, digest),
     .help = "xxh3-128 finds errors; sha256 is for readers who do not trust the path. A fork has "
             "its seed's."},
    {.name = "model-name",
     .aliases = "served-model-name",
     .type = OPTION_TEXT,
     .arg = "NAME",
     .offset = offsetof(struct serve_command, model_name),
     .help = "What the model is called. The folder's name if not given; a fork has its seed's."},
    {.type = OPTION_HEADING, .help = "Ranks"},
    SHARD_ROW_TP(AT_SHARD),
    SHARD_ROW_EP(AT_SHARD),
    SHARD_ROW_RANKS(AT_SHARD),
    SHARD_ROW_LAYOUT(AT_SHARD),
    SHARD_ROW_PLAN(AT_SHARD),
    {.type = OPTION_HEADING, .help = "Forking from a seed"},
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
    {.type = OPTION_HEADING, .help = "Serving"},
    {.name = "host",
     .type = OPTION_TEXT,
     .arg = "ADDRESS",
     .fallback = "127.0.0.1",
     .offset = offsetof(struct serve_command, host),
     .help =
         "Address to listen on; 0.0.0.0 or :: for all. Whoever reaches it can take the weights."},
    {.name = "port",
     .type = OPTION_COUNT,
     .arg = "PORT",
     .fallback = "30000",
     .max = 65535,
     .offset = offsetof(struct serve_command, port),
     .help = "Of the HTTP side; 0 takes a free one and prints it."},
    {.name = "data-port",
     .type = OPTION_COUNT,
     .arg = "PORT",
     .fallback = "0",
     .max = 65535,
     .offset = offsetof(struct serve_command, data_port),
     .help = "Of the tcp transport; 0 takes a free one, which readers are told."},
    {.name = "te-port",
     .type = OPTION_COUNT,
     .arg = "PORT",
     .fallback = "0",
     .max = UINT16_MAX - 1,
     .offset = offsetof(struct serve_command, te_port),
     .help = "Of TransferEngine's handshake; its data plane has the next one. 0 takes free ones, "
             "which readers are told."},
    {.name = "socket",
     .type = OPTION_TEXT,
     .arg = "PATH",
     .offset = offsetof(struct serve_command, socket),
     .help = "Of the map transport, for readers in containers that share a folder with us. An "
             "abstract name if not given."},
    {.name = "max-readers",
     .type = OPTION_COUNT,
     .arg = "N",
     .fallback = "256",
     .min = 1,
     .max = 100000,
     .offset = offsetof(struct serve_command, max_readers),
     .help = "How many may fork at a time; more are told to come back."},
    {.name = "drain-timeout",
     .type = OPTION_DURATION,
     .arg = "TIME",
     .fallback = "30s",
     .offset = offsetof(struct serve_command, drain_timeout_ms),
     .help = "How long SIGTERM leaves readers to finish."},
    {.name = "json",
     .type = OPTION_FLAG,
     .offset = offsetof(struct serve_command, json),
     .help = "Print the ready line as a JSON object."},
    {.type = OPTION_HEADING,
     .help = "As SGLang spells it; its other arguments are accepted, and named if ignored"},
    SGLANG_ROW_SEED_IP(AT_SGLANG),
    SGLANG_ROW_SEED_PORT(AT_SGLANG),
    SGLANG_ROW_BACKEND(AT_SGLANG),
    SGLANG_ROW_GROUP_PORTS(AT_SGLANG),
    SGLANG_ROW_START_SEED(AT_SGLANG),
    SGLANG_ROW_BOOTSTRAP_PORT(AT_SGLANG),
    SGLANG_ROW_MEMORY_SAVER(AT_SGLANG),
    SGLANG_ROW_NNODES(AT_SGLANG),
    SGLANG_ROW_NODE_RANK(AT_SGLANG),
    SGLANG_ROW_DIST_INIT_ADDR(AT_SGLANG),
    SGLANG_ROW_NODE_HOSTS(AT_SGLANG),
    SGLANG_ROW_INFO_PORT(AT_SGLANG),
    SGLANG_ROW_WAIT_NODES(AT_SGLANG),
    SGLANG_ROW_DTYPE(AT_SGLANG),
    SGLANG_ROW_QUANTIZATION(AT_SGLANG),
};

static const struct command_spec serve_spec = {
    .name = "serve",
    .operands = "",
    .summary = "hold a model in memory and let new instances fork it",
    .text =
        "Holds a model in memory and lets new instances take it from there. The model comes from "
        "disk (--model-path) or from another instance (--from); either way it can be forked "
        "the moment it is complete, when a line starting with \"rfork: ready\" is printed.\n"
        "With --tp a checkpoint is cut into tensor-parallel ranks: slices in one piece are shown "
        "where they are, others are put together while the files are read, and no byte is held "
        "twice. With --from too: each rank takes just its slices, from the seed's ranks that have "
        "them, however the seed is cut.\n"
        "SIGTERM or Ctrl-C: readers may finish, then it ends. A second one ends it at once.\n",
    OPTION_ROWS(serve_options),
    .foreign = &sglang_foreign,
    .examples = "  rfork serve --model-path models/all-MiniLM-L6-v2\n"
                "  rfork serve --model-path models/llama --host 0.0.0.0 --mmap\n"
                "  rfork serve --model-path models/llama --tp 8 --ranks 0-3 --layout sglang\n"
                "  rfork serve --from http://10.0.0.5:30000 --port 30001\n"
                "  rfork serve --from http://10.0.0.5:30000 --port 30001 --tp 4\n"
                "  rfork serve --load-format remote_instance \\\n"
                "      --remote-instance-weight-loader-seed-instance-ip 10.0.0.5 \\\n"
                "      --remote-instance-weight-loader-seed-instance-service-port 30000 \\\n"
                "      --remote-instance-weight-loader-backend transfer_engine\n",
    .exits = "  0 ended by SIGTERM or Ctrl-C; 2 wrong command line; 3 port taken, no such\n"
             "  file; 4 not a model, or not what the plan says; 8 the seed does not answer;\n"
             "  11 too little memory; 12 interrupted before it was ready; 13 no plan for this\n"
             "  architecture, or an argument of SGLang that cannot be honoured; 14 a file\n"
             "  changed while it was served\n",
};

/* ---- from the command line to a plan ---- */

static int serve_check_source(const struct serve_command *command)
{
    bool files = strcmp(command->load_format, "safetensors") == 0;

    if (files && command->from != NULL)
        return output_usage("serve", "serve: --load-format safetensors reads from disk, --from "
                                     "from a seed: drop one of them");
    if (files && command->model_path == NULL)
        return output_usage("serve", "serve: --load-format safetensors needs --model-path");
    if (command->from == NULL && command->model_path == NULL)
        return output_usage("serve",
                            "serve: nothing to serve: %s%sgive --model-path DIR, or --from URL "
                            "to fork from a seed",
                            command->sglang.missing,
                            command->sglang.missing[0] != '\0' ? "; " : "");
    if (command->mmap && command->model_path == NULL)
        return output_usage("serve", "serve: --mmap is about files: it needs --model-path");
    if (command->model_name != NULL && command->model_path == NULL)
        return output_usage("serve", "serve: --model-name is about files: a fork has its seed's "
                                     "name");
    if (command->chunk_bytes % MANIFEST_LEAF_BYTES != 0)
        return output_usage("serve", "serve: --chunk-size: %" PRIu64 " is no multiple of 64KiB",
                            command->chunk_bytes);
    return transfer_check("serve", &command->transfer);
}

static int serve_check(struct serve_command *command)
{
    struct rf_error error;
    int exit_code = sglang_check(command);

    if (exit_code == OPTIONS_GO_ON)
        exit_code = serve_check_source(command);
    if (exit_code != OPTIONS_GO_ON)
        return exit_code;
    if (shards_resolve(&command->shard, &command->shards, &error) == RF_OK)
        return OPTIONS_GO_ON;
    return error.code == RF_E_INVAL ? output_usage("serve", "serve: %s", error.text)
                                    : output_error(&error);
}

/* ---- the command ---- */

int cmd_serve(int argc, char **argv)
{
    struct serve_command command = {.sglang.missing = ""};
    unsigned operands;
    int exit_code = options_parse(&serve_spec, argc, argv, &command, &operands);

    if (exit_code == OPTIONS_GO_ON)
        exit_code = serve_check(&command);
    if (exit_code == OPTIONS_GO_ON)
        exit_code = serve_run(&command);
    shards_free(&command.shards);
    sglang_free(&command.sglang);
    return exit_code;
}
