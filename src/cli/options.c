#include "cli/options.h"

#include "base/buf.h"
#include "base/log.h"
#include "base/size.h"
#include "cli/options_foreign.h"
#include "cli/output.h"
#include "cli/suggest.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what every command has ---- */

static struct {
    bool help;
    const char *log_level;
} builtin_values;

static const struct option_spec builtins[] = {
    {.name = "log-level",
     .type = OPTION_CHOICE,
     .arg = "error|warn|info|debug|trace",
     .also = "warning|critical", /* Python's, and so SGLang's */
     .fallback = "warn",
     .env = "RFORK_LOG_LEVEL",
     .help = "Which events to log on stderr."},
    {.name = "help", .letter = 'h', .type = OPTION_FLAG, .help = "This text."},
};

/* In the order of builtins[]; not offsets in a command's struct. */
static void *builtin_value(const struct option_spec *option)
{
    return option == &builtins[0] ? (void *)&builtin_values.log_level
                                  : (void *)&builtin_values.help;
}

const struct option_spec *options_builtin(unsigned index)
{
    return index < sizeof(builtins) / sizeof(builtins[0]) ? &builtins[index] : NULL;
}

static const struct option_spec *option_at(const struct command_spec *spec, unsigned index)
{
    return index < spec->option_count ? &spec->options[index]
                                      : options_builtin(index - spec->option_count);
}

static void *value_of(const struct command_spec *spec, const struct option_spec *option,
                      void *values)
{
    if (option >= spec->options && option < spec->options + spec->option_count)
        return (char *)values + option->offset;
    return builtin_value(option);
}

/* ---- values ---- */

static uint64_t duration_unit_ms(const char *suffix)
{
    static const struct {
        const char *name;
        uint64_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"min", 60000}, {"m", 60000}, {"h", 3600000}};

    for (unsigned i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(suffix, units[i].name) == 0)
            return units[i].ms;
    }
    return 0;
}

enum rf_code duration_parse(const char *text, uint64_t *ret_ms, struct rf_error *err)
{
    enum { MAX_DIGITS = 9 }; /* of each half: no sum or product below can wrap */
    uint64_t whole = 0;
    uint64_t fraction = 0;
    uint64_t scale = 1;
    const char *at = text;
    unsigned digits = 0;

    for (; isdigit((unsigned char)*at) && digits <= MAX_DIGITS; at++, digits++)
        whole = whole * 10 + (uint64_t)(*at - '0');
    bool good = digits > 0 && digits <= MAX_DIGITS;
    if (good && *at == '.') {
        for (digits = 0, at++; isdigit((unsigned char)*at) && digits <= MAX_DIGITS;
             at++, digits++) {
            fraction = fraction * 10 + (uint64_t)(*at - '0');
            scale *= 10;
        }
        good = digits > 0 && digits <= MAX_DIGITS;
    }
    uint64_t unit_ms = whole == 0 && fraction == 0 && *at == '\0' ? 1 : duration_unit_ms(at);
    if (!good || unit_ms == 0)
        return rf_fail(err, RF_E_INVAL,
                       "\"%.100s\" is not a duration: write a number with ms, s, min or h, such as "
                       "500ms or 10s",
                       text);
    *ret_ms = whole * unit_ms + fraction * unit_ms / scale;
    return RF_OK;
}

static enum rf_code count_parse(const char *text, uint64_t *ret_count, struct rf_error *err)
{
    uint64_t count = 0;

    for (const char *at = text; *at != '\0'; at++) {
        if (!isdigit((unsigned char)*at) || __builtin_mul_overflow(count, UINT64_C(10), &count) ||
            __builtin_add_overflow(count, (uint64_t)(*at - '0'), &count))
            return rf_fail(err, RF_E_INVAL, "\"%.100s\" is not a whole number", text);
    }
    *ret_count = count;
    return RF_OK;
}

static enum rf_code check_range(const struct option_spec *option, uint64_t number,
                                struct rf_error *err)
{
    uint64_t max = option->max != 0 ? option->max : UINT64_MAX;

    if (number >= option->min && number <= max)
        return RF_OK;
    if (option->max == 0)
        return rf_fail(err, RF_E_INVAL, "%" PRIu64 " is less than %" PRIu64, number, option->min);
    return rf_fail(err, RF_E_INVAL, "%" PRIu64 " is not in %" PRIu64 " ... %" PRIu64, number,
                   option->min, max);
}

