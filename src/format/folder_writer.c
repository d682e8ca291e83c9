#include "base/cleanup.h"
#include "base/log.h"
#include "base/rand.h"
#include "format/model_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

/* A folder that we made. It stays open, so that what is created in it and removed from it is in it,
 * whatever somebody puts in the place of its name meanwhile. */
struct writer_dir {
    int fd;
    char *name;      /* relative to the temporary folder; of dirs[0]: the temporary folder's own */
    uint32_t parent; /* of dirs */
};

enum { WRITER_PART_BYTES = 48 };

/* Until the commit it has a name that is no model file's: whoever finds the temporary folder of a
 * process that was killed cannot load it. */
struct writer_file {
    int fd;
    char *name;                   /* relative to the temporary folder */
    uint32_t dir;                 /* of dirs */
    char part[WRITER_PART_BYTES]; /* what it is called in its folder until then; "" afterwards */
};

struct folder_writer {
    char *path; /* as given, without '/' at its end */
    int parent_fd;
    struct writer_dir *dirs;
    uint32_t dir_count;
    struct writer_file *files;
    uint32_t file_count;
    uint64_t random; /* in the temporary names: no model has files of these */
    bool committed;
};

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? slash + 1 : path;
}

static const char *name_now(const struct writer_file *file)
{
    return file->part[0] != '\0' ? file->part : last_part(file->name);
}

static bool file_has_name(const struct folder_writer *writer, const char *name)
{
    for (uint32_t i = 0; i < writer->file_count; i++) {
        if (strcmp(writer->files[i].name, name) == 0)
            return true;
    }
    return false;
}

static enum rf_code fail_memory(const struct folder_writer *writer, struct rf_error *err)
{
    return rf_fail(err, RF_E_NOMEM, "%s: out of memory", writer->path);
}

/* ---- create ---- */

static enum rf_code set_path(struct folder_writer *writer, const char *path, struct rf_error *err)
{
    writer->path = strdup(path);
    if (writer->path == NULL)
        return rf_fail(err, RF_E_NOMEM, "%s: out of memory", path);
    size_t bytes = strlen(writer->path);
    while (bytes > 1 && writer->path[bytes - 1] == '/')
        writer->path[--bytes] = '\0';
    const char *name = last_part(writer->path);
    if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return rf_fail(
            err, RF_E_INVAL,
            "\"%s\": cannot be replaced by a model's folder; give the path of a folder to "
            "create",
            path);
    }
    return RF_OK;
}

static enum rf_code open_parent(struct folder_writer *writer, struct rf_error *err)
{
    const char *name = last_part(writer->path);
    size_t bytes = (size_t)(name - writer->path);
    rf_autofree char *parent =
        bytes > 0 ? strndup(writer->path, bytes) : strdup("."); /* with its '/': may be the root */

    if (parent == NULL)
        return fail_memory(writer, err);
    writer->parent_fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (writer->parent_fd < 0)
        return rf_fail_sys(err, "%s: open folder %s, in which it is to be", writer->path, parent);
    return RF_OK;
}

