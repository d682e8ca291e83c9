#include "transport/fault/spec.h"

#include "base/size.h"

#include <stdio.h>
#include <string.h>

/* A piece of the text; nothing is copied before it is checked. */
struct piece {
    const char *at;
    size_t bytes;
};

static const struct {
    const char *name;
    enum fault_kind kind;
} fault_kinds[] = {
    {"delay", FAULT_DELAY},   {"short", FAULT_SHORT}, {"corrupt", FAULT_CORRUPT},
    {"refuse", FAULT_REFUSE}, {"death", FAULT_DEATH}, {"stall", FAULT_STALL},
    {"lie", FAULT_LIE},
};

/* Takes off what comes before one of the characters of `ends`, or all. */
static struct piece piece_cut(struct piece *rest, const char *ends)
{
    struct piece head = {.at = rest->at};

    while (head.bytes < rest->bytes && strchr(ends, rest->at[head.bytes]) == NULL)
        head.bytes++;
    rest->at += head.bytes;
    rest->bytes -= head.bytes;
    return head;
}

static bool piece_is(struct piece piece, const char *text)
{
    return piece.bytes == strlen(text) && memcmp(piece.at, text, piece.bytes) == 0;
}

static enum rf_code parse_number(const char *what, struct piece piece, uint64_t *ret_value,
                                 struct rf_error *err)
{
    uint64_t value = 0;
    bool good = piece.bytes > 0;

    for (size_t i = 0; good && i < piece.bytes; i++) {
        uint64_t digit = (uint64_t)piece.at[i] - '0';
        good = piece.at[i] >= '0' && piece.at[i] <= '9' &&
               !__builtin_mul_overflow(value, UINT64_C(10), &value) &&
               !__builtin_add_overflow(value, digit, &value);
    }
    if (!good)
        return rf_fail(err, RF_E_INVAL, "fault: %s is \"%.*s\": a number up to 2^64 is needed",
                       what, (int)piece.bytes, piece.at);
    *ret_value = value;
    return RF_OK;
}

static enum rf_code parse_kinds(struct piece text, unsigned *ret_kinds, struct rf_error *err)
{
    unsigned kinds = 0;

    for (;;) {
        struct piece name = piece_cut(&text, "+");
        unsigned found = 0;
        for (size_t i = 0; i < sizeof fault_kinds / sizeof fault_kinds[0]; i++) {
            if (piece_is(name, fault_kinds[i].name))
                found = fault_kinds[i].kind;
        }
        if (found == 0 || (kinds & found) != 0)
            return rf_fail(
                err, RF_E_INVAL,
                "fault: kind \"%.*s\" %s: delay, short, corrupt, refuse, death, stall and "
                "lie can be joined with '+'",
                (int)name.bytes, name.at, found == 0 ? "is none" : "twice");
        kinds |= found;
        if (text.bytes == 0)
            break;
        text.at++;
        text.bytes--;
    }
    *ret_kinds = kinds;
    return RF_OK;
}

static enum rf_code parse_size(struct piece piece, uint64_t *ret_bytes, struct rf_error *err)
{
    char text[SIZE_TEXT_BYTES];

    if (piece.bytes >= sizeof text)
        return rf_fail(err, RF_E_INVAL, "fault: after has %zu characters: that is no size",
                       piece.bytes);
    memcpy(text, piece.at, piece.bytes);
    text[piece.bytes] = '\0';
    enum rf_code code = size_parse(text, ret_bytes, err);
    return code == RF_OK ? RF_OK : rf_error_wrap(err, code, "fault: after");
}

enum fault_key { KEY_KIND, KEY_AFTER, KEY_ODDS, KEY_TIMES, KEY_COUNT };

static const char *const key_names[KEY_COUNT] = {
    [KEY_KIND] = "kind", [KEY_AFTER] = "after", [KEY_ODDS] = "odds", [KEY_TIMES] = "times"};

