#include "memory/region.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/size.h"
#include "base/thread.h"
#include "memory/region_private.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

enum { SEAL_TIMEOUT_MS = 500, SEAL_RETRY_MS = 2, BLOCK_BYTES = 512 };

static const int region_seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;

/* Memory promised but not yet filled: the system still counts it as available, so that eight ranks
 * which each fit alone would be found too many by the OOM killer. */
static struct mutex promised_lock = {PTHREAD_MUTEX_INITIALIZER};
static struct region *promised_list;

/* ---- memory that is there ---- */

static uint64_t promised_bytes_locked(void) RF_REQUIRES(promised_lock);
static uint64_t promised_bytes_locked(void)
{
    uint64_t sum = 0;

    for (const struct region *region = promised_list; region != NULL; region = region->next) {
        struct stat st;
        if (region->fd < 0 || fstat(region->fd, &st) != 0)
            continue;
        uint64_t filled = (uint64_t)st.st_blocks * BLOCK_BYTES;
        sum += filled < region->bytes ? region->bytes - filled : 0;
    }
    return sum;
}

static void promised_remove(struct region *region)
{
    mutex_lock(&promised_lock);
    for (struct region **at = &promised_list; *at != NULL; at = &(*at)->next) {
        if (*at == region) {
            *at = region->next;
            break;
        }
    }
    mutex_unlock(&promised_lock);
}

static enum rf_code check_available(uint64_t bytes, const char *name, struct rf_error *err)
{
    char want[SIZE_TEXT_BYTES];
    char have[SIZE_TEXT_BYTES];
    char taken[SIZE_TEXT_BYTES];

    mutex_lock(&promised_lock);
    uint64_t promised = promised_bytes_locked();
    mutex_unlock(&promised_lock);
    uint64_t available = memory_available();
    uint64_t left = available > promised ? available - promised : 0;
    if (bytes <= left)
        return RF_OK;
    size_text(bytes, want);
    size_text(available, have);
    size_text(promised, taken);
    return rf_fail(err, RF_E_NOMEM,
                   "%s needs %s (%" PRIu64 " bytes) of memory, but %s (%" PRIu64
                   ") are available%s%s%s: "
                   "free some or raise the container's limit, take a smaller model, or serve its "
                   "files without loading them (--mmap)",
                   name, want, bytes, have, available, promised > 0 ? ", of which " : "",
                   promised > 0 ? taken : "", promised > 0 ? " are promised already" : "");
}

/* ---- making and releasing ---- */

static struct region *region_alloc(enum region_kind kind, uint64_t bytes, const char *name)
{
    struct region *region = calloc(1, sizeof *region);

    if (region == NULL)
        return NULL;
    atomic_init(&region->refs, 1);
    region->kind = kind;
    region->bytes = bytes;
    region->fd = -1;
    if (name != NULL) {
        region->name = strdup(name);
        if (region->name == NULL) {
            free(region);
            return NULL;
        }
    }
    return region;
}

static void region_destroy(struct region *region)
{
    if (region == NULL)
        return;
    if (region->kind == REGION_MEMFD)
        promised_remove(region);
    if (region->mapped_bytes > 0)
        munmap(region->data, (size_t)region->mapped_bytes);
    if (region->fd >= 0)
        close(region->fd);
    free(region->extents);
    free(region->name);
    free(region);
}

static enum rf_code fail_alloc(struct rf_error *err)
{
    return rf_fail(err, RF_E_NOMEM, "no memory to describe a region");
}

enum rf_code region_create_borrowed(const void *data, uint64_t bytes, struct region **ret_region,
                                    struct rf_error *err)
{
    if (data == NULL && bytes > 0)
        return rf_fail(err, RF_E_INVAL, "no address given for a region of %" PRIu64 " bytes",
                       bytes);
    struct region *region = region_alloc(REGION_HOST, bytes, NULL);
    if (region == NULL)
        return fail_alloc(err);
    memcpy(&region->data, &data, sizeof data); /* drops const; not written: writable is false */
    *ret_region = region;
    return RF_OK;
}

/* Address space, and the table of what has been asked for in it. */
static enum rf_code region_prepare(struct region *region, struct rf_error *err)
{
    uint64_t extents = region->bytes / REGION_EXTENT_BYTES + 1;

