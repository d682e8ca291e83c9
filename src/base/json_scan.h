/* Reading JSON text from left to right in one pass, without a tree and without recursion.
 *
 * Accepts what serde_json (https://github.com/serde-rs/json), through which the reference
 * implementation of safetensors reads its headers, accepts: blanks are space, \t, \n, \r;
 * numbers as in RFC 8259, and not so large that they become infinite; strings of valid UTF-8
 * without control characters, surrogates only in pairs; at most JSON_MAX_DEPTH levels.
 *
 * The first problem is kept: functions return false and leave `problem` and the place in the
 * scan. */
#ifndef BASE_JSON_SCAN_H
#define BASE_JSON_SCAN_H

#include "base/arena.h"
#include "base/error.h"

enum { JSON_MAX_DEPTH = 127 };

/* A string with its escapes resolved: either inside the scanned text or in the scan's arena. Not
 * NUL-terminated, and may hold NULs ("\u0000"). */
struct json_text {
    const char *at;
    size_t bytes;
};

struct json_scan {
    const uint8_t *start;
    const uint8_t *at;
    const uint8_t *end;
    struct arena *arena; /* of strings with escapes; borrowed */
    const char *problem; /* what is wrong at `at`; NULL: nothing so far */
    bool no_memory;
};

/* text and arena are borrowed until the last use of the scan and of the strings it returned. */
void json_scan_init(struct json_scan *scan, const void *text, size_t bytes, struct arena *arena);

/* Keeps the problem, unless there is one already; returns false. */
bool json_problem(struct json_scan *scan, const char *problem);

/* The next byte that is not blank, not consumed; 0 at the end. */
uint8_t json_next(struct json_scan *scan);

/* Consumes this byte; `problem` says what was expected if it is not there. */
bool json_take(struct json_scan *scan, uint8_t byte, const char *problem);

/* Steps through an array or object whose opening bracket has been consumed: true if an item
 * follows (the comma before it is consumed), false at the closing bracket (consumed) or on a
 * problem. *first must be true at the first call. */
bool json_item(struct json_scan *scan, uint8_t close, bool *first);

bool json_string(struct json_scan *scan, struct json_text *ret_text);
/* A string and the colon after it. */
bool json_key(struct json_scan *scan, struct json_text *ret_key);
/* A whole number from 0 to 2^64 - 1 without sign, point or exponent. */
bool json_u64(struct json_scan *scan, uint64_t *ret_number);
bool json_null(struct json_scan *scan);
/* Any value; `depth` brackets are open around it. */
bool json_skip(struct json_scan *scan, unsigned depth);
/* Only blanks are left. */
bool json_end(struct json_scan *scan);

static inline bool json_text_is(const struct json_text *text, const char *literal, size_t bytes)
{
    return text->bytes == bytes && __builtin_memcmp(text->at, literal, bytes) == 0;
}
#define JSON_TEXT_IS(text, literal) json_text_is((text), "" literal, sizeof(literal) - 1)

/* Whether these bytes are valid UTF-8 (no surrogates, nothing overlong). */
bool json_utf8_ok(const char *text, size_t bytes);

#endif
