/* Names of another program's arguments, found as Python's argparse finds them. For options.c. */
#ifndef CLI_OPTIONS_FOREIGN_H
#define CLI_OPTIONS_FOREIGN_H

#include "cli/options.h"

struct foreign_arg {
    const char *name; /* borrowed from the spec */
    enum foreign_values values;
};

/* Where a walk over the names is; zero at its beginning. */
struct foreign_walk {
    unsigned values;
    unsigned index;
};

/* The next name that begins with the first `bytes` of `typed`; false after the last one. */
bool foreign_next(const struct foreign_spec *spec, const char *typed, size_t bytes,
                  struct foreign_walk *walk, struct foreign_arg *ret_arg);

/* Whether a word of the command line is an option and no value: "-1" is a value. */
bool foreign_is_option(const char *word);

#endif