/* Whether `text` is one of the words between the bars of `words`. */
static bool is_choice(const char *words, const char *text)
{
    size_t bytes = strlen(text);

    if (strchr(text, '|') != NULL)
        return false;
    for (const char *at = words; at != NULL; at = strchr(at, '|')) {
        at += *at == '|';
        if (strncmp(at, text, bytes) == 0 && (at[bytes] == '|' || at[bytes] == '\0'))
            return true;
    }
    return false;
}

static enum rf_code set_value(const struct option_spec *option, const char *text, void *value,
                              struct rf_error *err)
{
    uint64_t number = 0;
    enum rf_code code = RF_OK;

    if (option->type == OPTION_FLAG || option->type == OPTION_SWITCH) {
        *(bool *)value = strcmp(text, "no") != 0;
        return RF_OK;
    }
    if (text[0] == '\0')
        return rf_fail(err, RF_E_INVAL, "the value is empty");
    switch (option->type) {
    case OPTION_CHOICE:
        if (!is_choice(option->arg, text) && !is_choice(option->also, text))
            return rf_fail(err, RF_E_INVAL, "\"%.100s\" is none of %s", text, option->arg);
        *(const char **)value = text;
        return RF_OK;
    case OPTION_COUNT:
        code = count_parse(text, &number, err);
        break;
    case OPTION_SIZE:
        code = size_parse(text, &number, err);
        break;
    case OPTION_DURATION:
        code = duration_parse(text, &number, err);
        break;
    default:
        *(const char **)value = text;
        return RF_OK;
    }
    if (code == RF_OK && option->type != OPTION_DURATION)
        code = check_range(option, number, err);
    if (code == RF_OK)
        *(uint64_t *)value = number;
    return code;
}

/* ---- one word of the command line ---- */

struct parse {
    const struct command_spec *spec;
    void *values;
    int argc;
    char **argv;
    int at;            /* the word looked at */
    unsigned operands; /* moved to argv[1 ...] so far */
};

static bool takes_value(const struct option_spec *option)
{
    return option->type != OPTION_FLAG && option->type != OPTION_SWITCH;
}

static bool is_called(const struct option_spec *option, const char *name, size_t bytes)
{
    const char *names[] = {option->name, option->aliases};

    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        for (const char *at = names[i]; at != NULL; at = strchr(at, '|')) {
            at += *at == '|';
            if (strcspn(at, "|") == bytes && memcmp(at, name, bytes) == 0)
                return true;
        }
    }
    return false;
}

/* name ends where its '=' is. *ret_negated: it was "--no-NAME". */
static const struct option_spec *find_long(const struct command_spec *spec, const char *name,
                                           size_t bytes, bool *ret_negated)
{
    const struct option_spec *option;

    for (unsigned i = 0; (option = option_at(spec, i)) != NULL; i++) {
        if (option->type == OPTION_HEADING)
            continue;
        bool negated = option->type == OPTION_SWITCH && bytes > 3 && memcmp(name, "no-", 3) == 0;
        const char *wanted = negated ? name + 3 : name;
        size_t wanted_bytes = negated ? bytes - 3 : bytes;

        if (is_called(option, wanted, wanted_bytes)) {
            *ret_negated = negated;
            return option;
        }
    }
    return NULL;
}

static const struct option_spec *find_letter(const struct command_spec *spec, char letter)
{
    const struct option_spec *option;

    for (unsigned i = 0; (option = option_at(spec, i)) != NULL; i++) {
        if (option->letter == letter)
            return option;
    }
    return NULL;
}

static int unknown_option(const struct command_spec *spec, const char *word, size_t bytes)
{
    char typed[128];
    struct suggest suggest = {.typed = typed};
    struct foreign_walk walk = {0};
    struct foreign_arg arg;
    const struct option_spec *option;

    snprintf(typed, sizeof(typed), "%.*s", (int)(bytes < 100 ? bytes : 100), word);
    for (unsigned i = 0; (option = option_at(spec, i)) != NULL; i++) {
        if (option->type != OPTION_HEADING)
            suggest_offer(&suggest, option->name);
    }
    while (spec->foreign != NULL && foreign_next(spec->foreign, "", 0, &walk, &arg))
        suggest_offer(&suggest, arg.name);
    if (suggest.best == NULL)
        return output_usage(spec->name, "%s: no such option: --%s", spec->name, typed);
    return output_usage(spec->name, "%s: no such option: --%s; did you mean --%s?", spec->name,
                        typed, suggest.best);
}

