/* One whole fork, from a URL: discover, lease, choose the transport, transfer, verify. What the
 * program and the library API are made of. One thread at a time per remote; calls block and end
 * within the deadlines given. */
#ifndef CONTROL_REMOTE_H
#define CONTROL_REMOTE_H

#include "control/client.h"
#include "fork/fork.h"

enum { REMOTE_REASON_BYTES = 1024, REMOTE_UNVERIFIED_BYTES = 160 };

/* In which way a seed is asked what it has. */
enum remote_seed_api {
    REMOTE_API_AUTO,   /* ours; of a server that does not know it, SGLang's */
    REMOTE_API_RFORK,  /* ours alone */
    REMOTE_API_SGLANG, /* SGLang's info routes, of our seeds too (control/sglang_seed.h) */
};

struct remote_options {
    const char *transport; /* "auto" (also NULL), or a name as transport_find() takes it */
    unsigned connections;  /* 0: chosen */
    bool verify;           /* what arrives by copy; under map see remote_fork_memory(); of a
                                * seed without digests nothing is */
    enum remote_seed_api seed_api;
    const char *te_data_hosts; /* as struct te_reach.allowed_hosts */
    const char *model_path; /* the model's folder, for seeds that say names and sizes alone; NULL:
                                * none */
    uint64_t timeout_ms;    /* of one request, of connecting, of silence; 0: 10 s */
    uint32_t retries;       /* of a corrupt chunk, of a broken connection */
    const atomic_bool *cancel; /* may be NULL */
    int cancel_fd;             /* -1 or an eventfd */
    fork_progress_fn progress; /* may be NULL */
    void *progress_ctx;
};

struct remote;

/* Asks the seed what it has (waits until wait_ready_ms for one that is still loading) and takes
 * a lease, where there are leases. options and what it points to must outlive the remote. Errors:
 * those of client_*, sglang_seed_open(); RF_E_UNSUPPORTED from choosing a transport. */
enum rf_code remote_open(const char *url, const struct remote_options *options,
                         uint64_t wait_ready_ms, struct remote **ret_remote, struct rf_error *err);
/* Closes the lease. Mappings taken from it stay. */
void remote_close(struct remote *remote);

const struct instance_info *remote_info(const struct remote *remote);
struct manifest *remote_manifest(const struct remote *remote);
const struct transport_choice *remote_choice(const struct remote *remote);
struct client *remote_client(const struct remote *remote);
/* false: the seed is not one of ours, and says no digests. */
bool remote_has_digests(const struct remote *remote);
/* Whether what this seed has not may be on other nodes: it is one of ours with a part of the ranks,
 * and te is wanted. The first of several nodes answers for the others, as for itself, in SGLang's
 * way: to be opened again with REMOTE_API_SGLANG. */
bool remote_others_may_have(const struct remote *remote);
/* Who is connected to for a rank, and what for; choice, token and directory live as long as the
 * remote. */
struct remote_peer {
    const struct transport_choice *choice;
    const uint8_t *token;
    const struct transport_directory *directory;
    const char *name; /* for messages */
};
void remote_peer(const struct remote *remote, uint32_t rank, struct remote_peer *ret_peer);

struct remote_result {
    char transport[TRANSPORT_NAME_BYTES + 8]; /* "tcp", "map", "map (copy)" */
    char reason[REMOTE_REASON_BYTES];         /* why that one, how many connections */
    bool verified;                            /* every byte against the seed's digests */
    char unverified[REMOTE_UNVERIFIED_BYTES]; /* why that could not be; "": it could have been */
    bool mapped;
    uint64_t bytes;
    uint64_t copied_bytes; /* of a mapping: those that had to be copied, as they lay elsewhere */
    uint64_t wire_bytes;
    uint64_t chunks;
    uint64_t chunks_retried;
    unsigned connections;
    double seconds; /* from the lease to the last verified byte */
    uint8_t root[HASH_MAX_BYTES];
    bool root_known; /* false: digests were not waited for (map, or not verified) */
};

enum remote_memory {
    REMOTE_SHARE, /* the seed's own pages where the transport can map, else shared memory of ours */
    REMOTE_COPY,  /* always shared memory of our own, sealed when complete */
};

/* Takes all ranks into memory: a store that can be served at once. Side files come too. Under
 * map no byte moves, none is verified unless verify_mapped asks for it (then all chunks are
 * recomputed from the mapped pages). */
enum rf_code remote_fork_memory(struct remote *remote, enum remote_memory memory,
                                bool verify_mapped, struct store **ret_store,
                                struct remote_result *ret_result, struct rf_error *err);

/* Writes a model folder: the whole checkpoint, put together again if the seed's ranks are made of
 * slices of it. Weight files are byte-identical to the seed's where it loaded files, else there is
 * one safetensors file ("model.safetensors"; shards "model-00001-of-0000N.safetensors" of at most
 * shard_bytes with an index); side files too. */
struct remote_folder_options {
    const char *path;
    bool durable;         /* fsync before the rename */
    uint64_t shard_bytes; /* 0: 5 GB */
};
/* Ranks that cannot be put together again (of a seed that does not say what they are made of) are
 * written one by one: "model-rank-00000-of-00004.safetensors" and so on. */
enum rf_code remote_fork_folder(struct remote *remote, const struct remote_folder_options *folder,
                                struct remote_result *ret_result, struct rf_error *err);

/* Whether a folder is the seed's own tensors as they are; else they are put together first. */
bool remote_folder_is_plain(const struct remote *remote);

/* One rank as the seed's own read-only pages; layout is the caller's to free. No byte moves,
 * none is verified. RF_E_UNSUPPORTED if the chosen transport cannot map. */
enum rf_code remote_map(struct remote *remote, uint32_t rank, struct layout *ret_layout,
                        struct remote_result *ret_result, struct rf_error *err);

/* All ranks at once, each into its destination (finished) of [rank_count]; then the root is known. */
enum rf_code remote_fork_dests(struct remote *remote, const struct fork_dest *dests,
                               struct remote_result *ret_result, struct rf_error *err);
/* One rank into the caller's destination (finished). */
enum rf_code remote_fork_dest(struct remote *remote, uint32_t rank, const struct fork_dest *dest,
                              struct remote_result *ret_result, struct rf_error *err);

#endif
