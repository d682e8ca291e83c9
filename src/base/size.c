#include "base/size.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* Six digits after the point: 10^6 times the largest factor still fits 64 bits. */
enum { SIZE_FRACTION_DIGITS = 6 };

static const uint64_t size_max = UINT64_C(1) << 63;

/* The factor of "", "B", "K", "KB", "KiB", ...; 0 if it is none of them. */
static uint64_t factor_of(const char *suffix)
{
    static const char letters[] = "kmgt";
    uint64_t factor = 1;

    if (suffix[0] == '\0' || strcasecmp(suffix, "b") == 0)
        return 1;
    const char *letter = strchr(letters, tolower((unsigned char)suffix[0]));
    if (letter == NULL)
        return 0;
    bool decimal = strcasecmp(suffix + 1, "b") == 0;
    if (!decimal && suffix[1] != '\0' && strcasecmp(suffix + 1, "i") != 0 &&
        strcasecmp(suffix + 1, "ib") != 0)
        return 0;
    for (const char *at = letters; at <= letter; at++)
        factor *= decimal ? 1000 : 1024;
    return factor;
}

/* Reads "12" or "12.5": the whole part, the digits after the point and 10 to their number. */
static bool parse_number(const char **at, uint64_t *ret_whole, uint64_t *ret_fraction,
                         uint64_t *ret_scale)
{
    uint64_t whole = 0;
    uint64_t fraction = 0;
    uint64_t scale = 1;
    const char *from = *at;

    if (!isdigit((unsigned char)*from))
        return false;
    for (; isdigit((unsigned char)*from); from++) {
        if (__builtin_mul_overflow(whole, UINT64_C(10), &whole) ||
            __builtin_add_overflow(whole, (uint64_t)(*from - '0'), &whole))
            return false;
    }
    if (*from == '.') {
        from++;
        if (!isdigit((unsigned char)*from))
            return false;
        for (unsigned digits = 0; isdigit((unsigned char)*from); from++) {
            if (++digits > SIZE_FRACTION_DIGITS)
                return false;
            fraction = fraction * 10 + (uint64_t)(*from - '0');
            scale *= 10;
        }
    }
    *at = from;
    *ret_whole = whole;
    *ret_fraction = fraction;
    *ret_scale = scale;
    return true;
}

enum rf_code size_parse(const char *text, uint64_t *ret_bytes, struct rf_error *err)
{
    static const char expected[] = "write a number and B, KiB, MiB, GiB, TiB, KB, MB, GB or TB, "
                                   "such as 64MiB or 1.5GB; 2^63 bytes at most";
    const char *at = text;
    uint64_t whole = 0;
    uint64_t fraction = 0;
    uint64_t scale = 1;
    uint64_t bytes = 0;

    if (text == NULL)
        return rf_fail(err, RF_E_INVAL, "no size given: %s", expected);
    if (!parse_number(&at, &whole, &fraction, &scale))
        return rf_fail(err, RF_E_INVAL, "\"%.100s\" is not a size: %s", text, expected);
    if (*at == ' ' && at[1] != '\0')
        at++;
    uint64_t factor = factor_of(at);
    if (factor == 0 || (factor == 1 && fraction != 0))
        return rf_fail(err, RF_E_INVAL, "\"%.100s\" is not a size: %s", text, expected);
    if (__builtin_mul_overflow(whole, factor, &bytes) ||
        __builtin_add_overflow(bytes, fraction * factor / scale, &bytes) || bytes > size_max)
        return rf_fail(err, RF_E_INVAL, "\"%.100s\" is too large: %s", text, expected);
    *ret_bytes = bytes;
    return RF_OK;
}

/* Three digits and a unit, without zeros after the point that say nothing: "90.9 MB", "1.2 GB". */
static void put_scaled(double value, const char *unit, char *out)
{
    static const char *const prefixes[] = {"", "k", "M", "G", "T", "P", "E"};
    char number[SIZE_TEXT_BYTES];
    unsigned at = 0;

    if (!(value > 0))
        value = 0;
    /* 999.5 would be printed as 1000. */
    while (value >= 999.5 && at + 1 < sizeof prefixes / sizeof prefixes[0]) {
        value /= 1000;
        at++;
    }
    if (value > 1e6) /* only a rate can be as large, and only by mistake */
        value = 1e6;
    int decimals = at == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    snprintf(number, sizeof number, "%.*f", decimals, value);
    if (decimals > 0) {
        size_t bytes = strlen(number);
        while (number[bytes - 1] == '0')
            number[--bytes] = '\0';
        if (number[bytes - 1] == '.')
            number[--bytes] = '\0';
    }
    snprintf(out, SIZE_TEXT_BYTES, "%.12s %s%s", number, prefixes[at], unit);
}

const char *size_text(uint64_t bytes, char out[SIZE_TEXT_BYTES])
{
    put_scaled((double)bytes, "B", out);
    return out;
}

const char *size_rate_text(double bytes_per_s, char out[SIZE_TEXT_BYTES])
{
    put_scaled(bytes_per_s, "B/s", out);
    return out;
}

const char *size_seconds_text(double seconds, char out[SIZE_TEXT_BYTES])
{
    if (!(seconds > 0)) {
        snprintf(out, SIZE_TEXT_BYTES, "0 ms");
    } else if (seconds < 0.0009995) {
        snprintf(out, SIZE_TEXT_BYTES, "%.0f us", seconds * 1e6);
    } else if (seconds < 0.9995) {
        snprintf(out, SIZE_TEXT_BYTES, "%.0f ms", seconds * 1e3);
    } else if (seconds < 59.95) {
        snprintf(out, SIZE_TEXT_BYTES, "%.1f s", seconds);
    } else if (seconds < 1e12) {
        uint64_t whole = (uint64_t)(seconds + 0.5);
        if (whole < 3600)
            snprintf(out, SIZE_TEXT_BYTES, "%" PRIu64 " min %" PRIu64 " s", whole / 60, whole % 60);
        else
            snprintf(out, SIZE_TEXT_BYTES, "%" PRIu64 " h %" PRIu64 " min", whole / 3600,
                     whole / 60 % 60);
    } else {
        snprintf(out, SIZE_TEXT_BYTES, "for ever");
    }
    return out;
}