    region->extents = calloc((size_t)extents, sizeof *region->extents);
    if (region->extents == NULL)
        return fail_alloc(err);
    return region_reserve(region->bytes, &region->data, &region->mapped_bytes, err);
}

/* Maps the region at its reserved address. */
static enum rf_code region_map(struct region *region, int protection, int flags,
                               struct rf_error *err)
{
    void *at = mmap(region->data, (size_t)region->mapped_bytes, protection, flags | MAP_FIXED,
                    region->fd, 0);

    /* Before Linux 6.7 a memfd sealed against writing cannot be mapped shared, even for reading. A
     * private mapping shows the same pages, as it is never written. */
    if (at == MAP_FAILED && errno == EPERM && protection == PROT_READ)
        at = mmap(region->data, (size_t)region->mapped_bytes, protection, MAP_PRIVATE | MAP_FIXED,
                  region->fd, 0);
    if (at == MAP_FAILED)
        return rf_fail_sys(err, "mmap %s, %" PRIu64 " bytes",
                           region->name != NULL ? region->name : "memory", region->bytes);
    /* All three only advice: huge pages save the time of faults and of the TLB, and nobody wants
     * the weights in a core file. */
    (void)madvise(at, (size_t)region->mapped_bytes, MADV_HUGEPAGE);
    (void)madvise(at, (size_t)region->mapped_bytes, MADV_DONTDUMP);
    return RF_OK;
}

enum rf_code region_create_anonymous(uint64_t bytes, struct region **ret_region,
                                     struct rf_error *err)
{
    enum rf_code code = check_available(bytes, "a region", err);

    if (code != RF_OK)
        return code;
    struct region *region = region_alloc(REGION_HOST, bytes, NULL);
    if (region == NULL)
        return fail_alloc(err);
    code = region_prepare(region, err);
    if (code == RF_OK)
        code = region_map(region, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, err);
    if (code != RF_OK) {
        region_destroy(region);
        return code;
    }
    region->writable = true;
    *ret_region = region;
    return RF_OK;
}

/* A file that outgrows `ulimit -f` kills with SIGXFSZ, and a memfd is a file. */
static enum rf_code check_file_limit(uint64_t bytes, const char *name, struct rf_error *err)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
        bytes <= limit.rlim_cur)
        return RF_OK;
    return rf_fail(err, RF_E_NOMEM,
                   "%s needs %" PRIu64
                   " bytes of shared memory, but `ulimit -f` allows files of %ju",
                   name, bytes, (uintmax_t)limit.rlim_cur);
}

/* hugetlb is not used although it would be the surest way to huge pages: such a memfd knows neither
 * write() nor sendfile(), and its pages must have been set aside by the administrator. Transparent
 * ones (region_pages.c) need nothing and can do everything. */
static int memfd_open(const char *name)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL) /* before Linux 6.3, or a name over 249 bytes */
        fd = memfd_create("rfork", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return fd;
}

enum rf_code region_create_memfd(const char *name, uint64_t bytes, struct region **ret_region,
                                 struct rf_error *err)
{
    enum rf_code code = check_available(bytes, name, err);

    if (code == RF_OK)
        code = check_file_limit(bytes, name, err);
    if (code != RF_OK)
        return code;
    struct region *region = region_alloc(REGION_MEMFD, bytes, name);
    if (region == NULL)
        return fail_alloc(err);
    code = region_prepare(region, err);
    if (code != RF_OK)
        goto fail_destroy;
    region->fd = memfd_open(name);
    if (region->fd < 0 || ftruncate(region->fd, (off_t)bytes) != 0) {
        code = rf_fail_sys(err, "memfd for %s, %" PRIu64 " bytes", name, bytes);
        goto fail_destroy;
    }
    code = region_map(region, PROT_READ | PROT_WRITE, MAP_SHARED, err);
    if (code != RF_OK)
        goto fail_destroy;
    region->writable = true;
    mutex_lock(&promised_lock);
    region->next = promised_list;
    promised_list = region;
    mutex_unlock(&promised_lock);
    *ret_region = region;
    return RF_OK;

fail_destroy:
    region_destroy(region);
    return code;
}

