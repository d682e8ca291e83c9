/* Dtypes of the safetensors format by name. Public names in <rfork/base.h>. */
#ifndef BASE_DTYPE_H
#define BASE_DTYPE_H

#include "base/error.h"

/* Whether name (not NUL-terminated) is a dtype of the format, exactly as spelt there. */
bool dtype_parse(const char *name, size_t bytes, enum rf_dtype *ret_dtype);

/* Bytes of a tensor: product of the shape times bits, which must be whole bytes. false on overflow
 * or a part of a byte. ndim 0 is a scalar: one element. A zero in the shape makes zero bytes. */
bool dtype_tensor_bytes(enum rf_dtype dtype, const uint64_t *shape, unsigned ndim,
                        uint64_t *ret_bytes);

#endif
