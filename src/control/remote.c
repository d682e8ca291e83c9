#include "control/remote.h"

#include "base/log.h"
#include "base/size.h"
#include "control/remote_internal.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    REMOTE_DEFAULT_TIMEOUT_MS = 10000,
    REMOTE_READY_POLL_MS = 200, /* between two looks at a seed that is still loading */
};

static uint64_t remote_timeout_ms(const struct remote *remote)
{
    return remote->options->timeout_ms > 0 ? remote->options->timeout_ms
                                           : REMOTE_DEFAULT_TIMEOUT_MS;
}

static bool remote_cancelled(const struct remote *remote)
{
    const atomic_bool *cancel = remote->options->cancel;

    return cancel != NULL && atomic_load_explicit(cancel, memory_order_acquire);
}

/* A pause that cancelling ends. */
static void remote_pause(const struct remote *remote, int ms)
{
    struct pollfd wake = {.fd = remote->options->cancel_fd, .events = POLLIN};

    (void)poll(&wake, 1, ms);
}

enum rf_code remote_look(struct remote *remote, struct rf_error *err)
{
    if (remote->sglang != NULL)
        return sglang_seed_check(remote->sglang, err);
    instance_info_free(&remote->info);
    enum rf_code code = client_instance(remote->client, &remote->info, err);

    if (code != RF_OK)
        return code;
    if (strcmp(remote->info.state, "ready") == 0)
        return RF_OK;
    if (strcmp(remote->info.state, "failed") == 0)
        return rf_fail(err, RF_E_CHANGED, "%s has stopped serving: %s", client_url(remote->client),
                       remote->info.state_reason);
    rf_fail(err, RF_E_UNREACHABLE,
            "%s is %s: try again, wait with --wait-ready, or ask another seed",
            client_url(remote->client), remote->info.state);
    return strcmp(remote->info.state, "loading") == 0 ? RF_AGAIN : RF_E_UNREACHABLE;
}

/* Everything that a server in SGLang's way says: the seed is open then. */
static enum rf_code open_sglang(struct remote *remote, struct rf_error *err)
{
    const struct remote_options *options = remote->options;
    uint32_t count = 0;

    remote->sglang_options = (struct sglang_options){
        .transport = options->transport,
        .model_path = options->model_path,
        .data_hosts = options->te_data_hosts,
        .timeout_ms = remote_timeout_ms(remote),
        .cancel = options->cancel,
        .cancel_fd = options->cancel_fd,
    };
    enum rf_code code =
        sglang_seed_open(remote->client, &remote->sglang_options, &remote->sglang, err);
    if (code != RF_OK)
        return code;
    remote->manifest = manifest_ref(sglang_seed_manifest(remote->sglang));
    remote->choice = sglang_seed_engines(remote->sglang, &count)[0].choice;
    instance_info_free(&remote->info);
    return sglang_seed_info(remote->sglang, &remote->info, err);
}

/* One look, in the ways that are allowed. */
static enum rf_code ask_once(struct remote *remote, struct rf_error *err)
{
    enum remote_seed_api api = remote->options->seed_api;

    if (api != REMOTE_API_SGLANG) {
        enum rf_code code = remote_look(remote, err);

        if (code == RF_OK || api == REMOTE_API_RFORK || !client_is_foreign(remote->client))
            return code;
    }
    return open_sglang(remote, err);
}

static enum rf_code wait_ready(struct remote *remote, uint64_t wait_ready_ms, struct rf_error *err)
{
    uint64_t deadline_ns = clock_deadline_ns(wait_ready_ms);

    for (;;) {
        enum rf_code code = ask_once(remote, err);
        bool may_come = code == RF_AGAIN || code == RF_E_UNREACHABLE;

        if (code == RF_OK || !may_come)
            return code;
        if (remote_cancelled(remote))
            return rf_fail(err, RF_E_CANCELLED, "cancelled");
        if (clock_left_ms(deadline_ns) == 0)
            return RF_E_UNREACHABLE;
        int left = clock_left_ms(deadline_ns);
        remote_pause(remote, left < REMOTE_READY_POLL_MS ? left : REMOTE_READY_POLL_MS);
    }
}

static enum rf_code take_lease(struct remote *remote, struct rf_error *err)
{
    char id[HASH_TEXT_BYTES];
    const char *wanted = remote->options->transport != NULL ? remote->options->transport : "auto";
    enum rf_code code = client_lease_open(remote->client, &remote->lease, err);

    if (code != RF_OK)
        return code;
    remote->leased = true;
    remote->leased_ns = clock_now_ns();
    /* hash_text() writes "algorithm:hex"; the lease carries the hex alone. */
    const char *hex =
        strchr(hash_text(remote->manifest->algorithm, remote->manifest->id, id), ':') + 1;
    if (strcmp(hex, remote->lease.manifest_id) != 0)
        return rf_fail(
            err, RF_E_MISMATCH,
            "%s changed its model between two requests (manifest %s, then %.40s): try again",
            client_url(remote->client), hex, remote->lease.manifest_id);
    code = transport_choose(wanted, remote->lease.endpoints, remote->lease.endpoint_count,
                            &remote->choice, err);
    /* The seed knows why it does not offer one ("map: weights live in the page cache"). */
    const char *refused = remote->info.refused_transports;
    if (code == RF_E_UNSUPPORTED && err != NULL && refused != NULL && refused[0] != '\0')
        return rf_fail(err, code, "%.250s; the seed does not offer %.240s", err->text, refused);
    return code;
}

