#include "util/folder.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void require(bool holds, const char *what, const char *path)
{
    if (!holds) {
        (void)fprintf(stderr, "%s %s: %s\n", what, path, strerror(errno));
        abort();
    }
}

char *folder_make(void)
{
    const char *above = getenv("TMPDIR");
    char *path = folder_path(above != NULL ? above : "/tmp", "rfork-test-XXXXXX");

    require(mkdtemp(path) != NULL, "mkdtemp", path);
    require(chmod(path, 0755) == 0, "chmod", path);
    return path;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    require(remove(path) == 0, "remove", path);
    return 0;
}

void folder_remove(char *path)
{
    if (path == NULL)
        return;
    require(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0, "nftw", path);
    free(path);
}

char *folder_path(const char *folder, const char *name)
{
    char *path = NULL;

    require(asprintf(&path, "%s/%s", folder, name) >= 0, "asprintf", name);
    return path;
}

void folder_put(const char *folder, const char *name, const void *data, size_t bytes)
{
    char *path = folder_path(folder, name);
    FILE *out = fopen(path, "we");

    require(out != NULL, "create", path);
    require(fwrite(data, 1, bytes, out) == bytes, "write", path);
    require(fclose(out) == 0, "close", path);
    free(path);
}

void folder_put_text(const char *folder, const char *name, const char *text)
{
    folder_put(folder, name, text, strlen(text));
}

void folder_mkdir(const char *folder, const char *name)
{
    char *path = folder_path(folder, name);

    require(mkdir(path, 0755) == 0, "mkdir", path);
    free(path);
}

void folder_link(const char *folder, const char *name, const char *target)
{
    char *path = folder_path(folder, name);

    require(symlink(target, path) == 0, "symlink", path);
    free(path);
}

bool folder_has(const char *folder, const char *name)
{
    char *path = folder_path(folder, name);
    struct stat st;
    bool has = lstat(path, &st) == 0;

    free(path);
    return has;
}

unsigned folder_entries(const char *folder)
{
    DIR *dir = opendir(folder);
    unsigned count = 0;

    require(dir != NULL, "opendir", folder);
    for (const struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir))
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    (void)closedir(dir);
    return count;
}

void folder_put_tensors(const char *folder, const char *name, const char *json, uint64_t data_bytes)
{
    uint64_t json_bytes = strlen(json);
    uint64_t length = htole64(json_bytes);
    size_t bytes = sizeof(length) + json_bytes + data_bytes;
    uint8_t *file = malloc(bytes);

    require(file != NULL, "malloc", name);
    memcpy(file, &length, sizeof(length));
    memcpy(file + sizeof(length), json, json_bytes);
    for (uint64_t i = 0; i < data_bytes; i++)
        file[sizeof(length) + json_bytes + i] = (uint8_t)i;
    folder_put(folder, name, file, bytes);
    free(file);
}
