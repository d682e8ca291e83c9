#include "control/conns.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"

#include <inttypes.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <sys/socket.h>

enum {
    CONNS_POLL_MS = 10, /* how late news may reach those who wait for them */
    CONNS_MIN_TICK_MS = 10,
    CONNS_MAX_TICK_MS = 1000,
    /* An answer of which nothing has gone out for this part of the idle time may be ended when room
     * is needed: 5 s of 30. */
    CONNS_STALL_PART = 6,
    /* Who has been here for less has not had the time to ask. */
    CONNS_YOUNG_MS = 1000,
};

/* What a connection is doing. Each kind is a list, in the order in which they came into it. */
enum conn_kind {
    CONN_IDLE,    /* the request, or the rest of its headers, is to come */
    CONN_POLLING, /* suspended until there are news */
    CONN_BUSY,    /* a body is to come, or the answer is on its way */
    CONN_ENDED,   /* shut down; the thread it belongs to has not yet noticed */
    CONN_KINDS,
};

struct conn {
    /* All under the lock of its conns, but for progress_ns and hurried. */
    struct conn *prev;
    struct conn *next;
    enum conn_kind kind;
    int fd;
    struct MHD_Connection *mhd;
    uint64_t since_ns;    /* when it came into its list */
    uint64_t deadline_ns; /* shut down then, or resumed if polling */
    conn_ready_fn ready;
    void *ready_ctx;
    /* Relaxed, both: a moment and a hint, nothing else depends on them. */
    atomic_uint_fast64_t progress_ns;
    atomic_bool hurried;
};

struct conn_list {
    struct conn *first;
    struct conn *last;
    uint32_t count;
};

struct conns {
    struct conns_options options;
    pthread_t thread;
    struct mutex lock; /* taken before those of libmicrohttpd, digest tables and nodes */
    struct cond wake;  /* of the watching thread */
    struct cond quiet; /* of those who stop: a request has been answered, a connection closed */
    struct conn_list lists[CONN_KINDS] RF_GUARDED_BY(lock);
    bool stopping RF_GUARDED_BY(lock);
    bool ending RF_GUARDED_BY(lock);
    uint32_t coming RF_GUARDED_BY(lock); /* admitted, not yet opened */
    bool stop RF_GUARDED_BY(lock);
    uint64_t accepted RF_GUARDED_BY(lock);
    uint64_t timed_out RF_GUARDED_BY(lock);
    uint64_t evicted RF_GUARDED_BY(lock);
};

/* ---- lists ---- */

static void list_append(struct conn_list *list, struct conn *conn)
{
    conn->since_ns = clock_now_ns();
    conn->prev = list->last;
    conn->next = NULL;
    if (list->last != NULL)
        list->last->next = conn;
    else
        list->first = conn;
    list->last = conn;
    list->count++;
}

static void list_remove(struct conn_list *list, struct conn *conn)
{
    if (conn->prev != NULL)
        conn->prev->next = conn->next;
    else
        list->first = conn->next;
    if (conn->next != NULL)
        conn->next->prev = conn->prev;
    else
        list->last = conn->prev;
    list->count--;
}

static void move_locked(struct conns *conns, struct conn *conn, enum conn_kind kind)
    RF_REQUIRES(conns->lock)
{
    list_remove(&conns->lists[conn->kind], conn);
    conn->kind = kind;
    list_append(&conns->lists[kind], conn);
}

/* ---- ending them ---- */

static void end_locked(struct conns *conns, struct conn *conn) RF_REQUIRES(conns->lock)
{
    shutdown(conn->fd, SHUT_RDWR);
    move_locked(conns, conn, CONN_ENDED);
}

/* Hands a suspended connection back; its thread answers then. */
static void resume_locked(struct conns *conns, struct conn *conn) RF_REQUIRES(conns->lock)
{
    conn->deadline_ns = UINT64_MAX;
    move_locked(conns, conn, CONN_BUSY);
    conn_progress(conn);
    MHD_resume_connection(conn->mhd);
}

/* The answer that has stood still for longest, if any has for long. */
static struct conn *stalled_locked(struct conns *conns) RF_REQUIRES(conns->lock)
{
    uint64_t before_ns = clock_now_ns();
    struct conn *found = NULL;

    before_ns -= conns->options.idle_timeout_ms * CLOCK_NS_PER_MS / CONNS_STALL_PART;
    for (struct conn *conn = conns->lists[CONN_BUSY].first; conn != NULL; conn = conn->next) {
        uint64_t progress_ns = atomic_load_explicit(&conn->progress_ns, memory_order_relaxed);
        if (progress_ns < before_ns) {
            before_ns = progress_ns;
            found = conn;
        }
    }
    return found;
}

/* Ends the connection that is missed least: who has been silent for longest; or, if none has
 * been for long, who has waited for news for longest is answered at once; else an answer that
 * nobody takes. */
