/* What the connections of one seed share. */
#ifndef TRANSPORT_TE_POLICY_H
#define TRANSPORT_TE_POLICY_H

#include "transport/te/space.h"
#include "wire/te.h"

enum {
    TE_SHARE_SCRATCH_BYTES = 16 << 10,
    TE_SHARE_KEEP_MS = 1000, /* a lease without reads */
    TE_SHARE_CHECK_MS = 1,   /* between two questions whether it is still good */
};

/* What the connections of one thread share, and no other thread touches. Those without a token have
 * one lease together, held while reads come: a reader may open a connection for each tensor, and one
 * that is done keeps its connections without reading. */
struct te_share {
    const struct te_policy *policy;
    void *lease;                             /* NULL: no reads lately */
    uint32_t reads;                          /* being answered with it */
    uint64_t used_ns;                        /* when the latest read came */
    uint64_t checked_ns;                     /* when the lease was good */
    uint8_t scratch[TE_SHARE_SCRATCH_BYTES]; /* for what is only counted */
};

struct te_policy {
    struct exporter exporter;
    struct te_space space;
    struct te_buffer *buffers;    /* as published: one for each place */
    struct arena arena;           /* owns them and their names */
    char host[TE_MAX_NAME_BYTES]; /* "": that of the connection */
    uint16_t handshake_port;
    uint16_t data_port;
};

/* Fills space and buffers from policy->exporter. What te_space_init() fails with. */
enum rf_code te_policy_init(struct te_policy *policy, struct rf_error *err);
void te_policy_free(struct te_policy *policy);

/* Before each read without a token: whether the lease that all share is good. Ended by
 * te_share_end(), after RF_OK only. RF_E_UNREACHABLE, RF_E_CHANGED, RF_E_CANCELLED. */
enum rf_code te_share_begin(struct te_share *share, struct rf_error *err);
void te_share_end(struct te_share *share);
/* Gives the lease back that no read has used for a while, or (over) none will. Returns whether it is
 * still held. */
bool te_share_tick(struct te_share *share, uint64_t now_ns, bool over);

#endif
