/* Temporary folders and files for tests. All abort on failure, saying why. */
#ifndef TESTS_UTIL_FOLDER_H
#define TESTS_UTIL_FOLDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A new folder of mode 0755 below $TMPDIR or /tmp; the caller frees the path. */
char *folder_make(void);
/* Removes it with all that is in it, not following links, and frees the path. NULL is fine. */
void folder_remove(char *path);

/* folder/name, as if by printf, in memory that the caller frees. */
char *folder_path(const char *folder, const char *name);

void folder_put(const char *folder, const char *name, const void *data, size_t bytes);
void folder_put_text(const char *folder, const char *name, const char *text);
void folder_mkdir(const char *folder, const char *name);
void folder_link(const char *folder, const char *name, const char *target);
bool folder_has(const char *folder, const char *name);
/* How many entries it has, hidden ones too. */
unsigned folder_entries(const char *folder);

/* A safetensors file with this JSON header and so many data bytes, which count up from 0. */
void folder_put_tensors(const char *folder, const char *name, const char *json,
                        uint64_t data_bytes);

#endif
