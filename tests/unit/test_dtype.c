/* Dtypes: the format's names, and sizes that do not overflow. */
#include "base/dtype.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void every_dtype_has_a_name_and_bits(void **state)
{
    (void)state;
    for (unsigned i = 0; i < RF_DTYPE_COUNT; i++) {
        enum rf_dtype got = RF_DTYPE_COUNT;
        const char *name = rf_dtype_name((enum rf_dtype)i);
        assert_non_null(name);
        assert_in_range(rf_dtype_bits((enum rf_dtype)i), 4, 64);
        assert_true(dtype_parse(name, strlen(name), &got));
        assert_int_equal(got, i);
    }
    assert_null(rf_dtype_name(RF_DTYPE_COUNT));
    assert_null(rf_dtype_name((enum rf_dtype)(-1)));
    assert_int_equal(rf_dtype_bits(RF_DTYPE_COUNT), 0);
    assert_int_equal(rf_dtype_bits((enum rf_dtype)(-1)), 0);
}

static void bits_are_those_of_the_format(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        unsigned bits;
    } cases[] = {
        {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},
        {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8},     {"F8_E4M3FNUZ", 8},
        {"I16", 16}, {"U16", 16},    {"F16", 16},    {"F8_E5M2FNUZ", 8}, {"BF16", 16},
        {"I32", 32}, {"U32", 32},    {"F32", 32},    {"C64", 64},        {"F64", 64},
        {"I64", 64}, {"U64", 64},
    };

    assert_int_equal(sizeof cases / sizeof cases[0], RF_DTYPE_COUNT);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        enum rf_dtype got = RF_DTYPE_COUNT;
        assert_true(dtype_parse(cases[i].name, strlen(cases[i].name), &got));
        assert_int_equal(rf_dtype_bits(got), cases[i].bits);
    }
}

static void other_names_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"", "bf16", "BF1", "BF166", "F8", "F8_E4M3FN", "F128"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        enum rf_dtype got = RF_DTYPE_COUNT;
        assert_false(dtype_parse(names[i], strlen(names[i]), &got));
        assert_int_equal(got, RF_DTYPE_COUNT);
    }
    assert_false(dtype_parse(NULL, 0, &(enum rf_dtype){0}));
}

static void tensors_have_the_bytes_of_their_shape(void **state)
{
    (void)state;
    static const struct {
        enum rf_dtype dtype;
        unsigned ndim;
        uint64_t shape[3];
        uint64_t bytes;
    } cases[] = {
        {RF_DTYPE_F32, 0, {0}, 4},
        {RF_DTYPE_BF16, 1, {7}, 14},
        {RF_DTYPE_BF16, 2, {4096, 11008}, UINT64_C(90177536)},
        {RF_DTYPE_F4, 1, {2}, 1},
        {RF_DTYPE_F4, 2, {3, 32}, 48},
        {RF_DTYPE_F6_E2M3, 1, {4}, 3},
        {RF_DTYPE_F6_E3M2, 2, {2, 2}, 3},
        {RF_DTYPE_I64, 3, {1, 1, 1}, 8},
        {RF_DTYPE_U8, 2, {0, 5}, 0},
        {RF_DTYPE_U8, 2, {UINT64_MAX, 0}, 0},
        {RF_DTYPE_F32, 3, {UINT64_MAX, UINT64_MAX, 0}, 0},
        {RF_DTYPE_U8, 1, {UINT64_MAX}, UINT64_MAX},
        /* The bits of this one do not fit 64 bits, its bytes do. */
        {RF_DTYPE_F64, 1, {UINT64_C(1) << 60}, UINT64_C(1) << 63},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t bytes = 99;
        assert_true(dtype_tensor_bytes(cases[i].dtype, cases[i].shape, cases[i].ndim, &bytes));
        assert_true(bytes == cases[i].bytes);
    }
}

static void overflow_and_parts_of_bytes_are_refused(void **state)
{
    (void)state;
    static const struct {
        enum rf_dtype dtype;
        unsigned ndim;
        uint64_t shape[3];
    } cases[] = {
        {RF_DTYPE_F4, 0, {0}},
        {RF_DTYPE_F4, 1, {3}},
        {RF_DTYPE_F6_E2M3, 1, {2}},
        {RF_DTYPE_F6_E2M3, 2, {1, 5}},
        {RF_DTYPE_F4, 1, {UINT64_C(1) << 62}},
        {RF_DTYPE_F64, 1, {UINT64_C(1) << 61}},
        {RF_DTYPE_U8, 2, {UINT64_C(1) << 32, UINT64_C(1) << 32}},
        {RF_DTYPE_U8, 3, {UINT64_MAX, 2, 1}},
        {RF_DTYPE_U16, 1, {UINT64_MAX}},
        {RF_DTYPE_COUNT, 1, {1}},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t bytes = 99;
        assert_false(dtype_tensor_bytes(cases[i].dtype, cases[i].shape, cases[i].ndim, &bytes));
        assert_int_equal(bytes, 99);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_dtype_has_a_name_and_bits),
        cmocka_unit_test(bits_are_those_of_the_format),
        cmocka_unit_test(other_names_are_refused),
        cmocka_unit_test(tensors_have_the_bytes_of_their_shape),
        cmocka_unit_test(overflow_and_parts_of_bytes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
