/* Digests: the published values, the same on every processor and however the bytes arrive. */
#include "base/hash.h"
#include "base/hash_xxh3.h"
#include "base/rand.h"
#include "base/thread.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { DATA_BYTES = 300 * 1024 };

static const enum hash_algorithm algorithms[] = {HASH_XXH3_128, HASH_SHA256};
static uint8_t *data;

static int make_data(void **state)
{
    struct rand_seq seq = {.state = 1};

    (void)state;
    data = malloc(DATA_BYTES);
    for (size_t i = 0; data != NULL && i < DATA_BYTES; i++)
        data[i] = (uint8_t)rand_next(&seq);
    return data != NULL ? 0 : -1;
}

static int free_data(void **state)
{
    (void)state;
    free(data);
    return 0;
}

/* xxHash's own sanity test: its generator of input, and results for seed 0. */
static const struct {
    size_t bytes;
    const char *text;
} xxh3_vectors[] = {
    {0, "xxh3-128:99aa06d3014798d86001c324468d497f"},
    {1, "xxh3-128:a6cd5e9392000f6ac44bdff4074eecdb"},
    {6, "xxh3-128:082afe0b8162d12a3e7039bdda43cfc6"},
    {12, "xxh3-128:6e3efd8fc7802b18061a192713f69ad9"},
    {24, "xxh3-128:0ce966e4678d37611e7044d28b1b901d"},
    {48, "xxh3-128:a002ac4e5478227ef942219aed80f67b"},
    {81, "xxh3-128:4952f58181ab00425e8bafb9f95fb803"},
    {222, "xxh3-128:337e09641b948717f1aebd597cec6b3a"},
    {403, "xxh3-128:1b6de21e332dd73dcdeb804d65c6dea4"},
    {512, "xxh3-128:18d2d110dcc9bca1617e49599013cb6b"},
    {2048, "xxh3-128:f736557fd47073a5dd59e2c3a5f038e0"},
    {2240, "xxh3-128:ccb134fbfa7ce49d6e73a90539cf2948"},
    {2367, "xxh3-128:e89c0f6ff369b427cb37aeb9e5d361ed"},
};

static void xxh3_gives_the_published_values(void **state)
{
    (void)state;
    uint8_t input[2367];
    uint64_t generator = 2654435761u;
    uint8_t digest[HASH_MAX_BYTES];
    char text[HASH_TEXT_BYTES];

    for (size_t i = 0; i < sizeof input; i++) {
        input[i] = (uint8_t)(generator >> 56);
        generator *= UINT64_C(11400714785074694797);
    }
    for (size_t i = 0; i < sizeof xxh3_vectors / sizeof xxh3_vectors[0]; i++) {
        hash_once(HASH_XXH3_128, input, xxh3_vectors[i].bytes, digest);
        assert_string_equal(hash_text(HASH_XXH3_128, digest, text), xxh3_vectors[i].text);
    }
}

