/* Exporting a store: leases, readers, transports, digests in the background, and the watch over
 * what is served.
 *
 * A seed exists before its model does, so that its control plane can answer "loading". Every
 * function may be called from any thread unless it says otherwise. */
#ifndef SEED_SEED_H
#define SEED_SEED_H

#include "model/store.h"
#include "transport/transport.h"

enum seed_state { SEED_LOADING, SEED_READY, SEED_DRAINING, SEED_FAILED };

enum { SEED_CLIENT_TEXT_BYTES = 128 };

struct seed_options {
    const char *host;      /* address that transports listen on; NULL: 127.0.0.1 */
    uint16_t data_port;    /* of tcp; 0: any */
    const char *socket;    /* of map; NULL: abstract */
    uint32_t max_readers;  /* leases at a time; 0: 256 */
    uint64_t lease_ttl_ms; /* a lease without a connection or renewal ends after so long; 0: 20 s */
    unsigned digest_threads; /* 0: half the processors, at least 1 */
    /* Names to offer, NULL-terminated; NULL: all that can serve and need not be asked for. */
    const char *const *transports;
    const char *const *also; /* NULL, or further ones, in the same form: "te" */
    uint16_t te_port;        /* of te's handshake, its data plane has the next one; 0: any */
};

struct seed;

enum rf_code seed_create(const struct seed_options *options, struct seed **ret_seed,
                         struct rf_error *err);
/* Takes the store over (also on failure), starts the transports that can serve it, the digests
 * and the watch; state READY. Once per seed. Blocks for the transports' start only. */
enum rf_code seed_publish(struct seed *seed, struct store *store, struct rf_error *err);
/* State FAILED with a reason: nothing is served any more. */
void seed_fail(struct seed *seed, enum rf_code code, const char *reason);
/* State DRAINING: no new leases or reads; waits for the reads in flight until the deadline.
 * Returns how many were cut off. */
uint32_t seed_drain(struct seed *seed, uint64_t timeout_ms);
/* Stops everything and frees. No other thread may be inside. NULL is fine. */
void seed_destroy(struct seed *seed);

/* reason: "" or why FAILED; out of 512 bytes; may be NULL. */
enum seed_state seed_state(struct seed *seed, char *ret_reason);
const char *seed_state_name(enum seed_state state);

/* NULL before it is published; then it lives as long as the seed. */
struct store *seed_store(struct seed *seed);
/* Endpoints of the transports; valid as long as the seed. Each transport that was refused says
 * why in *_reason lists: "map: weights live in the page cache". */
const struct endpoint *seed_endpoints(struct seed *seed, uint32_t *ret_count);
const char *seed_refused_transports(struct seed *seed);
/* The address of byte 0 of a rank's stream for readers of this transport, which speak in addresses;
 * 0: this transport is not offered, does not, or there is no such rank, or an empty one. */
uint64_t seed_rank_base(struct seed *seed, const char *transport, uint32_t rank);
/* Hex, 32 characters, random per process: tells two instances apart. */
const char *seed_instance_id(struct seed *seed);
/* Waits for all digests of the store: RF_OK, RF_E_TIMEOUT, or why they failed. */
enum rf_code seed_wait_digests(struct seed *seed, uint64_t deadline_ns, struct rf_error *err);

/* Tensor digests of a rank (digest_table indexed by tensor), made on first demand in the
 * background; waits until the deadline. *ret_table lives as long as the seed;
 * digest_table_known() tells whether it is complete. */
enum rf_code seed_tensor_digests(struct seed *seed, uint32_t rank, uint64_t deadline_ns,
                                 struct digest_table **ret_table, struct rf_error *err);

/* ---- leases ---- */

/* client is a line for people ("127.0.0.1 rfork/0.1.0"). RF_E_UNREACHABLE while loading or
 * draining, RF_E_CHANGED when failed, RF_E_NOMEM when max_readers are there (says when to try
 * again). */
enum rf_code seed_lease_open(struct seed *seed, const char *client,
                             uint8_t ret_token[CHUNK_TOKEN_BYTES], uint64_t *ret_ttl_ms,
                             struct rf_error *err);
/* Prolongs; RF_E_DENIED if unknown or over. */
enum rf_code seed_lease_renew(struct seed *seed, const uint8_t token[CHUNK_TOKEN_BYTES],
                              struct rf_error *err);
/* Ends it: its connections are refused further reads. Unknown tokens: RF_E_DENIED. */
enum rf_code seed_lease_close(struct seed *seed, const uint8_t token[CHUNK_TOKEN_BYTES],
                              struct rf_error *err);

struct seed_stats {
    uint64_t leases_opened;
    uint64_t leases_refused;
    uint64_t leases_expired;
    uint32_t leases_now;
    uint32_t connections_now;
    uint64_t bytes_sent[TRANSPORT_MAX_ENDPOINTS]; /* by index of seed_endpoints() */
    uint64_t digest_chunks_known;
    uint64_t digest_chunks_total;
    uint64_t denied_tokens;
};
void seed_stats(struct seed *seed, struct seed_stats *ret_stats);

#endif
