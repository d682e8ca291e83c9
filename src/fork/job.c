/* What is left to do: items wanted, arrived, verified. */
#include "fork/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Items lie by source, sources by peer: each peer has a run of them. */
static void share_out(struct fork_job *job)
{
    uint32_t peer = 0;

    for (uint64_t i = 0; i < job->list.count; i++) {
        uint32_t of = job_peer_of(job, i);

        for (; peer < of; peer++)
            job->peers[peer + 1] = (struct peer_items){.first = i, .next = i, .end = i};
        job->peers[of].end = i + 1;
    }
    for (; peer + 1 < job->plan->peer_count; peer++)
        job->peers[peer + 1] = (struct peer_items){
            .first = job->list.count, .next = job->list.count, .end = job->list.count};
}

enum rf_code job_create(struct fork_job *job, struct rf_error *err)
{
    uint64_t count = job->list.count + 1;

    mutex_init(&job->lock);
    cond_init(&job->changed);
    atomic_init(&job->stop, false);
    atomic_init(&job->arrived_bytes, 0);
    job->peers = calloc((size_t)job->plan->peer_count + 1, sizeof(*job->peers));
    job->waiting = calloc((size_t)job->plan->source_count + 1, sizeof(*job->waiting));
    job->again = calloc(count, sizeof(*job->again));
    job->state = calloc(count, sizeof(*job->state));
    job->tries = calloc(count, sizeof(*job->tries));
    job->got = calloc(count, sizeof(*job->got));
    job->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (job->stop_fd < 0) {
        rf_fail_sys(err, "eventfd");
    } else if (job->peers != NULL && job->waiting != NULL && job->again != NULL &&
               job->state != NULL && job->tries != NULL && job->got != NULL) {
        share_out(job);
        return RF_OK;
    } else {
        rf_fail(err, RF_E_NOMEM, "no memory for a fork of %" PRIu64 " reads", job->list.count);
    }
    enum rf_code code = job->stop_fd < 0 ? RF_E_SYS : RF_E_NOMEM;
    job_destroy(job);
    return code;
}

