/* Threads: work in parallel that stops at its first failure, and waits that end. */
#include "base/clock.h"
#include "base/thread.h"

#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>

#include <cmocka.h>

enum { ITEMS = 10000 };

static atomic_uint seen[ITEMS];

static enum rf_code count_item(void *ctx, uint64_t item, struct rf_error *err)
{
    (void)ctx;
    (void)err;
    atomic_fetch_add(&seen[item], 1);
    return RF_OK;
}

static void every_item_runs_once(void **state)
{
    (void)state;
    static const unsigned threads[] = {0, 1, 2, 7, 64};

    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        memset(seen, 0, sizeof seen);
        assert_int_equal(thread_parallel(threads[i], ITEMS, count_item, NULL, NULL), RF_OK);
        for (size_t item = 0; item < ITEMS; item++)
            assert_int_equal(seen[item], 1);
    }
}

static void no_items_is_no_work(void **state)
{
    (void)state;
    memset(seen, 0, sizeof seen);
    assert_int_equal(thread_parallel(8, 0, count_item, NULL, NULL), RF_OK);
    assert_int_equal(seen[0], 0);
    assert_int_equal(thread_parallel(8, 1, count_item, NULL, NULL), RF_OK);
    assert_int_equal(seen[0], 1);
}

struct failing {
    uint64_t at;
    atomic_uint_fast64_t last;
};

static enum rf_code fail_at(void *ctx, uint64_t item, struct rf_error *err)
{
    struct failing *failing = ctx;

    uint64_t last = atomic_load(&failing->last);
    while (item > last && !atomic_compare_exchange_weak(&failing->last, &last, item))
        continue;
    if (item == failing->at)
        return rf_fail(err, RF_E_CORRUPT, "item %d", (int)item);
    return RF_OK;
}

static void first_failure_stops_the_rest(void **state)
{
    (void)state;
    static const unsigned threads[] = {1, 4};

    for (size_t i = 0; i < 2; i++) {
        struct failing failing = {.at = 100};
        struct rf_error err = {0};
        assert_int_equal(thread_parallel(threads[i], UINT64_MAX, fail_at, &failing, &err),
                         RF_E_CORRUPT);
        assert_string_equal(err.text, "item 100");
        assert_int_equal(err.code, RF_E_CORRUPT);
        if (threads[i] == 1)
            assert_int_equal(failing.last, 100);
        assert_int_equal(
            thread_parallel(threads[i], 1000, fail_at, &(struct failing){.at = 3}, NULL),
            RF_E_CORRUPT);
    }
}

static enum rf_code fail_all(void *ctx, uint64_t item, struct rf_error *err)
{
    (void)ctx;
    return rf_fail(err, RF_E_SYS, "item %d", (int)item);
}

static void of_many_failures_one_is_told_whole(void **state)
{
    (void)state;
    for (int i = 0; i < 100; i++) {
        struct rf_error err = {0};
        assert_int_equal(thread_parallel(8, 8, fail_all, NULL, &err), RF_E_SYS);
        assert_memory_equal(err.text, "item ", 5);
    }
}

struct meeting {
    struct mutex lock;
    struct cond changed;
    unsigned present;
};

/* Ends only when two are in it at once. */
static enum rf_code meet(void *ctx, uint64_t item, struct rf_error *err)
{
    struct meeting *meeting = ctx;
    uint64_t deadline_ns = clock_deadline_ns(20000);
    bool in_time = true;

    (void)item;
    mutex_lock(&meeting->lock);
    meeting->present++;
    cond_broadcast(&meeting->changed);
    while (meeting->present < 2 && in_time)
        in_time = cond_wait_until(&meeting->changed, &meeting->lock, deadline_ns);
    mutex_unlock(&meeting->lock);
    return in_time ? RF_OK : rf_fail(err, RF_E_TIMEOUT, "alone");
}

static void items_really_run_at_the_same_time(void **state)
{
    (void)state;
    struct meeting meeting = {.present = 0};

    mutex_init(&meeting.lock);
    cond_init(&meeting.changed);
    assert_int_equal(thread_parallel(2, 2, meet, &meeting, NULL), RF_OK);
    cond_destroy(&meeting.changed);
    mutex_destroy(&meeting.lock);
}

