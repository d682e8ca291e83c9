/* The simplest transport: seed and reader live in one process, and a read is a copy from the one's
 * memory to the other's. It keeps every promise of transport.h and nothing more: read it before you
 * write another.
 *
 * A seed enters itself in a table under a random name; an endpoint's address is that name. Nothing
 * moves before progress() is called, so a read in flight is one that was submitted and not yet
 * returned. */
#include "base/clock.h"
#include "base/rand.h"
#include "base/thread.h"
#include "transport/read_digest.h"
#include "transport/transport.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    NULL_WINDOW = CHUNK_MAX_IN_FLIGHT,
    /* Copied under the lock at once: some 50 us, also the grain of deadline and cancel. */
    NULL_PIECE_BYTES = 256 << 10,
};

struct transport_seed {
    const struct exporter *exporter;
    char name[17];
    bool draining; /* takes no new reads */
    bool cut;      /* nor finishes old ones */
    uint32_t in_flight;
    struct cond idle; /* in_flight became 0 */
    struct transport_session *sessions;
    struct transport_seed *next;
};

struct transport_session {
    /* Under the table's lock, since seed_stop() takes them away: */
    struct transport_seed *seed; /* NULL: the seed has stopped */
    void *lease;
    struct transport_session *next;
    /* The owner's: */
    struct transport_open_options options;
    enum rf_code dead; /* what every further call says; RF_OK: alive */
    struct rf_error why_dead;
    struct read *first; /* in flight, in their order */
    struct read **last;
    uint32_t in_flight;
    const struct layout *layout; /* of the first read; NULL: not begun */
    struct layout_cursor cursor;
    struct read_digest digest; /* of the first read */
    uint64_t left;
};

/* One lock for all seeds and sessions: between two pieces a seed may vanish, within one it may
 * not. */
static struct mutex table_lock = {PTHREAD_MUTEX_INITIALIZER};
static struct transport_seed *table RF_GUARDED_BY(table_lock);

static struct transport_seed *find_locked(const char *name) RF_REQUIRES(table_lock)
{
    struct transport_seed *seed = table;

    while (seed != NULL && strcmp(seed->name, name) != 0)
        seed = seed->next;
    return seed;
}

/* ---- the seed's side ---- */

static void null_available(struct transport_verdict *ret_verdict)
{
    *ret_verdict = (struct transport_verdict){
        .usable = true, .reason = "within one process: for tests and for embedding both sides"};
}

static enum rf_code null_seed_start(const struct exporter *exporter,
                                    const struct transport_seed_options *options,
                                    struct transport_seed **ret_seed, struct endpoint *ret_endpoint,
                                    struct rf_error *err)
{
    uint64_t name = 0;
    struct transport_seed *seed = calloc(1, sizeof *seed);

    (void)options; /* about sockets and threads, of which there are none */
    if (seed == NULL)
        return rf_fail(err, RF_E_NOMEM, "null seed: out of memory");
    enum rf_code code = rand_bytes(&name, sizeof name, err);
    if (code != RF_OK) {
        free(seed);
        return code;
    }
    seed->exporter = exporter;
    snprintf(seed->name, sizeof seed->name, "%016" PRIx64, name);
    cond_init(&seed->idle);

    *ret_endpoint = (struct endpoint){.transport = "null"};
    snprintf(ret_endpoint->address, sizeof ret_endpoint->address, "%s", seed->name);
    transport_host_id(ret_endpoint->host_id);
    *ret_seed = seed;

    mutex_lock(&table_lock);
    seed->next = table;
    table = seed;
    mutex_unlock(&table_lock);
    return RF_OK;
}

static uint32_t null_seed_drain(struct transport_seed *seed, uint64_t deadline_ns)
{
    mutex_lock(&table_lock);
    seed->draining = true;
    while (seed->in_flight > 0 && cond_wait_until(&seed->idle, &table_lock, deadline_ns))
        ;
    seed->cut = true;
    uint32_t cut = seed->in_flight;
    mutex_unlock(&table_lock);
    return cut;
}

/* The sessions live on, but hold nothing of the seed any more and fail at their next step. */
static void null_seed_stop(struct transport_seed *seed)
{
    if (seed == NULL)
        return;
    mutex_lock(&table_lock);
    for (struct transport_seed **at = &table; *at != NULL; at = &(*at)->next) {
        if (*at == seed) {
            *at = seed->next;
            break;
        }
    }
    for (struct transport_session *it = seed->sessions; it != NULL; it = it->next) {
        seed->exporter->lease_release(seed->exporter->ctx, it->lease);
        it->seed = NULL;
    }
    mutex_unlock(&table_lock);
    cond_destroy(&seed->idle);
    free(seed);
}

