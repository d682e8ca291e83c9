/* Filling a store from a model folder: into shared memory, or straight from the page cache. */
#ifndef SEED_LOAD_H
#define SEED_LOAD_H

#include "format/model_folder.h"
#include "model/store.h"

enum load_memory {
    LOAD_MEMFD, /* read into shared memory: sealed, can be mapped by others */
    LOAD_FILES, /* --mmap: served from the page cache; no load time, no memory of our own */
};

struct load_options {
    enum load_memory memory;
    bool direct;      /* O_DIRECT where possible */
    unsigned threads; /* 0: up to 8 */
    uint32_t chunk_bytes;
    enum hash_algorithm algorithm; /* 0: XXH3-128 */
    const char *model_name;        /* NULL: from the folder's name */
    region_progress_fn progress;   /* may be NULL; called from the reading threads */
    void *progress_ctx;
};

/* What load_folder() will take, before it takes it. */
struct load_needs {
    uint64_t memory_bytes;
    uint64_t available_bytes;
    uint64_t tensor_bytes;
    uint32_t tensor_count;
};
void load_needs(const struct model_folder *folder, const struct load_options *options,
                struct load_needs *ret_needs);

/* Errors: RF_E_NOMEM (needs and what is available), RF_E_CHANGED (a file shrank meanwhile),
 * RF_E_SYS, RF_E_FORMAT. */
enum rf_code load_folder(const struct model_folder *folder, const struct load_options *options,
                         struct store **ret_store, struct rf_error *err);

/* The manifest alone (no bytes read but headers and side files): what inspect and diff need. */
enum rf_code load_manifest(const struct model_folder *folder, const struct load_options *options,
                           struct manifest **ret_manifest, struct rf_error *err);

#endif
