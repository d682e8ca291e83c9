/* The table behind which all transports are equal, and its promises. docs/adding-a-transport.md
 * explains it with transport/null as the example.
 *
 * A transport has two halves. The seed's half answers reads of a rank's stream; it runs its own
 * threads. The reader's half is a session: one connection driven by one thread, its owner's; no
 * lock inside. Everything a reader says is untrusted at the seed, everything a seed says is
 * untrusted at the reader.
 *
 * Promises, checked by tests/contract for every transport, also through `fault:`:
 *  - each submitted read ends exactly once: read->code is RF_OK and all bytes went to the sink
 *    in order, or it failed;
 *  - bytes of one read go to its sink in stream-range order, each exactly once, never beyond
 *    read_bytes;
 *  - a read that asks for a digest gets the one that the seed makes from its own memory;
 *  - no call blocks longer than its deadline; cancelling from another thread ends progress()
 *    within 200 ms;
 *  - a peer that dies, stalls, or sends nonsense makes reads fail with RF_E_UNREACHABLE,
 *    RF_E_TIMEOUT, RF_E_PROTO; the session is then dead and every further call says so;
 *  - a read that the seed refuses fails alone with the seed's code; the session lives on;
 *  - after close() nothing of the session or its sinks is touched. */
#ifndef TRANSPORT_TRANSPORT_H
#define TRANSPORT_TRANSPORT_H

#include "base/hash.h"
#include "model/layout.h"

#include <stdatomic.h>
#include <sys/uio.h>

enum { TRANSPORT_NAME_BYTES = 64, TRANSPORT_MAX_ENDPOINTS = 16, TRANSPORT_ADDRESS_BYTES = 256 };

/* Where a seed's half can be reached; travels as JSON in the lease. */
struct endpoint {
    char transport[TRANSPORT_NAME_BYTES];
    /* tcp: "IP:PORT" or "[IP6]:PORT"; map: path, '@' first if abstract */
    char address[TRANSPORT_ADDRESS_BYTES];
    char host_id[64]; /* boot id of the seed's host: same string, same host */
};

/* ---- the seed's side ---- */

/* What a transport may ask of the seed that it exports for. Implemented by seed/; every function
 * may be called from any of the transport's threads and does not block. */
struct exporter {
    void *ctx;
    /* The lease a token belongs to, held until lease_release(). RF_E_DENIED. */
    enum rf_code (*lease_acquire)(void *ctx, const uint8_t token[CHUNK_TOKEN_BYTES],
                                  const char *transport, void **ret_lease, struct rf_error *err);
    /* A lease for connections whose protocol has no tokens: anybody may read who can reach them.
     * Held until lease_release(). RF_E_UNREACHABLE, RF_E_CHANGED. */
    enum rf_code (*lease_open)(void *ctx, const char *transport, void **ret_lease,
                               struct rf_error *err);
    void (*lease_release)(void *ctx, void *lease);
    /* Whether this lease is still good (not expired, the seed not stopping, nothing it serves
     * changed); asked before each read. RF_E_CHANGED, RF_E_CANCELLED, RF_E_DENIED. */
    enum rf_code (*lease_check)(void *ctx, void *lease, struct rf_error *err);
    /* Bytes that went out (or were mapped). */
    void (*lease_account)(void *ctx, void *lease, uint64_t bytes);
    /* NULL if there is no such rank. Lives as long as the seed. */
    const struct layout *(*rank_layout)(void *ctx, uint32_t rank);
};

struct transport_seed_options {
    const char *host; /* address to listen on: the one the HTTP side listens on */
    uint16_t port;    /* 0: any; te: of the handshake, the data plane has the next one */
    /* map: path of the Unix socket; NULL: an abstract name of its own choosing */
    const char *socket;
    unsigned threads;         /* 0: the transport's choice */
    uint32_t max_connections; /* 0: the transport's choice */
    uint64_t idle_timeout_ms; /* a connection without a request for so long is closed; 0: 60 s */
    /* the whole name the transport was asked for by, "fault:7:tcp"; needed by fault alone */
    const char *spec;
};

struct transport_seed; /* each transport's own */
/* What is known beforehand of a peer that is not one of ours; each transport's own (te/te.h). */
struct transport_directory;

/* ---- the reader's side ---- */

/* Where the bytes of one read go. Called only by the session that executes the read, on its
 * thread. */
struct sink {
    /* Nobody reads the bytes soon, and there are many: they may be written past the caches. */
    bool cold;
    /* Fills iov (1 ... max) with where the next bytes go; returns how many entries, and in
     * *ret_bytes their sum (> 0). Never more than is left of the read. The memory stays valid
     * until took(); asked again before that, the latest answer counts. */
    int (*where)(struct sink *sink, struct iovec *iov, int max, uint64_t *ret_bytes);
    /* That many bytes (1 ... what where() offered) have arrived there. Not RF_OK: the read fails
     * with it. */
    enum rf_code (*took)(struct sink *sink, uint64_t bytes, struct rf_error *err);
};

struct read {
    /* in */
    uint32_t rank;
    const struct stream_range *ranges; /* borrowed until done */
    uint32_t range_count;
    uint64_t bytes; /* sum of the ranges */
    struct sink *sink;
    void *user;
    enum hash_algorithm digest; /* not 0: the seed is asked for the digest of what it sends */
    /* out */
    uint8_t said[HASH_MAX_BYTES]; /* that digest (read_digest.h), when code is RF_OK */
    enum rf_code code;
    struct rf_error error;
    struct read *next; /* the transport's, while the read is in flight */
    uint64_t id;       /* the transport's */
};

