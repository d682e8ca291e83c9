#include "cli/subject.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "cli/progress.h"
#include "cli/signals.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    SOURCE_DIGEST_WAIT_MS = 1000, /* one request for digests waits so long for news */
    SOURCE_SLOW_BYTES_PER_MS =
        100 * 1000, /* a seed that reads its files slower than this has died */
};

bool subject_is_url(const char *text)
{
    const char *colon = strrchr(text, ':');

    if (strstr(text, "://") != NULL)
        return true;
    return colon != NULL && colon != text && colon[1] != '\0' &&
           strspn(colon + 1, "0123456789") == strlen(colon + 1) && strchr(text, '/') == NULL &&
           access(text, F_OK) != 0;
}

static enum rf_code open_sglang(struct subject *subject, struct rf_error *err)
{
    subject->sglang_options = (struct sglang_options){
        .data_hosts = subject->options.ask.te_data_hosts,
        .timeout_ms = subject->options.timeout_ms,
        .cancel = signals_flag(),
        .cancel_fd = signals_fd(),
    };
    enum rf_code code =
        sglang_seed_open(subject->client, &subject->sglang_options, &subject->sglang, err);
    if (code == RF_AGAIN) /* nobody waits here */
        return RF_E_UNREACHABLE;
    if (code != RF_OK)
        return code;
    subject->manifest = manifest_ref(sglang_seed_manifest(subject->sglang));
    return sglang_seed_info(subject->sglang, &subject->info, err);
}

static enum rf_code no_digests(const struct subject *subject, struct rf_error *err)
{
    return rf_fail(err, RF_E_UNSUPPORTED,
                   "%s is asked in SGLang's way, which knows no digests: fork it (-o DIR) and look "
                   "at what came",
                   subject->text);
}

static enum rf_code open_seed(struct subject *subject, struct rf_error *err)
{
    const struct client_options options = {
        .timeout_ms = subject->options.timeout_ms,
        .cancel = signals_flag(),
    };
    enum remote_seed_api api = ask_api(&subject->options.ask);
    enum rf_code code = client_create(subject->text, &options, &subject->client, err);

    if (code != RF_OK)
        return code;
    if (api != REMOTE_API_SGLANG)
        code = client_instance(subject->client, &subject->info, err);
    if (api == REMOTE_API_SGLANG ||
        (code != RF_OK && api == REMOTE_API_AUTO && client_is_foreign(subject->client)))
        return open_sglang(subject, err);
    if (code == RF_OK && strcmp(subject->info.state, "failed") == 0)
        code = rf_fail(err, RF_E_CHANGED, "%s has stopped serving: %s", client_url(subject->client),
                       subject->info.state_reason);
    if (code == RF_OK)
        code = client_manifest(subject->client, &subject->manifest, err);
    return code;
}

static enum rf_code open_folder(struct subject *subject, enum hash_algorithm algorithm,
                                uint32_t chunk_bytes, struct rf_error *err)
{
    const struct load_options options = {
        .memory = LOAD_FILES,
        .algorithm = algorithm,
        .chunk_bytes = chunk_bytes,
    };
    struct model_folder folder;
    enum rf_code code = model_folder_open(subject->text, &folder, err);

    if (code != RF_OK)
        return code;
    code = load_folder(&folder, &options, &subject->store, err);
    model_folder_close(&folder);
    if (code == RF_OK)
        subject->manifest = manifest_ref(subject->store->manifest);
    return code;
}

enum rf_code subject_open_as(const char *text, const struct look_options *options,
                             enum hash_algorithm algorithm, uint32_t chunk_bytes,
                             struct subject *ret_subject, struct rf_error *err)
{
    *ret_subject = (struct subject){.text = text, .options = *options};
    if (subject_is_url(text))
        return open_seed(ret_subject, err);
    return open_folder(ret_subject, algorithm, chunk_bytes, err);
}

enum rf_code subject_open(const char *text, const struct look_options *options,
                          const struct manifest *like, struct subject *ret_subject,
                          struct rf_error *err)
{
    enum hash_algorithm algorithm = like != NULL ? like->algorithm : 0;
    uint32_t chunk_bytes = like != NULL ? like->chunk_bytes : 0;

