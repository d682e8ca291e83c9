/* A model that the command line names: a seed by its URL, a folder, or a .safetensors file. What
 * inspect, diff and verify look at. One thread at a time per subject; calls end within their
 * deadlines or when a signal comes. */
#ifndef CLI_SUBJECT_H
#define CLI_SUBJECT_H

#include "cli/transfer.h"
#include "control/sglang_seed.h"
#include "format/model_folder.h"
#include "seed/load.h"

struct subject {
    const char *text; /* as on the command line; borrowed */
    struct look_options options;
    struct manifest *manifest;
    /* of a seed */
    struct client *client; /* NULL: it is a folder or file */
    struct instance_info info;
    struct sglang_options sglang_options;
    struct sglang_seed *sglang; /* NULL: a seed of ours; else one without digests */
    /* of a folder or file: over the files themselves, nothing is held in memory but what ranks are
     * made of */
    struct store *store;
    /* of one that is cut into ranks: loaded when its bytes are asked for */
    struct model_folder *folder;
    struct load *load;
};

/* "http://...", or HOST:PORT where there is no such file. */
bool subject_is_url(const char *text);

/* Opens and reads headers, no weights. like: whose algorithm and chunk size a folder's digests
 * shall have; NULL for the defaults. Close also after a failure. Errors: those of client_*,
 * model_folder_open(), load_folder(). */
enum rf_code subject_open(const char *text, const struct look_options *options,
                          const struct manifest *like, struct subject *ret_subject,
                          struct rf_error *err);
/* The same with algorithm and chunk size given; 0 for the defaults. */
enum rf_code subject_open_as(const char *text, const struct look_options *options,
                             enum hash_algorithm algorithm, uint32_t chunk_bytes,
                             struct subject *ret_subject, struct rf_error *err);
/* A folder cut into ranks, with the defaults. No weights are read before their bytes are asked for.
 * shards is borrowed until subject_close(). */
enum rf_code subject_open_shards(const char *path, const struct load_shards *shards,
                                 struct subject *ret_subject, struct rf_error *err);
void subject_close(struct subject *subject);

/* Model root: reads every byte of a folder; of a seed fetches the chunk digests, waiting while
 * it still makes them. RF_E_UNSUPPORTED: the seed has none. */
enum rf_code subject_root(struct subject *subject, uint8_t ret_root[HASH_MAX_BYTES],
                          struct rf_error *err);

/* Digests of a rank's tensors, made anew: reads every byte, here or at the seed. The caller
 * destroys *ret_table. RF_E_UNSUPPORTED: the seed has none. */
enum rf_code subject_tensor_digests(struct subject *subject, uint32_t rank,
                                    struct digest_table **ret_table, struct rf_error *err);

/* Bytes and number of tensors of each dtype, all ranks; [RF_DTYPE_COUNT]. */
struct subject_dtype {
    uint64_t tensors;
    uint64_t bytes;
};
uint64_t subject_dtypes(const struct manifest *manifest,
                        struct subject_dtype ret_dtypes[RF_DTYPE_COUNT]);

#endif