struct transport_open_options {
    uint8_t token[CHUNK_TOKEN_BYTES];
    uint64_t timeout_ms;       /* of connecting, and of silence during a read; 0: 10 s */
    const atomic_bool *cancel; /* may be NULL; set by another thread */
    /* -1, or an eventfd that becomes readable at the same time: wakes poll() */
    int cancel_fd;
    unsigned connections; /* how many sessions the caller will open towards this endpoint */
    const struct transport_directory *directory; /* NULL: the peer is one of ours */
};

struct transport_session; /* each transport's own */

/* What the reader's half says about an endpoint before it is used. */
struct transport_verdict {
    bool usable;
    /* the higher the better path, among usable ones: same memory 300, same host 200, fabric 100,
     * IP 10 */
    int rank;
    /* why, in words: "same host: shares the seed's pages", "seed is on another host" */
    char reason[256];
};

/* A region granted whole instead of read: by transports that can map. */
struct transport_mapping {
    struct layout layout; /* over read-only regions; the caller frees it */
    uint64_t bytes;
};

struct transport {
    const char *name;
    const char *summary; /* one line for `rfork doctor` */
    /* sessions, each on a thread of its own, that a reader does best to open; 0: 1 */
    unsigned default_connections;
    /* Seeds offer it only if it is asked for by name: null moves nothing, te has no tokens. */
    bool on_request;

    /* Whether it can work on this machine at all; the reason either way goes into ret->reason.
     * Never NULL. */
    void (*available)(struct transport_verdict *ret_verdict);

    /* Starts answering. RF_E_UNSUPPORTED with the reason when this seed's regions cannot be
     * served this way (map: not shared memory). *ret_endpoint is what readers need. */
    enum rf_code (*seed_start)(const struct exporter *exporter,
                               const struct transport_seed_options *options,
                               struct transport_seed **ret_seed, struct endpoint *ret_endpoint,
                               struct rf_error *err);
    /* No new reads; those in flight may end until the deadline. Returns how many were cut off.
     * Neither this nor seed_stop() may be called with a lock held that the exporter's functions
     * take. */
    uint32_t (*seed_drain)(struct transport_seed *seed, uint64_t deadline_ns);
    void (*seed_stop)(struct transport_seed *seed);
    /* NULL unless readers speak in addresses: what byte 0 of a rank's stream has as an address; 0:
     * no such rank, or an empty one. */
    uint64_t (*seed_base)(const struct transport_seed *seed, uint32_t rank);

    /* Judges an endpoint without data moving. May look at the host, and at most knock at a
     * socket of this host: that takes no time and tells containers that share a host but not a
     * network namespace or folder. */
    void (*judge)(const struct endpoint *endpoint, struct transport_verdict *ret_verdict);

    enum rf_code (*open)(const struct endpoint *endpoint,
                         const struct transport_open_options *options,
                         struct transport_session **ret_session, struct rf_error *err);
    /* Starts a read. RF_AGAIN: window full, call progress() first. Other codes: the session is
     * dead; the read was not taken. */
    enum rf_code (*submit)(struct transport_session *session, struct read *read,
                           struct rf_error *err);
    /* Drives the session until a read is done, and returns it (*ret_done; its code says how it
     * went). RF_E_TIMEOUT when the deadline passes first: nothing is lost. RF_E_INVAL: none in
     * flight. When the session dies, each read in flight is returned, by this and further calls,
     * with its code set; after the last one the call itself fails with the code that the session
     * died of. */
    enum rf_code (*progress)(struct transport_session *session, uint64_t deadline_ns,
                             struct read **ret_done, struct rf_error *err);
    /* Closes at once; reads in flight are dropped without being returned. NULL is fine. */
    void (*close)(struct transport_session *session);

    /* NULL if the transport cannot map. Grants rank `rank` as read-only memory. */
    enum rf_code (*map)(struct transport_session *session, uint32_t rank, uint64_t stream_bytes,
                        struct transport_mapping *ret_mapping, struct rf_error *err);
};

/* All compiled in, best first. registry.c is the only place that names them. */
const struct transport *const *transport_list(uint32_t *ret_count);

/* By name: "tcp", "map", "null", or "fault:SEED:NAME" (docs/adding-a-transport.md), e.g.
 * "fault:7:tcp"; RF_E_UNSUPPORTED lists those there are. */
enum rf_code transport_find(const char *name, const struct transport **ret_transport,
                            struct rf_error *err);

struct transport_choice {
    const struct transport *transport;
    struct endpoint endpoint;
    char reason[1024]; /* the winner's, and why better ones were not usable */
};

/* Picks among a seed's endpoints: `wanted` "auto" takes the best usable; a name takes that one
 * or fails with its reason. */
enum rf_code transport_choose(const char *wanted, const struct endpoint *endpoints, uint32_t count,
                              struct transport_choice *ret_choice, struct rf_error *err);

/* Whether a read keeps the protocol's limits and its bytes are the sum of its ranges: what every
 * submit() checks first. RF_E_INVAL. */
enum rf_code transport_read_check(const struct read *read, struct rf_error *err);

/* Boot id of this host, "" if unreadable. Two containers on one host share it. */
const char *transport_host_id(char out[64]);

#endif