    return subject_open_as(text, options, algorithm, chunk_bytes, ret_subject, err);
}

enum rf_code subject_open_shards(const char *path, const struct load_shards *shards,
                                 struct subject *ret_subject, struct rf_error *err)
{
    const struct load_options options = {.memory = LOAD_FILES, .shards = shards};
    struct model_folder *folder = calloc(1, sizeof(*folder));

    *ret_subject = (struct subject){.text = path};
    if (folder == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %s", path);
    enum rf_code code = model_folder_open(path, folder, err);
    if (code != RF_OK) {
        free(folder);
        return code;
    }
    ret_subject->folder = folder;
    code = load_open(folder, &options, &ret_subject->load, err);
    if (code == RF_OK)
        ret_subject->manifest = manifest_ref(load_manifest(ret_subject->load));
    return code;
}

/* Makes sure that there is a store. */
static enum rf_code subject_fill(struct subject *subject, struct rf_error *err)
{
    return subject->store != NULL ? RF_OK : load_run(subject->load, &subject->store, err);
}

void subject_close(struct subject *subject)
{
    load_close(subject->load);
    if (subject->folder != NULL)
        model_folder_close(subject->folder);
    free(subject->folder);
    sglang_seed_close(subject->sglang);
    client_destroy(subject->client);
    instance_info_free(&subject->info);
    store_destroy(subject->store);
    manifest_unref(subject->manifest);
    *subject = (struct subject){.text = NULL};
}

/* ---- roots ---- */

/* Waits as long as the seed makes progress. */
static enum rf_code fetch_table(struct subject *subject, uint32_t rank, struct digest_table *table,
                                struct rf_error *err)
{
    uint64_t count = digest_table_count(table);
    uint64_t known = 0;
    uint64_t deadline_ns = clock_deadline_ns(subject->options.timeout_ms);

    while (known < count) {
        enum rf_code code =
            client_digests(subject->client, rank, SOURCE_DIGEST_WAIT_MS, table, err);
        uint64_t now = digest_table_known(table);

        if (code != RF_OK)
            return code;
        if (signals_came())
            return rf_fail(err, RF_E_CANCELLED, "interrupted");
        if (now > known)
            deadline_ns = clock_deadline_ns(subject->options.timeout_ms);
        else if (now < count && clock_left_ms(deadline_ns) == 0)
            return rf_fail(err, RF_E_TIMEOUT,
                           "%s: %" PRIu64 " of %" PRIu64 " digests are made and no more came in "
                           "%" PRIu64 " ms: wait longer with --timeout",
                           subject->text, now, count, subject->options.timeout_ms);
        known = now;
    }
    return RF_OK;
}

static enum rf_code seed_root(struct subject *subject, uint8_t ret_root[HASH_MAX_BYTES],
                              struct rf_error *err)
{
    const struct manifest *manifest = subject->manifest;
    uint8_t(*roots)[HASH_MAX_BYTES] = calloc((size_t)manifest->rank_count + 1, sizeof(*roots));
    enum rf_code code = roots != NULL ? RF_OK : rf_fail(err, RF_E_NOMEM, "no memory for digests");

    for (uint32_t i = 0; code == RF_OK && i < manifest->rank_count; i++) {
        struct digest_table *table =
            digest_table_create(manifest->algorithm, manifest_chunk_count(manifest, i));

        code = table != NULL ? fetch_table(subject, i, table, err)
                             : rf_fail(err, RF_E_NOMEM, "no memory for digests");
        if (code == RF_OK)
            code = digest_rank_root(manifest, i, table, roots[i], err);
        digest_table_destroy(table);
    }
    if (code == RF_OK)
        code = digest_model_root(manifest, (const uint8_t(*)[HASH_MAX_BYTES])roots, ret_root, err);
    free(roots);
    return code;
}

static enum rf_code folder_root(struct subject *subject, uint8_t ret_root[HASH_MAX_BYTES],
                                struct rf_error *err)
{
    enum rf_code code = subject_fill(subject, err);

