#include "base/hash.h"

#include "base/hash_xxh3.h"
#include "base/log.h"

#include <assert.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct hash_state {
    enum hash_algorithm algorithm;
    const struct hash_xxh3 *xxh3;
    void *xxh3_state;
    EVP_MD_CTX *sha256;
};

static EVP_MD *sha256_md;
static pthread_once_t sha256_once = PTHREAD_ONCE_INIT;

/* Once for all: in OpenSSL 3 naming the algorithm anew costs more than hashing a small piece. */
static void sha256_fetch(void)
{
    sha256_md = EVP_MD_fetch(NULL, "SHA256", NULL);
}

static EVP_MD *sha256_get(void)
{
    pthread_once(&sha256_once, sha256_fetch);
    return sha256_md;
}

/* A digest that was not made must not look like one, and these functions return none: OpenSSL fails
 * here only without a few hundred bytes of memory or without SHA-256 at all. */
static void sha256_must(int ok)
{
    if (ok == 1)
        return;
    log_error("no sha-256",
              "reason=\"OpenSSL refused: out of memory, or its configuration forbids it\"");
    abort();
}

size_t hash_xxh3_usable(const struct hash_xxh3 *ret_usable[3])
{
    size_t count = 0;

    ret_usable[count++] = &hash_xxh3_generic;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2"))
        ret_usable[count++] = &hash_xxh3_avx2;
    if (__builtin_cpu_supports("avx512f"))
        ret_usable[count++] = &hash_xxh3_avx512;
#endif
    return count;
}

static const struct hash_xxh3 *xxh3_best;
static pthread_once_t xxh3_best_once = PTHREAD_ONCE_INIT;

static void xxh3_choose(void)
{
    const struct hash_xxh3 *usable[3];
    size_t count = hash_xxh3_usable(usable);

    xxh3_best = usable[count - 1];
}

const struct hash_xxh3 *hash_xxh3_best(void)
{
    pthread_once(&xxh3_best_once, xxh3_choose);
    return xxh3_best;
}

const char *hash_name(enum hash_algorithm algorithm)
{
    switch (algorithm) {
    case HASH_XXH3_128:
        return "xxh3-128";
    case HASH_SHA256:
        return "sha256";
    }
    return NULL;
}

enum rf_code hash_parse(const char *name, enum hash_algorithm *ret_algorithm, struct rf_error *err)
{
    static const enum hash_algorithm all[] = {HASH_XXH3_128, HASH_SHA256};

    for (size_t i = 0; name != NULL && i < sizeof all / sizeof all[0]; i++) {
        if (strcmp(name, hash_name(all[i])) == 0) {
            *ret_algorithm = all[i];
            return RF_OK;
        }
    }
    return rf_fail(err, RF_E_INVAL,
                   "\"%.100s\" is not a digest algorithm: xxh3-128 and sha256 are known",
                   name != NULL ? name : "");
}

unsigned hash_bytes(enum hash_algorithm algorithm)
{
    return algorithm == HASH_SHA256 ? 32 : HASH_XXH3_BYTES;
}

void hash_once(enum hash_algorithm algorithm, const void *data, size_t bytes,
               uint8_t ret_digest[HASH_MAX_BYTES])
{
    assert(hash_name(algorithm) != NULL);
    if (algorithm == HASH_SHA256) {
        sha256_must(EVP_Digest(data, bytes, ret_digest, NULL, sha256_get(), NULL));
        return;
    }
    hash_xxh3_best()->once(data, bytes, ret_digest);
    memset(ret_digest + HASH_XXH3_BYTES, 0, HASH_MAX_BYTES - HASH_XXH3_BYTES);
}

struct hash_state *hash_state_create(enum hash_algorithm algorithm)
{
    assert(hash_name(algorithm) != NULL);
    struct hash_state *state = calloc(1, sizeof *state);
    if (state == NULL)
        return NULL;
    state->algorithm = algorithm;
    if (algorithm == HASH_SHA256) {
        state->sha256 = EVP_MD_CTX_new();
        if (state->sha256 == NULL || EVP_DigestInit_ex2(state->sha256, sha256_get(), NULL) != 1)
            goto fail;
        return state;
    }
    state->xxh3 = hash_xxh3_best();
    state->xxh3_state = aligned_alloc(HASH_XXH3_STATE_ALIGN, HASH_XXH3_STATE_BYTES);
    if (state->xxh3_state == NULL)
        goto fail;
    state->xxh3->reset(state->xxh3_state);
    return state;

fail:
    hash_state_destroy(state);
    return NULL;
}

void hash_state_destroy(struct hash_state *state)
{
    if (state == NULL)
        return;
    EVP_MD_CTX_free(state->sha256);
    free(state->xxh3_state);
    free(state);
}

void hash_reset(struct hash_state *state)
{
    if (state->algorithm == HASH_SHA256)
        sha256_must(EVP_DigestInit_ex2(state->sha256, NULL, NULL));
    else
        state->xxh3->reset(state->xxh3_state);
}

void hash_update(struct hash_state *state, const void *data, size_t bytes)
{
    if (bytes == 0)
        return;
    if (state->algorithm == HASH_SHA256)
        sha256_must(EVP_DigestUpdate(state->sha256, data, bytes));
    else
        state->xxh3->update(state->xxh3_state, data, bytes);
}

void hash_final(struct hash_state *state, uint8_t ret_digest[HASH_MAX_BYTES])
{
    if (state->algorithm == HASH_SHA256) {
        sha256_must(EVP_DigestFinal_ex(state->sha256, ret_digest, NULL));
        return;
    }
    state->xxh3->final(state->xxh3_state, ret_digest);
    memset(ret_digest + HASH_XXH3_BYTES, 0, HASH_MAX_BYTES - HASH_XXH3_BYTES);
}

const char *hash_text(enum hash_algorithm algorithm, const uint8_t *digest,
                      char out[HASH_TEXT_BYTES])
{
    static const char digits[] = "0123456789abcdef";

    assert(hash_name(algorithm) != NULL);
    int at = snprintf(out, HASH_TEXT_BYTES, "%s:", hash_name(algorithm));
    char *to = out + at;
    for (unsigned i = 0; i < hash_bytes(algorithm); i++) {
        *to++ = digits[digest[i] >> 4];
        *to++ = digits[digest[i] & 15];
    }
    *to = '\0';
    return out;
}
