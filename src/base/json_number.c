#include "base/json_number.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static bool is_digit(const struct json_scan *scan)
{
    return scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9';
}

static bool is_byte(const struct json_scan *scan, uint8_t byte)
{
    return scan->at < scan->end && *scan->at == byte;
}

bool json_u64(struct json_scan *scan, uint64_t *ret_number)
{
    static const char problem[] = "expected a whole number from 0 to 2^64 - 1";
    uint64_t number = 0;

    (void)json_next(scan);
    if (!is_digit(scan))
        return json_problem(scan, problem);
    const uint8_t *first = scan->at;
    for (; is_digit(scan); scan->at++) {
        if (__builtin_mul_overflow(number, UINT64_C(10), &number) ||
            __builtin_add_overflow(number, (uint64_t)(*scan->at - '0'), &number))
            return json_problem(scan, problem);
    }
    if (*first == '0' && scan->at - first > 1)
        return json_problem(scan, "a number starts with a needless 0");
    if (is_byte(scan, '.') || is_byte(scan, 'e') || is_byte(scan, 'E'))
        return json_problem(scan, problem);
    *ret_number = number;
    return true;
}

/* A decimal number as serde_json reads it: digits that no longer fit the significand are
 * dropped, so the value is `significand * 10^exponent`. */
struct decimal {
    uint64_t significand;
    int64_t exponent;
    bool full;
};

static void add_digit(struct decimal *number, unsigned digit, bool fraction)
{
    uint64_t next;

    if (!number->full && !__builtin_mul_overflow(number->significand, UINT64_C(10), &next) &&
        !__builtin_add_overflow(next, (uint64_t)digit, &next)) {
        number->significand = next;
        number->exponent -= fraction;
        return;
    }
    number->full = true;
    number->exponent += !fraction;
}

static bool take_digits(struct json_scan *scan, struct decimal *number, bool fraction)
{
    if (!is_digit(scan))
        return json_problem(scan, "expected a digit");
    for (; is_digit(scan); scan->at++)
        add_digit(number, (unsigned)(*scan->at - '0'), fraction);
    return true;
}

static bool take_exponent(struct json_scan *scan, struct decimal *number)
{
    const int64_t limit = INT64_C(1)
                          << 32; /* far beyond what the digits of a text can make up for */
    int64_t exponent = 0;
    bool negative = false;

    scan->at++;
    if (scan->at < scan->end && (*scan->at == '+' || *scan->at == '-')) {
        negative = *scan->at == '-';
        scan->at++;
    }
    if (!is_digit(scan))
        return json_problem(scan, "expected a digit");
    for (; is_digit(scan); scan->at++) {
        if (exponent < limit)
            exponent = exponent * 10 + (*scan->at - '0');
    }
    number->exponent += negative ? -exponent : exponent;
    return true;
}

/* Whether the double that serde_json makes of it is infinite: the same two roundings, because it
 * refuses some numbers that correct rounding would just keep finite. */
static bool is_infinite(const struct decimal *number)
{
    char power[32];

    if (number->significand == 0 || number->exponent <= 0)
        return false;
    if (number->exponent > 308)
        return true;
    snprintf(power, sizeof(power), "1e%d", (int)number->exponent);
    return isinf((double)number->significand * strtod(power, NULL));
}

static bool take_whole_part(struct json_scan *scan, struct decimal *number)
{
    if (is_byte(scan, '-'))
        scan->at++;
    else if (!is_digit(scan))
        return json_problem(scan,
                            scan->at == scan->end ? "the text ends too early" : "expected a value");
    const uint8_t *first = scan->at;
    if (!take_digits(scan, number, false))
        return false;
    if (*first == '0' && scan->at - first > 1)
        return json_problem(scan, "a number starts with a needless 0");
    return true;
}

bool json_skip_number(struct json_scan *scan)
{
    struct decimal number = {.significand = 0};

    if (!take_whole_part(scan, &number))
        return false;
    if (is_byte(scan, '.')) {
        scan->at++;
        if (!take_digits(scan, &number, true))
            return false;
    }
    if ((is_byte(scan, 'e') || is_byte(scan, 'E')) && !take_exponent(scan, &number))
        return false;
    return !is_infinite(&number) || json_problem(scan, "the number is too large");
}
