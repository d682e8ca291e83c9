/* The spec is strict, the benign mix changes nothing, and each destructive kind does what it is
 * named for. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "transport/fault/spec.h"
#include "util/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include <cmocka.h>

extern const struct transport transport_fault;

enum { STREAM_BYTES = 2 * 1000 * 1000 + 3, READS = 8, WAIT_MS = 10 * 1000 };

/* ---- the spec ---- */

static struct fault_spec parse(const char *text)
{
    struct fault_spec spec;
    struct rf_error err = {0};

    if (fault_spec_parse(text, &spec, &err) != RF_OK)
        fail_msg("%s: %s", text, err.text);
    return spec;
}

static void a_spec_means_what_it_says(void **state)
{
    struct fault_spec spec = parse("fault:7:tcp");

    (void)state;
    assert_int_equal(spec.seed, 7);
    assert_int_equal(spec.kinds, FAULT_DELAY | FAULT_SHORT);
    assert_int_equal(spec.after_bytes, 0);
    assert_int_equal(spec.odds, 1);
    assert_true(spec.times == UINT64_MAX);
    assert_string_equal(spec.inner, "tcp");

    spec = parse("fault:18446744073709551615,kind=corrupt+short:cuda_ipc");
    assert_true(spec.seed == UINT64_MAX);
    assert_int_equal(spec.kinds, FAULT_CORRUPT | FAULT_SHORT);
    assert_string_equal(spec.inner, "cuda_ipc");

    spec = parse("fault:0,times=3,odds=10,after=1MiB,kind=refuse:map");
    assert_int_equal(spec.after_bytes, 1 << 20);
    assert_int_equal(spec.odds, 10);
    assert_int_equal(spec.times, 3);
    assert_int_equal(spec.kinds, FAULT_REFUSE);
    spec = parse("fault:1,kind=death+stall+lie+delay:null");
    assert_int_equal(spec.kinds, FAULT_DEATH | FAULT_STALL | FAULT_LIE | FAULT_DELAY);
}

static void a_bad_spec_is_refused_in_words(void **state)
{
    static const char *const bad[] = {
        "",
        "fault",
        "fault:",
        "fault:7",
        "fault:7:",
        "fault::tcp",
        "tcp",
        "Fault:7:tcp",
        "fault:-7:tcp",
        "fault:+7:tcp",
        "fault: 7:tcp",
        "fault:0x7:tcp",
        "fault:7 :tcp",
        "fault:18446744073709551616:tcp",
        "fault:99999999999999999999999:tcp",
        "fault:7:TCP",
        "fault:7:tcp:",
        "fault:7:tcp ",
        "fault:7:fault",
        "fault:7:fault:8:tcp",
        "fault:7:../tcp",
        "fault:7,:tcp",
        "fault:7,kind:tcp",
        "fault:7,kind=:tcp",
        "fault:7,kind=dleay:tcp",
        "fault:7,kind=delay+:tcp",
        "fault:7,kind=+delay:tcp",
        "fault:7,kind=delay+delay:tcp",
        "fault:7,kind=delay,kind=short:tcp",
        "fault:7,kind=delay,:tcp",
        "fault:7,after=:tcp",
        "fault:7,after=x:tcp",
        "fault:7,after=-1:tcp",
        "fault:7,odds=0:tcp",
        "fault:7,odds=:tcp",
        "fault:7,times=1.5:tcp",
        "fault:7,what=1:tcp",
        "fault:7,=1:tcp",
        "fault:7,kind=delay",
        "fault:7,after=00000000000000000000000000000000000000001:tcp",
        "fault:7,kind=delay+short+corrupt+refuse+death+stall+lie,after=1:tcp",
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct fault_spec spec = {.seed = 4711};
        struct rf_error err = {0};
        if (fault_spec_parse(bad[i], &spec, &err) != RF_E_INVAL || err.code != RF_E_INVAL)
            fail_msg("\"%s\" was taken, or without a reason: \"%s\"", bad[i], err.text);
        assert_true(strlen(err.text) > 10);
        assert_int_equal(spec.seed, 4711); /* untouched */
        assert_int_equal(fault_spec_parse(bad[i], &spec, NULL), RF_E_INVAL);
    }
}

/* ---- sessions ---- */

struct fixture {
    struct rig rig;
    struct transport_seed *seed;
    struct endpoint endpoint;
    struct transport_open_options options;
    struct transport_session *session;
};

