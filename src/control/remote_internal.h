/* What the files of a remote share. Not for others. */
#ifndef CONTROL_REMOTE_INTERNAL_H
#define CONTROL_REMOTE_INTERNAL_H

#include "base/clock.h"
#include "control/remote.h"
#include "control/sglang_seed.h"
#include "model/reshard.h"

struct remote {
    const struct remote_options *options;
    struct client *client;
    struct instance_info info;
    struct manifest *manifest;
    struct lease lease;
    bool leased;
    uint64_t leased_ns;             /* when the lease was opened or renewed last */
    struct transport_choice choice; /* of sglang: towards the first engine */
    struct sglang_options sglang_options;
    struct sglang_seed *sglang;          /* NULL: a seed of ours */
    struct transport_session **sessions; /* [manifest->rank_count] that granted mappings, or NULL */
    uint64_t opened_ns;
};

/* Options of fork/ for this remote, verification included. */
void remote_fork_options(struct remote *remote, struct fork_options *ret_options);

/* Whether what comes from them is verified: that it is asked for, and that all have digests. */
bool remote_verifies(struct remote *const *remotes, uint32_t count);
/* Says so in the result: verified, and if it cannot be, why. */
void remote_say_verified(struct remote *const *remotes, uint32_t count,
                         struct remote_result *result);
/* RF_E_UNSUPPORTED if `verify` is asked for in so many words, and one of them has no digests. */
enum rf_code remote_refuse_verify(struct remote *const *remotes, uint32_t count, bool verify,
                                  struct rf_error *err);

/* Everything that moves in one fork. */
struct remote_run {
    struct remote *const *remotes;
    uint32_t remote_count;
    uint32_t target_count;
    const struct fork_target *targets;
    /* Their sources are the ranks of all remotes, one remote after the other. Are sorted. */
    struct fork_move *moves;
    uint64_t move_count;
    /* [sources] digests of each, filled on the way; NULL, also single entries: made for the run */
    struct digest_table *const *tables;
};

/* All of it at once, by one set of connections; adds to the result. */
enum rf_code remote_run(const struct remote_run *run, struct remote_result *result,
                        struct rf_error *err);

/* All ranks of the store's manifest into shared memory of our own, sealed when complete; the run's
 * targets are made here. plan: has the constants to fill in; NULL if there are none. */
enum rf_code remote_copy_ranks(const struct remote_run *run, const struct reshard *plan,
                               struct store *store, struct remote_result *result,
                               struct rf_error *err);
/* What the seed holds of the manifest's files, into the store. */
enum rf_code remote_take_files(struct remote *remote, struct store *store, struct rf_error *err);

struct remote_reshard;

/* Writes the one rank of a seed, or of what a reshard makes (NULL: the seed's own), as a folder. */
enum rf_code remote_write_folder(struct remote *remote, struct remote_reshard *reshard,
                                 const struct remote_folder_options *folder,
                                 struct remote_result *ret_result, struct rf_error *err);

/* Before connecting: what came before may have taken longer than the lease lasts. Renews it, or
 * opens another one. */
enum rf_code remote_keep_lease(struct remote *remote, struct rf_error *err);

/* Asks the seed how it is. RF_OK: ready. RF_AGAIN: still loading. Anything else: it will not become
 * ready, and err says why. */
enum rf_code remote_look(struct remote *remote, struct rf_error *err);

/* A rank as the seed's own pages; layout is the caller's to free. The session stays open. Adds
 * to the result. */
enum rf_code remote_map_layout(struct remote *remote, uint32_t rank, struct layout *layout,
                               struct remote_result *result, struct rf_error *err);
/* Every region that a layout uses, each once. */
enum rf_code remote_add_regions(struct store *store, const struct layout *layout,
                                struct rf_error *err);
/* RF_E_NOMEM unless so many bytes can be had here. */
enum rf_code remote_refuse_large(const struct remote *remote, uint64_t wanted,
                                 struct rf_error *err);
/* Fits fork_prepare_fn; ctx is the region that the target's stream lies in from offset 0 on. */
enum rf_code remote_prepare_region(void *ctx, uint64_t stream_offset, uint64_t bytes,
                                   struct rf_error *err);

/* Fills transport, reason, times, from what the result says already. */
void remote_describe(const struct remote *remote, struct remote_result *result);
/* The same, and the root if all tables (one per rank, NULL entries allowed)
 * are complete. */
enum rf_code remote_finish(struct remote *remote, struct digest_table *const *tables,
                           struct remote_result *result, struct rf_error *err);

/* Fetches what the seed holds of a file (a weight file's header, or a side file) and checks its
 * digest. */
enum rf_code remote_fetch_file(struct remote *remote, uint32_t file, struct buf *out,
                               struct rf_error *err);

#endif