static enum rf_code parse_value(enum fault_key key, struct piece value, struct fault_spec *spec,
                                struct rf_error *err)
{
    enum rf_code code = RF_OK;

    switch (key) {
    case KEY_KIND:
        return parse_kinds(value, &spec->kinds, err);
    case KEY_AFTER:
        return parse_size(value, &spec->after_bytes, err);
    case KEY_ODDS:
        code = parse_number("odds", value, &spec->odds, err);
        if (code == RF_OK && spec->odds == 0)
            return rf_fail(err, RF_E_INVAL, "fault: odds=0: once in N chances, N is at least 1");
        return code;
    case KEY_TIMES:
        return parse_number("times", value, &spec->times, err);
    case KEY_COUNT:
        break;
    }
    return RF_OK;
}

/* KEY=VALUE. `seen` has a bit for each key that was there before. */
static enum rf_code parse_option(struct piece text, struct fault_spec *spec, unsigned *seen,
                                 struct rf_error *err)
{
    struct piece name = piece_cut(&text, "=");
    unsigned key = 0;

    while (key < KEY_COUNT && !piece_is(name, key_names[key]))
        key++;
    if (key == KEY_COUNT || text.bytes == 0)
        return rf_fail(err, RF_E_INVAL,
                       "fault: \"%.*s\" is no option: kind=, after=, odds= and times= are",
                       (int)name.bytes, name.at);
    if ((*seen & 1u << key) != 0)
        return rf_fail(err, RF_E_INVAL, "fault: %s= twice", key_names[key]);
    *seen |= 1u << key;
    return parse_value(key, (struct piece){.at = text.at + 1, .bytes = text.bytes - 1}, spec, err);
}

static enum rf_code parse_inner(struct piece text, struct fault_spec *spec, struct rf_error *err)
{
    if (text.bytes == 0 || text.bytes >= sizeof spec->inner)
        return rf_fail(err, RF_E_INVAL,
                       "fault: no name of a transport at the end: \"fault:7:tcp\" wraps tcp");
    for (size_t i = 0; i < text.bytes; i++) {
        char c = text.at[i];
        if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '_')
            return rf_fail(err, RF_E_INVAL, "fault: \"%.*s\" is no name of a transport to wrap",
                           (int)text.bytes, text.at);
    }
    memcpy(spec->inner, text.at, text.bytes);
    spec->inner[text.bytes] = '\0';
    if (strcmp(spec->inner, "fault") == 0)
        return rf_fail(err, RF_E_INVAL, "fault: wraps one transport, not another fault");
    return RF_OK;
}

enum rf_code fault_spec_parse(const char *text, struct fault_spec *ret_spec, struct rf_error *err)
{
    struct fault_spec spec = {.kinds = FAULT_BENIGN, .odds = 1, .times = UINT64_MAX};
    struct piece rest = {.at = text, .bytes = strlen(text)};
    unsigned seen = 0;

    if (strncmp(text, "fault:", 6) != 0 || rest.bytes >= TRANSPORT_NAME_BYTES)
        return rf_fail(err, RF_E_INVAL,
                       "\"%.80s\" is not fault:SEED[,kind=...]:NAME in at most %d characters", text,
                       TRANSPORT_NAME_BYTES - 1);
    rest.at += 6;
    rest.bytes -= 6;
    enum rf_code code = parse_number("its seed", piece_cut(&rest, ",:"), &spec.seed, err);
    while (code == RF_OK && rest.bytes > 0 && rest.at[0] == ',') {
        rest.at++;
        rest.bytes--;
        code = parse_option(piece_cut(&rest, ",:"), &spec, &seen, err);
    }
    if (code != RF_OK)
        return code;
    if (rest.bytes > 0) { /* the colon */
        rest.at++;
        rest.bytes--;
    }
    code = parse_inner(rest, &spec, err);
    if (code == RF_OK)
        *ret_spec = spec;
    return code;
}
