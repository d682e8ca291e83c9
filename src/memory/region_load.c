/* Filling a region from a file.
 *
 * Measured on a 2-core virtual machine (AMD EPYC Zen 5, Linux 6.18, 3 GiB file in the page cache, memory
 * used before, GB per second of one processor): into a fresh memfd with small pages
 *     pread() into its mapping             1.5 - 1.9   (each page is cleared, then mapped by a fault)
 *     fallocate(), then pread() into it    1.7
 *     sendfile() file to memfd             2.7
 *     pread() to a buffer, pwrite()        2.9         (nothing cleared, no faults)
 *     copy_file_range()                    EXDEV
 * and pread() into its mapping after its pages were made huge 7.4 - 7.8. From disk, O_DIRECT takes a
 * fifth of the processor time of buffered reads. With more threads, on 16 processors of a Xeon, 6 GiB,
 * GB per second in all:
 *     threads                              1     4     8     16
 *     pread() into small pages             1.9   5.4   6.0   5.3
 *     pread() to a buffer, pwrite()        2.5   3.1   3.0   3.1   (one lock per memfd)
 *     pread() into huge pages              3.3   10.3  18.6  26.5
 * So: huge pages and reads into the mapping if they can be had; else few threads use a buffer and
 * pwrite(), many the mapping. Nothing touches memory from user space, so that memory which cannot be
 * had is an error (EFAULT, ENOSPC, ENOMEM) and no SIGBUS.
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/thread.h"
#include "memory/region_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Buffered pieces stay in the second-level cache; direct ones are as large as a disk likes them. */
enum { LOAD_BUFFERED_BYTES = 256 * 1024, LOAD_DIRECT_BYTES = 1024 * 1024 };
/* Every file system and disk that can O_DIRECT can do it at this alignment. */
enum { LOAD_ALIGN_BYTES = 4096 };
/* Above so many threads it is better to take faults than to queue for the memfd's lock in pwrite(). */
enum { LOAD_WRITERS = 2 };

struct buffer {
    struct buffer *next;
};

/* One region_load(), shared by its threads. */
struct load {
    struct region *region;
    const char *path;
    int fd;
    uint64_t offset; /* in the region */
    uint64_t end;
    uint64_t file_offset; /* of the byte that goes to `offset` */
    unsigned threads;
    region_progress_fn progress;
    void *ctx;
    int direct_fd; /* the same file with O_DIRECT; -1 if not wanted or not possible */
    struct mutex lock;
    struct buffer *buffers RF_GUARDED_BY(lock); /* not in use */
};

/* ---- buffers ---- */

static void *buffer_take(struct load *load, struct rf_error *err)
{
    mutex_lock(&load->lock);
    struct buffer *buffer = load->buffers;
    if (buffer != NULL)
        load->buffers = buffer->next;
    mutex_unlock(&load->lock);
    if (buffer == NULL)
        buffer = aligned_alloc(LOAD_ALIGN_BYTES, LOAD_DIRECT_BYTES);
    if (buffer == NULL)
        (void)rf_fail(err, RF_E_NOMEM, "no memory for a buffer of %d bytes to read %s",
                      LOAD_DIRECT_BYTES, load->path);
    return buffer;
}

static void buffer_give(struct load *load, void *at)
{
    struct buffer *buffer = at;

    mutex_lock(&load->lock);
    buffer->next = load->buffers;
    load->buffers = buffer;
    mutex_unlock(&load->lock);
}

static void buffers_free(struct load *load)
{
    while (load->buffers != NULL) {
        struct buffer *next = load->buffers->next;
        free(load->buffers);
        load->buffers = next;
    }
}

/* ---- errors ---- */

static enum rf_code fail_short(const struct load *load, uint64_t file_at, struct rf_error *err)
{
    return rf_fail(
        err, RF_E_CHANGED,
        "%s ends at %" PRIu64 ", but %" PRIu64 " bytes at %" PRIu64
        " were to be loaded: it was cut short since its header was read, or is still being "
        "written",
        load->path, file_at, load->end - load->offset, load->file_offset);
}

static enum rf_code fail_read(const struct load *load, uint64_t file_at, struct rf_error *err)
{
    if (errno == EFAULT)
        return rf_fail(err, RF_E_NOMEM,
                       "no memory for %s at %" PRIu64 ": free some, take a smaller model, or serve "
                       "its files with --mmap",
                       load->path, file_at);
    return rf_fail_sys(err, "read %s at %" PRIu64, load->path, file_at);
}

/* ---- one range of the region, [at, end) ---- */

static void progressed(const struct load *load, uint64_t bytes)
{
    if (load->progress != NULL)
        load->progress(load->ctx, bytes);
}

static uint64_t file_at(const struct load *load, uint64_t at)
{
    return load->file_offset + (at - load->offset);
}

/* Puts bytes from a buffer where they belong. */
static enum rf_code store(const struct load *load, uint64_t at, const uint8_t *from, uint64_t bytes,
                          bool mapped, struct rf_error *err)
{
    struct region *region = load->region;

    if (mapped || region->fd < 0) {
        memcpy(region->data + at, from, (size_t)bytes);
        return RF_OK;
    }
    while (bytes > 0) {
        ssize_t put = pwrite(region->fd, from, (size_t)bytes, (off_t)at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return rf_fail_sys(err, "write %s, %" PRIu64 " bytes at %" PRIu64, region->name, bytes,
                               at);
        from += put;
        at += (uint64_t)put;
        bytes -= (uint64_t)put;
    }
    return RF_OK;
}

/* Reads into the mapping, with O_DIRECT as far as `fd` has it and its alignment lasts: a file that was
 * cut short ends a read in the middle of a block. */
static enum rf_code load_mapped(const struct load *load, int fd, uint64_t at, uint64_t end,
                                struct rf_error *err)
{
    while (at < end) {
        ssize_t got =
            pread(fd, load->region->data + at, (size_t)(end - at), (off_t)file_at(load, at));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EINVAL && fd != load->fd) {
            fd = load->fd;
            continue;
        }
        if (got < 0)
            return fail_read(load, file_at(load, at), err);
        if (got == 0)
            return fail_short(load, file_at(load, at), err);
        at += (uint64_t)got;
        progressed(load, (uint64_t)got);
        if (at % LOAD_ALIGN_BYTES != 0)
            fd = load->fd;
    }
    return RF_OK;
}

/* Reads through a buffer. */
static enum rf_code load_buffered(const struct load *load, uint64_t at, uint64_t end,
                                  uint8_t *buffer, bool mapped, struct rf_error *err)
{
    while (at < end) {
        uint64_t bytes = end - at < LOAD_BUFFERED_BYTES ? end - at : LOAD_BUFFERED_BYTES;
        ssize_t got = pread(load->fd, buffer, (size_t)bytes, (off_t)file_at(load, at));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail_read(load, file_at(load, at), err);
        if (got == 0)
            return fail_short(load, file_at(load, at), err);
        enum rf_code code = store(load, at, buffer, (uint64_t)got, mapped, err);
        if (code != RF_OK)
            return code;
        at += (uint64_t)got;
        progressed(load, (uint64_t)got);
    }
    return RF_OK;
}

/* The same with O_DIRECT: the file is read in aligned pieces, of which the first and the last are used
 * in part. Leaves what it cannot do to buffered reads: *ret_at is how far it came. */
static enum rf_code load_direct(const struct load *load, int fd, uint64_t *ret_at, uint64_t end,
                                uint8_t *buffer, bool mapped, struct rf_error *err)
{
    while (*ret_at < end) {
        uint64_t from = file_at(load, *ret_at) / LOAD_ALIGN_BYTES * LOAD_ALIGN_BYTES;
        uint64_t skip = file_at(load, *ret_at) - from;
        ssize_t got = pread(fd, buffer, LOAD_DIRECT_BYTES, (off_t)from);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno != EINVAL)
            return fail_read(load, from, err);
        /* EINVAL: not with this file system or device. Nothing new: buffered reads find out why. */
        if (got < 0 || (uint64_t)got <= skip)
            return RF_OK;
        uint64_t bytes = (uint64_t)got - skip;
        bytes = bytes < end - *ret_at ? bytes : end - *ret_at;
        enum rf_code code = store(load, *ret_at, buffer + skip, bytes, mapped, err);
        if (code != RF_OK)
            return code;
        *ret_at += bytes;
        progressed(load, bytes);
    }
    return RF_OK;
}