/* ---- the reader's side ---- */

static void null_judge(const struct endpoint *endpoint, struct transport_verdict *ret_verdict)
{
    mutex_lock(&table_lock);
    bool here = find_locked(endpoint->address) != NULL;
    mutex_unlock(&table_lock);
    *ret_verdict = (struct transport_verdict){.usable = here, .rank = 300};
    snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "%s",
             here ? "same process: copies from the seed's memory"
                  : "the seed is in another process");
}

/* Enters the session in the seed that the address names. */
static enum rf_code admit_locked(struct transport_session *session, const char *address,
                                 struct rf_error *err) RF_REQUIRES(table_lock)
{
    struct transport_seed *seed = find_locked(address);

    if (seed == NULL || seed->draining)
        return rf_fail(err, RF_E_UNREACHABLE, "null seed %s: %s", address,
                       seed == NULL ? "not in this process" : "takes no new readers");
    const struct exporter *exporter = seed->exporter;
    enum rf_code code = exporter->lease_acquire(exporter->ctx, session->options.token, "null",
                                                &session->lease, err);
    if (code != RF_OK)
        return code;
    session->seed = seed;
    session->next = seed->sessions;
    seed->sessions = session;
    return RF_OK;
}

static enum rf_code null_open(const struct endpoint *endpoint,
                              const struct transport_open_options *options,
                              struct transport_session **ret_session, struct rf_error *err)
{
    struct transport_session *session = calloc(1, sizeof *session);

    if (session == NULL)
        return rf_fail(err, RF_E_NOMEM, "null session: out of memory");
    session->options = *options;
    session->last = &session->first;

    mutex_lock(&table_lock);
    enum rf_code code = admit_locked(session, endpoint->address, err);
    mutex_unlock(&table_lock);
    if (code != RF_OK) {
        free(session);
        return code;
    }
    *ret_session = session;
    return RF_OK;
}

/* Passes on what the session died of. */
static enum rf_code say_dead(const struct transport_session *session, struct rf_error *err)
{
    if (err != NULL)
        *err = session->why_dead;
    return session->dead;
}

/* The first cause stays. */
static enum rf_code die(struct transport_session *session, enum rf_code code, const char *why,
                        struct rf_error *err)
{
    if (session->dead == RF_OK)
        session->dead = rf_fail(&session->why_dead, code, "null: %s", why);
    return say_dead(session, err);
}

static void forget_reads_locked(struct transport_session *session, uint32_t count)
    RF_REQUIRES(table_lock)
{
    if (session->seed == NULL)
        return;
    session->seed->in_flight -= count;
    if (session->seed->in_flight == 0)
        cond_broadcast(&session->seed->idle);
}

static enum rf_code null_submit(struct transport_session *session, struct read *read,
                                struct rf_error *err)
{
    enum rf_code code = transport_read_check(read, err);

    if (code != RF_OK)
        return code;
    if (session->dead != RF_OK)
        return say_dead(session, err);
    if (session->in_flight == NULL_WINDOW)
        return RF_AGAIN;

    mutex_lock(&table_lock);
    bool taken = session->seed != NULL && !session->seed->draining;
    if (taken)
        session->seed->in_flight++;
    mutex_unlock(&table_lock);

    if (!taken)
        return die(session, RF_E_UNREACHABLE, "the seed takes no more reads", err);
    read->next = NULL;
    *session->last = read;
    session->last = &read->next;
    session->in_flight++;
    return RF_OK;
}

/* What the seed has to say to a read before its first byte. */
static enum rf_code begin_locked(struct transport_session *session, const struct read *read,
                                 struct rf_error *err) RF_REQUIRES(table_lock)
{
    const struct exporter *exporter = session->seed->exporter;
    uint64_t bytes = 0;

    enum rf_code code = exporter->lease_check(exporter->ctx, session->lease, err);
    if (code != RF_OK)
        return code;
    const struct layout *layout = exporter->rank_layout(exporter->ctx, read->rank);
    if (layout == NULL)
        return rf_fail(err, RF_E_INVAL, "the seed has no rank %" PRIu32, read->rank);
    code = stream_ranges_check(read->ranges, read->range_count, layout->stream_bytes, &bytes, err);
    if (code != RF_OK)
        return code;
    code = read_digest_begin(&session->digest, read->digest, err);
    if (code != RF_OK)
        return code;
    layout_cursor_init(&session->cursor, layout, read->ranges, read->range_count);
    session->layout = layout;
    session->left = bytes;
    return RF_OK;
}

