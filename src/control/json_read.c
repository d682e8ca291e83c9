#include "control/json_read.h"

#include <inttypes.h>
#include <string.h>

enum rf_code json_read_object(const void *text, size_t bytes, const char *what, json_t **ret_object,
                              struct rf_error *err)
{
    json_error_t why = {.line = 0};
    json_t *value = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why);

    if (value == NULL)
        return rf_fail(err, RF_E_PROTO, "%s: not JSON: %s (line %d, column %d)", what, why.text,
                       why.line, why.column);
    if (!json_is_object(value)) {
        json_decref(value);
        return rf_fail(err, RF_E_PROTO, "%s: JSON, but not an object", what);
    }
    *ret_object = value;
    return RF_OK;
}

static const char *type_name(const json_t *value)
{
    static const char *const names[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "an array",  [JSON_STRING] = "a string",
        [JSON_INTEGER] = "a number", [JSON_REAL] = "a fraction", [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",      [JSON_NULL] = "null",
    };
    return names[json_typeof(value)];
}

/* The field, or NULL when it is not there and need not be. */
static enum rf_code find(const json_t *object, const char *key, enum json_need need,
                         const json_t **ret_value, struct rf_error *err)
{
    const json_t *value = json_object_get(object, key);

    *ret_value = json_is_null(value) ? NULL : value;
    if (*ret_value == NULL && need == JSON_REQUIRED)
        return rf_fail(err, RF_E_PROTO, "\"%s\" is missing", key);
    return RF_OK;
}

static bool has_controls(const char *text)
{
    for (; *text != '\0'; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return true;
    }
    return false;
}

enum rf_code json_read_text(const json_t *object, const char *key, enum json_need need, size_t max,
                            const char **ret_text, struct rf_error *err)
{
    const json_t *value = NULL;
    enum rf_code code = find(object, key, need, &value, err);

    if (code != RF_OK || value == NULL)
        return code;
    if (!json_is_string(value))
        return rf_fail(err, RF_E_PROTO, "\"%s\" is %s, not a string", key, type_name(value));
    if (json_string_length(value) > max)
        return rf_fail(err, RF_E_PROTO, "\"%s\" has %zu bytes, at most %zu are allowed", key,
                       json_string_length(value), max);
    if (has_controls(json_string_value(value)))
        return rf_fail(err, RF_E_PROTO, "\"%s\" holds control characters", key);
    *ret_text = json_string_value(value);
    return RF_OK;
}

enum rf_code json_read_u64(const json_t *object, const char *key, enum json_need need, uint64_t max,
                           uint64_t *ret_number, struct rf_error *err)
{
    const json_t *value = NULL;
    enum rf_code code = find(object, key, need, &value, err);

    if (code != RF_OK || value == NULL)
        return code;
    if (!json_is_integer(value))
        return rf_fail(err, RF_E_PROTO, "\"%s\" is %s, not a whole number", key, type_name(value));
    json_int_t number = json_integer_value(value);
    if (number < 0 || (uint64_t)number > max)
        return rf_fail(err, RF_E_PROTO, "\"%s\" is %" JSON_INTEGER_FORMAT ", not 0 to %" PRIu64,
                       key, number, max);
    *ret_number = (uint64_t)number;
    return RF_OK;
}

enum rf_code json_read_array(const json_t *object, const char *key, enum json_need need, size_t max,
                             const json_t **ret_array, struct rf_error *err)
{
    const json_t *value = NULL;
    enum rf_code code = find(object, key, need, &value, err);

    if (code != RF_OK || value == NULL)
        return code;
    if (!json_is_array(value))
        return rf_fail(err, RF_E_PROTO, "\"%s\" is %s, not an array", key, type_name(value));
    if (json_array_size(value) > max)
        return rf_fail(err, RF_E_PROTO, "\"%s\" has %zu items, at most %zu are allowed", key,
                       json_array_size(value), max);
    *ret_array = value;
    return RF_OK;
}
