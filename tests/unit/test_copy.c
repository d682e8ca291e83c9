/* Parallel copies: all bytes, and not one more. */
#include "base/rand.h"
#include "memory/region.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void every_length_is_copied_exactly(void **state)
{
    (void)state;
    enum { PIECE = 4 << 20, MOST = 3 * PIECE + 1000, GUARD = 64 };
    static const uint64_t lengths[] = {
        0, 1, 4095, 4096, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 777,
    };
    static const unsigned threads[] = {0, 1, 2, 5, 100};
    struct rand_seq seq = {.state = 4};
    uint8_t *src = malloc(MOST);
    uint8_t *dst = malloc(MOST + GUARD);

    assert_true(src != NULL && dst != NULL);
    for (size_t i = 0; i < MOST; i++)
        src[i] = (uint8_t)(rand_next(&seq) | 1); /* never 0 */
    for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
        for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++) {
            memset(dst, 0, (size_t)lengths[l] + GUARD);
            memory_copy(dst + t, src, lengths[l], threads[t]);
            assert_true(memcmp(dst + t, src, (size_t)lengths[l]) == 0);
            for (size_t i = 0; i < t; i++)
                assert_int_equal(dst[i], 0);
            for (size_t i = t; i < GUARD; i++)
                assert_int_equal(dst[lengths[l] + i], 0);
        }
    }
    free(src);
    free(dst);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_length_is_copied_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
