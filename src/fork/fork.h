/* Taking a rank's stream from a source into a destination, verified. Knows no HTTP: manifest,
 * endpoints, token and digests come from the caller. */
#ifndef FORK_FORK_H
#define FORK_FORK_H

#include "model/store.h"
#include "transport/transport.h"

/* Where a part of the stream goes: memory, or a place in a file. */
struct fork_segment {
    uint64_t stream_offset;
    uint64_t bytes;
    uint8_t *addr; /* NULL: into fd at fd_offset */
    int fd;
    uint64_t fd_offset;
};

/* Destination of one rank: segments by stream offset that cover the stream exactly
 * (fork_dest_finish() checks). */
struct fork_dest {
    struct fork_segment *segments;
    uint32_t count;
    uint32_t room;
};
enum rf_code fork_dest_add(struct fork_dest *dest, const struct fork_segment *segment,
                           struct rf_error *err);
enum rf_code fork_dest_finish(struct fork_dest *dest, uint64_t stream_bytes, struct rf_error *err);
void fork_dest_free(struct fork_dest *dest);

/* Bytes taken so far; called from one thread at a time, at most every 100 ms, and once at the
 * end. */
typedef void (*fork_progress_fn)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

/* Merges digests the seed has by now into the table: waits for news until the deadline. Called
 * from one thread. */
typedef enum rf_code (*fork_digests_fn)(void *ctx, uint32_t rank, struct digest_table *table,
                                        uint64_t deadline_ns, struct rf_error *err);

/* Gets the memory of a part of the destination before bytes are written there: called from the
 * workers, several at a time, once or more often for each chunk. */
typedef enum rf_code (*fork_prepare_fn)(void *ctx, uint64_t stream_offset, uint64_t bytes,
                                        struct rf_error *err);

struct fork_options {
    unsigned connections;      /* 0: the transport's choice for this machine */
    bool verify;               /* every chunk against the seed's digest */
    uint64_t timeout_ms;       /* of connecting and of silence; 0: 10 s */
    uint32_t retries;          /* of a corrupt chunk or a broken connection; 0: none */
    const atomic_bool *cancel; /* may be NULL */
    int cancel_fd;             /* -1 or an eventfd */
    fork_progress_fn progress; /* may be NULL */
    void *progress_ctx;
    fork_digests_fn digests; /* needed if verify */
    void *digests_ctx;
    fork_prepare_fn prepare; /* may be NULL: the destination is there */
    void *prepare_ctx;
};

struct fork_stats {
    uint64_t bytes;      /* of the stream that arrived */
    uint64_t wire_bytes; /* with what had to be read again */
    uint64_t chunks;
    uint64_t chunks_verified;
    uint64_t chunks_retried;
    unsigned connections;
    double seconds;
};

/* Moves one rank. table: digests of the rank, filled on the way (its own, computed from what
 * arrived, are compared with the seed's). Errors: RF_E_UNREACHABLE, RF_E_TIMEOUT, RF_E_CORRUPT
 * (chunk, byte range, first tensors in it), RF_E_CANCELLED, RF_E_SYS and RF_E_NOMEM (writing to
 * a file). On error the destination's content is undefined. */
enum rf_code fork_rank(const struct manifest *manifest, uint32_t rank,
                       const struct transport_choice *choice,
                       const uint8_t token[CHUNK_TOKEN_BYTES], const struct fork_dest *dest,
                       struct digest_table *table, const struct fork_options *options,
                       struct fork_stats *ret_stats, struct rf_error *err);

/* Maps one rank, where the transport can; layout is the caller's to free. No byte moves and none
 * is verified. */
enum rf_code fork_map_rank(const struct manifest *manifest, uint32_t rank,
                           const struct transport_choice *choice,
                           const uint8_t token[CHUNK_TOKEN_BYTES],
                           const struct fork_options *options, struct layout *ret_layout,
                           struct transport_session **ret_session, struct rf_error *err);

#endif
