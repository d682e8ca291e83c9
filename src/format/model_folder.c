#include "format/model_folder.h"

#include "base/cleanup.h"
#include "base/thread.h"
#include "format/folder_index.h"
#include "format/folder_list.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Headers are read with more threads than processors: on a network file system they wait. */
enum { FOLDER_READ_THREADS = 16 };

struct opening {
    struct model_folder folder;
    bool single; /* folder.path is the weights file itself */
    bool any;    /* weights may be missing altogether */
    struct folder_index index;
    bool indexed;
};

static enum rf_code join_path(const struct opening *opening, const char *name, char **ret_path,
                              struct rf_error *err)
{
    char *path = NULL;
    int bytes = opening->single ? asprintf(&path, "%s", opening->folder.path)
                                : asprintf(&path, "%s/%s", opening->folder.path, name);

    if (bytes < 0) {
        (void)rf_fail(err, RF_E_NOMEM, "%s: out of memory", name);
        return RF_E_NOMEM;
    }
    *ret_path = path;
    return RF_OK;
}

static enum rf_code fail_open(const char *path, struct rf_error *err)
{
    int saved = errno;
    struct stat st;

    if (saved == ENOENT && lstat(path, &st) == 0 && S_ISLNK(st.st_mode)) {
        return rf_fail(err, RF_E_FORMAT,
                       "%s: is a link to a file that is not there; download the model again", path);
    }
    errno = saved;
    if (saved == EMFILE)
        return rf_fail_sys(err, "open %s (raise the limit of open files: ulimit -n)", path);
    return rf_fail_sys(err, "open %s", path);
}

/* Opens for reading what must be a regular file; O_NONBLOCK because opening a pipe would wait. */
static enum rf_code open_regular(const char *path, int *ret_fd, uint64_t *ret_bytes,
                                 struct rf_error *err)
{
    rf_autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;

    if (fd < 0)
        return fail_open(path, err);
    if (fstat(fd, &st) != 0)
        return rf_fail_sys(err, "fstat %s", path);
    if (!S_ISREG(st.st_mode))
        return rf_fail(err, RF_E_FORMAT, "%s: not a regular file", path);
    *ret_bytes = (uint64_t)st.st_size;
    *ret_fd = rf_take(fd, -1);
    return RF_OK;
}

/* Reads a file that may change meanwhile; what it gets is NUL-terminated. */
static enum rf_code read_file(const char *path, uint64_t max_bytes, char **ret_data,
                              size_t *ret_bytes, struct rf_error *err)
{
    rf_autoclose int fd = -1;
    uint64_t bytes = 0;
    size_t done = 0;
    enum rf_code code = open_regular(path, &fd, &bytes, err);

    if (code != RF_OK)
        return code;
    if (bytes > max_bytes) {
        return rf_fail(err, RF_E_FORMAT, "%s: %" PRIu64 " bytes, more than %" PRIu64, path, bytes,
                       max_bytes);
    }
    rf_autofree char *data = malloc((size_t)bytes + 1);
    if (data == NULL)
        return rf_fail(err, RF_E_NOMEM, "%s: out of memory for %" PRIu64 " bytes", path, bytes);
    while (done < bytes) {
        ssize_t got = read(fd, data + done, (size_t)bytes - done);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return rf_fail_sys(err, "read %s", path);
        if (got == 0)
            break;
        done += (size_t)got;
    }
    data[done] = '\0';
    *ret_bytes = done;
    *ret_data = rf_take(data, NULL);
    return RF_OK;
}

/* ---- the weights ---- */

enum rf_code model_folder_header(const struct folder_file *file, uint8_t *data,
                                 struct rf_error *err)
{
    uint64_t bytes = file->header.data_offset;