/* Whether O_DIRECT can read [at, end) where it belongs: its alignment must fit, and its end too. */
static bool fits_direct(const struct load *load, uint64_t at, uint64_t end)
{
    return file_at(load, at) % LOAD_ALIGN_BYTES == 0 && at % LOAD_ALIGN_BYTES == 0 &&
           end % LOAD_ALIGN_BYTES == 0;
}

/* One piece; mapped: its pages are there, or are to come by faults. */
static enum rf_code load_range(struct load *load, uint64_t at, uint64_t end, bool mapped,
                               struct rf_error *err)
{
    int direct_fd = load->direct_fd;
    enum rf_code code = RF_OK;

    if (mapped && direct_fd < 0)
        return load_mapped(load, load->fd, at, end, err);
    if (mapped && fits_direct(load, at, end))
        return load_mapped(load, direct_fd, at, end, err);
    uint8_t *buffer = buffer_take(load, err);
    if (buffer == NULL)
        return RF_E_NOMEM;
    if (direct_fd >= 0)
        code = load_direct(load, direct_fd, &at, end, buffer, mapped, err);
    if (code == RF_OK)
        code = load_buffered(load, at, end, buffer, mapped, err);
    buffer_give(load, buffer);
    return code;
}

/* The item-th extent that the load touches. */
static enum rf_code load_extent(void *ctx, uint64_t item, struct rf_error *err)
{
    struct load *load = ctx;
    uint64_t first = load->offset / REGION_EXTENT_BYTES + item;
    uint64_t at = first * REGION_EXTENT_BYTES;
    uint64_t end = at + REGION_EXTENT_BYTES;

    at = at > load->offset ? at : load->offset;
    end = end < load->end ? end : load->end;
    bool huge = region_extent_prepare(load->region, at) == EXTENT_HUGE;
    bool mapped = huge || load->region->fd < 0 || load->threads > LOAD_WRITERS;
    return load_range(load, at, end, mapped, err);
}

/* The same file for O_DIRECT, whatever has become of its path; -1 if that cannot be. One read tries
 * it out: some file systems allow the flag and refuse the reads. */
static int direct_open(int fd, uint64_t file_offset)
{
    char link[64];
    rf_autofree void *buffer = aligned_alloc(LOAD_ALIGN_BYTES, LOAD_ALIGN_BYTES);

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    rf_autoclose int direct = open(link, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (direct < 0 || buffer == NULL)
        return -1;
    uint64_t from = file_offset / LOAD_ALIGN_BYTES * LOAD_ALIGN_BYTES;
    if (pread(direct, buffer, LOAD_ALIGN_BYTES, (off_t)from) < 0)
        return -1;
    return rf_take(direct, -1);
}

enum rf_code region_load(struct region *region, uint64_t offset, const char *path, int fd,
                         uint64_t file_offset, uint64_t bytes, unsigned threads, bool direct,
                         region_progress_fn progress, void *ctx, struct rf_error *err)
{
    struct load load = {.region = region,
                        .path = path,
                        .fd = fd,
                        .offset = offset,
                        .end = offset + bytes,
                        .file_offset = file_offset,
                        .threads = threads,
                        .progress = progress,
                        .ctx = ctx,
                        .direct_fd = -1};
    enum rf_code code = region_range_check(region, offset, bytes, err);

    if (code != RF_OK || bytes == 0)
        return code;
    if (!region->writable)
        return rf_fail(err, RF_E_INVAL, "%s cannot be loaded into %s: that is not writable", path,
                       region->name != NULL ? region->name : "a borrowed region");
    if (file_offset > INT64_MAX || bytes > INT64_MAX - file_offset)
        return rf_fail(err, RF_E_INVAL,
                       "%s: %" PRIu64 " bytes at %" PRIu64 " are beyond what a file can have", path,
                       bytes, file_offset);
    if (direct)
        load.direct_fd = direct_open(fd, file_offset);
    if (direct && load.direct_fd < 0)
        log_debug("no direct reads", "path=%s", path);
    mutex_init(&load.lock);
    uint64_t extents = (load.end - 1) / REGION_EXTENT_BYTES - offset / REGION_EXTENT_BYTES + 1;
    code = thread_parallel(threads, extents, load_extent, &load, err);
    mutex_destroy(&load.lock);
    buffers_free(&load);
    if (load.direct_fd >= 0)
        close(load.direct_fd);
    return code;
}