/* Whether a descriptor from another process is what it promised to be. */
static enum rf_code adopt_check(int fd, uint64_t bytes, struct rf_error *err)
{
    struct stat st;

    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0)
        return rf_fail(err, RF_E_PROTO, "the peer passed a descriptor that is not a memfd");
    if ((seals & region_seals) != region_seals)
        return rf_fail(err, RF_E_PROTO,
                       "the peer passed a memfd that it can still change (seals %#x, need %#x): it "
                       "must seal it against writing, shrinking and growing",
                       (unsigned)seals, (unsigned)region_seals);
    if (fstat(fd, &st) != 0)
        return rf_fail_sys(err, "fstat of the peer's memfd");
    if ((uint64_t)st.st_size != bytes)
        return rf_fail(err, RF_E_PROTO,
                       "the peer passed a memfd of %jd bytes and announced %" PRIu64,
                       (intmax_t)st.st_size, bytes);
    return RF_OK;
}

enum rf_code region_adopt_memfd(int fd, uint64_t bytes, struct region **ret_region,
                                struct rf_error *err)
{
    enum rf_code code = adopt_check(fd, bytes, err);
    struct region *region = NULL;

    if (code != RF_OK)
        goto fail_close;
    region = region_alloc(REGION_MEMFD, bytes, "the peer's memfd");
    if (region == NULL) {
        code = fail_alloc(err);
        goto fail_close;
    }
    code = region_reserve(bytes, &region->data, &region->mapped_bytes, err);
    if (code != RF_OK)
        goto fail_destroy;
    region->fd = fd;
    region->sealed = true;
    code = region_map(region, PROT_READ, MAP_SHARED, err);
    if (code != RF_OK) {
        region->fd = -1;
        goto fail_destroy;
    }
    *ret_region = region;
    return RF_OK;

fail_destroy:
    region_destroy(region);
fail_close:
    if (fd >= 0)
        close(fd);
    return code;
}

enum rf_code region_create_file(const char *path, int fd, struct region **ret_region,
                                struct rf_error *err)
{
    struct stat st;

    if (fstat(fd, &st) != 0)
        return rf_fail_sys(err, "fstat %s", path);
    if (!S_ISREG(st.st_mode))
        return rf_fail(err, RF_E_INVAL, "%s is not a regular file", path);
    struct region *region = region_alloc(REGION_FILE, (uint64_t)st.st_size, path);
    if (region == NULL)
        return fail_alloc(err);
    region->stat = st;
    region->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (region->fd < 0) {
        enum rf_code code = rf_fail_sys(err, "dup of the descriptor of %s", path);
        region_destroy(region);
        return code;
    }
    *ret_region = region;
    return RF_OK;
}

struct region *region_ref(struct region *region)
{
    unsigned before = atomic_fetch_add_explicit(&region->refs, 1, memory_order_relaxed);

    assert(before > 0);
    (void)before;
    return region;
}

void region_unref(struct region *region)
{
    if (region == NULL)
        return;
    /* Releases what this thread did to the region, acquires what others did: pairs with itself. */
    unsigned before = atomic_fetch_sub_explicit(&region->refs, 1, memory_order_acq_rel);
    assert(before > 0);
    if (before == 1)
        region_destroy(region);
}

/* ---- looking at one ---- */

enum region_kind region_kind(const struct region *region)
{
    return region->kind;
}

uint64_t region_bytes(const struct region *region)
{
    return region->bytes;
}

const uint8_t *region_data(const struct region *region)
{
    return region->data;
}

uint8_t *region_data_writable(struct region *region)
{
    return region->writable ? region->data : NULL;
}

int region_fd(const struct region *region)
{
    return region->fd;
}

bool region_is_sealed(const struct region *region)
{
    return region->sealed;
}

/* ---- sealing ---- */

/* The kernel refuses with EBUSY while anybody holds a page, as direct I/O and per-processor lists
 * do for a moment after their work; there is nothing to wait on but time. */
static int add_seals(int fd)
{
    uint64_t deadline_ns = clock_deadline_ns(SEAL_TIMEOUT_MS);

    for (;;) {
        int rc = fcntl(fd, F_ADD_SEALS, region_seals | F_SEAL_SEAL);
        if (rc == 0 || errno != EBUSY || clock_now_ns() >= deadline_ns)
            return rc;
        (void)poll(NULL, 0, SEAL_RETRY_MS);
    }
}

