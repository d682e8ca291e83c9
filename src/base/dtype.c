#include "base/dtype.h"

#include <string.h>

static const struct {
    const char *name;
    unsigned bits;
} dtypes[RF_DTYPE_COUNT] = {
    [RF_DTYPE_BOOL] = {"BOOL", 8},
    [RF_DTYPE_F4] = {"F4", 4},
    [RF_DTYPE_F6_E2M3] = {"F6_E2M3", 6},
    [RF_DTYPE_F6_E3M2] = {"F6_E3M2", 6},
    [RF_DTYPE_U8] = {"U8", 8},
    [RF_DTYPE_I8] = {"I8", 8},
    [RF_DTYPE_F8_E5M2] = {"F8_E5M2", 8},
    [RF_DTYPE_F8_E4M3] = {"F8_E4M3", 8},
    [RF_DTYPE_F8_E8M0] = {"F8_E8M0", 8},
    [RF_DTYPE_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [RF_DTYPE_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [RF_DTYPE_I16] = {"I16", 16},
    [RF_DTYPE_U16] = {"U16", 16},
    [RF_DTYPE_F16] = {"F16", 16},
    [RF_DTYPE_BF16] = {"BF16", 16},
    [RF_DTYPE_I32] = {"I32", 32},
    [RF_DTYPE_U32] = {"U32", 32},
    [RF_DTYPE_F32] = {"F32", 32},
    [RF_DTYPE_C64] = {"C64", 64},
    [RF_DTYPE_F64] = {"F64", 64},
    [RF_DTYPE_I64] = {"I64", 64},
    [RF_DTYPE_U64] = {"U64", 64},
};

RF_API const char *rf_dtype_name(enum rf_dtype dtype)
{
    return (unsigned)dtype < RF_DTYPE_COUNT ? dtypes[dtype].name : NULL;
}

RF_API unsigned rf_dtype_bits(enum rf_dtype dtype)
{
    return (unsigned)dtype < RF_DTYPE_COUNT ? dtypes[dtype].bits : 0;
}

bool dtype_parse(const char *name, size_t bytes, enum rf_dtype *ret_dtype)
{
    for (unsigned i = 0; i < RF_DTYPE_COUNT; i++) {
        if (strlen(dtypes[i].name) == bytes && memcmp(dtypes[i].name, name, bytes) == 0) {
            *ret_dtype = (enum rf_dtype)i;
            return true;
        }
    }
    return false;
}

bool dtype_tensor_bytes(enum rf_dtype dtype, const uint64_t *shape, unsigned ndim,
                        uint64_t *ret_bytes)
{
    uint64_t bits = rf_dtype_bits(dtype);
    uint64_t elements = 1;
    uint64_t bytes = 0;

    if (bits == 0)
        return false;
    for (unsigned i = 0; i < ndim; i++) {
        if (shape[i] == 0) { /* whatever the others multiply to */
            *ret_bytes = 0;
            return true;
        }
    }
    for (unsigned i = 0; i < ndim; i++) {
        if (__builtin_mul_overflow(elements, shape[i], &elements))
            return false;
    }
    /* Whole bytes per element are multiplied as bytes, which may fit where their bits do not. */
    if (bits % 8 == 0) {
        if (__builtin_mul_overflow(elements, bits / 8, &bytes))
            return false;
    } else {
        if (__builtin_mul_overflow(elements, bits, &bytes) || bytes % 8 != 0)
            return false;
        bytes /= 8;
    }
    *ret_bytes = bytes;
    return true;
}
