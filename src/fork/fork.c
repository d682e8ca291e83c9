/* All ranks at once: workers move items, the caller's thread watches digests, progress and
 * cancelling. */
#include "fork/fork.h"

#include "fork/internal.h"

#include <inttypes.h>
#include <string.h>

enum { FORK_DEFAULT_CONNECTIONS = 4 };

static unsigned choose_connections(const struct fork_options *options, uint64_t item_count)
{
    unsigned wanted = options->connections;

    if (wanted == 0)
        wanted =
            thread_cpus() < FORK_DEFAULT_CONNECTIONS ? thread_cpus() : FORK_DEFAULT_CONNECTIONS;
    if (wanted > FORK_MAX_CONNECTIONS)
        wanted = FORK_MAX_CONNECTIONS;
    if (wanted > item_count)
        wanted = item_count > 0 ? (unsigned)item_count : 1;
    return wanted;
}

static void check_cancel(struct fork_job *job)
{
    const struct fork_options *options = job->options;
    struct rf_error error;

    if (options->cancel == NULL || !atomic_load_explicit(options->cancel, memory_order_acquire))
        return;
    rf_fail(&error, RF_E_CANCELLED, "cancelled");
    job_fail(job, &error);
}

static bool job_over(struct fork_job *job)
{
    mutex_lock(&job->lock);
    bool over = job->failed || job->done_items == job->list.count;
    mutex_unlock(&job->lock);
    return over;
}

static void report_progress(struct fork_job *job)
{
    uint64_t total_bytes = job->list.bytes;
    uint64_t done = atomic_load_explicit(&job->arrived_bytes, memory_order_relaxed);

    if (job->options->progress == NULL)
        return;
    mutex_lock(&job->lock);
    done -= job->wasted_bytes < done ? job->wasted_bytes : done;
    mutex_unlock(&job->lock);
    /* Items that come again after a broken connection are counted twice while they do. */
    job->options->progress(job->options->progress_ctx, done < total_bytes ? done : total_bytes,
                           total_bytes);
}

/* Digests that are still missing are asked for; otherwise waits a tick, or until some are
 * missed. */
static void wait_tick(struct fork_job *job, struct digest_watch *watch)
{
    uint64_t tick_ns = clock_deadline_ns(FORK_TICK_MS);
    struct rf_error error;
    bool asked = false;

    if (job->options->verify) {
        enum rf_code code = digests_ask(job, watch, tick_ns, &asked, &error);

        if (code != RF_OK) {
            error.code = code;
            job_fail(job, &error);
            return;
        }
    }
    if (asked)
        job_compare(job);
    mutex_lock(&job->lock);
    while (!job->failed && job->done_items < job->list.count && job->workers > 0 &&
           (asked || watch->pauses || job->all_waiting == 0) &&
           cond_wait_until(&job->changed, &job->lock, tick_ns)) {
    }
    mutex_unlock(&job->lock);
}

static bool workers_gone(struct fork_job *job)
{
    mutex_lock(&job->lock);
    bool gone = job->workers == 0;
    mutex_unlock(&job->lock);
    return gone;
}

static void supervise(struct fork_job *job)
{
    struct digest_watch watch = {.turn = 0};
    uint64_t reported_ns = clock_now_ns();

    while (!job_over(job)) {
        check_cancel(job);
        if (workers_gone(job) && !job_over(job)) {
            struct rf_error error;

            rf_fail(&error, RF_E_FAILED, "all connections ended before the fork was complete");
            job_fail(job, &error);
        }
        wait_tick(job, &watch);
        if (clock_now_ns() - reported_ns >= FORK_TICK_MS * CLOCK_NS_PER_MS) {
            report_progress(job);
            reported_ns = clock_now_ns();
        }
    }
}

static enum rf_code run_workers(struct fork_job *job, struct rf_error *err)
{
    pthread_t threads[FORK_MAX_CONNECTIONS];
    unsigned started = 0;
    struct rf_error error;

    for (; started < job->connections; started++) {
        mutex_lock(&job->lock);
        job->workers++;
        mutex_unlock(&job->lock);
        if (thread_start(&threads[started], "rf-fork", fork_worker_main, job, &error) != RF_OK) {
            mutex_lock(&job->lock);
            job->workers--;
            mutex_unlock(&job->lock);
            job_fail(job, &error);
            break;
        }
    }
    supervise(job);
    job_stop(job);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    mutex_lock(&job->lock);
    enum rf_code code = RF_OK;
    if (job->failed)
        code = rf_fail(err, job->error.code, "%s", job->error.text);
    mutex_unlock(&job->lock);
    return code;
}

