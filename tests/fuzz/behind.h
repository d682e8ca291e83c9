/* What seeds' fuzz targets put behind a seed: an exporter of one small stream, and its leases. */
#ifndef FUZZ_BEHIND_H
#define FUZZ_BEHIND_H

#include "must.h"
#include "transport/transport.h"

enum { BEHIND_BYTES = 5000, BEHIND_SEGMENT_BYTES = 700 };

static uint8_t behind_content[BEHIND_BYTES]; /* memory, not stream */
static struct layout behind_layout;
static uint32_t behind_ranks; /* that have this layout */
static unsigned behind_leases;

static inline enum rf_code behind_acquire(void *ctx, const uint8_t token[CHUNK_TOKEN_BYTES],
                                          const char *transport, void **ret_lease,
                                          struct rf_error *err)
{
    (void)transport;
    if (token[0] == 0xff)
        return rf_fail(err, RF_E_DENIED, "denied");
    behind_leases++;
    *ret_lease = ctx;
    return RF_OK;
}

static inline enum rf_code behind_open(void *ctx, const char *transport, void **ret_lease,
                                       struct rf_error *err)
{
    static const uint8_t token[CHUNK_TOKEN_BYTES];

    return behind_acquire(ctx, token, transport, ret_lease, err);
}

static inline void behind_release(void *ctx, void *lease)
{
    must(lease == ctx && behind_leases > 0);
    behind_leases--;
}

static inline enum rf_code behind_check(void *ctx, void *lease, struct rf_error *err)
{
    must(lease == ctx);
    (void)err;
    return RF_OK;
}

static inline void behind_account(void *ctx, void *lease, uint64_t bytes)
{
    must(lease == ctx && bytes > 0);
}

static inline const struct layout *behind_rank_layout(void *ctx, uint32_t rank)
{
    (void)ctx;
    return rank < behind_ranks ? &behind_layout : NULL;
}

/* The layout is made at the first call. */
static inline struct exporter behind_exporter(uint32_t ranks)
{
    static int self;
    struct region *region = NULL;

    behind_ranks = ranks;
    if (behind_layout.count == 0) {
        for (unsigned i = 0; i < BEHIND_BYTES; i++)
            behind_content[i] = (uint8_t)(i * 31 + i / 251);
        must(region_create_borrowed(behind_content, BEHIND_BYTES, &region, NULL) == RF_OK);
        /* Neighbours in the stream are none in memory, so that pieces end within answers. */
        for (uint64_t at = 0; at < BEHIND_BYTES; at += BEHIND_SEGMENT_BYTES) {
            uint64_t left = BEHIND_BYTES - at;
            uint64_t bytes = left < BEHIND_SEGMENT_BYTES ? left : BEHIND_SEGMENT_BYTES;
            must(layout_add(&behind_layout, at, bytes, region, left - bytes, NULL) == RF_OK);
        }
        must(layout_finish(&behind_layout, BEHIND_BYTES, NULL) == RF_OK);
        region_unref(region);
    }
    return (struct exporter){.ctx = &self,
                             .lease_acquire = behind_acquire,
                             .lease_open = behind_open,
                             .lease_release = behind_release,
                             .lease_check = behind_check,
                             .lease_account = behind_account,
                             .rank_layout = behind_rank_layout};
}

#endif