    if (code == RF_OK)
        code = store_digest(subject->store, thread_cpus(), signals_flag(), err);
    /* What was read is one model only if nobody wrote to it meanwhile. */
    if (code == RF_OK)
        code = store_check(subject->store, err);
    if (code == RF_OK)
        code = store_root(subject->store, ret_root, err);
    return code;
}

enum rf_code subject_root(struct subject *subject, uint8_t ret_root[HASH_MAX_BYTES],
                          struct rf_error *err)
{
    if (subject->sglang != NULL)
        return no_digests(subject, err);
    return subject->client != NULL ? seed_root(subject, ret_root, err)
                                   : folder_root(subject, ret_root, err);
}

/* ---- tensors ---- */

struct tensor_job {
    const struct store *store;
    uint32_t rank;
    struct digest_table *table;
};

static enum rf_code tensor_item(void *ctx, uint64_t item, struct rf_error *err)
{
    struct tensor_job *job = ctx;
    const struct tensor *tensor = &job->store->manifest->ranks[job->rank].tensors[item];
    uint8_t digest[HASH_MAX_BYTES];

    if (signals_came())
        return rf_fail(err, RF_E_CANCELLED, "interrupted");
    enum rf_code code = store_tensor_digest(job->store, job->rank, (uint32_t)item, digest, err);
    if (code == RF_OK)
        digest_table_set(job->table, item, digest);
    progress_add(NULL, tensor->bytes);
    return code;
}

static enum rf_code folder_tensors(struct subject *subject, uint32_t rank,
                                   struct digest_table **ret_table, struct rf_error *err)
{
    const struct manifest *manifest = subject->manifest;
    uint64_t count = manifest->ranks[rank].tensor_count;
    struct tensor_job job = {.rank = rank};
    enum rf_code code = subject_fill(subject, err);

    if (code != RF_OK)
        return code;
    job.store = subject->store;
    job.table = digest_table_create(manifest->algorithm, count);
    if (job.table == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " digests", count);
    progress_begin(subject->text, manifest->ranks[rank].stream_bytes);
    code = thread_parallel(thread_cpus(), count, tensor_item, &job, err);
    progress_end();
    if (code == RF_OK)
        code = store_check(subject->store, err);
    if (code != RF_OK) {
        digest_table_destroy(job.table);
        return code;
    }
    *ret_table = job.table;
    return RF_OK;
}

enum rf_code subject_tensor_digests(struct subject *subject, uint32_t rank,
                                    struct digest_table **ret_table, struct rf_error *err)
{
    const struct manifest_rank *entry = &subject->manifest->ranks[rank];
    uint64_t patience_ms =
        subject->options.timeout_ms + entry->stream_bytes / SOURCE_SLOW_BYTES_PER_MS;

    if (subject->sglang != NULL)
        return no_digests(subject, err);
    if (subject->client == NULL)
        return folder_tensors(subject, rank, ret_table, err);
    return client_tensor_digests(subject->client, rank, entry->tensor_count,
                                 subject->manifest->algorithm, clock_deadline_ns(patience_ms),
                                 ret_table, err);
}

/* ---- facts ---- */

uint64_t subject_dtypes(const struct manifest *manifest,
                        struct subject_dtype ret_dtypes[RF_DTYPE_COUNT])
{
    uint64_t count = 0;

    memset(ret_dtypes, 0, RF_DTYPE_COUNT * sizeof(*ret_dtypes));
    for (uint32_t r = 0; r < manifest->rank_count; r++) {
        const struct manifest_rank *rank = &manifest->ranks[r];

        count += rank->tensor_count;
        for (uint32_t i = 0; i < rank->tensor_count; i++) {
            struct subject_dtype *dtype = &ret_dtypes[rank->tensors[i].dtype];

            dtype->tensors++;
            if (rank->tensors[i].alias_of == MANIFEST_NONE)
                dtype->bytes += rank->tensors[i].bytes;
        }
    }
    return count;
}