/* About what one read brings: the largest chunk there is. */
static uint64_t read_bytes(const struct fork_plan *plan)
{
    uint64_t bytes = MANIFEST_MIN_CHUNK_BYTES;

    for (uint32_t i = 0; i < plan->source_count; i++) {
        if (plan->sources[i].manifest->chunk_bytes > bytes)
            bytes = plan->sources[i].manifest->chunk_bytes;
    }
    return bytes;
}

enum rf_code fork_run(const struct fork_plan *plan, const struct fork_options *options,
                      struct fork_stats *ret_stats, struct rf_error *err)
{
    uint64_t start_ns = clock_now_ns();
    struct fork_job job = {
        .plan = plan, .options = options, .read_bytes = read_bytes(plan), .stop_fd = -1};
    enum rf_code code = item_list_make(plan, &job.list, err);

    if (code != RF_OK)
        return code;
    job.connections = choose_connections(options, job.list.count);
    code = job_create(&job, err);
    if (code != RF_OK)
        return code;
    if (job.list.count > 0)
        code = run_workers(&job, err);
    if (code == RF_OK && options->progress != NULL)
        options->progress(options->progress_ctx, job.list.bytes, job.list.bytes);
    if (code == RF_OK) {
        mutex_lock(&job.lock);
        *ret_stats = (struct fork_stats){
            .bytes = job.list.new_bytes,
            .wire_bytes = atomic_load_explicit(&job.arrived_bytes, memory_order_relaxed),
            .chunks = job.done_items,
            .chunks_verified = options->verify ? job.done_items : 0,
            .chunks_retried = job.retried,
            .connections = job.connections,
            .seconds = clock_seconds(start_ns, clock_now_ns()),
        };
        mutex_unlock(&job.lock);
    }
    job_destroy(&job);
    return code;
}

enum rf_code fork_rank(const struct manifest *manifest, uint32_t rank,
                       const struct transport_choice *choice,
                       const uint8_t token[CHUNK_TOKEN_BYTES], const struct fork_dest *dest,
                       struct digest_table *table, const struct fork_options *options,
                       struct fork_stats *ret_stats, struct rf_error *err)
{
    const struct fork_peer peer = {.choice = choice, .token = token, .name = "the seed"};
    const struct fork_source source = {.manifest = manifest, .table = table, .rank = rank};
    const struct fork_target target = {.dest = dest};
    struct fork_move whole = {
        .read = {.bytes = manifest->ranks[rank].stream_bytes, .count = 1},
    };
    const struct fork_plan plan = {
        .peers = &peer,
        .sources = &source,
        .targets = &target,
        .moves = &whole,
        .move_count = whole.read.bytes > 0 ? 1 : 0,
        .peer_count = 1,
        .source_count = 1,
        .target_count = 1,
    };

    return fork_run(&plan, options, ret_stats, err);
}

enum rf_code fork_map_rank(const struct manifest *manifest, uint32_t rank,
                           const struct transport_choice *choice,
                           const uint8_t token[CHUNK_TOKEN_BYTES],
                           const struct fork_options *options, struct layout *ret_layout,
                           struct transport_session **ret_session, struct rf_error *err)
{
    const struct transport *transport = choice->transport;
    struct transport_open_options open_options = {
        .timeout_ms = options->timeout_ms,
        .cancel = options->cancel,
        .cancel_fd = options->cancel_fd,
        .connections = 1,
    };
    struct transport_session *session = NULL;
    struct transport_mapping mapping = {.bytes = 0};

    if (transport->map == NULL)
        return rf_fail(err, RF_E_UNSUPPORTED, "transport %s cannot map memory: use map",
                       transport->name);
    memcpy(open_options.token, token, CHUNK_TOKEN_BYTES);
    enum rf_code code = transport->open(&choice->endpoint, &open_options, &session, err);
    if (code != RF_OK)
        return code;
    code = transport->map(session, rank, manifest->ranks[rank].stream_bytes, &mapping, err);
    if (code != RF_OK) {
        transport->close(session);
        return code;
    }
    *ret_layout = mapping.layout;
    *ret_session = session;
    return RF_OK;
}
