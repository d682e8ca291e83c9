/* A reader against seeds that break the protocol, stall, die, or refuse: each time it ends in time,
 * with the right code and words. The seed is a thread that says what the test tells it, whatever it
 * is asked. */
#include "base/buf.h"
#include "base/clock.h"
#include "transport/net/socket.h"
#include "util/rig.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

extern const struct transport transport_tcp;

enum { WAIT_MS = 10 * 1000, SHORT_MS = 100, READ_BYTES = 3000 };

/* What the seed does after its words. */
enum then { THEN_STALL, THEN_CLOSE, THEN_RESET };

struct liar {
    int listen_fd;
    struct endpoint endpoint;
    struct buf words;
    enum then then;
    pthread_t thread;
};

/* ---- the lying seed ---- */

static void *liar_run(void *arg)
{
    struct liar *liar = arg;
    uint8_t heard[4096];

    int fd = accept4(liar->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return NULL;
    (void)send(fd, liar->words.data, liar->words.bytes, MSG_NOSIGNAL);
    if (liar->then == THEN_CLOSE)
        (void)shutdown(fd, SHUT_WR);
    if (liar->then == THEN_RESET) {
        const struct linger hard = {.l_onoff = 1};
        /* Not before the hello is there, or it would be the handshake that fails. */
        (void)recv(fd, heard, CHUNK_HELLO_BYTES + 1, MSG_WAITALL);
        (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    } else {
        while (recv(fd, heard, sizeof heard, 0) > 0)
            ;
    }
    close(fd);
    return NULL;
}

static void liar_begin(struct liar *liar)
{
    struct net_address address;
    char text[NET_ADDRESS_TEXT_BYTES];
    struct rf_error err = {0};

    *liar = (struct liar){.then = THEN_STALL};
    assert_int_equal(net_listen("127.0.0.1", 0, 64, &liar->listen_fd, &address, &err), RF_OK);
    snprintf(liar->endpoint.address, sizeof liar->endpoint.address, "%s",
             net_address_text(&address, text));
    snprintf(liar->endpoint.transport, sizeof liar->endpoint.transport, "tcp");
}

static void liar_start(struct liar *liar)
{
    struct rf_error err = {0};
    int flags = fcntl(liar->listen_fd, F_GETFL);

    assert_false(liar->words.failed);
    assert_int_equal(fcntl(liar->listen_fd, F_SETFL, flags & ~O_NONBLOCK), 0);
    assert_int_equal(thread_start(&liar->thread, "liar", liar_run, liar, &err), RF_OK);
}

/* After the reader has closed, or has failed to open. */
static void liar_end(struct liar *liar)
{
    (void)shutdown(liar->listen_fd, SHUT_RDWR); /* wakes an accept() that nobody came for */
    pthread_join(liar->thread, NULL);
    close(liar->listen_fd);
    buf_free(&liar->words);
}

static void say_welcome(struct liar *liar, uint16_t version, enum rf_code status)
{
    const struct chunk_welcome welcome = {.version = version,
                                          .status = (uint16_t)status,
                                          .max_in_flight = CHUNK_MAX_IN_FLIGHT,
                                          .max_read_bytes = CHUNK_MAX_READ_BYTES};
    uint8_t raw[CHUNK_WELCOME_BYTES];

    chunk_welcome_encode(&welcome, raw);
    buf_append(&liar->words, raw, sizeof raw);
}

/* A frame's header, and `body` bytes of it. */
static void say_frame(struct liar *liar, unsigned type, uint64_t id, unsigned flags,
                      uint32_t body_bytes, uint32_t body)
{
    const struct chunk_hdr hdr = {.type = (enum chunk_type)type,
                                  .flags = (uint8_t)flags,
                                  .body_bytes = body_bytes,
                                  .request_id = id};
    uint8_t raw[CHUNK_HDR_BYTES];

    chunk_hdr_encode(&hdr, raw);
    buf_append(&liar->words, raw, sizeof raw);
    for (uint32_t i = 0; i < body; i++)
        buf_append(&liar->words, "x", 1);
}

static void say_error(struct liar *liar, uint64_t id, enum rf_code code, const char *text)
{
    say_frame(liar, CHUNK_ERROR, id, 0, 4 + (uint32_t)strlen(text), 0);
    chunk_error_encode(code, text, &liar->words);
}

/* ---- the reader ---- */

static enum rf_code try_open(struct liar *liar, uint64_t timeout_ms,
                             struct transport_session **ret_session, struct rf_error *err)
{
    const struct transport_open_options options = {.timeout_ms = timeout_ms, .cancel_fd = -1};

    return transport_tcp.open(&liar->endpoint, &options, ret_session, err);
}

static void expect_open_fails(struct liar *liar, uint64_t timeout_ms, enum rf_code code,
                              const char *words)
{
    struct transport_session *session = NULL;
    struct rf_error err = {0};

    liar_start(liar);
    uint64_t begin_ns = clock_now_ns();
    assert_int_equal(try_open(liar, timeout_ms, &session, &err), code);
    assert_true(clock_seconds(begin_ns, clock_now_ns()) < WAIT_MS / 1e3 / 2);
    assert_null(session);
    if (strstr(err.text, words) == NULL || strstr(err.text, liar->endpoint.address) == NULL)
        fail_msg("\"%s\" names neither \"%s\" nor the seed", err.text, words);
    liar_end(liar);
}

struct asked {
    struct stream_range range;
    struct rig_sink sink;
    struct read read;
    uint8_t to[READ_BYTES];
};

static void ask(struct transport_session *session, struct asked *asked)
{
    struct rf_error err = {0};

    memset(asked, 0, sizeof *asked);
    asked->range = (struct stream_range){.bytes = READ_BYTES, .count = 1};
    rig_sink_init(&asked->sink, asked->to, READ_BYTES);
    asked->read = (struct read){
        .ranges = &asked->range, .range_count = 1, .bytes = READ_BYTES, .sink = &asked->sink.sink};
    assert_int_equal(transport_tcp.submit(session, &asked->read, &err), RF_OK);
}

static struct read *next_done(struct transport_session *session)
{
    struct rf_error err = {0};
    struct read *done = NULL;

    enum rf_code code = transport_tcp.progress(session, clock_deadline_ns(WAIT_MS), &done, &err);
    if (code != RF_OK)
        fail_msg("progress: %s: %s", rf_code_name(code), err.text);
    return done;
}

/* Two reads are asked; the first `good` end well, the others with a code and words, and the session
 * is dead. */
static void expect_death(struct liar *liar, uint64_t timeout_ms, unsigned good, enum rf_code code,
                         const char *words)
{
    struct transport_session *session = NULL;
    struct rf_error err = {0};
    struct asked asked[2];
    struct read *done = NULL;

    liar_start(liar);
    assert_int_equal(try_open(liar, timeout_ms, &session, &err), RF_OK);
    for (unsigned i = 0; i < 2; i++)
        ask(session, &asked[i]);
    uint64_t begin_ns = clock_now_ns();
    for (unsigned i = 0; i < 2; i++) {
        done = next_done(session);
        assert_ptr_equal(done, &asked[i].read);
        if (done->code != (i < good ? RF_OK : code))
            fail_msg("read %u: %s: %s", i, rf_code_name(done->code), done->error.text);
        assert_true(i < good ? asked[i].sink.done == READ_BYTES
                             : strstr(done->error.text, words) != NULL);
    }
    assert_true(clock_seconds(begin_ns, clock_now_ns()) < WAIT_MS / 1e3 / 2);
    done = NULL;
    assert_int_equal(transport_tcp.progress(session, clock_deadline_ns(1), &done, &err), code);
    assert_null(done);
    assert_non_null(strstr(err.text, words));
    assert_int_equal(transport_tcp.submit(session, &asked[0].read, &err), code);
    transport_tcp.close(session);
    liar_end(liar);
}

static void liar_welcoming(struct liar *liar)
{
    liar_begin(liar);
    say_welcome(liar, CHUNK_VERSION, RF_OK);
}

/* ---- opening ---- */

static void another_protocol_is_named(void **state)
{
    static const char http[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
    struct liar liar;

    (void)state;
    liar_begin(&liar);
    buf_append(&liar.words, http, sizeof http - 1);
    expect_open_fails(&liar, WAIT_MS, RF_E_PROTO, "HTTP/1.1");
}

static void a_refusal_is_put_into_words(void **state)
{
    static const struct {
        enum rf_code status;
        const char *words;
    } refusals[] = {
        {RF_E_DENIED, "token"},
        {RF_E_NOMEM, "no room"},
        {RF_E_UNSUPPORTED, "version"},
        {RF_E_CANCELLED, "RF_E_CANCELLED"},
    };
    struct liar liar;

    (void)state;
    for (unsigned i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        liar_begin(&liar);
        say_welcome(&liar, 0, refusals[i].status);
        liar.then = THEN_CLOSE;
        expect_open_fails(&liar, WAIT_MS, refusals[i].status, refusals[i].words);
    }
}

static void a_version_that_was_not_offered_is_refused(void **state)
{
    struct liar liar;

    (void)state;
    liar_begin(&liar);
    say_welcome(&liar, 0, RF_OK);
    expect_open_fails(&liar, WAIT_MS, RF_E_PROTO, "version 0");
    liar_begin(&liar);
    say_welcome(&liar, CHUNK_VERSION + 1, RF_OK);
    expect_open_fails(&liar, WAIT_MS, RF_E_PROTO, "version 2");
}

static void a_seed_that_closes_or_dies_before_its_welcome_is_unreachable(void **state)
{
    struct liar liar;

    (void)state;
    liar_begin(&liar);
    liar.then = THEN_CLOSE;
    expect_open_fails(&liar, WAIT_MS, RF_E_UNREACHABLE, "welcome");
    liar_welcoming(&liar);
    liar.words.bytes -= 1;
    liar.then = THEN_CLOSE;
    expect_open_fails(&liar, WAIT_MS, RF_E_UNREACHABLE, "welcome");
}

static void a_seed_that_says_nothing_times_out(void **state)
{
    struct liar liar;

    (void)state;
    liar_begin(&liar);
    expect_open_fails(&liar, SHORT_MS, RF_E_TIMEOUT, "welcome");
    liar_welcoming(&liar);
    liar.words.bytes -= 1;
    expect_open_fails(&liar, SHORT_MS, RF_E_TIMEOUT, "welcome");
}

static void nobody_there_is_unreachable(void **state)
{
    struct liar liar;
    struct transport_session *session = NULL;
    struct rf_error err = {0};

    (void)state;
    liar_begin(&liar);
    close(liar.listen_fd);
    assert_int_equal(try_open(&liar, WAIT_MS, &session, &err), RF_E_UNREACHABLE);
    assert_non_null(strstr(err.text, liar.endpoint.address));
}

static void an_address_must_be_numbers(void **state)
{
    static const char *const bad[] = {
        "",
        ":",
        "1.2.3.4",
        "1.2.3.4:",
        "localhost:80",
        "1.2.3.4:http",
        "1.2.3.4:80x",
        "::1:80",
        "[::1]",
        "[::1]:",
        "[1.2.3.4]:80",
        "[]:80",
        "1.2.3.4:99999",
        " 1.2.3.4:80",
        "1.2.3:80 ",
        "[::1]x:80",
        "[::1:80",
        "1.2.3.4:-1",
    };
    struct net_address address;
    struct rf_error err = {0};
    char text[NET_ADDRESS_TEXT_BYTES];

    (void)state;
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (net_address_parse(bad[i], &address, &err) != RF_E_INVAL)
            fail_msg("\"%s\" was taken for %s", bad[i], net_address_text(&address, text));
    }
    assert_int_equal(net_address_parse("127.0.0.1:80", &address, &err), RF_OK);
    assert_string_equal(net_address_text(&address, text), "127.0.0.1:80");
    assert_int_equal(net_address_parse("[::1]:65535", &address, &err), RF_OK);
    assert_string_equal(net_address_text(&address, text), "[::1]:65535");
}

/* ---- a host that does not answer ---- */

enum { FILLERS = 16 };

/* A listener whose queue is full: what connects now waits for an answer that does not come. */
static void fill_backlog(struct liar *liar, int fillers[FILLERS])
{
    struct net_address address;
    struct rf_error err = {0};

    liar_begin(liar);
    assert_int_equal(listen(liar->listen_fd, 0), 0);
    assert_int_equal(net_address_parse(liar->endpoint.address, &address, &err), RF_OK);
    for (unsigned i = 0; i < FILLERS; i++) {
        fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        assert_true(fillers[i] >= 0);
        (void)connect(fillers[i], &address.any, address.bytes);
    }
}

static void free_backlog(struct liar *liar, const int fillers[FILLERS])
{
    for (unsigned i = 0; i < FILLERS; i++)
        close(fillers[i]);
    close(liar->listen_fd);
}

static void connecting_keeps_its_deadline(void **state)
{
    struct transport_session *session = NULL;
    struct rf_error err = {0};
    int fillers[FILLERS];
    struct liar liar;

    (void)state;
    fill_backlog(&liar, fillers);
    uint64_t begin_ns = clock_now_ns();
    assert_int_equal(try_open(&liar, SHORT_MS, &session, &err), RF_E_TIMEOUT);
    assert_true(clock_seconds(begin_ns, clock_now_ns()) < 2);
    assert_non_null(strstr(err.text, "connecting"));
    free_backlog(&liar, fillers);
}

static void connecting_can_be_cancelled(void **state)
{
    struct transport_session *session = NULL;
    struct rf_error err = {0};
    int fillers[FILLERS];
    struct liar liar;
    pthread_t thread;

    (void)state;
    fill_backlog(&liar, fillers);
    for (int with_fd = 0; with_fd < 2; with_fd++) {
        struct rig_canceller canceller = {.fd = with_fd ? eventfd(0, EFD_CLOEXEC) : -1};
        const struct transport_open_options options = {
            .timeout_ms = WAIT_MS, .cancel = &canceller.flag, .cancel_fd = canceller.fd};
        assert_int_equal(thread_start(&thread, "cancel", rig_cancel_soon, &canceller, &err), RF_OK);
        uint64_t begin_ns = clock_now_ns();
        assert_int_equal(transport_tcp.open(&liar.endpoint, &options, &session, &err),
                         RF_E_CANCELLED);
        assert_true(clock_seconds(begin_ns, clock_now_ns()) < 2);
        pthread_join(thread, NULL);
        if (canceller.fd >= 0)
            close(canceller.fd);
    }
    free_backlog(&liar, fillers);
}

/* ---- lies about reads ---- */

static void an_answer_to_another_request_is_refused(void **state)
{
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 2, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "request 2");
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES);
    expect_death(&liar, WAIT_MS, 1, RF_E_PROTO, "request 1");
    liar_welcoming(&liar);
    say_error(&liar, 7, RF_E_CHANGED, "a file changed");
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "request 7");
}

