/* `rfork verify`: recomputes digests, of a folder from its files, of a seed from what its
 * transport delivers. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/subject.h"
#include "cli/transfer.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct verify_command {
    const char *against;
    uint64_t chunk_bytes;
    bool json;
    struct transfer_options transfer;
};

enum {
    AT_TRANSFER = offsetof(struct verify_command, transfer),
    AT_ASK = offsetof(struct verify_command, transfer.ask),
};

static const struct option_spec verify_options[] = {
    {.name = "against",
     .type = OPTION_TEXT,
     .arg = "DIGEST|URL|DIR",
     .offset = offsetof(struct verify_command, against),
     .help = "Fail unless the root digest is this one, or that of this seed or folder."},
    TRANSFER_ROW_TRANSPORT(AT_TRANSFER),
    TRANSFER_ROW_CONNECTIONS(AT_TRANSFER),
    TRANSFER_ROW_RETRIES(AT_TRANSFER),
    TRANSFER_ROW_TIMEOUT(AT_TRANSFER),
    TRANSFER_ROW_WAIT_READY(AT_TRANSFER),
    ASK_ROW_SEED_API(AT_ASK),
    ASK_ROW_TE_DATA_HOST(AT_ASK),
    {.name = "chunk-size",
     .type = OPTION_SIZE,
     .arg = "SIZE",
     .fallback = "8MiB",
     .min = MANIFEST_MIN_CHUNK_BYTES,
     .max = MANIFEST_MAX_CHUNK_BYTES,
     .offset = offsetof(struct verify_command, chunk_bytes),
     .help = "Chunk size that the root digest of a folder is made with. That of --against where it "
             "is a seed."},
    {.name = "json",
     .type = OPTION_FLAG,
     .offset = offsetof(struct verify_command, json),
     .help = "Print one JSON object instead of lines."},
};

static const struct command_spec verify_spec = {
    .name = "verify",
    .operands = "URL|DIR|FILE",
    .min_operands = 1,
    .max_operands = 1,
    .summary = "recompute the digests of a seed or folder",
    .text =
        "Of a seed: takes every byte by the transport that a fork would use, compares each chunk "
        "with the seed's digests, and keeps nothing. Of a folder or file: reads every byte and "
        "makes the digests. Prints the root digest, which is equal for equal weights, whatever "
        "files they are in.\n",
    OPTION_ROWS(verify_options),
    .examples = "  rfork verify http://10.0.0.5:30000\n"
                "  rfork verify models/llama --against http://10.0.0.5:30000\n"
                "  rfork verify --transport tcp --json http://10.0.0.5:30000\n",
    .exits = "  0 all digests hold; 2 wrong command line; 4 not a model; 6 another root\n"
             "  digest than --against; 7 bytes do not match their digest; 8 no seed answers\n",
};

struct verify {
    const struct verify_command *command;
    const char *text;
    uint64_t bytes;
    double seconds;
    char root[HASH_TEXT_BYTES];
    char path[REMOTE_REASON_BYTES + 128]; /* "by tcp: ..." */
    char transport[TRANSPORT_NAME_BYTES + 8];
    char model[256];
};

/* ---- a seed ---- */

static enum rf_code drop_dest(const struct manifest_rank *rank, int fd, struct fork_dest *dest,
                              struct rf_error *err)
{
    const struct fork_segment whole = {.bytes = rank->stream_bytes, .fd = fd};
    enum rf_code code = whole.bytes > 0 ? fork_dest_add(dest, &whole, err) : RF_OK;

    return code == RF_OK ? fork_dest_finish(dest, rank->stream_bytes, err) : code;
}

/* Every byte is received and hashed, and written to where nothing is kept: as much memory as a
 * fork into files needs, whatever the model's size. */
static enum rf_code drop_all(struct remote *remote, struct remote_result *ret_result,
                             struct rf_error *err)
{
    const struct manifest *manifest = remote_manifest(remote);
    rf_autoclose int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    rf_autofree struct fork_dest *dests = calloc(manifest->rank_count, sizeof(*dests));
    enum rf_code code = RF_OK;

