/* Errors: one line, sanitised, that keeps its cause. */
#include "base/error.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void failure_has_its_code_and_line(void **state)
{
    (void)state;
    struct rf_error err = {.sys_errno = 7};

    assert_int_equal(rf_fail(&err, RF_E_MISMATCH, "tensor %s: %d of %d", "w", 3, 4), RF_E_MISMATCH);
    assert_int_equal(err.code, RF_E_MISMATCH);
    assert_int_equal(err.sys_errno, 0);
    assert_string_equal(err.text, "tensor w: 3 of 4");
}

static void nobody_needs_to_ask_for_the_error(void **state)
{
    (void)state;
    assert_int_equal(rf_fail(NULL, RF_E_PROTO, "x"), RF_E_PROTO);
    assert_int_equal(rf_error_wrap(NULL, RF_E_TIMEOUT, "x"), RF_E_TIMEOUT);
    errno = ENOSPC;
    assert_int_equal(rf_fail_sys(NULL, "x"), RF_E_NOMEM);
}

static void errno_decides_the_code(void **state)
{
    (void)state;
    static const struct {
        int sys_errno;
        enum rf_code code;
    } cases[] = {
        {ENOENT, RF_E_SYS},   {EIO, RF_E_SYS},        {ENOMEM, RF_E_NOMEM},
        {ENOSPC, RF_E_NOMEM}, {EDQUOT, RF_E_NOMEM},   {EACCES, RF_E_DENIED},
        {EPERM, RF_E_DENIED}, {ECONNRESET, RF_E_SYS}, {ETIMEDOUT, RF_E_SYS},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rf_error err = {0};
        errno = cases[i].sys_errno;
        assert_int_equal(rf_fail_sys(&err, "open %s", "f"), cases[i].code);
        assert_int_equal(err.code, cases[i].code);
        assert_int_equal(err.sys_errno, cases[i].sys_errno);
        assert_int_equal(errno, cases[i].sys_errno);
    }
    struct rf_error err = {0};
    errno = ENOENT;
    (void)rf_fail_sys(&err, "open %s", "model.safetensors");
    assert_string_equal(err.text, "open model.safetensors: No such file or directory");
}

static void wrapping_puts_context_in_front(void **state)
{
    (void)state;
    struct rf_error err = {0};

    errno = ECONNREFUSED;
    (void)rf_fail_sys(&err, "connect %s", "10.0.0.1:80");
    assert_int_equal(rf_error_wrap(&err, err.code, "rank %u", 3u), RF_E_SYS);
    assert_string_equal(err.text, "rank 3: connect 10.0.0.1:80: Connection refused");
    assert_int_equal(err.sys_errno, ECONNREFUSED);
    assert_int_equal(rf_error_wrap(&err, err.code, "fork"), RF_E_SYS);
    assert_string_equal(err.text, "fork: rank 3: connect 10.0.0.1:80: Connection refused");
}

static void wrapping_an_empty_error_names_the_code(void **state)
{
    (void)state;
    struct rf_error err = {0};

    assert_int_equal(rf_error_wrap(&err, RF_E_TIMEOUT, "lease"), RF_E_TIMEOUT);
    assert_string_equal(err.text, "lease: RF_E_TIMEOUT");
    assert_int_equal(err.code, RF_E_TIMEOUT);
}

static void wrapping_may_use_the_old_text_as_argument(void **state)
{
    (void)state;
    struct rf_error err = {0};

    (void)rf_fail(&err, RF_E_FAILED, "inner");
    (void)rf_error_wrap(&err, RF_E_FAILED, "was \"%s\"", err.text);
    assert_string_equal(err.text, "was \"inner\": inner");
    (void)rf_fail(&err, RF_E_FAILED, "<%s>", err.text);
    assert_string_equal(err.text, "<was \"inner\": inner>");
}

static void long_line_ends_in_dots(void **state)
{
    (void)state;
    struct rf_error err;
    char name[2000];

    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    (void)rf_fail(&err, RF_E_FORMAT, "tensor %s", name);
    assert_int_equal(strlen(err.text), RF_ERROR_TEXT_BYTES - 1);
    assert_string_equal(err.text + RF_ERROR_TEXT_BYTES - 4, "...");
}

static void long_line_is_not_cut_within_a_character(void **state)
{
    (void)state;

    /* Three bytes each, at every phase. */
    for (int shift = 0; shift < 4; shift++) {
        struct rf_error err;
        char name[3 * 400 + 1];
        for (int i = 0; i < 400; i++)
            memcpy(name + 3 * i, "\xe2\x82\xac", 4);
        (void)rf_fail(&err, RF_E_FORMAT, "%.*s%s", shift, "abcd", name);
        assert_null(strchr(err.text, '?'));
        assert_string_equal(err.text + strlen(err.text) - 3, "...");
        (void)rf_error_wrap(&err, RF_E_FORMAT, "%.*s%s", shift, "abcd", name);
        assert_null(strchr(err.text, '?'));
    }
}

