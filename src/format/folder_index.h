/* model.safetensors.index.json: which tensor is in which file of a folder. For model_folder.c
 * alone. */
#ifndef FORMAT_FOLDER_INDEX_H
#define FORMAT_FOLDER_INDEX_H

#include "base/arena.h"
#include "base/error.h"
#include "base/strmap.h"

#define FOLDER_INDEX_NAME "model.safetensors.index.json"

enum {
    FOLDER_MAX_INDEX_BYTES = 512 << 20,
    FOLDER_MAX_INDEX_TENSORS = 16 * 1000 * 1000,
};

struct index_tensor {
    const char *name; /* in the arena */
    uint32_t name_bytes;
    uint32_t file; /* of folder_index.files */
};

struct folder_index {
    const char **files; /* sorted by name; each passes folder_name_ok() and ends in .safetensors */
    uint32_t file_count;
    struct index_tensor *tensors;
    uint32_t tensor_count;
    struct strmap *by_name; /* of tensors */
    struct arena arena;
};

/* Reads the text of an index. path is for error lines. Unknown members are skipped. Errors:
 * RF_E_FORMAT (not JSON, no weight_map, a tensor twice, a file name that would lead out of the
 * folder), RF_E_NOMEM. Free with folder_index_free(). */
enum rf_code folder_index_parse(const char *path, const char *text, size_t bytes,
                                struct folder_index *ret_index, struct rf_error *err);
void folder_index_free(struct folder_index *index);

#endif
