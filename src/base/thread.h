/* Threads, and the annotations by which clang checks who holds which lock. */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include "base/error.h"

#include <pthread.h>

#if defined(__clang__)
#define RF_CAPABILITY(name)   __attribute__((capability(name)))
#define RF_REQUIRES(lock)     __attribute__((requires_capability(lock)))
#define RF_ACQUIRE(lock)      __attribute__((acquire_capability(lock)))
#define RF_RELEASE(lock)      __attribute__((release_capability(lock)))
#define RF_NO_THREAD_ANALYSIS __attribute__((no_thread_safety_analysis))
#else
#define RF_CAPABILITY(name)
#define RF_REQUIRES(lock)
#define RF_ACQUIRE(lock)
#define RF_RELEASE(lock)
#define RF_NO_THREAD_ANALYSIS
#endif

/* Says to the reader which lock a field is under. In C clang cannot resolve the name of another
 * field (it can in C++), so nothing checks it but TSan. */
#define RF_GUARDED_BY(lock)

struct RF_CAPABILITY("mutex") mutex {
    pthread_mutex_t os;
};

void mutex_init(struct mutex *mutex);
void mutex_destroy(struct mutex *mutex);
void mutex_lock(struct mutex *mutex) RF_ACQUIRE(*mutex);
void mutex_unlock(struct mutex *mutex) RF_RELEASE(*mutex);

/* A condition on CLOCK_MONOTONIC. */
struct cond {
    pthread_cond_t os;
};

void cond_init(struct cond *cond);
void cond_destroy(struct cond *cond);
void cond_broadcast(struct cond *cond);
/* Waits until woken or the deadline (clock.h) has passed; false in the latter case. */
bool cond_wait_until(struct cond *cond, struct mutex *mutex, uint64_t deadline_ns)
    RF_REQUIRES(*mutex);

/* Starts a thread named `name` (15 bytes at most) with all signals blocked, so that signals go
 * to the program's own threads. Join with pthread_join(). */
enum rf_code thread_start(pthread_t *ret_thread, const char *name, void *(*fn)(void *), void *arg,
                          struct rf_error *err);

/* Processors this process may use (sched_getaffinity, at least 1). */
unsigned thread_cpus(void);

/* Runs fn(ctx, 0) ... fn(ctx, count - 1) on up to `threads` threads (the caller's is one of
 * them) and returns when all have ended: the first failure's code and error, and no new item
 * starts after it. fn must fill its err. */
typedef enum rf_code (*thread_item_fn)(void *ctx, uint64_t item, struct rf_error *err);
enum rf_code thread_parallel(unsigned threads, uint64_t count, thread_item_fn fn, void *ctx,
                             struct rf_error *err);

#endif
