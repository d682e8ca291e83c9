/* The public fork: a seed's tensors in the caller's memory, or the library's. */
#include "base/cleanup.h"
#include "control/remote_reshard.h"
#include "model/compare.h"
#include <rfork/rfork.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { API_RETRIES = 2, API_ALIGN = 64 };

struct rf_fork {
    struct remote *remote;          /* NULL until it is open */
    struct remote_reshard *reshard; /* NULL: one of the seed's ranks as it is */
    struct remote_options options;
    char *transport;
    uint32_t rank_index;
    const struct manifest_rank *rank;
    uint8_t **bound;      /* [tensor_count] the caller's memory; NULL: ours */
    const uint8_t **data; /* [tensor_count] where the bytes are after the run */
    uint32_t bound_count;
    atomic_bool cancel; /* release by rf_fork_cancel(), acquire by those who wait */
    int cancel_fd;
    struct region *memory; /* of what was not bound */
    struct layout mapping; /* of all, when mapped */
    rf_progress_fn progress;
    void *progress_ctx;
    bool ran;
    bool succeeded;
    struct remote_result result;
};

static void on_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
    struct rf_fork *fork = ctx;

    if (fork->progress != NULL)
        fork->progress(fork->progress_ctx, done_bytes, total_bytes);
}

static enum rf_code fork_create(const struct rf_fork_options *options, struct rf_fork **ret_fork,
                                struct rf_error *err)
{
    struct rf_fork *fork = calloc(1, sizeof(*fork));

    if (fork == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a fork");
    atomic_init(&fork->cancel, false);
    fork->transport = strdup(options->transport != NULL ? options->transport : "auto");
    fork->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    fork->options = (struct remote_options){
        .transport = fork->transport,
        .connections = options->connections,
        .verify = !options->no_verify,
        .timeout_ms = options->timeout_ms,
        .retries = API_RETRIES,
        .cancel = &fork->cancel,
        .cancel_fd = fork->cancel_fd,
        .progress = on_progress,
        .progress_ctx = fork,
    };
    enum rf_code code = RF_OK;
    if (fork->cancel_fd < 0)
        code = rf_fail_sys(err, "eventfd");
    else if (fork->transport == NULL)
        code = rf_fail(err, RF_E_NOMEM, "no memory for a fork");
    if (code != RF_OK) {
        rf_fork_close(fork);
        return code;
    }
    *ret_fork = fork;
    return RF_OK;
}

static enum rf_code fork_prepare(struct rf_fork *fork, struct rf_error *err)
{
    const struct manifest *manifest = fork->reshard != NULL ? remote_reshard_manifest(fork->reshard)
                                                            : remote_manifest(fork->remote);

    if (fork->rank_index >= manifest->rank_count)
        return rf_fail(err, RF_E_MISMATCH, "rank %" PRIu32 ": %s has %" PRIu32 " of them",
                       fork->rank_index, client_url(remote_client(fork->remote)),
                       manifest->rank_count);
    fork->rank = &manifest->ranks[fork->rank_index];
    size_t count = (size_t)fork->rank->tensor_count + 1;
    fork->bound = calloc(count, sizeof(*fork->bound));
    fork->data = calloc(count, sizeof(*fork->data));
    if (fork->bound == NULL || fork->data == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %zu tensors", count);
    return RF_OK;
}

/* Agrees on what is taken if it is not one of the seed's ranks. */
static enum rf_code fork_shape(struct rf_fork *fork, const struct rf_fork_options *options,
                               struct rf_error *err)
{
    const struct remote_shape shape = {
        .tp_size = options->tp_size,
        .ranks = &options->rank,
        .rank_count = 1,
        .layout = options->layout,
    };

