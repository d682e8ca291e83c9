/* What the files of the HTTP server share: server.c owns the threads, reply.c makes answers,
 * routes_*.c decide them. */
#ifndef CONTROL_INTERNAL_H
#define CONTROL_INTERNAL_H

#include "base/buf.h"
#include "base/thread.h"
#include "control/conns.h"
#include "control/listen.h"
#include "control/server.h"
#include "control/target.h"

#include <microhttpd.h>

enum {
    SERVER_MAX_STATUS = 600,
    SERVER_MAX_BODY_BYTES = 64 << 10, /* of a request, unless its route takes more */
    /* Of a body that is too large so much is read, for the client to get its answer. */
    SERVER_MAX_SWALLOWED_BYTES = 1 << 20,
    SERVER_MAX_LARGE_BYTES = 256 << 20, /* of all bodies at a time that are larger than the above */
    SERVER_MAX_WAIT_MS = 30000,
    SERVER_REASON_BYTES = RF_ERROR_TEXT_BYTES,
    ROUTE_ADDRESS_BYTES = 46, /* INET6_ADDRSTRLEN */
};

/* Bytes made once and sent many times. Immutable. */
struct blob {
    atomic_uint refs; /* relaxed to take, acquire-release to drop */
    struct buf bytes;
};
/* Takes bytes over, also on failure. */
struct blob *blob_create(struct buf *bytes, struct rf_error *err);
struct blob *blob_ref(struct blob *blob);
void blob_unref(struct blob *blob);

struct cached_rank {
    struct blob *json;
    struct blob *header; /* of the safetensors file */
};

/* What is made on first demand and kept for the seed's life. */
struct cache {
    struct mutex lock; /* also held while something is made: the others want the same */
    struct blob *manifest RF_GUARDED_BY(lock);
    struct blob *json RF_GUARDED_BY(lock);
    struct cached_rank *ranks RF_GUARDED_BY(lock); /* [rank_count] */
    uint32_t rank_count RF_GUARDED_BY(lock);
    char root[HASH_TEXT_BYTES] RF_GUARDED_BY(lock); /* "" until it is known */
    /* The newest piece of digests: those who wait for news all ask for the same. */
    struct blob *digests RF_GUARDED_BY(lock);
    const struct digest_table *digests_of RF_GUARDED_BY(lock);
    uint64_t digests_from RF_GUARDED_BY(lock);
    uint64_t digests_known RF_GUARDED_BY(lock);
};

struct server {
    struct seed *seed;
    const struct route_table *table;
    struct server_options options; /* without its strings */
    char *model_path;              /* or NULL */
    struct conns *conns;
    struct MHD_Daemon *daemon;
    struct cache cache;
    uint16_t port;
    bool host_is_wildcard;
    char url[LISTEN_URL_BYTES];
    uint64_t start_ns;
    /* Relaxed: counters that nothing depends on. */
    atomic_uint_fast64_t by_status[SERVER_MAX_STATUS];
    atomic_uint_fast64_t body_bytes; /* handed out by bodies that are streamed */
    /* Held of bodies over SERVER_MAX_BODY_BYTES. Relaxed: a budget, it orders nothing. */
    atomic_uint_fast64_t large_bytes;
};

enum server_method {
    METHOD_GET = 1,
    METHOD_HEAD = 2,
    METHOD_POST = 4,
    METHOD_PUT = 8,
    METHOD_DELETE = 16,
    METHOD_OTHER = 32,
};

/* From the request line to the end of the answer; one thread at a time. */
struct request {
    struct server *server;
    struct conn *conn;
    struct MHD_Connection *mhd;
    char *text; /* the target's; holds its strings */
    struct target target;
    struct rf_error target_error; /* code RF_OK, or why there is no target */
    const struct route *route;    /* NULL: none has this path */
    enum server_method method;
    bool begun;
    bool body_to_come;
    bool too_large;
    bool no_room; /* too many large bodies at a time */
    uint64_t max_body_bytes;
    uint64_t large_bytes; /* counted in the server's */
    uint64_t body_seen;
    struct buf body;
    /* A wait for news: */
    bool waited;        /* it has happened: answer with what there is */
    uint64_t info_rank; /* whose info is waited for */
    struct digest_table *wait_table;
    uint32_t wait_rank;
    uint64_t wait_from;
    uint64_t wait_known; /* more than so many; UINT64_MAX: not asked */
    bool wait_tensors;
};

/* An answer to be queued. A route that waits sets `wait` and nothing else. */
struct reply {
    unsigned status;
    struct MHD_Response *response; /* the reply's; NULL: no memory, the connection is closed */
    bool wait;
    uint64_t wait_deadline_ns;
    conn_ready_fn wait_ready; /* asked with the request */
};

typedef void (*route_fn)(struct request *request, struct reply *reply);