    for (uint64_t done = 0; done < bytes;) {
        ssize_t got = pread(file->fd, data + done, bytes - done, (off_t)done);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return rf_fail_sys(err, "read %s at %" PRIu64, file->name, done);
        if (got == 0)
            return rf_fail(err, RF_E_CHANGED,
                           "%s: ends at byte %" PRIu64 ", its header goes to %" PRIu64, file->name,
                           done, bytes);
        done += (uint64_t)got;
    }
    return RF_OK;
}

static enum rf_code read_weights(void *ctx, uint64_t item, struct rf_error *err)
{
    struct opening *opening = ctx;
    struct folder_file *file = &opening->folder.files[item];
    rf_autofree char *path = NULL;
    enum rf_code code = join_path(opening, file->name, &path, err);

    if (code == RF_OK)
        code = open_regular(path, &file->fd, &file->bytes, err);
    if (code == RF_OK)
        code = st_header_read(path, file->fd, file->bytes, &file->header, err);
    return code;
}

/* Files that the index names must be there: counted, because half a download is the usual
 * reason. */
static enum rf_code check_present(struct opening *opening, struct rf_error *err)
{
    const struct model_folder *folder = &opening->folder;
    const char *first = NULL;
    uint32_t missing = 0;
    struct stat st;

    for (uint32_t i = 0; i < folder->weights_count; i++) {
        rf_autofree char *path = NULL;
        enum rf_code code = join_path(opening, folder->files[i].name, &path, err);

        if (code != RF_OK)
            return code;
        if (lstat(path, &st) != 0 && (errno == ENOENT || errno == ENOTDIR)) {
            first = first == NULL ? folder->files[i].name : first;
            missing++;
        }
    }
    if (missing == 0)
        return RF_OK;
    return rf_fail(err, RF_E_FORMAT,
                   "%s: %" PRIu32 " of the %" PRIu32 " files that " FOLDER_INDEX_NAME
                   " names are missing, the first is %s; finish the download",
                   folder->path, missing, folder->weights_count, first);
}

/* Weights first, then side files. names are those of the weights; side->files is taken over. */
static enum rf_code set_files(struct opening *opening, const char *const *names, uint32_t count,
                              struct folder_list *side, struct rf_error *err)
{
    struct model_folder *folder = &opening->folder;
    uint32_t total = count + side->file_count;

    if (total > FOLDER_MAX_FILES)
        return rf_fail(err, RF_E_FORMAT, "%s: more than %d files", folder->path, FOLDER_MAX_FILES);
    folder->files = calloc((size_t)total + 1, sizeof(*folder->files));
    if (folder->files == NULL)
        return rf_fail(err, RF_E_NOMEM, "%s: out of memory for %" PRIu32 " files", folder->path,
                       total);
    for (uint32_t i = 0; i < count; i++) {
        const char *name = arena_strndup(&folder->arena, names[i], strlen(names[i]));

        if (name == NULL)
            return rf_fail(err, RF_E_NOMEM, "%s: out of memory", folder->path);
        folder->files[folder->file_count++] =
            (struct folder_file){.name = name, .kind = FOLDER_WEIGHTS, .fd = -1};
    }
    folder->weights_count = count;
    for (uint32_t i = 0; i < side->file_count; i++) {
        folder->files[folder->file_count++] = side->files[i];
        folder->side_bytes += side->files[i].bytes;
    }
    return RF_OK;
}

static enum rf_code fail_choice(const char *path, const struct folder_list *list,
                                struct rf_error *err)
{
    if (list->weights_count > 1) {
        return rf_fail(err, RF_E_FORMAT,
                       "%s: %" PRIu32
                       " .safetensors files, but neither model.safetensors nor " FOLDER_INDEX_NAME
                       "; finish the download, or name one of the files",
                       path, list->weights_count);
    }
    return rf_fail(err, RF_E_FORMAT, "%s: no .safetensors file in this folder%s", path,
                   list->other_weights ? "; its weights are in another format: convert them"
                                       : "; is it the folder of a model?");
}

