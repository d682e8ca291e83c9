#include "format/folder_list.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "format/folder_index.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct listing {
    const char *path; /* of the model folder */
    struct arena *arena;
    struct folder_list *list;
    char **subs; /* names of sub-folders still to list */
    size_t sub_count;
    size_t sub_room;
    struct rf_error *err;
};

static bool ends_with(const char *name, const char *suffix)
{
    size_t name_bytes = strlen(name);
    size_t suffix_bytes = strlen(suffix);

    return name_bytes > suffix_bytes && strcasecmp(name + name_bytes - suffix_bytes, suffix) == 0;
}

/* Weights in a format that we do not read: a fork does not need them, and they are as large as
 * those that it does. */
static bool is_other_weights(const char *name)
{
    static const char *const suffixes[] = {".bin", ".pt",      ".pth",  ".gguf",      ".h5",
                                           ".ot",  ".msgpack", ".onnx", ".onnx_data", ".ckpt"};

    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        if (ends_with(name, suffixes[i]))
            return true;
    }
    return false;
}

static enum rf_code fail_memory(struct listing *listing)
{
    return rf_fail(listing->err, RF_E_NOMEM, "%s: out of memory for the list of its files",
                   listing->path);
}

static enum rf_code add_side(struct listing *listing, char *name, uint64_t bytes)
{
    struct folder_list *list = listing->list;

    if (list->file_count == FOLDER_MAX_FILES) {
        return rf_fail(listing->err, RF_E_FORMAT,
                       "%s: more than %d files; is this the folder of one model?", listing->path,
                       FOLDER_MAX_FILES);
    }
    if (list->file_count == list->room) {
        size_t room = list->room * 2 + 16;
        struct folder_file *files = reallocarray(list->files, room, sizeof(*files));

        if (files == NULL)
            return fail_memory(listing);
        list->files = files;
        list->room = room;
    }
    list->files[list->file_count++] =
        (struct folder_file){.name = name, .kind = FOLDER_SIDE, .fd = -1, .bytes = bytes};
    return RF_OK;
}

static enum rf_code add_sub(struct listing *listing, char *name)
{
    if (listing->sub_count == listing->sub_room) {
        size_t room = listing->sub_room * 2 + 16;
        char **subs = reallocarray(listing->subs, room, sizeof(*subs));

        if (subs == NULL)
            return fail_memory(listing);
        listing->subs = subs;
        listing->sub_room = room;
    }
    listing->subs[listing->sub_count++] = name;
    return RF_OK;
}

/* A regular file; `name` is relative to the model folder. */
static enum rf_code add_file(struct listing *listing, char *name, bool in_sub, uint64_t bytes)
{
    struct folder_list *list = listing->list;

    if (ends_with(name, ".safetensors")) {
        if (!in_sub) {
            list->weights_count++;
            list->weights = name;
            list->model |= strcmp(name, "model.safetensors") == 0;
        }
        return RF_OK;
    }
    if (is_other_weights(name)) {
        list->other_weights = true;
        return RF_OK;
    }
    list->index |= strcmp(name, FOLDER_INDEX_NAME) == 0;
    if (bytes > FOLDER_MAX_SIDE_BYTES) {
        log_warn("side file left out: too large",
                 "folder=%s file=%s bytes=%" PRIu64 " limit_bytes=%d", listing->path, name, bytes,
                 FOLDER_MAX_SIDE_BYTES);
        return RF_OK;
    }
    if (!folder_name_ok(name)) {
        log_warn("side file left out: name", "folder=%s file=%s", listing->path, name);
        return RF_OK;
    }
    return add_side(listing, name, bytes);
}

/* Links are followed to files (Hugging Face caches are made of them), but not to folders: those can
 * lead anywhere, and in circles. */
static enum rf_code add_entry(struct listing *listing, int dir_fd, const char *sub,
                              const char *entry)
{
    struct stat st;

    size_t sub_bytes = sub != NULL ? strlen(sub) + 1 : 0;
    char *name = arena_alloc(listing->arena, sub_bytes + strlen(entry) + 1);
    if (name == NULL)
        return fail_memory(listing);
    sprintf(name, "%s%s%s", sub != NULL ? sub : "", sub != NULL ? "/" : "", entry);
    if (fstatat(dir_fd, entry, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno == ENOENT) /* removed since it was listed */
            return RF_OK;
        return rf_fail_sys(listing->err, "%s/%s", listing->path, name);
    }
    if (S_ISDIR(st.st_mode))
        return sub == NULL ? add_sub(listing, name) : RF_OK;
    if (S_ISLNK(st.st_mode) && fstatat(dir_fd, entry, &st, 0) != 0) {
        /* What the model cannot do without fails later, when it is opened. */
        if (ends_with(name, ".safetensors") || strcmp(name, FOLDER_INDEX_NAME) == 0)
            return add_file(listing, name, sub != NULL, 0);
        log_warn("side file left out: link leads nowhere", "folder=%s file=%s", listing->path,
                 name);
        return RF_OK;
    }
    if (!S_ISREG(st.st_mode))
        return RF_OK;
    return add_file(listing, name, sub != NULL, (uint64_t)st.st_size);
}

static enum rf_code list_one(struct listing *listing, const char *sub)
{
    rf_autofree char *path = NULL;

    if (asprintf(&path, "%s/%s", listing->path, sub != NULL ? sub : ".") < 0) {
        path = NULL;
        return fail_memory(listing);
    }
    DIR *dir = opendir(path);
    if (dir == NULL)
        return rf_fail_sys(listing->err, "open folder %s", path);
    enum rf_code code = RF_OK;
    while (code == RF_OK) {
        errno = 0;
        const struct dirent *entry = readdir(dir);

        if (entry == NULL) {
            if (errno != 0)
                code = rf_fail_sys(listing->err, "read folder %s", path);
            break;
        }
        if (entry->d_name[0] != '.')
            code = add_entry(listing, dirfd(dir), sub, entry->d_name);
    }
    closedir(dir);
    return code;
}

static int compare_files(const void *left, const void *right)
{
    const struct folder_file *a = left;
    const struct folder_file *b = right;

    return strcmp(a->name, b->name);
}

enum rf_code folder_list(const char *path, struct arena *arena, struct folder_list *ret_list,
                         struct rf_error *err)
{
    struct listing listing = {.path = path, .arena = arena, .list = ret_list, .err = err};

    *ret_list = (struct folder_list){.files = NULL};
    enum rf_code code = list_one(&listing, NULL);
    for (size_t i = 0; i < listing.sub_count && code == RF_OK; i++)
        code = list_one(&listing, listing.subs[i]);
    free(listing.subs);
    if (code == RF_OK && ret_list->file_count > 0)
        qsort(ret_list->files, ret_list->file_count, sizeof(*ret_list->files), compare_files);
    return code;
}
