/* Filling a region from a file.
 *
 * Measured on a 2-core virtual machine (AMD EPYC Zen 5, Linux 6.18, 3 GiB file in the page cache,
 * memory used before, GB per second of one processor): into a fresh memfd with small pages
 *     pread() into its mapping             1.5 - 1.9   (a page is cleared, then faulted in)
 *     fallocate(), then pread() into it    1.7
 *     sendfile() file to memfd             2.7
 *     pread() to a buffer, pwrite()        2.9         (nothing cleared, no faults)
 *     copy_file_range()                    EXDEV
 * and pread() into its mapping after its pages were made huge 7.4 - 7.8. From disk, O_DIRECT takes
 * a fifth of the processor time of buffered reads. With more threads, on 16 processors of a
 * Xeon, 6 GiB, GB per second in all:
 *     threads                              1     4     8     16
 *     pread() into small pages             1.9   5.4   6.0   5.3
 *     pread() to a buffer, pwrite()        2.5   3.1   3.0   3.1   (one lock per memfd)
 *     pread() into huge pages              3.3   10.3  18.6  26.5
 * So: huge pages and reads into the mapping if they can be had; else few threads use a buffer and
 * pwrite(), many the mapping. Nothing touches memory from user space, so that memory which cannot
 * be had is an error (EFAULT, ENOSPC, ENOMEM) and no SIGBUS.
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

/* Buffered pieces stay in the second-level cache; direct ones are as large as a disk likes them.
 * What is smaller than a buffered piece is read so: many small spans want the kernel to read
 * ahead. */
enum { LOAD_BUFFERED_BYTES = 256 * 1024, LOAD_DIRECT_BYTES = 1024 * 1024 };
/* Every file system and disk that can O_DIRECT can do it at this alignment. */
enum { LOAD_ALIGN_BYTES = 4096 };
/* Above so many threads faults cost less than queueing for the memfd's lock in pwrite(). */
enum { LOAD_WRITERS = 2 };

struct buffer {
    struct buffer *next;
};

/* One region_load_spans(), shared by its threads. */
struct load {
    struct region *region;
    const struct region_file *files;
    const struct region_span *spans;
    uint32_t span_count;
    unsigned threads;
    region_progress_fn progress;
    void *ctx;
    int *direct_fds; /* [of files] the same with O_DIRECT; -1 if not wanted or not possible */
    struct mutex lock;
    struct buffer *buffers RF_GUARDED_BY(lock); /* not in use */
};

/* ---- buffers ---- */

static void *buffer_take(struct load *load, const char *path, struct rf_error *err)
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
                      LOAD_DIRECT_BYTES, path);
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

/* ---- one span ---- */

/* A span, and the file that it comes from. */
struct origin {
    const struct load *load;
    const struct region_span *span;
    const char *path;
    int fd;
    int direct_fd;
};

static uint64_t file_at(const struct origin *from, uint64_t at)
{
    return from->span->file_offset + (at - from->span->offset);
}

static enum rf_code fail_short(const struct origin *from, uint64_t file_at, struct rf_error *err)
{
    return rf_fail(
        err, RF_E_CHANGED,
        "%s ends at %" PRIu64 ", but %" PRIu64 " bytes at %" PRIu64
        " were to be loaded: it was cut short since its header was read, or is still being "
        "written",
        from->path, file_at, from->span->bytes, from->span->file_offset);
}

static enum rf_code fail_read(const struct origin *from, uint64_t file_at, struct rf_error *err)
{
    if (errno == EFAULT)
        return rf_fail(err, RF_E_NOMEM,
                       "no memory for %s at %" PRIu64 ": free some, take a smaller model, or serve "
                       "its files with --mmap",
                       from->path, file_at);
    return rf_fail_sys(err, "read %s at %" PRIu64, from->path, file_at);
}

/* ---- one range of a span, [at, end) in the region ---- */

static void progressed(const struct load *load, uint64_t bytes)
{
    if (load->progress != NULL)
        load->progress(load->ctx, bytes);
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

/* Reads into the mapping, with O_DIRECT as far as `fd` has it and its alignment lasts: a file that
 * was cut short ends a read in the middle of a block. */
static enum rf_code load_mapped(const struct origin *from, int fd, uint64_t at, uint64_t end,
                                struct rf_error *err)
{
    while (at < end) {
        ssize_t got =
            pread(fd, from->load->region->data + at, (size_t)(end - at), (off_t)file_at(from, at));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EINVAL && fd != from->fd) {
            fd = from->fd;
            continue;
        }
        if (got < 0)
            return fail_read(from, file_at(from, at), err);
        if (got == 0)
            return fail_short(from, file_at(from, at), err);
        at += (uint64_t)got;
        progressed(from->load, (uint64_t)got);
        if (at % LOAD_ALIGN_BYTES != 0)
            fd = from->fd;
    }
    return RF_OK;
}

