/* One connection's thread: keeps its window of reads full until nothing is left to read. */
#include "base/log.h"
#include "fork/internal.h"

#include <inttypes.h>
#include <poll.h>
#include <string.h>

enum { FORK_PAUSE_MS = 50, FORK_MAX_PAUSE_MS = 2000 };

struct worker {
    struct fork_job *job;
    const struct transport *transport; /* of the peer it is connected to */
    struct transport_session *session;
    uint32_t peer;
    struct item_slot slots[FORK_MAX_WINDOW];
    unsigned window;
    unsigned in_flight;
    uint32_t broken; /* connections of this worker that broke */
};

static enum rf_code worker_open(struct worker *worker, struct rf_error *err)
{
    struct fork_job *job = worker->job;
    const struct fork_peer *peer = &job->plan->peers[worker->peer];
    struct transport_open_options options = {
        .timeout_ms = job->options->timeout_ms,
        .cancel = &job->stop,
        .cancel_fd = job->stop_fd,
        .connections = job->connections,
        .directory = peer->directory,
    };

    memcpy(options.token, peer->token, sizeof(options.token));
    worker->transport = peer->choice->transport;
    return worker->transport->open(&peer->choice->endpoint, &options, &worker->session, err);
}

static void worker_close(struct worker *worker)
{
    worker->transport->close(worker->session);
    worker->session = NULL;
    for (unsigned i = 0; i < worker->window; i++) {
        if (worker->slots[i].busy)
            job_return(worker->job, worker->slots[i].index);
        worker->slots[i].busy = false;
    }
    worker->in_flight = 0;
}

/* Gives a path that broke a moment to come back: 50 ms, then twice as long each time. Ends at
 * once when the job does. */
static void worker_pause(const struct worker *worker)
{
    struct pollfd stop = {.fd = worker->job->stop_fd, .events = POLLIN};
    int ms = FORK_PAUSE_MS;

    for (uint32_t i = 1; i < worker->broken && ms < FORK_MAX_PAUSE_MS; i++)
        ms *= 2;
    (void)poll(&stop, 1, ms);
}

/* After a connection broke: gives its items back and says whether to open another one. */
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
             job->plan->peers[worker->peer].choice->endpoint.transport, rf_code_name(error->code),
             worker->broken, error->text);
    worker_pause(worker);
    return !job_stopped(job);
}

static struct item_slot *free_slot(struct worker *worker)
{
    for (unsigned i = 0; i < worker->window; i++) {
        if (!worker->slots[i].busy)
            return &worker->slots[i];
    }
    return NULL;
}

/* Memory of the targets before bytes are written there. What lies close together is asked for at
 * once. */
static enum rf_code prepare_targets(const struct item_slot *slot, struct rf_error *err)
{
    const struct item_parts *parts = &slot->parts;
    uint64_t from = 0;
    uint64_t to = 0;

    for (uint32_t i = 0; i < parts->extent_count; i++) {
        const struct extent *extent = &parts->extents[i];
        const struct fork_target *target = &slot->plan->targets[extent->target];
        const struct extent *next = i + 1 < parts->extent_count ? extent + 1 : NULL;
        uint64_t end = extent->write_offset + (extent->count - 1) * extent->write_stride +
                       extent_target_bytes(extent);

        if (target->prepare == NULL)
            continue;
        if (from == to)
            from = extent->write_offset;
        from = extent->write_offset < from ? extent->write_offset : from;
        to = end > to ? end : to;
        if (next != NULL && next->target == extent->target && next->write_offset >= from &&
            next->write_offset <= to + FORK_BOUNCE_BYTES)
            continue;
        enum rf_code code = target->prepare(target->prepare_ctx, from, to - from, err);
        if (code != RF_OK)
            return code;
        from = to = 0;
    }
    return RF_OK;
}

static enum rf_code worker_submit(struct worker *worker, struct item_slot *slot, uint64_t item,
                                  struct rf_error *err)
{
    struct fork_job *job = worker->job;
    enum rf_code code =
        item_slot_begin(slot, &job->list.items[item], item, job->options->verify, err);

    if (code == RF_OK)
        code = prepare_targets(slot, err);
    if (code != RF_OK) {
        job_fail(job, err); /* no connection is to blame: another one would not cure it */
        return code;
    }
    return worker->transport->submit(worker->session, &slot->read, err);
}