struct route {
    const char *path; /* with a '/' at its end: everything below */
    unsigned methods;
    const char *args; /* those it knows; NULL: any */
    route_fn fn;
    uint64_t max_body_bytes; /* 0: SERVER_MAX_BODY_BYTES */
};

/* What a server answers. */
struct route_table {
    const struct route *routes;
    unsigned count;
    const char *paths; /* for people */
    bool as_fastapi;   /* wrong paths and methods are answered as SGLang's framework does */
};
extern const struct route_table instance_routes;  /* server.c */
extern const struct route_table bootstrap_routes; /* routes_bootstrap.c */

/* ---- reply.c ---- */

/* Appends a newline to the text and sends it. Takes text over. */
void reply_text(struct request *request, struct reply *reply, unsigned status, const char *type,
                struct buf *text);
void reply_json(struct request *request, struct reply *reply, unsigned status, struct buf *json);
/* The text as it is, without a newline. Takes it over. */
void reply_exact(struct request *request, struct reply *reply, unsigned status, const char *type,
                 struct buf *text);
void reply_empty(struct request *request, struct reply *reply, unsigned status);
void reply_blob(struct request *request, struct reply *reply, unsigned status, const char *type,
                struct blob *blob);
/* head's bytes and then tail's; both references are taken over. */
void reply_blobs(struct request *request, struct reply *reply, unsigned status, const char *type,
                 struct blob *head, struct blob *tail);
/* err's code and line, with the status that fits the code. */
void reply_error(struct request *request, struct reply *reply, const struct rf_error *err);
void reply_status(struct request *request, struct reply *reply, unsigned status, enum rf_code code,
                  const char *fmt, ...) __attribute__((format(printf, 5, 6)));
void reply_header(struct reply *reply, const char *name, const char *value);

/* A body read piece by piece from the store. */
struct body_source {
    struct blob *head; /* NULL, or the first bytes; a reference of the source's own */
    struct blob *tail; /* of BODY_BLOB, the same */
    enum { BODY_STREAM, BODY_FILE, BODY_BLOB } kind;
    uint32_t index;  /* of rank or file */
    uint64_t offset; /* in the rank's stream or the file, of the first byte after head */
    uint64_t bytes;  /* with head */
    const char *type;
    const char *etag; /* with its quotes, or NULL; borrowed for the call */
};
/* Answers GET and HEAD with the source, whole or the range asked for. Takes source->head over. */
void reply_body(struct request *request, struct reply *reply, const struct body_source *source);

/* ---- routes ---- */

void route_health(struct request *request, struct reply *reply);
void route_instance(struct request *request, struct reply *reply);
void route_status_page(struct request *request, struct reply *reply);
void route_metrics(struct request *request, struct reply *reply);
void route_manifest(struct request *request, struct reply *reply);
void route_digests(struct request *request, struct reply *reply);
void route_tensor_digests(struct request *request, struct reply *reply);
void route_lease(struct request *request, struct reply *reply);
void route_file_list(struct request *request, struct reply *reply);
void route_file(struct request *request, struct reply *reply);
void route_tensor(struct request *request, struct reply *reply);
void route_rank(struct request *request, struct reply *reply);
void route_engine_info(struct request *request, struct reply *reply);
void route_server_info(struct request *request, struct reply *reply);
void route_sglang_health(struct request *request, struct reply *reply);

/* ---- what routes share ---- */

/* The store if the seed is in a state in which it may be read; else the error is the answer and
 * NULL is returned. */
struct store *route_store(struct request *request, struct reply *reply);
/* The same for bodies: everything served must be unchanged; while draining only those that forks
 * under way still need. */
struct store *route_store_for_bytes(struct request *request, struct reply *reply,
                                    bool while_draining);
/* ?rank=, which may be left out where there is only one. */
enum rf_code route_rank_argument(const struct request *request, const struct store *store,
                                 uint32_t *ret_rank, struct rf_error *err);
/* The model's root digest as text, "" while digests are missing. */
void route_root_text(struct server *server, const struct store *store, char out[HASH_TEXT_BYTES]);
/* Hex of the manifest's id. */
void route_manifest_id(const struct manifest *manifest, char out[HASH_TEXT_BYTES]);
/* Whether the wait of a request for digests has come to its end. */
bool route_news(void *ctx);
/* The address of ours that the client reached; false: not known. */
bool route_local_host(const struct request *request, char out[ROUTE_ADDRESS_BYTES],
                      uint16_t *ret_port);
/* The state, and why it is not ready, "" if it is: "ready" is said when everything that is to be
 * published has been. */
enum seed_state route_state(struct server *server, char reason[SERVER_REASON_BYTES]);

void cache_init(struct cache *cache);
void cache_free(struct cache *cache);
/* The safetensors header of a rank; the reference is the caller's. NULL: err says why. */
struct blob *cache_rank_header(struct cache *cache, const struct store *store, uint32_t rank,
                               struct rf_error *err);

#endif
