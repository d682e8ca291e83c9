/* What the files of this layer share about a region; everybody else goes through region.h. */
#ifndef MEMORY_REGION_PRIVATE_H
#define MEMORY_REGION_PRIVATE_H

#include "memory/region.h"

#include <stdatomic.h>
#include <sys/stat.h>

enum { REGION_PAGE_BYTES = 4096, REGION_HUGE_BYTES = 2 * 1024 * 1024 };

/* Memory is given to a region in extents: large enough that asking the kernel costs nothing, and as
 * large as a chunk, so that threads which fill chunks do not meet in one. */
enum { REGION_EXTENT_BYTES = 8 * 1024 * 1024 };

enum region_extent {
    EXTENT_UNTOUCHED, /* nobody has asked for its memory */
    EXTENT_ASKED,     /* somebody has, or it has only small pages */
    EXTENT_HUGE,      /* huge pages, mapped: a write to it does not fault */
};

struct region {
    atomic_uint refs;
    enum region_kind kind;
    uint64_t bytes;
    uint8_t *data;         /* NULL for a file */
    uint64_t mapped_bytes; /* 0 when the memory at data is not ours to unmap */
    bool writable;         /* until it is sealed; false for borrowed, adopted and file regions */
    bool sealed;
    int fd;           /* -1 for host memory */
    char *name;       /* for messages: path or name; NULL for host memory */
    struct stat stat; /* of a file, when it was opened */
    /* One per REGION_EXTENT_BYTES, NULL unless writable. Relaxed: says which way of writing is the
     * faster one, the result is the same. */
    _Atomic uint8_t *extents;
    struct region *next; /* of the list of promised memory, under its lock */
};

/* Whether [offset, offset + bytes) lies within the region; if not, err says so. */
enum rf_code region_range_check(const struct region *region, uint64_t offset, uint64_t bytes,
                                struct rf_error *err);

/* Address space of at least `bytes`, aligned to huge pages, without memory. */
enum rf_code region_reserve(uint64_t bytes, uint8_t **ret_at, uint64_t *ret_mapped_bytes,
                            struct rf_error *err);

/* Asks for huge pages for the extent at `offset` unless that was done, and says what it now has. */
enum region_extent region_extent_prepare(struct region *region, uint64_t offset);

#endif
