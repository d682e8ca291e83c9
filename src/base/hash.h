/* The two digest algorithms of chunks, leaves and roots.
 *
 * XXH3-128 (https://github.com/Cyan4973/xxHash, canonical big-endian form, seed 0) finds errors,
 * not attackers; SHA-256 (FIPS 180-4) is for peers that are not trusted. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include "base/error.h"

enum hash_algorithm { HASH_XXH3_128 = 1, HASH_SHA256 = 2 };

enum { HASH_MAX_BYTES = 32, HASH_TEXT_BYTES = 96 };

/* "xxh3-128", "sha256"; NULL if unknown. */
const char *hash_name(enum hash_algorithm algorithm);
enum rf_code hash_parse(const char *name, enum hash_algorithm *ret_algorithm, struct rf_error *err);
/* 16 or 32. */
unsigned hash_bytes(enum hash_algorithm algorithm);

/* One piece of memory. Uses the widest vectors this processor has; same result on all. */
void hash_once(enum hash_algorithm algorithm, const void *data, size_t bytes,
               uint8_t ret_digest[HASH_MAX_BYTES]);

/* Piecewise. A state is reusable after hash_reset(); NULL when out of memory. */
struct hash_state;
struct hash_state *hash_state_create(enum hash_algorithm algorithm);
void hash_state_destroy(struct hash_state *state);
void hash_reset(struct hash_state *state);
void hash_update(struct hash_state *state, const void *data, size_t bytes);
void hash_final(struct hash_state *state, uint8_t ret_digest[HASH_MAX_BYTES]);

/* "xxh3-128:0123...": NUL-terminated lower-case hex; returns out. */
const char *hash_text(enum hash_algorithm algorithm, const uint8_t *digest,
                      char out[HASH_TEXT_BYTES]);

#endif
