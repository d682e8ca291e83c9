/* Growable buffers: they grow, they stay terminated, and a failure sticks. */
#include "base/buf.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void appending_grows_and_terminates(void **state)
{
    (void)state;
    BUF_AUTO struct buf buf = {0};

    for (unsigned i = 0; i < 10000; i++) {
        uint8_t byte = (uint8_t)i;
        buf_append(&buf, &byte, 1);
        assert_int_equal(buf.bytes, i + 1);
        assert_int_equal(buf.data[buf.bytes], 0);
    }
    for (unsigned i = 0; i < 10000; i++)
        assert_int_equal(buf.data[i], (uint8_t)i);
    assert_false(buf.failed);
}

static void appending_nothing_is_fine(void **state)
{
    (void)state;
    BUF_AUTO struct buf buf = {0};

    buf_append(&buf, NULL, 0);
    assert_int_equal(buf.bytes, 0);
    assert_string_equal((char *)buf.data, "");
}

static void printing_fits_any_length(void **state)
{
    (void)state;

    /* Around the first allocation's size, where the text does not fit at first. */
    for (int width = 0; width < 600; width++) {
        BUF_AUTO struct buf buf = {0};
        buf_printf(&buf, "<%*d>", width, 7);
        buf_printf(&buf, "%s", "end");
        size_t bytes = (size_t)(width > 1 ? width : 1) + 2 + 3;
        assert_int_equal(buf.bytes, bytes);
        assert_int_equal(strlen((char *)buf.data), bytes);
        assert_string_equal((char *)buf.data + bytes - 5, "7>end");
    }
}

static void failure_sticks(void **state)
{
    (void)state;
    BUF_AUTO struct buf buf = {0};

    buf_append(&buf, "abc", 3);
    assert_null(buf_reserve(&buf, SIZE_MAX));
    assert_true(buf.failed);
    assert_null(buf_reserve(&buf, 1));
    buf_append(&buf, "def", 3);
    buf_printf(&buf, "%d", 1);
    buf_json_string(&buf, "x", 1);
    assert_int_equal(buf.bytes, 3);
    assert_string_equal((char *)buf.data, "abc");
}

static void reserved_room_is_the_callers(void **state)
{
    (void)state;
    BUF_AUTO struct buf buf = {0};

    buf_append(&buf, "ab", 2);
    uint8_t *room = buf_reserve(&buf, 1000);
    assert_non_null(room);
    assert_ptr_equal(room, buf.data + 2);
    memset(room, 'x', 1000);
    buf.bytes += 1000;
    buf_append(&buf, "", 0);
    assert_int_equal(buf.bytes, 1002);
    assert_int_equal(buf.data[1001], 'x');
    assert_int_equal(buf.data[1002], 0);
}

static void freed_buffer_is_usable_again(void **state)
{
    (void)state;
    struct buf buf = {0};

    buf_free(&buf);
    buf_append(&buf, "abc", 3);
    buf_free(&buf);
    assert_null(buf.data);
    assert_int_equal(buf.bytes, 0);
    buf_append(&buf, "d", 1);
    assert_string_equal((char *)buf.data, "d");
    buf_free(&buf);
}

static void json_strings_are_escaped(void **state)
{
    (void)state;
    static const struct {
        const char *in;
        size_t bytes;
        const char *out;
    } cases[] = {
        {"", 0, "\"\""},
        {NULL, 0, "\"\""},
        {"plain", 5, "\"plain\""},
        {"a\"b\\c/d", 7, "\"a\\\"b\\\\c/d\""},
        {"\b\f\n\r\t", 5, "\"\\b\\f\\n\\r\\t\""},
        {"\0\x01\x1f\x7f", 4, "\"\\u0000\\u0001\\u001f\\u007f\""},
        {"gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80", 11, "\"gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80\""},
        {"a\xff"
         "b",
         3,
         "\"a\xef\xbf\xbd"
         "b\""},
        {"\xe2\x82", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\""},
        {"\xc3\"", 2, "\"\xef\xbf\xbd\\\"\""},
        {"\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        BUF_AUTO struct buf buf = {0};
        buf_json_string(&buf, cases[i].in, cases[i].bytes);
        assert_false(buf.failed);
        assert_string_equal((char *)buf.data, cases[i].out);
        assert_int_equal(buf.bytes, strlen(cases[i].out));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(appending_grows_and_terminates),
        cmocka_unit_test(appending_nothing_is_fine),
        cmocka_unit_test(printing_fits_any_length),
        cmocka_unit_test(failure_sticks),
        cmocka_unit_test(reserved_room_is_the_callers),
        cmocka_unit_test(freed_buffer_is_usable_again),
        cmocka_unit_test(json_strings_are_escaped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
