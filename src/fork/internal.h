/* What the files of fork/ share. Not for others. */
#ifndef FORK_INTERNAL_H
#define FORK_INTERNAL_H

#include "base/clock.h"
#include "base/thread.h"
#include "fork/item.h"
#include "transport/read_digest.h"

enum {
    FORK_MAX_WINDOW = 8,          /* reads in flight on one connection */
    FORK_WINDOW_BYTES = 16 << 20, /* and about how many bytes: what a 10 Gbit/s, 13 ms path holds */
    FORK_BOUNCE_BYTES =
        512 << 10, /* per read in flight, when it does not go straight to its place */
    FORK_PIECE_BYTES = 512 << 10, /* offered at once: hashed while it is in the core's cache */
    FORK_MAX_CONNECTIONS = 64,
    FORK_TICK_MS = 100, /* progress and digests are looked at so often */
};

/* Index of the segment that holds the offset; `hint` is one that may. */
uint32_t fork_dest_find(const struct fork_dest *dest, uint64_t stream_offset);
uint32_t fork_dest_find_near(const struct fork_dest *dest, uint64_t stream_offset, uint32_t hint);

/* One item on its way: the sink that a transport fills. Lives in its worker. */
struct item_slot {
    struct sink sink; /* first: a sink pointer is a slot pointer */
    const struct fork_plan *plan;
    atomic_uint_fast64_t *arrived_bytes;
    enum hash_algorithm algorithm; /* 0: nothing is verified */
    struct read_digest digest;
    struct item_parts parts;
    struct read read;
    const struct item *item;
    uint64_t index; /* of the item */
    uint64_t done;
    bool busy;
    bool large;

    /* Straight to its places: */
    struct iovec *places;
    uint32_t place_count;
    uint32_t place_room;
    uint32_t place;      /* that gets the next byte */
    uint64_t place_done; /* bytes of it that are there */

    /* Or by way of the bounce buffer: */
    uint8_t *bounce; /* FORK_BOUNCE_BYTES, once it is needed */
    bool bounces;
    uint32_t kept;  /* bytes at its beginning that wait for the rest of an element */
    uint32_t first; /* extent that is not complete */
    uint32_t hint;  /* segment of a destination */
};

/* large: the fork is more than a cache holds. */
void item_slot_init(struct item_slot *slot, const struct fork_plan *plan, bool large,
                    atomic_uint_fast64_t *arrived_bytes);
void item_slot_free(struct item_slot *slot);
/* Aims the slot at an item. verify: hash what comes. RF_E_NOMEM. */
enum rf_code item_slot_begin(struct item_slot *slot, const struct item *item, uint64_t index,
                             bool verify, struct rf_error *err);
/* After all bytes came: their digest, as the chunk's or as the seed's said one. */
void item_slot_digest(struct item_slot *slot, uint8_t ret_digest[HASH_MAX_BYTES]);

/* Writes the part [at, at + bytes) of an item's bytes, which lie at data, to its places; *ret_used
 * (a multiple of nothing but whole elements) may be less at the end of data. */
enum rf_code item_slot_scatter(struct item_slot *slot, const uint8_t *data, uint64_t at,
                               uint64_t bytes, uint64_t *ret_used, struct rf_error *err);

/* Items of one peer. */
struct peer_items {
    uint64_t next; /* never given out yet */
    uint64_t end;
    uint64_t again_count; /* in job->again, from the peer's first item on */
    uint64_t first;
    unsigned workers; /* connected, or on their way */
};

/* What workers share. */
struct fork_job {
    const struct fork_plan *plan;
    const struct fork_options *options;
    struct item_list list;
    unsigned connections;
    uint64_t read_bytes; /* about what a read brings */

    atomic_bool stop; /* release by job_stop(), acquire by workers and transports */
    int stop_fd;      /* readable once stop is set */
    atomic_uint_fast64_t arrived_bytes; /* relaxed: a counter */