static struct fixture *begin_options(const char *spec, const struct transport_open_options *options)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    struct transport_seed_options seed_options = {.spec = spec, .host = "127.0.0.1"};
    struct rf_error err = {0};

    assert_non_null(fixture);
    rig_init(&fixture->rig, 1, STREAM_BYTES, 3);
    fixture->options = *options;
    memcpy(fixture->options.token, fixture->rig.token, CHUNK_TOKEN_BYTES);
    if (transport_fault.seed_start(&fixture->rig.exporter, &seed_options, &fixture->seed,
                                   &fixture->endpoint, &err) != RF_OK ||
        transport_fault.open(&fixture->endpoint, &fixture->options, &fixture->session, &err) !=
            RF_OK)
        fail_msg("%s: %s", spec, err.text);
    assert_string_equal(fixture->endpoint.transport, spec);
    return fixture;
}

static struct fixture *begin(const char *spec)
{
    return begin_options(spec,
                         &(struct transport_open_options){.timeout_ms = 5000, .cancel_fd = -1});
}

static void end(struct fixture *fixture)
{
    transport_fault.close(fixture->session);
    transport_fault.seed_stop(fixture->seed);
    rig_free(&fixture->rig);
    free(fixture);
}

static enum rf_code read_all(struct fixture *fixture, uint8_t *to, struct rf_error *err)
{
    const struct stream_range all = {.bytes = STREAM_BYTES, .count = 1};

    return rig_read(&transport_fault, fixture->session, 0, &all, 1, to, err);
}

static void benign_faults_change_nothing(void **state)
{
    rf_autofree uint8_t *got = malloc(STREAM_BYTES);

    (void)state;
    assert_non_null(got);
    for (int seed = 0; seed < 5; seed++) {
        char spec[64];
        struct rf_error err = {0};
        snprintf(spec, sizeof spec, "fault:%d:null", seed);
        struct fixture *fixture = begin(spec);
        memset(got, 0, STREAM_BYTES);
        if (read_all(fixture, got, &err) != RF_OK)
            fail_msg("%s", err.text);
        assert_memory_equal(got, fixture->rig.ranks[0].bytes, STREAM_BYTES);
        end(fixture);
    }
}

static unsigned bits_that_differ(const uint8_t *a, const uint8_t *b, size_t bytes, size_t *ret_at)
{
    unsigned count = 0;

    for (size_t i = 0; i < bytes; i++) {
        if (a[i] != b[i])
            *ret_at = i;
        count += (unsigned)__builtin_popcount((unsigned)(a[i] ^ b[i]));
    }
    return count;
}

static void corrupt_flips_bits_the_same_ones_for_the_same_seed(void **state)
{
    rf_autofree uint8_t *got = malloc(STREAM_BYTES);
    size_t at[3] = {0};

    (void)state;
    assert_non_null(got);
    for (int i = 0; i < 3; i++) {
        struct rf_error err = {0};
        struct fixture *fixture = begin(i < 2 ? "fault:7,kind=corrupt+short,times=1:null"
                                              : "fault:8,kind=corrupt+short,times=1:null");
        assert_int_equal(read_all(fixture, got, &err), RF_OK);
        assert_int_equal(bits_that_differ(got, fixture->rig.ranks[0].bytes, STREAM_BYTES, &at[i]),
                         1);
        assert_int_equal(read_all(fixture, got, &err), RF_OK); /* the second one is good */
        assert_memory_equal(got, fixture->rig.ranks[0].bytes, STREAM_BYTES);
        end(fixture);
    }
    assert_int_equal(at[0], at[1]);
    assert_int_not_equal(at[0], at[2]);
}

static void a_lie_is_made_of_other_bytes_of_the_stream(void **state)
{
    const struct stream_range later = {.offset = 500000, .bytes = 1000, .count = 1};
    const struct stream_range spread = {.offset = 9, .bytes = 3, .stride = 10, .count = 50};
    struct fixture *fixture = begin("fault:7,kind=lie:null");
    rf_autofree uint8_t *got = malloc(STREAM_BYTES);
    const uint8_t *truth = fixture->rig.ranks[0].bytes;
    struct rf_error err = {0};

    (void)state;
    assert_non_null(got);
    assert_int_equal(read_all(fixture, got, &err), RF_OK);
    assert_memory_equal(got, truth + 1, STREAM_BYTES - 1);
    assert_int_equal(got[STREAM_BYTES - 1], truth[0]);
    assert_int_equal(rig_read(&transport_fault, fixture->session, 0, &later, 1, got, &err), RF_OK);
    assert_memory_not_equal(got, truth + 500000, 1000);
    assert_non_null(memmem(truth, 501000, got, 1000));
    assert_int_equal(rig_read(&transport_fault, fixture->session, 0, &spread, 1, got, &err), RF_OK);
    assert_memory_not_equal(got, truth + 9, 3);
    end(fixture);
}

