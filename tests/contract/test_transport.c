/* The promises of transport.h, asked of every transport that works here, plain and through a fault
 * that delays and cuts pieces small but breaks no promise. Which ones run, and why others do not,
 * is printed first.
 *
 * ctest: timeout=300 */
#include "base/clock.h"
#include "base/rand.h"
#include "transport/read_digest.h"
#include "util/rig.h"

#include <dirent.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    STREAM_BYTES = 6 * 1000 * 1000 + 7,
    WAIT_MS = 20 * 1000,
    READS = CHUNK_MAX_IN_FLIGHT,
    REGION_KINDS = 4,
    MAX_SUBJECTS = 32,
    CLOSES = 300,
};

/* One transport under one name. */
struct subject {
    char name[TRANSPORT_NAME_BYTES];
    const struct transport *transport;
};

/* A seed over a stream, and its reader's way to it. */
struct world {
    const struct transport *transport;
    struct rig rig;
    uint8_t *content;
    struct transport_seed *seed;
    struct endpoint endpoint;
    struct transport_open_options options;
};

/* ---- the seed's side ---- */

/* A region of each kind with the same content. */
static struct region *region_of(unsigned kind, const uint8_t *content)
{
    struct region *region = NULL;
    struct rf_error err = {0};

    if (kind == 0) {
        assert_int_equal(region_create_borrowed(content, STREAM_BYTES, &region, &err), RF_OK);
    } else if (kind == 1) {
        assert_int_equal(region_create_memfd("contract", STREAM_BYTES, &region, &err), RF_OK);
        memcpy(region_data_writable(region), content, STREAM_BYTES);
        assert_int_equal(region_seal(region, &err), RF_OK);
    } else if (kind == 2) {
        assert_int_equal(region_create_anonymous(STREAM_BYTES, &region, &err), RF_OK);
        memcpy(region_data_writable(region), content, STREAM_BYTES);
    } else {
        char path[] = "/tmp/rfork-contract-XXXXXX";
        int fd = mkstemp(path);
        assert_true(fd >= 0);
        unlink(path);
        assert_int_equal(write(fd, content, STREAM_BYTES), STREAM_BYTES);
        assert_int_equal(region_create_file(path, fd, &region, &err), RF_OK);
        close(fd);
    }
    return region;
}

/* The content dealt out to regions of all kinds in pieces from one byte to a megabyte. */
static void mix_layout(struct layout *layout, const uint8_t *content, struct rand_seq *rand)
{
    struct region *regions[REGION_KINDS];
    struct rf_error err = {0};
    uint64_t at = 0;

    for (unsigned i = 0; i < REGION_KINDS; i++)
        regions[i] = region_of(i, content);
    while (at < STREAM_BYTES) {
        uint64_t most = UINT64_C(1) << rand_below(rand, 21);
        uint64_t bytes = 1 + rand_below(rand, most);
        if (bytes > STREAM_BYTES - at)
            bytes = STREAM_BYTES - at;
        struct region *region = regions[rand_below(rand, REGION_KINDS)];
        assert_int_equal(layout_add(layout, at, bytes, region, at, &err), RF_OK);
        at += bytes;
    }
    assert_int_equal(layout_finish(layout, STREAM_BYTES, &err), RF_OK);
    for (unsigned i = 0; i < REGION_KINDS; i++)
        region_unref(regions[i]);
}

static enum rf_code seed_start(struct world *world, const char *name, struct rf_error *err)
{
    const struct transport_seed_options options = {.host = "127.0.0.1", .spec = name};

    return world->transport->seed_start(&world->rig.exporter, &options, &world->seed,
                                        &world->endpoint, err);
}

