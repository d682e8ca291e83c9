#include "format/safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const uint64_t shape_2_3[] = {2, 3};

static struct st_tensor tensor_named(const char *name)
{
    return (struct st_tensor){.name = name,
                              .name_bytes = (uint32_t)strlen(name),
                              .dtype = RF_DTYPE_BF16,
                              .ndim = 2,
                              .shape = shape_2_3,
                              .bytes = 12};
}

/* What the reference writes for the same tensors, in the order in which they are given. */
static void a_header_is_written_as_the_reference_does(void **state)
{
    (void)state;
    static const char expected[] =
        "\xa0\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
        "\"\\\"\\\\\xc3\xa4\\u0001\":{\"dtype\":\"F32\",\"shape\":[],"
        "\"data_offsets\":[12,16]}}      ";
    struct buf out BUF_AUTO = {.data = NULL};
    struct st_metadata metadata = {.key = "format", .value = "pt"};
    struct st_tensor tensors[] = {tensor_named("b"), tensor_named("\"\\\xc3\xa4\x01")};
    struct rf_error err = {.code = RF_OK};

    tensors[0].offset = 4711; /* ignored */
    tensors[1].dtype = RF_DTYPE_F32;
    tensors[1].ndim = 0;
    tensors[1].bytes = 4;
    assert_int_equal(st_header_write(tensors, 2, &metadata, 1, &out, &err), RF_OK);
    assert_int_equal(out.bytes % 8, 0);
    assert_int_equal(out.bytes, sizeof(expected) - 1);
    assert_memory_equal(out.data, expected, out.bytes);
}

static void a_written_header_is_read_back(void **state)
{
    (void)state;
    struct buf out BUF_AUTO = {.data = NULL};
    struct st_metadata metadata[] = {
        {.key = "a\0b", .key_bytes = 3, .value = "\0", .value_bytes = 1},
        {.key = "empty", .value = ""},
    };
    struct st_tensor tensors[] = {tensor_named("z"), tensor_named(""),
                                  tensor_named("\xe2\x82\xac")};
    struct st_header header;
    struct rf_error err = {.code = RF_OK};

    buf_append(&out, "xyz", 3); /* what is there stays */
    assert_int_equal(st_header_write(tensors, 3, metadata, 2, &out, &err), RF_OK);
    assert_memory_equal(out.data, "xyz", 3);
    assert_int_equal(
        st_header_parse("m", out.data + 11, out.bytes - 11, out.bytes - 3 + 36, &header, &err),
        RF_OK);
    assert_int_equal(header.tensor_count, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_string_equal(header.tensors[i].name, tensors[i].name);
        assert_int_equal(header.tensors[i].offset, 12 * i);
        assert_int_equal(header.tensors[i].bytes, 12);
    }
    assert_int_equal(header.metadata_count, 2);
    assert_memory_equal(header.metadata[0].key, "a\0b", 4);
    assert_int_equal(header.metadata[0].value_bytes, 1);
    assert_string_equal(header.metadata[1].value, "");
    st_header_free(&header);
}

static void no_tensors_make_an_empty_header(void **state)
{
    (void)state;
    struct buf out BUF_AUTO = {.data = NULL};

    assert_int_equal(st_header_write(NULL, 0, NULL, 0, &out, NULL), RF_OK);
    assert_int_equal(out.bytes, 16);
    assert_memory_equal(out.data, "\x08\0\0\0\0\0\0\0{}      ", 16);
}

static void refuse(const struct st_tensor *tensors, uint32_t count, const char *text)
{
    struct buf out BUF_AUTO = {.data = NULL};
    struct rf_error err = {.code = RF_OK};

    assert_int_equal(st_header_write(tensors, count, NULL, 0, &out, &err), RF_E_INVAL);
    assert_ptr_equal(strstr(err.text, text), err.text);
    assert_int_equal(out.bytes, 0);
}

static void what_could_not_be_read_again_is_refused(void **state)
{
    (void)state;
    static char long_name[RF_MAX_NAME_BYTES + 2];
    struct st_tensor twice[] = {tensor_named("b"), tensor_named("a"), tensor_named("b")};
    struct st_tensor bad = tensor_named("b");

    refuse(twice, 3, "new safetensors file: tensor \"b\": the name is there twice");
    bad.bytes = 11;
    refuse(&bad, 1, "new safetensors file: tensor \"b\": 11 bytes given, its shape needs 12");
    bad = tensor_named("__metadata__");
    refuse(&bad, 1, "new safetensors file: tensor \"__metadata__\": this name, ");
    bad = tensor_named("\xff");
    refuse(&bad, 1, "new safetensors file: tensor \"?\": this name, ");
    memset(long_name, 'n', sizeof(long_name) - 1);
    bad = tensor_named(long_name);
    refuse(&bad, 1, "new safetensors file: tensor \"nnn");
    bad = tensor_named("b");
    bad.name_bytes = 2;
    refuse(&bad, 1, "new safetensors file: tensor \"b\": this name, ");
    bad = tensor_named("b");
    bad.dtype = RF_DTYPE_COUNT;
    refuse(&bad, 1, "new safetensors file: tensor \"b\": this name, dtype (22)");
    bad = tensor_named("b");
    bad.ndim = RF_MAX_DIMS + 1;
    refuse(
        &bad, 1,
        "new safetensors file: tensor \"b\": this name, dtype (14) or number of dimensions (33)");
    bad = tensor_named("b");
    bad.dtype = RF_DTYPE_F4;
    bad.ndim = 0;
    refuse(&bad, 1,
           "new safetensors file: tensor \"b\": shape [] of F4 is 4 bits, not whole bytes");
}

static void sums_over_2_to_64_are_refused(void **state)
{
    (void)state;
    static const uint64_t shape[] = {(UINT64_C(1) << 61) - 1};
    static const char *const names[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8"};
    struct st_tensor tensors[9];

    for (unsigned i = 0; i < 9; i++) {
        tensors[i] = (struct st_tensor){.name = names[i],
                                        .name_bytes = 1,
                                        .dtype = RF_DTYPE_U8,
                                        .ndim = 1,
                                        .shape = shape,
                                        .bytes = shape[0]};
    }
    refuse(tensors, 9, "new safetensors file: more than 2^64 bytes of tensors");
}

static void a_header_over_the_limit_is_refused(void **state)
{
    (void)state;
    struct buf out BUF_AUTO = {.data = NULL};
    struct rf_error err = {.code = RF_OK};
    struct st_metadata metadata = {.key = "k", .value_bytes = ST_MAX_HEADER_BYTES};
    char *value = malloc(ST_MAX_HEADER_BYTES + 1);

    assert_non_null(value);
    memset(value, 'v', ST_MAX_HEADER_BYTES);
    value[ST_MAX_HEADER_BYTES] = '\0';
    metadata.value = value;
    assert_int_equal(st_header_write(NULL, 0, &metadata, 1, &out, &err), RF_E_INVAL);
    assert_string_equal(err.text,
                        "new safetensors file: the header of 0 tensors has 100000032 bytes, "
                        "more than 100000000; use several files");
    assert_int_equal(out.bytes, 0);
    free(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_header_is_written_as_the_reference_does),
        cmocka_unit_test(a_written_header_is_read_back),
        cmocka_unit_test(no_tensors_make_an_empty_header),
        cmocka_unit_test(what_could_not_be_read_again_is_refused),
        cmocka_unit_test(sums_over_2_to_64_are_refused),
        cmocka_unit_test(a_header_over_the_limit_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
