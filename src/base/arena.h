/* Many small allocations released at once. Not thread-safe. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>

/* Zero-initialise. */
struct arena {
    struct arena_block *head;
};

/* Memory aligned to 16 bytes, not zeroed; NULL when out of memory. Lives until arena_free(). */
void *arena_alloc(struct arena *arena, size_t bytes);
/* A NUL-terminated copy. */
char *arena_strndup(struct arena *arena, const char *text, size_t bytes);
void arena_free(struct arena *arena);

#endif
