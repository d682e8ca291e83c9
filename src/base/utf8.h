/* Telling UTF-8 from other bytes. */
#ifndef BASE_UTF8_H
#define BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes (1 to 4) of the character at `at`, of which `left` bytes may be looked at;
 * *ret_character is its code point. 0 if there is none: cut short, overlong, a surrogate, over
 * U+10FFFF, or left is 0. */
size_t utf8_decode(const uint8_t *at, size_t left, uint32_t *ret_character);

#endif
