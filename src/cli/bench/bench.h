/* What the measurements of `rfork bench` share: results, samples, and the holder process that
 * plays the seed.
 *
 * Every figure stands beside a ceiling measured in the same run, alternating with it, and is
 * judged by the ratio of medians. All memory is written once before anything is timed. */
#ifndef CLI_BENCH_BENCH_H
#define CLI_BENCH_BENCH_H

#include "base/error.h"

#include <stdio.h>
#include <sys/types.h>

enum {
    BENCH_MAX_ROUNDS = 64,
    BENCH_MAX_RESULTS = 64,
    BENCH_TEXT_BYTES = 192,
};

struct samples {
    double values[BENCH_MAX_ROUNDS];
    unsigned count;
};

void samples_add(struct samples *samples, double value);
double samples_median(const struct samples *samples);
double samples_min(const struct samples *samples);
double samples_max(const struct samples *samples);

/* One line of the table. A value of seconds is better when smaller, a rate when larger: `target`
 * is the least ratio value / ceiling (rates), or the largest value (at_most). */
struct bench_result {
    char name[BENCH_TEXT_BYTES]; /* "tcp loopback" */
    char value_text[BENCH_TEXT_BYTES];
    char ceiling_text
        [BENCH_TEXT_BYTES]; /* what it is held against; "" if it is an absolute figure */
    char note[BENCH_TEXT_BYTES];
    double value;     /* in unit */
    double ceiling;   /* in unit; 0: none */
    const char *unit; /* "bytes/s", "s", "bytes", "ratio" */
    double judged;    /* the number that is compared with target */
    double target;
    bool at_most; /* judged <= target, else judged >= target */
    bool skipped; /* not measured here; note says why */
    struct samples samples;
    struct samples ceiling_samples;
};

struct bench {
    uint64_t size_bytes; /* of tcp and copy */
    uint64_t map_max_bytes;
    uint64_t load_bytes; /* of the model on disk */
    unsigned rounds;
    unsigned connections; /* 0: the default */
    const char *folder;   /* for the model on disk */
    struct bench_result results[BENCH_MAX_RESULTS];
    unsigned result_count;
    struct holder *holder; /* NULL until first needed */
    uint8_t *dest;         /* size_bytes, written once */
};

/* The next free line, named. */
struct bench_result *bench_result(struct bench *bench, const char *name);
void bench_skip(struct bench *bench, const char *name, const char *why);
/* Rates: medians of samples and ceiling_samples; target is the least ratio. */
void bench_judge_rate(struct bench_result *result, double target);
/* An absolute figure of seconds or bytes: the median of samples; target the most it may be. */
void bench_judge_most(struct bench_result *result, const char *unit, double target);
bool bench_met(const struct bench_result *result);

/* size_bytes of memory that has been written, made on first use. */
enum rf_code bench_dest(struct bench *bench, uint8_t **ret_dest, struct rf_error *err);

/* ---- the holder: a process of its own with the weights in memory, told what to do line by line
 * ---- */

struct holder;
enum rf_code bench_holder(struct bench *bench, struct holder **ret_holder, struct rf_error *err);
void holder_stop(struct holder *holder);
pid_t holder_pid(const struct holder *holder);
/* Sends a line and reads the answer's words after "ok "; RF_E_FAILED with what it said
 * otherwise. */
enum rf_code holder_ask(struct holder *holder, char ret_answer[BENCH_TEXT_BYTES],
                        struct rf_error *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* CPU seconds of all its threads so far. */
enum rf_code holder_cpu(struct holder *holder, double *ret_seconds, struct rf_error *err);

/* The holder's own main: `rfork bench` starts itself again with this. */
int holder_main(uint64_t bytes);

/* ---- raw sockets: the ceiling of tcp ---- */

/* Serves ranges of memory by plain blocking send() of 1 MiB; returns the port. Runs until
 * raw_stop(). */
struct raw_server;
enum rf_code raw_start(const char *host, const uint8_t *data, uint64_t bytes,
                       struct raw_server **ret_server, uint16_t *ret_port, struct rf_error *err);
void raw_stop(struct raw_server *server);
/* Takes all bytes into dst with that many connections, one thread each, by plain blocking recv()
 * of 1 MiB. */
enum rf_code raw_take(const char *host, uint16_t port, uint8_t *dst, uint64_t bytes,
                      unsigned connections, double *ret_seconds, struct rf_error *err);

/* ---- two network namespaces joined by a veth pair ---- */

struct netpair;
/* rate_bytes_per_s 0: not shaped. RF_E_UNSUPPORTED with the reason where this is not possible
 * (not root, no `ip`). */
enum rf_code netpair_create(uint64_t rate_bytes_per_s, unsigned mtu, struct netpair **ret_pair,
                            struct rf_error *err);
void netpair_destroy(struct netpair *pair);
const char *netpair_seed_namespace(const struct netpair *pair);
const char *netpair_seed_address(const struct netpair *pair);
/* Moves the calling thread (and those it starts) into the reader's namespace, and back. */
enum rf_code netpair_enter(struct netpair *pair, struct rf_error *err);
void netpair_leave(struct netpair *pair);
/* The calling thread into a namespace by name. */
enum rf_code namespace_enter(const char *name, struct rf_error *err);

/* ---- the measurements ---- */

enum rf_code bench_tcp_loopback(struct bench *bench, struct rf_error *err);
enum rf_code bench_tcp_namespaces(struct bench *bench, struct rf_error *err);
enum rf_code bench_tcp_shaped(struct bench *bench, struct rf_error *err);
enum rf_code bench_map(struct bench *bench, struct rf_error *err);
enum rf_code bench_copy(struct bench *bench, struct rf_error *err);
enum rf_code bench_memory(struct bench *bench, struct rf_error *err);
enum rf_code bench_header(struct bench *bench, struct rf_error *err);
enum rf_code bench_manifest(struct bench *bench, struct rf_error *err);
enum rf_code bench_start(struct bench *bench, struct rf_error *err);

#endif
