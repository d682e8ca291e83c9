/* What is left to do: chunks wanted, arrived, verified. */
#include "fork/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum rf_code job_create(struct fork_job *job, struct rf_error *err)
{
    mutex_init(&job->lock);
    cond_init(&job->changed);
    atomic_init(&job->stop, false);
    atomic_init(&job->arrived_bytes, 0);
    job->again = calloc(job->chunk_count + 1, sizeof(*job->again));
    job->state = calloc(job->chunk_count + 1, sizeof(*job->state));
    job->tries = calloc(job->chunk_count + 1, sizeof(*job->tries));
    job->got = calloc(job->chunk_count + 1, sizeof(*job->got));
    job->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (job->stop_fd < 0) {
        rf_fail_sys(err, "eventfd");
    } else if (job->again != NULL && job->state != NULL && job->tries != NULL && job->got != NULL) {
        return RF_OK;
    } else {
        rf_fail(err, RF_E_NOMEM, "no memory for a fork of %" PRIu64 " chunks", job->chunk_count);
    }
    enum rf_code code = job->stop_fd < 0 ? RF_E_SYS : RF_E_NOMEM;
    job_destroy(job);
    return code;
}

void job_destroy(struct fork_job *job)
{
    if (job->stop_fd >= 0)
        close(job->stop_fd);
    free(job->again);
    free(job->state);
    free(job->tries);
    free(job->got);
    cond_destroy(&job->changed);
    mutex_destroy(&job->lock);
}

void job_stop(struct fork_job *job)
{
    uint64_t one = 1;

    atomic_store_explicit(&job->stop, true, memory_order_release);
    /* Fails only when the counter is full, and then it is readable already. */
    if (write(job->stop_fd, &one, sizeof(one)) < 0)
        errno = 0;
    mutex_lock(&job->lock);
    cond_broadcast(&job->changed);
    mutex_unlock(&job->lock);
}

bool job_stopped(const struct fork_job *job)
{
    return atomic_load_explicit(&job->stop, memory_order_acquire);
}

static void fail_locked(struct fork_job *job, const struct rf_error *error) RF_REQUIRES(job->lock)
{
    if (!job->failed)
        job->error = *error;
    job->failed = true;
}

void job_fail(struct fork_job *job, const struct rf_error *error)
{
    mutex_lock(&job->lock);
    fail_locked(job, error);
    mutex_unlock(&job->lock);
    job_stop(job);
}

bool job_take(struct fork_job *job, bool wait, uint64_t *ret_chunk)
{
    bool taken = false;

    mutex_lock(&job->lock);
    while (!job_stopped(job) && job->done_chunks < job->chunk_count) {
        if (job->again_count > 0) {
            *ret_chunk = job->again[--job->again_count];
            taken = true;
        } else if (job->next_chunk < job->chunk_count) {
            *ret_chunk = job->next_chunk++;
            taken = true;
        }
        if (taken || !wait)
            break;
        cond_wait_until(&job->changed, &job->lock, clock_deadline_ns(FORK_TICK_MS));
    }
    mutex_unlock(&job->lock);
    return taken;
}

static void again_locked(struct fork_job *job, uint64_t chunk) RF_REQUIRES(job->lock)
{
    job->state[chunk] = CHUNK_WANTED;
    job->again[job->again_count++] = chunk;
    job->retried++;
    cond_broadcast(&job->changed);
}

void job_return(struct fork_job *job, uint64_t chunk)
{
    mutex_lock(&job->lock);
    again_locked(job, chunk);
    mutex_unlock(&job->lock);
}

static uint64_t chunk_size(const struct fork_job *job, uint64_t chunk)
{
    return manifest_chunk_size(job->manifest, job->rank, chunk);
}

/* "tensors a, b and 3 more" */
static void name_tensors(const struct fork_job *job, uint64_t from, uint64_t to, char *out,
                         size_t out_bytes)
{
    const struct manifest_rank *rank = &job->manifest->ranks[job->rank];
    uint32_t named = 0;
    uint32_t more = 0;
    size_t used = 0;

    for (uint32_t i = manifest_tensor_at(rank, from); i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];

        if (tensor->alias_of != MANIFEST_NONE || tensor->bytes == 0)
            continue;
        if (tensor->stream_offset >= to)
            break;
        if (named == 3 || used + tensor->name_bytes + 32 > out_bytes) {
            more++;
            continue;
        }
        used += (size_t)snprintf(out + used, out_bytes - used, "%s%s", named > 0 ? ", " : "",
                                 tensor->name);
        named++;
    }
    if (more > 0)
        snprintf(out + used, out_bytes - used, " and %" PRIu32 " more", more);
}

static void corrupt_locked(struct fork_job *job, uint64_t chunk, const uint8_t *want)
    RF_REQUIRES(job->lock)
{
    enum hash_algorithm algorithm = job->manifest->algorithm;
    uint64_t from = chunk * job->chunk_bytes;
    uint64_t bytes = chunk_size(job, chunk);
    char tensors[192] = "";
    char got_text[HASH_TEXT_BYTES];
    char want_text[HASH_TEXT_BYTES];
    struct rf_error error;

    job->wasted_bytes += bytes;
    if (job->tries[chunk] < job->options->retries && job->tries[chunk] < UINT8_MAX) {
        job->tries[chunk]++;
        again_locked(job, chunk);
        return;
    }
    name_tensors(job, from, from + bytes, tensors, sizeof(tensors));
    rf_fail(
        &error, RF_E_CORRUPT,
        "rank %" PRIu32 ", chunk %" PRIu64 " (bytes %" PRIu64 "+%" PRIu64
        ", tensors %s): arrived as %.26s, the seed says %.26s, %d times: the path or the seed's "
        "memory is faulty; try --transport, or another seed",
        job->rank, chunk, from, bytes, tensors, hash_text(algorithm, job->got[chunk], got_text),
        hash_text(algorithm, want, want_text), job->tries[chunk] + 1);
    fail_locked(job, &error);
}

static void settle_locked(struct fork_job *job, uint64_t chunk) RF_REQUIRES(job->lock)
{
    uint8_t want[HASH_MAX_BYTES];

    if (job->options->verify) {
        if (!digest_table_get(job->table, chunk, want))
            return;
        if (memcmp(want, job->got[chunk], hash_bytes(job->manifest->algorithm)) != 0) {
            corrupt_locked(job, chunk, want);
            return;
        }
    }
    job->state[chunk] = CHUNK_DONE;
    job->done_chunks++;
    if (job->done_chunks == job->chunk_count)
        cond_broadcast(&job->changed);
}

void job_arrived(struct fork_job *job, uint64_t chunk, const uint8_t *digest)
{
    mutex_lock(&job->lock);
    job->state[chunk] = CHUNK_ARRIVED;
    if (digest != NULL)
        memcpy(job->got[chunk], digest, HASH_MAX_BYTES);
    settle_locked(job, chunk);
    bool failed = job->failed;
    mutex_unlock(&job->lock);
    if (failed)
        job_stop(job);
}

void job_compare(struct fork_job *job)
{
    mutex_lock(&job->lock);
    for (uint64_t i = 0; i < job->chunk_count && !job->failed; i++) {
        if (job->state[i] == CHUNK_ARRIVED)
            settle_locked(job, i);
    }
    bool failed = job->failed;
    mutex_unlock(&job->lock);
    if (failed)
        job_stop(job);
}
