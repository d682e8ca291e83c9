/* The target of an HTTP request ("/v1/files/a%20b?x=1") taken apart. Pure. */
#ifndef CONTROL_TARGET_H
#define CONTROL_TARGET_H

#include "base/error.h"

enum { TARGET_MAX_ARGS = 16 };

struct target_arg {
    const char *key;
    const char *value;
};

/* All strings lie in the text that was parsed: decoded, valid UTF-8, without NULs inside. */
struct target {
    const char *path;
    struct target_arg args[TARGET_MAX_ARGS];
    unsigned arg_count;
};

/* Decodes in place. Refused (RF_E_INVAL): what does not begin with "/" (or with "http://HOST/"),
 * percent signs without two hex digits, decoded bytes that are not UTF-8 or are NUL, more than
 * TARGET_MAX_ARGS. A '+' stays one. */
enum rf_code target_parse(char *text, struct target *ret_target, struct rf_error *err);

/* NULL if it is not there; the last one if it is there several times. */
const char *target_arg(const struct target *target, const char *key);

/* Decimal digits and nothing else, at most max; *ret_value is left alone if the argument is not
 * there. RF_E_INVAL. */
enum rf_code target_u64(const struct target *target, const char *key, uint64_t max,
                        uint64_t *ret_value, struct rf_error *err);

/* RF_E_INVAL if there is an argument that is not in `known` (names with one blank between them),
 * saying which are, or one is there twice. */
enum rf_code target_only(const struct target *target, const char *known, struct rf_error *err);

/* The digits [text, text + bytes) as a number; false if there is none, anything else, or it is
 * over max. */
bool target_digits(const char *text, size_t bytes, uint64_t max, uint64_t *ret_value);

#endif