    if (fd < 0)
        return rf_fail_sys(err, "open /dev/null");
    if (dests == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks", manifest->rank_count);
    for (uint32_t i = 0; code == RF_OK && i < manifest->rank_count; i++)
        code = drop_dest(&manifest->ranks[i], fd, &dests[i], err);
    if (code == RF_OK)
        code = remote_fork_dests(remote, dests, ret_result, err);
    for (uint32_t i = 0; i < manifest->rank_count; i++)
        fork_dest_free(&dests[i]);
    return code;
}

static enum rf_code map_all(struct remote *remote, struct remote_result *ret_result,
                            struct rf_error *err)
{
    struct store *store = NULL;
    enum rf_code code = remote_fork_memory(remote, REMOTE_SHARE, true, &store, ret_result, err);

    if (code == RF_OK)
        store_destroy(store);
    return code;
}

static void note_result(struct verify *verify, const struct remote *remote,
                        const struct remote_result *result)
{
    const struct instance_info *info = remote_info(remote);

    transfer_root_text(remote, result, verify->root);
    if (verify->root[0] == '\0')
        snprintf(verify->root, sizeof(verify->root), "%s", info->root_digest);
    verify->bytes = result->bytes;
    verify->seconds = result->seconds;
    snprintf(verify->transport, sizeof(verify->transport), "%s", result->transport);
    snprintf(verify->path, sizeof(verify->path), " by %s: %s", result->transport, result->reason);
    snprintf(verify->model, sizeof(verify->model), "%s", info->model);
}

static enum rf_code verify_seed(struct verify *verify, struct rf_error *err)
{
    const struct transfer_options *transfer = &verify->command->transfer;
    struct remote_options options;
    struct remote_result result = {.bytes = 0};
    struct remote *remote = NULL;

    transfer_remote_options(transfer, &options);
    enum rf_code code = remote_open(verify->text, &options, transfer->wait_ready_ms, &remote, err);
    if (code != RF_OK)
        return code;
    if (!remote_has_digests(remote)) {
        remote_close(remote);
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "%s is asked in SGLang's way, which knows no digests: there is nothing to "
                       "verify it by",
                       verify->text);
    }
    progress_begin(verify->text, manifest_total_bytes(remote_manifest(remote)));
    code = transfer_maps(transfer, remote) ? map_all(remote, &result, err)
                                           : drop_all(remote, &result, err);
    progress_end();
    if (code == RF_OK)
        note_result(verify, remote, &result);
    remote_close(remote);
    return code;
}

static struct look_options look_of(const struct verify_command *command)
{
    return (struct look_options){.timeout_ms = command->transfer.timeout_ms,
                                 .ask = command->transfer.ask};
}

/* ---- a folder ---- */

static enum rf_code verify_folder(struct verify *verify, enum hash_algorithm algorithm,
                                  uint32_t chunk_bytes, struct rf_error *err)
{
    struct subject subject;
    uint8_t root[HASH_MAX_BYTES];
    uint64_t start_ns = clock_now_ns();
    struct look_options look = look_of(verify->command);
    enum rf_code code = subject_open_as(verify->text, &look, algorithm, chunk_bytes, &subject, err);

    if (code == RF_OK)
        code = subject_root(&subject, root, err);
    if (code == RF_OK) {
        hash_text(subject.manifest->algorithm, root, verify->root);
        verify->bytes = manifest_total_bytes(subject.manifest);
        verify->seconds = clock_seconds(start_ns, clock_now_ns());
        snprintf(verify->model, sizeof(verify->model), "%s", subject.manifest->model);
    }
    subject_close(&subject);
    return code;
}

/* ---- against what ---- */

struct against {
    char root[HASH_TEXT_BYTES];
    enum hash_algorithm algorithm; /* 0: no matter */
    uint32_t chunk_bytes;          /* 0: no matter */
};

/* "xxh3-128:0123...", in the case that hash_text() writes. */
static bool parse_digest(const char *text, struct against *against)
{
    const char *colon = strchr(text, ':');
    char name[16];

    if (colon == NULL || (size_t)(colon - text) >= sizeof(name))
        return false;
    snprintf(name, sizeof(name), "%.*s", (int)(colon - text), text);
    if (hash_parse(name, &against->algorithm, NULL) != RF_OK)
        return false;
    size_t digits = strspn(colon + 1, "0123456789abcdef");
    if (digits != (size_t)2 * hash_bytes(against->algorithm) || colon[1 + digits] != '\0')
        return false;
    snprintf(against->root, sizeof(against->root), "%s", text);
    return true;
}

