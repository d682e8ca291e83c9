/* The log: levels, one line per event, and lines that stay whole. */
#include "base/log.h"
#include "base/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { STORM_THREADS = 4, STORM_LINES = 500 };

static struct {
    unsigned lines;
    enum log_level level;
    char text[8192];
} caught;

static void catch_line(void *ctx, enum log_level level, const char *line)
{
    assert_ptr_equal(ctx, &caught);
    caught.lines++;
    caught.level = level;
    snprintf(caught.text, sizeof caught.text, "%s", line);
}

static int catch_start(void **state)
{
    (void)state;
    memset(&caught, 0, sizeof caught);
    log_set_sink(catch_line, &caught);
    log_set_level(LOG_TRACE);
    return 0;
}

static int catch_stop(void **state)
{
    (void)state;
    log_set_sink(NULL, NULL);
    log_set_level(LOG_ERROR);
    return 0;
}

static void line_has_time_level_event_and_fields(void **state)
{
    (void)state;
    int year = 0;
    int at = 0;

    log_warn("peer gone", "peer=%s left_bytes=%d", "10.0.0.1:80", 17);
    assert_int_equal(caught.lines, 1);
    assert_int_equal(caught.level, LOG_WARN);
    assert_int_equal(sscanf(caught.text, "time=%d-%*2d-%*2dT%*2d:%*2d:%*2d.%*3dZ %n", &year, &at),
                     1);
    assert_true(year >= 2024);
    assert_string_equal(caught.text + at,
                        "level=warn event=\"peer gone\" peer=10.0.0.1:80 left_bytes=17");
}

static void lines_above_the_level_are_dropped(void **state)
{
    (void)state;
    static const enum log_level all[] = {LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE};

    for (size_t i = 0; i < 5; i++) {
        log_set_level(all[i]);
        caught.lines = 0;
        log_error("e", "x=1");
        log_warn("w", "x=1");
        log_info("i", "x=1");
        log_debug("d", "x=1");
        log_trace("t", "x=1");
        assert_int_equal(caught.lines, i + 1);
        assert_true(log_enabled(all[i]));
        assert_true(i == 4 || !log_enabled(all[i < 4 ? i + 1 : 4]));
    }
    log_set_level(LOG_WARN);
    caught.lines = 0;
    log_event(LOG_INFO, "direct", "x=1");
    assert_int_equal(caught.lines, 0);
}

static int arguments_made;
static int make_argument(void)
{
    return ++arguments_made;
}

static void dropped_lines_cost_no_arguments(void **state)
{
    (void)state;
    log_set_level(LOG_INFO);
    log_debug("chunk", "n=%d", make_argument());
    assert_int_equal(arguments_made, 0);
    log_info("chunk", "n=%d", make_argument());
    assert_int_equal(arguments_made, 1);
}

static void line_cannot_be_forged(void **state)
{
    (void)state;
    log_info("hello", "peer=%s", "x\ntime=1 level=error event=\"pwned\"\x1b[2J");
    assert_null(strchr(caught.text, '\n'));
    assert_null(strchr(caught.text, '\x1b'));
    assert_non_null(strstr(caught.text, "peer=x?time=1"));
}

static void long_line_is_cut_and_says_so(void **state)
{
    (void)state;
    static char long_field[20000];

    memset(long_field, 'x', sizeof long_field - 1);
    log_info("long", "field=%s", long_field);
    size_t bytes = strlen(caught.text);
    assert_in_range(bytes, 4000, 4095);
    assert_string_equal(caught.text + bytes - 3, "...");
}

/* Lines whose length is around the limit: nothing may be lost or written outside. */
static void line_of_about_the_limit_is_whole(void **state)
{
    (void)state;
    static char field[4200];

    for (size_t bytes = 4000; bytes < 4110; bytes++) {
        memset(field, 'x', bytes);
        field[bytes] = '\0';
        log_info("e", "f=%s", field);
        size_t got = strlen(caught.text);
        assert_true(got <= 4095);
        bool whole = strstr(caught.text, field) != NULL;
        bool cut = strcmp(caught.text + got - 3, "...") == 0;
        assert_true(whole != cut);
    }
}

static void event_needs_no_fields(void **state)
{
    (void)state;
    log_event(LOG_INFO, "started", "%s", "");
    assert_non_null(strstr(caught.text, "level=info event=\"started\""));
}

static void errno_is_kept(void **state)
{
    (void)state;
    log_set_sink(NULL, NULL);
    int saved = dup(STDERR_FILENO);
    int broken = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_true(saved >= 0 && broken >= 0);
    dup2(broken, STDERR_FILENO);
    errno = ENOTTY;
    log_info("to a full disk", "x=1");
    int after = errno;
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(broken);
    assert_int_equal(after, ENOTTY);
}

static enum rf_code storm(void *ctx, uint64_t item, struct rf_error *err)
{
    (void)ctx;
    (void)err;
    for (int i = 0; i < STORM_LINES; i++)
        log_info("storm", "thread=%d line=%d tail=%s", (int)item, i, "abcdefghijklmnopqrstuvwxyz");
    return RF_OK;
}

static void lines_of_many_threads_do_not_mix(void **state)
{
    (void)state;
    char path[] = "/tmp/test_log.XXXXXX";
    char line[512];
    unsigned lines = 0;
    int saved = dup(STDERR_FILENO);
    int fd = mkostemp(path, O_CLOEXEC | O_APPEND);

    assert_true(saved >= 0 && fd >= 0);
    unlink(path);
    log_set_sink(NULL, NULL);
    dup2(fd, STDERR_FILENO);
    enum rf_code code = thread_parallel(STORM_THREADS, STORM_THREADS, storm, NULL, NULL);
    dup2(saved, STDERR_FILENO);
    close(saved);
    assert_int_equal(code, RF_OK);
    lseek(fd, 0, SEEK_SET);
    FILE *in = fdopen(fd, "r");
    assert_non_null(in);
    while (fgets(line, sizeof line, in) != NULL) {
        lines++;
        assert_memory_equal(line, "time=", 5);
        assert_non_null(strstr(line, " tail=abcdefghijklmnopqrstuvwxyz\n"));
    }
    fclose(in);
    assert_int_equal(lines, STORM_THREADS * STORM_LINES);
}

static void levels_have_names(void **state)
{
    (void)state;
    assert_int_equal(log_level_parse("error"), LOG_ERROR);
    assert_int_equal(log_level_parse("warn"), LOG_WARN);
    assert_int_equal(log_level_parse("info"), LOG_INFO);
    assert_int_equal(log_level_parse("debug"), LOG_DEBUG);
    assert_int_equal(log_level_parse("TRACE"), LOG_TRACE);
    assert_int_equal(log_level_parse("warning"), LOG_WARN);
    assert_int_equal(log_level_parse("critical"), LOG_ERROR);
    assert_int_equal(log_level_parse("verbose"), -1);
    assert_int_equal(log_level_parse(""), -1);
    assert_int_equal(log_level_parse(NULL), -1);
}

#define CAUGHT(test) cmocka_unit_test_setup_teardown(test, catch_start, catch_stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CAUGHT(line_has_time_level_event_and_fields),
        CAUGHT(lines_above_the_level_are_dropped),
        CAUGHT(dropped_lines_cost_no_arguments),
        CAUGHT(line_cannot_be_forged),
        CAUGHT(long_line_is_cut_and_says_so),
        CAUGHT(line_of_about_the_limit_is_whole),
        CAUGHT(event_needs_no_fields),
        CAUGHT(errno_is_kept),
        CAUGHT(lines_of_many_threads_do_not_mix),
        CAUGHT(levels_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