static enum rf_code check_empty(const struct folder_writer *writer, struct rf_error *err)
{
    int fd = openat(writer->parent_fd, last_part(writer->path),
                    O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;

    if (dir == NULL) {
        enum rf_code code = rf_fail_sys(err, "open folder %s", writer->path);

        if (fd >= 0)
            close(fd);
        return code;
    }
    enum rf_code code = RF_OK;
    const struct dirent *entry;
    while (code == RF_OK && (entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            code = rf_fail(err, RF_E_INVAL,
                           "%s: the folder is not empty (it holds %s); remove it, or give another "
                           "path",
                           writer->path, entry->d_name);
        }
    }
    closedir(dir);
    return code;
}

/* A folder that is a mount point is empty only to the eye: rename() refuses it, and what we write
 * beside it would be on another disk. Told now, not after the transfer. */
static bool is_mount_point(const struct folder_writer *writer)
{
    struct statx target;
    struct statx parent;

    if (statx(writer->parent_fd, last_part(writer->path), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS,
              &target) != 0 ||
        statx(writer->parent_fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &parent) != 0)
        return false;
    /* The attribute (Linux 5.8) also knows folders bound to another place of the same disk. */
    return (target.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0 ||
           target.stx_dev_major != parent.stx_dev_major ||
           target.stx_dev_minor != parent.stx_dev_minor;
}

/* Only nothing and an empty folder may be replaced. */
static enum rf_code check_target(const struct folder_writer *writer, struct rf_error *err)
{
    struct stat st;

    if (fstatat(writer->parent_fd, last_part(writer->path), &st, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno == ENOENT)
            return RF_OK;
        return rf_fail_sys(err, "%s", writer->path);
    }
    if (!S_ISDIR(st.st_mode)) {
        return rf_fail(err, RF_E_INVAL, "%s: exists and is %s; remove it, or give another path",
                       writer->path, S_ISLNK(st.st_mode) ? "a link" : "not a folder");
    }
    if (is_mount_point(writer)) {
        return rf_fail(
            err, RF_E_INVAL,
            "%s: is a mount point and cannot be replaced; give the path of a folder below "
            "it",
            writer->path);
    }
    return check_empty(writer, err);
}

/* Makes a folder, opens it and adds it to those to remove. name is taken over. */
static enum rf_code add_dir(struct folder_writer *writer, int parent_fd, uint32_t parent,
                            char *name, struct rf_error *err)
{
    struct writer_dir *dirs =
        reallocarray(writer->dirs, writer->dir_count + 1, sizeof(*writer->dirs));
    enum rf_code code;

    if (dirs == NULL) {
        code = fail_memory(writer, err);
        goto fail_name;
    }
    writer->dirs = dirs;
    if (mkdirat(parent_fd, last_part(name), 0777) != 0) {
        code = rf_fail_sys(err, "%s: create folder %s", writer->path, name);
        goto fail_name;
    }
    int fd = openat(parent_fd, last_part(name), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        code = rf_fail_sys(err, "%s: open folder %s", writer->path, name);
        goto fail_mkdir;
    }
    dirs[writer->dir_count++] = (struct writer_dir){.fd = fd, .name = name, .parent = parent};
    return RF_OK;

fail_mkdir:
    unlinkat(parent_fd, last_part(name), AT_REMOVEDIR);
fail_name:
    free(name);
    return code;
}

static enum rf_code make_temporary(struct folder_writer *writer, struct rf_error *err)
{
    char *name = NULL;
    enum rf_code code = rand_bytes(&writer->random, sizeof(writer->random), err);

    if (code != RF_OK)
        return code;
    if (asprintf(&name, "%s.rfork-partial-%d-%016" PRIx64, last_part(writer->path), (int)getpid(),
                 writer->random) < 0)
        return fail_memory(writer, err);
    return add_dir(writer, writer->parent_fd, 0, name, err);
}

enum rf_code folder_writer_create(const char *path, struct folder_writer **ret_writer,
                                  struct rf_error *err)
{
    struct folder_writer *writer = malloc(sizeof(*writer));

    if (writer == NULL)
        return rf_fail(err, RF_E_NOMEM, "%s: out of memory", path);
    *writer = (struct folder_writer){.parent_fd = -1};
    enum rf_code code = set_path(writer, path, err);
    if (code == RF_OK)
        code = open_parent(writer, err);
    if (code == RF_OK)
        code = check_target(writer, err);
    if (code == RF_OK)
        code = make_temporary(writer, err);
    if (code != RF_OK) {
        folder_writer_destroy(writer);
        return code;
    }
    *ret_writer = writer;
    return RF_OK;
}

enum rf_code folder_writer_check(const char *path, struct rf_error *err)
{
    struct folder_writer writer = {.parent_fd = -1};
    enum rf_code code = set_path(&writer, path, err);

    if (code == RF_OK)
        code = open_parent(&writer, err);
    if (code == RF_OK)
        code = check_target(&writer, err);
    if (code == RF_OK && faccessat(writer.parent_fd, ".", W_OK | X_OK, AT_EACCESS) != 0)
        code = rf_fail_sys(err, "%s: no folder can be created there", writer.path);
    if (writer.parent_fd >= 0)
        close(writer.parent_fd);
    free(writer.path);
    return code;
}

/* ---- files ---- */

/* The folder of a file with this name, made where it is missing. */
static enum rf_code find_dir(struct folder_writer *writer, const char *name, uint32_t *ret_dir,
                             struct rf_error *err)
{
    uint32_t at = 0;

    for (const char *slash = strchr(name, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        size_t bytes = (size_t)(slash - name);
        uint32_t found = 1; /* dirs[0] is the temporary folder, whose name is of another kind */

        while (found < writer->dir_count && (strncmp(writer->dirs[found].name, name, bytes) != 0 ||
                                             writer->dirs[found].name[bytes] != '\0'))
            found++;
        if (found == writer->dir_count) {
            char *copy = strndup(name, bytes);

            if (copy == NULL)
                return fail_memory(writer, err);
            if (file_has_name(writer, copy)) {
                errno = EEXIST;
                enum rf_code taken = rf_fail_sys(err, "%s: create folder %s", writer->path, copy);

                free(copy);
                return taken;
            }
            enum rf_code code = add_dir(writer, writer->dirs[at].fd, at, copy, err);
            if (code != RF_OK)
                return code;
        }
        at = found;
    }
    *ret_dir = at;
    return RF_OK;
}

static enum rf_code fail_space(const struct folder_writer *writer, const char *name, int fd,
                               uint64_t bytes, struct rf_error *err)
{
    int saved = errno;
    struct statvfs fs;

    if (saved != ENOSPC || fstatvfs(fd, &fs) != 0) {
        errno = saved;
        return rf_fail_sys(err, "%s: reserve %" PRIu64 " bytes for %s", writer->path, bytes, name);
    }
    return rf_fail(err, RF_E_NOMEM,
                   "%s: the disk is full: %s needs %" PRIu64 " bytes, %" PRIu64
                   " are free; make room or give a path on another disk",
                   writer->path, name, bytes, (uint64_t)fs.f_bavail * fs.f_frsize);
}

/* Reserves the space now, so that a full disk shows before hours of transfer, not at their end. */
static enum rf_code reserve(const struct folder_writer *writer, const char *name, int fd,
                            uint64_t bytes, struct rf_error *err)
{
    struct statvfs fs;

    if (bytes == 0)
        return RF_OK;
    if (bytes > INT64_MAX)
        return rf_fail(err, RF_E_INVAL, "%s: %s: no file has %" PRIu64 " bytes", writer->path, name,
                       bytes);
    int result;
    do {
        result = fallocate(fd, 0, 0, (off_t)bytes);
    } while (result != 0 && errno == EINTR);
    if (result == 0)
        return RF_OK;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return fail_space(writer, name, fd, bytes, err);
    /* NFS before 4.2, ZFS and others cannot reserve: the free space as of now must do. (The C
     * library's posix_fallocate() would write every block instead.) */
    if (fstatvfs(fd, &fs) == 0 && bytes / fs.f_frsize > fs.f_bavail) {
        errno = ENOSPC;
        return fail_space(writer, name, fd, bytes, err);
    }
    if (ftruncate(fd, (off_t)bytes) != 0)
        return fail_space(writer, name, fd, bytes, err);
    return RF_OK;
}

static enum rf_code create_file(struct folder_writer *writer, const char *name,
                                struct writer_file *file, struct rf_error *err)
{
    struct stat st;

    snprintf(file->part, sizeof(file->part), ".rfork-%016" PRIx64 "-%" PRIu32, writer->random,
             writer->file_count);
    if (file_has_name(writer, name) ||
        fstatat(writer->dirs[file->dir].fd, last_part(name), &st, AT_SYMLINK_NOFOLLOW) == 0)
        return rf_fail(err, RF_E_INVAL, "%s: %s: a file or folder of that name is there already",
                       writer->path, name);
    file->fd = openat(writer->dirs[file->dir].fd, file->part,
                      O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (file->fd < 0)
        return rf_fail_sys(err, "%s: create %s%s", writer->path, name,
                           errno == EMFILE ? " (raise the limit of open files: ulimit -n)" : "");
    return RF_OK;
}

enum rf_code folder_writer_file(struct folder_writer *writer, const char *name, uint64_t bytes,
                                int *ret_fd, struct rf_error *err)
{
    struct writer_file file = {.fd = -1};

    if (!folder_name_ok(name)) {
        return rf_fail(err, RF_E_INVAL,
                       "%s: \"%.160s\" is not the name of a file inside the folder", writer->path,
                       name);
    }
    struct writer_file *files =
        reallocarray(writer->files, writer->file_count + 1, sizeof(*writer->files));
    if (files == NULL)
        return fail_memory(writer, err);
    writer->files = files;
    enum rf_code code = find_dir(writer, name, &file.dir, err);
    if (code != RF_OK)
        return code;
    file.name = strdup(name);
    if (file.name == NULL)
        return fail_memory(writer, err);
    code = create_file(writer, name, &file, err);
    if (code != RF_OK)
        goto fail_copy;
    code = reserve(writer, name, file.fd, bytes, err);
    if (code != RF_OK)
        goto fail_create;
    files[writer->file_count++] = file;
    *ret_fd = file.fd;
    return RF_OK;

fail_create:
    close(file.fd);
    unlinkat(writer->dirs[file.dir].fd, file.part, 0);
fail_copy:
    free(file.name);
    return code;
}

/* ---- commit and destroy ---- */

static enum rf_code flush(struct folder_writer *writer, struct rf_error *err)
{
    for (uint32_t i = 0; i < writer->file_count; i++) {
        /* Closed already by a commit that failed later. */
        if (writer->files[i].fd >= 0 && fsync(writer->files[i].fd) != 0)
            return rf_fail_sys(err, "%s: flush %s to disk", writer->path, writer->files[i].name);
    }
    for (uint32_t i = writer->dir_count; i > 0; i--) {
        if (fsync(writer->dirs[i - 1].fd) != 0)
            return rf_fail_sys(err, "%s: flush folder %s to disk", writer->path,
                               writer->dirs[i - 1].name);
    }
    return RF_OK;
}

/* close() is where some network file systems say that a write failed. */
static enum rf_code close_files(struct folder_writer *writer, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < writer->file_count; i++) {
        int fd = rf_take(writer->files[i].fd, -1);

        if (fd >= 0 && close(fd) != 0 && errno != EINTR && code == RF_OK)
            code = rf_fail_sys(err, "%s: close %s", writer->path, writer->files[i].name);
    }
    return code;
}

/* The files get their names, which they keep also if what follows fails. */
static enum rf_code name_files(struct folder_writer *writer, struct rf_error *err)
{
    for (uint32_t i = 0; i < writer->file_count; i++) {
        struct writer_file *file = &writer->files[i];
        int dir_fd = writer->dirs[file->dir].fd;

        if (file->part[0] == '\0')
            continue;
        if (renameat(dir_fd, file->part, dir_fd, last_part(file->name)) != 0)
            return rf_fail_sys(err, "%s: give %s its name", writer->path, file->name);
        file->part[0] = '\0';
    }
    return RF_OK;
}

static enum rf_code put_in_place(struct folder_writer *writer, struct rf_error *err)
{
    if (renameat(writer->parent_fd, writer->dirs[0].name, writer->parent_fd,
                 last_part(writer->path)) == 0) {
        writer->committed = true;
        return RF_OK;
    }
    if (errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR) {
        return rf_fail(
            err, RF_E_INVAL,
            "%s: something else was put there meanwhile; remove it, or give another path",
            writer->path);
    }
    if (errno == EBUSY)
        return rf_fail_sys(err, "%s: a mount point cannot be replaced; give a path below it",
                           writer->path);
    return rf_fail_sys(err, "%s: rename %s to it", writer->path, writer->dirs[0].name);
}

enum rf_code folder_writer_commit(struct folder_writer *writer, bool durable, struct rf_error *err)
{
    if (writer->committed)
        return rf_fail(err, RF_E_INVAL, "%s: committed already", writer->path);
    enum rf_code code = name_files(writer, err);
    if (code == RF_OK && durable)
        code = flush(writer, err);
    if (code == RF_OK)
        code = close_files(writer, err);
    if (code == RF_OK)
        code = put_in_place(writer, err);
    if (code == RF_OK && durable && fsync(writer->parent_fd) != 0)
        code = rf_fail_sys(err, "%s: is complete, but flushing the folder above it to disk failed",
                           writer->path);
    return code;
}

static void remove_all(struct folder_writer *writer)
{
    for (uint32_t i = 0; i < writer->file_count; i++) {
        const struct writer_file *file = &writer->files[i];

        if (unlinkat(writer->dirs[file->dir].fd, name_now(file), 0) != 0 && errno != ENOENT)
            log_warn("partial file left behind", "folder=%s file=%s errno=%d", writer->path,
                     file->name, errno);
    }
    for (uint32_t i = writer->dir_count; i > 0; i--) {
        const struct writer_dir *dir = &writer->dirs[i - 1];
        int above = i == 1 ? writer->parent_fd : writer->dirs[dir->parent].fd;

        if (unlinkat(above, last_part(dir->name), AT_REMOVEDIR) != 0 && errno != ENOENT)
            log_warn("partial folder left behind", "folder=%s name=%s errno=%d", writer->path,
                     dir->name, errno);
    }
}

void folder_writer_destroy(struct folder_writer *writer)
{
    if (writer == NULL)
        return;
    if (!writer->committed)
        remove_all(writer);
    for (uint32_t i = 0; i < writer->file_count; i++) {
        if (writer->files[i].fd >= 0)
            close(writer->files[i].fd);
        free(writer->files[i].name);
    }
    for (uint32_t i = 0; i < writer->dir_count; i++) {
        close(writer->dirs[i].fd);
        free(writer->dirs[i].name);
    }
    if (writer->parent_fd >= 0)
        close(writer->parent_fd);
    free(writer->files);
    free(writer->dirs);
    free(writer->path);
    free(writer);
}
