/* Digests of what the regions hold, on many threads. */
#include "base/thread.h"
#include "model/store_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { READ_BYTES = 512 << 10, SHOWN_TENSORS = 3 };

/* What one thread needs; the buffer is there once a file region has been met. */
struct worker {
    struct chunk_hasher *hasher;
    uint8_t *buffer;
    struct worker *next; /* in job->idle */
};

static void worker_destroy(struct worker *worker)
{
    if (worker == NULL)
        return;
    chunk_hasher_destroy(worker->hasher);
    free(worker->buffer);
    free(worker);
}

static struct worker *worker_create(enum hash_algorithm algorithm, struct rf_error *err)
{
    struct worker *worker = calloc(1, sizeof *worker);

    if (worker != NULL)
        worker->hasher = chunk_hasher_create(algorithm);
    if (worker == NULL || worker->hasher == NULL) {
        worker_destroy(worker);
        rf_fail(err, RF_E_NOMEM, "no memory to hash chunks");
        return NULL;
    }
    return worker;
}

/* Hashes a piece that lies in one region: in place, or read through the buffer from a file. */
static enum rf_code hash_piece(struct worker *worker, const struct segment *piece,
                               struct rf_error *err)
{
    const uint8_t *data = region_data(piece->region);

    if (data != NULL) {
        chunk_hasher_update(worker->hasher, data + piece->region_offset, piece->bytes);
        return RF_OK;
    }
    if (worker->buffer == NULL)
        worker->buffer = malloc(READ_BYTES);
    if (worker->buffer == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a buffer of %d bytes", READ_BYTES);
    for (uint64_t done = 0; done < piece->bytes;) {
        uint64_t bytes = piece->bytes - done;

        if (bytes > READ_BYTES)
            bytes = READ_BYTES;
        enum rf_code code =
            region_read(piece->region, piece->region_offset + done, worker->buffer, bytes, err);
        if (code != RF_OK)
            return code;
        chunk_hasher_update(worker->hasher, worker->buffer, bytes);
        done += bytes;
    }
    return RF_OK;
}

/* Digest over the leaves of [offset, offset + bytes) of a stream, which lies inside the layout. */
static enum rf_code hash_stream(const struct layout *layout, uint64_t offset, uint64_t bytes,
                                struct worker *worker, uint8_t ret_digest[HASH_MAX_BYTES],
                                struct rf_error *err)
{
    struct stream_range range = {.offset = offset, .bytes = bytes, .stride = 0, .count = 1};
    struct layout_cursor cursor;
    struct segment piece;

    chunk_hasher_begin(worker->hasher);
    layout_cursor_init(&cursor, layout, &range, bytes > 0 ? 1 : 0);
    while (layout_cursor_peek(&cursor, UINT64_MAX, &piece)) {
        enum rf_code code = hash_piece(worker, &piece, err);
        if (code != RF_OK)
            return code;
        layout_cursor_skip(&cursor, piece.bytes);
    }
    chunk_hasher_final(worker->hasher, ret_digest);
    return RF_OK;
}

/* ---- all chunks ---- */

/* One run over all chunks of all ranks, shared by its threads. */
struct job {
    struct store *store; /* only its digest tables are written */
    bool verify;
    const atomic_bool *stop;
    uint64_t *first; /* [rank_count + 1] number of each rank's first chunk among all */
    struct mutex lock;
    struct worker *idle RF_GUARDED_BY(lock);
};

static struct worker *worker_take(struct job *job, struct rf_error *err)
{
    mutex_lock(&job->lock);
    struct worker *worker = job->idle;
    if (worker != NULL)
        job->idle = worker->next;
    mutex_unlock(&job->lock);
    return worker != NULL ? worker : worker_create(job->store->manifest->algorithm, err);
}

static void worker_return(struct job *job, struct worker *worker)
{
    mutex_lock(&job->lock);
    worker->next = job->idle;
    job->idle = worker;
    mutex_unlock(&job->lock);
}

/* "tensors a, b, c and 17 more": those that have bytes in [from, end) of the rank's stream. */
static void tensors_text(const struct manifest_rank *rank, uint64_t from, uint64_t end, char *out,
                         size_t room)
{
    uint32_t first = manifest_tensor_at(rank, from);
    uint32_t last = manifest_tensor_at(rank, end - 1);
    uint32_t shown = 0;
    uint32_t more = 0;
    size_t used = (size_t)snprintf(out, room, "%s", first == last ? "tensor" : "tensors");

    for (uint32_t i = first; i <= last && first != MANIFEST_NONE; i++) {
        const struct tensor *tensor = &rank->tensors[i];

        if (tensor->alias_of != MANIFEST_NONE || tensor->bytes == 0)
            continue;
        if (shown < SHOWN_TENSORS && used < room)
            used += (size_t)snprintf(out + used, room - used, "%s %.80s", shown > 0 ? "," : "",
                                     tensor->name);
        more += shown == SHOWN_TENSORS;
        shown += shown < SHOWN_TENSORS;
    }
    if (more > 0 && used < room)
        snprintf(out + used, room - used, " and %" PRIu32 " more", more);
}

/* "rank tp0/1 chunk 3, bytes 25165824 to 33554432, tensors a, b, c" */
static void chunk_text(const struct manifest *manifest, uint32_t rank, uint64_t chunk, char *out,
                       size_t room)
{
    const struct manifest_rank *of = &manifest->ranks[rank];
    uint64_t from = chunk * manifest->chunk_bytes;
    uint64_t end = from + manifest_chunk_size(manifest, rank, chunk);
    char id[64];
    char tensors[320];

    tensors_text(of, from, end, tensors, sizeof tensors);
    snprintf(out, room, "rank %s chunk %" PRIu64 ", bytes %" PRIu64 " to %" PRIu64 ", %s",
             rank_id_text(&of->id, id), chunk, from, end, tensors);
}

/* Finds digest and table in disagreement, or puts the one into the other. */
static enum rf_code settle_chunk(const struct job *job, uint32_t rank, uint64_t chunk,
                                 const uint8_t digest[HASH_MAX_BYTES], struct rf_error *err)
{
    const struct manifest *manifest = job->store->manifest;
    struct digest_table *table = job->store->ranks[rank].digests;
    uint8_t known[HASH_MAX_BYTES];
    char where[448];

    if (!job->verify && digest_table_set(table, chunk, digest))
        return RF_OK;
    if (job->verify && digest_table_get(table, chunk, known) &&
        memcmp(known, digest, hash_bytes(manifest->algorithm)) == 0)
        return RF_OK;
    chunk_text(manifest, rank, chunk, where, sizeof where);
    return rf_fail(err, RF_E_CORRUPT, "%s: does not match its digest", where);
}

static enum rf_code chunk_item(void *ctx, uint64_t item, struct rf_error *err)
{
    struct job *job = ctx;
    const struct manifest *manifest = job->store->manifest;
    uint8_t digest[HASH_MAX_BYTES];
    uint32_t rank = 0;
    char where[448];

