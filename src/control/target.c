#include "control/target.h"

#include "base/utf8.h"

#include <inttypes.h>
#include <string.h>
#include <strings.h>

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static bool utf8_ok(const char *text)
{
    const uint8_t *at = (const uint8_t *)text;
    size_t left = strlen(text);

    while (left > 0) {
        uint32_t character = 0;
        size_t bytes = utf8_decode(at, left, &character);
        if (bytes == 0)
            return false;
        at += bytes;
        left -= bytes;
    }
    return true;
}

/* In place, since decoding never makes it longer. */
static enum rf_code decode(char *text, struct rf_error *err)
{
    char *to = text;

    for (const char *from = text; *from != '\0'; from++) {
        if (*from != '%') {
            *to++ = *from;
            continue;
        }
        int high = hex_digit(from[1]);
        int low = high >= 0 ? hex_digit(from[2]) : -1;
        if (low < 0)
            return rf_fail(err, RF_E_INVAL, "a percent sign without two hex digits in the URL");
        if (high == 0 && low == 0)
            return rf_fail(err, RF_E_INVAL, "a NUL byte (%%00) in the URL");
        *to++ = (char)(high << 4 | low);
        from += 2;
    }
    *to = '\0';
    if (!utf8_ok(text))
        return rf_fail(err, RF_E_INVAL, "the URL is not UTF-8 once it is decoded");
    return RF_OK;
}

static enum rf_code add_arg(struct target *target, char *text, struct rf_error *err)
{
    char *value = strchr(text, '=');

    if (value != NULL)
        *value++ = '\0';
    else
        value = text + strlen(text);
    enum rf_code code = decode(text, err);
    if (code == RF_OK)
        code = decode(value, err);
    if (code != RF_OK)
        return code;
    if (target->arg_count == TARGET_MAX_ARGS)
        return rf_fail(err, RF_E_INVAL, "more than %d arguments", TARGET_MAX_ARGS);
    target->args[target->arg_count++] = (struct target_arg){.key = text, .value = value};
    return RF_OK;
}

enum rf_code target_parse(char *text, struct target *ret_target, struct rf_error *err)
{
    struct target target = {.arg_count = 0};
    char *path = text;

    /* The absolute form, which every server must take (RFC 9112, 3.2.2). */
    if (strncasecmp(text, "http://", 7) == 0)
        path = strchr(text + 7, '/');
    if (path == NULL || path[0] != '/')
        return rf_fail(err, RF_E_INVAL, "the request's target does not begin with '/'");
    char *args = strchr(path, '?');
    if (args != NULL)
        *args++ = '\0';
    enum rf_code code = decode(path, err);
    if (code != RF_OK)
        return code;
    target.path = path;
    while (args != NULL) {
        char *next = strchr(args, '&');
        if (next != NULL)
            *next++ = '\0';
        code = args[0] != '\0' ? add_arg(&target, args, err) : RF_OK;
        if (code != RF_OK)
            return code;
        args = next;
    }
    *ret_target = target;
    return RF_OK;
}

const char *target_arg(const struct target *target, const char *key)
{
    for (unsigned i = target->arg_count; i-- > 0;) {
        if (strcmp(target->args[i].key, key) == 0)
            return target->args[i].value;
    }
    return NULL;
}

bool target_digits(const char *text, size_t bytes, uint64_t max, uint64_t *ret_value)
{
    uint64_t value = 0;

    if (bytes == 0)
        return false;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < '0' || text[i] > '9' || __builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(text[i] - '0'), &value))
            return false;
    }
    if (value > max)
        return false;
    *ret_value = value;
    return true;
}

enum rf_code target_u64(const struct target *target, const char *key, uint64_t max,
                        uint64_t *ret_value, struct rf_error *err)
{
    const char *text = target_arg(target, key);

    if (text == NULL || target_digits(text, strlen(text), max, ret_value))
        return RF_OK;
    return rf_fail(err, RF_E_INVAL, "%s=%.64s: not a whole number from 0 to %" PRIu64, key, text,
                   max);
}

/* Whether key is one of the words of `known`. */
static bool is_known(const char *known, const char *key)
{
    size_t bytes = strlen(key);

    if (bytes == 0 || strchr(key, ' ') != NULL)
        return false;
    for (const char *at = known; (at = strstr(at, key)) != NULL; at += bytes) {
        bool begins = at == known || at[-1] == ' ';
        if (begins && (at[bytes] == '\0' || at[bytes] == ' '))
            return true;
    }
    return false;
}

enum rf_code target_only(const struct target *target, const char *known, struct rf_error *err)
{
    for (unsigned i = 0; i < target->arg_count; i++) {
        const char *key = target->args[i].key;
        if (is_known(known, key) && target_arg(target, key) != target->args[i].value)
            return rf_fail(err, RF_E_INVAL, "argument %.64s is given twice", key);
        if (is_known(known, key))
            continue;
        if (known[0] == '\0')
            return rf_fail(err, RF_E_INVAL, "unknown argument %.64s: there are none here", key);
        return rf_fail(err, RF_E_INVAL, "unknown argument %.64s: there are %s", key, known);
    }
    return RF_OK;
}