static void cause_survives_long_contexts(void **state)
{
    (void)state;
    struct rf_error err = {0};
    char name[400];

    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    errno = EIO;
    (void)rf_fail_sys(&err, "read %s", name);
    for (int i = 0; i < 10; i++)
        (void)rf_error_wrap(&err, err.code, "level %d of %s", i, name);
    assert_true(strlen(err.text) < RF_ERROR_TEXT_BYTES);
    assert_ptr_equal(strstr(err.text, "level 9 of nnn"), err.text);
    (void)rf_fail(&err, RF_E_SYS, "short cause");
    (void)rf_error_wrap(&err, err.code, "%s%s", name, name);
    assert_string_equal(err.text + strlen(err.text) - 11, "short cause");
}

static void line_cannot_be_forged(void **state)
{
    (void)state;
    struct rf_error err;

    (void)rf_fail(&err, RF_E_PROTO, "name %s", "a\nlevel=error\r\x1b[2J\x7f\t.");
    assert_string_equal(err.text, "name a?level=error??[2J??.");
}

static void sanitising_keeps_text_and_replaces_the_rest(void **state)
{
    (void)state;
    static const struct {
        const char *in;
        const char *out;
    } cases[] = {
        {"", ""},
        {"plain ascii ~", "plain ascii ~"},
        {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"},
        {"\xe6\xa8\xa1\xe5\x9e\x8b \xf0\x9f\x98\x80", "\xe6\xa8\xa1\xe5\x9e\x8b \xf0\x9f\x98\x80"},
        {"\xff\xfe", "??"},
        {"a\xc3", "a?"},              /* cut short */
        {"\xe2\x82", "??"},           /* cut short */
        {"\xc0\xaf", "??"},           /* overlong '/' */
        {"\xe0\x80\xaf", "???"},      /* overlong '/' */
        {"\xed\xa0\x80", "???"},      /* a surrogate */
        {"\xf4\x90\x80\x80", "????"}, /* over U+10FFFF */
        {"\xc2\x9b"
         "31m",
         "?31m"}, /* C1: another CSI */
        {"\xe2\x80\xae"
         "gpj.exe",
         "?gpj.exe"}, /* right to left */
        {"a\xe2\x80\xa8"
         "b",
         "a?b"}, /* line separator */
        {"\xe2\x81\xa6"
         "x",
         "?x"}, /* isolate */
        {"\xc3(", "?("},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s", cases[i].in);
        rf_text_sanitise(text);
        assert_string_equal(text, cases[i].out);
    }
}

static void every_code_has_a_name(void **state)
{
    (void)state;
    for (int code = RF_OK; code <= RF_E_CHANGED; code++)
        assert_memory_equal(rf_code_name((enum rf_code)code), code == RF_OK ? "RF_OK" : "RF_E_", 5);
    assert_string_equal(rf_code_name(RF_E_TIMEOUT), "RF_E_TIMEOUT");
    assert_string_equal(rf_code_name(RF_AGAIN), "RF_AGAIN");
    assert_string_equal(rf_code_name((enum rf_code)50), "unknown code");
    assert_string_equal(rf_code_name((enum rf_code)101), "unknown code");
    assert_string_equal(rf_code_name((enum rf_code)(-1)), "unknown code");
}

static void version_is_that_of_the_header(void **state)
{
    (void)state;
    char version[32];

    snprintf(version, sizeof version, "%d.%d.%d", RF_VERSION_MAJOR, RF_VERSION_MINOR,
             RF_VERSION_PATCH);
    assert_string_equal(rf_version(), version);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failure_has_its_code_and_line),
        cmocka_unit_test(nobody_needs_to_ask_for_the_error),
        cmocka_unit_test(errno_decides_the_code),
        cmocka_unit_test(wrapping_puts_context_in_front),
        cmocka_unit_test(wrapping_an_empty_error_names_the_code),
        cmocka_unit_test(wrapping_may_use_the_old_text_as_argument),
        cmocka_unit_test(long_line_ends_in_dots),
        cmocka_unit_test(long_line_is_not_cut_within_a_character),
        cmocka_unit_test(cause_survives_long_contexts),
        cmocka_unit_test(line_cannot_be_forged),
        cmocka_unit_test(sanitising_keeps_text_and_replaces_the_rest),
        cmocka_unit_test(every_code_has_a_name),
        cmocka_unit_test(version_is_that_of_the_header),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
