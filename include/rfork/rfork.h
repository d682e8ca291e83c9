/* librfork: serve tensors from memory, and take them from another process's memory.
 *
 * A *seed* has tensors and lets others read them; a *fork* takes them. Both halves are used by
 * any engine that can link C: examples/engine_seed.c and examples/engine_fork.c are complete
 * programs.
 *
 * Strings are UTF-8. Sizes and offsets are bytes. Functions that can fail return enum rf_code
 * and fill *err (which may be NULL); on failure nothing named ret_* is touched. The library
 * never prints (unless rf_log_set_level() asks it to), never exits, and installs no signal
 * handler.
 *
 * Copyright 2026 The rfork authors. SPDX-License-Identifier: Apache-2.0 */
#ifndef RFORK_RFORK_H
#define RFORK_RFORK_H

#include <rfork/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One tensor: contiguous, row-major, little-endian elements. */
struct rf_tensor {
    const char *name; /* unique within a seed; at most RF_MAX_NAME_BYTES */
    enum rf_dtype dtype;
    uint32_t ndim;         /* 0 (a scalar) ... RF_MAX_DIMS */
    const uint64_t *shape; /* [ndim]; a zero in it makes a tensor of no bytes */
};

/* Log lines of the library on stderr: 0 errors only (the default), 1 warnings, 2 info, 3 debug,
 * 4 trace. Any thread. */
RF_API void rf_log_set_level(int level);

/* ------------------------------------------------------------------ seed */

struct rf_seed;

/* Zero-initialise for the defaults. Strings are copied. */
struct rf_seed_options {
    const char *host;         /* address to listen on; NULL: 127.0.0.1 */
    uint16_t port;            /* of the HTTP side; 0: any free one, see rf_seed_url() */
    const char *model;        /* a name people know it by; NULL: "unnamed" */
    const char *architecture; /* e.g. "LlamaForCausalLM"; may be NULL */
    uint32_t max_readers;     /* at a time; 0: 256 */
    uint64_t chunk_bytes;     /* 0: 8 MiB; a multiple of 64 KiB, at most 64 MiB */
    bool sha256; /* digests by SHA-256 instead of XXH3-128: where peers are not trusted */
};

/* Creates a seed without tensors. *ret_seed is the caller's: rf_seed_destroy() it.
 * Any thread; does not block. Errors: RF_E_INVAL (chunk_bytes), RF_E_NOMEM. */
RF_API enum rf_code rf_seed_create(const struct rf_seed_options *options, struct rf_seed **ret_seed,
                                   struct rf_error *err);

/* Adds a tensor whose bytes lie in the caller's memory at data. The descriptor is copied; the
 * memory is borrowed, and must stay valid and unchanged until rf_seed_destroy(). Two names may
 * have the same data and the same dtype and number of bytes: tied tensors, held once. One thread
 * at a time per seed, before rf_seed_publish(). Errors: RF_E_INVAL (name twice, shape overflows,
 * data NULL although the tensor has bytes, already published), RF_E_NOMEM. */
RF_API enum rf_code rf_seed_add_tensor(struct rf_seed *seed, const struct rf_tensor *tensor,
                                       const void *data, struct rf_error *err);

/* Adds a side file (config.json, tokenizer ...), which readers get with the weights. Both
 * arguments are copied. Errors: RF_E_INVAL (a name that is absolute, has "..", or is there
 * already), RF_E_NOMEM. */
RF_API enum rf_code rf_seed_add_file(struct rf_seed *seed, const char *name, const void *data,
                                     size_t bytes, struct rf_error *err);

/* Memory that can also be mapped by new instances on the same host without copying (transport
 * "map"): shared, zeroed, page-aligned, the seed's: it lives until rf_seed_destroy(). Put
 * tensors anywhere inside and add them with rf_seed_add_tensor(). It becomes read-only, for the
 * caller too, in rf_seed_publish(). If all tensors lie in such memory, "map" is offered. Errors:
 * RF_E_NOMEM. */
RF_API enum rf_code rf_seed_alloc(struct rf_seed *seed, uint64_t bytes, void **ret_data,
                                  struct rf_error *err);

/* Fixes the set of tensors and serves it on threads of the library: when this returns, forks can
 * start. Digests are computed in the background from then on. Once per seed. Errors: RF_E_INVAL
 * (no tensor, published already), RF_E_SYS (port taken), RF_E_NOMEM. */
RF_API enum rf_code rf_seed_publish(struct rf_seed *seed, struct rf_error *err);

/* "http://127.0.0.1:30000", what rf_fork_open() takes; NULL before it is published. Valid as
 * long as the seed. Any thread. */
RF_API const char *rf_seed_url(const struct rf_seed *seed);

struct rf_seed_stats {
    uint64_t readers_now;
    uint64_t readers_total;
    uint64_t bytes_sent;   /* that went through sockets; mapped bytes are not sent */
    uint64_t stream_bytes; /* of all tensors */
    bool digests_complete;
};
/* Any thread; does not block. Zeroes before it is published. */
RF_API void rf_seed_get_stats(struct rf_seed *seed, struct rf_seed_stats *ret_stats);

/* Waits until all digests are made. timeout_ms 0 only asks. Errors: RF_E_TIMEOUT, RF_E_INVAL
 * (not published). */
RF_API enum rf_code rf_seed_wait_digests(struct rf_seed *seed, uint64_t timeout_ms,
                                         struct rf_error *err);

/* Takes no new readers and waits for those there until the time is over. Returns how many were
 * cut off. Blocks; any thread. */
RF_API uint32_t rf_seed_drain(struct rf_seed *seed, uint64_t timeout_ms);