static void world_start(struct world *world, const struct subject *subject)
{
    struct rand_seq rand = {.state = 7};
    struct layout layout = {0};
    struct rf_error err = {0};

    memset(world, 0, sizeof *world);
    world->transport = subject->transport;
    world->content = malloc(STREAM_BYTES);
    assert_non_null(world->content);
    for (uint64_t i = 0; i < STREAM_BYTES; i++)
        world->content[i] = (uint8_t)(rand_next(&rand) >> 56);
    mix_layout(&layout, world->content, &rand);
    rig_init_layout(&world->rig, &layout);

    enum rf_code code = seed_start(world, subject->name, &err);
    if (code == RF_E_UNSUPPORTED) { /* it shares memory, which not every region is */
        rig_free(&world->rig);
        rig_init(&world->rig, 1, STREAM_BYTES, 3);
        memcpy(world->content, world->rig.ranks[0].bytes, STREAM_BYTES);
        code = seed_start(world, subject->name, &err);
    }
    if (code != RF_OK)
        fail_msg("%s: seed_start: %s", subject->name, err.text);
    world->options = (struct transport_open_options){.timeout_ms = WAIT_MS, .cancel_fd = -1};
    memcpy(world->options.token, world->rig.token, CHUNK_TOKEN_BYTES);
}

static void world_stop(struct world *world)
{
    world->transport->seed_stop(world->seed);
    assert_true(rig_wait_leases(&world->rig, 0));
    rig_free(&world->rig);
    free(world->content);
}

/* ---- the reader's side ---- */

static struct transport_session *open_session(struct world *world)
{
    struct transport_session *session = NULL;
    struct rf_error err = {0};

    enum rf_code code = world->transport->open(&world->endpoint, &world->options, &session, &err);
    if (code != RF_OK)
        fail_msg("open: %s: %s", rf_code_name(code), err.text);
    return session;
}

/* A read of random ranges, with a sink of its own memory. */
struct job {
    struct read read;
    struct rig_sink sink;
    struct stream_range ranges[8];
    uint8_t *to;
    unsigned ended; /* how often it was returned */
};

static void job_init(struct job *job, struct rand_seq *rand, uint64_t most_bytes)
{
    memset(job, 0, sizeof *job);
    uint32_t count = 1 + (uint32_t)rand_below(rand, 8);
    for (uint32_t i = 0; i < count; i++) {
        struct stream_range *range = &job->ranges[i];
        range->bytes = 1 + rand_below(rand, most_bytes / count / 4);
        range->count = 1;
        if (rand_below(rand, 3) == 0) {
            range->count = 2 + rand_below(rand, 3);
            range->stride = range->bytes + rand_below(rand, 1000);
        }
        uint64_t reach = range->stride * (range->count - 1) + range->bytes;
        range->offset = rand_below(rand, STREAM_BYTES - reach + 1);
        job->read.bytes += range->bytes * range->count;
    }
    job->to = malloc(job->read.bytes);
    assert_non_null(job->to);
    rig_sink_init(&job->sink, job->to, job->read.bytes);
    job->sink.part_bytes = rand_below(rand, 2) == 0 ? 0 : 1 + rand_below(rand, 100 * 1000);
    job->read.digest = (enum hash_algorithm)rand_below(rand, HASH_SHA256 + 1);
    job->read.ranges = job->ranges;
    job->read.range_count = count;
    job->read.sink = &job->sink.sink;
    job->read.user = job;
}

/* One plain range. */
static void job_init_range(struct job *job, uint64_t offset, uint64_t bytes)
{
    memset(job, 0, sizeof *job);
    job->ranges[0] = (struct stream_range){.offset = offset, .bytes = bytes, .count = 1};
    job->to = malloc(bytes);
    assert_non_null(job->to);
    rig_sink_init(&job->sink, job->to, bytes);
    job->read = (struct read){.ranges = job->ranges,
                              .range_count = 1,
                              .bytes = bytes,
                              .sink = &job->sink.sink,
                              .user = job};
}

/* What the seed says it sent is what was asked for. */
static void job_check_digest(const struct job *job)
{
    const struct read *read = &job->read;
    struct read_digest digest = {.hasher = NULL};
    uint8_t ours[HASH_MAX_BYTES];

    if (read->digest == 0)
        return;
    assert_int_equal(read_digest_begin(&digest, read->digest, NULL), RF_OK);
    read_digest_update(&digest, job->to, read->bytes);
    read_digest_final(&digest, read->rank, read->ranges, read->range_count, ours);
    assert_memory_equal(ours, read->said, hash_bytes(read->digest));
    read_digest_free(&digest);
}

