#include "base/error.h"

#include "base/utf8.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What the static analyser is shown instead: see error.h. */
#undef rf_fail
#undef rf_fail_sys

/* A wrapped line that grows too long loses the end of its newest prefix, as long as that prefix
 * keeps this many bytes: the cause, which is at the end, is what the reader needs. */
enum { ERROR_PREFIX_MIN_BYTES = 96 };

static const char *const code_names[] = {
    [RF_OK] = "RF_OK",
    [RF_E_FAILED] = "RF_E_FAILED",
    [RF_E_INVAL] = "RF_E_INVAL",
    [RF_E_SYS] = "RF_E_SYS",
    [RF_E_FORMAT] = "RF_E_FORMAT",
    [RF_E_PROTO] = "RF_E_PROTO",
    [RF_E_MISMATCH] = "RF_E_MISMATCH",
    [RF_E_CORRUPT] = "RF_E_CORRUPT",
    [RF_E_UNREACHABLE] = "RF_E_UNREACHABLE",
    [RF_E_TIMEOUT] = "RF_E_TIMEOUT",
    [RF_E_DENIED] = "RF_E_DENIED",
    [RF_E_NOMEM] = "RF_E_NOMEM",
    [RF_E_CANCELLED] = "RF_E_CANCELLED",
    [RF_E_UNSUPPORTED] = "RF_E_UNSUPPORTED",
    [RF_E_CHANGED] = "RF_E_CHANGED",
    [RF_AGAIN] = "RF_AGAIN",
};

RF_API const char *rf_code_name(enum rf_code code)
{
    unsigned at = (unsigned)code;

    if (at >= sizeof code_names / sizeof code_names[0] || code_names[at] == NULL)
        return "unknown code";
    return code_names[at];
}

#define VERSION_TEXT_(major, minor, patch) #major "." #minor "." #patch
#define VERSION_TEXT(major, minor, patch)  VERSION_TEXT_(major, minor, patch)

RF_API const char *rf_version(void)
{
    return VERSION_TEXT(RF_VERSION_MAJOR, RF_VERSION_MINOR, RF_VERSION_PATCH);
}

/* Controls move a terminal's cursor; line separators and changes of the writing direction make a
 * line read as something it is not. */
static bool is_printable(uint32_t character)
{
    if (character < 0x20 || (character >= 0x7f && character < 0xa0))
        return false;
    if (character >= 0x2028 && character <= 0x202e)
        return false;
    return !(character >= 0x2066 && character <= 0x2069);
}

void rf_text_sanitise(char *text)
{
    uint8_t *from = (uint8_t *)text;
    uint8_t *to = (uint8_t *)text;
    uint8_t *end = from + strlen(text);

    while (from < end) {
        uint32_t character = 0;
        size_t bytes = utf8_decode(from, (size_t)(end - from), &character);
        if (bytes == 0 || !is_printable(character)) {
            *to++ = '?';
            from += bytes == 0 ? 1 : bytes;
            continue;
        }
        memmove(to, from, bytes);
        to += bytes;
        from += bytes;
    }
    *to = '\0';
}

/* Ends a line that did not fit its room in "...", not within a character. */
static void put_dots(char *line, size_t room)
{
    size_t at = room - 4;

    while (at > 0 && ((uint8_t)line[at] & 0xc0) == 0x80)
        at--;
    memcpy(line + at, "...", 4);
}

__attribute__((format(printf, 2, 0))) static void format_line(char line[RF_ERROR_TEXT_BYTES],
                                                              const char *fmt, va_list args)
{
    int bytes = vsnprintf(line, RF_ERROR_TEXT_BYTES, fmt, args);

    if (bytes < 0)
        snprintf(line, RF_ERROR_TEXT_BYTES, "%s", fmt);
    else if (bytes >= RF_ERROR_TEXT_BYTES)
        put_dots(line, RF_ERROR_TEXT_BYTES);
    rf_text_sanitise(line);
}

enum rf_code rf_fail(struct rf_error *err, enum rf_code code, const char *fmt, ...)
{
    char line[RF_ERROR_TEXT_BYTES]; /* not err->text: the arguments may point into it */
    va_list args;

    if (err == NULL)
        return code;
    va_start(args, fmt);
    format_line(line, fmt, args);
    va_end(args);
    err->code = code;
    err->sys_errno = 0;
    memcpy(err->text, line, sizeof line);
    return code;
}

static enum rf_code code_of_errno(int sys_errno)
{
    switch (sys_errno) {
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
        return RF_E_NOMEM;
    case EACCES:
    case EPERM:
        return RF_E_DENIED;
    default:
        return RF_E_SYS;
    }
}

/* "<prefix>: <cause>" into err->text, at the cost of the prefix if both do not fit. */
static void join(struct rf_error *err, const char *prefix, const char *cause)
{
    char line[RF_ERROR_TEXT_BYTES];
    size_t room = sizeof line - 1 - 2;
    size_t prefix_bytes = strlen(prefix);
    size_t cause_bytes = strlen(cause);

    if (prefix_bytes + cause_bytes > room && prefix_bytes > ERROR_PREFIX_MIN_BYTES) {
        prefix_bytes = cause_bytes < room - ERROR_PREFIX_MIN_BYTES ? room - cause_bytes
                                                                   : ERROR_PREFIX_MIN_BYTES;
        while (prefix_bytes > 0 && ((uint8_t)prefix[prefix_bytes] & 0xc0) == 0x80)
            prefix_bytes--;
    }
    int bytes = snprintf(line, sizeof line, "%.*s: %s", (int)prefix_bytes, prefix, cause);
    if (bytes >= (int)sizeof line)
        put_dots(line, sizeof line);
    memcpy(err->text, line, sizeof line);
}

enum rf_code rf_fail_sys(struct rf_error *err, const char *fmt, ...)
{
    int saved = errno;
    enum rf_code code = code_of_errno(saved);
    char line[RF_ERROR_TEXT_BYTES];
    char reason[128];
    va_list args;

    if (err == NULL)
        return code;
    va_start(args, fmt);
    format_line(line, fmt, args);
    va_end(args);
    err->code = code;
    err->sys_errno = saved;
    join(err, line, strerror_r(saved, reason, sizeof reason));
    errno = saved;
    return code;
}

enum rf_code rf_error_wrap(struct rf_error *err, enum rf_code code, const char *fmt, ...)
{
    char line[RF_ERROR_TEXT_BYTES];
    char cause[RF_ERROR_TEXT_BYTES];
    va_list args;

    if (err == NULL)
        return code;
    va_start(args, fmt);
    format_line(line, fmt, args);
    va_end(args);
    snprintf(cause, sizeof cause, "%s", err->text[0] != '\0' ? err->text : rf_code_name(code));
    err->code = code;
    join(err, line, cause);
    return code;
}
