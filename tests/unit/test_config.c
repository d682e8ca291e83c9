#include "model/config.h"
#include "util/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct model_config *parsed(const char *text)
{
    struct model_config *config = NULL;
    struct rf_error err = {0};

    if (model_config_parse(text, strlen(text), &config, &err) != RF_OK)
        fail_msg("%s", err.text);
    return config;
}

static void facts_are_read(void **state)
{
    (void)state;
    struct model_config *config = parsed(
        "{\"architectures\":[\"A\",\"B\"],\"dtype\":\"bfloat16\",\"torch_dtype\":\"float16\","
        "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,64]},"
        "\"n\":7,\"yes\":true,\"no\":false,\"nothing\":null}");
    enum rf_dtype dtype = RF_DTYPE_U8;
    uint64_t value = 99;
    bool found = false;

    assert_string_equal(model_config_architecture(config), "A");
    assert_string_equal(model_config_quantisation(config), "fp8");
    assert_true(model_config_dtype(config, &dtype));
    assert_int_equal(dtype, RF_DTYPE_BF16);
    assert_true(model_config_says(config, "quantization_config.quant_method", "fp8"));
    assert_false(model_config_says(config, "quantization_config.quant_method", "awq"));
    assert_false(model_config_says(config, "absent", "fp8"));
    assert_int_equal(model_config_number(config, "quantization_config.weight_block_size.1", &value,
                                         &found, NULL),
                     RF_OK);
    assert_int_equal(value, 64);
    assert_int_equal(model_config_number(config, "yes", &value, &found, NULL), RF_OK);
    assert_int_equal(value, 1);
    assert_int_equal(model_config_number(config, "no", &value, &found, NULL), RF_OK);
    assert_int_equal(value, 0);
    assert_true(found);
    assert_int_equal(model_config_number(config, "nothing", &value, &found, NULL), RF_OK);
    assert_false(found);
    assert_int_equal(model_config_number(config, "quantization_config.weight_block_size.2", &value,
                                         &found, NULL),
                     RF_OK);
    assert_false(found);
    model_config_destroy(config);
}

static void a_config_without_facts_has_defaults(void **state)
{
    (void)state;
    struct model_config *config = parsed("{}");
    enum rf_dtype dtype = RF_DTYPE_U8;

    assert_string_equal(model_config_architecture(config), "");
    assert_string_equal(model_config_quantisation(config), "none");
    assert_false(model_config_dtype(config, &dtype));
    model_config_destroy(config);
    config = parsed("{\"quantization_config\":{}}");
    assert_string_equal(model_config_quantisation(config), "unknown");
    model_config_destroy(config);
}

static void numbers_that_are_none_are_refused(void **state)
{
    (void)state;
    struct model_config *config =
        parsed("{\"minus\":-1,\"half\":0.5,\"text\":\"8\",\"list\":[1],\"object\":{}}");
    static const char *const keys[] = {"minus", "half", "text", "list", "object"};
    uint64_t value = 0;
    bool found = false;

    for (unsigned i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        struct rf_error err = {0};
        assert_int_equal(model_config_number(config, keys[i], &value, &found, &err), RF_E_FORMAT);
        assert_says(&err, keys[i]);
    }
    model_config_destroy(config);
}

static void what_is_no_object_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "[]", "7", "{", "{\"a\":}", "{} x"};
    struct model_config *config = NULL;

    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(model_config_parse(bad[i], strlen(bad[i]), &config, NULL), RF_E_FORMAT);
    assert_null(config);
}

static void assert_sparse(const char *text, const char *layers)
{
    struct model_config *config = parsed(text);

    for (unsigned i = 0; layers[i] != '\0'; i++) {
        bool sparse = false;
        assert_int_equal(model_config_sparse(config, i, &sparse, NULL), RF_OK);
        assert_int_equal(sparse, layers[i] == 's');
    }
    model_config_destroy(config);
}

static void layers_with_experts_are_known(void **state)
{
    (void)state;
    assert_sparse("{}", "ddd");
    assert_sparse("{\"num_experts\":0}", "ddd");
    assert_sparse("{\"num_local_experts\":8}", "sss");
    assert_sparse("{\"n_routed_experts\":8,\"first_k_dense_replace\":2}", "ddss");
    assert_sparse("{\"n_routed_experts\":8,\"moe_layer_freq\":2}", "sdsd");
    assert_sparse("{\"num_experts\":8,\"decoder_sparse_step\":2}", "dsds");
    assert_sparse("{\"num_experts\":8,\"mlp_only_layers\":[1]}", "sdss");
    assert_sparse("{\"num_experts\":8,\"decoder_sparse_step\":0}", "ddd");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(facts_are_read),
        cmocka_unit_test(a_config_without_facts_has_defaults),
        cmocka_unit_test(numbers_that_are_none_are_refused),
        cmocka_unit_test(what_is_no_object_is_refused),
        cmocka_unit_test(layers_with_experts_are_known),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
