/* The command line of one command, declared once: its table gives the parser, the defaults, the
 * environment variables and --help. tests/system/test_cli_errors.py holds the man pages to it. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include "base/error.h"

enum option_type {
    OPTION_HEADING,  /* no option: a title in --help, from `help` */
    OPTION_FLAG,     /* bool */
    OPTION_SWITCH,   /* bool; "--no-NAME" clears it. `fallback` "yes" or "no" */
    OPTION_TEXT,     /* const char *, not empty */
    OPTION_CHOICE,   /* const char *: one of the words of `arg`, "auto|map|tcp" */
    OPTION_COUNT,    /* uint64_t in min ... max */
    OPTION_SIZE,     /* uint64_t bytes in min ... max, as size_parse() reads them */
    OPTION_DURATION, /* uint64_t milliseconds: "500ms", "10s", "2min", "1h", "0" */
};

struct option_spec {
    const char *name;    /* without the dashes */
    const char *aliases; /* other names that mean the same, "tp-size|tensor-parallel-size" */
    char letter;         /* 0: none */
    enum option_type type;
    const char *arg;      /* what --help calls the value; see OPTION_CHOICE */
    const char *also;     /* further words of OPTION_CHOICE; NULL: none */
    const char *fallback; /* the default as one would type it; NULL: zero */
    const char *env;      /* variable that is asked when the option is not given; NULL: none */
    uint64_t min;         /* of OPTION_COUNT and OPTION_SIZE */
    uint64_t max;         /* 0: no limit */
    size_t offset;        /* of the value in the command's struct */
    const char *help;     /* sentences; the default is added */
};

/* How many values an argument of another program takes. */
enum foreign_values {
    FOREIGN_NONE,
    FOREIGN_ONE,
    FOREIGN_MAYBE, /* one or none */
    FOREIGN_LIST,  /* those words up to the next option */
    FOREIGN_KINDS,
};

/* The arguments of another program, which a command understands beside its own. All of them can
 * be shortened as far as they stay unambiguous. Names that the command's own table has, too, mean
 * what they mean there. */
struct foreign_spec {
    const char *program;
    const char *const *names[FOREIGN_KINDS]; /* by enum foreign_values; NULL ends each */
    /* Gets one that the command's table has not, once a value; value NULL: there is none. `values`
     * is the command's struct, `name` is of `names`, `value` borrowed from argv. An error ends the
     * command; RF_E_INVAL says that the command line is wrong. */
    enum rf_code (*take)(void *values, const char *name, const char *value, struct rf_error *err);
};

struct command_spec {
    const char *name;
    const char *operands; /* as in the usage line: "URL|DIR"; "" if there are none */
    unsigned min_operands;
    unsigned max_operands;
    const char *summary; /* one line */
    const char *text;    /* paragraphs, each ended by a newline */
    const struct option_spec *options;
    unsigned option_count;
    const struct foreign_spec *foreign; /* NULL: none */
    const char *examples;               /* lines, printed as they are */
    const char *exits;                  /* lines: the exit codes one meets here */
};

#define OPTION_ROWS(table) .options = (table), .option_count = sizeof(table) / sizeof((table)[0])

enum { OPTIONS_GO_ON = -1 };

/* Fills the command's zero-initialised struct from defaults, environment and argv[1 ...]; the
 * operands are moved to argv[1 ...] and counted. Texts are borrowed from argv, the environment
 * and the table. Handles --help and --log-level, which all commands have. Returns OPTIONS_GO_ON,
 * or the exit code when there is nothing left to do; what was wrong has been printed then. */
int options_parse(const struct command_spec *spec, int argc, char **argv, void *values,
                  unsigned *ret_operands);

/* --help: fits 80 columns. */
void options_help(const struct command_spec *spec);

/* Prints text from column `indent` on, which the cursor is at, wrapped before column 80. */
void options_wrap(const char *text, unsigned indent);

/* "500ms", "10s", "1.5min", "2h", "0". RF_E_INVAL. */
enum rf_code duration_parse(const char *text, uint64_t *ret_ms, struct rf_error *err);

/* Those that every command has; NULL at the end. For options*.c alone. */
const struct option_spec *options_builtin(unsigned index);

#endif
