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

/* Private memory of whole huge pages that has been written; bench_touched_bytes(bytes) to unmap. */
enum rf_code bench_touched(uint64_t bytes, uint8_t **ret_at, struct rf_error *err);
uint64_t bench_touched_bytes(uint64_t bytes);
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

/* ---- whole programs ---- */

struct program {
    pid_t pid;
    int out_fd; /* of its stdout */
};
/* Starts this program again with these words, ended by NULL; words[0] is its name. */
enum rf_code program_start(char *const words[], struct program *ret_program, struct rf_error *err);
/* Waits for the ready line of a seed; *ret_url is what follows "url=". */
enum rf_code program_ready(const struct program *program, char ret_url[BENCH_TEXT_BYTES],
                           struct rf_error *err);
/* What follows `key` in all that the program says until it ends; 0 if it says no such thing. */
double program_number(const struct program *program, const char *key);
/* Sends a signal (0: none) and waits for the end. */
void program_end(struct program *program, int signal_number);
/* Shared memory made by the process (its memfds), wherever it is mapped. */
uint64_t program_shared_memory(const struct program *program);
uint64_t program_anonymous_memory(const struct program *program);

/* ---- a model of Qwen3's on disk ---- */

struct qwen {
    uint64_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocab;
    uint64_t bytes;     /* of all tensors */
    uint64_t row_bytes; /* of those that tensor parallelism cuts into rows' pieces: not in one piece
                         * in the file */
    char folder[256];
};
/* Writes config.json and one weight file to a new folder in `where`: at most `bytes`, which are at
 * least QWEN_MIN_BYTES. Call qwen_remove() also after a failure, with one that was zeros before. */
enum { QWEN_MIN_BYTES = 12 << 20 };
enum rf_code qwen_create(const char *where, uint64_t bytes, struct qwen *ret_qwen,
                         struct rf_error *err);
void qwen_remove(const struct qwen *qwen);

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

/* All of it into a file of a model. RF_E_SYS. */
enum rf_code bench_write(int fd, const uint8_t *data, uint64_t bytes, struct rf_error *err);

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
enum rf_code bench_ranks(struct bench *bench, struct rf_error *err);
enum rf_code bench_ranks_memory(struct bench *bench, struct rf_error *err);
enum rf_code bench_reshard_tcp(struct bench *bench, struct rf_error *err);
enum rf_code bench_reshard_map(struct bench *bench, struct rf_error *err);
enum rf_code bench_reshard_plan(struct bench *bench, struct rf_error *err);
enum rf_code bench_reshard_moves(struct bench *bench, struct rf_error *err);
/* Of the model that is resharded; three times as much memory is needed. */
uint64_t bench_reshard_bytes(const struct bench *bench);

#endif
