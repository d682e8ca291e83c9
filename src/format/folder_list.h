/* What lies in a folder beside the weights. For model_folder.c alone. */
#ifndef FORMAT_FOLDER_LIST_H
#define FORMAT_FOLDER_LIST_H

#include "format/model_folder.h"

struct folder_list {
    struct folder_file *files; /* side files; names are in the arena of the folder */
    uint32_t file_count;
    size_t room;
    /* *.safetensors directly in the folder, links followed: what to open when there is no index. */
    uint32_t weights_count;
    const char *weights; /* one of them */
    bool model;          /* one of them is model.safetensors */
    bool index;          /* model.safetensors.index.json is there */
    bool other_weights;  /* *.bin, *.gguf and the like */
};

/* Lists the folder `path` and one level of sub-folders; names go into arena. On failure, too,
 * the caller frees ret_list->files. Errors: RF_E_SYS, RF_E_DENIED, RF_E_FORMAT (too many files),
 * RF_E_NOMEM. */
enum rf_code folder_list(const char *path, struct arena *arena, struct folder_list *ret_list,
                         struct rf_error *err);

#endif
