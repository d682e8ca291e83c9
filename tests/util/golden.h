/* Files under tests/golden/ hold bytes that were released: encoders must go on making them. */
#ifndef UTIL_GOLDEN_H
#define UTIL_GOLDEN_H

#include <stddef.h>
#include <stdint.h>

/* Fails the running test unless the file holds exactly these bytes; shows where they part. With
 * RFORK_GOLDEN_WRITE set in the environment the file is written instead: for a new version of a
 * format, never to make a test pass. */
void golden_check(const char *name, const void *data, size_t bytes);

/* The file's bytes, exactly as many as there are, so that a sanitizer sees a read beyond them; the
 * caller frees them. Fails the running test if there is no such file. */
uint8_t *golden_read(const char *name, size_t *ret_bytes);

#endif
