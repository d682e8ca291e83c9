/* Digests of chunks, ranks and models.
 *
 * chunk digest = H(leaf digests laid end to end), leaf = H(64 KiB of the chunk; the last may be shorter).
 * rank root    = H("rfork rank 1\n" + tensor table (name, dtype, shape, global shape, slice, alias; as encoded by
 *                digest_rank_root()) + u32 chunk_bytes + u64 stream_bytes + chunk digests).
 * model root   = H("rfork model 1\n" + for each rank in the order of rank_id: the id's 9 u32, the rank root).
 * Nothing of files, order or memory is in it, so it is equal however the tensors were stored. */
#ifndef MODEL_DIGEST_H
#define MODEL_DIGEST_H

#include "model/manifest.h"

/* Hashes one chunk piece by piece. Pieces may end anywhere. Not thread-safe; reusable. */
struct chunk_hasher;
struct chunk_hasher *chunk_hasher_create(enum hash_algorithm algorithm);
void chunk_hasher_destroy(struct chunk_hasher *hasher);
void chunk_hasher_begin(struct chunk_hasher *hasher);
void chunk_hasher_update(struct chunk_hasher *hasher, const void *data, size_t bytes);
void chunk_hasher_final(struct chunk_hasher *hasher, uint8_t ret_digest[HASH_MAX_BYTES]);

/* The chunk digests of one rank while they become known. Any thread. */
struct digest_table;

struct digest_table *digest_table_create(enum hash_algorithm algorithm, uint64_t chunk_count);
void digest_table_destroy(struct digest_table *table);
uint64_t digest_table_count(const struct digest_table *table);
/* Sets a digest once; false if it was known already and differs. Wakes waiters. */
bool digest_table_set(struct digest_table *table, uint64_t chunk, const uint8_t *digest);
/* false: not known yet. */
bool digest_table_get(const struct digest_table *table, uint64_t chunk,
                      uint8_t ret_digest[HASH_MAX_BYTES]);
/* How many are known; all of them: == count. */
uint64_t digest_table_known(const struct digest_table *table);
/* Waits until more than `known` are known or the deadline has passed; returns how many are. */
uint64_t digest_table_wait(struct digest_table *table, uint64_t known, uint64_t deadline_ns);

/* Needs all digests. RF_E_INVAL if some are missing. */
enum rf_code digest_rank_root(const struct manifest *manifest, uint32_t rank,
                              const struct digest_table *table, uint8_t ret_root[HASH_MAX_BYTES],
                              struct rf_error *err);
/* roots[rank_count][HASH_MAX_BYTES]. */
void digest_model_root(const struct manifest *manifest, const uint8_t (*roots)[HASH_MAX_BYTES],
                       uint8_t ret_root[HASH_MAX_BYTES]);

/* Binary form of a table or a part of it (docs/wire-protocol.md): GET /v1/digests. */
void digest_table_encode(const struct digest_table *table, uint64_t from, struct buf *out);
/* Merges what a peer sent into a table of the same geometry. RF_E_PROTO; RF_E_CORRUPT if a digest known differs. */
enum rf_code digest_table_merge(struct digest_table *table, const uint8_t *data, size_t bytes,
                                struct rf_error *err);

#endif
