/* What SGLang's control plane says of a rank, made and read. */
#include "control/engine_info.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* ---- making ---- */

static struct manifest *order_manifest(void)
{
    const struct manifest_identity identity = {.model = "m",
                                               .architecture = "",
                                               .quantisation = "none",
                                               .layout = "sglang",
                                               .algorithm = HASH_XXH3_128};
    struct rank_id id = {.tp = 3, .tp_size = 4, .pp_size = 2, .ep_size = 1, .dp_size = 1};
    static const uint64_t shape[] = {2, 3};
    static const uint64_t none[] = {0};
    struct manifest *manifest = NULL;
    struct rf_error err;

    struct manifest_builder *builder = manifest_builder_create(&identity, &err);
    assert_non_null(builder);
    for (unsigned stage = 0; stage < 2; stage++) {
        id.pp = stage == 0 ? 1 : 0; /* the second stage first: it must not be taken */
        assert_int_equal(manifest_add_rank(builder, &id, &err), RF_OK);
        const struct tensor tensors[] = {
            {.name = "z", .dtype = RF_DTYPE_BF16, .ndim = 2, .shape = shape, .order = 0},
            {.name = "tied", .dtype = RF_DTYPE_BF16, .ndim = 2, .shape = shape, .order = 1},
            {.name = "a\"\n", .dtype = RF_DTYPE_F32, .ndim = 2, .shape = shape, .order = 2},
            {.name = "none", .dtype = RF_DTYPE_F64, .ndim = 1, .shape = none, .order = 3},
            {.name = "scalar", .dtype = RF_DTYPE_U8, .order = 4},
        };
        for (unsigned i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
            struct tensor tensor = tensors[i];
            tensor.file = MANIFEST_NONE;
            assert_int_equal(manifest_add_tensor(builder, &tensor, i == 1 ? "z" : NULL, &err),
                             RF_OK);
        }
    }
    assert_int_equal(manifest_build(builder, &manifest, &err), RF_OK);
    return manifest;
}

static void tensors_come_in_the_engines_order_with_exact_places(void **state)
{
    struct buf out BUF_AUTO = {0};
    struct manifest *manifest = order_manifest();
    uint32_t index = engine_info_find_rank(manifest, 3);

    (void)state;
    assert_int_not_equal(index, MANIFEST_NONE);
    assert_int_equal(manifest->ranks[index].id.pp, 0);
    engine_info_tensors(&manifest->ranks[index], UINT64_C(18446744073709550000), &out);
    buf_append(&out, "", 1);
    /* The stream is by name: a (24 bytes), none, scalar (1), z (12). */
    assert_string_equal((const char *)out.data, "{\"z\":[18446744073709550025,6,2],"
                                                "\"tied\":[18446744073709550025,6,2],"
                                                "\"a\\\"\\n\":[18446744073709550000,6,4],"
                                                "\"none\":[18446744073709550024,0,8],"
                                                "\"scalar\":[18446744073709550024,1,1]}");
    assert_int_equal(engine_info_find_rank(manifest, 2), MANIFEST_NONE);
    assert_int_equal(engine_info_find_rank(manifest, UINT64_MAX), MANIFEST_NONE);
    manifest_unref(manifest);
}

static void a_rank_without_tensors_is_an_empty_object(void **state)
{
    const struct manifest_rank rank = {.tensor_count = 0};
    struct buf out BUF_AUTO = {0};

    (void)state;
    engine_info_tensors(&rank, 0, &out);
    buf_append(&out, "", 1);
    assert_string_equal((const char *)out.data, "{}");
}

/* ---- registrations ---- */

static void a_registration_is_read_as_it_was_made(void **state)
{
    static const char tensors[] = "{\"a\":[1,2,3],\"b\":[18446744073709551615,0,8]}";
    struct buf out BUF_AUTO = {0};
    struct engine_info info;
    struct rf_error err;

    (void)state;
    engine_info_put(7, "10.0.0.1:5", tensors, strlen(tensors), &out);
    assert_int_equal(engine_info_parse_put(out.data, out.bytes, &info, &err), RF_OK);
    assert_int_equal(info.rank, 7);
    assert_string_equal(info.session, "10.0.0.1:5");
    assert_int_equal(info.tensor_count, 2);
    assert_int_equal(info.tensors_bytes, strlen(tensors));
    assert_memory_equal(info.tensors, tensors, info.tensors_bytes);
    for (size_t i = 0; i < out.bytes; i++) /* no half of it is one */
        assert_int_equal(engine_info_parse_put(out.data, i, &info, &err), RF_E_INVAL);
}

