/* What of SGLang's command line `rfork serve` knows but has no option for: the names, so that they
 * can be accepted, and those among them that must not be passed over in silence. */
#ifndef CLI_SGLANG_ARGS_H
#define CLI_SGLANG_ARGS_H

#include "cli/options.h"

/* The names by how many values they take, each list ended by NULL: see struct foreign_spec. */
extern const char *const sglang_flag_names[];
extern const char *const sglang_value_names[];
extern const char *const sglang_maybe_names[];
extern const char *const sglang_list_names[];

struct sglang_rule {
    const char *name;
    const char *harmless; /* values that ask for nothing, between bars; NULL: there are none */
    bool refused;         /* other weights than ours, or less safety, are wanted; else: said */
    const char *why;      /* and the way out */
};

/* What to do about an argument; NULL: nothing, it has no bearing on weights. value NULL: it has
 * none. */
const struct sglang_rule *sglang_rule_find(const char *name, const char *value);

#endif
