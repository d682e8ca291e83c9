/* Ranks of a new instance on a seed's own pages, as far as they lie there in one piece. */
#ifndef CONTROL_REMOTE_VIEWS_H
#define CONTROL_REMOTE_VIEWS_H

#include "control/remote.h"
#include "model/reshard.h"

/* Whether a move's bytes stay where they are: not converted, and in pieces large enough to be
 * worth a segment of their own. */
bool remote_view_fits(const struct reshard_move *move);

/* Maps what is needed of the remotes (all of which can), makes layouts of views, and copies and
 * fills the rest. verify: compares all pages that are used with the seeds' digests first. */
enum rf_code remote_views_make(struct remote *const *remotes, uint32_t remote_count,
                               const struct reshard *plan, bool verify, struct store *store,
                               struct remote_result *result, struct rf_error *err);

#endif
