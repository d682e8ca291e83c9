#include "memory/available.h"

#include "base/cleanup.h"
#include "memory/region.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* memory.stat is the longest of these files: some 60 lines. */
enum { FILE_TEXT_BYTES = 16 * 1024 };

/* Where one version of the cgroup interface keeps what we need. */
struct cgroup_files {
    const char *mount;
    const char *limit;
    const char *soft_limit; /* NULL if it has none: above it the kernel stalls whoever allocates */
    const char *used;
    const char *inactive_key;
    const char *active_key;
};

static const struct cgroup_files cgroup_v2 = {
    "/sys/fs/cgroup", "memory.max",     "memory.high",
    "memory.current", "inactive_file ", "active_file ",
};
static const struct cgroup_files cgroup_v1 = {
    "/sys/fs/cgroup/memory", "memory.limit_in_bytes", NULL,
    "memory.usage_in_bytes", "total_inactive_file ",  "total_active_file ",
};

static bool read_text(const char *path, char text[FILE_TEXT_BYTES])
{
    rf_autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t bytes = 0;

    if (fd < 0)
        return false;
    while (bytes < FILE_TEXT_BYTES - 1) {
        ssize_t got = read(fd, text + bytes, FILE_TEXT_BYTES - 1 - bytes);
        if (got < 0)
            return false;
        if (got == 0)
            break;
        bytes += (size_t)got;
    }
    text[bytes] = '\0';
    return true;
}

/* The number at `text`; UINT64_MAX for "max", for no number and for one that is too large. */
static uint64_t number_at(const char *text)
{
    uint64_t value = 0;

    while (*text == ' ' || *text == '\t')
        text++;
    if (*text < '0' || *text > '9')
        return UINT64_MAX;
    for (; *text >= '0' && *text <= '9'; text++) {
        if (__builtin_mul_overflow(value, UINT64_C(10), &value) ||
            __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
            return UINT64_MAX;
    }
    return value;
}

/* The number after `key` at the beginning of a line; UINT64_MAX if there is none. */
static uint64_t number_of(const char *text, const char *key)
{
    size_t bytes = strlen(key);

    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, key, bytes) == 0)
            return number_at(line + bytes);
        line = strchr(line, '\n');
        if (line != NULL)
            line++;
    }
    return UINT64_MAX;
}

static uint64_t number_in(const char *folder, const char *file)
{
    char path[PATH_MAX];
    char text[FILE_TEXT_BYTES];

    if (snprintf(path, sizeof path, "%s/%s", folder, file) >= (int)sizeof path ||
        !read_text(path, text))
        return UINT64_MAX;
    return number_at(text);
}

/* What one cgroup leaves. Its page cache counts as free: the kernel drops it before it kills. */
static uint64_t cgroup_left(const char *folder, const struct cgroup_files *files)
{
    char path[PATH_MAX];
    char text[FILE_TEXT_BYTES];

    uint64_t limit = number_in(folder, files->limit);
    uint64_t soft_limit = files->soft_limit ? number_in(folder, files->soft_limit) : UINT64_MAX;
    uint64_t used = number_in(folder, files->used);

    limit = soft_limit < limit ? soft_limit : limit;
    if (limit == UINT64_MAX || used == UINT64_MAX)
        return UINT64_MAX;
    if (snprintf(path, sizeof path, "%s/memory.stat", folder) < (int)sizeof path &&
        read_text(path, text)) {
        uint64_t inactive = number_of(text, files->inactive_key);
        uint64_t active = number_of(text, files->active_key);
        uint64_t cache = inactive == UINT64_MAX ? 0 : inactive;
        if (active == UINT64_MAX || __builtin_add_overflow(cache, active, &cache) || cache > used)
            cache = 0;
        used -= cache;
    }
    return used < limit ? limit - used : 0;
}

/* The least of what a cgroup and those above it leave. */
static uint64_t cgroups_left(const char *root, const struct cgroup_files *files, const char *cgroup)
{
    char folder[PATH_MAX];
    uint64_t least = UINT64_MAX;

    int mount_bytes = snprintf(folder, sizeof folder, "%s%s", root, files->mount);
    if (mount_bytes < 0 || (size_t)mount_bytes + strlen(cgroup) >= sizeof folder)
        return UINT64_MAX;
    /* Seen from a container the path may be the host's, of which only the last part is mounted
     * here: what does not exist sets no limit, and the mount itself is looked at last. */
    if (strstr(cgroup, "..") == NULL)
        memcpy(folder + mount_bytes, cgroup, strlen(cgroup) + 1);
    for (;;) {
        uint64_t left = cgroup_left(folder, files);
        least = left < least ? left : least;
        char *slash = strrchr(folder, '/');
        if (slash == NULL || slash - folder < mount_bytes)
            return least;
        *slash = '\0';
    }
}

/* A line of /proc/self/cgroup: "0::/path" (v2), "4:memory:/path" or "5:cpu,memory:/path" (v1). */
static bool cgroup_line(const char *line, const struct cgroup_files **ret_files)
{
    const char *controllers = strchr(line, ':');

    if (controllers == NULL)
        return false;
    controllers++;
    if (*controllers == ':') {
        *ret_files = &cgroup_v2;
        return true;
    }
    *ret_files = &cgroup_v1;
    for (const char *at = controllers; *at != '\0' && *at != ':';) {
        size_t bytes = strcspn(at, ",:");
        if (bytes == strlen("memory") && memcmp(at, "memory", bytes) == 0)
            return true;
        at += bytes;
        if (*at == ',')
            at++;
    }
    return false;
}

static uint64_t meminfo_available(const char *root)
{
    char path[PATH_MAX];
    char text[FILE_TEXT_BYTES];

    if (snprintf(path, sizeof path, "%s/proc/meminfo", root) >= (int)sizeof path ||
        !read_text(path, text))
        return UINT64_MAX;
    uint64_t kib = number_of(text, "MemAvailable:");
    return kib > UINT64_MAX / 1024 ? UINT64_MAX : kib * 1024;
}

uint64_t memory_available_under(const char *root)
{
    char path[PATH_MAX];
    char text[FILE_TEXT_BYTES];
    char *rest = text;

    uint64_t least = meminfo_available(root);
    if (snprintf(path, sizeof path, "%s/proc/self/cgroup", root) >= (int)sizeof path ||
        !read_text(path, text))
        return least;
    for (char *line = strsep(&rest, "\n"); line != NULL; line = strsep(&rest, "\n")) {
        const struct cgroup_files *files = NULL;
        if (!cgroup_line(line, &files))
            continue;
        const char *cgroup = strchr(strchr(line, ':') + 1, ':');
        uint64_t left = cgroup != NULL ? cgroups_left(root, files, cgroup + 1) : UINT64_MAX;
        least = left < least ? left : least;
    }
    return least;
}

uint64_t memory_available(void)
{
    uint64_t bytes = memory_available_under("");

    if (bytes != UINT64_MAX)
        return bytes;
    /* Without /proc the best guess is all there is. */
    long pages = sysconf(_SC_PHYS_PAGES);
    return pages > 0 ? (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE) : UINT64_MAX;
}
