/* --help, from the same table as the parser. */
#include "base/buf.h"
#include "cli/options.h"

#include <stdio.h>
#include <string.h>

enum { HELP_COLUMNS = 79, HELP_TEXT_COLUMN = 26 };

void options_wrap(const char *text, unsigned indent)
{
    unsigned column = indent;
    bool first = true;

    while (*text != '\0') {
        size_t word = strcspn(text, " \n");

        if (word > 0) {
            if (!first && column + 1 + word > HELP_COLUMNS) {
                printf("\n%*s", (int)indent, "");
                column = indent;
                first = true;
            }
            printf("%s%.*s", first ? "" : " ", (int)word, text);
            column += (unsigned)word + !first;
            first = false;
        }
        text += word;
        if (*text == '\n' && text[1] != '\0') {
            printf("\n\n%*s", (int)indent, "");
            column = indent;
            first = true;
        }
        text += *text != '\0';
    }
    putchar('\n');
}

/* " Also --tp-size, --tensor-parallel-size." */
static void put_aliases(const char *aliases, struct buf *out)
{
    const char *between = " Also --";

    for (const char *at = aliases; at != NULL; at = strchr(at, '|')) {
        at += *at == '|';
        buf_printf(out, "%s%.*s", between, (int)strcspn(at, "|"), at);
        between = ", --";
    }
    if (aliases != NULL)
        buf_printf(out, ".");
}

/* "  -o, --output DIR" */
static void put_left(const struct option_spec *option, struct buf *out)
{
    if (option->letter != 0)
        buf_printf(out, "  -%c, --", option->letter);
    else
        buf_printf(out, "      --");
    buf_printf(out, "%s%s", option->type == OPTION_SWITCH ? "[no-]" : "", option->name);
    if (option->arg != NULL)
        buf_printf(out, " %s", option->arg);
}

static void put_option(const struct option_spec *option)
{
    struct buf left BUF_AUTO = {0};
    struct buf text BUF_AUTO = {0};

    if (option->type == OPTION_HEADING) {
        printf("\n%s:\n", option->help);
        return;
    }
    put_left(option, &left);
    buf_printf(&text, "%s", option->help);
    if (option->fallback != NULL && option->type == OPTION_SWITCH)
        buf_printf(&text, " Default: %s.", strcmp(option->fallback, "no") == 0 ? "off" : "on");
    else if (option->fallback != NULL)
        buf_printf(&text, " Default: %s.", option->fallback);
    if (option->env != NULL)
        buf_printf(&text, " Environment: %s.", option->env);
    put_aliases(option->aliases, &text);
    if (left.failed || text.failed)
        return;
    if (left.bytes + 2 <= HELP_TEXT_COLUMN)
        printf("%-*s", HELP_TEXT_COLUMN, (const char *)left.data);
    else
        printf("%s\n%*s", (const char *)left.data, HELP_TEXT_COLUMN, "");
    options_wrap((const char *)text.data, HELP_TEXT_COLUMN);
}

void options_help(const struct command_spec *spec)
{
    const struct option_spec *option;

    printf("usage: rfork %s [options]%s%s\n\n", spec->name, spec->operands[0] != '\0' ? " " : "",
           spec->operands);
    options_wrap(spec->text, 0);
    if (spec->option_count == 0 || spec->options[0].type != OPTION_HEADING)
        printf("\nOptions:\n");
    for (unsigned i = 0; i < spec->option_count; i++)
        put_option(&spec->options[i]);
    printf("\nCommon:\n");
    for (unsigned i = 0; (option = options_builtin(i)) != NULL; i++)
        put_option(option);
    printf("\nExamples:\n%s", spec->examples);
    printf("\nExit codes ('rfork help exit-codes' lists all):\n%s", spec->exits);
}
