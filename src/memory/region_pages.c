/* Getting the memory of a region: which pages, and without being killed. */
#include "memory/region_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <unistd.h>

/* Newer than the C library's headers. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static uint64_t round_up(uint64_t value, uint64_t to)
{
    return (value + to - 1) / to * to;
}

enum rf_code region_reserve(uint64_t bytes, uint8_t **ret_at, uint64_t *ret_mapped_bytes,
                            struct rf_error *err)
{
    if (bytes > (uint64_t)PTRDIFF_MAX - 2 * (uint64_t)REGION_HUGE_BYTES)
        return rf_fail(err, RF_E_INVAL, "%" PRIu64 " bytes do not fit the address space", bytes);
    uint64_t mapped_bytes = round_up(bytes > 0 ? bytes : 1, REGION_PAGE_BYTES);
    uint64_t wide_bytes = mapped_bytes + REGION_HUGE_BYTES;
    uint8_t *wide = mmap(NULL, (size_t)wide_bytes, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (wide == MAP_FAILED)
        return rf_fail_sys(err, "no address space for %" PRIu64 " bytes (see `ulimit -v`)", bytes);
    size_t before = (size_t)(round_up((uintptr_t)wide, REGION_HUGE_BYTES) - (uintptr_t)wide);
    size_t after = (size_t)(wide_bytes - mapped_bytes) - before;
    if (before > 0)
        munmap(wide, before);
    if (after > 0)
        munmap(wide + before + mapped_bytes, after);
    *ret_at = wide + before;
    *ret_mapped_bytes = mapped_bytes;
    return RF_OK;
}

/* Makes [at, at + bytes), whole huge pages, huge. False when only small pages are to be had. */
static bool make_huge(uint8_t *at, uint64_t bytes)
{
    /* Where transparent huge pages come by themselves, the first byte of each brings the whole one,
     * and collapsing finds nothing to do. Almost no system has that on for shared memory, though
     * (shmem_enabled is "never" by default), and collapsing works unless it is "deny". Collapsing
     * needs something in each huge page to collapse. */
    for (uint64_t done = 0; done < bytes; done += REGION_HUGE_BYTES) {
        if (madvise(at + done, REGION_PAGE_BYTES, MADV_POPULATE_WRITE) != 0)
            return false;
    }
    return madvise(at, (size_t)bytes, MADV_COLLAPSE) == 0;
}

enum region_extent region_extent_prepare(struct region *region, uint64_t offset)
{
    uint64_t from = offset / REGION_EXTENT_BYTES * REGION_EXTENT_BYTES;
    uint64_t bytes = region->bytes - from;
    _Atomic uint8_t *state = &region->extents[offset / REGION_EXTENT_BYTES];
    uint8_t seen = EXTENT_UNTOUCHED;

    if (!atomic_compare_exchange_strong_explicit(state, &seen, EXTENT_ASKED, memory_order_relaxed,
                                                 memory_order_relaxed))
        return seen;
    bytes = bytes < REGION_EXTENT_BYTES ? bytes : REGION_EXTENT_BYTES;
    /* The rest of a huge page beyond the region's end would be memory for nothing. */
    bytes = bytes / REGION_HUGE_BYTES * REGION_HUGE_BYTES;
    if (bytes == 0 || !make_huge(region->data + from, bytes))
        return EXTENT_ASKED;
    atomic_store_explicit(state, EXTENT_HUGE, memory_order_relaxed);
    return EXTENT_HUGE;
}

static const char *name_of(const struct region *region)
{
    return region->name != NULL ? region->name : "a region";
}

/* What an error of the kernel's means for a range whose memory was asked for. */
static enum rf_code fail_populate(const struct region *region, uint64_t from, uint64_t to,
                                  struct rf_error *err)
{
    if (errno == EFAULT || errno == ENOMEM || errno == ENOSPC)
        return rf_fail(err, RF_E_NOMEM,
                       "no memory for bytes %" PRIu64 " to %" PRIu64 " of %s: free some, take a "
                       "smaller model, or serve its files with --mmap",
                       from, to, name_of(region));
    return rf_fail_sys(err, "get memory for bytes %" PRIu64 " to %" PRIu64 " of %s", from, to,
                       name_of(region));
}

/* Small pages for what has none in a range; finds those present in no time. */
static enum rf_code populate_small(const struct region *region, uint64_t from, uint64_t to,
                                   struct rf_error *err)
{
    uint64_t start = from / REGION_PAGE_BYTES * REGION_PAGE_BYTES;
    uint64_t end = round_up(to, REGION_PAGE_BYTES);
    int rc;

    do {
        rc = madvise(region->data + start, (size_t)(end - start), MADV_POPULATE_WRITE);
    } while (rc != 0 && (errno == EINTR || errno == EAGAIN));
    if (rc != 0 && errno == EINVAL) /* before Linux 5.14; private memory comes by faults then */
        rc = region->fd < 0 ? 0 : fallocate(region->fd, 0, (off_t)from, (off_t)(to - from));
    return rc == 0 ? RF_OK : fail_populate(region, from, to, err);
}

enum rf_code region_populate(struct region *region, uint64_t offset, uint64_t bytes,
                             struct rf_error *err)
{
    enum rf_code code = region_range_check(region, offset, bytes, err);

    if (code != RF_OK)
        return code;
    if (!region->writable)
        return rf_fail(err, RF_E_INVAL, "%s is not writable: it has its memory", name_of(region));
    for (uint64_t at = offset; at < offset + bytes;) {
        uint64_t end = (at / REGION_EXTENT_BYTES + 1) * REGION_EXTENT_BYTES;
        end = end < offset + bytes ? end : offset + bytes;
        (void)region_extent_prepare(region, at);
        code = populate_small(region, at, end, err);
        if (code != RF_OK)
            return code;
        at = end;
    }
    return RF_OK;
}
