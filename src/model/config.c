#include "model/config.h"

#include "base/cleanup.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct model_config {
    json_t *root;
    char architecture[CONFIG_TEXT_BYTES];
    char quantisation[CONFIG_TEXT_BYTES];
};

enum { KEY_MAX_BYTES = 256 };

static void copy_text(char out[CONFIG_TEXT_BYTES], const json_t *value)
{
    if (json_is_string(value))
        snprintf(out, CONFIG_TEXT_BYTES, "%s", json_string_value(value));
}

static void texts_read(struct model_config *config)
{
    const json_t *quantisation = json_object_get(config->root, "quantization_config");

    copy_text(config->architecture,
              json_array_get(json_object_get(config->root, "architectures"), 0));
    snprintf(config->quantisation, sizeof config->quantisation, "none");
    if (json_is_object(quantisation)) {
        snprintf(config->quantisation, sizeof config->quantisation, "unknown");
        copy_text(config->quantisation, json_object_get(quantisation, "quant_method"));
    }
}

enum rf_code model_config_parse(const char *data, size_t bytes, struct model_config **ret_config,
                                struct rf_error *err)
{
    json_error_t error;

    if (bytes > CONFIG_MAX_BYTES)
        return rf_fail(err, RF_E_FORMAT, "config.json: %zu bytes, allowed are %d", bytes,
                       CONFIG_MAX_BYTES);
    json_t *root = json_loadb(data, bytes, 0, &error);
    if (root == NULL)
        return rf_fail(err, RF_E_FORMAT, "config.json: line %d: %s", error.line, error.text);
    struct model_config *config = json_is_object(root) ? calloc(1, sizeof *config) : NULL;
    if (config == NULL) {
        bool object = json_is_object(root);
        json_decref(root);
        return object ? rf_fail(err, RF_E_NOMEM, "config.json: no memory")
                      : rf_fail(err, RF_E_FORMAT, "config.json: is no JSON object");
    }
    config->root = root;
    texts_read(config);
    *ret_config = config;
    return RF_OK;
}

void model_config_destroy(struct model_config *config)
{
    if (config == NULL)
        return;
    json_decref(config->root);
    free(config);
}

const char *model_config_architecture(const struct model_config *config)
{
    return config->architecture;
}

const char *model_config_quantisation(const struct model_config *config)
{
    return config->quantisation;
}

bool model_config_dtype(const struct model_config *config, enum rf_dtype *ret_dtype)
{
    static const struct {
        const char *name;
        enum rf_dtype dtype;
    } dtypes[] = {
        {"float32", RF_DTYPE_F32}, {"float16", RF_DTYPE_F16}, {"bfloat16", RF_DTYPE_BF16}};
    const char *name = json_string_value(json_object_get(config->root, "dtype"));

    if (name == NULL)
        name = json_string_value(json_object_get(config->root, "torch_dtype"));
    for (unsigned i = 0; name != NULL && i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            *ret_dtype = dtypes[i].dtype;
            return true;
        }
    }
    return false;
}

/* The value a dotted key leads to; NULL if it leads nowhere. */
static const json_t *find(const struct model_config *config, const char *key)
{
    const json_t *at = config->root;
    char part[KEY_MAX_BYTES];

    for (;;) {
        size_t bytes = strcspn(key, ".");

        if (bytes >= sizeof part)
            return NULL;
        memcpy(part, key, bytes);
        part[bytes] = '\0';
        if (json_is_array(at) && bytes > 0 && strspn(part, "0123456789") == bytes && bytes < 9)
            at = json_array_get(at, strtoul(part, NULL, 10));
        else
            at = json_object_get(at, part);
        if (at == NULL || key[bytes] == '\0')
            return at;
        key += bytes + 1;
    }
}

enum rf_code model_config_number(const struct model_config *config, const char *key,
                                 uint64_t *ret_value, bool *ret_found, struct rf_error *err)
{
    const json_t *value = find(config, key);

    if (value == NULL || json_is_null(value)) {
        *ret_found = false;
        return RF_OK;
    }
    if (json_is_boolean(value)) {
        *ret_value = json_is_true(value) ? 1 : 0;
    } else if (json_is_integer(value) && json_integer_value(value) >= 0) {
        *ret_value = (uint64_t)json_integer_value(value);
    } else {
        return rf_fail(err, RF_E_FORMAT,
                       "config.json: %s is no whole number from 0 on, and neither true nor false",
                       key);
    }
    *ret_found = true;
    return RF_OK;
}

bool model_config_says(const struct model_config *config, const char *key, const char *text)
{
    const char *value = json_string_value(find(config, key));

    return value != NULL && strcmp(value, text) == 0;
}

/* A number that counts as `missing` when it is not there. */
static enum rf_code number_or(const struct model_config *config, const char *key, uint64_t missing,
                              uint64_t *ret_value, struct rf_error *err)
{
    bool found = false;
    uint64_t value = 0;
    enum rf_code code = model_config_number(config, key, &value, &found, err);

    if (code == RF_OK)
        *ret_value = found ? value : missing;
    return code;
}

static bool in_list(const json_t *list, uint64_t number)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        if (json_is_integer(item) && json_integer_value(item) == (json_int_t)number)
            return true;
    }
    return false;
}

enum rf_code model_config_sparse(const struct model_config *config, uint64_t layer,
                                 bool *ret_sparse, struct rf_error *err)
{
    static const char *const counts[] = {"n_routed_experts", "num_experts", "num_local_experts"};
    uint64_t experts = 0;
    uint64_t first = 0;
    uint64_t every = 1;
    uint64_t step = 1;
    enum rf_code code = RF_OK;

    for (unsigned i = 0; i < 3 && experts == 0 && code == RF_OK; i++)
        code = number_or(config, counts[i], 0, &experts, err);
    if (code == RF_OK)
        code = number_or(config, "first_k_dense_replace", 0, &first, err);
    if (code == RF_OK)
        code = number_or(config, "moe_layer_freq", 1, &every, err);
    if (code == RF_OK)
        code = number_or(config, "decoder_sparse_step", 1, &step, err);
    if (code != RF_OK)
        return code;
    *ret_sparse = experts > 0 && layer >= first && every > 0 && layer % every == 0 && step > 0 &&
                  (layer + 1) % step == 0 &&
                  !in_list(json_object_get(config->root, "mlp_only_layers"), layer);
    return RF_OK;
}
