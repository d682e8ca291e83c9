/* Codes, errors, dtypes and versions: what every other public header of librfork stands on.
 *
 * Copyright 2026 The rfork authors. SPDX-License-Identifier: Apache-2.0 */
#ifndef RFORK_BASE_H
#define RFORK_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RF_API __attribute__((visibility("default")))

#define RF_VERSION_MAJOR 0
#define RF_VERSION_MINOR 1
#define RF_VERSION_PATCH 0

/* What every function that can fail returns. The values are stable: they are also the exit codes
 * of the program `rfork` (except RF_AGAIN, which never leaves the library). */
enum rf_code {
    RF_OK = 0,
    RF_E_FAILED = 1,       /* anything that has no code of its own */
    RF_E_INVAL = 2,        /* an argument is wrong: the caller must change the call */
    RF_E_SYS = 3,          /* the operating system refused; rf_error.sys_errno says what */
    RF_E_FORMAT = 4,       /* a file or folder is not what it should be */
    RF_E_PROTO = 5,        /* a peer broke the protocol, or speaks an unknown version */
    RF_E_MISMATCH = 6,     /* the two sides hold different models, tensors or shapes */
    RF_E_CORRUPT = 7,      /* bytes arrived or were read that do not match their digest */
    RF_E_UNREACHABLE = 8,  /* no seed answers there, or it went away */
    RF_E_TIMEOUT = 9,      /* a deadline passed */
    RF_E_DENIED = 10,      /* a token, credential or permission was refused */
    RF_E_NOMEM = 11,       /* memory, disk space or another quantity would not suffice */
    RF_E_CANCELLED = 12,   /* the caller cancelled it, or a signal did */
    RF_E_UNSUPPORTED = 13, /* not available here: no device, no library, no such transport */
    RF_E_CHANGED = 14,     /* a file being served is no longer what it was when it was opened */
    RF_AGAIN = 100,        /* flow control, not an error: the window is full, progress first */
};

enum { RF_ERROR_TEXT_BYTES = 512 };

/* Why a call failed: one line of UTF-8 that names the object, the numbers and the way out.
 * Owned by the caller, who may pass NULL wherever one is asked for. */
struct rf_error {
    enum rf_code code;
    int sys_errno; /* 0 if the operating system had no part in it */
    char text[RF_ERROR_TEXT_BYTES];
};

/* The element types of the safetensors format (https://github.com/huggingface/safetensors), under
 * its own names. Elements of 4 and 6 bits are packed: a tensor's bits must be a multiple of 8. */
enum rf_dtype {
    RF_DTYPE_BOOL,
    RF_DTYPE_F4,
    RF_DTYPE_F6_E2M3,
    RF_DTYPE_F6_E3M2,
    RF_DTYPE_U8,
    RF_DTYPE_I8,
    RF_DTYPE_F8_E5M2,
    RF_DTYPE_F8_E4M3,
    RF_DTYPE_F8_E8M0,
    RF_DTYPE_F8_E4M3FNUZ,
    RF_DTYPE_F8_E5M2FNUZ,
    RF_DTYPE_I16,
    RF_DTYPE_U16,
    RF_DTYPE_F16,
    RF_DTYPE_BF16,
    RF_DTYPE_I32,
    RF_DTYPE_U32,
    RF_DTYPE_F32,
    RF_DTYPE_C64,
    RF_DTYPE_F64,
    RF_DTYPE_I64,
    RF_DTYPE_U64,
    RF_DTYPE_COUNT,
};

enum {
    RF_MAX_DIMS = 32,         /* dimensions of one tensor */
    RF_MAX_NAME_BYTES = 4096, /* bytes of one tensor's or file's name, without the final NUL */
};

/* The name of a code ("RF_E_TIMEOUT"), never NULL. Any thread, does not block. */
RF_API const char *rf_code_name(enum rf_code code);

/* "0.1.0" of the library that runs, which may be newer than the header. Any thread. */
RF_API const char *rf_version(void);

/* The safetensors name of a dtype ("BF16"); NULL if out of range. Any thread. */
RF_API const char *rf_dtype_name(enum rf_dtype dtype);

/* Bits of one element; 0 if out of range. Any thread. */
RF_API unsigned rf_dtype_bits(enum rf_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif
