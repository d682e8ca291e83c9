#include "control/range.h"

#include <string.h>
#include <strings.h>

/* Reads digits; a number too large for 64 bits counts as the largest. false if there are none. */
static bool take_number(const char **at, uint64_t *ret_number)
{
    const char *start = *at;
    uint64_t number = 0;

    for (; **at >= '0' && **at <= '9'; (*at)++) {
        if (__builtin_mul_overflow(number, 10u, &number) ||
            __builtin_add_overflow(number, (uint64_t)(**at - '0'), &number))
            number = UINT64_MAX;
    }
    *ret_number = number;
    return *at != start;
}

/* "-N": the last N bytes. */
static enum range_kind suffix(const char *at, uint64_t total, struct byte_range *ret_range)
{
    uint64_t bytes = 0;

    if (!take_number(&at, &bytes) || *at != '\0')
        return RANGE_WHOLE;
    if (bytes == 0 || total == 0)
        return RANGE_UNSATISFIABLE;
    bytes = bytes < total ? bytes : total;
    *ret_range = (struct byte_range){.from = total - bytes, .bytes = bytes};
    return RANGE_PART;
}

enum range_kind range_parse(const char *header, uint64_t total, struct byte_range *ret_range)
{
    uint64_t first = 0;
    uint64_t last = UINT64_MAX;

    if (header == NULL || strncasecmp(header, "bytes=", 6) != 0)
        return RANGE_WHOLE;
    const char *at = header + 6;
    if (*at == '-')
        return suffix(at + 1, total, ret_range);
    /* What does not follow the grammar is ignored, as RFC 9110, 14.2 asks; so are several
     * ranges. */
    if (!take_number(&at, &first) || *at != '-')
        return RANGE_WHOLE;
    at++;
    if (*at != '\0' && !take_number(&at, &last))
        return RANGE_WHOLE;
    if (*at != '\0' || last < first)
        return RANGE_WHOLE;
    if (first >= total)
        return RANGE_UNSATISFIABLE;
    last = last < total ? last : total - 1;
    *ret_range = (struct byte_range){.from = first, .bytes = last - first + 1};
    return RANGE_PART;
}
