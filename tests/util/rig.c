#include "util/rig.h"

#include "base/clock.h"
#include "base/rand.h"

#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RIG_WAIT_MS = 5 * 1000, RIG_READ_MS = 10 * 1000 };

static void must(enum rf_code code, const struct rf_error *err)
{
    if (code == RF_OK)
        return;
    (void)fprintf(stderr, "rig: %s: %s\n", rf_code_name(code), err->text);
    abort();
}

/* ---- the exporter ---- */

static enum rf_code rig_lease_acquire(void *ctx, const uint8_t token[CHUNK_TOKEN_BYTES],
                                      const char *transport, void **ret_lease, struct rf_error *err)
{
    struct rig *rig = ctx;

    if (!rand_token_equal(token, rig->token, CHUNK_TOKEN_BYTES))
        return rf_fail(err, RF_E_DENIED, "%s: this token opens nothing", transport);
    mutex_lock(&rig->lock);
    rig->leases_now++;
    rig->leases_taken++;
    cond_broadcast(&rig->changed);
    mutex_unlock(&rig->lock);
    *ret_lease = rig;
    return RF_OK;
}

static enum rf_code rig_lease_open(void *ctx, const char *transport, void **ret_lease,
                                   struct rf_error *err)
{
    struct rig *rig = ctx;

    return rig_lease_acquire(ctx, rig->token, transport, ret_lease, err);
}

static void rig_lease_release(void *ctx, void *lease)
{
    struct rig *rig = ctx;

    if (lease != rig)
        abort();
    mutex_lock(&rig->lock);
    if (rig->leases_now-- == 0)
        abort();
    cond_broadcast(&rig->changed);
    mutex_unlock(&rig->lock);
}

static enum rf_code rig_lease_check(void *ctx, void *lease, struct rf_error *err)
{
    struct rig *rig = ctx;
    enum rf_code code = atomic_load_explicit(&rig->check_code, memory_order_relaxed);

    if (lease != rig)
        abort();
    return code == RF_OK ? RF_OK : rf_fail(err, code, "the lease is over");
}

static void rig_lease_account(void *ctx, void *lease, uint64_t bytes)
{
    struct rig *rig = ctx;

    if (lease != rig)
        abort();
    mutex_lock(&rig->lock);
    rig->accounted_bytes += bytes;
    cond_broadcast(&rig->changed);
    mutex_unlock(&rig->lock);
}

static const struct layout *rig_rank_layout(void *ctx, uint32_t rank)
{
    struct rig *rig = ctx;

    return rank < rig->rank_count ? &rig->ranks[rank].layout : NULL;
}

static void rig_begin(struct rig *rig)
{
    struct rf_error err = {0};

    memset(rig, 0, sizeof *rig);
    rig->exporter = (struct exporter){.ctx = rig,
                                      .lease_acquire = rig_lease_acquire,
                                      .lease_open = rig_lease_open,
                                      .lease_release = rig_lease_release,
                                      .lease_check = rig_lease_check,
                                      .lease_account = rig_lease_account,
                                      .rank_layout = rig_rank_layout};
    mutex_init(&rig->lock);
    cond_init(&rig->changed);
    must(rand_bytes(rig->token, sizeof rig->token, &err), &err);
}

/* Deals the stream out to the regions in pieces of odd sizes, so that neighbours in the stream
 * are none in memory. */
static void rig_scatter(struct rig_rank *rank, struct rand_seq *rand, struct region **regions,
                        unsigned count)
{
    uint64_t used[RIG_MAX_REGIONS] = {0};
    struct rf_error err = {0};
    uint64_t at = 0;

    for (unsigned turn = 0; at < rank->stream_bytes; turn++) {
        unsigned to = turn % count;
        uint64_t left = rank->stream_bytes - at;
        uint64_t piece = count == 1 ? left : 1 + rand_below(rand, rank->stream_bytes / 16 + 1);
        piece = piece < left ? piece : left;
        if (piece > region_bytes(regions[to]) - used[to])
            piece = region_bytes(regions[to]) - used[to];
        if (piece == 0)
            continue;
        memcpy(region_data_writable(regions[to]) + used[to], rank->bytes + at, piece);
        must(layout_add(&rank->layout, at, piece, regions[to], used[to], &err), &err);
        used[to] += piece;
        at += piece;
    }
    must(layout_finish(&rank->layout, rank->stream_bytes, &err), &err);
}

static void rig_rank_make(struct rig_rank *rank, struct rand_seq *rand, uint64_t stream_bytes,
                          unsigned regions)
{
    struct region *made[RIG_MAX_REGIONS];
    struct rf_error err = {0};

    rank->stream_bytes = stream_bytes;
    rank->bytes = malloc(stream_bytes > 0 ? stream_bytes : 1);
    if (rank->bytes == NULL)
        abort();
    for (uint64_t i = 0; i < stream_bytes; i++)
        rank->bytes[i] = (uint8_t)(rand_next(rand) >> 56);
    for (unsigned i = 0; i < regions; i++)
        must(region_create_memfd("rig", stream_bytes > 0 ? stream_bytes : 1, &made[i], &err), &err);
    rig_scatter(rank, rand, made, regions);
    for (unsigned i = 0; i < regions; i++) {
        must(region_seal(made[i], &err), &err);
        region_unref(made[i]);
    }
}