static enum rf_code find_against(const struct verify_command *command, struct against *against,
                                 struct rf_error *err)
{
    struct subject subject;
    uint8_t root[HASH_MAX_BYTES];

    against->chunk_bytes = (uint32_t)command->chunk_bytes;
    if (command->against == NULL || parse_digest(command->against, against))
        return RF_OK;
    struct look_options look = look_of(command);
    enum rf_code code =
        subject_open_as(command->against, &look, 0, against->chunk_bytes, &subject, err);
    if (code == RF_OK)
        code = subject_root(&subject, root, err);
    if (code == RF_OK) {
        against->algorithm = subject.manifest->algorithm;
        against->chunk_bytes = subject.manifest->chunk_bytes;
        hash_text(against->algorithm, root, against->root);
    }
    subject_close(&subject);
    return code;
}

/* ---- the command ---- */

static enum rf_code say(const struct verify *verify, const struct against *against, bool same,
                        struct rf_error *err)
{
    struct jsonout out = {.comma = false};
    char bytes[SIZE_TEXT_BYTES];
    char seconds[SIZE_TEXT_BYTES];

    if (!verify->command->json) {
        output_line("%s  %s", verify->root, verify->text);
        output_line("%s %s in %s%s", size_text(verify->bytes, bytes),
                    verify->path[0] != '\0' ? "verified" : "read",
                    size_seconds_text(verify->seconds, seconds), verify->path);
        return RF_OK;
    }
    jsonout_open(&out, NULL, '{');
    jsonout_text(&out, "source", verify->text);
    jsonout_text(&out, "model", verify->model);
    jsonout_text_or_null(&out, "root_digest", verify->root);
    jsonout_bool(&out, "verified", true);
    jsonout_text_or_null(&out, "against", against->root);
    jsonout_bool(&out, "equal", same);
    jsonout_u64(&out, "bytes", verify->bytes);
    jsonout_double(&out, "seconds", verify->seconds);
    jsonout_text_or_null(&out, "transport", verify->transport);
    jsonout_text_or_null(&out, "state", subject_is_url(verify->text) ? "ready" : NULL);
    jsonout_close(&out, '}');
    return jsonout_print(&out, err);
}

static enum rf_code verify_run(struct verify *verify, struct rf_error *err)
{
    struct against against = {.algorithm = 0};
    enum rf_code code = find_against(verify->command, &against, err);

    if (code == RF_OK)
        code = subject_is_url(verify->text)
                   ? verify_seed(verify, err)
                   : verify_folder(verify, against.algorithm, against.chunk_bytes, err);
    if (code != RF_OK)
        return code;
    bool same = against.root[0] == '\0' || strcmp(against.root, verify->root) == 0;
    code = say(verify, &against, same, err);
    if (code == RF_OK && !same)
        code = rf_fail(err, RF_E_MISMATCH, "%s: root digest %s, wanted %s", verify->text,
                       verify->root, against.root);
    return code;
}

int cmd_verify(int argc, char **argv)
{
    struct verify_command command = {.json = false};
    struct verify verify = {.command = &command};
    struct rf_error error;
    unsigned operands;
    int exit_code = options_parse(&verify_spec, argc, argv, &command, &operands);

    if (exit_code == OPTIONS_GO_ON && command.chunk_bytes % MANIFEST_LEAF_BYTES != 0)
        exit_code =
            output_usage("verify", "verify: --chunk-size: %" PRIu64 " is no multiple of 64KiB",
                         command.chunk_bytes);
    if (exit_code == OPTIONS_GO_ON)
        exit_code = transfer_check("verify", &command.transfer);
    if (exit_code != OPTIONS_GO_ON)
        return exit_code;
    verify.text = argv[1];
    enum rf_code code = verify_run(&verify, &error);
    return output_end(code != RF_OK ? output_error(&error) : RF_OK);
}
