/* Forks into another shape: ranks cut for another tensor-parallel size or in another layout, or the
 * whole checkpoint back from a sharded seed; from one seed or several that hold different ranks of
 * one model. As with remotes, one thread at a time. */
#ifndef CONTROL_REMOTE_RESHARD_H
#define CONTROL_REMOTE_RESHARD_H

#include "control/remote.h"
#include "model/plan.h"
#include "model/reshard.h"

enum { REMOTE_MAX_SEEDS = 64 };

/* What the new instance shall be. */
struct remote_shape {
    uint32_t tp_size;      /* 0: the seed's */
    uint32_t ep_size;      /* 0: the seed's where tp_size is, else 1 */
    const uint32_t *ranks; /* [rank_count] of tp_size; NULL: all */
    uint32_t rank_count;
    const char *layout;      /* NULL: the seed's */
    const struct plan *plan; /* NULL: the built-in one of the seed's architecture */
};

struct remote_reshard;

/* Whether a seed's own ranks as they are have this shape, of one that says so little of them that
 * nothing else can be made of them (stage processed). Others are asked by remote_reshard_plan(). */
bool remote_shape_is_own(const struct remote *remote, const struct remote_shape *shape);

/* Agrees with the seeds on what moves, before a byte does; takes milliseconds. Remotes are
 * borrowed. Errors: RF_E_MISMATCH (seeds of different models, tensors that differ, a byte that
 * no seed has: names tensor, slice and rank), RF_E_INVAL (sizes that do not divide),
 * RF_E_UNSUPPORTED (no plan for this architecture), RF_E_FORMAT (plan, config.json), those of
 * fetching config.json, RF_E_NOMEM. */
enum rf_code remote_reshard_plan(struct remote *const *remotes, uint32_t remote_count,
                                 const struct remote_shape *shape,
                                 struct remote_reshard **ret_reshard, struct rf_error *err);
/* The same for the whole checkpoint, as one rank. */
enum rf_code remote_reshard_whole(struct remote *const *remotes, uint32_t remote_count,
                                  struct remote_reshard **ret_reshard, struct rf_error *err);
void remote_reshard_destroy(struct remote_reshard *reshard);

/* Whether it is just what its one seed is, rank by rank: a plain fork takes the same, and knows the
 * digests. */
bool remote_reshard_is_plain(const struct remote_reshard *reshard);

/* Of the new instance. */
struct manifest *remote_reshard_manifest(const struct remote_reshard *reshard);

/* From where the bytes of one of its ranks come. */
struct remote_forecast {
    uint64_t mapped_bytes; /* stay in the seed's pages */
    uint64_t copied_bytes;
    uint64_t filled_bytes; /* zeros and other constants */
};
void remote_reshard_forecast(const struct remote_reshard *reshard, uint32_t rank,
                             enum remote_memory memory, struct remote_forecast *ret_forecast);
/* Ranks of seeds, one seed after the other. */
uint32_t remote_reshard_holders(const struct remote_reshard *reshard);
/* What a rank of the new instance reads from a holder; *ret_remote and *ret_id say who that is. */
uint64_t remote_reshard_bytes(const struct remote_reshard *reshard, uint32_t rank, uint32_t holder,
                              struct remote **ret_remote, const struct rank_id **ret_id);

/* All ranks into memory: a store that can be served at once, with the seed's side files. Where
 * all seeds can be mapped and memory is REMOTE_SHARE, slices that lie in one piece in a seed's
 * pages stay there, only the rest is copied; neither is verified unless verify_mapped asks for
 * it (then all pages that are used are compared with the seeds' digests first). */
enum rf_code remote_reshard_memory(struct remote_reshard *reshard, enum remote_memory memory,
                                   bool verify_mapped, struct store **ret_store,
                                   struct remote_result *ret_result, struct rf_error *err);

/* Each rank of the new instance into a destination of the caller's (finished), verified as the
 * options of the first remote say. RF_E_UNSUPPORTED if there are more ranks, or fewer. */
enum rf_code remote_reshard_dests(struct remote_reshard *reshard, const struct fork_dest *dests,
                                  uint32_t count, struct remote_result *ret_result,
                                  struct rf_error *err);

/* The one rank of the new instance as a folder, as remote_fork_folder(): where its tensors have
 * files, those, byte for byte. */
enum rf_code remote_reshard_folder(struct remote_reshard *reshard,
                                   const struct remote_folder_options *folder,
                                   struct remote_result *ret_result, struct rf_error *err);

#endif