/* Which weight files belong to the model. */
static enum rf_code choose_files(struct opening *opening, struct folder_list *list,
                                 struct rf_error *err)
{
    struct model_folder *folder = &opening->folder;
    rf_autofree char *path = NULL;
    rf_autofree char *text = NULL;
    const char *only = list->model ? "model.safetensors" : list->weights;
    size_t bytes = 0;

    if (!list->index) {
        if (opening->any && list->weights_count == 0)
            return set_files(opening, NULL, 0, list, err);
        if (!list->model && list->weights_count != 1)
            return fail_choice(folder->path, list, err);
        return set_files(opening, &only, 1, list, err);
    }
    enum rf_code code = join_path(opening, FOLDER_INDEX_NAME, &path, err);
    if (code == RF_OK)
        code = read_file(path, FOLDER_MAX_INDEX_BYTES, &text, &bytes, err);
    if (code == RF_OK)
        code = folder_index_parse(path, text, bytes, &opening->index, err);
    if (code != RF_OK)
        return code;
    opening->indexed = true;
    code = set_files(opening, opening->index.files, opening->index.file_count, list, err);
    return code == RF_OK ? check_present(opening, err) : code;
}

/* ---- the index against the headers ---- */

static enum rf_code check_file(struct opening *opening, uint32_t at, bool *seen,
                               struct rf_error *err)
{
    const struct model_folder *folder = &opening->folder;
    const struct folder_file *file = &folder->files[at];
    const struct folder_index *index = &opening->index;

    for (uint32_t i = 0; i < file->header.tensor_count; i++) {
        const struct st_tensor *tensor = &file->header.tensors[i];
        uint32_t entry = 0;

        if (!strmap_find(index->by_name, tensor->name, tensor->name_bytes, &entry)) {
            return rf_fail(err, RF_E_FORMAT,
                           "%s: tensor \"%.120s\": is in %.100s, but " FOLDER_INDEX_NAME
                           " does not name it; the files do not belong together: download them "
                           "again",
                           folder->path, tensor->name, file->name);
        }
        if (index->tensors[entry].file != at) {
            return rf_fail(err, RF_E_FORMAT,
                           "%s: tensor \"%.120s\": is in %.80s, but " FOLDER_INDEX_NAME
                           " says it is in %.80s; a tensor must be in one file only, the one named "
                           "there",
                           folder->path, tensor->name, file->name,
                           index->files[index->tensors[entry].file]);
        }
        seen[entry] = true;
    }
    return RF_OK;
}

static enum rf_code check_index(struct opening *opening, struct rf_error *err)
{
    const struct folder_index *index = &opening->index;
    const struct model_folder *folder = &opening->folder;
    rf_autofree bool *seen = calloc(index->tensor_count, sizeof(*seen));

    if (seen == NULL)
        return rf_fail(err, RF_E_NOMEM, "%s: out of memory for %" PRIu32 " tensors", folder->path,
                       index->tensor_count);
    for (uint32_t i = 0; i < folder->weights_count; i++) {
        enum rf_code code = check_file(opening, i, seen, err);

        if (code != RF_OK)
            return code;
    }
    for (uint32_t i = 0; i < index->tensor_count; i++) {
        if (!seen[i]) {
            return rf_fail(err, RF_E_FORMAT,
                           "%s: tensor \"%.120s\": " FOLDER_INDEX_NAME
                           " says it is in %.100s, which does not hold it; the files do not belong "
                           "together: download them again",
                           folder->path, index->tensors[i].name,
                           index->files[index->tensors[i].file]);
        }
    }
    return RF_OK;
}

/* ---- opening and closing ---- */

static enum rf_code find_files(struct opening *opening, struct rf_error *err)
{
    struct model_folder *folder = &opening->folder;
    struct folder_list list = {.files = NULL};
    enum rf_code code;

