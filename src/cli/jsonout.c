#include "cli/jsonout.h"

#include "cli/output.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static void put_key(struct jsonout *out, const char *key)
{
    if (out->comma)
        buf_append(&out->buf, ", ", 2);
    out->comma = true;
    if (key != NULL) {
        buf_json_string(&out->buf, key, strlen(key));
        buf_append(&out->buf, ": ", 2);
    }
}

void jsonout_open(struct jsonout *out, const char *key, char bracket)
{
    put_key(out, key);
    buf_append(&out->buf, &bracket, 1);
    out->comma = false;
}

void jsonout_close(struct jsonout *out, char bracket)
{
    buf_append(&out->buf, &bracket, 1);
    out->comma = true;
}

void jsonout_text(struct jsonout *out, const char *key, const char *text)
{
    put_key(out, key);
    buf_json_string(&out->buf, text, strlen(text));
}

void jsonout_text_or_null(struct jsonout *out, const char *key, const char *text)
{
    if (text != NULL && text[0] != '\0')
        jsonout_text(out, key, text);
    else
        jsonout_null(out, key);
}

void jsonout_u64(struct jsonout *out, const char *key, uint64_t number)
{
    put_key(out, key);
    buf_printf(&out->buf, "%" PRIu64, number);
}

void jsonout_double(struct jsonout *out, const char *key, double number)
{
    if (!isfinite(number)) {
        jsonout_null(out, key);
        return;
    }
    put_key(out, key);
    buf_printf(&out->buf, "%.9g", number);
}

void jsonout_bool(struct jsonout *out, const char *key, bool value)
{
    put_key(out, key);
    buf_printf(&out->buf, "%s", value ? "true" : "false");
}

void jsonout_null(struct jsonout *out, const char *key)
{
    put_key(out, key);
    buf_printf(&out->buf, "null");
}

enum rf_code jsonout_print(struct jsonout *out, struct rf_error *err)
{
    bool failed = out->buf.failed || out->buf.data == NULL;

    if (!failed)
        output_json((const char *)out->buf.data);
    buf_free(&out->buf);
    return failed ? rf_fail(err, RF_E_NOMEM, "no memory for the JSON text") : RF_OK;
}