/* Reads through a buffer. */
static enum rf_code load_buffered(const struct origin *from, uint64_t at, uint64_t end,
                                  uint8_t *buffer, bool mapped, struct rf_error *err)
{
    while (at < end) {
        uint64_t bytes = end - at < LOAD_BUFFERED_BYTES ? end - at : LOAD_BUFFERED_BYTES;
        ssize_t got = pread(from->fd, buffer, (size_t)bytes, (off_t)file_at(from, at));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail_read(from, file_at(from, at), err);
        if (got == 0)
            return fail_short(from, file_at(from, at), err);
        enum rf_code code = store(from->load, at, buffer, (uint64_t)got, mapped, err);
        if (code != RF_OK)
            return code;
        at += (uint64_t)got;
        progressed(from->load, (uint64_t)got);
    }
    return RF_OK;
}

/* The same with O_DIRECT: the file is read in aligned pieces, of which the first and the last are
 * used in part. Leaves what it cannot do to buffered reads: *ret_at is how far it came. */
static enum rf_code load_direct(const struct origin *from, uint64_t *ret_at, uint64_t end,
                                uint8_t *buffer, bool mapped, struct rf_error *err)
{
    while (*ret_at < end) {
        uint64_t block = file_at(from, *ret_at) / LOAD_ALIGN_BYTES * LOAD_ALIGN_BYTES;
        uint64_t skip = file_at(from, *ret_at) - block;
        uint64_t wanted = skip + (end - *ret_at) + LOAD_ALIGN_BYTES - 1;
        wanted = wanted < LOAD_DIRECT_BYTES ? wanted : LOAD_DIRECT_BYTES;
        wanted = wanted / LOAD_ALIGN_BYTES * LOAD_ALIGN_BYTES;
        ssize_t got = pread(from->direct_fd, buffer, (size_t)wanted, (off_t)block);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno != EINVAL)
            return fail_read(from, block, err);
        /* EINVAL: not with this file system or device. Nothing new: buffered reads find out why. */
        if (got < 0 || (uint64_t)got <= skip)
            return RF_OK;
        uint64_t bytes = (uint64_t)got - skip;
        bytes = bytes < end - *ret_at ? bytes : end - *ret_at;
        enum rf_code code = store(from->load, *ret_at, buffer + skip, bytes, mapped, err);
        if (code != RF_OK)
            return code;
        *ret_at += bytes;
        progressed(from->load, bytes);
    }
    return RF_OK;
}

/* Whether O_DIRECT can read [at, end) where it belongs: its alignment must fit, and its end too. */
static bool fits_direct(const struct origin *from, uint64_t at, uint64_t end)
{
    return file_at(from, at) % LOAD_ALIGN_BYTES == 0 && at % LOAD_ALIGN_BYTES == 0 &&
           end % LOAD_ALIGN_BYTES == 0;
}

/* One piece; mapped: its pages are there, or are to come by faults. */
static enum rf_code load_range(struct load *load, const struct region_span *span, uint64_t at,
                               uint64_t end, bool mapped, struct rf_error *err)
{
    const struct origin from = {
        .load = load,
        .span = span,
        .path = load->files[span->file].path,
        .fd = load->files[span->file].fd,
        .direct_fd = span->bytes < LOAD_BUFFERED_BYTES ? -1 : load->direct_fds[span->file],
    };
    enum rf_code code = RF_OK;

    if (mapped && from.direct_fd < 0)
        return load_mapped(&from, from.fd, at, end, err);
    if (mapped && fits_direct(&from, at, end))
        return load_mapped(&from, from.direct_fd, at, end, err);
    uint8_t *buffer = buffer_take(load, from.path, err);
    if (buffer == NULL)
        return RF_E_NOMEM;
    if (from.direct_fd >= 0)
        code = load_direct(&from, &at, end, buffer, mapped, err);
    if (code == RF_OK)
        code = load_buffered(&from, at, end, buffer, mapped, err);
    buffer_give(load, buffer);
    return code;
}

