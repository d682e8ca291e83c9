/* UTF-8: exactly the sequences of RFC 3629. */
#include "base/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include <cmocka.h>

static size_t encode(uint32_t character, uint8_t out[4])
{
    if (character < 0x80) {
        out[0] = (uint8_t)character;
        return 1;
    }
    if (character < 0x800) {
        out[0] = (uint8_t)(0xc0 | character >> 6);
        out[1] = (uint8_t)(0x80 | (character & 0x3f));
        return 2;
    }
    if (character < 0x10000) {
        out[0] = (uint8_t)(0xe0 | character >> 12);
        out[1] = (uint8_t)(0x80 | (character >> 6 & 0x3f));
        out[2] = (uint8_t)(0x80 | (character & 0x3f));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | character >> 18);
    out[1] = (uint8_t)(0x80 | (character >> 12 & 0x3f));
    out[2] = (uint8_t)(0x80 | (character >> 6 & 0x3f));
    out[3] = (uint8_t)(0x80 | (character & 0x3f));
    return 4;
}

static void every_character_is_decoded_but_surrogates(void **state)
{
    (void)state;
    for (uint32_t character = 0; character <= 0x10ffff; character++) {
        uint8_t raw[4];
        uint32_t got = UINT32_MAX;
        size_t bytes = encode(character, raw);
        bool surrogate = character >= 0xd800 && character <= 0xdfff;
        size_t taken = utf8_decode(raw, bytes, &got);
        if (taken != (surrogate ? 0 : bytes) || (!surrogate && got != character))
            fail_msg("U+%04X: took %zu of %zu bytes, got U+%04X", character, taken, bytes, got);
    }
}

static void cut_short_is_refused(void **state)
{
    (void)state;
    static const uint32_t characters[] = {0x80, 0x7ff, 0x800, 0xffff, 0x10000, 0x10ffff};
    uint32_t got = 0;

    assert_int_equal(utf8_decode((const uint8_t *)"", 0, &got), 0);
    for (size_t i = 0; i < sizeof characters / sizeof characters[0]; i++) {
        uint8_t raw[4];
        size_t bytes = encode(characters[i], raw);
        for (size_t left = 0; left < bytes; left++)
            assert_int_equal(utf8_decode(raw, left, &got), 0);
    }
}

/* All sequences of two bytes, and all of four whose tail is the least or the greatest: what is
 * taken must be what encoding the result gives. */
static void nothing_is_decoded_that_encodes_to_something_else(void **state)
{
    (void)state;
    static const uint8_t tails[][2] = {{0x80, 0x80}, {0xbf, 0xbf}, {0x7f, 0x80}, {0x80, 0xc0}};

    for (unsigned first = 0; first < 256; first++) {
        for (unsigned second = 0; second < 256; second++) {
            for (size_t tail = 0; tail < sizeof tails / sizeof tails[0]; tail++) {
                uint8_t raw[4] = {(uint8_t)first, (uint8_t)second, tails[tail][0], tails[tail][1]};
                uint8_t again[4];
                uint32_t got = 0;
                size_t taken = utf8_decode(raw, sizeof raw, &got);
                if (taken == 0)
                    continue;
                assert_int_equal(encode(got, again), taken);
                assert_memory_equal(again, raw, taken);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_character_is_decoded_but_surrogates),
        cmocka_unit_test(cut_short_is_refused),
        cmocka_unit_test(nothing_is_decoded_that_encodes_to_something_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