void job_destroy(struct fork_job *job)
{
    if (job->stop_fd >= 0)
        close(job->stop_fd);
    free(job->peers);
    free(job->waiting);
    free(job->again);
    free(job->state);
    free(job->tries);
    free(job->got);
    item_list_free(&job->list);
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

uint32_t job_peer_of(const struct fork_job *job, uint64_t item)
{
    return job->plan->sources[job->list.items[item].source].peer;
}

const char *job_rank_text(const struct fork_job *job, uint64_t item, char out[80])
{
    const struct fork_source *source = &job->plan->sources[job->list.items[item].source];
    char id[64];

    snprintf(out, 80, "rank %s", rank_id_text(&source->manifest->ranks[source->rank].id, id));
    return out;
}

const char *job_lacking_text(struct fork_job *job, uint32_t peer, char out[80])
{
    mutex_lock(&job->lock);
    uint64_t item = job->peers[peer].first;
    while (item < job->peers[peer].end && job->state[item] == ITEM_DONE)
        item++;
    bool lacks = item < job->peers[peer].end;
    mutex_unlock(&job->lock);
    out[0] = '\0';
    return lacks ? job_rank_text(job, item, out) : out;
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

/* ---- giving out ---- */

static bool has_items(const struct peer_items *peer)
{
    return peer->again_count > 0 || peer->next < peer->end;
}

/* Of those with something to read the one with the fewest workers; peer_count if there is none. */
static uint32_t choose_locked(const struct fork_job *job) RF_REQUIRES(job->lock)
{
    uint32_t best = job->plan->peer_count;

    for (uint32_t i = 0; i < job->plan->peer_count; i++) {
        if (has_items(&job->peers[i]) &&
            (best == job->plan->peer_count || job->peers[i].workers < job->peers[best].workers))
            best = i;
    }
    return best;
}

bool job_take_peer(struct fork_job *job, uint32_t *ret_peer)
{
    bool taken = false;

    mutex_lock(&job->lock);
    while (!job_stopped(job) && job->done_items < job->list.count) {
        uint32_t peer = choose_locked(job);

        if (peer < job->plan->peer_count) {
            job->peers[peer].workers++;
            *ret_peer = peer;
            taken = true;
            break;
        }
        cond_wait_until(&job->changed, &job->lock, clock_deadline_ns(FORK_TICK_MS));
    }
    mutex_unlock(&job->lock);
    return taken;
}

void job_leave_peer(struct fork_job *job, uint32_t peer)
{
    mutex_lock(&job->lock);
    job->peers[peer].workers--;
    mutex_unlock(&job->lock);
}

bool job_take(struct fork_job *job, uint32_t peer, bool wait, uint64_t *ret_item)
{
    bool taken = false;

    mutex_lock(&job->lock);
    struct peer_items *items = &job->peers[peer];
    while (!job_stopped(job) && job->done_items < job->list.count) {
        if (items->again_count > 0) {
            *ret_item = job->again[items->first + --items->again_count];
            taken = true;
        } else if (items->next < items->end) {
            *ret_item = items->next++;
            taken = true;
        }
        if (taken || !wait || choose_locked(job) < job->plan->peer_count)
            break;
        cond_wait_until(&job->changed, &job->lock, clock_deadline_ns(FORK_TICK_MS));
    }
    mutex_unlock(&job->lock);
    return taken;
}

static void again_locked(struct fork_job *job, uint64_t item) RF_REQUIRES(job->lock)
{
    struct peer_items *items = &job->peers[job_peer_of(job, item)];

    job->state[item] = ITEM_WANTED;
    job->again[items->first + items->again_count++] = item;
    job->retried++;
    cond_broadcast(&job->changed);
}

void job_return(struct fork_job *job, uint64_t item)
{
    mutex_lock(&job->lock);
    again_locked(job, item);
    mutex_unlock(&job->lock);
}

/* ---- verifying ---- */

/* "tensors a, b and 3 more" */
static void name_tensors(const struct manifest_rank *rank, uint64_t from, uint64_t to, char *out,
                         size_t out_bytes)
{
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

/* Where in the source's stream an item's bytes are. */
static void item_reach(const struct fork_job *job, const struct item *item, uint64_t *ret_from,
                       uint64_t *ret_to)
{
    const struct fork_move *move = &job->plan->moves[item->first_move];

    *ret_from = item->lo;
    *ret_to = item->hi;
    if (item->kind == ITEM_LINEAR) {
        *ret_from = move->read.offset + item->lo / move->read.bytes * move->read.stride;
        *ret_to = move->read.offset + (item->hi - 1) / move->read.bytes * move->read.stride +
                  move->read.bytes;
    }
}

static void corrupt_locked(struct fork_job *job, uint64_t index, const uint8_t *want)
    RF_REQUIRES(job->lock)
{
    const struct item *item = &job->list.items[index];
    const struct fork_source *source = &job->plan->sources[item->source];
    enum hash_algorithm algorithm = source->manifest->algorithm;
    char tensors[160] = "";
    char got_text[HASH_TEXT_BYTES];
    char want_text[HASH_TEXT_BYTES];
    char rank[80];
    char what[64];
    uint64_t from;
    uint64_t to;
    struct rf_error error;

    job->wasted_bytes += item->bytes;
    if (job->tries[index] < job->options->retries && job->tries[index] < UINT8_MAX) {
        job->tries[index]++;
        again_locked(job, index);
        return;
    }
    item_reach(job, item, &from, &to);
    name_tensors(&source->manifest->ranks[source->rank], from, to, tensors, sizeof(tensors));
    if (item->kind == ITEM_CHUNK)
        snprintf(what, sizeof(what), "chunk %" PRIu64, item->lo / source->manifest->chunk_bytes);
    else
        snprintf(what, sizeof(what), "slices of %" PRIu64 " bytes", item->bytes);
    rf_fail(
        &error, RF_E_CORRUPT,
        "%s, %s (bytes %" PRIu64 "+%" PRIu64
        ", tensors %s): arrived as %.26s, the seed says %.26s, %d times: the path or the seed's "
        "memory is faulty; try --transport, or another seed",
        job_rank_text(job, index, rank), what, from, to - from, tensors,
        hash_text(algorithm, job->got[index], got_text), hash_text(algorithm, want, want_text),
        job->tries[index] + 1);
    fail_locked(job, &error);
}

/* said: what the seed said of this very read; NULL: its table says, perhaps not yet. */
static void settle_locked(struct fork_job *job, uint64_t index, const uint8_t *said)
    RF_REQUIRES(job->lock)
{
    const struct item *item = &job->list.items[index];
    const struct fork_source *source = &job->plan->sources[item->source];
    uint8_t want[HASH_MAX_BYTES];

    if (job->options->verify) {
        if (said != NULL)
            memcpy(want, said, sizeof(want));
        else if (!digest_table_get(source->table, item->lo / source->manifest->chunk_bytes, want))
            return;
        if (said == NULL) {
            job->waiting[item->source]--;
            job->all_waiting--;
        }
        if (memcmp(want, job->got[index], hash_bytes(source->manifest->algorithm)) != 0) {
            corrupt_locked(job, index, want);
            return;
        }
    }
    job->state[index] = ITEM_DONE;
    job->done_items++;
    if (job->done_items == job->list.count)
        cond_broadcast(&job->changed);
}

void job_arrived(struct fork_job *job, uint64_t item, const uint8_t *digest, const uint8_t *said)
{
    mutex_lock(&job->lock);
    job->state[item] = ITEM_ARRIVED;
    if (digest != NULL)
        memcpy(job->got[item], digest, HASH_MAX_BYTES);
    if (digest != NULL && said == NULL) {
        job->waiting[job->list.items[item].source]++;
        job->all_waiting++;
    }
    settle_locked(job, item, said);
    if (job->all_waiting == 1) /* whoever asks for digests may not know yet */
        cond_broadcast(&job->changed);
    bool failed = job->failed;
    mutex_unlock(&job->lock);
    if (failed)
        job_stop(job);
}

void job_compare(struct fork_job *job)
{
    mutex_lock(&job->lock);
    for (uint64_t i = 0; i < job->list.count && !job->failed; i++) {
        if (job->state[i] == ITEM_ARRIVED && job->waiting[job->list.items[i].source] > 0)
            settle_locked(job, i, NULL);
    }
    bool failed = job->failed;
    mutex_unlock(&job->lock);
    if (failed)
        job_stop(job);
}
