/* Filling and passing on struct rf_error. */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <rfork/base.h>

/* Fills err (may be NULL) with a code and a formatted line; returns the code, so that a failing
 * function ends with `return rf_fail(err, RF_E_INVAL, "...")`. Control characters and bytes that
 * are not UTF-8 in the result are replaced by '?': names in it may come from a peer. */
enum rf_code rf_fail(struct rf_error *err, enum rf_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The same for errno, read first: "<line>: No such file or directory". The code is RF_E_SYS, but
 * RF_E_NOMEM for ENOMEM, ENOSPC and EDQUOT, and RF_E_DENIED for EACCES and EPERM. */
enum rf_code rf_fail_sys(struct rf_error *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Puts "<line>: " in front of what err (may be NULL) says and returns its code unchanged.
 * code is what the failed call returned. */
enum rf_code rf_error_wrap(struct rf_error *err, enum rf_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Overwrites what is not printable UTF-8 in a NUL-terminated line with '?', in place. */
void rf_text_sanitise(char *text);

/* The static analyser looks at one file at a time and cannot see that these never return RF_OK. */
#ifdef __clang_analyzer__
static inline enum rf_code error_never_ok(enum rf_code code)
{
    if (code == RF_OK)
        __builtin_unreachable();
    return code;
}
#define rf_fail(...)     error_never_ok(rf_fail(__VA_ARGS__))
#define rf_fail_sys(...) error_never_ok(rf_fail_sys(__VA_ARGS__))
#endif

#endif
