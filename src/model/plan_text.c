/* The text of a plan: lines, words, `set` names and alternatives. */
#include "base/cleanup.h"
#include "model/manifest.h"
#include "model/plan_internal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_VARIANTS = 256 }; /* of one line */

enum rf_code plan_fail(const struct plan_parser *parser, const char *fmt, ...)
{
    char why[RF_ERROR_TEXT_BYTES];
    va_list args;

    va_start(args, fmt);
    vsnprintf(why, sizeof why, fmt, args);
    va_end(args);
    return rf_fail(parser->err, RF_E_FORMAT, "%.120s:%u: %s", parser->file, parser->line, why);
}

enum rf_code plan_fail_memory(const struct plan_parser *parser)
{
    return rf_fail(parser->err, RF_E_NOMEM, "%.120s:%u: no memory", parser->file, parser->line);
}

/* ---- set ---- */

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static enum rf_code say_set(struct plan_parser *parser, char **words, unsigned count)
{
    struct arena *arena = &parser->plan->arena;

    if (count != 3)
        return plan_fail(parser, "`set NAME TEXT`, without blanks in the text");
    for (const char *at = words[1]; *at != '\0'; at++) {
        if (!is_name_char(*at))
            return plan_fail(parser, "set %.60s: a name has letters and _ only", words[1]);
    }
    if (parser->set_count == PLAN_MAX_SETS)
        return plan_fail(parser, "more than %d lines `set`", PLAN_MAX_SETS);
    const char *name = arena_strndup(arena, words[1], strlen(words[1]));
    const char *text = arena_strndup(arena, words[2], strlen(words[2]));
    if (name == NULL || text == NULL)
        return plan_fail_memory(parser);
    parser->sets[parser->set_count].name = name;
    parser->sets[parser->set_count++].text = text;
    return RF_OK;
}

static const char *set_find(const struct plan_parser *parser, const char *name, size_t bytes)
{
    for (unsigned i = parser->set_count; i > 0; i--) {
        if (strlen(parser->sets[i - 1].name) == bytes &&
            memcmp(parser->sets[i - 1].name, name, bytes) == 0)
            return parser->sets[i - 1].text;
    }
    return NULL;
}

/* Puts in what $NAME stands for. */
static enum rf_code sets_apply(const struct plan_parser *parser, const char *line,
                               char out[PLAN_MAX_LINE_BYTES])
{
    size_t used = 0;

    while (*line != '\0') {
        const char *text = line;
        size_t bytes = strcspn(line, "$");
        size_t skip = bytes;

        if (bytes == 0) {
            size_t name = 0;
            while (is_name_char(line[1 + name]))
                name++;
            text = set_find(parser, line + 1, name);
            if (text == NULL)
                return plan_fail(parser, "$%.*s: no line `set %.*s ...` before",
                                 (int)(name < 60 ? name : 60), line + 1,
                                 (int)(name < 60 ? name : 60), line + 1);
            bytes = strlen(text);
            skip = name + 1;
        }
        if (bytes >= PLAN_MAX_LINE_BYTES - used)
            return plan_fail(parser, "longer than %d bytes", PLAN_MAX_LINE_BYTES - 1);
        memcpy(out + used, text, bytes);
        used += bytes;
        line += skip;
    }
    out[used] = '\0';
    return RF_OK;
}

/* ---- alternatives ---- */

static enum rf_code words_say(struct plan_parser *parser, char *line)
{
    char *words[PLAN_MAX_WORDS];
    char *state = NULL;
    unsigned count = 0;

    for (char *word = strtok_r(line, " ", &state); word != NULL;
         word = strtok_r(NULL, " ", &state)) {
        if (count == PLAN_MAX_WORDS)
            return plan_fail(parser, "more than %d words", PLAN_MAX_WORDS);
        words[count++] = word;
    }
    if (count == 0)
        return RF_OK;
    if (++parser->lines_made > PLAN_MAX_LINES)
        return plan_fail(parser, "more than %d lines, alternatives counted", PLAN_MAX_LINES);
    if (parser->plan->name == NULL && strcmp(words[0], "plan") != 0)
        return plan_fail(parser, "the first line is `plan NAME`");
    return strcmp(words[0], "set") == 0 ? say_set(parser, words, count)
                                        : plan_statement(parser, words, count);
}

/* Writes the line with each `group` (with its brackets) replaced by one alternative. Never
 * longer. */
