/* Talking to a seed's HTTP side. One thread at a time per client; blocks until the deadline of
 * each call. */
#ifndef CONTROL_CLIENT_H
#define CONTROL_CLIENT_H

#include "model/store.h"
#include "transport/transport.h"

enum { CLIENT_WORDS_BYTES = 256 };

struct client_options {
    uint64_t timeout_ms;       /* of one request, connecting included; 0: 10 s */
    const atomic_bool *cancel; /* may be NULL */
};

struct client;

/* url: "http://HOST:PORT", "HOST:PORT"; https and paths are refused with a clear line. Does not
 * connect yet. */
enum rf_code client_create(const char *url, const struct client_options *options,
                           struct client **ret_client, struct rf_error *err);
void client_destroy(struct client *client);
const char *client_url(const struct client *client);
/* Whether the last answer came from an HTTP server that is no seed of ours, or says of client_instance()
 * that it has no such path: a bootstrap server of ours. */
bool client_is_foreign(const struct client *client);

/* What a seed says of itself (GET /v1/instance). Strings are owned by the struct's arena. */
struct instance_info {
    const char *instance_id;
    const char *version;
    const char *state; /* seed_state_name() */
    const char *state_reason;
    const char *model;
    const char *architecture;
    const char *quantisation;
    const char *layout;
    const char *stage;
    const char *host_id;
    const char *manifest_id; /* hex; "" while loading */
    const char *root_digest; /* "xxh3-128:..." or "" while digests are missing */
    uint64_t bytes;
    uint64_t tensor_count;
    uint32_t rank_count;
    uint64_t digest_chunks_known;
    uint64_t digest_chunks_total;
    struct endpoint
        endpoints[TRANSPORT_MAX_ENDPOINTS]; /* a wildcard host replaced by the host we dialled */
    uint32_t endpoint_count;
    const char *refused_transports;
    struct arena arena;
};
/* Errors: RF_E_UNREACHABLE (nothing listens, or not a seed: says what answered), RF_E_TIMEOUT,
 * RF_E_PROTO. */
enum rf_code client_instance(struct client *client, struct instance_info *ret_info,
                             struct rf_error *err);
void instance_info_free(struct instance_info *info);

/* GET /v1/manifest, binary; checked. RF_E_UNREACHABLE with the seed's state while it is loading. */
enum rf_code client_manifest(struct client *client, struct manifest **ret_manifest,
                             struct rf_error *err);

struct lease {
    uint8_t token[CHUNK_TOKEN_BYTES];
    uint64_t ttl_ms;
    char manifest_id[HASH_TEXT_BYTES]; /* hex, of the manifest that this lease is for */
    struct endpoint endpoints[TRANSPORT_MAX_ENDPOINTS];
    uint32_t endpoint_count;
};
/* POST /v1/lease. */
enum rf_code client_lease_open(struct client *client, struct lease *ret_lease,
                               struct rf_error *err);
/* PUT /v1/lease. RF_E_DENIED: it has ended, open another one. */
enum rf_code client_lease_renew(struct client *client, const struct lease *lease,
                                struct rf_error *err);
/* DELETE /v1/lease, best effort within a second. */
void client_lease_close(struct client *client, const struct lease *lease);

/* GET /v1/digests?rank=&from=&wait_ms=: merges what is known into the table; waits at the seed
 * for news, at most wait_ms. */
enum rf_code client_digests(struct client *client, uint32_t rank, uint64_t wait_ms,
                            struct digest_table *table, struct rf_error *err);
/* GET /v1/tensor-digests?rank=: complete table of tensor_count entries, waited for until the
 * deadline. */
enum rf_code client_tensor_digests(struct client *client, uint32_t rank, uint64_t tensor_count,
                                   enum hash_algorithm algorithm, uint64_t deadline_ns,
                                   struct digest_table **ret_table, struct rf_error *err);
/* GET /v1/files/NAME, bytes [from, from + bytes) of it into out, exactly that many. */
enum rf_code client_file(struct client *client, const char *name, uint64_t from, uint64_t bytes,
                         struct buf *out, struct rf_error *err);
/* GET any path of the seed's API as text, at most max_bytes: for `rfork inspect` and tests. */
enum rf_code client_get(struct client *client, const char *path, uint64_t max_bytes,
                        struct buf *out, struct rf_error *err);

/* GET of a path (json NULL), or PUT of JSON there, at an HTTP server that need not be ours; what it
 * answers is appended to out, at most max_bytes. ret_status not NULL: RF_OK whatever it answers,
 * *ret_status is the HTTP status, out the body (of an error its beginning). Else an answer that says
 * no is an error, in the server's own words. */
enum rf_code client_ask_any(struct client *client, const char *path, const char *json,
                            uint64_t max_bytes, struct buf *out, long *ret_status,
                            struct rf_error *err);
/* What such a server says in the body of an error: {"error": {"message": WORDS}}, {"error": WORDS}
 * or {"detail": WORDS}; "" if nothing like it. */
void client_words(const void *body, size_t bytes, char out[CLIENT_WORDS_BYTES]);
/* The address of ours that the last answer came to; "" before the first. */
const char *client_local_address(const struct client *client);

#endif
