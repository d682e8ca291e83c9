/* Sizes, rates and durations: what people may write, and what they are shown. */
#include "base/size.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void sizes_are_understood(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        {"0", 0},
        {"4096", 4096},
        {"007", 7},
        {"512B", 512},
        {"512 b", 512},
        {"64KiB", 65536},
        {"64kib", 65536},
        {"64K", 65536},
        {"64Ki", 65536},
        {"64KB", 64000},
        {"8MiB", 8388608},
        {"8 MiB", 8388608},
        {"500MB", 500000000},
        {"500mb", 500000000},
        {"1.5GiB", 1610612736},
        {"4GB", 4000000000},
        {"2G", 2147483648},
        {"0.5K", 512},
        {"0.001KB", 1},
        {"0.0001K", 0},
        {"1.999999KB", 1999},
        {"1.0", 1},
        {"3TiB", UINT64_C(3298534883328)},
        {"1.234567TB", UINT64_C(1234567000000)},
        {"9223372036854775808", UINT64_C(1) << 63},
        {"8388608TiB", UINT64_C(1) << 63},
        {"8388607.999999TiB", (UINT64_C(1) << 63) - 1099512},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t bytes = 12345;
        struct rf_error err = {0};
        if (size_parse(cases[i].text, &bytes, &err) != RF_OK || bytes != cases[i].bytes)
            fail_msg("\"%s\": %llu, not %llu: %s", cases[i].text, (unsigned long long)bytes,
                     (unsigned long long)cases[i].bytes, err.text);
    }
}

static void what_is_no_size_is_refused(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "",
        " ",
        "-1",
        "+1",
        "K",
        "KiB",
        ".5G",
        "1.G",
        "1..5G",
        "1,5G",
        "0x10",
        "1e9",
        "1 ",
        " 1",
        "1  K",
        "1KBs",
        "1KiBB",
        "1kk",
        "1P",
        "1PiB",
        "1EiB",
        "1.5",
        "1.5B",
        "nan",
        "inf",
        "1\nK",
        "1K\n",
        "1KiB 2",
        "1.1234567G",
        "1/2G",
        "\xc2\xbd",
        "1i",
        "1iB",
        "1bB",
        "9223372036854775809",
        "18446744073709551616",
        "18446744073709551615",
        "99999999999999999999999999",
        "8388608.1TiB",
        "9223373TB",
        "16777216TiB",
        "9999999999999TiB",
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t bytes = 12345;
        struct rf_error err = {0};
        if (size_parse(cases[i], &bytes, &err) != RF_E_INVAL || bytes != 12345)
            fail_msg("\"%s\" was taken for %llu", cases[i], (unsigned long long)bytes);
        assert_int_equal(err.code, RF_E_INVAL);
        assert_non_null(strstr(err.text, "64MiB"));
    }
    assert_int_equal(size_parse(NULL, &(uint64_t){0}, NULL), RF_E_INVAL);
}

static void refusal_quotes_the_beginning_only(void **state)
{
    (void)state;
    char text[5000];
    uint64_t bytes = 0;
    struct rf_error err;

    memset(text, 'z', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    assert_int_equal(size_parse(text, &bytes, &err), RF_E_INVAL);
    assert_non_null(strstr(err.text, "2^63 bytes at most"));
}

static void sizes_have_three_digits(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 B"},
        {1, "1 B"},
        {999, "999 B"},
        {1000, "1 kB"},
        {1005, "1 kB"},
        {1234, "1.23 kB"},
        {9994, "9.99 kB"},
        {9996, "10 kB"},
        {90900000, "90.9 MB"},
        {99960000, "100 MB"},
        {999499999, "999 MB"},
        {999500000, "1 GB"},
        {1200000000, "1.2 GB"},
        {UINT64_C(141000000000), "141 GB"},
        {UINT64_C(2500000000000), "2.5 TB"},
        {UINT64_MAX, "18.4 EB"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[SIZE_TEXT_BYTES];
        assert_ptr_equal(size_text(cases[i].bytes, out), out);
        assert_string_equal(out, cases[i].text);
    }
}

static void rates_are_sizes_per_second(void **state)
{
    (void)state;
    char out[SIZE_TEXT_BYTES];

    assert_string_equal(size_rate_text(3.21e9, out), "3.21 GB/s");
    assert_string_equal(size_rate_text(0, out), "0 B/s");
    assert_string_equal(size_rate_text(0.4, out), "0 B/s");
}

static void nonsense_rates_stay_within_their_room(void **state)
{
    (void)state;
    static const double values[] = {-1, -1e300, 1e300, HUGE_VAL, -HUGE_VAL};
    char *out = malloc(SIZE_TEXT_BYTES); /* for AddressSanitizer */

    assert_non_null(out);
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        assert_true(strlen(size_rate_text(values[i], out)) < SIZE_TEXT_BYTES);
        assert_true(strlen(size_seconds_text(values[i], out)) < SIZE_TEXT_BYTES);
    }
    assert_string_equal(size_rate_text((double)NAN, out), "0 B/s");
    assert_string_equal(size_seconds_text((double)NAN, out), "0 ms");
    free(out);
}

static void durations_read_well(void **state)
{
    (void)state;
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {
        {0, "0 ms"},         {-3, "0 ms"},         {0.00035, "350 us"}, {0.0009996, "1 ms"},
        {0.42, "420 ms"},    {0.9994, "999 ms"},   {0.9996, "1.0 s"},   {1.3, "1.3 s"},
        {42.66, "42.7 s"},   {59.96, "1 min 0 s"}, {125, "2 min 5 s"},  {3599.6, "1 h 0 min"},
        {7500, "2 h 5 min"}, {1e15, "for ever"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[SIZE_TEXT_BYTES];
        assert_string_equal(size_seconds_text(cases[i].seconds, out), cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_understood),
        cmocka_unit_test(what_is_no_size_is_refused),
        cmocka_unit_test(refusal_quotes_the_beginning_only),
        cmocka_unit_test(sizes_have_three_digits),
        cmocka_unit_test(rates_are_sizes_per_second),
        cmocka_unit_test(nonsense_rates_stay_within_their_room),
        cmocka_unit_test(durations_read_well),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