#define INFO(dict) \
    "\"transfer_engine_info\":{\"session_id\":\"h:1\",\"weights_info_dict\":" dict "}"

static void what_a_registration_may_have_besides_is_passed_over(void **state)
{
    static const char text[] =
        " {\"protocol\":\"tcp\",\"tp_rank\":1,\"role\":null,\"transfer_engine_info\":"
        "{\"alternates\":[{\"x\":[1.5,true]}],\"weights_info_dict\" : { } ,"
        "\"session_id\":\"\\u0068:1\"},\"rank\":5}\n";
    struct engine_info info;
    struct rf_error err;

    (void)state;
    assert_int_equal(engine_info_parse_put(text, strlen(text), &info, &err), RF_OK);
    assert_int_equal(info.rank, 5); /* counts more than tp_rank, wherever it stands */
    assert_string_equal(info.session, "h:1");
    assert_int_equal(info.tensor_count, 0);
    assert_memory_equal(info.tensors, "{ }", 3);
    assert_int_equal(info.tensors_bytes, 3);
}

static void wrong_registrations_are_refused_in_words(void **state)
{
    static const struct {
        const char *text;
        const char *words;
    } cases[] = {
        {"", "too early"},
        {"[]", "an object was expected"},
        {"{}", "\"tp_rank\" is missing"},
        {"{\"rank\":0}", "\"transfer_engine_info\" is missing"},
        {"{" INFO("{}") "}", "\"tp_rank\" is missing"},
        {"{\"rank\":0,\"transfer_engine_info\":{}}", "\"session_id\" is missing"},
        {"{\"rank\":0,\"transfer_engine_info\":{\"session_id\":\"h:1\"}}",
         "\"weights_info_dict\" is missing"},
        {"{\"rank\":0,\"transfer_engine_info\":{\"session_id\":7}}", "byte"},
        {"{\"rank\":0,\"transfer_engine_info\":{\"session_id\":\"h\"}}", "HOST:PORT"},
        {"{\"rank\":0,\"transfer_engine_info\":[]}", "no object"},
        {"{\"rank\":-1," INFO("{}") "}", "byte"},
        {"{\"rank\":1.0," INFO("{}") "}", "byte"},
        {"{\"rank\":\"1\"," INFO("{}") "}", "byte"},
        {"{\"rank\":4096," INFO("{}") "}", "at most 4095"},
        {"{\"rank\":1,\"rank\":2," INFO("{}") "}", "twice"},
        {"{\"rank\":1," INFO("{}") "," INFO("{}") "}", "twice"},
        {"{\"rank\":1," INFO("[]") "}", "tensors was expected"},
        {"{\"rank\":1," INFO("{\"a\":1}") "}", "address, elements"},
        {"{\"rank\":1," INFO("{\"a\":[1,2]}") "}", "fewer than 3"},
        {"{\"rank\":1," INFO("{\"a\":[1,2,3,4]}") "}", "more than 3"},
        {"{\"rank\":1," INFO("{\"a\":[1,2,]}") "}", "byte"},
        {"{\"rank\":1," INFO("{\"a\":[1e3,2,3]}") "}", "byte"},
        {"{\"rank\":1," INFO("{\"a\":[18446744073709551616,2,3]}") "}", "byte"},
        {"{\"rank\":1," INFO("{\"a\":[18446744073709551615,1,1]}") "}", "beyond 2^64"},
        {"{\"rank\":1," INFO("{\"a\":[1,4294967296,4294967296]}") "}", "beyond 2^64"},
        {"{\"rank\":1," INFO("{\"\xff\":[1,1,1]}") "}", "byte"},
        {"{\"rank\":1," INFO("{}") "} x", "byte"},
    };
    struct engine_info info;
    struct rf_error err;

    (void)state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        enum rf_code code =
            engine_info_parse_put(cases[i].text, strlen(cases[i].text), &info, &err);
        if (code != RF_E_INVAL || strstr(err.text, cases[i].words) == NULL)
            fail_msg("%s: %s: \"%s\" does not say \"%s\"", cases[i].text, rf_code_name(code),
                     err.text, cases[i].words);
    }
}