static void more_bytes_than_asked_are_refused(void **state)
{
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES + 1, READ_BYTES + 1);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "3001 bytes");
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, 0, 1, 1);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "2999 are left");
}

static void a_read_ends_where_it_ends(void **state)
{
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES - 1, READ_BYTES - 1);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "are the last");
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, 0, READ_BYTES, READ_BYTES);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "not the last");
}

static void frames_that_do_not_exist_are_refused(void **state)
{
    static const uint8_t garbage[CHUNK_HDR_BYTES] = {CHUNK_DATA, 0x80, 1, 1, 1};
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_frame(&liar, 9, 1, 0, 10, 10);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "unknown type 9");
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_READ, 1, 0, CHUNK_READ_BYTES + CHUNK_RANGE_BYTES, 40);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "only readers");
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, 0, CHUNK_MAX_DATA_BYTES + 1, 10);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "1048577");
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_ERROR, 1, 0, CHUNK_MAX_ERROR_BODY + 1, 10);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "ERROR frame");
    liar_welcoming(&liar);
    buf_append(&liar.words, garbage, sizeof garbage);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "flags");
}

static void half_a_frame_and_silence_times_out(void **state)
{
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES);
    say_frame(&liar, CHUNK_DATA, 2, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES / 2);
    expect_death(&liar, SHORT_MS, 1, RF_E_TIMEOUT, "silent");
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES, 0);
    liar.words.bytes -= CHUNK_HDR_BYTES / 2;
    expect_death(&liar, SHORT_MS, 0, RF_E_TIMEOUT, "silent");
}

