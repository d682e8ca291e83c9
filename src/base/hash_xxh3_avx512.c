#include "base/hash_xxh3.h"

#if defined(__x86_64__)

/* Before the target changes, so that nothing but the hash is compiled for it. */
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f")
#endif

#define XXH_VECTOR     XXH_AVX512
#define HASH_XXH3      hash_xxh3_avx512
#define HASH_XXH3_NAME "avx512"
#include "base/hash_xxh3_body.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
extern int hash_xxh3_avx512; /* a translation unit must not be empty */
#endif