static bool make_room_locked(struct conns *conns) RF_REQUIRES(conns->lock)
{
    uint64_t young_ns = clock_now_ns() - CONNS_YOUNG_MS * CLOCK_NS_PER_MS;
    struct conn *idle = conns->lists[CONN_IDLE].first;
    struct conn *polling = conns->lists[CONN_POLLING].first;

    if (polling != NULL && (idle == NULL || idle->since_ns > young_ns)) {
        atomic_store_explicit(&polling->hurried, true, memory_order_relaxed);
        resume_locked(conns, polling);
    } else {
        struct conn *unwanted = idle != NULL ? idle : stalled_locked(conns);
        if (unwanted == NULL)
            return false;
        end_locked(conns, unwanted);
    }
    conns->evicted++;
    return true;
}

static uint32_t alive_locked(struct conns *conns) RF_REQUIRES(conns->lock)
{
    return conns->lists[CONN_IDLE].count + conns->lists[CONN_POLLING].count +
           conns->lists[CONN_BUSY].count;
}

/* ---- the watching thread ---- */

/* When as many are open as ever may be, nobody is admitted any more who could make room. */
static bool make_room_when_full_locked(struct conns *conns) RF_REQUIRES(conns->lock)
{
    uint64_t open = (uint64_t)alive_locked(conns) + conns->lists[CONN_ENDED].count;
    bool full = open >= (uint64_t)2 * conns->options.max;

    for (uint32_t alive = alive_locked(conns); full && alive > conns->options.max; alive--) {
        if (!make_room_locked(conns))
            break;
    }
    return full;
}

/* Returns whether it should look again soon. */
static bool watch_locked(struct conns *conns) RF_REQUIRES(conns->lock)
{
    uint64_t now_ns = clock_now_ns();
    struct conn *next = NULL;

    for (struct conn *conn = conns->lists[CONN_POLLING].first; conn != NULL; conn = next) {
        next = conn->next;
        if (conns->stopping || conn->deadline_ns <= now_ns || conn->ready(conn->ready_ctx))
            resume_locked(conns, conn);
    }
    static const enum conn_kind timed[] = {CONN_IDLE, CONN_BUSY};
    for (unsigned i = 0; i < sizeof timed / sizeof timed[0]; i++) {
        for (struct conn *conn = conns->lists[timed[i]].first; conn != NULL; conn = next) {
            next = conn->next;
            if (conn->deadline_ns > now_ns)
                continue;
            end_locked(conns, conn);
            conns->timed_out++;
        }
    }
    bool full = make_room_when_full_locked(conns);
    return full || conns->lists[CONN_POLLING].first != NULL;
}

static uint64_t tick_ms(const struct conns_options *options)
{
    uint64_t least = options->request_timeout_ms < options->idle_timeout_ms
                         ? options->request_timeout_ms
                         : options->idle_timeout_ms;

    least /= 8;
    least = least < CONNS_MIN_TICK_MS ? CONNS_MIN_TICK_MS : least;
    return least > CONNS_MAX_TICK_MS ? CONNS_MAX_TICK_MS : least;
}

static void *watch_main(void *arg)
{
    struct conns *conns = arg;
    uint64_t calm_ms = tick_ms(&conns->options);

    mutex_lock(&conns->lock);
    while (!conns->stop) {
        bool soon = watch_locked(conns);
        cond_wait_until(&conns->wake, &conns->lock,
                        clock_deadline_ns(soon ? CONNS_POLL_MS : calm_ms));
    }
    mutex_unlock(&conns->lock);
    return NULL;
}

/* ---- the calls ---- */

enum rf_code conns_create(const struct conns_options *options, struct conns **ret_conns,
                          struct rf_error *err)
{
    struct conns *conns = calloc(1, sizeof *conns);

    if (conns == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for the HTTP server");
    conns->options = *options;
    mutex_init(&conns->lock);
    cond_init(&conns->wake);
    cond_init(&conns->quiet);
    enum rf_code code = thread_start(&conns->thread, "rf-http-watch", watch_main, conns, err);
    if (code != RF_OK) {
        cond_destroy(&conns->quiet);
        cond_destroy(&conns->wake);
        mutex_destroy(&conns->lock);
        free(conns);
        return code;
    }
    *ret_conns = conns;
    return RF_OK;
}

void conns_destroy(struct conns *conns)
{
    if (conns == NULL)
        return;
    mutex_lock(&conns->lock);
    conns->stop = true;
    cond_broadcast(&conns->wake);
    mutex_unlock(&conns->lock);
    pthread_join(conns->thread, NULL);
    cond_destroy(&conns->quiet);
    cond_destroy(&conns->wake);
    mutex_destroy(&conns->lock);
    free(conns);
}

bool conns_admit(struct conns *conns)
{
    mutex_lock(&conns->lock);
    bool admit = !conns->stopping;
    conns->coming += admit;
    if (admit && alive_locked(conns) >= conns->options.max)
        make_room_locked(conns);
    mutex_unlock(&conns->lock);
    return admit;
}

struct conn *conns_open(struct conns *conns, int fd, struct MHD_Connection *mhd)
{
    struct conn *conn = calloc(1, sizeof *conn);