enum rf_code remote_keep_lease(struct remote *remote, struct rf_error *err)
{
    struct rf_error why;
    uint64_t now_ns = clock_now_ns();

    if (remote->sglang != NULL) /* there are no leases */
        return RF_OK;
    if (now_ns - remote->leased_ns < remote->lease.ttl_ms / 4 * CLOCK_NS_PER_MS)
        return RF_OK;
    enum rf_code code = client_lease_renew(remote->client, &remote->lease, &why);
    if (code == RF_E_DENIED) {
        remote->leased = false;
        return take_lease(remote, err);
    }
    if (code == RF_OK)
        remote->leased_ns = now_ns;
    else if (err != NULL)
        *err = why;
    return code;
}

enum rf_code remote_open(const char *url, const struct remote_options *options,
                         uint64_t wait_ready_ms, struct remote **ret_remote, struct rf_error *err)
{
    struct remote *remote = calloc(1, sizeof(*remote));
    struct client_options client_options = {.cancel = options->cancel};

    if (remote == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a fork");
    remote->options = options;
    client_options.timeout_ms = remote_timeout_ms(remote);
    enum rf_code code = client_create(url, &client_options, &remote->client, err);
    if (code == RF_OK)
        code = wait_ready(remote, wait_ready_ms, err);
    if (code == RF_OK && remote->sglang == NULL)
        code = client_manifest(remote->client, &remote->manifest, err);
    remote->opened_ns = clock_now_ns();
    if (code == RF_OK && remote->sglang == NULL)
        code = take_lease(remote, err);
    if (code == RF_OK) {
        remote->sessions =
            calloc((size_t)remote->manifest->rank_count + 1, sizeof(struct transport_session *));
        if (remote->sessions == NULL)
            code = rf_fail(err, RF_E_NOMEM, "no memory for a fork");
    }
    if (code != RF_OK) {
        remote_close(remote);
        return code;
    }
    *ret_remote = remote;
    return RF_OK;
}

void remote_close(struct remote *remote)
{
    if (remote == NULL)
        return;
    for (uint32_t i = 0; remote->sessions != NULL && i < remote->manifest->rank_count; i++) {
        if (remote->sessions[i] != NULL)
            remote->choice.transport->close(remote->sessions[i]);
    }
    free(remote->sessions);
    if (remote->leased)
        client_lease_close(remote->client, &remote->lease);
    sglang_seed_close(remote->sglang);
    client_destroy(remote->client);
    instance_info_free(&remote->info);
    manifest_unref(remote->manifest);
    free(remote);
}

const struct instance_info *remote_info(const struct remote *remote)
{
    return &remote->info;
}

struct manifest *remote_manifest(const struct remote *remote)
{
    return remote->manifest;
}

const struct transport_choice *remote_choice(const struct remote *remote)
{
    return &remote->choice;
}

struct client *remote_client(const struct remote *remote)
{
    return remote->client;
}

bool remote_has_digests(const struct remote *remote)
{
    return remote->sglang == NULL;
}

bool remote_others_may_have(const struct remote *remote)
{
    const struct remote_options *options = remote->options;
    const struct manifest *manifest = remote->manifest;

    return remote_has_digests(remote) && options->seed_api == REMOTE_API_AUTO &&
           options->transport != NULL && strcmp(options->transport, "te") == 0 &&
           manifest->rank_count > 0 && manifest->rank_count < manifest->ranks[0].id.tp_size;
}

void remote_peer(const struct remote *remote, uint32_t rank, struct remote_peer *ret_peer)
{
    struct remote_peer peer = {.choice = &remote->choice,
                               .token = remote->lease.token,
                               .name = client_url(remote->client)};
    uint32_t count = 0;

    if (remote->sglang != NULL) {
        const struct sglang_engine *engine =
            &sglang_seed_engines(remote->sglang, &count)[sglang_seed_engine(remote->sglang, rank)];

        peer.choice = &engine->choice;
        peer.directory = engine->directory;
        peer.name = engine->session;
    }
    *ret_peer = peer;
}

/* ---- what all ways of taking share ---- */

bool remote_verifies(struct remote *const *remotes, uint32_t count)
{
    bool verifies = remotes[0]->options->verify;

    for (uint32_t i = 0; i < count; i++)
        verifies = verifies && remote_has_digests(remotes[i]);
    return verifies;
}

void remote_say_verified(struct remote *const *remotes, uint32_t count,
                         struct remote_result *result)
{
    result->verified = remote_verifies(remotes, count);
    for (uint32_t i = 0; i < count; i++) {
        if (!remote_has_digests(remotes[i]))
            snprintf(result->unverified, sizeof(result->unverified),
                     "%.80s was asked in SGLang's way, which knows no digests",
                     client_url(remotes[i]->client));
    }
}

enum rf_code remote_refuse_verify(struct remote *const *remotes, uint32_t count, bool verify,
                                  struct rf_error *err)
{
    for (uint32_t i = 0; verify && i < count; i++) {
        if (!remote_has_digests(remotes[i]))
            return rf_fail(err, RF_E_UNSUPPORTED,
                           "--verify: %s is asked in SGLang's way, which knows no digests",
                           client_url(remotes[i]->client));
    }
    return RF_OK;
}

void remote_fork_options(struct remote *remote, struct fork_options *ret_options)
{
    const struct remote_options *options = remote->options;

    *ret_options = (struct fork_options){
        .connections = options->connections,
        .verify = options->verify && remote_has_digests(remote),
        .timeout_ms = remote_timeout_ms(remote),
        .retries = options->retries,
        .cancel = options->cancel,
        .cancel_fd = options->cancel_fd,
        .progress = options->progress,
        .progress_ctx = options->progress_ctx,
    };
}

static enum rf_code root_of(const struct manifest *manifest, struct digest_table *const *tables,
                            struct remote_result *result, struct rf_error *err)
{
    uint8_t(*roots)[HASH_MAX_BYTES] = calloc((size_t)manifest->rank_count + 1, sizeof(*roots));
    enum rf_code code = roots != NULL ? RF_OK : rf_fail(err, RF_E_NOMEM, "no memory for digests");

    for (uint32_t i = 0; code == RF_OK && i < manifest->rank_count; i++)
        code = digest_rank_root(manifest, i, tables[i], roots[i], err);
    if (code == RF_OK)
        code =
            digest_model_root(manifest, (const uint8_t(*)[HASH_MAX_BYTES])roots, result->root, err);
    result->root_known = code == RF_OK;
    free(roots);
    return code;
}

void remote_describe(const struct remote *remote, struct remote_result *result)
{
    bool copied = !result->mapped && remote->choice.transport->map != NULL;
    char mapped[SIZE_TEXT_BYTES];
    char moved[SIZE_TEXT_BYTES];

    result->seconds = clock_seconds(remote->opened_ns, clock_now_ns());
    snprintf(result->transport, sizeof(result->transport), "%s%s",
             remote->choice.endpoint.transport, copied ? " (copy)" : "");
    if (result->mapped && result->copied_bytes > 0)
        snprintf(result->reason, sizeof(result->reason), "%.900s; %s shared, %s copied",
                 remote->choice.reason, size_text(result->bytes - result->copied_bytes, mapped),
                 size_text(result->copied_bytes, moved));
    else if (result->mapped)
        snprintf(result->reason, sizeof(result->reason), "%s", remote->choice.reason);
    else
        snprintf(result->reason, sizeof(result->reason), "%.900s; %u connection%s",
                 remote->choice.reason, result->connections, result->connections == 1 ? "" : "s");
    log_info("forked", "url=%s transport=%s bytes=%" PRIu64 " seconds=%.3f retried=%" PRIu64,
             client_url(remote->client), result->transport, result->bytes, result->seconds,
             result->chunks_retried);
}

enum rf_code remote_finish(struct remote *remote, struct digest_table *const *tables,
                           struct remote_result *result, struct rf_error *err)
{
    bool complete = true;
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < remote->manifest->rank_count; i++) {
        const struct digest_table *table = tables[i];

        complete =
            complete && table != NULL && digest_table_known(table) == digest_table_count(table);
    }
    if (complete)
        code = root_of(remote->manifest, tables, result, err);
    remote_describe(remote, result);
    return code;
}

enum rf_code remote_fetch_file(struct remote *remote, uint32_t file, struct buf *out,
                               struct rf_error *err)
{
    const struct manifest_file *entry = &remote->manifest->files[file];
    uint64_t bytes = entry->kind == FILE_WEIGHTS ? entry->header_bytes : entry->bytes;
    uint8_t digest[HASH_MAX_BYTES];

    if (remote->sglang != NULL) {
        enum rf_code code = sglang_seed_file(remote->sglang, file, out, err);

        if (code != RF_OK)
            return code;
    } else if (bytes > 0) {
        enum rf_code code = client_file(remote->client, entry->name, 0, bytes, out, err);

        if (code != RF_OK)
            return rf_error_wrap(err, code, "fetch %s from %s", entry->name,
                                 client_url(remote->client));
    }
    hash_once(remote->manifest->algorithm, out->data, out->bytes, digest);
    if (memcmp(digest, entry->digest, hash_bytes(remote->manifest->algorithm)) != 0)
        return rf_fail(err, RF_E_CORRUPT, "%s: %s arrived with another digest than the manifest's",
                       client_url(remote->client), entry->name);
    return RF_OK;
}
