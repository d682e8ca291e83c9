/* One instance's model: what it is (manifest), where its bytes are (layouts over regions), its
 * files, and its digests. What a loader makes, a seed serves, and a fork fills. */
#ifndef MODEL_STORE_H
#define MODEL_STORE_H

#include "model/digest.h"
#include "model/layout.h"

#include <stdatomic.h>

struct store_rank {
    struct layout layout;
    struct digest_table *digests;
};

struct store_file {
    /* FILE_SIDE: the whole file. FILE_WEIGHTS: its header (8 length bytes included). Owned. */
    uint8_t *data;
    uint64_t bytes;
};

struct store {
    struct manifest *manifest;
    struct store_rank *ranks; /* [manifest->rank_count] */
    struct store_file *files; /* [manifest->file_count] */
    struct region **regions;  /* every region that a layout uses, each once */
    uint32_t region_count;
};

/* Takes over nothing: refs the manifest, makes empty layouts and tables of unknown digests. */
enum rf_code store_create(struct manifest *manifest, struct store **ret_store,
                          struct rf_error *err);
void store_destroy(struct store *store);
/* Adds a reference; index in store->regions. */
enum rf_code store_add_region(struct store *store, struct region *region, struct rf_error *err);

/* Computes all digests that are not known, on `threads` threads, in chunk order; *stop (may be
 * NULL) set by another thread ends it early with RF_E_CANCELLED. Errors also: RF_E_CHANGED,
 * RF_E_SYS from reading a file region. */
enum rf_code store_digest(struct store *store, unsigned threads, const atomic_bool *stop,
                          struct rf_error *err);
/* Model root; RF_AGAIN while digests are missing (err is not filled then). */
enum rf_code store_root(const struct store *store, uint8_t ret_root[HASH_MAX_BYTES],
                        struct rf_error *err);
/* Recomputes every chunk from memory and compares with the table: RF_E_CORRUPT names chunk and
 * tensors. */
enum rf_code store_verify(struct store *store, unsigned threads, struct rf_error *err);
/* region_check() on all. */
enum rf_code store_check(const struct store *store, struct rf_error *err);

/* Digest of one tensor's bytes (as of a chunk: over leaves), computed now. */
enum rf_code store_tensor_digest(const struct store *store, uint32_t rank, uint32_t tensor,
                                 uint8_t ret_digest[HASH_MAX_BYTES], struct rf_error *err);

/* Copies [offset, offset + bytes) of a rank's stream, or of a file of the manifest as it would lie
 * on disk (weights: header, then the tensors at their places, put together from all ranks if need
 * be: see store_check_file()). */
enum rf_code store_read_stream(const struct store *store, uint32_t rank, uint64_t offset, void *dst,
                               uint64_t bytes, struct rf_error *err);
enum rf_code store_read_file(const struct store *store, uint32_t file, uint64_t offset, void *dst,
                             uint64_t bytes, struct rf_error *err);

/* Whether store_read_file() can give [offset, offset + bytes) of a file: RF_E_UNSUPPORTED names the
 * tensor of which no rank here has all bytes as they are in the file. Headers always can be. */
enum rf_code store_check_file(const struct store *store, uint32_t file, uint64_t offset,
                              uint64_t bytes, struct rf_error *err);

/* A rank as one valid safetensors file, tensors in stream order (aliases left out are listed in
 * metadata): the header made once and cached by the caller; data follows as the stream itself. */
enum rf_code store_rank_header(const struct store *store, uint32_t rank, struct buf *out,
                               struct rf_error *err);

#endif