/* Checks a read that ended well, byte by byte. */
static void job_check(const struct world *world, const struct job *job)
{
    const uint8_t *at = job->to;

    assert_int_equal(job->sink.done, job->read.bytes);
    for (uint32_t i = 0; i < job->read.range_count; i++) {
        const struct stream_range *range = &job->ranges[i];
        for (uint64_t k = 0; k < range->count; k++, at += range->bytes)
            assert_memory_equal(at, world->content + range->offset + k * range->stride,
                                range->bytes);
    }
    job_check_digest(job);
}

static void submit(struct world *world, struct transport_session *session, struct job *job)
{
    struct rf_error err = {0};

    enum rf_code code = world->transport->submit(session, &job->read, &err);
    if (code != RF_OK)
        fail_msg("submit: %s: %s", rf_code_name(code), err.text);
}

/* The next read that ends, however. */
static struct job *next_ended(struct world *world, struct transport_session *session)
{
    struct rf_error err = {0};
    struct read *done = NULL;

    enum rf_code code =
        world->transport->progress(session, clock_deadline_ns(WAIT_MS), &done, &err);
    if (code != RF_OK)
        fail_msg("progress: %s: %s", rf_code_name(code), err.text);
    struct job *job = done->user;
    assert_ptr_equal(done, &job->read);
    job->ended++;
    assert_int_equal(job->ended, 1);
    return job;
}

/* ---- reads ---- */

static void each_read_ends_once_with_its_bytes(void **state)
{
    struct rand_seq rand = {.state = 11};
    struct job jobs[READS];
    struct world world;
    unsigned in_flight = 0;

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    memset(jobs, 0, sizeof jobs);
    for (unsigned i = 0; i < READS; i++) {
        job_init(&jobs[i], &rand, 2 << 20);
        submit(&world, session, &jobs[i]);
        in_flight++;
    }
    for (unsigned more = 40; in_flight > 0;) {
        struct job *job = next_ended(&world, session);
        if (job->read.code != RF_OK)
            fail_msg("read: %s", job->read.error.text);
        job_check(&world, job);
        free(job->to);
        in_flight--;
        if (more > 0) {
            more--;
            job_init(job, &rand, 1 << rand_below(&rand, 22) | 1 << 10);
            submit(&world, session, job);
            in_flight++;
        }
    }
    world.transport->close(session);
    world_stop(&world);
}

static void the_whole_stream_arrives(void **state)
{
    struct world world;
    struct job job;

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    job_init_range(&job, 0, STREAM_BYTES);
    submit(&world, session, &job);
    assert_ptr_equal(next_ended(&world, session), &job);
    assert_int_equal(job.read.code, RF_OK);
    job_check(&world, &job);
    free(job.to);
    world.transport->close(session);
    world_stop(&world);
}

static void a_full_window_says_again_and_loses_nothing(void **state)
{
    struct job jobs[READS + 1];
    struct world world;
    struct rf_error err = {0};
    unsigned taken = 0;
    enum rf_code code = RF_OK;

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    for (unsigned i = 0; i <= READS; i++)
        job_init_range(&jobs[i], i * 1000, 100 * 1000);
    while (taken <= READS &&
           (code = world.transport->submit(session, &jobs[taken].read, &err)) == RF_OK)
        taken++;
    if (taken <= READS) {
        assert_int_equal(code, RF_AGAIN);
        assert_true(taken >= 1);
    }
    for (unsigned i = 0; i < taken; i++) {
        struct job *job = next_ended(&world, session);
        assert_int_equal(job->read.code, RF_OK);
        job_check(&world, job);
    }
    for (unsigned i = 0; i <= READS; i++)
        free(jobs[i].to);
    world.transport->close(session);
    world_stop(&world);
}

static void without_a_read_progress_says_so(void **state)
{
    struct world world;
    struct rf_error err = {0};
    struct read *done = NULL;

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    assert_int_equal(world.transport->progress(session, clock_deadline_ns(WAIT_MS), &done, &err),
                     RF_E_INVAL);
    assert_null(done);
    world.transport->close(session);
    world.transport->close(NULL);
    world_stop(&world);
    world.transport->seed_stop(NULL);
}