    if (opening->single) {
        const char *slash = strrchr(folder->path, '/');
        const char *name = slash != NULL ? slash + 1 : folder->path;

        return set_files(opening, &name, 1, &list, err);
    }
    code = folder_list(folder->path, &folder->arena, &list, err);
    if (code == RF_OK)
        code = choose_files(opening, &list, err);
    free(list.files);
    return code;
}

static enum rf_code start(struct opening *opening, const char *path, struct rf_error *err)
{
    struct model_folder *folder = &opening->folder;
    struct stat st;

    if (stat(path, &st) != 0)
        return fail_open(path, err);
    if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode))
        return rf_fail(err, RF_E_FORMAT, "%s: neither a folder nor a regular file", path);
    opening->single = S_ISREG(st.st_mode);
    folder->path = strdup(path);
    if (folder->path == NULL)
        return rf_fail(err, RF_E_NOMEM, "%s: out of memory", path);
    size_t bytes = strlen(folder->path);
    while (bytes > 1 && folder->path[bytes - 1] == '/')
        folder->path[--bytes] = '\0';
    return RF_OK;
}

static enum rf_code open_folder(const char *path, bool any, struct model_folder *ret_folder,
                                struct rf_error *err)
{
    struct opening opening = {.any = any};
    struct model_folder *folder = &opening.folder;
    enum rf_code code = start(&opening, path, err);

    if (code == RF_OK)
        code = find_files(&opening, err);
    if (code == RF_OK && folder->weights_count > 0) {
        unsigned threads = folder->weights_count < FOLDER_READ_THREADS ? folder->weights_count
                                                                       : FOLDER_READ_THREADS;
        code = thread_parallel(threads, folder->weights_count, read_weights, &opening, err);
    }
    if (code == RF_OK && opening.indexed)
        code = check_index(&opening, err);
    folder_index_free(&opening.index);
    if (code != RF_OK) {
        model_folder_close(folder);
        return code;
    }
    for (uint32_t i = 0; i < folder->weights_count; i++)
        folder->weights_bytes += folder->files[i].bytes;
    *ret_folder = *folder;
    return RF_OK;
}

enum rf_code model_folder_open(const char *path, struct model_folder *ret_folder,
                               struct rf_error *err)
{
    return open_folder(path, false, ret_folder, err);
}

enum rf_code model_folder_open_any(const char *path, struct model_folder *ret_folder,
                                   struct rf_error *err)
{
    return open_folder(path, true, ret_folder, err);
}

void model_folder_close(struct model_folder *folder)
{
    for (uint32_t i = 0; i < folder->file_count; i++) {
        if (folder->files[i].fd >= 0)
            close(folder->files[i].fd);
        st_header_free(&folder->files[i].header);
    }
    free(folder->files);
    free(folder->path);
    arena_free(&folder->arena);
    *folder = (struct model_folder){.path = NULL};
}

enum rf_code model_folder_read(const struct model_folder *folder, const struct folder_file *file,
                               char **ret_data, size_t *ret_bytes, struct rf_error *err)
{
    rf_autofree char *path = NULL;
    rf_autofree char *data = NULL;
    size_t bytes = 0;

    if (file->kind != FOLDER_SIDE)
        return rf_fail(err, RF_E_INVAL, "%s: not a side file", file->name);
    if (asprintf(&path, "%s/%s", folder->path, file->name) < 0) {
        path = NULL;
        return rf_fail(err, RF_E_NOMEM, "%s: out of memory", file->name);
    }
    enum rf_code code = read_file(path, FOLDER_MAX_SIDE_BYTES, &data, &bytes, err);
    if (code != RF_OK)
        return code;
    if (bytes != file->bytes) {
        return rf_fail(err, RF_E_CHANGED,
                       "%s: had %" PRIu64 " bytes when the model was opened, has %zu now; open the "
                       "model again",
                       path, file->bytes, bytes);
    }
    *ret_bytes = bytes;
    *ret_data = rf_take(data, NULL);
    return RF_OK;
}
