/* The Range header of RFC 9110, as far as one range goes. Pure. */
#ifndef CONTROL_RANGE_H
#define CONTROL_RANGE_H

#include "base/error.h"

enum range_kind {
    RANGE_WHOLE,         /* no range, one that is to be ignored, or several: answer 200 */
    RANGE_PART,          /* answer 206 with [from, from + bytes) */
    RANGE_UNSATISFIABLE, /* answer 416 */
};

struct byte_range {
    uint64_t from;
    uint64_t bytes; /* > 0 */
};

/* header may be NULL. total: bytes of the whole representation. *ret_range is set for RANGE_PART
 * only. */
enum range_kind range_parse(const char *header, uint64_t total, struct byte_range *ret_range);

#endif
