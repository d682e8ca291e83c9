/* Digests of chunks, ranks and models. H is the manifest's algorithm, integers are little-endian.
 *
 * leaf digest  = H(64 KiB of the chunk); the last leaf of a chunk may be shorter.
 * chunk digest = H(leaf digests laid end to end).
 * rank root    = H("rfork rank 1\n" + u32 source_count + facts of each source (name, dtype, shape)
 *                  + u32 tensor_count
 *                  + facts of each tensor (name, dtype, shape, global shape, slice, alias, parts)
 *                    (facts: bytes as in the binary manifest, docs/wire-protocol.md)
 *                  + u32 chunk_bytes + u64 stream_bytes + chunk digests).
 * model root   = H("rfork model 1\n" + u32 rank_count
 *                  + for each rank, ordered by rank_id_compare(): its 9 u32, its root).
 * Nothing of files, order or memory is in it, so it is equal however the tensors were stored. */
#ifndef MODEL_DIGEST_H
#define MODEL_DIGEST_H

#include "model/manifest.h"

/* Hashes one chunk (or anything else that has a digest over leaves, of any length) piece by piece.
 * Pieces may end anywhere; whole leaves that lie in one piece are hashed where they are. Not
 * thread-safe; reusable. NULL when out of memory. */
struct chunk_hasher;
struct chunk_hasher *chunk_hasher_create(enum hash_algorithm algorithm);
void chunk_hasher_destroy(struct chunk_hasher *hasher);
void chunk_hasher_begin(struct chunk_hasher *hasher);
void chunk_hasher_update(struct chunk_hasher *hasher, const void *data, size_t bytes);
void chunk_hasher_final(struct chunk_hasher *hasher, uint8_t ret_digest[HASH_MAX_BYTES]);

/* The chunk digests of one rank while they become known. Any thread. A digest that is known never
 * changes, and whoever sees it counted in digest_table_known() can get it. */
struct digest_table;

/* NULL when out of memory. */
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
/* Waits until more than `known` are known, or all, or the deadline has passed; returns how many. */
uint64_t digest_table_wait(struct digest_table *table, uint64_t known, uint64_t deadline_ns);

/* Needs all digests. RF_E_INVAL if some are missing, or the table is not this rank's;
 * RF_E_NOMEM. */
enum rf_code digest_rank_root(const struct manifest *manifest, uint32_t rank,
                              const struct digest_table *table, uint8_t ret_root[HASH_MAX_BYTES],
                              struct rf_error *err);
/* roots[rank_count][HASH_MAX_BYTES]. RF_E_NOMEM. */
enum rf_code digest_model_root(const struct manifest *manifest,
                               const uint8_t (*roots)[HASH_MAX_BYTES],
                               uint8_t ret_root[HASH_MAX_BYTES], struct rf_error *err);

enum {
    DIGEST_MAX_PIECE_CHUNKS = 1 << 20,
    DIGEST_HEAD_BYTES = 32, /* "RFDG" u16 version u8 algorithm u8 zero u64 chunk_count u64 from
                             * u64 piece_count */
    DIGEST_CHECK_BYTES = 16,
};

/* Binary form of a table or a part of it (docs/wire-protocol.md): GET /v1/digests. The head, then a
 * bitmap of piece_count bits (chunk from + i is bit i % 8 of byte i / 8; the spare bits are 0), the
 * digests of the chunks whose bit is set, in order, and XXH3-128 of all bytes before it.
 * Covers chunks from `from` (beyond the end: none) to the last, but at most
 * DIGEST_MAX_PIECE_CHUNKS. Digests that become known meanwhile may or may not be in it. */
void digest_table_encode(const struct digest_table *table, uint64_t from, struct buf *out);
/* Merges what a peer sent into a table of the same geometry. RF_E_PROTO; RF_E_CORRUPT if a digest
 * known differs: then none of its digests has been taken over. */
enum rf_code digest_table_merge(struct digest_table *table, const uint8_t *data, size_t bytes,
                                struct rf_error *err);

#endif
