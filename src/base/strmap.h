/* Strings to numbers: an open-addressing hash map, seeded per process against chosen collisions. */
#ifndef BASE_STRMAP_H
#define BASE_STRMAP_H

#include "base/error.h"

struct strmap;

/* expected is a hint. NULL when out of memory. */
struct strmap *strmap_create(size_t expected);
void strmap_destroy(struct strmap *map);

/* Adds a key (borrowed: it must outlive the map; need not be NUL-terminated). RF_E_INVAL if present
 * (then *ret_old, if not NULL, is its value), RF_E_NOMEM. err is filled for neither. */
enum rf_code strmap_add(struct strmap *map, const char *key, size_t bytes, uint32_t value,
                        uint32_t *ret_old);

/* Whether the key is there; *ret_value is untouched if not. Any number of threads at once. */
bool strmap_find(const struct strmap *map, const char *key, size_t bytes, uint32_t *ret_value);

#endif
