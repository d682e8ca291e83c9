#include "model/convert.h"
#include "util/bytes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void only_half_floats_widen_and_narrow_again(void **state)
{
    (void)state;
    assert_true(convert_known(RF_DTYPE_BF16, RF_DTYPE_F32));
    assert_true(convert_known(RF_DTYPE_F16, RF_DTYPE_F32));
    assert_true(convert_known(RF_DTYPE_F32, RF_DTYPE_BF16));
    assert_false(convert_known(RF_DTYPE_F32, RF_DTYPE_F32));
    assert_false(convert_known(RF_DTYPE_F16, RF_DTYPE_BF16));
    assert_false(convert_known(RF_DTYPE_F8_E4M3, RF_DTYPE_F32));
    assert_false(convert_known(RF_DTYPE_F32, RF_DTYPE_F64));
    assert_int_equal(convert_bytes(RF_DTYPE_BF16, 6, RF_DTYPE_F32), 12);
    assert_int_equal(convert_bytes(RF_DTYPE_F32, 12, RF_DTYPE_F16), 6);
    assert_int_equal(convert_bytes(RF_DTYPE_U8, 3, RF_DTYPE_U8), 3);
}

/* All 65536 values, from and to addresses that are not aligned. */
static void every_half_float_survives_both_ways(void **state)
{
    (void)state;
    static const enum rf_dtype halves[] = {RF_DTYPE_BF16, RF_DTYPE_F16};
    uint8_t *half = malloc(2 * 65536 + 1);
    uint8_t *wide = malloc(4 * 65536 + 1);
    uint8_t *back = malloc(2 * 65536 + 1);

    for (unsigned d = 0; d < 2; d++) {
        for (unsigned i = 0; i < 65536; i++) {
            uint16_t value = (uint16_t)i;
            memcpy(half + 1 + 2 * (size_t)i, &value, 2);
        }
        assert_int_equal(
            convert_elements(halves[d], half + 1, 131072, RF_DTYPE_F32, wide + 1, NULL), RF_OK);
        assert_int_equal(
            convert_elements(RF_DTYPE_F32, wide + 1, 262144, halves[d], back + 1, NULL), RF_OK);
        assert_memory_equal(half + 1, back + 1, 131072);
    }
    free(half);
    free(wide);
    free(back);
}

/* What a half-precision number is worth (IEEE 754-2008), by arithmetic: clang 14 knows no _Float16
 * on this processor. */
static float half_value(uint16_t half)
{
    int exponent = half >> 10 & 31;
    float fraction = (float)(half & 1023);
    float value = exponent == 0    ? ldexpf(fraction, -24)
                  : exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                                   : ldexpf(1024 + fraction, exponent - 25);

    return (half & 0x8000) != 0 ? -value : value;
}

static void widening_is_what_the_format_says(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 65536; i++) {
        uint16_t bits = (uint16_t)i;
        float expected = half_value(bits);
        float got;

        assert_int_equal(convert_elements(RF_DTYPE_F16, &bits, 2, RF_DTYPE_F32, &got, NULL), RF_OK);
        if (expected != expected)
            assert_true(got != got); /* NaN; which one is tested above */
        else
            assert_memory_equal(&got, &expected, sizeof got);
    }
}

static void what_would_lose_bits_is_refused(void **state)
{
    (void)state;
    static const float bad_bf16[] = {1.0f, 1.00001f};
    static const float bad_f16[] = {65520.0f, 1e-8f, 1.0001f, 1e30f};
    struct rf_error err = {0};
    uint16_t out[2];

    assert_int_equal(
        convert_elements(RF_DTYPE_F32, bad_bf16, sizeof bad_bf16, RF_DTYPE_BF16, out, &err),
        RF_E_INVAL);
    assert_says(&err, "element 1");
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(convert_elements(RF_DTYPE_F32, &bad_f16[i], 4, RF_DTYPE_F16, out, NULL),
                         RF_E_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_half_floats_widen_and_narrow_again),
        cmocka_unit_test(every_half_float_survives_both_ways),
        cmocka_unit_test(widening_is_what_the_format_says),
        cmocka_unit_test(what_would_lose_bits_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
