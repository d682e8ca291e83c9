/* Random bytes from the kernel, and a small seeded generator for tests and fault injection. */
#ifndef BASE_RAND_H
#define BASE_RAND_H

#include "base/error.h"

/* Unpredictable: for tokens. */
enum rf_code rand_bytes(void *out, size_t bytes, struct rf_error *err);

/* splitmix64: reproducible from its seed, not for secrets. */
struct rand_seq {
    uint64_t state;
};
uint64_t rand_next(struct rand_seq *seq);
/* Uniform in [0, below); below > 0. */
uint64_t rand_below(struct rand_seq *seq, uint64_t below);

/* Equal or not in time that does not depend on where they differ. */
bool rand_token_equal(const void *a, const void *b, size_t bytes);

#endif