/* ---- between nodes ---- */

static void questions_are_read(void **state)
{
    struct engine_question question;
    struct buf out BUF_AUTO = {0};
    struct rf_error err;
    static const char other[] = "{\"action\":\"dance\\n\\u0000\",\"rank\":null,\"x\":[]}";
    static const char *const bad[] = {"",
                                      "1",
                                      "[]",
                                      "{\"action\":1}",
                                      "{\"rank\":-1}",
                                      "{\"rank\":\"0\"}",
                                      "{\"rank\":1,\"rank\":1}",
                                      "{}{}"};

    (void)state;
    engine_question_make(12, &out);
    assert_int_equal(engine_question_parse(out.data, out.bytes, &question, &err), RF_OK);
    assert_true(question.knows_action && question.has_rank);
    assert_int_equal(question.rank, 12);
    assert_int_equal(engine_question_parse(other, strlen(other), &question, &err), RF_OK);
    assert_false(question.knows_action || question.has_rank);
    assert_string_equal(question.action, "dance?");
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(engine_question_parse(bad[i], strlen(bad[i]), &question, &err),
                         RF_E_INVAL);
}

#define ANSWER(pair) \
    "{\"success\":true,\"rank\":1,\"remote_instance_transfer_engine_info\":" pair "}"

static void answers_are_read(void **state)
{
    static const struct {
        const char *text;
        enum rf_code code;
        const char *words;
    } cases[] = {
        {ANSWER("[\"h:1\",{\"a\":[1,2,3]}]"), RF_OK, ""},
        {ANSWER("[\"h:1\",{\"a\":[1,2,3]},1]"), RF_E_PROTO, "more than [session"},
        {ANSWER("[\"h:1\"]"), RF_E_PROTO, "expected"},
        {ANSWER("[]"), RF_E_PROTO, "expected"},
        {ANSWER("null"), RF_E_PROTO, "no info"},
        {"{\"success\":false,\"error\":\"Rank 1 not\\u001b available\"}", RF_E_UNREACHABLE,
         "it refused: Rank 1 not? available"},
        {"{\"success\":false}", RF_E_UNREACHABLE, "no reason"},
        {"{\"success\":1}", RF_E_PROTO, "true or false"},
        {"{\"error\":\"x\"}", RF_E_PROTO, "\"success\" is missing"},
        {"{\"success\":true,\"rank\":2,\"remote_instance_transfer_engine_info\":[\"h:1\",{}]}",
         RF_E_PROTO, "about rank 2"},
        {"{\"success\":true,\"remote_instance_transfer_engine_info\":[\"h:1\",{}]}", RF_E_PROTO,
         "no rank"},
        {"garbage", RF_E_PROTO, "makes no sense"},
        {"", RF_E_PROTO, "makes no sense"},
    };
    struct engine_info info;

    (void)state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rf_error err = {.text = ""};
        enum rf_code code =
            engine_answer_parse(cases[i].text, strlen(cases[i].text), 1, &info, &err);
        if (code != cases[i].code || strstr(err.text, cases[i].words) == NULL)
            fail_msg("%s: %s: \"%s\" does not say \"%s\"", cases[i].text, rf_code_name(code),
                     err.text, cases[i].words);
    }
    assert_int_equal(info.tensor_count, 1);
}

static void refusals_are_read_as_refusals(void **state)
{
    struct buf out BUF_AUTO = {0};
    struct engine_info info;
    struct rf_error err;

    (void)state;
    engine_answer_refuse("Unknown action: \"x\"", &out);
    assert_int_equal(engine_answer_parse(out.data, out.bytes, 1, &info, &err), RF_E_UNREACHABLE);
    assert_non_null(strstr(err.text, "Unknown action: \"x\""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_come_in_the_engines_order_with_exact_places),
        cmocka_unit_test(a_rank_without_tensors_is_an_empty_object),
        cmocka_unit_test(a_registration_is_read_as_it_was_made),
        cmocka_unit_test(what_a_registration_may_have_besides_is_passed_over),
        cmocka_unit_test(wrong_registrations_are_refused_in_words),
        cmocka_unit_test(questions_are_read),
        cmocka_unit_test(answers_are_read),
        cmocka_unit_test(refusals_are_read_as_refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