static void a_malformed_read_is_not_taken(void **state)
{
    struct world world;
    struct rf_error err = {0};
    struct job job;

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    job_init_range(&job, 0, 1000);
    job.read.range_count = 0;
    assert_int_equal(world.transport->submit(session, &job.read, &err), RF_E_INVAL);
    job.read.range_count = CHUNK_MAX_RANGES + 1;
    assert_int_equal(world.transport->submit(session, &job.read, &err), RF_E_INVAL);
    job.read.range_count = 1;
    job.read.bytes = 999;
    assert_int_equal(world.transport->submit(session, &job.read, &err), RF_E_INVAL);
    job.ranges[0].bytes = CHUNK_MAX_READ_BYTES + 1;
    job.read.bytes = CHUNK_MAX_READ_BYTES + 1;
    assert_int_equal(world.transport->submit(session, &job.read, &err), RF_E_INVAL);
    free(job.to);
    world.transport->close(session);
    world_stop(&world);
}

/* ---- refusals ---- */

/* Submits a read that must fail with a code, between two that must not. */
static void fails_alone(struct world *world, struct transport_session *session, struct job *bad,
                        enum rf_code code)
{
    struct job good[2];

    job_init_range(&good[0], 5, 300 * 1000);
    job_init_range(&good[1], 77, 2000);
    submit(world, session, &good[0]);
    submit(world, session, bad);
    submit(world, session, &good[1]);
    for (unsigned i = 0; i < 3; i++) {
        struct job *job = next_ended(world, session);
        if (job != bad) {
            assert_int_equal(job->read.code, RF_OK);
            job_check(world, job);
            continue;
        }
        assert_int_equal(job->read.code, code);
        assert_int_equal(job->read.error.code, code);
        assert_true(strlen(job->read.error.text) > 10);
    }
    free(good[0].to);
    free(good[1].to);
}

static void a_refused_read_fails_alone(void **state)
{
    struct world world;
    struct job job;

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    job_init_range(&job, 0, 1000);
    job.read.rank = 99;
    fails_alone(&world, session, &job, RF_E_INVAL);
    free(job.to);
    job_init_range(&job, STREAM_BYTES - 999, 1000);
    fails_alone(&world, session, &job, RF_E_INVAL);
    free(job.to);
    job_init_range(&job, 0, 1000);
    job.ranges[0] =
        (struct stream_range){.offset = 10, .bytes = 500, .stride = STREAM_BYTES - 509, .count = 2};
    fails_alone(&world, session, &job, RF_E_INVAL);
    free(job.to);
    world.transport->close(session);
    world_stop(&world);
}

static void a_sink_that_fails_fails_its_read_alone(void **state)
{
    struct world world;
    struct job job;

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    job_init_range(&job, 100, 3 * 1000 * 1000);
    job.sink.fail_code = RF_E_CORRUPT;
    job.sink.fail_after = 200 * 1000;
    fails_alone(&world, session, &job, RF_E_CORRUPT);
    assert_true(job.sink.done >= 200 * 1000);
    free(job.to);
    world.transport->close(session);
    world_stop(&world);
}

static void a_lease_that_is_over_refuses_reads(void **state)
{
    struct world world;
    struct job job;
    struct rf_error err = {0};
    struct read *done = NULL;

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    atomic_store_explicit(&world.rig.check_code, RF_E_CHANGED, memory_order_relaxed);
    job_init_range(&job, 0, 1000);
    enum rf_code code = world.transport->submit(session, &job.read, &err);
    if (code == RF_OK) {
        assert_int_equal(
            world.transport->progress(session, clock_deadline_ns(WAIT_MS), &done, &err), RF_OK);
        code = job.read.code;
    }
    assert_int_equal(code, RF_E_CHANGED);
    free(job.to);
    world.transport->close(session);
    world_stop(&world);
}

