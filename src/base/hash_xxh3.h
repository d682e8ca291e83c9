/* XXH3-128 once per vector width; hash.c picks one. Nobody else includes this but its test. */
#ifndef BASE_HASH_XXH3_H
#define BASE_HASH_XXH3_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HASH_XXH3_STATE_ALIGN = 64, HASH_XXH3_STATE_BYTES = 640, HASH_XXH3_BYTES = 16 };

struct hash_xxh3 {
    const char *name;
    void (*once)(const void *data, size_t bytes, uint8_t ret_digest[HASH_XXH3_BYTES]);
    /* state: HASH_XXH3_STATE_BYTES, aligned to HASH_XXH3_STATE_ALIGN. States of different widths
     * must not be mixed. */
    void (*reset)(void *state);
    void (*update)(void *state, const void *data, size_t bytes);
    void (*final)(const void *state, uint8_t ret_digest[HASH_XXH3_BYTES]);
};

extern const struct hash_xxh3 hash_xxh3_generic;
#if defined(__x86_64__)
extern const struct hash_xxh3 hash_xxh3_avx2;
extern const struct hash_xxh3 hash_xxh3_avx512;
#endif

/* The one that this processor runs fastest. */
const struct hash_xxh3 *hash_xxh3_best(void);
/* All that this processor can run; returns how many, at most 3. */
size_t hash_xxh3_usable(const struct hash_xxh3 *ret_usable[3]);

#endif
