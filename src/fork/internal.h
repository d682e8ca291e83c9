/* What the files of fork/ share. Not for others. */
#ifndef FORK_INTERNAL_H
#define FORK_INTERNAL_H

#include "base/clock.h"
#include "base/thread.h"
#include "fork/fork.h"

enum {
    FORK_MAX_WINDOW = 8,          /* reads in flight on one connection */
    FORK_WINDOW_BYTES = 16 << 20, /* and about how many bytes: what a 10 Gbit/s, 13 ms path holds */
    FORK_BOUNCE_BYTES = 512 << 10, /* per read in flight, when it goes to a file */
    FORK_PIECE_BYTES = 512 << 10,  /* offered at once: hashed while it is in the core's cache */
    FORK_MAX_CONNECTIONS = 64,
    FORK_TICK_MS = 100, /* progress and digests are looked at so often */
};

/* Index of the segment that holds the offset. */
uint32_t fork_dest_find(const struct fork_dest *dest, uint64_t stream_offset);

/* One chunk on its way: the sink that a transport fills. Lives in its worker. */
struct chunk_slot {
    struct sink sink; /* first: a sink pointer is a slot pointer */
    const struct fork_dest *dest;
    struct chunk_hasher *hasher; /* NULL: not verified */
    atomic_uint_fast64_t *arrived_bytes;
    uint8_t *bounce; /* FORK_BOUNCE_BYTES, NULL if no destination is a file */
    struct stream_range range;
    struct read read;
    uint64_t chunk;
    uint64_t done;
    uint32_t segment; /* of dest, that holds range.offset + done */
    bool busy;
};

enum rf_code chunk_slot_init(struct chunk_slot *slot, const struct fork_dest *dest,
                             enum hash_algorithm algorithm, bool verify, bool to_files,
                             struct rf_error *err);
void chunk_slot_free(struct chunk_slot *slot);
/* Aims the slot at stream bytes [offset, offset + bytes) of a rank. */
void chunk_slot_begin(struct chunk_slot *slot, uint32_t rank, uint64_t chunk, uint64_t offset,
                      uint64_t bytes);

/* What workers share. */
struct fork_job {
    const struct manifest *manifest;
    uint32_t rank;
    const struct transport_choice *choice;
    const uint8_t *token;
    const struct fork_dest *dest;
    const struct fork_options *options;
    struct digest_table *table; /* the seed's */
    uint64_t chunk_count;
    uint64_t chunk_bytes;
    unsigned connections;
    bool to_files;

    atomic_bool stop; /* release by job_stop(), acquire by workers and transports */
    int stop_fd;      /* readable once stop is set */
    atomic_uint_fast64_t arrived_bytes; /* relaxed: a counter */

    struct mutex lock;
    struct cond changed;
    uint64_t next_chunk RF_GUARDED_BY(lock); /* never given out yet */
    uint64_t *again RF_GUARDED_BY(lock);     /* [chunk_count] stack of chunks to read once more */
    uint64_t again_count RF_GUARDED_BY(lock);
    uint64_t done_chunks RF_GUARDED_BY(lock); /* arrived, and verified if that is asked for */
    uint64_t retried RF_GUARDED_BY(lock);
    uint64_t wasted_bytes RF_GUARDED_BY(lock);
    uint8_t *state RF_GUARDED_BY(lock);                 /* [chunk_count] enum chunk_state */
    uint8_t *tries RF_GUARDED_BY(lock);                 /* [chunk_count] corrupt arrivals */
    uint8_t (*got)[HASH_MAX_BYTES] RF_GUARDED_BY(lock); /* [chunk_count] of what arrived */
    unsigned workers RF_GUARDED_BY(lock);               /* still running */
    bool failed RF_GUARDED_BY(lock);
    struct rf_error error RF_GUARDED_BY(lock);
};

enum chunk_state { CHUNK_WANTED, CHUNK_ARRIVED, CHUNK_DONE };

enum rf_code job_create(struct fork_job *job, struct rf_error *err);
void job_destroy(struct fork_job *job);
/* The first failure is kept; everybody stops. */
void job_fail(struct fork_job *job, const struct rf_error *error);
void job_stop(struct fork_job *job);
bool job_stopped(const struct fork_job *job);

/* Takes a chunk to read. wait: blocks while there is none but some may come back. false: all is
 * done or the job stopped, or (without wait) there is none now. */
bool job_take(struct fork_job *job, bool wait, uint64_t *ret_chunk);
/* A chunk taken comes back unread: the connection broke. */
void job_return(struct fork_job *job, uint64_t chunk);
/* A chunk has arrived, with this digest (NULL: not verified). */
void job_arrived(struct fork_job *job, uint64_t chunk, const uint8_t *digest);
/* Compares what has arrived with digests that became known. */
void job_compare(struct fork_job *job);

/* Thread: one connection. arg is the job. */
void *fork_worker_main(void *arg);

#endif
