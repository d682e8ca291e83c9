#include "model/convert.h"

#include <assert.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

bool convert_known(enum rf_dtype from, enum rf_dtype to)
{
    bool from_half = from == RF_DTYPE_BF16 || from == RF_DTYPE_F16;
    bool to_half = to == RF_DTYPE_BF16 || to == RF_DTYPE_F16;

    return (from_half && to == RF_DTYPE_F32) || (from == RF_DTYPE_F32 && to_half);
}

uint64_t convert_bytes(enum rf_dtype from, uint64_t bytes, enum rf_dtype to)
{
    return bytes / (rf_dtype_bits(from) / 8) * (rf_dtype_bits(to) / 8);
}

/* Every F16 is an F32, subnormal ones become normal; the payload of a NaN is kept. */
static uint32_t f16_widen(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 0x1f;
    uint32_t mantissa = half & 0x3ff;

    if (exponent == 0x1f)
        return sign | 0x7f800000 | mantissa << 13;
    if (exponent > 0)
        return sign | (exponent + 112) << 23 | mantissa << 13;
    if (mantissa == 0)
        return sign;
    exponent = 113;
    while ((mantissa & 0x400) == 0) {
        mantissa <<= 1;
        exponent--;
    }
    return sign | exponent << 23 | (mantissa & 0x3ff) << 13;
}

/* The F16 that may have been widened to this; the caller checks that it was. */
static uint16_t f16_narrow(uint32_t word)
{
    uint32_t sign = word >> 16 & 0x8000;
    uint32_t exponent = word >> 23 & 0xff;
    uint32_t mantissa = word & 0x7fffff;

    if (exponent == 0xff)
        return (uint16_t)(sign | 0x7c00 | mantissa >> 13);
    if (exponent > 112)
        return (uint16_t)(sign | (exponent - 112) << 10 | mantissa >> 13);
    if (exponent < 103)
        return (uint16_t)sign;
    return (uint16_t)(sign | (mantissa | 0x800000) >> (126 - exponent));
}

static uint32_t widen(enum rf_dtype from, uint16_t half)
{
    return from == RF_DTYPE_BF16 ? (uint32_t)half << 16 : f16_widen(half);
}

enum rf_code convert_elements(enum rf_dtype from, const void *src, uint64_t bytes, enum rf_dtype to,
                              void *dst, struct rf_error *err)
{
    const uint8_t *at = src;
    uint8_t *out = dst;

    assert(convert_known(from, to) && bytes % (rf_dtype_bits(from) / 8) == 0);
    if (to == RF_DTYPE_F32) {
        for (uint64_t i = 0; i < bytes / 2; i++) {
            uint16_t half;

            memcpy(&half, at + 2 * i, sizeof half);
            uint32_t word = widen(from, half);
            memcpy(out + 4 * i, &word, sizeof word);
        }
        return RF_OK;
    }
    for (uint64_t i = 0; i < bytes / 4; i++) {
        uint32_t word;

        memcpy(&word, at + 4 * i, sizeof word);
        uint16_t half = to == RF_DTYPE_BF16 ? (uint16_t)(word >> 16) : f16_narrow(word);
        if (widen(to, half) != word)
            return rf_fail(err, RF_E_INVAL,
                           "element %" PRIu64 ", %#" PRIx32 " as F32, cannot be %s again", i, word,
                           rf_dtype_name(to));
        memcpy(out + 2 * i, &half, sizeof half);
    }
    return RF_OK;
}
