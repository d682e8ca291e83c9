/* Names with numbers in them. */
#include "model/plan_internal.h"

#include <string.h>

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* A decimal number below 2^31 as names have them: without leading zeros. Returns how many
 * characters it has; 0: none. */
static size_t number_read(const char *text, size_t bytes, uint32_t *ret_number)
{
    uint32_t number = 0;
    size_t used = 0;

    while (used < bytes && used < 9 && is_digit(text[used]))
        number = number * 10 + (uint32_t)(text[used++] - '0');
    if (used == 0 || (used > 1 && text[0] == '0') || (used < bytes && is_digit(text[used])))
        return 0;
    *ret_number = number;
    return used;
}

bool plan_match(const struct plan_pattern *pattern, const char *name, size_t bytes,
                struct plan_numbers *ret_numbers)
{
    struct plan_numbers numbers = {.present = 0};
    size_t at = 0;

    for (unsigned i = 0; i < pattern->count; i++) {
        const struct plan_piece *piece = &pattern->pieces[i];
        size_t left = bytes - at;

        if (piece->kind == PIECE_TEXT) {
            if (piece->bytes > left || memcmp(name + at, piece->text, piece->bytes) != 0)
                return false;
            at += piece->bytes;
        } else if (piece->kind == PIECE_INDEX) {
            uint32_t number = 0;
            size_t used = number_read(name + at, left, &number);
            bool again = (numbers.present >> piece->index & 1) != 0;

            if (used == 0 || (again && numbers.value[piece->index] != number))
                return false;
            numbers.value[piece->index] = number;
            numbers.present |= 1u << piece->index;
            at += used;
        } else { /* only one piece of text can follow: the end of the name */
            size_t tail = i + 1 < pattern->count ? pattern->pieces[i + 1].bytes : 0;
            if (tail > left)
                return false;
            at = bytes - tail;
        }
    }
    if (at != bytes)
        return false;
    *ret_numbers = numbers;
    return true;
}

/* Writes a number; returns its characters, at most 10. */
static size_t number_write(uint32_t number, char out[10])
{
    char digits[10];
    size_t count = 0;

    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    for (size_t i = 0; i < count; i++)
        out[i] = digits[count - 1 - i];
    return count;
}

bool plan_name_make(const struct plan_pattern *pattern, const struct plan_numbers *numbers,
                    char *out, size_t room, size_t *ret_bytes)
{
    size_t at = 0;

    for (unsigned i = 0; i < pattern->count; i++) {
        const struct plan_piece *piece = &pattern->pieces[i];

        if (piece->bytes + 11 > room - at)
            return false;
        if (piece->kind == PIECE_TEXT) {
            memcpy(out + at, piece->text, piece->bytes);
            at += piece->bytes;
        } else if (piece->kind == PIECE_INDEX) {
            at += number_write(numbers->value[piece->index], out + at);
        }
    }
    out[at] = '\0';
    *ret_bytes = at;
    return true;
}

/* ---- parsing ---- */

/* A number that stands alone between dots. */
static bool has_literal_number(const char *text)
{
    for (const char *at = text; at != NULL && *at != '\0';) {
        size_t bytes = strcspn(at, ".");

        if (bytes > 0 && strspn(at, "0123456789") == bytes)
            return true;
        at = at[bytes] == '.' ? at + bytes + 1 : NULL;
    }
    return false;
}

static int index_find(const struct plan *plan, const char *name, size_t bytes)
{
    for (unsigned i = 0; i < plan->index_count; i++) {
        if (strlen(plan->indices[i].name) == bytes &&
            memcmp(plan->indices[i].name, name, bytes) == 0)
            return (int)i;
    }
    return PLAN_NONE;
}

/* Cuts one piece off the text; returns how much of it, 0 after a failure. */
static size_t piece_parse(const struct plan_parser *parser, const char *text,
                          struct plan_piece *ret_piece)
{
    if (*text == '*') {
        *ret_piece = (struct plan_piece){.kind = PIECE_ANY};
        return 1;
    }
    if (*text != '{') {
        size_t bytes = strcspn(text, "{}*");
        if (bytes == 0)
            plan_fail(parser, "a } without a {");
        *ret_piece = (struct plan_piece){.kind = PIECE_TEXT, .text = text, .bytes = bytes};
        return bytes;
    }
    size_t bytes = strcspn(text + 1, "{}");
    if (text[1 + bytes] != '}') {
        plan_fail(parser, "{ without a } in \"%.120s\"", text);
        return 0;
    }
    int index = index_find(parser->plan, text + 1, bytes);
    if (index == PLAN_NONE) {
        plan_fail(parser, "{%.*s}: no line `index %.*s ...` before", (int)(bytes < 64 ? bytes : 64),
                  text + 1, (int)(bytes < 64 ? bytes : 64), text + 1);
        return 0;
    }
    *ret_piece = (struct plan_piece){.kind = PIECE_INDEX, .index = (unsigned)index};
    return bytes + 2;
}

static enum rf_code pieces_check(const struct plan_parser *parser, const char *text,
                                 const struct plan_piece *pieces, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (i > 0 && pieces[i].kind == PIECE_INDEX && pieces[i - 1].kind == PIECE_INDEX)
            return plan_fail(parser, "\"%.120s\": two numbers without anything between", text);
        if (pieces[i].kind == PIECE_ANY &&
            (i + 2 < count || (i + 1 < count && pieces[i + 1].kind != PIECE_TEXT)))
            return plan_fail(parser, "\"%.120s\": only text may follow a *", text);
    }
    return RF_OK;
}

enum rf_code plan_pattern_parse(const struct plan_parser *parser, const char *text,
                                struct plan_pattern *ret_pattern)
{
    struct arena *arena = &parser->plan->arena;
    struct plan_piece pieces[PLAN_MAX_PIECES];
    const char *copy = arena_strndup(arena, text, strlen(text));
    unsigned count = 0;

    if (copy == NULL)
        return plan_fail_memory(parser);
    for (const char *at = copy; *at != '\0';) {
        if (count == PLAN_MAX_PIECES)
            return plan_fail(parser, "\"%.120s\": more than %d pieces", text, PLAN_MAX_PIECES);
        size_t used = piece_parse(parser, at, &pieces[count]);
        if (used == 0)
            return RF_E_FORMAT;
        at += used;
        count++;
    }
    enum rf_code code = pieces_check(parser, text, pieces, count);
    if (code != RF_OK)
        return code;
    struct plan_piece *kept = arena_alloc(arena, count * sizeof *kept);
    if (kept == NULL)
        return plan_fail_memory(parser);
    memcpy(kept, pieces, count * sizeof *kept);
    if (has_literal_number(copy))
        parser->plan->literal_numbers = true;
    *ret_pattern = (struct plan_pattern){.text = copy, .pieces = kept, .count = count};
    return RF_OK;
}
