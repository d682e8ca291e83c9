/* The string map: what went in is found, once, however many and however alike. */
#include "base/siphash.h"
#include "base/strmap.h"

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MANY = 100000, KEY_BYTES = 64 };

static void what_was_added_is_found(void **state)
{
    (void)state;
    struct strmap *map = strmap_create(0);
    uint32_t value = 77;

    assert_non_null(map);
    assert_false(strmap_find(map, "a", 1, &value));
    assert_int_equal(value, 77);
    assert_int_equal(strmap_add(map, "a", 1, 0, NULL), RF_OK);
    assert_int_equal(strmap_add(map, "ab", 2, UINT32_MAX, NULL), RF_OK);
    assert_true(strmap_find(map, "a", 1, &value));
    assert_int_equal(value, 0);
    assert_true(strmap_find(map, "abc", 2, &value));
    assert_true(value == UINT32_MAX);
    assert_false(strmap_find(map, "abc", 3, &value));
    assert_false(strmap_find(map, "A", 1, &value));
    strmap_destroy(map);
}

static void second_of_a_name_is_refused_with_the_first(void **state)
{
    (void)state;
    struct strmap *map = strmap_create(1);
    uint32_t old = 0;
    uint32_t value = 0;

    assert_int_equal(strmap_add(map, "name", 4, 5, &old), RF_OK);
    assert_int_equal(old, 0);
    assert_int_equal(strmap_add(map, "name", 4, 6, &old), RF_E_INVAL);
    assert_int_equal(old, 5);
    assert_int_equal(strmap_add(map, "name", 4, 7, NULL), RF_E_INVAL);
    assert_true(strmap_find(map, "name", 4, &value));
    assert_int_equal(value, 5);
    strmap_destroy(map);
}

static void empty_key_and_zero_bytes_are_keys(void **state)
{
    (void)state;
    struct strmap *map = strmap_create(0);
    uint32_t value = 0;

    assert_false(strmap_find(map, NULL, 0, &value));
    assert_int_equal(strmap_add(map, NULL, 0, 1, NULL), RF_OK);
    assert_int_equal(strmap_add(map, "", 0, 2, NULL), RF_E_INVAL);
    assert_int_equal(strmap_add(map, "\0", 1, 3, NULL), RF_OK);
    assert_int_equal(strmap_add(map, "\0\0", 2, 4, NULL), RF_OK);
    assert_true(strmap_find(map, "x", 0, &value));
    assert_int_equal(value, 1);
    assert_true(strmap_find(map, "\0\0", 2, &value));
    assert_int_equal(value, 4);
    strmap_destroy(map);
}

static char *make_keys(void)
{
    char *keys = malloc((size_t)MANY * KEY_BYTES);

    assert_non_null(keys);
    for (int i = 0; i < MANY; i++)
        snprintf(keys + (size_t)i * KEY_BYTES, KEY_BYTES, "model.layers.%d.experts.%d.w%d.weight",
                 i / 1000, i / 10 % 100, i % 10);
    return keys;
}

static void hundred_thousand_names_are_found(void **state)
{
    (void)state;
    char *keys = make_keys();

    /* With a hint that is too small, right, and too large. */
    static const size_t hints[] = {0, MANY, 10 * MANY};
    for (size_t hint = 0; hint < sizeof hints / sizeof hints[0]; hint++) {
        struct strmap *map = strmap_create(hints[hint]);
        assert_non_null(map);
        for (uint32_t i = 0; i < MANY; i++) {
            const char *key = keys + (size_t)i * KEY_BYTES;
            assert_int_equal(strmap_add(map, key, strlen(key), i, NULL), RF_OK);
        }
        for (uint32_t i = 0; i < MANY; i++) {
            const char *key = keys + (size_t)i * KEY_BYTES;
            uint32_t value = 0;
            assert_true(strmap_find(map, key, strlen(key), &value));
            assert_int_equal(value, i);
            /* Shorter: another name, or none. */
            assert_true(!strmap_find(map, key, strlen(key) - 1, &value) || value != i);
            assert_int_equal(strmap_add(map, key, strlen(key), 0, &value), RF_E_INVAL);
            assert_int_equal(value, i);
        }
        strmap_destroy(map);
    }
    free(keys);
}

/* Names that differ in one bit, at every place: what a weak hash maps to neighbours. */
static void names_that_differ_in_one_bit_are_told_apart(void **state)
{
    (void)state;
    enum { LENGTH = 128 };
    static uint8_t keys[LENGTH * 8][LENGTH];
    struct strmap *map = strmap_create(0);

    for (uint32_t i = 0; i < LENGTH * 8; i++) {
        keys[i][i / 8] = (uint8_t)(1u << i % 8);
        assert_int_equal(strmap_add(map, (const char *)keys[i], LENGTH, i, NULL), RF_OK);
    }
    for (uint32_t i = 0; i < LENGTH * 8; i++) {
        uint32_t value = UINT32_MAX;
        assert_true(strmap_find(map, (const char *)keys[i], LENGTH, &value));
        assert_int_equal(value, i);
    }
    strmap_destroy(map);
}

static void impossible_hint_is_out_of_memory(void **state)
{
    (void)state;
    assert_null(strmap_create(SIZE_MAX));
    assert_null(strmap_create(SIZE_MAX / 32));
    strmap_destroy(NULL);
}

/* OpenSSL's SipHash, with one and three rounds. */
static uint64_t reference_siphash(const uint8_t key[16], const void *data, size_t bytes)
{
    unsigned size = 8;
    unsigned c_rounds = 1;
    unsigned d_rounds = 3;
    uint8_t out[8];
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_uint(OSSL_MAC_PARAM_SIZE, &size),
        OSSL_PARAM_construct_uint(OSSL_MAC_PARAM_C_ROUNDS, &c_rounds),
        OSSL_PARAM_construct_uint(OSSL_MAC_PARAM_D_ROUNDS, &d_rounds),
        OSSL_PARAM_construct_end(),
    };
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "SIPHASH", NULL);

    if (mac == NULL)
        skip(); /* an OpenSSL without it */
    EVP_MAC_CTX *ctx = EVP_MAC_CTX_new(mac);
    assert_int_equal(EVP_MAC_init(ctx, key, 16, params), 1);
    assert_int_equal(EVP_MAC_update(ctx, data, bytes), 1);
    assert_int_equal(EVP_MAC_final(ctx, out, NULL, sizeof out), 1);
    EVP_MAC_CTX_free(ctx);
    EVP_MAC_free(mac);
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | out[i];
    return value;
}

static void hash_is_siphash(void **state)
{
    (void)state;
    uint8_t raw_key[16];
    uint8_t data[100];
    uint64_t key[2] = {0, 0};

    for (unsigned i = 0; i < sizeof raw_key; i++)
        raw_key[i] = (uint8_t)(i * 17 + 3);
    for (unsigned i = 0; i < 16; i++)
        key[i / 8] |= (uint64_t)raw_key[i] << i % 8 * 8;
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7 + 250);
    for (size_t bytes = 0; bytes <= sizeof data; bytes++)
        assert_true(siphash(key, data, bytes) == reference_siphash(raw_key, data, bytes));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_added_is_found),
        cmocka_unit_test(second_of_a_name_is_refused_with_the_first),
        cmocka_unit_test(empty_key_and_zero_bytes_are_keys),
        cmocka_unit_test(hundred_thousand_names_are_found),
        cmocka_unit_test(names_that_differ_in_one_bit_are_told_apart),
        cmocka_unit_test(impossible_hint_is_out_of_memory),
        cmocka_unit_test(hash_is_siphash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