static void a_wrong_token_is_denied(void **state)
{
    struct world world;
    struct transport_session *session = NULL;
    struct rf_error err = {0};
    struct job job;
    struct read *done = NULL;

    world_start(&world, *state);
    world.options.token[CHUNK_TOKEN_BYTES - 1] ^= 1;
    job_init_range(&job, 0, 1000);
    enum rf_code code = world.transport->open(&world.endpoint, &world.options, &session, &err);
    if (code == RF_OK) /* it may show at the first read only */
        code = world.transport->submit(session, &job.read, &err);
    if (code == RF_OK &&
        world.transport->progress(session, clock_deadline_ns(WAIT_MS), &done, &err) == RF_OK)
        code = job.read.code;
    assert_int_equal(code, RF_E_DENIED);
    world.transport->close(session);
    free(job.to);
    world_stop(&world);
}

/* ---- ends ---- */

static bool is_of_a_lost_peer(enum rf_code code)
{
    return code == RF_E_UNREACHABLE || code == RF_E_TIMEOUT || code == RF_E_PROTO;
}

/* After all reads came back: the session is dead and says so. One that was granted the seed's
 * memory may go on. */
static void assert_dead(struct world *world, struct transport_session *session)
{
    struct job job;
    struct rf_error err = {0};
    struct read *done = NULL;

    job_init_range(&job, 0, 1000);
    enum rf_code code = world->transport->submit(session, &job.read, &err);
    if (code == RF_OK) { /* it has not noticed before */
        assert_ptr_equal(next_ended(world, session), &job);
        code = job.read.code;
    }
    if (code == RF_OK) {
        job_check(world, &job);
    } else {
        assert_true(is_of_a_lost_peer(code));
        assert_true(is_of_a_lost_peer(world->transport->submit(session, &job.read, &err)));
        assert_true(is_of_a_lost_peer(
            world->transport->progress(session, clock_deadline_ns(WAIT_MS), &done, &err)));
        assert_null(done);
    }
    free(job.to);
}

static void a_seed_that_stops_ends_every_read_once(void **state)
{
    struct world world;
    struct job jobs[READS];

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    for (unsigned i = 0; i < READS; i++) {
        job_init_range(&jobs[i], i, STREAM_BYTES - READS);
        submit(&world, session, &jobs[i]);
    }
    assert_int_equal(next_ended(&world, session)->read.code, RF_OK);
    world.transport->seed_stop(world.seed);
    world.seed = NULL;
    for (unsigned i = 1; i < READS; i++) {
        struct job *job = next_ended(&world, session);
        if (job->read.code == RF_OK)
            job_check(&world, job);
        else
            assert_true(is_of_a_lost_peer(job->read.code));
    }
    assert_dead(&world, session);
    for (unsigned i = 0; i < READS; i++)
        free(jobs[i].to);
    world.transport->close(session);
    world_stop(&world);
}

static unsigned count_threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    unsigned count = 0;

    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    (void)closedir(dir);
    return count;
}

/* A seed finds out that a reader left in its own time. */
static void wait_for_fds(unsigned fds)
{
    uint64_t deadline_ns = clock_deadline_ns(WAIT_MS);

    while (rig_open_fds() != fds && clock_left_ms(deadline_ns) > 0)
        (void)poll(NULL, 0, 1);
    assert_int_equal(rig_open_fds(), fds);
}

static void readers_that_leave_mid_transfer_leave_nothing_behind(void **state)
{
    struct rand_seq rand = {.state = 3};
    struct world world;
    struct job job;

    world_start(&world, *state);
    unsigned fds = rig_open_fds();
    unsigned threads = count_threads();
    for (unsigned i = 0; i < CLOSES; i++) {
        struct transport_session *session = open_session(&world);
        job_init_range(&job, 0, STREAM_BYTES);
        job.sink.part_bytes = 4096;
        submit(&world, session, &job);
        struct rf_error err = {0};
        struct read *done = NULL;
        /* Somewhere between nothing and all of it. */
        if (rand_below(&rand, 2) == 0)
            (void)world.transport->progress(
                session, clock_now_ns() + rand_below(&rand, 2 * CLOCK_NS_PER_MS), &done, &err);
        world.transport->close(session);
        /* Whoever writes there now is found by the sanitizer. */
        free(job.to);
    }
    assert_true(rig_wait_leases(&world.rig, 0));
    wait_for_fds(fds);
    assert_int_equal(count_threads(), threads);
    world_stop(&world);
}

