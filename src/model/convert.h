/* Changing the dtype of elements without losing a bit. */
#ifndef MODEL_CONVERT_H
#define MODEL_CONVERT_H

#include "base/error.h"

/* Whether elements of `from` can become `to` and back: BF16 and F16 widen to F32, and what was
 * widened narrows again. Equal dtypes are no conversion: false. */
bool convert_known(enum rf_dtype from, enum rf_dtype to);

/* Converts bytes of `from` elements (whole ones) at src to dst, which has room for
 * convert_bytes(). The two do not overlap; neither need be aligned. Narrowing checks that
 * nothing is lost: RF_E_INVAL names the element that has no counterpart (dst is then partly
 * written). */
enum rf_code convert_elements(enum rf_dtype from, const void *src, uint64_t bytes, enum rf_dtype to,
                              void *dst, struct rf_error *err);

/* What `bytes` of `from` elements take as `to`; both have whole bytes per element. */
uint64_t convert_bytes(enum rf_dtype from, uint64_t bytes, enum rf_dtype to);

#endif
