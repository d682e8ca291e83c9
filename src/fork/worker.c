/* One connection's thread: keeps its window of reads full until no chunk is left. */
#include "base/log.h"
#include "fork/internal.h"

#include <inttypes.h>
#include <string.h>

struct worker {
    struct fork_job *job;
    struct transport_session *session;
    struct chunk_slot slots[FORK_MAX_WINDOW];
    unsigned window;
    unsigned in_flight;
    uint32_t broken; /* connections of this worker that broke */
};

static enum rf_code worker_open(struct worker *worker, struct rf_error *err)
{
    struct fork_job *job = worker->job;
    struct transport_open_options options = {
        .timeout_ms = job->options->timeout_ms,
        .cancel = &job->stop,
        .cancel_fd = job->stop_fd,
        .connections = job->connections,
    };

    memcpy(options.token, job->token, sizeof(options.token));
    return job->choice->transport->open(&job->choice->endpoint, &options, &worker->session, err);
}

static void worker_close(struct worker *worker)
{
    worker->job->choice->transport->close(worker->session);
    worker->session = NULL;
    for (unsigned i = 0; i < worker->window; i++) {
        if (worker->slots[i].busy)
            job_return(worker->job, worker->slots[i].chunk);
        worker->slots[i].busy = false;
    }
    worker->in_flight = 0;
}

/* What another connection may cure. */
static bool code_is_of_the_path(enum rf_code code)
{
    return code == RF_E_UNREACHABLE || code == RF_E_TIMEOUT || code == RF_E_PROTO;
}

/* After a connection broke: gives its chunks back and says whether to open another one. */
static bool worker_may_reopen(struct worker *worker, const struct rf_error *error)
{
    struct fork_job *job = worker->job;

    if (job_stopped(job))
        return false;
    if (!code_is_of_the_path(error->code) || worker->broken >= job->options->retries) {
        job_fail(job, error);
        return false;
    }
    worker->broken++;
    log_warn("connection broke", "transport=%s code=%s attempt=%" PRIu32 " why=\"%s\"",
             job->choice->endpoint.transport, rf_code_name(error->code), worker->broken,
             error->text);
    return true;
}

static struct chunk_slot *free_slot(struct worker *worker)
{
    for (unsigned i = 0; i < worker->window; i++) {
        if (!worker->slots[i].busy)
            return &worker->slots[i];
    }
    return NULL;
}

static enum rf_code worker_submit(struct worker *worker, struct chunk_slot *slot, uint64_t chunk,
                                  struct rf_error *err)
{
    struct fork_job *job = worker->job;
    const struct fork_options *options = job->options;
    uint64_t offset = chunk * job->chunk_bytes;
    uint64_t bytes = manifest_chunk_size(job->manifest, job->rank, chunk);

    if (options->prepare != NULL) {
        enum rf_code code = options->prepare(options->prepare_ctx, offset, bytes, err);

        if (code != RF_OK)
            return code;
    }
    chunk_slot_begin(slot, job->rank, chunk, offset, bytes);
    return job->choice->transport->submit(worker->session, &slot->read, err);
}

/* Submits until the window is full or nothing is left. RF_OK also when nothing could be
 * submitted. */
static enum rf_code worker_fill(struct worker *worker, struct rf_error *err)
{
    struct fork_job *job = worker->job;
    struct chunk_slot *slot;

    while ((slot = free_slot(worker)) != NULL) {
        uint64_t chunk;

        if (!job_take(job, worker->in_flight == 0, &chunk))
            return RF_OK;
        enum rf_code code = worker_submit(worker, slot, chunk, err);

        if (code == RF_OK) {
            worker->in_flight++;
            continue;
        }
        if (code == RF_AGAIN && worker->in_flight > 0) {
            slot->busy = false;
            job_return(job, chunk);
            return RF_OK;
        }
        if (code == RF_AGAIN)
            code =
                rf_fail(err, RF_E_PROTO, "the transport takes no read although none is in flight");
        return code;
    }
    return RF_OK;
}

static enum rf_code worker_finish_read(struct worker *worker, struct read *read,
                                       struct rf_error *err)
{
    struct chunk_slot *slot = read->user;
    uint8_t digest[HASH_MAX_BYTES];

    if (read->code != RF_OK) {
        *err = read->error;
        err->code = read->code;
        return read->code; /* the slot stays busy: worker_close() returns its chunk */
    }
    worker->in_flight--;
    slot->busy = false;
    if (slot->done != slot->range.bytes)
        return rf_fail(err, RF_E_PROTO,
                       "chunk %" PRIu64 ": %" PRIu64 " of %" PRIu64 " bytes arrived", slot->chunk,
                       slot->done, slot->range.bytes);
    if (slot->hasher != NULL)
        chunk_hasher_final(slot->hasher, digest);
    job_arrived(worker->job, slot->chunk, slot->hasher != NULL ? digest : NULL);
    return RF_OK;
}

/* Until all is done (RF_OK) or the connection fails. */
static enum rf_code worker_pump(struct worker *worker, struct rf_error *err)
{
    struct fork_job *job = worker->job;
    enum rf_code code = RF_OK;

    while (code == RF_OK && !job_stopped(job)) {
        struct read *done = NULL;

        code = worker_fill(worker, err);
        if (code != RF_OK || worker->in_flight == 0)
            break;
        code = job->choice->transport->progress(worker->session, clock_deadline_ns(FORK_TICK_MS),
                                                &done, err);
        if (code == RF_E_TIMEOUT && done == NULL)
            code = RF_OK; /* only our tick: the session itself watches for silence */
        else if (code == RF_OK)
            code = worker_finish_read(worker, done, err);
    }
    return code;
}

static enum rf_code worker_run(struct worker *worker, struct rf_error *err)
{
    enum rf_code code = worker_open(worker, err);

    if (code == RF_OK)
        code = worker_pump(worker, err);
    worker_close(worker);
    return code;
}

void *fork_worker_main(void *arg)
{
    struct fork_job *job = arg;
    struct worker worker = {.job = job};
    struct rf_error error = {.code = RF_OK};
    enum rf_code code = RF_OK;
    uint64_t window = FORK_WINDOW_BYTES / job->chunk_bytes;

    worker.window = (unsigned)(window < 2                 ? 2
                               : window > FORK_MAX_WINDOW ? FORK_MAX_WINDOW
                                                          : window);
    for (unsigned i = 0; i < worker.window && code == RF_OK; i++)
        code = chunk_slot_init(&worker.slots[i], job->dest, job->manifest->algorithm,
                               job->options->verify, job->to_files, &error);
    for (unsigned i = 0; i < worker.window; i++)
        worker.slots[i].arrived_bytes = &job->arrived_bytes;
    if (code != RF_OK)
        job_fail(job, &error);
    while (code == RF_OK && !job_stopped(job)) {
        code = worker_run(&worker, &error);
        if (code == RF_OK)
            break;
        error.code = code;
        if (worker_may_reopen(&worker, &error))
            code = RF_OK;
    }
    for (unsigned i = 0; i < worker.window; i++)
        chunk_slot_free(&worker.slots[i]);
    mutex_lock(&job->lock);
    job->workers--;
    cond_broadcast(&job->changed);
    mutex_unlock(&job->lock);
    return NULL;
}