    if (conn == NULL) {
        mutex_lock(&conns->lock);
        conns->coming--;
        mutex_unlock(&conns->lock);
        return NULL;
    }
    conn->fd = fd;
    conn->mhd = mhd;
    conn->kind = CONN_IDLE;
    conn->deadline_ns = clock_deadline_ns(conns->options.request_timeout_ms);
    atomic_init(&conn->progress_ns, clock_now_ns());
    atomic_init(&conn->hurried, false);
    mutex_lock(&conns->lock);
    list_append(&conns->lists[CONN_IDLE], conn);
    conns->accepted++;
    conns->coming--;
    if (conns->ending)
        end_locked(conns, conn);
    mutex_unlock(&conns->lock);
    return conn;
}

void conns_close(struct conns *conns, struct conn *conn)
{
    if (conn == NULL)
        return;
    mutex_lock(&conns->lock);
    list_remove(&conns->lists[conn->kind], conn);
    cond_broadcast(&conns->quiet);
    mutex_unlock(&conns->lock);
    free(conn);
}

void conns_request(struct conns *conns, struct conn *conn, bool body_to_come)
{
    if (conn == NULL)
        return;
    mutex_lock(&conns->lock);
    if (conn->kind != CONN_ENDED) {
        conn->deadline_ns =
            body_to_come ? clock_deadline_ns(conns->options.request_timeout_ms) : UINT64_MAX;
        move_locked(conns, conn, CONN_BUSY);
        conn_progress(conn);
    }
    mutex_unlock(&conns->lock);
}

void conns_idle(struct conns *conns, struct conn *conn)
{
    if (conn == NULL)
        return;
    mutex_lock(&conns->lock);
    if (conn->kind != CONN_ENDED) {
        conn->deadline_ns = clock_deadline_ns(conns->options.idle_timeout_ms);
        move_locked(conns, conn, CONN_IDLE);
        cond_broadcast(&conns->quiet);
    }
    mutex_unlock(&conns->lock);
}

void conn_progress(struct conn *conn)
{
    if (conn != NULL)
        atomic_store_explicit(&conn->progress_ns, clock_now_ns(), memory_order_relaxed);
}

enum rf_code conns_wait(struct conns *conns, struct conn *conn, conn_ready_fn ready, void *ctx,
                        uint64_t deadline_ns)
{
    bool waits = false;

    if (conn == NULL)
        return RF_E_CANCELLED;
    mutex_lock(&conns->lock);
    if (!conns->stopping && conn->kind != CONN_ENDED) {
        conn->ready = ready;
        conn->ready_ctx = ctx;
        conn->deadline_ns = deadline_ns;
        move_locked(conns, conn, CONN_POLLING);
        MHD_suspend_connection(conn->mhd);
        if (conns->lists[CONN_POLLING].count == 1)
            cond_broadcast(&conns->wake);
        waits = true;
    }
    mutex_unlock(&conns->lock);
    return waits ? RF_OK : RF_E_CANCELLED;
}

bool conn_hurried(const struct conn *conn)
{
    return conn != NULL && atomic_load_explicit(&conn->hurried, memory_order_relaxed);
}

void conns_stop(struct conns *conns)
{
    mutex_lock(&conns->lock);
    conns->stopping = true;
    while (conns->lists[CONN_POLLING].first != NULL)
        resume_locked(conns, conns->lists[CONN_POLLING].first);
    mutex_unlock(&conns->lock);
}

void conns_quiet(struct conns *conns, uint64_t deadline_ns)
{
    mutex_lock(&conns->lock);
    while (conns->lists[CONN_BUSY].first != NULL &&
           cond_wait_until(&conns->quiet, &conns->lock, deadline_ns))
        continue;
    mutex_unlock(&conns->lock);
}

void conns_end(struct conns *conns, uint64_t deadline_ns)
{
    static const enum conn_kind kinds[] = {CONN_IDLE, CONN_BUSY};

    mutex_lock(&conns->lock);
    conns->ending = true;
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        while (conns->lists[kinds[i]].first != NULL)
            end_locked(conns, conns->lists[kinds[i]].first);
    }
    while ((conns->coming > 0 || conns->lists[CONN_ENDED].first != NULL) &&
           cond_wait_until(&conns->quiet, &conns->lock, deadline_ns))
        continue;
    mutex_unlock(&conns->lock);
}

void conns_stats(struct conns *conns, struct conns_stats *ret_stats)
{
    mutex_lock(&conns->lock);
    *ret_stats = (struct conns_stats){
        .open = alive_locked(conns) + conns->lists[CONN_ENDED].count,
        .waiting_for_request = conns->lists[CONN_IDLE].count,
        .polling = conns->lists[CONN_POLLING].count,
        .answering = conns->lists[CONN_BUSY].count,
        .accepted = conns->accepted,
        .timed_out = conns->timed_out,
        .evicted = conns->evicted,
    };
    mutex_unlock(&conns->lock);
}
