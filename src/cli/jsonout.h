/* Writing one JSON value piece by piece; commas come by themselves. */
#ifndef CLI_JSONOUT_H
#define CLI_JSONOUT_H

#include "base/buf.h"

/* Zero-initialise; jsonout_print() prints it with a newline and frees it. key is NULL inside an
 * array. */
struct jsonout {
    struct buf buf;
    bool comma;
};

void jsonout_open(struct jsonout *out, const char *key, char bracket);
void jsonout_close(struct jsonout *out, char bracket);
void jsonout_text(struct jsonout *out, const char *key, const char *text);
/* The text, or null when it is empty. */
void jsonout_text_or_null(struct jsonout *out, const char *key, const char *text);
void jsonout_u64(struct jsonout *out, const char *key, uint64_t number);
void jsonout_double(struct jsonout *out, const char *key, double number);
void jsonout_bool(struct jsonout *out, const char *key, bool value);
void jsonout_null(struct jsonout *out, const char *key);

/* RF_E_NOMEM. */
enum rf_code jsonout_print(struct jsonout *out, struct rf_error *err);

#endif
