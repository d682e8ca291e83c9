#include "cli/progress.h"

#include "base/clock.h"
#include "base/size.h"
#include "base/thread.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROGRESS_FIRST_MS = 1000, PROGRESS_EVERY_MS = 100, PROGRESS_COLUMNS = 79 };

static struct {
    atomic_uint_fast64_t done_bytes; /* relaxed: counters for people */
    atomic_uint_fast64_t total_bytes;
    atomic_uint_fast64_t next_ns; /* when to draw again; UINT64_MAX: never */
    struct mutex lock;            /* over what follows, and the line on the screen */
    const char *label;
    uint64_t start_ns;
    bool shown;
} progress = {.lock = {.os = PTHREAD_MUTEX_INITIALIZER}, .next_ns = UINT64_MAX};

static void erase_locked(void) RF_REQUIRES(progress.lock)
{
    if (progress.shown)
        fprintf(stderr, "\r%*s\r", PROGRESS_COLUMNS, "");
    progress.shown = false;
}

static void draw_locked(uint64_t now_ns) RF_REQUIRES(progress.lock)
{
    uint64_t done = atomic_load_explicit(&progress.done_bytes, memory_order_relaxed);
    uint64_t total = atomic_load_explicit(&progress.total_bytes, memory_order_relaxed);
    double seconds = clock_seconds(progress.start_ns, now_ns);
    double rate = seconds > 0 ? (double)done / seconds : 0;
    char done_text[SIZE_TEXT_BYTES];
    char total_text[SIZE_TEXT_BYTES];
    char rate_text[SIZE_TEXT_BYTES];
    char left_text[SIZE_TEXT_BYTES];
    char line[256];

    if (progress.label == NULL)
        return;
    int used =
        snprintf(line, sizeof(line), "%.30s  %s", progress.label, size_text(done, done_text));
    if (total > 0 && rate > 0 && done <= total)
        used += snprintf(line + used, sizeof(line) - (size_t)used, " of %s  %s  %s left",
                         size_text(total, total_text), size_rate_text(rate, rate_text),
                         size_seconds_text((double)(total - done) / rate, left_text));
    if (used > PROGRESS_COLUMNS)
        used = PROGRESS_COLUMNS;
    fprintf(stderr, "\r%.*s%*s", used, line, PROGRESS_COLUMNS - used, "");
    progress.shown = true;
}

/* Cheap while it is not yet time: one load and one look at the clock. */
static void tick(void)
{
    uint64_t next_ns = atomic_load_explicit(&progress.next_ns, memory_order_relaxed);

    if (next_ns == UINT64_MAX)
        return;
    uint64_t now_ns = clock_now_ns();
    if (now_ns < next_ns)
        return;
    /* Whoever moves the time on draws; the others go on with their work. */
    if (!atomic_compare_exchange_strong_explicit(&progress.next_ns, &next_ns,
                                                 now_ns + PROGRESS_EVERY_MS * CLOCK_NS_PER_MS,
                                                 memory_order_relaxed, memory_order_relaxed))
        return;
    mutex_lock(&progress.lock);
    draw_locked(now_ns);
    mutex_unlock(&progress.lock);
}

void progress_begin(const char *label, uint64_t total_bytes)
{
    const char *terminal = getenv("TERM");

    if (!isatty(STDERR_FILENO) || (terminal != NULL && strcmp(terminal, "dumb") == 0))
        return;
    mutex_lock(&progress.lock);
    progress.label = label;
    progress.start_ns = clock_now_ns();
    atomic_store_explicit(&progress.done_bytes, 0, memory_order_relaxed);
    atomic_store_explicit(&progress.total_bytes, total_bytes, memory_order_relaxed);
    atomic_store_explicit(&progress.next_ns,
                          progress.start_ns + PROGRESS_FIRST_MS * CLOCK_NS_PER_MS,
                          memory_order_relaxed);
    mutex_unlock(&progress.lock);
}

void progress_set(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)ctx;
    atomic_store_explicit(&progress.done_bytes, done_bytes, memory_order_relaxed);
    atomic_store_explicit(&progress.total_bytes, total_bytes, memory_order_relaxed);
    tick();
}

void progress_add(void *ctx, uint64_t added_bytes)
{
    (void)ctx;
    atomic_fetch_add_explicit(&progress.done_bytes, added_bytes, memory_order_relaxed);
    tick();
}

void progress_hide(void)
{
    mutex_lock(&progress.lock);
    erase_locked();
    mutex_unlock(&progress.lock);
}

void progress_end(void)
{
    mutex_lock(&progress.lock);
    atomic_store_explicit(&progress.next_ns, UINT64_MAX, memory_order_relaxed);
    progress.label = NULL;
    erase_locked();
    mutex_unlock(&progress.lock);
}