enum rf_code region_seal(struct region *region, struct rf_error *err)
{
    if (region->kind != REGION_MEMFD)
        return rf_fail(err, RF_E_INVAL, "only shared memory can be sealed, not %s",
                       region->name != NULL ? region->name : "memory of the process");
    if (region->sealed)
        return RF_OK;
    /* One call drops the writable mapping and keeps the address from being given to others. */
    void *at = mmap(region->data, (size_t)region->mapped_bytes, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (at == MAP_FAILED)
        return rf_fail_sys(err, "unmap %s", region->name);
    if (add_seals(region->fd) != 0) {
        int saved = errno;
        (void)region_map(region, PROT_READ | PROT_WRITE, MAP_SHARED, NULL);
        errno = saved;
        return rf_fail_sys(err, "seal %s, %" PRIu64 " bytes%s", region->name, region->bytes,
                           saved == EBUSY ? " (it is mapped writable, or a device holds its pages)"
                                          : "");
    }
    region->writable = false;
    region->sealed = true;
    promised_remove(region);
    free(region->extents);
    region->extents = NULL;
    return region_map(region, PROT_READ, MAP_SHARED, err);
}

/* ---- reading ---- */

enum rf_code region_range_check(const struct region *region, uint64_t offset, uint64_t bytes,
                                struct rf_error *err)
{
    uint64_t end = 0;

    if (__builtin_add_overflow(offset, bytes, &end) || end > region->bytes)
        return rf_fail(err, RF_E_INVAL,
                       "%" PRIu64 " bytes at %" PRIu64 " are outside %s, which has %" PRIu64, bytes,
                       offset, region->name != NULL ? region->name : "the region", region->bytes);
    return RF_OK;
}

enum rf_code region_read(const struct region *region, uint64_t offset, void *dst, uint64_t bytes,
                         struct rf_error *err)
{
    uint8_t *to = dst;
    enum rf_code code = region_range_check(region, offset, bytes, err);

    if (code != RF_OK || bytes == 0)
        return code;
    if (region->kind != REGION_FILE) {
        memcpy(to, region->data + offset, (size_t)bytes);
        return RF_OK;
    }
    while (bytes > 0) {
        ssize_t got = pread(region->fd, to, (size_t)bytes, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return rf_fail_sys(err, "read %s, %" PRIu64 " bytes at %" PRIu64, region->name, bytes,
                               offset);
        if (got == 0)
            return rf_fail(err, RF_E_CHANGED,
                           "%s now ends at %" PRIu64 ", it had %" PRIu64
                           " bytes when it was opened: serve a file that nobody writes to",
                           region->name, offset, region->bytes);
        to += got;
        offset += (uint64_t)got;
        bytes -= (uint64_t)got;
    }
    return RF_OK;
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* Whether something else than its content explains that a file's ctime moved: it was deleted,
 * linked, or given to somebody. What an open descriptor shows is not touched by that. */
static bool only_renamed_or_chmoded(const struct stat *was, const struct stat *is)
{
    return was->st_nlink != is->st_nlink || was->st_mode != is->st_mode ||
           was->st_uid != is->st_uid || was->st_gid != is->st_gid;
}

enum rf_code region_check(const struct region *region, struct rf_error *err)
{
    static const char way_out[] = "start the seed again, and leave files alone that are served";
    const struct stat *was = &region->stat;
    struct stat is;

    if (region->kind != REGION_FILE)
        return RF_OK;
    if (fstat(region->fd, &is) != 0)
        return rf_fail_sys(err, "fstat %s", region->name);
    if (is.st_ino != was->st_ino || is.st_dev != was->st_dev)
        return rf_fail(err, RF_E_CHANGED, "%s is another file now: %s", region->name, way_out);
    if (is.st_size != was->st_size)
        return rf_fail(err, RF_E_CHANGED, "%s changed its size from %jd to %jd bytes: %s",
                       region->name, (intmax_t)was->st_size, (intmax_t)is.st_size, way_out);
    if (!same_time(is.st_mtim, was->st_mtim))
        return rf_fail(err, RF_E_CHANGED,
                       "%s was written to %.3f s after the write it was opened with: %s",
                       region->name,
                       (double)(is.st_mtim.tv_sec - was->st_mtim.tv_sec) +
                           (double)(is.st_mtim.tv_nsec - was->st_mtim.tv_nsec) / 1e9,
                       way_out);
    if (!same_time(is.st_ctim, was->st_ctim) && !only_renamed_or_chmoded(was, &is))
        return rf_fail(err, RF_E_CHANGED, "%s was changed (its ctime moved, its mtime did not): %s",
                       region->name, way_out);
    return RF_OK;
}
