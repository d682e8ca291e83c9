/* Arenas: aligned, disjoint, whole, and gone at once. */
#include "base/arena.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void pieces_are_aligned_and_disjoint(void **state)
{
    (void)state;
    enum { PIECES = 2000 };
    static uint8_t *pieces[PIECES];
    struct arena arena = {0};

    /* Small, empty, and some larger than a block. */
    for (size_t i = 0; i < PIECES; i++) {
        size_t bytes = i % 97 == 0 ? 100000 : i % 61;
        pieces[i] = arena_alloc(&arena, bytes);
        assert_non_null(pieces[i]);
        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
        memset(pieces[i], (int)(i & 0xff), bytes);
    }
    for (size_t i = 0; i < PIECES; i++) {
        size_t bytes = i % 97 == 0 ? 100000 : i % 61;
        for (size_t at = 0; at < bytes; at++)
            assert_int_equal(pieces[i][at], i & 0xff);
    }
    arena_free(&arena);
}

static void texts_are_copied_and_terminated(void **state)
{
    (void)state;
    struct arena arena = {0};
    char source[] = "model.embed_tokens.weight";

    char *whole = arena_strndup(&arena, source, strlen(source));
    char *part = arena_strndup(&arena, source, 5);
    char *empty = arena_strndup(&arena, NULL, 0);
    memset(source, 'x', sizeof source - 1);
    assert_string_equal(whole, "model.embed_tokens.weight");
    assert_string_equal(part, "model");
    assert_string_equal(empty, "");
    arena_free(&arena);
}

static void impossible_sizes_are_refused(void **state)
{
    (void)state;
    struct arena arena = {0};

    assert_null(arena_alloc(&arena, SIZE_MAX));
    assert_null(arena_alloc(&arena, SIZE_MAX - 15));
    assert_null(arena_alloc(&arena, SIZE_MAX - 40));
    assert_null(arena_strndup(&arena, "", SIZE_MAX));
    char *after = arena_strndup(&arena, "ok", 2);
    assert_string_equal(after, "ok");
    arena_free(&arena);
}

static void freed_arena_is_empty_and_usable(void **state)
{
    (void)state;
    struct arena arena = {0};

    arena_free(&arena);
    assert_non_null(arena_alloc(&arena, 1));
    arena_free(&arena);
    assert_null(arena.head);
    assert_non_null(arena_alloc(&arena, 1));
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_are_aligned_and_disjoint),
        cmocka_unit_test(texts_are_copied_and_terminated),
        cmocka_unit_test(impossible_sizes_are_refused),
        cmocka_unit_test(freed_arena_is_empty_and_usable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