static char *variant_make(const char *line, const char *group, size_t group_bytes,
                          const char *chosen, size_t chosen_bytes)
{
    char *out = malloc(strlen(line) + 1);
    size_t used = 0;

    if (out == NULL)
        return NULL;
    while (*line != '\0') {
        if (strncmp(line, group, group_bytes) == 0) {
            memcpy(out + used, chosen, chosen_bytes);
            used += chosen_bytes;
            line += group_bytes;
        } else {
            out[used++] = *line++;
        }
    }
    out[used] = '\0';
    return out;
}

/* Lines yet to be said, the next one last. */
struct variants {
    char *lines[MAX_VARIANTS];
    unsigned count;
};

/* Takes the first (a|b) of a line apart and adds the lines it stands for. */
static enum rf_code variants_split(const struct plan_parser *parser, struct variants *variants,
                                   const char *line, const char *open)
{
    size_t bytes = strcspn(open, ")");
    const char *at;

    if (open[bytes] != ')')
        return plan_fail(parser, "( without a )");
    if (memchr(open + 1, '(', bytes - 1) != NULL)
        return plan_fail(parser, "a ( inside of (...): write its alternatives out");
    /* The last alternative first: it is said last. */
    for (at = open + bytes; at > open;) {
        const char *end = at;

        for (at--; *at != '|' && at > open; at--)
            ;
        if (variants->count == MAX_VARIANTS)
            return plan_fail(parser, "stands for more than %d lines", MAX_VARIANTS);
        char *made = variant_make(line, open, bytes + 1, at + 1, (size_t)(end - at - 1));
        if (made == NULL)
            return plan_fail_memory(parser);
        variants->lines[variants->count++] = made;
    }
    return RF_OK;
}

static enum rf_code line_say(struct plan_parser *parser, const char *line)
{
    struct variants variants = {.count = 1};
    enum rf_code code = RF_OK;

    variants.lines[0] = strdup(line);
    if (variants.lines[0] == NULL)
        return plan_fail_memory(parser);
    while (variants.count > 0) {
        rf_autofree char *next = variants.lines[--variants.count];
        const char *open = strchr(next, '(');

        if (code != RF_OK)
            continue; /* frees the rest */
        if (open != NULL)
            code = variants_split(parser, &variants, next, open);
        else
            code = strchr(next, ')') == NULL ? words_say(parser, next)
                                             : plan_fail(parser, ") without a (");
    }
    return code;
}

/* ---- the whole ---- */

static enum rf_code line_parse(struct plan_parser *parser, const char *text, size_t bytes)
{
    char line[PLAN_MAX_LINE_BYTES];
    char whole[PLAN_MAX_LINE_BYTES];

    if (bytes > 0 && text[bytes - 1] == '\r')
        bytes--;
    if (bytes >= sizeof line)
        return plan_fail(parser, "longer than %d bytes", PLAN_MAX_LINE_BYTES - 1);
    for (size_t i = 0; i < bytes; i++)
        line[i] = (char)(text[i] == '\t' ? ' ' : text[i]);
    line[bytes] = '\0';
    if (!manifest_text_ok(line, bytes))
        return plan_fail(parser, "a control character, or a byte that is not UTF-8");
    line[strcspn(line, "#")] = '\0';
    enum rf_code code = sets_apply(parser, line, whole);
    return code == RF_OK ? line_say(parser, whole) : code;
}

static enum rf_code plan_check(struct plan_parser *parser)
{
    if (parser->plan->name == NULL)
        return plan_fail(parser, "says nothing; the first line is `plan NAME`");
    if (parser->plan->rule_count == 0)
        return plan_fail(parser, "ends without a line `tensor NAME KIND`");
    return RF_OK;
}

enum rf_code plan_parse(const char *name, const char *text, size_t bytes, struct plan **ret_plan,
                        struct rf_error *err)
{
    struct plan_parser parser = {.file = name, .err = err};
    enum rf_code code = RF_OK;

    if (bytes > PLAN_MAX_BYTES)
        return rf_fail(err, RF_E_FORMAT, "%.120s: %zu bytes, a plan has at most %d", name, bytes,
                       PLAN_MAX_BYTES);
    parser.plan = calloc(1, sizeof *parser.plan);
    if (parser.plan == NULL)
        return rf_fail(err, RF_E_NOMEM, "%.120s: no memory", name);
    for (size_t at = 0; at < bytes && code == RF_OK;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t length = end != NULL ? (size_t)(end - text) - at : bytes - at;

        parser.line++;
        code = line_parse(&parser, text + at, length);
        at += length + 1;
    }
    if (code == RF_OK)
        code = plan_check(&parser);
    if (code != RF_OK) {
        plan_destroy(parser.plan);
        return code;
    }
    *ret_plan = parser.plan;
    return RF_OK;
}