void rig_init(struct rig *rig, uint32_t ranks, uint64_t stream_bytes, unsigned regions)
{
    struct rand_seq rand = {.state = 42};

    rig_begin(rig);
    for (; rig->rank_count < ranks; rig->rank_count++)
        rig_rank_make(&rig->ranks[rig->rank_count], &rand, stream_bytes, regions);
}

void rig_init_layout(struct rig *rig, struct layout *layout)
{
    rig_begin(rig);
    rig->ranks[0] = (struct rig_rank){.layout = *layout, .stream_bytes = layout->stream_bytes};
    rig->rank_count = 1;
    *layout = (struct layout){0};
}

void rig_free(struct rig *rig)
{
    for (uint32_t i = 0; i < rig->rank_count; i++) {
        layout_free(&rig->ranks[i].layout);
        free(rig->ranks[i].bytes);
    }
    rig->rank_count = 0;
    cond_destroy(&rig->changed);
    mutex_destroy(&rig->lock);
}

bool rig_wait_leases(struct rig *rig, unsigned count)
{
    uint64_t deadline_ns = clock_deadline_ns(RIG_WAIT_MS);

    mutex_lock(&rig->lock);
    while (rig->leases_now != count && cond_wait_until(&rig->changed, &rig->lock, deadline_ns))
        ;
    bool reached = rig->leases_now == count;
    mutex_unlock(&rig->lock);
    return reached;
}

bool rig_wait_bytes(struct rig *rig, uint64_t bytes)
{
    uint64_t deadline_ns = clock_deadline_ns(RIG_WAIT_MS);

    mutex_lock(&rig->lock);
    while (rig->accounted_bytes != bytes && cond_wait_until(&rig->changed, &rig->lock, deadline_ns))
        ;
    bool reached = rig->accounted_bytes == bytes;
    mutex_unlock(&rig->lock);
    return reached;
}

unsigned rig_leases_taken(struct rig *rig)
{
    mutex_lock(&rig->lock);
    unsigned taken = rig->leases_taken;
    mutex_unlock(&rig->lock);
    return taken;
}

/* ---- the reader ---- */

static int rig_where(struct sink *sink, struct iovec *iov, int max, uint64_t *ret_bytes)
{
    struct rig_sink *rig = (struct rig_sink *)sink;
    uint64_t at = rig->done;
    int count = 0;

    while (count < max && at < rig->bytes) {
        uint64_t part = rig->bytes - at;
        if (rig->part_bytes != 0 && part > rig->part_bytes)
            part = rig->part_bytes;
        iov[count++] = (struct iovec){.iov_base = rig->at + at, .iov_len = part};
        at += part;
    }
    *ret_bytes = at - rig->done;
    return count;
}

static enum rf_code rig_took(struct sink *sink, uint64_t bytes, struct rf_error *err)
{
    struct rig_sink *rig = (struct rig_sink *)sink;

    if (bytes == 0 || bytes > rig->bytes - rig->done)
        abort(); /* a promise of transport.h is broken */
    rig->done += bytes;
    if (rig->fail_code != RF_OK && rig->done >= rig->fail_after)
        return rf_fail(err, rig->fail_code, "the sink had enough");
    return RF_OK;
}

void rig_sink_init(struct rig_sink *sink, void *at, uint64_t bytes)
{
    *sink =
        (struct rig_sink){.sink = {.where = rig_where, .took = rig_took}, .at = at, .bytes = bytes};
}

enum rf_code rig_read(const struct transport *transport, struct transport_session *session,
                      uint32_t rank, const struct stream_range *ranges, uint32_t count, void *to,
                      struct rf_error *err)
{
    struct read *done = NULL;
    struct rig_sink sink;
    struct read read = {.rank = rank, .ranges = ranges, .range_count = count, .sink = &sink.sink};

    for (uint32_t i = 0; i < count; i++)
        read.bytes += ranges[i].bytes * ranges[i].count;
    rig_sink_init(&sink, to, read.bytes);
    enum rf_code code = transport->submit(session, &read, err);
    if (code == RF_OK)
        code = transport->progress(session, clock_deadline_ns(RIG_READ_MS), &done, err);
    if (code != RF_OK)
        return code;
    if (done != &read || (read.code == RF_OK && sink.done != read.bytes))
        abort();
    if (read.code != RF_OK && err != NULL)
        *err = read.error;
    return read.code;
}

unsigned rig_open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned count = 0;

    if (dir == NULL)
        abort();
    for (const struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir))
        count += entry->d_name[0] != '.';
    (void)closedir(dir);
    return count - 1; /* dir's own */
}

void *rig_cancel_soon(void *arg)
{
    struct rig_canceller *canceller = arg;
    const uint64_t one = 1;

    (void)poll(NULL, 0, 20);
    atomic_store_explicit(&canceller->flag, true, memory_order_relaxed);
    if (canceller->fd >= 0 && write(canceller->fd, &one, sizeof one) != sizeof one)
        abort();
    return NULL;
}