/* Stops serving at once and frees; the caller's memory is no longer used when this returns. NULL
 * is fine. No other thread may be using the seed. */
RF_API void rf_seed_destroy(struct rf_seed *seed);

/* ------------------------------------------------------------------ fork */

struct rf_fork;

/* Taken so far. Called from the thread that is in rf_fork_run(), at most ten times a second. It
 * may call rf_fork_cancel(). */
typedef void (*rf_progress_fn)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

/* Zero-initialise for the defaults. Strings are copied. */
struct rf_fork_options {
    const char *transport;  /* "auto" (also NULL), "map", "tcp", "te" */
    uint32_t connections;   /* 0: chosen */
    bool no_verify;         /* trust the path: do not compare digests */
    uint64_t timeout_ms;    /* of connecting and of silence; 0: 10 s */
    uint64_t wait_ready_ms; /* how long to wait for a seed that is still loading; 0: not at all */
    uint32_t rank;          /* which of the seed's ranks, over te also of its other nodes'; with
                             * tp_size or layout: which new one */
    uint32_t tp_size;       /* tensor-parallel size of this instance; 0: the seed's */
    const char *layout;     /* "checkpoint", "sglang"; NULL: the seed's */
};

/* Asks the seed at url ("http://HOST:PORT") what it has, and takes a lease. Blocks for at most
 * wait_ready_ms and a few times timeout_ms. *ret_fork is the caller's: rf_fork_close() it.
 *
 * With tp_size or layout the fork has the tensors of rank `rank` of such an instance, however the
 * seed is cut: made by the built-in plan of the seed's architecture and its config.json, taken as
 * slices from the ranks that have them, and verified. They are always copied.
 *
 * Errors: RF_E_INVAL (url, sizes that tp_size does not divide), RF_E_UNREACHABLE, RF_E_TIMEOUT,
 * RF_E_PROTO, RF_E_UNSUPPORTED (transport, with the reason; an architecture without a plan),
 * RF_E_MISMATCH (no such rank; a seed that does not say what its ranks are made of), RF_E_FORMAT
 * (the seed's config.json). */
RF_API enum rf_code rf_fork_open(const char *url, const struct rf_fork_options *options,
                                 struct rf_fork **ret_fork, struct rf_error *err);

/* Number of tensors, in the order of their names. */
RF_API uint64_t rf_fork_tensor_count(const struct rf_fork *fork);

/* The i-th tensor; *ret_tensor borrows from the fork. *ret_bytes may be NULL. Errors: RF_E_INVAL
 * (index). */
RF_API enum rf_code rf_fork_tensor(const struct rf_fork *fork, uint64_t index,
                                   struct rf_tensor *ret_tensor, uint64_t *ret_bytes,
                                   struct rf_error *err);

/* Compares what the caller expects with what the seed has, name by name, before a byte moves.
 * Errors: RF_E_MISMATCH with a line that counts the differences and names the first ones
 * (missing, extra, dtype, shape). */
RF_API enum rf_code rf_fork_match(struct rf_fork *fork, const struct rf_tensor *expected,
                                  uint64_t count, struct rf_error *err);

/* Where a tensor's bytes shall go: dst, which has room for `bytes`. Borrowed until rf_fork_run()
 * has returned. A tensor that is tied to another in the seed may be bound too: it gets a copy.
 * Tensors that are not bound go into memory of the library. Errors: RF_E_MISMATCH (no such
 * tensor), RF_E_INVAL (bytes is not the tensor's size, bound twice, dst NULL). */
RF_API enum rf_code rf_fork_bind(struct rf_fork *fork, const char *name, void *dst, uint64_t bytes,
                                 struct rf_error *err);

/* Moves the bytes and verifies them. Blocks until all have arrived, or fails: then bound memory
 * holds undefined bytes. If nothing is bound and the transport is map, no byte moves:
 * rf_fork_data() points into the seed's own read-only pages. Once per fork. Errors:
 * RF_E_CANCELLED, RF_E_UNREACHABLE, RF_E_TIMEOUT, RF_E_CORRUPT (names chunk and tensors),
 * RF_E_NOMEM. */
RF_API enum rf_code rf_fork_run(struct rf_fork *fork, rf_progress_fn progress, void *ctx,
                                struct rf_error *err);

/* Makes rf_fork_run() return RF_E_CANCELLED soon (under a second). Any thread, also a signal
 * handler; before, during or after the run. */
RF_API void rf_fork_cancel(struct rf_fork *fork);

/* A tensor's bytes after a successful run: where it was bound, or in the library's memory (read-
 * only when mapped), which lives until rf_fork_close(). NULL if there is no such tensor, or it
 * has no bytes, or the run has not succeeded. */
RF_API const void *rf_fork_data(const struct rf_fork *fork, const char *name);

struct rf_fork_stats {
    uint64_t bytes;      /* of the tensors taken */
    uint64_t wire_bytes; /* moved, with what was read twice; 0 when mapped */
    uint64_t chunks;
    uint64_t chunks_retried;
    uint32_t connections;
    double seconds;       /* of the run */
    bool verified;        /* every byte against the seed's digests */
    char transport[64];   /* "tcp" */
    char reason[1024];    /* why that one */
    char root_digest[96]; /* "xxh3-128:..."; "" unless verified */
};
RF_API void rf_fork_get_stats(const struct rf_fork *fork, struct rf_fork_stats *ret_stats);

/* Ends the lease and frees, with the memory of the library's own. NULL is fine. */
RF_API void rf_fork_close(struct rf_fork *fork);

#ifdef __cplusplus
}
#endif
#endif
