/* Deadlines: they saturate, and what is left of them is never rounded down to nothing. */
#include "base/clock.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void time_does_not_go_back(void **state)
{
    (void)state;
    uint64_t last_ns = clock_now_ns();

    assert_true(last_ns > 0);
    for (int i = 0; i < 1000; i++) {
        uint64_t now_ns = clock_now_ns();
        assert_true(now_ns >= last_ns);
        last_ns = now_ns;
    }
}

static void deadline_is_now_plus_the_time_out(void **state)
{
    (void)state;
    uint64_t before_ns = clock_now_ns();
    uint64_t deadline_ns = clock_deadline_ns(1500);
    uint64_t after_ns = clock_now_ns();

    assert_in_range(deadline_ns, before_ns + 1500 * CLOCK_NS_PER_MS,
                    after_ns + 1500 * CLOCK_NS_PER_MS);
}

static void endless_time_out_saturates(void **state)
{
    (void)state;
    assert_true(clock_deadline_ns(UINT64_MAX) == UINT64_MAX);
    assert_true(clock_deadline_ns(UINT64_MAX / CLOCK_NS_PER_MS) == UINT64_MAX);
    assert_true(clock_deadline_ns(UINT64_MAX / CLOCK_NS_PER_MS + 1) == UINT64_MAX);
    assert_int_equal(clock_left_ms(UINT64_MAX), INT_MAX);
}

static void what_is_left_is_rounded_up(void **state)
{
    (void)state;
    uint64_t now_ns = clock_now_ns();

    assert_int_equal(clock_left_ms(0), 0);
    assert_int_equal(clock_left_ms(now_ns), 0);
    /* A millisecond begun is a millisecond: poll(0) in a loop would burn the processor. */
    assert_in_range(clock_left_ms(clock_now_ns() + CLOCK_NS_PER_S), 1, 1000);
    assert_in_range(clock_left_ms(clock_now_ns() + 3600 * CLOCK_NS_PER_S + 1), 3590000, 3600001);
}

static void seconds_between_two_times(void **state)
{
    (void)state;
    assert_true(clock_seconds(5, 5) == 0.0);
    assert_true(clock_seconds(1000, 1000 + 2500 * CLOCK_NS_PER_MS) == 2.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(time_does_not_go_back),
        cmocka_unit_test(deadline_is_now_plus_the_time_out),
        cmocka_unit_test(endless_time_out_saturates),
        cmocka_unit_test(what_is_left_is_rounded_up),
        cmocka_unit_test(seconds_between_two_times),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