static void a_refused_read_fails_alone(void **state)
{
    struct fixture *fixture = begin("fault:7,kind=refuse,times=2:null");
    rf_autofree uint8_t *got = malloc(STREAM_BYTES);
    struct rf_error err = {0};

    (void)state;
    assert_non_null(got);
    assert_int_equal(read_all(fixture, got, &err), RF_E_FAILED);
    assert_non_null(strstr(err.text, "refused, as asked"));
    assert_int_equal(read_all(fixture, got, &err), RF_E_FAILED);
    assert_int_equal(read_all(fixture, got, &err), RF_OK);
    assert_memory_equal(got, fixture->rig.ranks[0].bytes, STREAM_BYTES);
    end(fixture);
}

/* Several reads in flight: how each of them ends, and that each does once. */
struct window {
    struct stream_range ranges[READS];
    struct rig_sink sinks[READS];
    struct read reads[READS];
    uint8_t *to;
    unsigned submitted;
    unsigned ended;
    unsigned good;
    enum rf_code last_bad;
};

static void window_begin(struct window *window, struct fixture *fixture)
{
    const uint64_t each = STREAM_BYTES / READS;
    struct rf_error err = {0};

    *window = (struct window){.to = malloc(STREAM_BYTES)};
    assert_non_null(window->to);
    for (unsigned i = 0; i < READS; i++) {
        window->ranges[i] = (struct stream_range){.offset = i * each, .bytes = each, .count = 1};
        rig_sink_init(&window->sinks[i], window->to + i * each, each);
        window->reads[i] = (struct read){.ranges = &window->ranges[i],
                                         .range_count = 1,
                                         .bytes = each,
                                         .sink = &window->sinks[i].sink};
        assert_int_equal(transport_fault.submit(fixture->session, &window->reads[i], &err), RF_OK);
        window->submitted++;
    }
}

static void window_run(struct window *window, struct fixture *fixture)
{
    bool seen[READS] = {false};
    struct rf_error err = {0};

    while (window->ended < window->submitted) {
        struct read *done = NULL;
        enum rf_code code =
            transport_fault.progress(fixture->session, clock_deadline_ns(WAIT_MS), &done, &err);
        if (code != RF_OK)
            fail_msg("progress: %s: %s", rf_code_name(code), err.text);
        assert_true(done >= window->reads && done < window->reads + READS);
        assert_false(seen[done - window->reads]);
        seen[done - window->reads] = true;
        window->ended++;
        window->good += done->code == RF_OK;
        if (done->code != RF_OK)
            window->last_bad = done->code;
    }
}

static uint64_t window_bytes(const struct window *window)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < READS; i++)
        bytes += window->sinks[i].done;
    return bytes;
}

static void death_comes_after_exactly_so_many_bytes(void **state)
{
    static const char *const specs[] = {"fault:7,kind=death,after=1000001:null",
                                        "fault:7,kind=death+short+delay,after=1000001:null"};
    struct rf_error err = {0};
    struct read *done = NULL;

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct fixture *fixture = begin(specs[i]);
        struct window window;
        window_begin(&window, fixture);
        window_run(&window, fixture);
        assert_int_equal(window_bytes(&window), 1000001);
        assert_int_equal(window.last_bad, RF_E_UNREACHABLE);
        assert_int_equal(window.good, 4);
        assert_memory_equal(window.to, fixture->rig.ranks[0].bytes, 1000001);
        assert_int_equal(transport_fault.submit(fixture->session, &window.reads[0], &err),
                         RF_E_UNREACHABLE);
        assert_int_equal(
            transport_fault.progress(fixture->session, clock_deadline_ns(1000), &done, &err),
            RF_E_UNREACHABLE);
        assert_true(rig_wait_leases(&fixture->rig, 0)); /* the connection is really gone */
        free(window.to);
        end(fixture);
    }
}

static void death_at_once_moves_nothing(void **state)
{
    struct fixture *fixture = begin("fault:7,kind=death:null");
    struct window window;

    (void)state;
    window_begin(&window, fixture);
    window_run(&window, fixture);
    assert_int_equal(window.good, 0);
    assert_int_equal(window_bytes(&window), 0);
    free(window.to);
    end(fixture);
}

