/* The folder of a model whose weights come from an SGLang server: what its files say of the ranks. */
#ifndef CONTROL_SGLANG_FOLDER_H
#define CONTROL_SGLANG_FOLDER_H

#include "control/sglang_ask.h"
#include "format/model_folder.h"
#include "model/config.h"

struct sglang_folder {
    struct model_folder folder; /* path is NULL: none */
    struct manifest *manifest;  /* identity and files; ranks too, if it has weight files */
    struct model_config *config;
};

/* Opens it and makes the ranks of the layout that fits the maps; of a folder without weight files
 * there are none. Errors: those of model_folder_open(), load_open(); RF_E_MISMATCH as
 * sglang_manifest_check(), about the layout that comes nearest. */
enum rf_code sglang_folder_open(const char *path, const struct weight_map *maps, uint32_t count,
                                uint32_t ep_size, struct sglang_folder *ret_folder,
                                struct rf_error *err);
void sglang_folder_close(struct sglang_folder *folder);
bool sglang_folder_has_weights(const struct sglang_folder *folder);

/* As sglang_seed_file(). */
enum rf_code sglang_folder_file(const struct sglang_folder *folder, uint32_t file, struct buf *out,
                                struct rf_error *err);

#endif