/* Submits until the window is full or nothing is left. RF_OK also when nothing could be
 * submitted. */
static enum rf_code worker_fill(struct worker *worker, struct rf_error *err)
{
    struct fork_job *job = worker->job;
    struct item_slot *slot;

    while ((slot = free_slot(worker)) != NULL) {
        uint64_t item;

        if (!job_take(job, worker->peer, worker->in_flight == 0, &item))
            return RF_OK;
        enum rf_code code = worker_submit(worker, slot, item, err);

        if (code == RF_OK) {
            worker->in_flight++;
            continue;
        }
        if (code == RF_AGAIN && worker->in_flight > 0) {
            slot->busy = false;
            job_return(job, item);
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
    struct item_slot *slot = read->user;
    bool verify = worker->job->options->verify;
    uint8_t digest[HASH_MAX_BYTES];
    char rank[80];

    if (read->code != RF_OK) {
        *err = read->error;
        err->code = read->code;
        /* The slot stays busy: worker_close() returns its item. */
        return rf_error_wrap(err, read->code, "%s", job_rank_text(worker->job, slot->index, rank));
    }
    worker->in_flight--;
    slot->busy = false;
    if (slot->done != slot->read.bytes || slot->kept > 0)
        return rf_fail(err, RF_E_PROTO, "%s: %" PRIu64 " of %" PRIu64 " bytes arrived",
                       job_rank_text(worker->job, slot->index, rank), slot->done, slot->read.bytes);
    if (verify)
        item_slot_digest(slot, digest);
    job_arrived(worker->job, slot->index, verify ? digest : NULL,
                read->digest != 0 ? read->said : NULL);
    return RF_OK;
}

/* Until nothing is left to read from this peer (RF_OK), or the connection fails. */
static enum rf_code worker_pump(struct worker *worker, struct rf_error *err)
{
    struct fork_job *job = worker->job;
    enum rf_code code = RF_OK;

    while (code == RF_OK && !job_stopped(job)) {
        struct read *done = NULL;

        code = worker_fill(worker, err);
        if (code != RF_OK || worker->in_flight == 0)
            break;
        code = worker->transport->progress(worker->session, clock_deadline_ns(FORK_TICK_MS), &done,
                                           err);
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
    char rank[80];

    if (code == RF_OK)
        code = worker_pump(worker, err);
    else if (worker->job->plan->source_count > 1 &&
             job_lacking_text(worker->job, worker->peer, rank)[0] != '\0')
        rf_error_wrap(err, code, "%s", rank);
    worker_close(worker);
    return code;
}

/* Connects to one peer after the other until all is done. */
static void worker_serve(struct worker *worker)
{
    struct fork_job *job = worker->job;
    struct rf_error error = {.code = RF_OK};

    while (job_take_peer(job, &worker->peer)) {
        const struct fork_peer *peer = &job->plan->peers[worker->peer];
        enum rf_code code = worker_run(worker, &error);

        job_leave_peer(job, worker->peer);
        if (code == RF_OK)
            continue;
        error.code = code;
        if (job->plan->peer_count > 1)
            rf_error_wrap(&error, code, "%s", peer->name);
        if (!worker_may_reopen(worker, &error))
            return;
    }
}

void *fork_worker_main(void *arg)
{
    struct fork_job *job = arg;
    struct worker worker = {.job = job};
    uint64_t window = FORK_WINDOW_BYTES / job->read_bytes;

    worker.window = (unsigned)(window < 2                 ? 2
                               : window > FORK_MAX_WINDOW ? FORK_MAX_WINDOW
                                                          : window);
    for (unsigned i = 0; i < worker.window; i++)
        item_slot_init(&worker.slots[i], job->plan, job->list.bytes >= MEMORY_STREAM_BYTES,
                       &job->arrived_bytes);
    worker_serve(&worker);
    for (unsigned i = 0; i < worker.window; i++)
        item_slot_free(&worker.slots[i]);
    mutex_lock(&job->lock);
    job->workers--;
    cond_broadcast(&job->changed);
    mutex_unlock(&job->lock);
    return NULL;
}