static void a_stall_lasts_until_the_session_times_out(void **state)
{
    struct transport_open_options options = {.timeout_ms = 150, .cancel_fd = -1};
    struct fixture *fixture = begin_options("fault:7,kind=stall,after=1:null", &options);
    struct window window;
    struct read *done = NULL;
    struct rf_error err = {0};
    enum rf_code code = RF_OK;

    (void)state;
    window_begin(&window, fixture);
    assert_int_equal(
        transport_fault.progress(fixture->session, clock_deadline_ns(WAIT_MS), &done, &err), RF_OK);
    assert_int_equal(done->code, RF_OK); /* until then all was well */
    uint64_t begin_ns = clock_now_ns();
    code = transport_fault.progress(fixture->session, clock_deadline_ns(20), &done, &err);
    assert_int_equal(code, RF_E_TIMEOUT);
    assert_true(clock_now_ns() - begin_ns < 140 * CLOCK_NS_PER_MS);
    window.submitted--;
    window_run(&window, fixture);
    assert_true(clock_now_ns() - begin_ns >= 140 * CLOCK_NS_PER_MS);
    assert_int_equal(window.good, 0);
    assert_int_equal(window.last_bad, RF_E_TIMEOUT);
    free(window.to);
    end(fixture);
}

static void a_stall_can_be_cancelled(void **state)
{
    atomic_bool cancel = false;
    struct transport_open_options options = {.cancel = &cancel,
                                             .cancel_fd = eventfd(0, EFD_CLOEXEC)};
    struct fixture *fixture = begin_options("fault:7,kind=stall:null", &options);
    struct window window;
    uint64_t one = 1;

    (void)state;
    window_begin(&window, fixture);
    atomic_store(&cancel, true);
    assert_int_equal(write(options.cancel_fd, &one, sizeof one), sizeof one);
    uint64_t begin_ns = clock_now_ns();
    window_run(&window, fixture);
    assert_true(clock_now_ns() - begin_ns < 200 * CLOCK_NS_PER_MS);
    assert_int_equal(window.last_bad, RF_E_CANCELLED);
    free(window.to);
    end(fixture);
    close(options.cancel_fd);
}

/* ---- names ---- */

static void a_seed_needs_to_know_what_it_wraps(void **state)
{
    struct rig rig;
    struct transport_seed *seed = NULL;
    struct endpoint endpoint = {0};
    struct rf_error err = {0};
    static const struct {
        const char *spec;
        enum rf_code code;
    } cases[] = {{NULL, RF_E_INVAL},
                 {"fault:x:null", RF_E_INVAL},
                 {"fault:7:carrier_pigeon", RF_E_UNSUPPORTED}};

    (void)state;
    rig_init(&rig, 1, 4096, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct transport_seed_options options = {.spec = cases[i].spec};
        assert_int_equal(
            transport_fault.seed_start(&rig.exporter, &options, &seed, &endpoint, &err),
            cases[i].code);
        assert_null(seed);
    }
    rig_free(&rig);
}

static void judging_is_that_of_the_wrapped_one(void **state)
{
    struct fixture *fixture = begin("fault:7:null");
    struct endpoint endpoint = fixture->endpoint;
    struct transport_verdict verdict = {0};

    (void)state;
    transport_fault.judge(&endpoint, &verdict);
    assert_true(verdict.usable);
    assert_non_null(strstr(verdict.reason, "misbehaves as asked"));
    snprintf(endpoint.address, sizeof endpoint.address, "nobody");
    transport_fault.judge(&endpoint, &verdict);
    assert_false(verdict.usable);
    snprintf(endpoint.transport, sizeof endpoint.transport, "fault:7,kind=joy:null");
    transport_fault.judge(&endpoint, &verdict);
    assert_false(verdict.usable);
    assert_non_null(strstr(verdict.reason, "\"joy\""));
    transport_fault.available(&verdict);
    assert_true(verdict.usable);
    end(fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_spec_means_what_it_says),
        cmocka_unit_test(a_bad_spec_is_refused_in_words),
        cmocka_unit_test(benign_faults_change_nothing),
        cmocka_unit_test(corrupt_flips_bits_the_same_ones_for_the_same_seed),
        cmocka_unit_test(a_lie_is_made_of_other_bytes_of_the_stream),
        cmocka_unit_test(a_refused_read_fails_alone),
        cmocka_unit_test(death_comes_after_exactly_so_many_bytes),
        cmocka_unit_test(death_at_once_moves_nothing),
        cmocka_unit_test(a_stall_lasts_until_the_session_times_out),
        cmocka_unit_test(a_stall_can_be_cancelled),
        cmocka_unit_test(a_seed_needs_to_know_what_it_wraps),
        cmocka_unit_test(judging_is_that_of_the_wrapped_one),
    };

    return cmocka_run_group_tests_name("fault", tests, NULL, NULL);
}
