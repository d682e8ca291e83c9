/* One piece of memory that can be read by a transport: host, memfd or file mapping.
 *
 * A region's address range, descriptor and kind never change. References are counted; any thread
 * may take and drop them. The content is written by its maker only, before it is shared. */
#ifndef MEMORY_REGION_H
#define MEMORY_REGION_H

#include "base/error.h"

enum region_kind {
    REGION_HOST,  /* memory of the process; borrowed from the caller, or anonymous and ours */
    REGION_MEMFD, /* shared memory of ours, mapped; can be sealed and passed to another process */
    /* A file served from the page cache. Never mapped: one that shrinks under a mapping kills the
     * reader with SIGBUS, so it is read with pread() and sent with sendfile(). */
    REGION_FILE,
};

struct region;

/* Wraps the caller's memory, to stay valid and unchanged until the last reference is gone. */
enum rf_code region_create_borrowed(const void *data, uint64_t bytes, struct region **ret_region,
                                    struct rf_error *err);
/* Anonymous private memory (transparent huge pages asked for). */
enum rf_code region_create_anonymous(uint64_t bytes, struct region **ret_region,
                                     struct rf_error *err);
/* Shared memory, writable until region_seal(). Transparent huge pages are asked for as it is
 * filled (region_load, region_populate). Errors: RF_E_NOMEM with the numbers. */
enum rf_code region_create_memfd(const char *name, uint64_t bytes, struct region **ret_region,
                                 struct rf_error *err);
/* Takes over a sealed memfd received from another process and maps it read-only. Refuses
 * (RF_E_PROTO) one that is not sealed against writing, shrinking and growing, or whose size is not
 * `bytes`; closes fd in every case. */
enum rf_code region_adopt_memfd(int fd, uint64_t bytes, struct region **ret_region,
                                struct rf_error *err);
/* Duplicates fd. path is for messages. Remembers size, mtime, ctime and inode. */
enum rf_code region_create_file(const char *path, int fd, struct region **ret_region,
                                struct rf_error *err);

struct region *region_ref(struct region *region);
void region_unref(struct region *region);

enum region_kind region_kind(const struct region *region);
uint64_t region_bytes(const struct region *region);
/* Address of the content; NULL for REGION_FILE. */
const uint8_t *region_data(const struct region *region);
/* The same for its maker; NULL once sealed, and for borrowed and file regions. */
uint8_t *region_data_writable(struct region *region);
/* Descriptor whose offset 0 is the region's offset 0; -1 for REGION_HOST. Owned by the region. */
int region_fd(const struct region *region);

/* Makes a memfd immutable for everyone, for ever (F_SEAL_WRITE, SHRINK, GROW, SEAL): drops the
 * writable mapping and maps it read-only at the same address. No other thread may use its address
 * meanwhile. */
enum rf_code region_seal(struct region *region, struct rf_error *err);
bool region_is_sealed(const struct region *region);

/* Copies content out of any kind. RF_E_CHANGED when a file is shorter than it was, RF_E_SYS on I/O
 * errors. */
enum rf_code region_read(const struct region *region, uint64_t offset, void *dst, uint64_t bytes,
                         struct rf_error *err);

/* RF_E_CHANGED, naming file and what changed, when a file is no longer what it was; RF_OK for the
 * other kinds. One fstat(): cheap enough to call per request. */
enum rf_code region_check(const struct region *region, struct rf_error *err);

/* Makes sure that memory for a range of a writable region is there before somebody writes to it,
 * huge pages where they can be had (whole extents of 8 MiB; the range may be smaller). Several
 * threads may do so at once, also where others write already. Blocks for about 0.1 to 1 ms per MiB,
 * not at all where the memory is there. Errors: RF_E_INVAL (range, not writable), RF_E_NOMEM. */
enum rf_code region_populate(struct region *region, uint64_t offset, uint64_t bytes,
                             struct rf_error *err);

/* Memory that can still be taken here without swapping or an OOM kill: the least of MemAvailable
 * and what the cgroup (v1 or v2) leaves. */
uint64_t memory_available(void);

/* Fills [offset, offset + bytes) of a writable region from a file at file_offset, on `threads`
 * threads with large reads: O_DIRECT where file system and alignment allow and `direct` asks for it
 * (offset, file_offset congruent modulo 4096 makes it possible), buffered for the rest. progress
 * may be NULL; it is called from the reading threads with the bytes just added. Errors:
 * RF_E_CHANGED (short file), RF_E_SYS. */
typedef void (*region_progress_fn)(void *ctx, uint64_t added_bytes);
enum rf_code region_load(struct region *region, uint64_t offset, const char *path, int fd,
                         uint64_t file_offset, uint64_t bytes, unsigned threads, bool direct,
                         region_progress_fn progress, void *ctx, struct rf_error *err);

/* The same for many pieces of several files at once: spans ordered by offset, not overlapping. */
struct region_file {
    const char *path;
    int fd;
};
struct region_span {
    uint64_t offset; /* in the region */
    uint64_t bytes;
    uint64_t file_offset;
    uint32_t file; /* index in files */
};
enum rf_code region_load_spans(struct region *region, const struct region_file *files,
                               uint32_t file_count, const struct region_span *spans,
                               uint32_t span_count, unsigned threads, bool direct,
                               region_progress_fn progress, void *ctx, struct rf_error *err);

/* memcpy() that writes past the caches, for a piece of what is MEMORY_STREAM_BYTES and more in all:
 * nothing of that stays in a cache until somebody reads it. What a thread copied so is ordered
 * before what tells other threads of it once it has called memory_stream_end(). */
enum { MEMORY_STREAM_BYTES = 64 << 20 };
void memory_stream(void *to, const void *from, size_t bytes);
void memory_stream_end(void);

/* memcpy on several threads; threads 0 = what this machine needs to saturate memory. */
void memory_copy(void *dst, const void *src, uint64_t bytes, unsigned threads);

#endif