/* The value of the option whose name is at argv[at]: behind it in the same word, or the next
 * word. */
static int take_value(struct parse *parse, const struct option_spec *option, const char *shown,
                      const char *inline_value)
{
    struct rf_error error;
    const char *text = inline_value;

    if (text == NULL && takes_value(option)) {
        /* What looks like an option is one: "--model-path --mmap" lacks a value. */
        if (parse->at + 1 >= parse->argc || strncmp(parse->argv[parse->at + 1], "--", 2) == 0)
            return output_usage(parse->spec->name, "%s: %s needs a value: %s=%s", parse->spec->name,
                                shown, shown, option->arg);
        text = parse->argv[++parse->at];
    }
    if (text == NULL)
        text = "yes";
    void *value = value_of(parse->spec, option, parse->values);
    if (set_value(option, text, value, &error) != RF_OK)
        return output_usage(parse->spec->name, "%s: %s: %s", parse->spec->name, shown, error.text);
    return OPTIONS_GO_ON;
}

/* ---- arguments of another program ---- */

static int give_foreign(const struct parse *parse, const char *name, const char *value)
{
    const struct command_spec *spec = parse->spec;
    struct rf_error error;

    if (spec->foreign->take(parse->values, name, value, &error) == RF_OK)
        return OPTIONS_GO_ON;
    return error.code == RF_E_INVAL ? output_usage(spec->name, "%s: %s", spec->name, error.text)
                                    : output_error(&error);
}

/* Takes the values of one that the command's own table has not. */
static int take_foreign(struct parse *parse, const struct foreign_arg *arg,
                        const char *inline_value)
{
    const char *command = parse->spec->name;
    int exit_code = OPTIONS_GO_ON;
    unsigned given = 0;

    if (inline_value != NULL && arg->values == FOREIGN_NONE)
        return output_usage(command, "%s: --%s takes no value", command, arg->name);
    if (inline_value != NULL || arg->values == FOREIGN_NONE)
        return give_foreign(parse, arg->name, inline_value);
    while (exit_code == OPTIONS_GO_ON && (given == 0 || arg->values == FOREIGN_LIST) &&
           parse->at + 1 < parse->argc && !foreign_is_option(parse->argv[parse->at + 1])) {
        exit_code = give_foreign(parse, arg->name, parse->argv[++parse->at]);
        given++;
    }
    if (given > 0)
        return exit_code;
    if (arg->values == FOREIGN_ONE)
        return output_usage(command, "%s: --%s needs a value", command, arg->name);
    return give_foreign(parse, arg->name, NULL);
}

/* Which argument of the other program is meant: the one of this name, else the only one that
 * begins so; several spellings of one option of ours are one. *ret_arg is untouched if there is
 * none, which leaves name NULL. */
static int find_foreign(const struct command_spec *spec, const char *name, size_t bytes,
                        struct foreign_arg *ret_arg)
{
    struct foreign_walk walk = {0};
    struct foreign_arg arg;
    const struct option_spec *first = NULL;
    char others[256] = "";
    size_t used = 0;
    bool one = true;
    bool negated;

    while (spec->foreign != NULL && foreign_next(spec->foreign, name, bytes, &walk, &arg)) {
        const struct option_spec *ours = find_long(spec, arg.name, strlen(arg.name), &negated);

        if (arg.name[bytes] == '\0') {
            *ret_arg = arg;
            return OPTIONS_GO_ON;
        }
        if (ret_arg->name == NULL) {
            *ret_arg = arg;
            first = ours;
        } else if (ours == NULL || ours != first) {
            one = false;
        }
        if (used + strlen(arg.name) + 8 < sizeof(others))
            used += (size_t)snprintf(others + used, sizeof(others) - used, "%s--%s",
                                     used > 0 ? ", " : "", arg.name);
    }
    if (one)
        return OPTIONS_GO_ON;
    return output_usage(spec->name, "%s: --%.*s may be the beginning of more than one: %s",
                        spec->name, (int)(bytes < 100 ? bytes : 100), name, others);
}

/* ---- one word, whoever it is for ---- */

static int take_long(struct parse *parse, const struct option_spec *option, const char *shown,
                     bool negated, const char *inline_value)
{
    if (inline_value != NULL && !takes_value(option))
        return output_usage(parse->spec->name, "%s: %s takes no value", parse->spec->name, shown);
    return take_value(parse, option, shown, negated ? "no" : inline_value);
}