static void sha256_gives_the_published_values(void **state)
{
    (void)state;
    static const struct {
        const char *input;
        const char *text;
    } vectors[] = {
        {"", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "sha256:248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };

    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        uint8_t digest[HASH_MAX_BYTES];
        char text[HASH_TEXT_BYTES];
        hash_once(HASH_SHA256, vectors[i].input, strlen(vectors[i].input), digest);
        assert_string_equal(hash_text(HASH_SHA256, digest, text), vectors[i].text);
    }
}

static void sha256_of_a_million_letters(void **state)
{
    (void)state;
    struct hash_state *hash = hash_state_create(HASH_SHA256);
    uint8_t digest[HASH_MAX_BYTES];
    char text[HASH_TEXT_BYTES];
    char letters[1000];

    memset(letters, 'a', sizeof letters);
    for (int i = 0; i < 1000; i++)
        hash_update(hash, letters, sizeof letters);
    hash_final(hash, digest);
    hash_state_destroy(hash);
    assert_string_equal(hash_text(HASH_SHA256, digest, text),
                        "sha256:cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void pieces_give_the_digest_of_the_whole(void **state)
{
    (void)state;
    struct rand_seq seq = {.state = 2};

    for (size_t a = 0; a < 2; a++) {
        struct hash_state *hash = hash_state_create(algorithms[a]);
        assert_non_null(hash);
        for (int round = 0; round < 200; round++) {
            uint8_t whole[HASH_MAX_BYTES];
            uint8_t pieces[HASH_MAX_BYTES];
            size_t bytes = (size_t)rand_below(&seq, round % 2 ? DATA_BYTES : 2000);
            size_t longest = (size_t)rand_below(&seq, round % 3 ? 70000 : 300) + 1;
            hash_once(algorithms[a], data, bytes, whole);
            hash_reset(hash);
            for (size_t at = 0; at < bytes;) {
                size_t piece = (size_t)rand_below(&seq, longest + 1);
                piece = piece < bytes - at ? piece : bytes - at;
                hash_update(hash, data + at, piece);
                at += piece;
            }
            hash_final(hash, pieces);
            assert_memory_equal(pieces, whole, HASH_MAX_BYTES);
        }
        hash_state_destroy(hash);
    }
}

/* One-shot and piecewise, each length around the places where the algorithm changes. */
static void all_vector_widths_give_the_same(void **state)
{
    (void)state;
    const struct hash_xxh3 *usable[3];
    size_t count = hash_xxh3_usable(usable);
    void *hash = aligned_alloc(HASH_XXH3_STATE_ALIGN, HASH_XXH3_STATE_BYTES);

    assert_non_null(hash);
    assert_in_range(count, 1, 3);
    assert_ptr_equal(usable[0], &hash_xxh3_generic);
    assert_ptr_equal(hash_xxh3_best(), usable[count - 1]);
    for (size_t bytes = 0; bytes < 70000; bytes += bytes < 2200 ? 1 : 997) {
        uint8_t expected[HASH_XXH3_BYTES];
        usable[0]->once(data, bytes, expected);
        for (size_t i = 0; i < count; i++) {
            uint8_t digest[HASH_XXH3_BYTES];
            usable[i]->once(data + 1, bytes, digest); /* unaligned, other bytes */
            usable[i]->once(data, bytes, digest);
            assert_memory_equal(digest, expected, sizeof digest);
            usable[i]->reset(hash);
            usable[i]->update(hash, data, bytes / 3);
            usable[i]->update(hash, data + bytes / 3, bytes - bytes / 3);
            usable[i]->final(hash, digest);
            assert_memory_equal(digest, expected, sizeof digest);
        }
    }
    free(hash);
}

static void one_flipped_bit_changes_the_digest(void **state)
{
    (void)state;
    for (size_t a = 0; a < 2; a++) {
        uint8_t before[HASH_MAX_BYTES];
        uint8_t after[HASH_MAX_BYTES];
        hash_once(algorithms[a], data, 65536, before);
        for (size_t bit = 0; bit < 65536 * 8; bit += 4001) {
            data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            hash_once(algorithms[a], data, 65536, after);
            data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            assert_memory_not_equal(before, after, hash_bytes(algorithms[a]));
        }
    }
}

static void state_is_reusable_after_final(void **state)
{
    (void)state;
    for (size_t a = 0; a < 2; a++) {
        struct hash_state *hash = hash_state_create(algorithms[a]);
        uint8_t expected[HASH_MAX_BYTES];
        uint8_t digest[HASH_MAX_BYTES];
        hash_once(algorithms[a], data, 777, expected);
        for (int i = 0; i < 3; i++) {
            hash_update(hash, data, 777);
            hash_final(hash, digest);
            assert_memory_equal(digest, expected, sizeof digest);
            hash_reset(hash);
        }
        hash_update(hash, data, 5); /* forgotten by the next reset */
        hash_reset(hash);
        hash_update(hash, data, 777);
        hash_update(hash, NULL, 0);
        hash_final(hash, digest);
        assert_memory_equal(digest, expected, sizeof digest);
        hash_state_destroy(hash);
    }
    hash_state_destroy(NULL);
}

static void short_digest_is_padded_with_zeros(void **state)
{
    (void)state;
    static const uint8_t zeros[16];
    uint8_t digest[HASH_MAX_BYTES];
    struct hash_state *hash = hash_state_create(HASH_XXH3_128);

    memset(digest, 0xff, sizeof digest);
    hash_once(HASH_XXH3_128, "a", 1, digest);
    assert_memory_equal(digest + 16, zeros, 16);
    memset(digest, 0xff, sizeof digest);
    hash_final(hash, digest);
    assert_memory_equal(digest + 16, zeros, 16);
    hash_state_destroy(hash);
}

static enum rf_code hash_item(void *ctx, uint64_t item, struct rf_error *err)
{
    const uint8_t *expected = ctx;
    uint8_t digest[HASH_MAX_BYTES];

    hash_once(algorithms[item % 2], data, 10000, digest);
    if (memcmp(digest, expected + item % 2 * HASH_MAX_BYTES, HASH_MAX_BYTES) != 0)
        return rf_fail(err, RF_E_CORRUPT, "item %d", (int)item);
    return RF_OK;
}

static void many_threads_hash_at_once(void **state)
{
    (void)state;
    uint8_t expected[2][HASH_MAX_BYTES];

    hash_once(algorithms[0], data, 10000, expected[0]);
    hash_once(algorithms[1], data, 10000, expected[1]);
    assert_int_equal(thread_parallel(8, 400, hash_item, expected, NULL), RF_OK);
}

static void algorithms_have_names_and_sizes(void **state)
{
    (void)state;
    for (size_t a = 0; a < 2; a++) {
        enum hash_algorithm got = 0;
        assert_int_equal(hash_parse(hash_name(algorithms[a]), &got, NULL), RF_OK);
        assert_int_equal(got, algorithms[a]);
    }
    assert_int_equal(hash_bytes(HASH_XXH3_128), 16);
    assert_int_equal(hash_bytes(HASH_SHA256), 32);
    assert_null(hash_name((enum hash_algorithm)0));
    assert_null(hash_name((enum hash_algorithm)3));
}

static void unknown_algorithm_is_refused_with_those_known(void **state)
{
    (void)state;
    static const char *const names[] = {"md5", "", "SHA256", "xxh3-128 ", "xxh3", NULL};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        enum hash_algorithm got = HASH_SHA256;
        struct rf_error err = {0};
        assert_int_equal(hash_parse(names[i], &got, &err), RF_E_INVAL);
        assert_int_equal(got, HASH_SHA256);
        assert_non_null(strstr(err.text, "xxh3-128 and sha256"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(xxh3_gives_the_published_values),
        cmocka_unit_test(sha256_gives_the_published_values),
        cmocka_unit_test(sha256_of_a_million_letters),
        cmocka_unit_test(pieces_give_the_digest_of_the_whole),
        cmocka_unit_test(all_vector_widths_give_the_same),
        cmocka_unit_test(one_flipped_bit_changes_the_digest),
        cmocka_unit_test(state_is_reusable_after_final),
        cmocka_unit_test(short_digest_is_padded_with_zeros),
        cmocka_unit_test(many_threads_hash_at_once),
        cmocka_unit_test(algorithms_have_names_and_sizes),
        cmocka_unit_test(unknown_algorithm_is_refused_with_those_known),
    };
    return cmocka_run_group_tests(tests, make_data, free_data);
}
