/* What the files of a remote share. Not for others. */
#ifndef CONTROL_REMOTE_INTERNAL_H
#define CONTROL_REMOTE_INTERNAL_H

#include "base/clock.h"
#include "control/remote.h"

struct remote {
    const struct remote_options *options;
    struct client *client;
    struct instance_info info;
    struct manifest *manifest;
    struct lease lease;
    bool leased;
    struct transport_choice choice;
    struct transport_session **sessions; /* [manifest->rank_count] that granted mappings, or NULL */
    uint64_t opened_ns;
    uint64_t before_bytes; /* of ranks that are complete: progress goes on from there */
    uint64_t total_bytes;  /* of the ranks this fork takes */
};

/* Options of fork/ for this remote, verification included. */
void remote_fork_options(struct remote *remote, struct fork_options *ret_options);

/* One rank, with its progress as a part of the whole; adds to the result. prepare as in struct
 * fork_options. */
enum rf_code remote_take_rank(struct remote *remote, uint32_t rank, const struct fork_dest *dest,
                              fork_prepare_fn prepare, void *prepare_ctx,
                              struct digest_table *table, struct remote_result *result,
                              struct rf_error *err);

/* Fills transport, reason, times; the root if all tables (one per rank, NULL entries allowed)
 * are complete. */
enum rf_code remote_finish(struct remote *remote, struct digest_table *const *tables,
                           struct remote_result *result, struct rf_error *err);

/* Fetches what the seed holds of a file (a weight file's header, or a side file) and checks its
 * digest. */
enum rf_code remote_fetch_file(struct remote *remote, uint32_t file, struct buf *out,
                               struct rf_error *err);

#endif
