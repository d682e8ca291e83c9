/* Filling a store from a model folder: into shared memory, or straight from the page cache; as the
 * checkpoint that it is, or cut into tensor-parallel ranks.
 *
 * What lies in one piece in a file is a view of the file, or of the memory that it was read into:
 * no byte is held twice, however many ranks show it. Only what must be put together, row by row,
 * in another dtype, or is a constant, is made, in memory, while its file is read. */
#ifndef SEED_LOAD_H
#define SEED_LOAD_H

#include "format/model_folder.h"
#include "model/plan.h"
#include "model/store.h"

enum load_memory {
    LOAD_MEMFD, /* read into shared memory: sealed, can be mapped by others */
    LOAD_FILES, /* --mmap: served from the page cache; no memory of our own but for what is made */
};

/* Which ranks to hold. */
struct load_shards {
    uint32_t tp_size;
    uint32_t ep_size;      /* as in struct shard_request */
    const uint32_t *ranks; /* [rank_count] tp numbers; NULL: all */
    uint32_t rank_count;
    const char *layout;      /* "checkpoint", or one of the plan's */
    const struct plan *plan; /* NULL: the built-in one of the architecture in config.json */
};

struct load_options {
    enum load_memory memory;
    bool direct;      /* O_DIRECT where possible */
    unsigned threads; /* 0: up to 8 */
    uint32_t chunk_bytes;
    enum hash_algorithm algorithm;    /* 0: XXH3-128 */
    const char *model_name;           /* NULL: from the folder's name */
    const struct load_shards *shards; /* NULL: one rank, the tensors as they are in the files */
    region_progress_fn progress;      /* may be NULL; called from the reading threads */
    void *progress_ctx;
};

struct load_needs {
    uint64_t memory_bytes; /* taken in all: weights, headers, side files */
    uint64_t available_bytes;
    uint64_t viewed_bytes; /* of the files, shown by ranks where they are */
    uint64_t made_bytes;   /* put together in memory */
    uint64_t load_bytes;   /* about what progress adds up to */
    uint64_t tensor_bytes; /* of all ranks */
    uint64_t tensor_count;
};

/* A folder about to be loaded. One thread at a time. */
struct load;

/* Reads headers and side files and plans where every byte goes; no weights are read. folder and
 * what options point to must last until load_close(). Errors: RF_E_CHANGED (a file shrank
 * meanwhile), RF_E_SYS, RF_E_NOMEM; with shards also those of shard_ranks(), RF_E_FORMAT (no
 * config.json, or not a good one) and RF_E_UNSUPPORTED (no plan for this architecture: names it
 * and how to write one). */
enum rf_code load_open(const struct model_folder *folder, const struct load_options *options,
                       struct load **ret_load, struct rf_error *err);
void load_close(struct load *load);

/* What the store will hold; the load's. */
struct manifest *load_manifest(const struct load *load);
/* What load_run() will take, before it takes it. */
void load_needs(const struct load *load, struct load_needs *ret_needs);

/* Reads and makes; once per load. Blocks. Errors: RF_E_NOMEM (needs and what is available),
 * RF_E_CHANGED (a file was written to meanwhile), RF_E_SYS. */
enum rf_code load_run(struct load *load, struct store **ret_store, struct rf_error *err);

/* All of it in one call. */
enum rf_code load_folder(const struct model_folder *folder, const struct load_options *options,
                         struct store **ret_store, struct rf_error *err);

#endif