/* Copies the next piece to `to`. */
static enum rf_code copy_locked(struct transport_session *session, void *to, uint64_t room,
                                uint64_t *ret_bytes, struct rf_error *err) RF_REQUIRES(table_lock)
{
    const struct exporter *exporter = session->seed->exporter;
    struct segment piece;

    if (room > NULL_PIECE_BYTES)
        room = NULL_PIECE_BYTES;
    if (!layout_cursor_peek(&session->cursor, room, &piece))
        return rf_fail(err, RF_E_FAILED, "null: %" PRIu64 " bytes left, no range", session->left);
    enum rf_code code = region_read(piece.region, piece.region_offset, to, piece.bytes, err);
    if (code != RF_OK)
        return code;
    /* Before the sink has it: a sink may be one that spoils what comes. */
    read_digest_update(&session->digest, to, piece.bytes);
    exporter->lease_account(exporter->ctx, session->lease, piece.bytes);
    layout_cursor_skip(&session->cursor, piece.bytes);
    session->left -= piece.bytes;
    *ret_bytes = piece.bytes;
    return RF_OK;
}

/* One step of the first read: RF_OK with or without bytes left, or why it failed. The sink is
 * called without the lock: it may take its time. */
static enum rf_code step(struct transport_session *session, struct read *read, struct rf_error *err)
{
    struct iovec to = {0};
    uint64_t bytes = 0;
    enum rf_code code = RF_OK;

    if (session->options.cancel != NULL &&
        atomic_load_explicit(session->options.cancel, memory_order_relaxed)) /* carries no data */
        return die(session, RF_E_CANCELLED, "cancelled", err);
    if (session->layout != NULL &&
        (read->sink->where(read->sink, &to, 1, &bytes) != 1 || bytes == 0 || bytes > session->left))
        return rf_fail(err, RF_E_INVAL, "the sink has no place for %" PRIu64 " bytes that are left",
                       session->left);

    mutex_lock(&table_lock);
    bool stopped = session->seed == NULL || session->seed->cut;
    if (stopped)
        code = die(session, RF_E_UNREACHABLE, "the seed has stopped", err);
    else if (session->layout == NULL)
        code = begin_locked(session, read, err);
    else
        code = copy_locked(session, to.iov_base, bytes, &bytes, err);
    mutex_unlock(&table_lock);

    if (code == RF_OK && bytes > 0)
        code = read->sink->took(read->sink, bytes, err);
    return code;
}

static enum rf_code null_progress(struct transport_session *session, uint64_t deadline_ns,
                                  struct read **ret_done, struct rf_error *err)
{
    struct read *read = session->first;

    if (read == NULL)
        return session->dead != RF_OK ? say_dead(session, err)
                                      : rf_fail(err, RF_E_INVAL, "null: no read in flight");
    do {
        read->code = session->dead != RF_OK ? say_dead(session, &read->error)
                                            : step(session, read, &read->error);
        if (read->code == RF_OK && session->left > 0 && clock_now_ns() >= deadline_ns)
            return rf_fail(err, RF_E_TIMEOUT, "null: %" PRIu64 " bytes left at the deadline",
                           session->left);
    } while (read->code == RF_OK && session->left > 0);

    if (read->code == RF_OK)
        read_digest_final(&session->digest, read->rank, read->ranges, read->range_count,
                          read->said);
    session->layout = NULL;
    session->first = read->next;
    if (session->first == NULL)
        session->last = &session->first;
    session->in_flight--;
    mutex_lock(&table_lock);
    forget_reads_locked(session, 1);
    mutex_unlock(&table_lock);
    *ret_done = read;
    return RF_OK;
}

static void null_close(struct transport_session *session)
{
    if (session == NULL)
        return;
    mutex_lock(&table_lock);
    forget_reads_locked(session, session->in_flight);
    if (session->seed != NULL) {
        const struct exporter *exporter = session->seed->exporter;
        struct transport_session **at = &session->seed->sessions;
        while (*at != session)
            at = &(*at)->next;
        *at = session->next;
        exporter->lease_release(exporter->ctx, session->lease);
    }
    mutex_unlock(&table_lock);
    read_digest_free(&session->digest);
    free(session);
}

const struct transport transport_null = {
    .name = "null",
    .on_request = true,
    .summary = "copies within one process, no network",
    .default_connections = 1,
    .available = null_available,
    .seed_start = null_seed_start,
    .seed_drain = null_seed_drain,
    .seed_stop = null_seed_stop,
    .judge = null_judge,
    .open = null_open,
    .submit = null_submit,
    .progress = null_progress,
    .close = null_close,
};
