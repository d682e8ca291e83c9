/* Reading control JSON strictly: every field has its type and its bounds. */
#ifndef CONTROL_JSON_READ_H
#define CONTROL_JSON_READ_H

#include "base/error.h"

#include <jansson.h>

/* A whole text that is one object, no key twice. RF_E_PROTO, its line beginning with `what`.
 * json_decref() it. */
enum rf_code json_read_object(const void *text, size_t bytes, const char *what, json_t **ret_object,
                              struct rf_error *err);

/* Each fails with RF_E_PROTO naming the key. A missing or null field: `*ret` is left alone if
 * not required. */
enum json_need { JSON_OPTIONAL, JSON_REQUIRED };

/* At most max bytes, without control characters; borrowed from the object. */
enum rf_code json_read_text(const json_t *object, const char *key, enum json_need need, size_t max,
                            const char **ret_text, struct rf_error *err);
/* 0 ... max. */
enum rf_code json_read_u64(const json_t *object, const char *key, enum json_need need, uint64_t max,
                           uint64_t *ret_number, struct rf_error *err);
/* At most max items; borrowed. */
enum rf_code json_read_array(const json_t *object, const char *key, enum json_need need, size_t max,
                             const json_t **ret_array, struct rf_error *err);

#endif