    if (options->tp_size == 0 && options->layout == NULL)
        return RF_OK;
    fork->rank_index = 0; /* the only one */
    return remote_reshard_plan(&fork->remote, 1, &shape, &fork->reshard, err);
}

static enum rf_code fork_ask(struct rf_fork *fork, const char *url,
                             const struct rf_fork_options *options, struct rf_error *err)
{
    enum rf_code code =
        remote_open(url, &fork->options, options->wait_ready_ms, &fork->remote, err);

    fork->rank_index = options->rank;
    if (code == RF_OK)
        code = fork_shape(fork, options, err);
    if (code == RF_OK)
        code = fork_prepare(fork, err);
    return code;
}

enum rf_code rf_fork_open(const char *url, const struct rf_fork_options *options,
                          struct rf_fork **ret_fork, struct rf_error *err)
{
    struct rf_fork *fork = NULL;
    enum rf_code code = fork_create(options, &fork, err);

    if (code != RF_OK)
        return code;
    code = fork_ask(fork, url, options, err);
    if (code == RF_E_MISMATCH && fork->remote != NULL && remote_others_may_have(fork->remote)) {
        remote_close(fork->remote);
        fork->remote = NULL;
        fork->options.seed_api = REMOTE_API_SGLANG;
        code = fork_ask(fork, url, options, err);
    }
    if (code != RF_OK) {
        rf_fork_close(fork);
        return code;
    }
    *ret_fork = fork;
    return RF_OK;
}

uint64_t rf_fork_tensor_count(const struct rf_fork *fork)
{
    return fork->rank->tensor_count;
}

enum rf_code rf_fork_tensor(const struct rf_fork *fork, uint64_t index,
                            struct rf_tensor *ret_tensor, uint64_t *ret_bytes, struct rf_error *err)
{
    if (index >= fork->rank->tensor_count)
        return rf_fail(err, RF_E_INVAL, "tensor %" PRIu64 ": there are %" PRIu32, index,
                       fork->rank->tensor_count);
    const struct tensor *tensor = &fork->rank->tensors[index];
    *ret_tensor = (struct rf_tensor){
        .name = tensor->name,
        .dtype = tensor->dtype,
        .ndim = tensor->ndim,
        .shape = tensor->shape,
    };
    if (ret_bytes != NULL)
        *ret_bytes = tensor->bytes;
    return RF_OK;
}

/* What the caller expects, as a manifest of its own. */
static enum rf_code expectation(const struct rf_fork *fork, const struct rf_tensor *expected,
                                uint64_t count, struct manifest **ret_manifest,
                                struct rf_error *err)
{
    const struct manifest *theirs = remote_manifest(fork->remote);
    struct manifest_identity identity = {.model = "expected",
                                         .layout = theirs->layout,
                                         .stage = theirs->stage,
                                         .algorithm = theirs->algorithm};
    struct manifest_builder *builder = manifest_builder_create(&identity, err);

    if (builder == NULL)
        return RF_E_NOMEM;
    enum rf_code code = manifest_add_rank(builder, &fork->rank->id, err);
    for (uint64_t i = 0; code == RF_OK && i < count; i++) {
        const struct tensor *theirs_now = manifest_find(fork->rank, expected[i].name);
        struct tensor tensor = {
            .name = expected[i].name,
            .name_bytes = (uint32_t)strlen(expected[i].name),
            .dtype = expected[i].dtype,
            .ndim = expected[i].ndim,
            .shape = expected[i].shape,
            .file = MANIFEST_NONE,
            .alias_of = MANIFEST_NONE,
        };
        const char *alias_of = NULL;

        /* Whether a tensor is tied in the seed is no concern of a caller who has room for both. */
        if (theirs_now != NULL && theirs_now->alias_of != MANIFEST_NONE)
            alias_of = fork->rank->tensors[theirs_now->alias_of].name;
        code = manifest_add_tensor(builder, &tensor, alias_of, err);
    }
    if (code != RF_OK) {
        manifest_builder_destroy(builder);
        return code;
    }
    return manifest_build(builder, ret_manifest, err);
}

enum rf_code rf_fork_match(struct rf_fork *fork, const struct rf_tensor *expected, uint64_t count,
                           struct rf_error *err)
{
    struct manifest *want = NULL;
    enum rf_code code = expectation(fork, expected, count, &want, err);

    if (code != RF_OK)
        return code;
    code = compare_explain(&want->ranks[0], fork->rank, err);
    manifest_unref(want);
    return code;
}

enum rf_code rf_fork_bind(struct rf_fork *fork, const char *name, void *dst, uint64_t bytes,
                          struct rf_error *err)
{
    const struct tensor *tensor = manifest_find(fork->rank, name);