static void a_stalled_reader_does_not_stop_another(void **state)
{
    struct world world;
    struct transport_session *stalled[4];
    struct job idle[4][READS];
    struct job job;

    world_start(&world, *state);
    for (unsigned k = 0; k < 4; k++) {
        stalled[k] = open_session(&world);
        for (unsigned i = 0; i < READS; i++) {
            job_init_range(&idle[k][i], i, STREAM_BYTES - READS);
            submit(&world, stalled[k], &idle[k][i]);
        }
    }
    struct transport_session *session = open_session(&world);
    for (unsigned i = 0; i < 5; i++) {
        job_init_range(&job, i, STREAM_BYTES - 5);
        submit(&world, session, &job);
        assert_ptr_equal(next_ended(&world, session), &job);
        assert_int_equal(job.read.code, RF_OK);
        job_check(&world, &job);
        free(job.to);
    }
    world.transport->close(session);
    for (unsigned k = 0; k < 4; k++) {
        world.transport->close(stalled[k]);
        for (unsigned i = 0; i < READS; i++)
            free(idle[k][i].to);
    }
    world_stop(&world);
}

/* ---- time ---- */

static void a_deadline_that_passes_loses_nothing(void **state)
{
    struct world world;
    struct rf_error err = {0};
    struct read *done = NULL;
    struct job job;
    enum rf_code code;

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    job_init_range(&job, 3, STREAM_BYTES - 3);
    submit(&world, session, &job);
    uint64_t begin_ns = clock_now_ns();
    do {
        uint64_t now_ns = clock_now_ns();
        assert_true(clock_seconds(begin_ns, now_ns) < WAIT_MS / 1e3);
        code = world.transport->progress(session, now_ns, &done, &err);
        assert_true(clock_seconds(now_ns, clock_now_ns()) < 2);
        assert_true(code == RF_OK || code == RF_E_TIMEOUT);
    } while (code == RF_E_TIMEOUT);
    assert_ptr_equal(done, &job.read);
    assert_int_equal(job.read.code, RF_OK);
    job_check(&world, &job);
    free(job.to);
    world.transport->close(session);
    world_stop(&world);
}

struct canceller {
    struct world *world;
    atomic_bool cancel;
    int fd;
    atomic_uint_fast64_t cancelled_ns;
};

static void *cancel_after_some_bytes(void *arg)
{
    struct canceller *canceller = arg;
    struct rig *rig = &canceller->world->rig;
    const uint64_t one = 1;

    uint64_t deadline_ns = clock_deadline_ns(WAIT_MS);
    mutex_lock(&rig->lock);
    while (rig->accounted_bytes == 0 && cond_wait_until(&rig->changed, &rig->lock, deadline_ns))
        ;
    mutex_unlock(&rig->lock);
    atomic_store_explicit(&canceller->cancelled_ns, clock_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&canceller->cancel, true, memory_order_relaxed);
    if (write(canceller->fd, &one, sizeof one) != sizeof one)
        abort();
    return NULL;
}

static void cancelling_ends_a_transfer_at_once(void **state)
{
    struct world world;
    struct job jobs[READS];
    struct canceller canceller = {.world = &world, .fd = eventfd(0, EFD_CLOEXEC)};
    struct rf_error err = {0};
    pthread_t thread;
    enum rf_code code = RF_OK;

    world_start(&world, *state);
    world.options.cancel = &canceller.cancel;
    world.options.cancel_fd = canceller.fd;
    struct transport_session *session = open_session(&world);
    assert_int_equal(thread_start(&thread, "cancel", cancel_after_some_bytes, &canceller, &err),
                     RF_OK);
    for (unsigned i = 0; i < READS; i++)
        job_init_range(&jobs[i], 0, STREAM_BYTES);
    for (unsigned i = 0; i < READS; i++)
        submit(&world, session, &jobs[i]);
    /* Without the cancel this would go on for ever. */
    while (code == RF_OK) {
        struct job *job = next_ended(&world, session);
        job->ended = 0;
        code = job->read.code;
        if (code == RF_OK) {
            rig_sink_init(&job->sink, job->to, STREAM_BYTES);
            code = world.transport->submit(session, &job->read, &err);
        }
    }
    uint64_t ended_ns = clock_now_ns();
    pthread_join(thread, NULL);
    assert_int_equal(code, RF_E_CANCELLED);
    /* Promised are 200 ms; a sanitizer on a busy machine is given more. */
    assert_true(clock_seconds(canceller.cancelled_ns, ended_ns) < 2);
    for (unsigned i = 0; i < READS; i++)
        free(jobs[i].to);
    world.transport->close(session);
    close(canceller.fd);
    world_stop(&world);
}

