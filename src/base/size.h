/* Sizes, rates and durations as people write them. */
#ifndef BASE_SIZE_H
#define BASE_SIZE_H

#include "base/error.h"

enum { SIZE_TEXT_BYTES = 32 };

/* Parses "4096", "64KiB", "8MiB", "1.5GiB", "500MB", "4GB", "2G" (suffixes: none or B; K M G T with
 * iB = powers of 1024, with B = powers of 1000, alone = powers of 1024; case does not matter; one
 * blank may stand before the suffix). Errors: RF_E_INVAL (not a size, negative, over 2^63). */
enum rf_code size_parse(const char *text, uint64_t *ret_bytes, struct rf_error *err);

/* "90.9 MB", "1.2 GB": powers of 1000, three digits. Writes at most SIZE_TEXT_BYTES; returns
 * out. */
const char *size_text(uint64_t bytes, char out[SIZE_TEXT_BYTES]);

/* "3.21 GB/s". */
const char *size_rate_text(double bytes_per_s, char out[SIZE_TEXT_BYTES]);

/* "420 ms", "1.3 s", "2 min 5 s". */
const char *size_seconds_text(double seconds, char out[SIZE_TEXT_BYTES]);

#endif
