/* Taking ranks of a seed, or slices of them, into destinations, verified. Knows no HTTP: manifests,
 * endpoints, tokens and digests come from the caller. */
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
/* The segment that holds an offset of the stream; of a finished destination. */
const struct fork_segment *fork_dest_at(const struct fork_dest *dest, uint64_t stream_offset);

/* Bytes taken so far; called from one thread at a time, at most every 100 ms, and once at the
 * end. */
typedef void (*fork_progress_fn)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

/* Merges digests the seed has by now into the table of a source: waits for news until the deadline.
 * Called from one thread. RF_E_UNREACHABLE, RF_E_TIMEOUT, RF_E_PROTO: is called again. */
typedef enum rf_code (*fork_digests_fn)(void *ctx, uint32_t source, struct digest_table *table,
                                        uint64_t deadline_ns, struct rf_error *err);

/* Gets the memory of a part of the destination before bytes are written there: called from the
 * workers, several at a time, once or more often for each chunk. */
typedef enum rf_code (*fork_prepare_fn)(void *ctx, uint64_t stream_offset, uint64_t bytes,
                                        struct rf_error *err);

struct fork_options {
    unsigned connections; /* in all; 0: chosen for this machine */
    bool verify;          /* every byte against digests of the seed's */
    uint64_t timeout_ms;  /* of connecting and of silence; 0: 10 s */
    uint32_t retries; /* of a corrupt read, a broken connection, a request for digests; 0: none */
    const atomic_bool *cancel; /* may be NULL */
    int cancel_fd;             /* -1 or an eventfd */
    fork_progress_fn progress; /* may be NULL */
    void *progress_ctx;
    fork_digests_fn digests; /* needed if verify */
    void *digests_ctx;
};

/* Somebody who can be connected to: one connection reaches all ranks there. */
struct fork_peer {
    const struct transport_choice *choice;
    const uint8_t *token;                        /* CHUNK_TOKEN_BYTES */
    const char *name;                            /* for messages */
    const struct transport_directory *directory; /* NULL: one of ours */
};

/* A rank of a peer's manifest that is read. */
struct fork_source {
    const struct manifest *manifest;
    struct digest_table *table; /* of the rank's chunks, as the seed says; filled on the way */
    uint32_t peer;
    uint32_t rank;
};

/* Where bytes go: a rank of the new instance. */
struct fork_target {
    const struct fork_dest *dest; /* finished */
    fork_prepare_fn prepare;      /* may be NULL: the memory is there */
    void *prepare_ctx;
};

/* Pieces of a source's stream and their places in a target's: as struct reshard_move. */
struct fork_move {
    struct stream_range read;
    uint64_t write_offset;
    uint64_t write_stride;
    uint32_t source;
    uint32_t target;
    uint8_t from; /* enum rf_dtype; differs from `to`: elements are converted on arrival */
    uint8_t to;
};

/* All of a fork, however many ranks: one set of connections, one error. */
struct fork_plan {
    const struct fork_peer *peers;
    const struct fork_source *sources; /* those of one peer next to each other */
    const struct fork_target *targets;
    struct fork_move *moves; /* are sorted */
    uint64_t move_count;
    uint32_t peer_count;
    uint32_t source_count;
    uint32_t target_count;
};

struct fork_stats {
    uint64_t bytes;      /* at the targets */
    uint64_t wire_bytes; /* with what had to be read again */
    uint64_t chunks;     /* reads: whole chunks, or slices of some */
    uint64_t chunks_verified;
    uint64_t chunks_retried;
    unsigned connections;
    double seconds;
};

/* Moves everything. Bytes of the targets that no move writes are left as they are. Errors:
 * RF_E_UNREACHABLE, RF_E_TIMEOUT, RF_E_CORRUPT (rank, byte range, first tensors in it),
 * RF_E_CANCELLED, RF_E_SYS and RF_E_NOMEM (writing to a file), those of item_list_make(); all
 * name the peer. On error the destinations' content is undefined. */
enum rf_code fork_run(const struct fork_plan *plan, const struct fork_options *options,
                      struct fork_stats *ret_stats, struct rf_error *err);

/* The same for one whole rank. table: digests of the rank, filled on the way (its own, computed
 * from what arrived, are compared with the seed's); options->digests is called for source 0. */
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