    if (tensor == NULL)
        return rf_fail(err, RF_E_MISMATCH, "tensor %s: %s has none of that name", name,
                       client_url(remote_client(fork->remote)));
    size_t index = (size_t)(tensor - fork->rank->tensors);
    if (bytes != tensor->bytes)
        return rf_fail(err, RF_E_INVAL,
                       "tensor %s: room for %" PRIu64 " bytes, the seed's has %" PRIu64, name,
                       bytes, tensor->bytes);
    if (fork->ran || fork->bound[index] != NULL)
        return rf_fail(err, RF_E_INVAL, "tensor %s: %s", name,
                       fork->ran ? "the fork has run already" : "bound already");
    if (bytes == 0)
        return RF_OK;
    if (dst == NULL)
        return rf_fail(err, RF_E_INVAL, "tensor %s: dst is NULL, it has %" PRIu64 " bytes", name,
                       bytes);
    fork->bound[index] = dst;
    fork->bound_count++;
    return RF_OK;
}

/* ---- running ---- */

/* Points every tensor into the mapping; false if one of them does not lie in one piece there. */
static bool point_into_mapping(struct rf_fork *fork)
{
    for (uint32_t i = 0; i < fork->rank->tensor_count; i++) {
        const struct tensor *tensor = &fork->rank->tensors[i];

        if (tensor->bytes == 0)
            continue;
        const struct segment *at =
            &fork->mapping.segments[layout_find(&fork->mapping, tensor->stream_offset)];
        uint64_t skip = tensor->stream_offset - at->stream_offset;
        if (tensor->bytes > at->bytes - skip)
            return false;
        fork->data[i] = region_data(at->region) + at->region_offset + skip;
    }
    return true;
}

static uint64_t align_up(uint64_t bytes)
{
    return (bytes + API_ALIGN - 1) / API_ALIGN * API_ALIGN;
}

static bool takes_room(const struct rf_fork *fork, uint32_t index)
{
    const struct tensor *tensor = &fork->rank->tensors[index];

    return tensor->bytes > 0 && tensor->alias_of == MANIFEST_NONE && fork->bound[index] == NULL;
}

/* Memory of the library's own for what was not bound. */
static enum rf_code make_memory(struct rf_fork *fork, struct rf_error *err)
{
    uint64_t bytes = 0;
    uint64_t at = 0;

    for (uint32_t i = 0; i < fork->rank->tensor_count; i++) {
        if (takes_room(fork, i))
            bytes += align_up(fork->rank->tensors[i].bytes);
    }
    if (bytes == 0)
        return RF_OK;
    enum rf_code code = region_create_anonymous(bytes, &fork->memory, err);
    if (code != RF_OK)
        return code;
    for (uint32_t i = 0; i < fork->rank->tensor_count; i++) {
        if (!takes_room(fork, i))
            continue;
        fork->data[i] = region_data_writable(fork->memory) + at;
        at += align_up(fork->rank->tensors[i].bytes);
    }
    return RF_OK;
}

static enum rf_code make_dest(struct rf_fork *fork, struct fork_dest *dest, struct rf_error *err)
{
    enum rf_code code = make_memory(fork, err);
    uint64_t at = 0;

