#include "base/json_scan.h"

#include "base/json_number.h"
#include "base/utf8.h"

#include <endian.h>
#include <string.h>

void json_scan_init(struct json_scan *scan, const void *text, size_t bytes, struct arena *arena)
{
    const uint8_t *start = text;

    *scan = (struct json_scan){.start = start, .at = start, .end = start + bytes, .arena = arena};
}

bool json_problem(struct json_scan *scan, const char *problem)
{
    if (scan->problem == NULL)
        scan->problem = problem;
    return false;
}

uint8_t json_next(struct json_scan *scan)
{
    for (; scan->at < scan->end; scan->at++) {
        uint8_t byte = *scan->at;

        if (byte != ' ' && byte != '\n' && byte != '\t' && byte != '\r')
            return byte;
    }
    return 0;
}

bool json_take(struct json_scan *scan, uint8_t byte, const char *problem)
{
    /* The end must be told from a NUL byte only where NUL is asked for, which nobody does. */
    if (json_next(scan) != byte)
        return json_problem(scan, scan->at == scan->end ? "the text ends too early" : problem);
    scan->at++;
    return true;
}

bool json_item(struct json_scan *scan, uint8_t close, bool *first)
{
    uint8_t byte = json_next(scan);

    if (byte == close) {
        scan->at++;
        return false;
    }
    if (*first) {
        *first = false;
        return true;
    }
    return json_take(scan, ',', close == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
}

/* Bytes of the UTF-8 sequence that starts at `at`, before end; 0 if it is none. */
static size_t utf8_sequence(const uint8_t *at, const uint8_t *end)
{
    uint32_t character;

    return utf8_decode(at, (size_t)(end - at), &character);
}

bool json_utf8_ok(const char *text, size_t bytes)
{
    const uint8_t *at = (const uint8_t *)text;
    const uint8_t *end = at + bytes;

    while (at < end) {
        size_t length = *at < 0x80 ? 1 : utf8_sequence(at, end);

        if (length == 0)
            return false;
        at += length;
    }
    return true;
}

/* The first byte that is a quote, a backslash, a control character or not ASCII, or the end. Eight
 * bytes at a time: names are half of a header. In a word, a borrow can only mark bytes behind (that
 * is, above) the first marked one, so the lowest mark is always right. */
static const uint8_t *plain_end(const uint8_t *at, const uint8_t *end)
{
    const uint64_t ones = UINT64_C(0x0101010101010101);

    for (; end - at >= 8; at += 8) {
        uint64_t word;

        memcpy(&word, at, sizeof(word));
        word = le64toh(word);
        uint64_t quote = word ^ (ones * '"');
        uint64_t slash = word ^ (ones * '\\');
        uint64_t marks = ((quote - ones) & ~quote) | ((slash - ones) & ~slash) |
                         ((word - ones * 0x20) & ~word) | word;
        marks &= ones * 0x80;
        if (marks != 0)
            return at + __builtin_ctzll(marks) / 8;
    }
    while (at < end && *at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\')
        at++;
    return at;
}

static int hex_digit(uint8_t byte)
{
    if (byte >= '0' && byte <= '9')
        return byte - '0';
    byte |= 0x20;
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

/* Four hex digits at *at, which is moved behind them. */
static bool hex_unit(const uint8_t **at, const uint8_t *end, uint32_t *ret_unit)
{
    uint32_t unit = 0;

    if (end - *at < 4)
        return false;
    for (unsigned i = 0; i < 4; i++) {
        int digit = hex_digit((*at)[i]);

        if (digit < 0)
            return false;
        unit = unit << 4 | (uint32_t)digit;
    }
    *at += 4;
    *ret_unit = unit;
    return true;
}

static char *utf8_put(char *out, uint32_t point)
{
    if (point < 0x80) {
        *out++ = (char)point;
    } else if (point < 0x800) {
        *out++ = (char)(0xc0 | point >> 6);
        *out++ = (char)(0x80 | (point & 0x3f));
    } else if (point < 0x10000) {
        *out++ = (char)(0xe0 | point >> 12);
        *out++ = (char)(0x80 | (point >> 6 & 0x3f));
        *out++ = (char)(0x80 | (point & 0x3f));
    } else {
        *out++ = (char)(0xf0 | point >> 18);
        *out++ = (char)(0x80 | (point >> 12 & 0x3f));
        *out++ = (char)(0x80 | (point >> 6 & 0x3f));
        *out++ = (char)(0x80 | (point & 0x3f));
    }
    return out;
}

/* What follows "\u" at scan->at: one unit, or two that are a surrogate pair. */
static bool take_unicode(struct json_scan *scan, char **out)
{
    uint32_t unit;
    uint32_t low;

    if (!hex_unit(&scan->at, scan->end, &unit))
        return json_problem(scan, "expected four hexadecimal digits after \\u");
    if (unit >= 0xd800 && unit <= 0xdfff) {
        if (unit >= 0xdc00 || scan->end - scan->at < 2 || scan->at[0] != '\\' || scan->at[1] != 'u')
            return json_problem(scan, "half a surrogate pair");
        scan->at += 2;
        if (!hex_unit(&scan->at, scan->end, &low))
            return json_problem(scan, "expected four hexadecimal digits after \\u");
        if (low < 0xdc00 || low > 0xdfff)
            return json_problem(scan, "half a surrogate pair");
        unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
    }
    *out = utf8_put(*out, unit);
    return true;
}

/* The escape at scan->at, a backslash. */
static bool take_escape(struct json_scan *scan, char **out)
{
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";

    if (scan->end - scan->at < 2)
        return json_problem(scan, "a string is not closed");
    uint8_t byte = scan->at[1];
    if (byte == 'u') {
        scan->at += 2;
        return take_unicode(scan, out);
    }
    const char *found = byte == 0 ? NULL : strchr(from, byte);
    if (found == NULL)
        return json_problem(scan, "unknown escape in a string");
    scan->at += 2;
    *(*out)++ = to[found - from];
    return true;
}

/* The end of the string at scan->at, by its quotes and backslashes only. */
static const uint8_t *closing_quote(const struct json_scan *scan)
{
    const uint8_t *at = scan->at;

    while (at < scan->end && *at != '"')
        at += *at == '\\' && scan->end - at >= 2 ? 2 : 1;
    return at;
}

/* The rest of a string that has escapes: `plain` has been checked up to scan->at. Resolved text
 * is never longer than its source. */
static bool take_escaped(struct json_scan *scan, const uint8_t *plain, struct json_text *ret_text)
{
    char *text = arena_alloc(scan->arena, (size_t)(closing_quote(scan) - plain) + 1);
    char *out = text;

    if (text == NULL) {
        scan->no_memory = true;
        return json_problem(scan, "out of memory");
    }
    for (;;) {
        memcpy(out, plain, (size_t)(scan->at - plain));
        out += scan->at - plain;
        if (scan->at == scan->end)
            return json_problem(scan, "a string is not closed");
        if (*scan->at == '"')
            break;
        if (*scan->at == '\\') {
            if (!take_escape(scan, &out))
                return false;
            plain = scan->at;
        } else if (*scan->at < 0x20) {
            return json_problem(scan, "control character in a string");
        } else {
            size_t length = utf8_sequence(scan->at, scan->end);

            if (length == 0)
                return json_problem(scan, "not valid UTF-8");
            plain = scan->at;
            scan->at += length;
        }
        scan->at = plain_end(scan->at, scan->end);
    }
    scan->at++;
    *ret_text = (struct json_text){.at = text, .bytes = (size_t)(out - text)};
    return true;
}

bool json_string(struct json_scan *scan, struct json_text *ret_text)
{
    if (!json_take(scan, '"', "expected a string"))
        return false;
    const uint8_t *text = scan->at;
    for (;;) {
        scan->at = plain_end(scan->at, scan->end);
        if (scan->at == scan->end)
            return json_problem(scan, "a string is not closed");
        uint8_t byte = *scan->at;
        if (byte == '"')
            break;
        if (byte == '\\')
            return take_escaped(scan, text, ret_text);
        if (byte < 0x20)
            return json_problem(scan, "control character in a string");
        size_t length = utf8_sequence(scan->at, scan->end);
        if (length == 0)
            return json_problem(scan, "not valid UTF-8");
        scan->at += length;
    }
    *ret_text = (struct json_text){.at = (const char *)text, .bytes = (size_t)(scan->at - text)};
    scan->at++;
    return true;
}

bool json_key(struct json_scan *scan, struct json_text *ret_key)
{
    return json_string(scan, ret_key) && json_take(scan, ':', "expected ':' after a key");
}

static bool take_word(struct json_scan *scan, const char *word)
{
    size_t bytes = strlen(word);

    if ((size_t)(scan->end - scan->at) < bytes || memcmp(scan->at, word, bytes) != 0)
        return json_problem(scan, "expected a value");
    scan->at += bytes;
    return true;
}

bool json_null(struct json_scan *scan)
{
    return json_next(scan) == 'n' ? take_word(scan, "null") : json_problem(scan, "expected null");
}

bool json_end(struct json_scan *scan)
{
    (void)json_next(scan);
    return scan->at == scan->end || json_problem(scan, "text after the end of the JSON value");
}

static bool skip_scalar(struct json_scan *scan, uint8_t byte)
{
    struct json_text text;

    switch (byte) {
    case '"':
        return json_string(scan, &text);
    case 't':
        return take_word(scan, "true");
    case 'f':
        return take_word(scan, "false");
    case 'n':
        return take_word(scan, "null");
    default:
        return json_skip_number(scan);
    }
}

bool json_skip(struct json_scan *scan, unsigned depth)
{
    bool object[JSON_MAX_DEPTH] = {false};
    unsigned open = depth;
    bool first = false;

    do {
        uint8_t byte = json_next(scan);

        if (byte == '{' || byte == '[') {
            if (open >= JSON_MAX_DEPTH)
                return json_problem(scan, "more than 127 levels");
            scan->at++;
            object[open++] = byte == '{';
            first = true;
        } else if (!skip_scalar(scan, byte)) {
            return false;
        }
        /* Behind a value: an item may follow, or any number of brackets close. */
        while (open > depth && !json_item(scan, object[open - 1] ? '}' : ']', &first)) {
            if (scan->problem != NULL)
                return false;
            open--;
            first = false;
        }
        if (open > depth && object[open - 1]) {
            struct json_text key;

            if (!json_key(scan, &key))
                return false;
        }
    } while (open > depth);
    return true;
}