    struct mutex lock;
    struct cond changed;
    struct peer_items *peers RF_GUARDED_BY(lock);
    uint64_t *again RF_GUARDED_BY(lock);      /* [count] stacks of items to read once more */
    uint64_t *waiting RF_GUARDED_BY(lock);    /* [source_count] items that wait for their digest */
    uint64_t all_waiting RF_GUARDED_BY(lock); /* of all sources */
    uint64_t done_items RF_GUARDED_BY(lock);  /* arrived, and verified if that is asked for */
    uint64_t retried RF_GUARDED_BY(lock);
    uint64_t wasted_bytes RF_GUARDED_BY(lock);
    uint8_t *state RF_GUARDED_BY(lock);                 /* [count] enum item_state */
    uint8_t *tries RF_GUARDED_BY(lock);                 /* [count] corrupt arrivals */
    uint8_t (*got)[HASH_MAX_BYTES] RF_GUARDED_BY(lock); /* [count] of what arrived */
    unsigned workers RF_GUARDED_BY(lock);               /* still running */
    bool failed RF_GUARDED_BY(lock);
    struct rf_error error RF_GUARDED_BY(lock);
};

enum item_state { ITEM_WANTED, ITEM_ARRIVED, ITEM_DONE };

/* The list is made already, and taken over. */
enum rf_code job_create(struct fork_job *job, struct rf_error *err);
void job_destroy(struct fork_job *job);
/* The first failure is kept; everybody stops. */
void job_fail(struct fork_job *job, const struct rf_error *error);
void job_stop(struct fork_job *job);
bool job_stopped(const struct fork_job *job);

/* Which peer a worker connects to: of those with something to read the one with the fewest. Blocks
 * while there is none but something may come back. false: all is done or the job stopped. */
bool job_take_peer(struct fork_job *job, uint32_t *ret_peer);
void job_leave_peer(struct fork_job *job, uint32_t peer);
/* Takes an item to read from a peer. wait: blocks while there is none but some may come back.
 * false: all is done or the job stopped, or another peer has something to read, or (without
 * wait) there is none now. */
bool job_take(struct fork_job *job, uint32_t peer, bool wait, uint64_t *ret_item);
/* An item taken comes back unread: the connection broke. */
void job_return(struct fork_job *job, uint64_t item);
/* An item has arrived, with this digest (NULL: not verified), of which the seed said that
 * (NULL: its table will say). */
void job_arrived(struct fork_job *job, uint64_t item, const uint8_t *digest, const uint8_t *said);
/* Compares what has arrived with digests that became known. */
void job_compare(struct fork_job *job);

uint32_t job_peer_of(const struct fork_job *job, uint64_t item);
/* A rank of whose bytes some have yet to come from a peer; "" if there is none. */
const char *job_lacking_text(struct fork_job *job, uint32_t peer, char out[80]);
/* "rank tp0/4", with as many as there are. */
const char *job_rank_text(const struct fork_job *job, uint64_t item, char out[80]);

/* What another connection, or asking again, may cure. */
static inline bool code_is_of_the_path(enum rf_code code)
{
    return code == RF_E_UNREACHABLE || code == RF_E_TIMEOUT || code == RF_E_PROTO;
}

/* What the caller's thread remembers of digests from tick to tick. */
struct digest_watch {
    uint32_t turn; /* the source that is waited for first */
    bool begun;
    bool pauses;       /* after a request that failed */
    uint32_t refused;  /* requests in a row that failed */
    uint64_t again_ns; /* when to ask again */
    uint64_t known;    /* digests of all sources */
    uint64_t news_ns;  /* since when no more came although nothing else is missing */
};

/* Asks for the digests that are missing, if it is time to; *ret_asked: it did. Requests that fail
 * are made again options->retries times. RF_E_TIMEOUT: the seed makes no more. */
enum rf_code digests_ask(struct fork_job *job, struct digest_watch *watch, uint64_t tick_ns,
                         bool *ret_asked, struct rf_error *err);

/* Thread: one connection at a time. arg is the job. */
void *fork_worker_main(void *arg);

#endif
