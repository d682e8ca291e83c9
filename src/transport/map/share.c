#include "transport/map/share.h"

#include "base/cleanup.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Why a region cannot be given away, or RF_OK. */
static enum rf_code region_shareable(const struct region *region, uint32_t rank,
                                     struct rf_error *err)
{
    switch (region_kind(region)) {
    case REGION_HOST:
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "rank %" PRIu32 ": weights live in the caller's own memory, which cannot be "
                       "shared; load them into shared memory",
                       rank);
    case REGION_FILE:
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "rank %" PRIu32 ": weights live in the page cache (--mmap), which cannot be "
                       "shared; load them into memory",
                       rank);
    case REGION_MEMFD:
        break;
    }
    if (!region_is_sealed(region))
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "rank %" PRIu32 ": its shared memory of %" PRIu64
                       " bytes is still being written (not sealed)",
                       rank, region_bytes(region));
    return RF_OK;
}

/* A read-only descriptor of a region's memory. The seal forbids everybody to write; the open
 * mode says so too, and makes a reader's mmap(PROT_WRITE) fail before the seal is even asked. */
static enum rf_code region_open(const struct region *region, int *ret_fd, struct rf_error *err)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/self/fd/%d", region_fd(region));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return rf_fail_sys(err, "open %s for reading (is /proc mounted?)", path);
    *ret_fd = fd;
    return RF_OK;
}

static enum rf_code shares_fd(struct map_shares *shares, const struct region *region, uint32_t rank,
                              int *ret_fd, struct rf_error *err)
{
    int fd = -1;

    for (uint32_t i = 0; i < shares->open_count; i++) {
        if (shares->open[i].region == region) {
            *ret_fd = shares->open[i].fd;
            return RF_OK;
        }
    }
    enum rf_code code = region_shareable(region, rank, err);
    if (code != RF_OK)
        return code;
    struct map_shared_fd *grown = reallocarray(shares->open, shares->open_count + 1, sizeof *grown);
    if (grown == NULL)
        return rf_fail(err, RF_E_NOMEM, "table of %" PRIu32 " regions", shares->open_count + 1);
    shares->open = grown;
    code = region_open(region, &fd, err);
    if (code != RF_OK)
        return code;
    shares->open[shares->open_count++] = (struct map_shared_fd){.region = region, .fd = fd};
    *ret_fd = fd;
    return RF_OK;
}

/* The regions of a layout, each once; *ret_index is the place of one among them. */
struct region_set {
    const struct region *regions[MAP_MAX_FDS];
    uint32_t count;
    uint32_t last; /* neighbours are mostly in the same one */
};

static bool region_set_index(struct region_set *set, const struct region *region,
                             uint32_t *ret_index)
{
    if (set->count > 0 && set->regions[set->last] == region) {
        *ret_index = set->last;
        return true;
    }
    for (uint32_t i = 0; i < set->count; i++) {
        if (set->regions[i] == region) {
            *ret_index = set->last = i;
            return true;
        }
    }
    if (set->count == MAP_MAX_FDS)
        return false;
    set->regions[set->count] = region;
    *ret_index = set->last = set->count++;
    return true;
}

static enum rf_code share_fds(struct map_shares *shares, const struct layout *layout, uint32_t rank,
                              struct region_set *set, struct map_share *share, struct rf_error *err)
{
    uint32_t index = 0;

    for (uint32_t i = 0; i < layout->count; i++) {
        if (!region_set_index(set, layout->segments[i].region, &index))
            return rf_fail(err, RF_E_UNSUPPORTED,
                           "rank %" PRIu32 ": lies in more than %d pieces of memory", rank,
                           MAP_MAX_FDS);
    }
    for (uint32_t i = 0; i < set->count; i++) {
        enum rf_code code = shares_fd(shares, set->regions[i], rank, &share->fds[i], err);
        if (code != RF_OK)
            return code;
    }
    share->fd_count = set->count;
    return RF_OK;
}

static enum rf_code share_make(struct map_shares *shares, const struct layout *layout,
                               uint32_t rank, struct map_share *share, struct rf_error *err)
{
    struct region_set set = {0};
    uint8_t raw[MAP_GRANT_BYTES];

    if (layout->count > MAP_MAX_SEGMENTS)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "rank %" PRIu32 ": lies in %" PRIu32 " pieces, the protocol has %d", rank,
                       layout->count, MAP_MAX_SEGMENTS);
    enum rf_code code = share_fds(shares, layout, rank, &set, share, err);
    if (code != RF_OK)
        return code;
    map_grant_encode(&(struct map_grant){.version = CHUNK_VERSION,
                                         .fd_count = share->fd_count,
                                         .segment_count = layout->count},
                     raw);
    buf_append(&share->table, raw, MAP_GRANT_BYTES);
    for (uint32_t i = 0; i < share->fd_count; i++) {
        /* The descriptor's own size, which the reader compares: huge pages may have rounded it
         * up. */
        struct stat st;
        if (fstat(share->fds[i], &st) != 0)
            return rf_fail_sys(err, "fstat of shared memory");
        wire_put_u64(&share->table, (uint64_t)st.st_size);
    }
    for (uint32_t i = 0; i < layout->count; i++) {
        const struct segment *from = &layout->segments[i];
        struct map_segment to = {.stream_offset = from->stream_offset,
                                 .bytes = from->bytes,
                                 .fd_offset = from->region_offset};
        (void)region_set_index(&set, from->region, &to.fd_index);
        map_segment_encode(&to, raw);
        buf_append(&share->table, raw, MAP_SEGMENT_BYTES);
    }
    share->bytes = layout->stream_bytes;
    if (share->table.failed)
        return rf_fail(err, RF_E_NOMEM, "rank %" PRIu32 ": table of %" PRIu32 " pieces", rank,
                       layout->count);
    return RF_OK;
}

enum rf_code map_shares_make(const struct exporter *exporter, struct map_shares *ret_shares,
                             struct rf_error *err)
{
    struct map_shares shares = {0};
    enum rf_code code = RF_OK;

    for (;;) {
        const struct layout *layout = exporter->rank_layout(exporter->ctx, shares.count);
        if (layout == NULL)
            break;
        struct map_share *grown =
            reallocarray(shares.ranks, (size_t)shares.count + 1, sizeof *grown);
        if (grown == NULL) {
            code = rf_fail(err, RF_E_NOMEM, "%" PRIu32 " ranks", shares.count + 1);
            goto fail;
        }
        shares.ranks = grown;
        memset(&shares.ranks[shares.count], 0, sizeof *grown);
        shares.count++;
        code = share_make(&shares, layout, shares.count - 1, &shares.ranks[shares.count - 1], err);
        if (code != RF_OK)
            goto fail;
    }
    *ret_shares = shares;
    return RF_OK;

fail:
    map_shares_free(&shares);
    return code;
}

void map_shares_free(struct map_shares *shares)
{
    for (uint32_t i = 0; i < shares->count; i++)
        buf_free(&shares->ranks[i].table);
    for (uint32_t i = 0; i < shares->open_count; i++)
        close(shares->open[i].fd);
    free(shares->ranks);
    free(shares->open);
    *shares = (struct map_shares){0};
}