static void half_a_frame_and_the_end_is_unreachable(void **state)
{
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES);
    say_frame(&liar, CHUNK_DATA, 2, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES / 2);
    liar.then = THEN_CLOSE;
    expect_death(&liar, WAIT_MS, 1, RF_E_UNREACHABLE, "closed the connection");
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES / 2);
    liar.then = THEN_RESET;
    expect_death(&liar, WAIT_MS, 0, RF_E_UNREACHABLE, "seed 127.0.0.1:");
}

static void an_error_about_the_connection_ends_it(void **state)
{
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES);
    say_error(&liar, 0, RF_E_PROTO, "you ask too much");
    expect_death(&liar, WAIT_MS, 1, RF_E_PROTO, "you ask too much");
}

static void an_error_that_is_none_is_refused(void **state)
{
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_error(&liar, 0, RF_OK, "fine");
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "code 0");
}

static void two_farewells_are_one_too_many(void **state)
{
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_GOODBYE, 0, 0, 0, 0);
    say_frame(&liar, CHUNK_GOODBYE, 0, 0, 0, 0);
    expect_death(&liar, WAIT_MS, 0, RF_E_PROTO, "GOODBYE twice");
}

static void after_goodbye_old_reads_end_and_new_ones_are_refused(void **state)
{
    struct transport_session *session = NULL;
    struct rf_error err = {0};
    struct asked asked[2];
    struct asked late;
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, 0, 10, 10);
    say_frame(&liar, CHUNK_GOODBYE, 0, 0, 0, 0);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES - 10, READ_BYTES - 10);
    say_error(&liar, 2, RF_E_CHANGED, "gone \x1b[31m");
    liar.then = THEN_CLOSE;
    liar_start(&liar);
    assert_int_equal(try_open(&liar, WAIT_MS, &session, &err), RF_OK);
    ask(session, &asked[0]);
    ask(session, &asked[1]);
    assert_int_equal(next_done(session)->code, RF_OK);
    late = asked[0];
    assert_int_equal(transport_tcp.submit(session, &late.read, &err), RF_E_UNREACHABLE);
    assert_non_null(strstr(err.text, "stopping"));
    assert_int_equal(next_done(session)->code, RF_E_CHANGED);
    assert_non_null(strstr(asked[1].read.error.text, "gone ?"));
    transport_tcp.close(session);
    liar_end(&liar);
}

