/* A short look at how fast a seed's bytes come: for an honest `--dry-run`. */
#ifndef CLI_PROBE_H
#define CLI_PROBE_H

#include "cli/transfer.h"

struct probe_result {
    uint64_t bytes;     /* read and dropped */
    double bytes_per_s; /* 0: too few bytes to tell */
    unsigned connections;
};

/* Reads real chunks under a lease of its own, over as many connections as a fork would use,
 * until 64 MiB have come or 0.3 s are over. Blocks. */
enum rf_code probe_run(struct remote *remote, const struct transfer_options *options,
                       struct probe_result *ret_result, struct rf_error *err);

#endif
