/* Random numbers: the unpredictable ones, and those that can be had again. */
#include "base/rand.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void tokens_differ(void **state)
{
    (void)state;
    uint8_t a[32] = {0};
    uint8_t b[32] = {0};

    assert_int_equal(rand_bytes(a, sizeof a, NULL), RF_OK);
    assert_int_equal(rand_bytes(b, sizeof b, NULL), RF_OK);
    assert_memory_not_equal(a, b, sizeof a);
    assert_int_equal(rand_bytes(NULL, 0, NULL), RF_OK);
}

static void large_requests_are_filled_to_the_end(void **state)
{
    (void)state;
    static uint8_t big[1 << 20]; /* getrandom() may return less at once */
    static const uint8_t zeros[64];

    assert_int_equal(rand_bytes(big, sizeof big, NULL), RF_OK);
    for (size_t at = 0; at < sizeof big; at += sizeof zeros)
        assert_memory_not_equal(big + at, zeros, sizeof zeros);
}

static void sequence_is_splitmix64(void **state)
{
    (void)state;
    /* The values that Vigna's reference gives for this state. */
    struct rand_seq seq = {.state = 1234567};
    static const uint64_t expected[] = {
        UINT64_C(6457827717110365317),  UINT64_C(3203168211198807973),
        UINT64_C(9817491932198370423),  UINT64_C(4593380528125082431),
        UINT64_C(16408922859458223821),
    };

    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        assert_true(rand_next(&seq) == expected[i]);
}

static void bounded_numbers_stay_below_and_reach_all(void **state)
{
    (void)state;
    struct rand_seq seq = {.state = 3};
    unsigned seen[10] = {0};

    for (int i = 0; i < 10000; i++)
        seen[rand_below(&seq, 10)]++;
    for (int i = 0; i < 10; i++)
        assert_in_range(seen[i], 800, 1200);
    assert_int_equal(rand_below(&seq, 1), 0);
    for (int i = 0; i < 100; i++)
        assert_true(rand_below(&seq, (UINT64_C(1) << 63) + 1) <= UINT64_C(1) << 63);
}

static void tokens_are_compared_whole(void **state)
{
    (void)state;
    uint8_t a[32];
    uint8_t b[32];

    memset(a, 0x5a, sizeof a);
    memcpy(b, a, sizeof b);
    assert_true(rand_token_equal(a, b, sizeof a));
    assert_true(rand_token_equal(a, b, 0));
    for (size_t bit = 0; bit < sizeof b * 8; bit++) {
        b[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(rand_token_equal(a, b, sizeof a));
        b[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_differ),
        cmocka_unit_test(large_requests_are_filled_to_the_end),
        cmocka_unit_test(sequence_is_splitmix64),
        cmocka_unit_test(bounded_numbers_stay_below_and_reach_all),
        cmocka_unit_test(tokens_are_compared_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