static void an_answer_nobody_asked_for_is_refused(void **state)
{
    struct transport_session *session = NULL;
    struct rf_error err = {0};
    struct asked asked;
    struct liar liar;

    (void)state;
    liar_welcoming(&liar);
    say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES);
    say_frame(&liar, CHUNK_DATA, 2, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES);
    liar_start(&liar);
    assert_int_equal(try_open(&liar, WAIT_MS, &session, &err), RF_OK);
    ask(session, &asked);
    assert_int_equal(next_done(session)->code, RF_OK);
    struct read *done = NULL;
    assert_int_not_equal(transport_tcp.progress(session, clock_deadline_ns(SHORT_MS), &done, &err),
                         RF_OK);
    assert_null(done);
    transport_tcp.close(session);
    liar_end(&liar);
}

/* ---- cancelling ---- */

static void silence_can_be_cancelled(void **state)
{
    struct transport_session *session = NULL;
    struct rf_error err = {0};
    struct asked asked;
    struct liar liar;
    pthread_t thread;

    (void)state;
    for (int with_fd = 0; with_fd < 2; with_fd++) {
        struct rig_canceller canceller = {.fd = with_fd ? eventfd(0, EFD_CLOEXEC) : -1};
        const struct transport_open_options options = {
            .timeout_ms = WAIT_MS, .cancel = &canceller.flag, .cancel_fd = canceller.fd};
        liar_welcoming(&liar);
        say_frame(&liar, CHUNK_DATA, 1, CHUNK_FLAG_LAST, READ_BYTES, READ_BYTES / 2);
        liar_start(&liar);
        assert_int_equal(transport_tcp.open(&liar.endpoint, &options, &session, &err), RF_OK);
        ask(session, &asked);
        assert_int_equal(thread_start(&thread, "cancel", rig_cancel_soon, &canceller, &err), RF_OK);
        uint64_t begin_ns = clock_now_ns();
        assert_int_equal(next_done(session)->code, RF_E_CANCELLED);
        assert_true(clock_seconds(begin_ns, clock_now_ns()) < 2);
        pthread_join(thread, NULL);
        transport_tcp.close(session);
        liar_end(&liar);
        if (canceller.fd >= 0)
            close(canceller.fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(another_protocol_is_named),
        cmocka_unit_test(a_refusal_is_put_into_words),
        cmocka_unit_test(a_version_that_was_not_offered_is_refused),
        cmocka_unit_test(a_seed_that_closes_or_dies_before_its_welcome_is_unreachable),
        cmocka_unit_test(a_seed_that_says_nothing_times_out),
        cmocka_unit_test(nobody_there_is_unreachable),
        cmocka_unit_test(an_address_must_be_numbers),
        cmocka_unit_test(connecting_keeps_its_deadline),
        cmocka_unit_test(connecting_can_be_cancelled),
        cmocka_unit_test(an_answer_to_another_request_is_refused),
        cmocka_unit_test(more_bytes_than_asked_are_refused),
        cmocka_unit_test(a_read_ends_where_it_ends),
        cmocka_unit_test(frames_that_do_not_exist_are_refused),
        cmocka_unit_test(half_a_frame_and_silence_times_out),
        cmocka_unit_test(half_a_frame_and_the_end_is_unreachable),
        cmocka_unit_test(an_error_about_the_connection_ends_it),
        cmocka_unit_test(an_error_that_is_none_is_refused),
        cmocka_unit_test(two_farewells_are_one_too_many),
        cmocka_unit_test(after_goodbye_old_reads_end_and_new_ones_are_refused),
        cmocka_unit_test(an_answer_nobody_asked_for_is_refused),
        cmocka_unit_test(silence_can_be_cancelled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
