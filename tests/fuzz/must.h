#ifndef FUZZ_MUST_H
#define FUZZ_MUST_H

#include <stdbool.h>
#include <stdlib.h>

static inline void must(bool ok)
{
    if (!ok)
        abort();
}

#endif