static int parse_long(struct parse *parse, const char *word)
{
    const char *name = word + 2;
    size_t bytes = strcspn(name, "=");
    const char *inline_value = name[bytes] == '=' ? name + bytes + 1 : NULL;
    bool negated = false;
    const struct option_spec *option = find_long(parse->spec, name, bytes, &negated);
    struct foreign_arg arg = {.name = NULL};
    char shown[128];

    if (option == NULL) {
        int exit_code = find_foreign(parse->spec, name, bytes, &arg);

        if (exit_code != OPTIONS_GO_ON)
            return exit_code;
        if (arg.name == NULL)
            return unknown_option(parse->spec, name, bytes);
        option = find_long(parse->spec, arg.name, strlen(arg.name), &negated);
    }
    if (option == NULL)
        return take_foreign(parse, &arg, inline_value);
    snprintf(shown, sizeof(shown), "--%.*s", (int)bytes, name);
    return take_long(parse, option, shown, negated, inline_value);
}

static int parse_letter(struct parse *parse, const char *word)
{
    const struct option_spec *option = find_letter(parse->spec, word[1]);
    char shown[3] = {'-', word[1], '\0'};

    if (option == NULL)
        return output_usage(parse->spec->name, "%s: no such option: %.100s", parse->spec->name,
                            word);
    if (word[2] != '\0' && !takes_value(option))
        return output_usage(parse->spec->name, "%s: %s takes no value", parse->spec->name, shown);
    if (word[2] == '=')
        return output_usage(parse->spec->name,
                            "%s: %.100s: write %s %.100s or --%s=%.100s (and %s ./%.100s for one "
                            "that begins with \"=\")",
                            parse->spec->name, word, shown, word + 3, option->name, word + 3, shown,
                            word + 2);
    return take_value(parse, option, shown, word[2] != '\0' ? word + 2 : NULL);
}

/* ---- the whole ---- */

static int set_fallbacks(const struct command_spec *spec, void *values)
{
    const struct option_spec *option;

    for (unsigned i = 0; (option = option_at(spec, i)) != NULL; i++) {
        void *value = value_of(spec, option, values);
        const char *env = option->env != NULL ? getenv(option->env) : NULL;
        struct rf_error error;

        /* A default that does not parse would be our own mistake; tests run each command. */
        if (option->fallback != NULL && set_value(option, option->fallback, value, &error) != RF_OK)
            return output_fail(RF_E_FAILED, "--%s: default: %s", option->name, error.text);
        if (env != NULL && env[0] != '\0' && set_value(option, env, value, &error) != RF_OK)
            return output_usage(spec->name, "%s: the variable %s: %s", spec->name, option->env,
                                error.text);
    }
    return OPTIONS_GO_ON;
}

static int check_operands(const struct command_spec *spec, char **argv, unsigned count)
{
    if (count < spec->min_operands)
        return output_usage(spec->name, "%s: %s missing: rfork %s %s", spec->name,
                            count == 0 ? "an argument is" : "another argument is", spec->name,
                            spec->operands);
    if (count > spec->max_operands)
        return output_usage(spec->name, "%s: one argument too many: \"%.200s\"", spec->name,
                            argv[1 + spec->max_operands]);
    return OPTIONS_GO_ON;
}

int options_parse(const struct command_spec *spec, int argc, char **argv, void *values,
                  unsigned *ret_operands)
{
    struct parse parse = {.spec = spec, .values = values, .argc = argc, .argv = argv};
    bool only_operands = false;
    int exit_code = set_fallbacks(spec, values);

    for (parse.at = 1; exit_code == OPTIONS_GO_ON && parse.at < argc; parse.at++) {
        char *word = argv[parse.at];

        if (only_operands || word[0] != '-' || word[1] == '\0')
            argv[1 + parse.operands++] = word;
        else if (strcmp(word, "--") == 0)
            only_operands = true;
        else
            exit_code = word[1] == '-' ? parse_long(&parse, word) : parse_letter(&parse, word);
    }
    if (exit_code != OPTIONS_GO_ON)
        return exit_code;
    if (builtin_values.help) {
        options_help(spec);
        return output_end(RF_OK);
    }
    log_set_level((enum log_level)log_level_parse(builtin_values.log_level));
    *ret_operands = parse.operands;
    return check_operands(spec, argv, parse.operands);
}
