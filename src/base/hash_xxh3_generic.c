/* What the compiler's target has by itself: SSE2 on x86-64, NEON on ARM, elsewhere scalar code. */
#include "base/hash_xxh3.h"

#include <string.h>

#define HASH_XXH3      hash_xxh3_generic
#define HASH_XXH3_NAME "generic"
#include "base/hash_xxh3_body.inc"
