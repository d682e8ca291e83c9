#include "base/utf8.h"

size_t utf8_decode(const uint8_t *at, size_t left, uint32_t *ret_character)
{
    /* The smallest character that needs as many bytes: less is an overlong form, which would let
     * one name be spelt in several ways. */
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};

    if (left == 0)
        return 0;
    if (at[0] < 0x80) {
        *ret_character = at[0];
        return 1;
    }
    size_t bytes = at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : 2;
    if (at[0] < 0xc2 || at[0] > 0xf4 || left < bytes)
        return 0;
    uint32_t character = at[0] & (0xffu >> (bytes + 1));
    for (size_t i = 1; i < bytes; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        character = character << 6 | (at[i] & 0x3fu);
    }
    if (character < least[bytes] || character > 0x10ffff ||
        (character >= 0xd800 && character <= 0xdfff))
        return 0;
    *ret_character = character;
    return bytes;
}