/* ---- draining ---- */

struct drainer {
    struct world *world;
    uint32_t cut;
};

static void *drain(void *arg)
{
    struct drainer *drainer = arg;

    drainer->cut =
        drainer->world->transport->seed_drain(drainer->world->seed, clock_deadline_ns(WAIT_MS));
    return NULL;
}

/* What a seed that is stopping makes of a read. */
static bool is_of_the_end(enum rf_code code)
{
    return code == RF_E_CANCELLED || is_of_a_lost_peer(code);
}

static void end_all(struct world *world, struct transport_session *session, struct job *jobs,
                    unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct job *job = next_ended(world, session);
        if (job->read.code == RF_OK)
            job_check(world, job);
        else
            assert_true(is_of_the_end(job->read.code));
    }
    for (unsigned i = 0; i < READS; i++)
        free(jobs[i].to);
}

/* Opening fails, or the first read does. */
static void assert_nobody_gets_in(struct world *world)
{
    struct transport_session *session = NULL;
    struct rf_error err = {0};
    struct read *done = NULL;
    struct job job;

    job_init_range(&job, 0, 1000);
    enum rf_code code = world->transport->open(&world->endpoint, &world->options, &session, &err);
    if (code == RF_OK)
        code = world->transport->submit(session, &job.read, &err);
    if (code == RF_OK &&
        world->transport->progress(session, clock_deadline_ns(WAIT_MS), &done, &err) == RF_OK)
        code = job.read.code;
    assert_true(is_of_the_end(code));
    world->transport->close(session);
    free(job.to);
}

static void draining_ends_reads_and_lets_nobody_in(void **state)
{
    struct world world;
    struct job jobs[READS];
    struct drainer drainer = {.world = &world};
    struct rf_error err = {0};
    pthread_t thread;

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    for (unsigned i = 0; i < READS; i++) {
        job_init_range(&jobs[i], i, STREAM_BYTES - READS);
        submit(&world, session, &jobs[i]);
    }
    assert_int_equal(next_ended(&world, session)->read.code, RF_OK);
    assert_int_equal(thread_start(&thread, "drain", drain, &drainer, &err), RF_OK);
    end_all(&world, session, jobs, READS - 1);
    pthread_join(thread, NULL);
    assert_int_equal(drainer.cut, 0);
    assert_nobody_gets_in(&world);
    world.transport->close(session);
    world_stop(&world);
}

static void draining_waits_no_longer_than_its_deadline(void **state)
{
    struct world world;
    struct job jobs[READS];

    world_start(&world, *state);
    struct transport_session *session = open_session(&world);
    for (unsigned i = 0; i < READS; i++) {
        job_init_range(&jobs[i], i, STREAM_BYTES - READS);
        submit(&world, session, &jobs[i]);
    }
    uint64_t begin_ns = clock_now_ns();
    uint32_t cut = world.transport->seed_drain(world.seed, clock_deadline_ns(100));
    assert_true(clock_seconds(begin_ns, clock_now_ns()) < 5);
    assert_true(cut <= READS);
    end_all(&world, session, jobs, READS);
    world.transport->close(session);
    world_stop(&world);
}

/* ---- endpoints and mappings ---- */

static void an_endpoint_is_judged_before_it_is_used(void **state)
{
    struct world world;
    struct transport_verdict verdict = {0};
    struct endpoint foreign;

    world_start(&world, *state);
    world.transport->judge(&world.endpoint, &verdict);
    assert_true(verdict.usable);
    assert_true(verdict.reason[0] != '\0');
    assert_true(world.endpoint.host_id[0] != '\0');

    foreign = world.endpoint;
    snprintf(foreign.address, sizeof foreign.address, "%s", "\x01 no address of anything %s %n");
    world.transport->judge(&foreign, &verdict);
    assert_false(verdict.usable);
    assert_true(verdict.reason[0] != '\0');
    world_stop(&world);
}

