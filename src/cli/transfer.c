#include "cli/transfer.h"

#include "cli/host.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/signals.h"

#include <string.h>

static const struct {
    const char *name;
    enum remote_seed_api api;
} seed_apis[] = {
    {"auto", REMOTE_API_AUTO},
    {"rfork", REMOTE_API_RFORK},
    {"sglang", REMOTE_API_SGLANG},
};

enum { SEED_API_COUNT = sizeof(seed_apis) / sizeof(seed_apis[0]) };

/* Its place in the list; SEED_API_COUNT if it is not there. */
static unsigned find_seed_api(const char *name)
{
    unsigned i = 0;

    while (i < SEED_API_COUNT && strcmp(seed_apis[i].name, name) != 0)
        i++;
    return i;
}

int ask_check(const char *command, const struct ask_options *options)
{
    if (find_seed_api(options->seed_api) == SEED_API_COUNT)
        return output_usage(command, "%s: --seed-api: %.40s is none of auto, rfork, sglang",
                            command, options->seed_api);
    return OPTIONS_GO_ON;
}

enum remote_seed_api ask_api(const struct ask_options *options)
{
    return seed_apis[find_seed_api(options->seed_api)].api;
}

int transfer_check(const char *command, const struct transfer_options *options)
{
    const struct transport *transport;
    struct rf_error error;

    if (options->verify && options->no_verify)
        return output_usage(command, "%s: --verify and --no-verify contradict each other", command);
    if (options->timeout_ms == 0)
        return output_usage(command, "%s: --timeout: 0 leaves no time at all", command);
    if (strcmp(options->transport, "auto") != 0 &&
        transport_find(options->transport, &transport, &error) != RF_OK)
        return output_usage(command, "%s: --transport: %s", command, error.text);
    return ask_check(command, &options->ask);
}

void transfer_remote_options(const struct transfer_options *options,
                             struct remote_options *ret_options)
{
    *ret_options = (struct remote_options){
        .transport = options->transport,
        .connections = (unsigned)options->connections,
        .verify = !options->no_verify,
        .timeout_ms = options->timeout_ms,
        .retries = (uint32_t)options->retries,
        .cancel = signals_flag(),
        .cancel_fd = signals_fd(),
        .progress = progress_set,
        .seed_api = ask_api(&options->ask),
        .te_data_hosts = options->ask.te_data_hosts,
        .model_path = options->model_path,
    };
}

bool transfer_maps(const struct transfer_options *options, const struct remote *remote)
{
    return !options->copy && remote_choice(remote)->transport->map != NULL;
}

const char *transfer_root_text(const struct remote *remote, const struct remote_result *result,
                               char out[HASH_TEXT_BYTES])
{
    if (!result->root_known) {
        out[0] = '\0';
        return out;
    }
    return hash_text(remote_manifest(remote)->algorithm, result->root, out);
}

void transfer_json(const struct remote *remote, const struct manifest *manifest,
                   const struct remote_result *result, struct jsonout *out)
{
    char root[HASH_TEXT_BYTES];
    uint64_t tensors = 0;

    for (uint32_t i = 0; i < manifest->rank_count; i++)
        tensors += manifest->ranks[i].tensor_count;

    jsonout_text(out, "url", client_url(remote_client(remote)));
    jsonout_text(out, "model", manifest->model);
    jsonout_u64(out, "tensors", tensors);
    jsonout_u64(out, "ranks", manifest->rank_count);
    jsonout_u64(out, "bytes", result->bytes);
    jsonout_u64(out, "copied_bytes", result->mapped ? result->copied_bytes : result->bytes);
    jsonout_double(out, "seconds", result->seconds);
    /* Of a mapping no byte moved: a rate would be an invention. */
    if (result->mapped || result->seconds <= 0)
        jsonout_null(out, "bytes_per_s");
    else
        jsonout_double(out, "bytes_per_s", (double)result->bytes / result->seconds);
    jsonout_text(out, "transport", result->transport);
    jsonout_text(out, "reason", result->reason);
    jsonout_bool(out, "mapped", result->mapped);
    jsonout_bool(out, "verified", result->verified);
    jsonout_text_or_null(out, "unverified_reason", result->unverified);
    jsonout_text_or_null(out, "root_digest", transfer_root_text(remote, result, root));
    jsonout_u64(out, "chunks", result->chunks);
    jsonout_u64(out, "chunks_retried", result->chunks_retried);
    jsonout_u64(out, "connections", result->connections);
    jsonout_u64(out, "wire_bytes", result->wire_bytes);
    jsonout_u64(out, "peak_resident_bytes", host_peak_resident_bytes());
}
