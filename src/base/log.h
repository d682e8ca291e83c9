/* Events on stderr, or to a function of the embedding program: an event in lower case, then logfmt
 * fields: log_warn("peer gone", "peer=%s left_bytes=%" PRIu64, peer, left);
 * error = someone must act; warn = we went on, worse; info = once per transfer; debug = per object;
 * trace = per chunk. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

typedef void (*log_sink_fn)(void *ctx, enum log_level level, const char *line);

/* Lines above this level are dropped. Default LOG_ERROR: a library is silent unless asked. */
void log_set_level(enum log_level level);

/* Where lines go instead of stderr; NULL restores it. Set before other threads start. */
void log_set_sink(log_sink_fn sink, void *ctx);

/* Whether a line of this level would be written (one relaxed atomic load). */
int log_enabled(enum log_level level);

/* Parses "error" ... "trace", and "critical" and "warning" as Python has them; -1 if it is none. */
int log_level_parse(const char *text);

void log_event(enum log_level level, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define LOG_AT(level, ...)                 \
    do {                                   \
        if (log_enabled(level))            \
            log_event(level, __VA_ARGS__); \
    } while (0)
#define log_error(...) LOG_AT(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  LOG_AT(LOG_WARN, __VA_ARGS__)
#define log_info(...)  LOG_AT(LOG_INFO, __VA_ARGS__)
#define log_debug(...) LOG_AT(LOG_DEBUG, __VA_ARGS__)
#define log_trace(...) LOG_AT(LOG_TRACE, __VA_ARGS__)

#endif
