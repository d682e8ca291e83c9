/* Small helps for tests of codecs. */
#ifndef UTIL_BYTES_H
#define UTIL_BYTES_H

#include "base/error.h"

/* A copy of exactly so many bytes, the caller's to free: AddressSanitizer sees the first byte read
 * beyond them. */
uint8_t *exact_copy(const void *data, size_t bytes);

/* Fails the running test unless the error's line holds these words. */
void assert_says(const struct rf_error *err, const char *words);

#endif
