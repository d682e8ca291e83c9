/* What the files of seed/ share. Not for others. */
#ifndef SEED_INTERNAL_H
#define SEED_INTERNAL_H

#include "base/clock.h"
#include "base/thread.h"
#include "seed/seed.h"

#include <stdatomic.h>

/* A reader's right to read. Guarded by seed->lock, but `closed` may be read without it. */
struct seed_lease {
    uint8_t token[CHUNK_TOKEN_BYTES];
    char client[SEED_CLIENT_TEXT_BYTES];
    uint64_t expires_ns;
    bool tokenless;       /* export_lease_open()'s: never in the list */
    uint32_t connections; /* that hold it; one that is closed is freed by the last of them */
    uint32_t reading;     /* of these, on transports that need the seed until the end (not map) */
    atomic_bool closed;   /* release by lease_end(), acquire by lease_check() */
    struct seed_lease *next; /* in seed->leases, or nowhere once closed */
};

/* One transport's seed half. Fixed after seed_publish(). */
struct seed_transport {
    struct seed *seed;
    const struct transport *transport;
    struct transport_seed *half;
    struct exporter exporter;
    atomic_uint_fast64_t bytes_sent; /* relaxed: a counter */
};

/* Tensor digests of one rank, made once on demand. Guarded by seed->lock; the table has a lock
 * of its own. */
struct seed_tensor_job {
    struct seed *seed;
    uint32_t rank;
    struct digest_table *table; /* NULL: nobody asked yet */
    pthread_t thread;
    struct rf_error error; /* code RF_OK unless it failed */
};

/* Locks: seed->lock only; nothing is called back while it is held. */
struct seed {
    struct mutex lock;
    struct cond changed; /* state, leases, digests_done, stopping */

    /* fixed at creation */
    char *host;
    char *socket;
    struct seed_options options;
    char instance_id[33];

    /* fixed by seed_publish() before state becomes READY, which orders it for readers of `state` */
    struct store *store;
    struct seed_transport transports[TRANSPORT_MAX_ENDPOINTS];
    struct endpoint endpoints[TRANSPORT_MAX_ENDPOINTS];
    uint32_t transport_count;
    char refused[1024];

    atomic_int
        state; /* enum seed_state: written under lock with release, read anywhere with acquire */
    enum rf_code fail_code RF_GUARDED_BY(lock);
    char fail_reason[RF_ERROR_TEXT_BYTES] RF_GUARDED_BY(lock);

    struct seed_lease *leases RF_GUARDED_BY(lock);
    uint32_t lease_count RF_GUARDED_BY(lock);
    uint32_t connections RF_GUARDED_BY(lock);
    uint32_t reading RF_GUARDED_BY(lock);
    uint64_t leases_opened RF_GUARDED_BY(lock);
    uint64_t leases_refused RF_GUARDED_BY(lock);
    uint64_t leases_expired RF_GUARDED_BY(lock);
    uint64_t denied_tokens RF_GUARDED_BY(lock);

    struct seed_tensor_job *tensor_jobs; /* [rank_count], made by seed_publish() */

    atomic_bool stopping; /* release by seed_destroy(), acquire by the threads */
    bool digests_done RF_GUARDED_BY(lock);
    struct rf_error digests_error RF_GUARDED_BY(lock);
    bool digest_started;
    bool watch_started;
    pthread_t digest_thread;
    pthread_t watch_thread;
};

/* Fills the exporter of one transport. */
void seed_exporter_init(struct seed_transport *transport);

/* Ends leases whose time is over, and all of them if `all`. */
void seed_leases_sweep(struct seed *seed, bool all);

/* RF_OK while existing leases may read: READY or DRAINING. */
enum rf_code seed_serving(struct seed *seed, struct rf_error *err);

#endif