static void wait_ends_at_its_deadline(void **state)
{
    (void)state;
    struct mutex lock;
    struct cond cond;

    mutex_init(&lock);
    cond_init(&cond);
    mutex_lock(&lock);
    uint64_t deadline_ns = clock_deadline_ns(30);
    bool woken = true;
    while (woken) /* may wake for no reason */
        woken = cond_wait_until(&cond, &lock, deadline_ns);
    assert_true(clock_now_ns() >= deadline_ns);
    assert_false(cond_wait_until(&cond, &lock, 0));
    assert_false(cond_wait_until(&cond, &lock, clock_now_ns() - 1));
    mutex_unlock(&lock);
    cond_destroy(&cond);
    mutex_destroy(&lock);
}

struct wake {
    struct mutex lock;
    struct cond cond;
    bool go;
};

static void *wake_up(void *arg)
{
    struct wake *wake = arg;

    mutex_lock(&wake->lock);
    wake->go = true;
    cond_broadcast(&wake->cond);
    mutex_unlock(&wake->lock);
    return NULL;
}

static void wait_without_deadline_is_woken(void **state)
{
    (void)state;
    struct wake wake = {.go = false};
    pthread_t thread;

    mutex_init(&wake.lock);
    cond_init(&wake.cond);
    assert_int_equal(thread_start(&thread, "waker", wake_up, &wake, NULL), RF_OK);
    mutex_lock(&wake.lock);
    while (!wake.go)
        assert_true(cond_wait_until(&wake.cond, &wake.lock, UINT64_MAX));
    mutex_unlock(&wake.lock);
    pthread_join(thread, NULL);
    cond_destroy(&wake.cond);
    mutex_destroy(&wake.lock);
}

static void *report_signals(void *arg)
{
    pthread_sigmask(SIG_SETMASK, NULL, arg);
    return NULL;
}

static void signals_go_to_the_programs_own_threads(void **state)
{
    (void)state;
    sigset_t before;
    sigset_t theirs;
    sigset_t after;
    pthread_t thread;

    pthread_sigmask(SIG_SETMASK, NULL, &before);
    assert_int_equal(thread_start(&thread, "signals", report_signals, &theirs, NULL), RF_OK);
    pthread_join(thread, NULL);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    assert_int_equal(sigismember(&theirs, SIGINT), 1);
    assert_int_equal(sigismember(&theirs, SIGTERM), 1);
    assert_int_equal(sigismember(&theirs, SIGCHLD), 1);
    assert_int_equal(sigismember(&theirs, SIGSEGV), 0);
    for (int signal = 1; signal < 32; signal++)
        assert_int_equal(sigismember(&after, signal), sigismember(&before, signal));
}

static void *wait_for_go(void *arg)
{
    struct wake *wake = arg;

    mutex_lock(&wake->lock);
    while (!wake->go)
        (void)cond_wait_until(&wake->cond, &wake->lock, UINT64_MAX);
    mutex_unlock(&wake->lock);
    return NULL;
}

static void threads_have_names_cut_to_fifteen(void **state)
{
    (void)state;
    struct wake wake = {.go = false};
    pthread_t thread;
    char name[64] = "";

    mutex_init(&wake.lock);
    cond_init(&wake.cond);
    assert_int_equal(thread_start(&thread, "a-name-that-is-too-long", wait_for_go, &wake, NULL),
                     RF_OK);
    assert_int_equal(pthread_getname_np(thread, name, sizeof name), 0);
    (void)wake_up(&wake);
    pthread_join(thread, NULL);
    assert_string_equal(name, "a-name-that-is-");
    cond_destroy(&wake.cond);
    mutex_destroy(&wake.lock);
}

static void processors_are_those_we_may_use(void **state)
{
    (void)state;
    cpu_set_t all;
    cpu_set_t one;

    if (sched_getaffinity(0, sizeof all, &all) != 0)
        skip(); /* more processors than fit */
    assert_int_equal(thread_cpus(), CPU_COUNT(&all));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
        assert_int_equal(thread_cpus(), 1);
        break;
    }
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_runs_once),
        cmocka_unit_test(no_items_is_no_work),
        cmocka_unit_test(first_failure_stops_the_rest),
        cmocka_unit_test(of_many_failures_one_is_told_whole),
        cmocka_unit_test(items_really_run_at_the_same_time),
        cmocka_unit_test(wait_ends_at_its_deadline),
        cmocka_unit_test(wait_without_deadline_is_woken),
        cmocka_unit_test(signals_go_to_the_programs_own_threads),
        cmocka_unit_test(threads_have_names_cut_to_fifteen),
        cmocka_unit_test(processors_are_those_we_may_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
