#include "cli/options_foreign.h"

#include <ctype.h>
#include <string.h>

bool foreign_next(const struct foreign_spec *spec, const char *typed, size_t bytes,
                  struct foreign_walk *walk, struct foreign_arg *ret_arg)
{
    for (; walk->values < FOREIGN_KINDS; walk->values++, walk->index = 0) {
        const char *const *names = spec->names[walk->values];

        for (; names != NULL && names[walk->index] != NULL; walk->index++) {
            if (strncmp(names[walk->index], typed, bytes) != 0)
                continue;
            *ret_arg = (struct foreign_arg){names[walk->index], (enum foreign_values)walk->values};
            walk->index++;
            return true;
        }
    }
    return false;
}

bool foreign_is_option(const char *word)
{
    return word[0] == '-' && word[1] != '\0' && word[1] != '.' && !isdigit((unsigned char)word[1]);
}
