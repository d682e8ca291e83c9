#include "base/log.h"

#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

enum { LOG_LINE_BYTES = 4096 };

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};

/* Relaxed: a line more or less around the change of the level is of no consequence. */
static atomic_int log_level_now = LOG_ERROR;

/* Set before other threads start, read by all. */
static log_sink_fn log_sink;
static void *log_sink_ctx;

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_level_now, (int)level, memory_order_relaxed);
}

void log_set_sink(log_sink_fn sink, void *ctx)
{
    log_sink = sink;
    log_sink_ctx = ctx;
}

int log_enabled(enum log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level_now, memory_order_relaxed);
}

int log_level_parse(const char *text)
{
    for (int i = 0; text != NULL && i <= LOG_TRACE; i++) {
        if (strcasecmp(text, level_names[i]) == 0)
            return i;
    }
    if (text != NULL && strcasecmp(text, "warning") == 0)
        return LOG_WARN;
    return text != NULL && strcasecmp(text, "critical") == 0 ? (int)LOG_ERROR : -1;
}

/* What snprintf() really wrote. */
static size_t written(int bytes, size_t room)
{
    if (bytes < 0)
        return 0;
    return (size_t)bytes < room ? (size_t)bytes : room - 1;
}

static size_t put_head(char *line, size_t room, enum log_level level, const char *event)
{
    struct timespec now = {0};
    struct tm utc = {0};
    char when[32];

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
    return written(snprintf(line, room, "time=%s.%03ldZ level=%s event=\"%s\"", when,
                            now.tv_nsec / 1000000, level_names[level], event),
                   room);
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    int saved = errno;
    char line[LOG_LINE_BYTES];
    va_list args;

    if (level > LOG_TRACE || !log_enabled(level))
        return;
    /* One byte is kept for the newline. */
    size_t room = sizeof line - 1;
    size_t bytes = put_head(line, room, level, event);
    if (fmt != NULL && fmt[0] != '\0' && bytes + 1 < room) {
        line[bytes++] = ' ';
        va_start(args, fmt);
        int wanted = vsnprintf(line + bytes, room - bytes, fmt, args);
        va_end(args);
        bool cut = wanted > 0 && (size_t)wanted >= room - bytes;
        bytes += written(wanted, room - bytes);
        if (cut)
            memcpy(line + bytes - 3, "...", 3);
    }
    line[bytes] = '\0';
    rf_text_sanitise(line);
    if (log_sink != NULL) {
        log_sink(log_sink_ctx, level, line);
    } else {
        bytes = strlen(line);
        line[bytes++] = '\n';
        /* One write, so that lines of several threads and processes do not mix. What does not go
         * out (a full pipe, a closed stderr) is lost: a log must not stop a transfer. */
        while (write(STDERR_FILENO, line, bytes) < 0 && errno == EINTR)
            continue;
    }
    errno = saved;
}
