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

/* Copies this large bypass the caches, from wherever to wherever. */
static void large_copies_are_exact_at_any_alignment(void **state)
{
    (void)state;
    enum { BYTES = (64 << 20) + 12345, SLACK = 64 };
    static const size_t offsets[][2] = {{0, 0}, {1, 0}, {0, 7}, {63, 33}};
    uint8_t *src = malloc(BYTES + SLACK);
    uint8_t *dst = malloc(BYTES + SLACK);

    assert_true(src != NULL && dst != NULL);
    for (size_t i = 0; i < BYTES + SLACK; i++)
        src[i] = (uint8_t)(i * 2654435761u >> 11);
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        memset(dst, 0x5a, BYTES + SLACK);
        memory_copy(dst + offsets[i][0], src + offsets[i][1], BYTES, i % 2 ? 3 : 1);
        assert_true(memcmp(dst + offsets[i][0], src + offsets[i][1], BYTES) == 0);
        for (size_t at = 0; at < offsets[i][0]; at++)
            assert_int_equal(dst[at], 0x5a);
        for (size_t at = offsets[i][0] + BYTES; at < BYTES + SLACK; at++)
            assert_int_equal(dst[at], 0x5a);
    }
    free(src);
    free(dst);
}

/* Rows of any length, from any place to any other, leave their surroundings alone. */
static void streamed_pieces_are_exact(void **state)
{
    (void)state;
    enum { ROOM = 512 };
    uint8_t src[ROOM];
    uint8_t dst[ROOM];

    for (size_t i = 0; i < ROOM; i++)
        src[i] = (uint8_t)(i % 251 + 1);
    for (size_t to = 0; to < 66; to += 5) {
        for (size_t from = 0; from < 66; from += 13) {
            for (size_t bytes = 0; bytes < 300; bytes += 7) {
                memset(dst, 0, sizeof dst);
                memory_stream(dst + to, src + from, bytes);
                memory_stream_end();
                assert_memory_equal(dst + to, src + from, bytes);
                for (size_t i = 0; i < to; i++)
                    assert_int_equal(dst[i], 0);
                for (size_t i = to + bytes; i < ROOM; i++)
                    assert_int_equal(dst[i], 0);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_length_is_copied_exactly),
        cmocka_unit_test(large_copies_are_exact_at_any_alignment),
        cmocka_unit_test(streamed_pieces_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