static void a_mapping_is_the_stream(void **state)
{
    struct world world;
    struct transport_mapping mapping = {.bytes = 0};
    struct rf_error err = {0};

    world_start(&world, *state);
    if (world.transport->map != NULL) {
        struct transport_session *session = open_session(&world);
        assert_int_equal(world.transport->map(session, 0, STREAM_BYTES, &mapping, &err), RF_OK);
        for (uint32_t i = 0; i < mapping.layout.count; i++) {
            const struct segment *at = &mapping.layout.segments[i];
            assert_memory_equal(region_data(at->region) + at->region_offset,
                                world.content + at->stream_offset, at->bytes);
        }
        layout_free(&mapping.layout);
        world.transport->close(session);
    }
    world_stop(&world);
}

/* ---- every transport ---- */

typedef void (*promise_fn)(void **state);

static const struct {
    const char *name;
    promise_fn fn;
} promises[] = {
#define PROMISE(fn) \
    {               \
#fn, fn     \
    }
    PROMISE(the_whole_stream_arrives),
    PROMISE(each_read_ends_once_with_its_bytes),
    PROMISE(a_full_window_says_again_and_loses_nothing),
    PROMISE(without_a_read_progress_says_so),
    PROMISE(a_malformed_read_is_not_taken),
    PROMISE(a_refused_read_fails_alone),
    PROMISE(a_sink_that_fails_fails_its_read_alone),
    PROMISE(a_lease_that_is_over_refuses_reads),
    PROMISE(a_wrong_token_is_denied),
    PROMISE(a_seed_that_stops_ends_every_read_once),
    PROMISE(readers_that_leave_mid_transfer_leave_nothing_behind),
    PROMISE(a_stalled_reader_does_not_stop_another),
    PROMISE(a_deadline_that_passes_loses_nothing),
    PROMISE(cancelling_ends_a_transfer_at_once),
    PROMISE(draining_ends_reads_and_lets_nobody_in),
    PROMISE(draining_waits_no_longer_than_its_deadline),
    PROMISE(an_endpoint_is_judged_before_it_is_used),
    PROMISE(a_mapping_is_the_stream),
#undef PROMISE
};

enum { PROMISES = sizeof promises / sizeof promises[0] };

static unsigned find_subjects(struct subject *subjects)
{
    uint32_t count = 0;
    const struct transport *const *all = transport_list(&count);
    unsigned found = 0;

    for (uint32_t i = 0; i < count && found + 2 <= MAX_SUBJECTS; i++) {
        struct transport_verdict verdict = {0};
        all[i]->available(&verdict);
        printf("%s: %s%s\n", all[i]->name, verdict.usable ? "" : "left out: ", verdict.reason);
        for (int faulty = 0; faulty < 2 && verdict.usable; faulty++) {
            struct subject *subject = &subjects[found];
            struct rf_error err = {0};
            snprintf(subject->name, sizeof subject->name, "%s%.32s", faulty ? "fault:7:" : "",
                     all[i]->name);
            if (transport_find(subject->name, &subject->transport, &err) == RF_OK)
                found++;
            else
                printf("%s: left out: %s\n", subject->name, err.text);
        }
    }
    return found;
}

int main(void)
{
    static struct subject subjects[MAX_SUBJECTS];
    static char names[MAX_SUBJECTS][PROMISES][128];
    int failed = 0;

    unsigned count = find_subjects(subjects);
    for (unsigned i = 0; i < count; i++) {
        struct CMUnitTest tests[PROMISES];
        for (unsigned k = 0; k < PROMISES; k++) {
            snprintf(names[i][k], sizeof names[i][k], "%s: %s", subjects[i].name, promises[k].name);
            tests[k] = (struct CMUnitTest){
                .name = names[i][k], .test_func = promises[k].fn, .initial_state = &subjects[i]};
        }
        failed += cmocka_run_group_tests_name(subjects[i].name, tests, NULL, NULL);
    }
    return count == 0 || failed != 0 ? 1 : 0;
}