/* The first span that ends behind `at`; span_count if none does. */
static uint32_t span_find(const struct load *load, uint64_t at)
{
    uint32_t low = 0;
    uint32_t high = load->span_count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (load->spans[middle].offset + load->spans[middle].bytes <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* What goes to the item-th extent, counted from the one that the first span begins in. Spans share
 * extents: an extent is one thread's. */
static enum rf_code load_extent(void *ctx, uint64_t item, struct rf_error *err)
{
    struct load *load = ctx;
    uint64_t first = load->spans[0].offset / REGION_EXTENT_BYTES + item;
    uint64_t begin = first * REGION_EXTENT_BYTES;
    uint64_t limit = begin + REGION_EXTENT_BYTES;
    enum rf_code code = RF_OK;
    uint32_t i = span_find(load, begin);

    if (i == load->span_count || load->spans[i].offset >= limit)
        return RF_OK;
    bool huge = region_extent_prepare(load->region, begin) == EXTENT_HUGE;
    bool mapped = huge || load->region->fd < 0 || load->threads > LOAD_WRITERS;
    for (; code == RF_OK && i < load->span_count && load->spans[i].offset < limit; i++) {
        const struct region_span *span = &load->spans[i];
        uint64_t at = span->offset > begin ? span->offset : begin;
        uint64_t end = span->offset + span->bytes;

        if (at < end)
            code = load_range(load, span, at, end < limit ? end : limit, mapped, err);
    }
    return code;
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

static enum rf_code spans_check(const struct load *load, struct rf_error *err)
{
    const struct region *region = load->region;
    uint64_t before = 0;

    for (uint32_t i = 0; i < load->span_count; i++) {
        const struct region_span *span = &load->spans[i];
        const char *path = load->files[span->file].path;
        enum rf_code code = region_range_check(region, span->offset, span->bytes, err);

        if (code != RF_OK)
            return code;
        if (span->offset < before)
            return rf_fail(err, RF_E_INVAL,
                           "%s: what goes to %" PRIu64 " of a region comes after what ends at "
                           "%" PRIu64,
                           path, span->offset, before);
        before = span->offset + span->bytes;
        if (!region->writable)
            return rf_fail(err, RF_E_INVAL, "%s cannot be loaded into %s: that is not writable",
                           path, region->name != NULL ? region->name : "a borrowed region");
        if (span->file_offset > INT64_MAX || span->bytes > INT64_MAX - span->file_offset)
            return rf_fail(err, RF_E_INVAL,
                           "%s: %" PRIu64 " bytes at %" PRIu64 " are beyond what a file can have",
                           path, span->bytes, span->file_offset);
    }
    return RF_OK;
}

/* Each file is tried where its first span begins. */
static void direct_open_all(struct load *load, uint32_t file_count)
{
    rf_autofree bool *tried = calloc(file_count + (size_t)1, sizeof *tried);

    for (uint32_t i = 0; tried != NULL && i < load->span_count; i++) {
        const struct region_span *span = &load->spans[i];
        const struct region_file *file = &load->files[span->file];

        if (tried[span->file] || span->bytes == 0)
            continue;
        tried[span->file] = true;
        load->direct_fds[span->file] = direct_open(file->fd, span->file_offset);
        if (load->direct_fds[span->file] < 0)
            log_debug("no direct reads", "path=%s", file->path);
    }
}

enum rf_code region_load_spans(struct region *region, const struct region_file *files,
                               uint32_t file_count, const struct region_span *spans,
                               uint32_t span_count, unsigned threads, bool direct,
                               region_progress_fn progress, void *ctx, struct rf_error *err)
{
    rf_autofree int *direct_fds = calloc(file_count + (size_t)1, sizeof *direct_fds);
    struct load load = {.region = region,
                        .files = files,
                        .spans = spans,
                        .span_count = span_count,
                        .threads = threads,
                        .progress = progress,
                        .ctx = ctx,
                        .direct_fds = direct_fds};
    enum rf_code code = spans_check(&load, err);

    if (code != RF_OK || span_count == 0)
        return code;
    if (direct_fds == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " files", file_count);
    for (uint32_t i = 0; i < file_count; i++)
        direct_fds[i] = -1;
    if (direct)
        direct_open_all(&load, file_count);
    mutex_init(&load.lock);
    const struct region_span *last = &spans[span_count - 1];
    uint64_t end = last->offset + last->bytes;
    uint64_t extents = (end + REGION_EXTENT_BYTES - 1) / REGION_EXTENT_BYTES -
                       spans[0].offset / REGION_EXTENT_BYTES;
    code = thread_parallel(threads, extents, load_extent, &load, err);
    mutex_destroy(&load.lock);
    buffers_free(&load);
    for (uint32_t i = 0; i < file_count; i++) {
        if (direct_fds[i] >= 0)
            close(direct_fds[i]);
    }
    return code;
}

enum rf_code region_load(struct region *region, uint64_t offset, const char *path, int fd,
                         uint64_t file_offset, uint64_t bytes, unsigned threads, bool direct,
                         region_progress_fn progress, void *ctx, struct rf_error *err)
{
    const struct region_file file = {.path = path, .fd = fd};
    const struct region_span span = {
        .offset = offset, .bytes = bytes, .file = 0, .file_offset = file_offset};

    if (bytes == 0)
        return region_range_check(region, offset, bytes, err);
    return region_load_spans(region, &file, 1, &span, 1, threads, direct, progress, ctx, err);
}
