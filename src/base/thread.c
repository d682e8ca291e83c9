#include "base/thread.h"

#include "base/clock.h"
#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREAD_NAME_BYTES = 16, THREAD_MAX_CPUS = 1 << 16 };

/* These calls fail only when misused, which is our bug. */
static void must_work(int rc)
{
    assert(rc == 0);
    (void)rc;
}

void mutex_init(struct mutex *mutex)
{
    must_work(pthread_mutex_init(&mutex->os, NULL));
}

void mutex_destroy(struct mutex *mutex)
{
    must_work(pthread_mutex_destroy(&mutex->os));
}

RF_NO_THREAD_ANALYSIS void mutex_lock(struct mutex *mutex)
{
    must_work(pthread_mutex_lock(&mutex->os));
}

RF_NO_THREAD_ANALYSIS void mutex_unlock(struct mutex *mutex)
{
    must_work(pthread_mutex_unlock(&mutex->os));
}

void cond_init(struct cond *cond)
{
    pthread_condattr_t attr;

    must_work(pthread_condattr_init(&attr));
    must_work(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC));
    must_work(pthread_cond_init(&cond->os, &attr));
    must_work(pthread_condattr_destroy(&attr));
}

void cond_destroy(struct cond *cond)
{
    must_work(pthread_cond_destroy(&cond->os));
}

void cond_broadcast(struct cond *cond)
{
    must_work(pthread_cond_broadcast(&cond->os));
}

bool cond_wait_until(struct cond *cond, struct mutex *mutex, uint64_t deadline_ns)
{
    struct timespec until = {
        .tv_sec = (time_t)(deadline_ns / CLOCK_NS_PER_S),
        .tv_nsec = (long)(deadline_ns % CLOCK_NS_PER_S),
    };

    int rc = pthread_cond_timedwait(&cond->os, &mutex->os, &until);
    assert(rc == 0 || rc == ETIMEDOUT);
    return rc == 0;
}

enum rf_code thread_start(pthread_t *ret_thread, const char *name, void *(*fn)(void *), void *arg,
                          struct rf_error *err)
{
    char short_name[THREAD_NAME_BYTES];
    sigset_t blocked;
    sigset_t before;
    pthread_t thread;

    /* Faults stay open: when one is blocked the kernel kills without any handler, and a sanitiser
     * or crash reporter of the program could not say where. */
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGFPE);
    sigdelset(&blocked, SIGILL);
    sigdelset(&blocked, SIGTRAP);
    must_work(pthread_sigmask(SIG_SETMASK, &blocked, &before));
    int rc = pthread_create(&thread, NULL, fn, arg);
    must_work(pthread_sigmask(SIG_SETMASK, &before, NULL));
    if (rc == EAGAIN)
        return rf_fail(err, RF_E_NOMEM,
                       "cannot start thread %s: no memory for it, or more than `ulimit -u` or the "
                       "cgroup's pids.max allow",
                       name);
    if (rc != 0) {
        errno = rc;
        return rf_fail_sys(err, "cannot start thread %s", name);
    }
    snprintf(short_name, sizeof short_name, "%s", name);
    pthread_setname_np(thread, short_name); /* only for people who look at top */
    *ret_thread = thread;
    return RF_OK;
}

unsigned thread_cpus(void)
{
    /* The kernel refuses a set smaller than its own, which may be above CPU_SETSIZE. */
    for (int cpus = CPU_SETSIZE; cpus <= THREAD_MAX_CPUS; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (set == NULL)
            return 1;
        size_t bytes = CPU_ALLOC_SIZE((size_t)cpus);
        int rc = sched_getaffinity(0, bytes, set);
        int saved = errno;
        int found = rc == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (rc == 0)
            return found > 0 ? (unsigned)found : 1;
        if (saved != EINVAL)
            return 1;
    }
    return 1;
}

/* One run of thread_parallel(), shared by its threads. */
struct parallel {
    thread_item_fn fn;
    void *ctx;
    uint64_t count;
    /* Both relaxed: items are independent of each other, and pthread_join() publishes their
     * results. */
    atomic_uint_fast64_t next;
    atomic_bool stop;
    struct mutex lock;
    enum rf_code code RF_GUARDED_BY(lock);
    struct rf_error err RF_GUARDED_BY(lock);
};

static void *parallel_run(void *arg)
{
    struct parallel *run = arg;

    while (!atomic_load_explicit(&run->stop, memory_order_relaxed)) {
        uint64_t item = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
        if (item >= run->count)
            break;
        struct rf_error err = {0};
        enum rf_code code = run->fn(run->ctx, item, &err);
        if (code == RF_OK)
            continue;
        atomic_store_explicit(&run->stop, true, memory_order_relaxed);
        mutex_lock(&run->lock);
        if (run->code == RF_OK) {
            run->code = code;
            run->err = err;
        }
        mutex_unlock(&run->lock);
    }
    return NULL;
}

/* Starts up to `wanted` helpers and returns how many there are: with fewer it only takes longer. */
static unsigned helpers_start(struct parallel *run, pthread_t *helpers, unsigned wanted)
{
    struct rf_error err = {0};

    for (unsigned i = 0; i < wanted; i++) {
        if (thread_start(&helpers[i], "rfork-work", parallel_run, run, &err) != RF_OK) {
            log_warn("fewer threads", "wanted=%u got=%u reason=\"%s\"", wanted + 1, i + 1,
                     err.text);
            return i;
        }
    }
    return wanted;
}

enum rf_code thread_parallel(unsigned threads, uint64_t count, thread_item_fn fn, void *ctx,
                             struct rf_error *err)
{
    struct parallel run = {.fn = fn, .ctx = ctx, .count = count};
    unsigned wanted = threads > 1 ? threads - 1 : 0;
    unsigned started = 0;

    if (count == 0)
        return RF_OK;
    if (wanted >= count)
        wanted = (unsigned)(count - 1);
    pthread_t *helpers = wanted > 0 ? calloc(wanted, sizeof *helpers) : NULL;
    mutex_init(&run.lock);
    if (helpers != NULL)
        started = helpers_start(&run, helpers, wanted);
    parallel_run(&run);
    for (unsigned i = 0; i < started; i++)
        must_work(pthread_join(helpers[i], NULL));
    mutex_destroy(&run.lock);
    free(helpers);
    if (run.code != RF_OK && err != NULL)
        *err = run.err;
    return run.code;
}