    /* relaxed: the flag publishes nothing, it only asks us to end */
    if (job->stop != NULL && atomic_load_explicit(job->stop, memory_order_relaxed))
        return rf_fail(err, RF_E_CANCELLED, "stopped while digests were made");
    for (uint32_t high = manifest->rank_count; high - rank > 1;) {
        uint32_t middle = rank + (high - rank) / 2;

        if (job->first[middle] <= item)
            rank = middle;
        else
            high = middle;
    }
    uint64_t chunk = item - job->first[rank];
    if (!job->verify && digest_table_get(job->store->ranks[rank].digests, chunk, digest))
        return RF_OK;

    struct worker *worker = worker_take(job, err);
    if (worker == NULL)
        return RF_E_NOMEM;
    enum rf_code code =
        hash_stream(&job->store->ranks[rank].layout, chunk * manifest->chunk_bytes,
                    manifest_chunk_size(manifest, rank, chunk), worker, digest, err);
    worker_return(job, worker);
    if (code == RF_OK)
        return settle_chunk(job, rank, chunk, digest, err);
    chunk_text(manifest, rank, chunk, where, sizeof where);
    return rf_error_wrap(err, code, "%s", where);
}

/* A layout that is not finished has nothing to hash. */
static enum rf_code layouts_check(const struct store *store, struct rf_error *err)
{
    for (uint32_t i = 0; i < store->manifest->rank_count; i++) {
        if (store->ranks[i].layout.stream_bytes != store->manifest->ranks[i].stream_bytes)
            return rf_fail(err, RF_E_INVAL,
                           "rank %" PRIu32 ": its layout covers %" PRIu64 " of %" PRIu64 " bytes",
                           i, store->ranks[i].layout.stream_bytes,
                           store->manifest->ranks[i].stream_bytes);
    }
    return RF_OK;
}

static enum rf_code run(struct store *store, unsigned threads, bool verify, const atomic_bool *stop,
                        struct rf_error *err)
{
    const struct manifest *manifest = store->manifest;
    struct job job = {.store = store, .verify = verify, .stop = stop};
    enum rf_code code = layouts_check(store, err);

    if (code != RF_OK)
        return code;
    job.first = calloc(manifest->rank_count + (size_t)1, sizeof *job.first);
    if (job.first == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks", manifest->rank_count);
    for (uint32_t i = 0; i < manifest->rank_count; i++)
        job.first[i + 1] = job.first[i] + manifest_chunk_count(manifest, i);
    mutex_init(&job.lock);
    code = thread_parallel(threads != 0 ? threads : thread_cpus(), job.first[manifest->rank_count],
                           chunk_item, &job, err);
    mutex_destroy(&job.lock);
    while (job.idle != NULL) {
        struct worker *worker = job.idle;
        job.idle = worker->next;
        worker_destroy(worker);
    }
    free(job.first);
    return code;
}

enum rf_code store_digest(struct store *store, unsigned threads, const atomic_bool *stop,
                          struct rf_error *err)
{
    return run(store, threads, false, stop, err);
}

enum rf_code store_verify(struct store *store, unsigned threads, struct rf_error *err)
{
    return run(store, threads, true, NULL, err);
}

/* ---- one tensor ---- */

enum rf_code store_tensor_digest(const struct store *store, uint32_t rank, uint32_t tensor,
                                 uint8_t ret_digest[HASH_MAX_BYTES], struct rf_error *err)
{
    const struct manifest *manifest = store->manifest;
    uint8_t digest[HASH_MAX_BYTES];

    if (rank >= manifest->rank_count || tensor >= manifest->ranks[rank].tensor_count)
        return rf_fail(err, RF_E_INVAL, "tensor %" PRIu32 " of rank %" PRIu32 ": there is none",
                       tensor, rank);
    enum rf_code code = layouts_check(store, err);
    if (code != RF_OK)
        return code;
    struct worker *worker = worker_create(manifest->algorithm, err);
    if (worker == NULL)
        return RF_E_NOMEM;
    const struct tensor *of = &manifest->ranks[rank].tensors[tensor];
    code =
        hash_stream(&store->ranks[rank].layout, of->stream_offset, of->bytes, worker, digest, err);
    worker_destroy(worker);
    if (code != RF_OK)
        return rf_error_wrap(err, code, "tensor %.120s", of->name);
    memcpy(ret_digest, digest, sizeof digest);
    return RF_OK;
}