    for (uint32_t i = 0; code == RF_OK && i < fork->rank->tensor_count; i++) {
        const struct tensor *tensor = &fork->rank->tensors[i];
        struct fork_segment segment = {
            .stream_offset = tensor->stream_offset, .bytes = tensor->bytes, .fd = -1};

        if (tensor->bytes == 0 || tensor->alias_of != MANIFEST_NONE)
            continue;
        if (fork->bound[i] != NULL) {
            segment.addr = fork->bound[i];
            fork->data[i] = fork->bound[i];
        } else {
            segment.addr = region_data_writable(fork->memory) + at;
            at += align_up(tensor->bytes);
        }
        code = fork_dest_add(dest, &segment, err);
    }
    if (code == RF_OK)
        code = fork_dest_finish(dest, fork->rank->stream_bytes, err);
    return code;
}

/* Tied tensors: the caller's own memory gets a copy, otherwise they share. */
static void settle_aliases(struct rf_fork *fork)
{
    for (uint32_t i = 0; i < fork->rank->tensor_count; i++) {
        const struct tensor *tensor = &fork->rank->tensors[i];

        if (tensor->alias_of == MANIFEST_NONE || tensor->bytes == 0)
            continue;
        fork->data[i] = fork->data[tensor->alias_of];
        if (fork->bound[i] == NULL)
            continue;
        memory_copy(fork->bound[i], fork->data[i], tensor->bytes, 0);
        fork->data[i] = fork->bound[i];
    }
}

static enum rf_code run_copy(struct rf_fork *fork, struct rf_error *err)
{
    struct fork_dest dest = {.count = 0};
    enum rf_code code = make_dest(fork, &dest, err);

    if (code == RF_OK)
        code = fork->reshard != NULL
                   ? remote_reshard_dests(fork->reshard, &dest, 1, &fork->result, err)
                   : remote_fork_dest(fork->remote, fork->rank_index, &dest, &fork->result, err);
    if (code == RF_OK)
        settle_aliases(fork);
    fork_dest_free(&dest);
    return code;
}

enum rf_code rf_fork_run(struct rf_fork *fork, rf_progress_fn progress, void *ctx,
                         struct rf_error *err)
{
    enum rf_code code;

    if (fork->ran)
        return rf_fail(err, RF_E_INVAL, "the fork has run already: open another");
    if (atomic_load_explicit(&fork->cancel, memory_order_acquire))
        return rf_fail(err, RF_E_CANCELLED, "cancelled");
    fork->ran = true;
    fork->progress = progress;
    fork->progress_ctx = ctx;
    if (fork->bound_count == 0 && fork->reshard == NULL &&
        remote_choice(fork->remote)->transport->map != NULL) {
        code = remote_map(fork->remote, fork->rank_index, &fork->mapping, &fork->result, err);
        if (code != RF_OK)
            return code;
        if (point_into_mapping(fork)) {
            fork->succeeded = true;
            return RF_OK;
        }
        layout_free(&fork->mapping);
    }
    code = run_copy(fork, err);
    fork->succeeded = code == RF_OK;
    return code;
}

void rf_fork_cancel(struct rf_fork *fork)
{
    uint64_t one = 1;
    int saved = errno;

    atomic_store_explicit(&fork->cancel, true, memory_order_release);
    /* Fails only when the counter is full, and then it is readable already. */
    if (write(fork->cancel_fd, &one, sizeof(one)) < 0)
        errno = saved;
}

const void *rf_fork_data(const struct rf_fork *fork, const char *name)
{
    const struct tensor *tensor = manifest_find(fork->rank, name);

    if (tensor == NULL || !fork->succeeded)
        return NULL;
    return fork->data[tensor - fork->rank->tensors];
}

void rf_fork_get_stats(const struct rf_fork *fork, struct rf_fork_stats *ret_stats)
{
    const struct remote_result *result = &fork->result;
    struct rf_fork_stats stats = {
        .bytes = result->bytes,
        .wire_bytes = result->wire_bytes,
        .chunks = result->chunks,
        .chunks_retried = result->chunks_retried,
        .connections = result->connections,
        .seconds = result->seconds,
        .verified = result->verified,
    };

    snprintf(stats.transport, sizeof(stats.transport), "%.63s", result->transport);
    snprintf(stats.reason, sizeof(stats.reason), "%s", result->reason);
    if (result->root_known)
        hash_text(remote_manifest(fork->remote)->algorithm, result->root, stats.root_digest);
    *ret_stats = stats;
}

void rf_fork_close(struct rf_fork *fork)
{
    if (fork == NULL)
        return;
    layout_free(&fork->mapping);
    region_unref(fork->memory);
    remote_reshard_destroy(fork->reshard);
    remote_close(fork->remote);
    if (fork->cancel_fd >= 0)
        close(fork->cancel_fd);
    free(fork->bound);
    free(fork->data);
    free(fork->transport);
    free(fork);
}
