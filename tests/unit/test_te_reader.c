/* A reader against engines made by hand: fakes that speak as releases did, and some that lie, stall,
 * die or refuse. Each time it ends in time, with the right code and words.
 *
 * A fake is two listeners and two threads: one answers questions, one serves data connections one
 * after the other, from memory whose addresses are made up. */
#include "base/buf.h"
#include "base/clock.h"
#include "base/rand.h"
#include "transport/net/dial.h"
#include "transport/read_digest.h"
#include "transport/te/te.h"
#include "util/bytes.h"
#include "util/rig.h"

#include <fcntl.h>
#include <inttypes.h>
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

enum {
    WAIT_MS = 10 * 1000,
    SHORT_MS = 30,
    CONTENT_BYTES = 1 << 20,
    PIECES = 64,
    PIECE_BYTES = CONTENT_BYTES / PIECES,
    GAP_BYTES = 4096, /* between the pieces' addresses */
};
static const uint64_t first_address = (UINT64_C(1) << 53) + 1;

/* What the fake does after words that it was given. */
enum then { THEN_SERVE, THEN_STALL, THEN_CLOSE, THEN_RESET };

struct fake {
    /* in */
    struct buf answer; /* to every question */
    enum then answer_then;
    unsigned version;        /* 1, 2 */
    bool ours;               /* ... with our additions */
    bool closes;             /* after each request, as releases up to 0.3.9 do */
    uint32_t token_status;   /* said to TOKEN */
    int64_t refuse_at;       /* this request, counted from 0, gets refuse_status; -1: none */
    uint64_t refuse_address; /* ... and any of this address */
    unsigned refuse_every;   /* ... and each so many behind it; 0: none */
    uint32_t refuse_status;
    struct buf words; /* said to the first READ in place of an answer */
    enum then words_then;
    unsigned silent_after_bytes; /* an answer stops there; 0: never */
    /* out, once stopped */
    unsigned connections;
    unsigned requests;
    /* its own */
    int ask_fd;
    int data_fd;
    uint16_t data_port;
    char session[NET_ADDRESS_TEXT_BYTES];
    uint8_t *content;
    struct read_digest digest;
    uint64_t digested;
    pthread_t ask_thread;
    pthread_t data_thread;
};

/* ---- the fake: questions ---- */

static void close_hard(int fd)
{
    const struct linger hard = {.l_onoff = 1};

    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(fd);
}

/* Until the peer closes. */
static void drain(int fd)
{
    uint8_t heard[4096];

    while (recv(fd, heard, sizeof heard, 0) > 0)
        ;
}

static void *ask_run(void *arg)
{
    struct fake *fake = arg;

    for (;;) {
        uint8_t question[12];
        int fd = accept4(fake->ask_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            return NULL;
        (void)recv(fd, question, sizeof question, MSG_WAITALL);
        (void)send(fd, fake->answer.data, fake->answer.bytes, MSG_NOSIGNAL);
        if (fake->answer_then == THEN_RESET) {
            close_hard(fd);
            continue;
        }
        if (fake->answer_then != THEN_STALL)
            (void)shutdown(fd, SHUT_WR);
        drain(fd);
        close(fd);
    }
}

/* ---- the fake: data ---- */

/* Where an address is in the content; NULL if these bytes are not all registered. */
static const uint8_t *content_at(const struct fake *fake, uint64_t address, uint64_t bytes)
{
    uint64_t offset = address - first_address;
    uint64_t piece = offset / (PIECE_BYTES + GAP_BYTES);
    uint64_t in_piece = offset % (PIECE_BYTES + GAP_BYTES);

    if (piece >= PIECES || in_piece + bytes > PIECE_BYTES)
        return NULL;
    return fake->content + piece * PIECE_BYTES + in_piece;
}

static bool put(int fd, const void *data, size_t bytes)
{
    return send(fd, data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static bool put_status(int fd, uint32_t status)
{
    uint8_t raw[TE_STATUS_BYTES];

    te_status_encode(status, raw);
    return put(fd, raw, sizeof raw);
}

static bool serve_token(struct fake *fake, int fd)
{
    uint8_t token[CHUNK_TOKEN_BYTES];

    return recv(fd, token, sizeof token, MSG_WAITALL) == (ssize_t)sizeof token &&
           put_status(fd, fake->token_status);
}

/* Trusts the reader with its ranges: a real seed does not. */
static bool serve_digest(struct fake *fake, int fd, const struct te_hdr *hdr)
{
    static struct stream_range ranges[CHUNK_MAX_RANGES];
    static uint8_t body[CHUNK_MAX_READ_BODY];
    uint8_t digest[HASH_MAX_BYTES] = {0};
    uint32_t rank = 0;
    uint32_t count = 0;

    if (hdr->bytes > sizeof body ||
        recv(fd, body, hdr->bytes, MSG_WAITALL) != (ssize_t)hdr->bytes ||
        chunk_read_decode(body, hdr->bytes, &rank, ranges, CHUNK_MAX_RANGES, &count, NULL) != RF_OK)
        return false;
    if (!fake->digest.on)
        return put_status(fd, TE_STATUS_CODE + RF_E_INVAL);
    read_digest_final(&fake->digest, rank, ranges, count, digest);
    return put_status(fd, TE_STATUS_OK) &&
           put(fd, digest, hash_bytes((enum hash_algorithm)hdr->algorithm));
}

static bool is_refused(const struct fake *fake, unsigned request)
{
    int64_t behind = (int64_t)request - fake->refuse_at;

    if (fake->refuse_at < 0 || behind < 0)
        return false;
    return behind == 0 || (fake->refuse_every > 0 && behind % fake->refuse_every == 0);
}

static bool serve_read(struct fake *fake, int fd, const struct te_hdr *hdr)
{
    unsigned request = fake->requests++;
    const uint8_t *at = content_at(fake, hdr->address, hdr->bytes);
    uint64_t bytes = hdr->bytes;

    if (at == NULL || hdr->address == fake->refuse_address || is_refused(fake, request)) {
        fake->digest.on = false;
        if (fake->version < 2)
            return false;
        return put_status(fd, fake->refuse_status) && fake->ours;
    }
    if (hdr->op == TE_OP_HASHED && !fake->digest.on)
        (void)read_digest_begin(&fake->digest, (enum hash_algorithm)hdr->algorithm, NULL);
    if (hdr->op == TE_OP_HASHED)
        read_digest_update(&fake->digest, at, bytes);
    if (fake->version >= 2 && !put_status(fd, TE_STATUS_OK))
        return false;
    if (fake->silent_after_bytes > 0 && fake->silent_after_bytes < bytes) {
        (void)put(fd, at, fake->silent_after_bytes);
        drain(fd);
        return false;
    }
    return put(fd, at, bytes) && !fake->closes;
}

/* One request; false when the connection is to end. */
static bool serve(struct fake *fake, int fd)
{
    uint8_t raw[TE_HDR_BYTES];
    struct te_hdr hdr;

    if (recv(fd, raw, sizeof raw, MSG_WAITALL) != (ssize_t)sizeof raw)
        return false;
    te_hdr_decode(raw, &hdr);
    if (hdr.op == TE_OP_TOKEN)
        return serve_token(fake, fd);
    if (hdr.op == TE_OP_DIGEST)
        return serve_digest(fake, fd, &hdr);
    if (fake->words.bytes == 0 && fake->words_then == THEN_SERVE)
        return serve_read(fake, fd, &hdr);
    (void)put(fd, fake->words.data, fake->words.bytes);
    if (fake->words_then == THEN_CLOSE)
        (void)shutdown(fd, SHUT_WR);
    if (fake->words_then != THEN_RESET)
        drain(fd);
    return false;
}

static void *data_run(void *arg)
{
    struct fake *fake = arg;

    for (;;) {
        int fd = accept4(fake->data_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            return NULL;
        fake->connections++;
        net_tune(fd, WAIT_MS); /* small answers do not wait for each other */
        while (serve(fake, fd))
            ;
        if (fake->words_then == THEN_RESET)
            close_hard(fd);
        else
            close(fd);
    }
}

/* ---- the fake: from beginning to end ---- */

static void listen_at(int *ret_fd, char text[NET_ADDRESS_TEXT_BYTES])
{
    struct net_address address;
    struct rf_error err = {0};

    assert_int_equal(net_listen("127.0.0.1", 0, 64, ret_fd, &address, &err), RF_OK);
    int flags = fcntl(*ret_fd, F_GETFL);
    assert_int_equal(fcntl(*ret_fd, F_SETFL, flags & ~O_NONBLOCK), 0);
    net_address_text(&address, text);
}

static void say_frame(struct fake *fake, enum te_type type, const char *json)
{
    fake->answer.bytes = 0;
    te_frame_encode(type, json, strlen(json), &fake->answer);
}

/* Its descriptor: the pieces as buffers, or, of ours, as ranks of one piece each. */
static void say_descriptor(struct fake *fake, const char *name, const char *data_host)
{
    struct te_buffer buffers[PIECES];
    char names[PIECES][16];
    struct te_descriptor descriptor = {.name = name,
                                       .protocol = "tcp",
                                       .data_host = data_host,
                                       .rdma_server = "",
                                       .data_port = fake->data_port,
                                       .version = fake->version,
                                       .rfork = fake->ours,
                                       .buffers = buffers,
                                       .buffer_count = PIECES};
    struct buf json BUF_AUTO = {.bytes = 0};

    for (unsigned i = 0; i < PIECES; i++) {
        snprintf(names[i], sizeof names[i], "rank:%u", i);
        buffers[i] = (struct te_buffer){.address = first_address + i * (PIECE_BYTES + GAP_BYTES),
                                        .bytes = PIECE_BYTES,
                                        .name = names[i]};
    }
    te_descriptor_encode(&descriptor, NULL, &json);
    fake->answer.bytes = 0;
    te_frame_encode(TE_METADATA, json.data, json.bytes, &fake->answer);
}

static void fake_begin(struct fake *fake, unsigned version)
{
    char text[NET_ADDRESS_TEXT_BYTES];
    struct rand_seq rand = {.state = 4};

    *fake = (struct fake){.version = version, .refuse_at = -1};
    listen_at(&fake->ask_fd, fake->session);
    listen_at(&fake->data_fd, text);
    fake->data_port = (uint16_t)atoi(strrchr(text, ':') + 1);
    fake->content = malloc(CONTENT_BYTES);
    assert_non_null(fake->content);
    for (unsigned i = 0; i < CONTENT_BYTES; i++)
        fake->content[i] = (uint8_t)(rand_next(&rand) >> 56);
    say_descriptor(fake, fake->session, "127.0.0.1");
}

static void fake_start(struct fake *fake)
{
    struct rf_error err = {0};

    assert_int_equal(thread_start(&fake->ask_thread, "fake ask", ask_run, fake, &err), RF_OK);
    assert_int_equal(thread_start(&fake->data_thread, "fake data", data_run, fake, &err), RF_OK);
}

/* After the reader has closed. */
static void fake_stop(struct fake *fake)
{
    (void)shutdown(fake->ask_fd, SHUT_RDWR);
    (void)shutdown(fake->data_fd, SHUT_RDWR);
    pthread_join(fake->ask_thread, NULL);
    pthread_join(fake->data_thread, NULL);
    close(fake->ask_fd);
    close(fake->data_fd);
    buf_free(&fake->answer);
    buf_free(&fake->words);
    read_digest_free(&fake->digest);
    free(fake->content);
}

/* ---- directories ---- */

static enum rf_code try_directory(const struct fake *fake, uint64_t timeout_ms, const char *allowed,
                                  struct transport_directory **ret_directory, struct rf_error *err)
{
    const struct te_reach reach = {
        .timeout_ms = timeout_ms, .cancel_fd = -1, .allowed_hosts = allowed};

    return te_directory_open(fake->session, &reach, ret_directory, err);
}

/* A whole fake for one question that fails. */
static void expect_directory_fails(struct fake *fake, uint64_t timeout_ms, enum rf_code code,
                                   const char *words)
{
    struct transport_directory *directory = NULL;
    struct rf_error err = {0};

    fake_start(fake);
    uint64_t begin_ns = clock_now_ns();
    enum rf_code got = try_directory(fake, timeout_ms, NULL, &directory, &err);
    assert_true(clock_seconds(begin_ns, clock_now_ns()) < WAIT_MS / 1e3 / 2);
    assert_null(directory);
    if (got != code)
        fail_msg("%s: %s", rf_code_name(got), err.text);
    assert_says(&err, words);
    assert_says(&err, fake->session);
    fake_stop(fake);
}

static void an_engine_says_what_it_has(void **state)
{
    (void)state;
    struct transport_directory *directory = NULL;
    struct rf_error err = {0};
    struct fake fake;

    fake_begin(&fake, 2);
    fake_start(&fake);
    assert_int_equal(try_directory(&fake, WAIT_MS, NULL, &directory, &err), RF_OK);
    const struct te_descriptor *descriptor = te_directory_descriptor(directory);
    assert_string_equal(descriptor->name, fake.session);
    assert_int_equal(descriptor->data_port, fake.data_port);
    assert_int_equal(descriptor->buffer_count, PIECES);
    assert_int_equal(descriptor->buffers[0].address, first_address);
    te_directory_close(directory);
    te_directory_close(NULL);
    fake_stop(&fake);
}

static void answers_that_are_none_are_refused(void **state)
{
    (void)state;
    static const char http[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
    uint8_t endless[TE_FRAME_HEAD_BYTES + 1];
    struct fake fake;

    fake_begin(&fake, 2);
    fake.answer.bytes = 0;
    buf_append(&fake.answer, http, sizeof http - 1);
    expect_directory_fails(&fake, WAIT_MS, RF_E_PROTO, "another protocol");
    fake_begin(&fake, 2);
    say_frame(&fake, TE_PROBE, "{}");
    expect_directory_fails(&fake, WAIT_MS, RF_E_PROTO, "type 3");
    fake_begin(&fake, 2);
    say_frame(&fake, TE_METADATA, "{\"name\":");
    expect_directory_fails(&fake, WAIT_MS, RF_E_PROTO, "descriptor: ");
    fake_begin(&fake, 2);
    say_frame(&fake, TE_METADATA, "");
    expect_directory_fails(&fake, WAIT_MS, RF_E_PROTO, "descriptor: ");
    fake_begin(&fake, 2);
    wire_put_uint(endless, TE_MAX_FRAME_BYTES + UINT64_C(1), 8);
    endless[8] = TE_METADATA;
    fake.answer.bytes = 0;
    buf_append(&fake.answer, endless, sizeof endless);
    expect_directory_fails(&fake, WAIT_MS, RF_E_PROTO, "134217729 bytes");
}

static void an_engine_that_dies_or_stalls_in_its_answer(void **state)
{
    (void)state;
    static const size_t parts[] = {0, 1, 7, 8, 9, 100};

    for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        struct fake fake;

        fake_begin(&fake, 2);
        fake.answer.bytes = parts[i];
        fake.answer_then = THEN_CLOSE;
        expect_directory_fails(&fake, WAIT_MS, RF_E_UNREACHABLE, "closed the connection");
        fake_begin(&fake, 2);
        fake.answer.bytes = parts[i];
        fake.answer_then = THEN_STALL;
        expect_directory_fails(&fake, SHORT_MS, RF_E_TIMEOUT, "longer than 30 ms");
        fake_begin(&fake, 2);
        fake.answer.bytes = parts[i];
        fake.answer_then = THEN_RESET;
        expect_directory_fails(&fake, WAIT_MS, RF_E_UNREACHABLE, "engine 127.0.0.1:");
    }
}

static void engines_that_cannot_be_read_are_named(void **state)
{
    (void)state;
    struct fake fake;

    fake_begin(&fake, 2);
    say_frame(&fake, TE_METADATA, "{\"name\":\"a:1\",\"protocol\":\"rdma\",\"tcp_data_port\":0}");
    expect_directory_fails(&fake, WAIT_MS, RF_E_UNSUPPORTED, "over rdma");
    fake_begin(&fake, 2);
    say_frame(&fake, TE_METADATA, "{\"name\":\"a:1\",\"protocol\":\"tcp\"}");
    expect_directory_fails(&fake, WAIT_MS, RF_E_UNSUPPORTED, "no port for its data");
}

static void a_session_id_is_host_and_port(void **state)
{
    (void)state;
    static const char *const bad[] = {"",        "host",   ":1",    "host:",    "host:0",
                                      "host:1x", "::1:5",  "[::1]", "[host]:5", "host:65536",
                                      "host:-1", "[::1]:", "[]:5",  "a:b:c",    "host:123456"};
    const struct te_reach reach = {.timeout_ms = WAIT_MS, .cancel_fd = -1};
    struct transport_directory *directory = NULL;
    struct rf_error err = {0};

    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (te_directory_open(bad[i], &reach, &directory, &err) != RF_E_INVAL)
            fail_msg("\"%s\" was taken for a session id", bad[i]);
        assert_says(&err, "is no session id");
    }
}

static void nobody_there_is_unreachable(void **state)
{
    (void)state;
    const struct te_reach reach = {.timeout_ms = WAIT_MS, .cancel_fd = -1};
    struct transport_directory *directory = NULL;
    struct rf_error err = {0};
    char text[NET_ADDRESS_TEXT_BYTES];
    int fd = -1;

    listen_at(&fd, text);
    close(fd);
    assert_int_equal(te_directory_open(text, &reach, &directory, &err), RF_E_UNREACHABLE);
    assert_says(&err, text);
    assert_null(directory);
}

static void a_name_is_looked_up(void **state)
{
    (void)state;
    const struct te_reach reach = {.timeout_ms = WAIT_MS, .cancel_fd = -1};
    struct transport_directory *directory = NULL;
    struct rf_error err = {0};
    char by_name[64];
    struct fake fake;

    fake_begin(&fake, 2);
    fake_start(&fake);
    snprintf(by_name, sizeof by_name, "localhost%s", strrchr(fake.session, ':'));
    enum rf_code code = te_directory_open(by_name, &reach, &directory, &err);
    if (code != RF_OK)
        fail_msg("%s", err.text);
    te_directory_close(directory);
    fake_stop(&fake);
}

static void data_at_another_host_is_an_attack_unless_allowed(void **state)
{
    (void)state;
    /* Where the engine says that its data is, by either field; 127.0.0.1 is dialled. */
    static const struct {
        const char *name;
        const char *data_host;
        const char *allowed;
        enum rf_code code;
    } cases[] = {
        {"127.0.0.1:1", "", NULL, RF_OK},
        {"127.0.0.2:1", "127.0.0.1", NULL, RF_OK}, /* the newer field counts */
        {"localhost:1", "", NULL, RF_OK},
        {"[::ffff:127.0.0.1]:1", "", NULL, RF_OK},
        {"no host and port", "", NULL, RF_OK},
        {"0.0.0.0:1", "", NULL, RF_OK}, /* says nothing */
        {"127.0.0.1:1", "127.0.0.2", NULL, RF_E_DENIED},
        {"127.0.0.1:1", "127.0.0.2", "", RF_E_DENIED},
        {"127.0.0.1:1", "127.0.0.2", "127.0.0.3,10.1.1.1", RF_E_DENIED},
        {"127.0.0.2:1", "", NULL, RF_E_DENIED},
        {"[::1]:1", "", NULL, RF_E_DENIED},
        {"127.0.0.1:1", "127.0.0.2", "127.0.0.3,127.0.0.2", RF_OK},
        {"127.0.0.2:1", "", "127.0.0.2", RF_OK},
        {"127.0.0.2:1", "", "any", RF_OK},
    };

    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct transport_directory *directory = NULL;
        struct rf_error err = {0};
        struct fake fake;

        fake_begin(&fake, 2);
        say_descriptor(&fake, cases[i].name, cases[i].data_host);
        fake_start(&fake);
        enum rf_code code = try_directory(&fake, WAIT_MS, cases[i].allowed, &directory, &err);
        if (code != cases[i].code)
            fail_msg("case %u: %s: %s", i, rf_code_name(code), err.text);
        if (code == RF_E_DENIED) {
            assert_says(&err, "answered at 127.0.0.1:");
            assert_says(&err, strstr(cases[i].name, "::1") ? "host ::1" : "host 127.0.0.2");
            assert_says(&err, "--te-data-host");
        }
        te_directory_close(directory);
        fake_stop(&fake);
    }
}

/* ---- where ranks lie ---- */

static struct te_segment piece_segment(unsigned piece)
{
    return (struct te_segment){.stream_offset = (uint64_t)piece * PIECE_BYTES,
                               .bytes = PIECE_BYTES,
                               .address = first_address + piece * (PIECE_BYTES + GAP_BYTES)};
}

static void all_segments(struct te_segment segments[PIECES])
{
    for (unsigned i = 0; i < PIECES; i++)
        segments[i] = piece_segment(i);
}

static void ranks_must_be_whole_and_registered(void **state)
{
    (void)state;
    struct transport_directory *directory = NULL;
    struct te_segment segments[PIECES];
    struct rf_error err = {0};
    struct fake fake;

    fake_begin(&fake, 2);
    fake_start(&fake);
    assert_int_equal(try_directory(&fake, WAIT_MS, NULL, &directory, &err), RF_OK);
    all_segments(segments);
    assert_int_equal(te_directory_set_rank(directory, 3, segments, PIECES, CONTENT_BYTES, &err),
                     RF_OK);
    assert_int_equal(te_directory_set_rank(directory, 3, NULL, 0, 0, &err), RF_OK);
    assert_int_equal(te_directory_set_rank(directory, 0, segments, PIECES, CONTENT_BYTES + 1, &err),
                     RF_E_INVAL);
    segments[5].stream_offset++;
    assert_int_equal(te_directory_set_rank(directory, 0, segments, PIECES, CONTENT_BYTES, &err),
                     RF_E_INVAL);
    assert_says(&err, "segment 5");
    segments[5].stream_offset -= 2;
    assert_int_equal(te_directory_set_rank(directory, 0, segments, PIECES, CONTENT_BYTES, &err),
                     RF_E_INVAL);
    all_segments(segments);
    segments[7].bytes = 0;
    assert_int_equal(te_directory_set_rank(directory, 0, segments, PIECES, CONTENT_BYTES, &err),
                     RF_E_INVAL);
    all_segments(segments);
    segments[7].address += 1;
    segments[9].address = 1;
    assert_int_equal(te_directory_set_rank(directory, 0, segments, PIECES, CONTENT_BYTES, &err),
                     RF_E_MISMATCH);
    assert_says(&err, "2 of 64 pieces");
    assert_says(&err, "64 buffers, 1048576 bytes");
    segments[0].bytes = UINT64_MAX;
    assert_int_equal(te_directory_set_rank(directory, 0, segments, PIECES, CONTENT_BYTES, &err),
                     RF_E_INVAL);
    te_directory_close(directory);
    fake_stop(&fake);
}

static void nothing_registered_is_said(void **state)
{
    (void)state;
    struct transport_directory *directory = NULL;
    const struct te_segment segment = piece_segment(0);
    struct rf_error err = {0};
    char json[256];
    struct fake fake;

    fake_begin(&fake, 2);
    snprintf(json, sizeof json,
             "{\"buffers\":[],\"name\":\"127.0.0.1:1\",\"protocol\":\"tcp\",\"tcp_data_port\":%u}",
             fake.data_port);
    say_frame(&fake, TE_METADATA, json);
    fake_start(&fake);
    assert_int_equal(try_directory(&fake, WAIT_MS, NULL, &directory, &err), RF_OK);
    assert_int_equal(te_directory_set_rank(directory, 0, &segment, 1, PIECE_BYTES, &err),
                     RF_E_MISMATCH);
    assert_says(&err, "has registered nothing");
    te_directory_close(directory);
    fake_stop(&fake);
}

/* ---- reading ---- */

struct reader {
    struct transport_directory *directory; /* NULL: a seed of ours */
    struct transport_session *session;
    struct endpoint endpoint;
};

static enum rf_code reader_try(struct reader *reader, const struct fake *fake,
                               struct transport_open_options options, struct rf_error *err)
{
    struct te_segment segments[PIECES];

    *reader = (struct reader){.directory = NULL};
    snprintf(reader->endpoint.address, sizeof reader->endpoint.address, "%s", fake->session);
    if (!fake->ours) {
        all_segments(segments);
        assert_int_equal(try_directory(fake, WAIT_MS, NULL, &reader->directory, err), RF_OK);
        assert_int_equal(
            te_directory_set_rank(reader->directory, 0, segments, PIECES, CONTENT_BYTES, err),
            RF_OK);
    }
    options.directory = reader->directory;
    return te_session_open(&reader->endpoint, &options, &reader->session, err);
}

static void reader_open(struct reader *reader, struct fake *fake, uint64_t timeout_ms)
{
    const struct transport_open_options options = {.timeout_ms = timeout_ms, .cancel_fd = -1};
    struct rf_error err = {0};

    fake_start(fake);
    if (reader_try(reader, fake, options, &err) != RF_OK)
        fail_msg("%s", err.text);
}

static void reader_close(struct reader *reader, struct fake *fake)
{
    te_session_close(reader->session);
    te_directory_close(reader->directory);
    fake_stop(fake);
}

struct asked {
    struct stream_range range;
    struct rig_sink sink;
    struct read read;
    uint8_t *to;
};

static void ask(struct reader *reader, struct asked *asked, uint32_t rank,
                struct stream_range range, enum hash_algorithm digest)
{
    struct rf_error err = {0};

    memset(asked, 0, sizeof *asked);
    asked->range = range;
    asked->to = calloc(1, range.bytes * range.count);
    assert_non_null(asked->to);
    rig_sink_init(&asked->sink, asked->to, range.bytes * range.count);
    asked->read = (struct read){.rank = rank,
                                .ranges = &asked->range,
                                .range_count = 1,
                                .bytes = range.bytes * range.count,
                                .sink = &asked->sink.sink,
                                .digest = digest};
    assert_int_equal(te_session_submit(reader->session, &asked->read, &err), RF_OK);
}

static struct read *next_done(struct reader *reader)
{
    struct rf_error err = {0};
    struct read *done = NULL;
    enum rf_code code =
        te_session_progress(reader->session, clock_deadline_ns(WAIT_MS), &done, &err);

    if (code != RF_OK)
        fail_msg("progress: %s: %s", rf_code_name(code), err.text);
    return done;
}

static void assert_read(const struct read *read, enum rf_code code, const char *words)
{
    if (read->code != code)
        fail_msg("%s: %s", rf_code_name(read->code), read->error.text);
    if (words != NULL)
        assert_says(&read->error, words);
}

/* Reads all of the stream in one read and checks it. */
static void read_all(struct reader *reader, const struct fake *fake)
{
    struct asked asked;

    ask(reader, &asked, 0, (struct stream_range){.bytes = CONTENT_BYTES, .count = 1}, 0);
    assert_ptr_equal(next_done(reader), &asked.read);
    assert_read(&asked.read, RF_OK, NULL);
    assert_memory_equal(asked.to, fake->content, CONTENT_BYTES);
    free(asked.to);
}

static void every_kind_of_engine_is_read(void **state)
{
    (void)state;
    /* Releases up to 0.3.9, up to 0.3.11, and from 0.3.12 on. */
    static const struct {
        unsigned version;
        bool closes;
    } kinds[] = {{1, true}, {1, false}, {2, false}};

    for (unsigned i = 0; i < 3; i++) {
        struct reader reader;
        struct fake fake;

        fake_begin(&fake, kinds[i].version);
        fake.closes = kinds[i].closes;
        reader_open(&reader, &fake, WAIT_MS);
        read_all(&reader, &fake);
        read_all(&reader, &fake);
        reader_close(&reader, &fake);
        if (kinds[i].closes) {
            assert_int_equal(fake.requests, 2 * PIECES);
            assert_in_range(fake.connections, 2 * PIECES, 2 * PIECES + 1);
        } else {
            assert_int_equal(fake.connections, 1);
        }
    }
}

static void strided_ranges_come_in_order(void **state)
{
    (void)state;
    const struct stream_range range = {.offset = 5, .bytes = 1000, .stride = 3001, .count = 300};

    for (unsigned version = 1; version <= 2; version++) {
        struct reader reader;
        struct asked asked;
        struct fake fake;

        fake_begin(&fake, version);
        reader_open(&reader, &fake, WAIT_MS);
        ask(&reader, &asked, 0, range, 0);
        assert_read(next_done(&reader), RF_OK, NULL);
        for (unsigned i = 0; i < range.count; i++)
            assert_memory_equal(asked.to + i * range.bytes,
                                fake.content + range.offset + i * range.stride, range.bytes);
        free(asked.to);
        reader_close(&reader, &fake);
    }
}

static void more_requests_than_the_window_holds(void **state)
{
    (void)state;
    const struct stream_range range = {.bytes = 1, .stride = 2, .count = 20000};
    struct reader reader;
    struct asked asked;
    struct fake fake;

    fake_begin(&fake, 2);
    reader_open(&reader, &fake, WAIT_MS);
    ask(&reader, &asked, 0, range, 0);
    assert_read(next_done(&reader), RF_OK, NULL);
    for (unsigned i = 0; i < range.count; i++)
        assert_int_equal(asked.to[i], fake.content[(size_t)i * 2]);
    free(asked.to);
    reader_close(&reader, &fake);
}

static void reads_that_cannot_be_fail_alone(void **state)
{
    (void)state;
    const struct stream_range range = {.bytes = 10, .count = 1};
    struct reader reader;
    struct asked asked[4];
    struct fake fake;

    fake_begin(&fake, 2);
    reader_open(&reader, &fake, WAIT_MS);
    ask(&reader, &asked[0], 9, range, 0);
    ask(&reader, &asked[1], 0,
        (struct stream_range){.offset = CONTENT_BYTES - 9, .bytes = 10, .count = 1}, 0);
    ask(&reader, &asked[2], 0, range, HASH_XXH3_128);
    ask(&reader, &asked[3], 0, range, 0);
    for (unsigned i = 0; i < 4; i++)
        assert_ptr_equal(next_done(&reader), &asked[i].read);
    assert_read(&asked[0].read, RF_E_INVAL, "no rank 9");
    assert_read(&asked[1].read, RF_E_INVAL, "rank 0");
    assert_read(&asked[2].read, RF_E_UNSUPPORTED, "a digest is asked for");
    assert_read(&asked[3].read, RF_OK, NULL);
    for (unsigned i = 0; i < 4; i++)
        free(asked[i].to);
    reader_close(&reader, &fake);
}

static void a_rejected_address_fails_its_read_alone(void **state)
{
    (void)state;
    struct stream_range range = {.bytes = 10 * PIECE_BYTES, .count = 1};
    struct reader reader;
    struct asked asked[3];
    struct fake fake;

    fake_begin(&fake, 2);
    /* In the middle of the second read; with a refusal the engine closes. */
    fake.refuse_address = piece_segment(13).address;
    fake.refuse_status = TE_STATUS_REJECTED;
    reader_open(&reader, &fake, WAIT_MS);
    for (unsigned i = 0; i < 3; i++) {
        range.offset = i * range.bytes;
        ask(&reader, &asked[i], 0, range, 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        assert_ptr_equal(next_done(&reader), &asked[i].read);
        assert_read(&asked[i].read, i == 1 ? RF_E_CHANGED : RF_OK, NULL);
        if (i != 1)
            assert_memory_equal(asked[i].to, fake.content + i * range.bytes, range.bytes);
    }
    assert_says(&asked[1].read.error, "rank 0, stream offset 212992: 16384 bytes at address");
    for (unsigned i = 0; i < 3; i++)
        free(asked[i].to);
    reader_close(&reader, &fake);
    assert_in_range(fake.connections, 2, 16);
}

/* One read dies with a code and words, and the session with it. */
static void expect_death(struct fake *fake, uint64_t timeout_ms, enum rf_code code,
                         const char *words)
{
    const struct stream_range range = {.bytes = 3 * PIECE_BYTES, .count = 1};
    struct rf_error err = {0};
    struct reader reader;
    struct asked asked;
    struct read *done = NULL;

    reader_open(&reader, fake, timeout_ms);
    uint64_t begin_ns = clock_now_ns();
    ask(&reader, &asked, 0, range, 0);
    assert_ptr_equal(next_done(&reader), &asked.read);
    assert_true(clock_seconds(begin_ns, clock_now_ns()) < WAIT_MS / 1e3 / 2);
    assert_read(&asked.read, code, words);
    assert_int_equal(te_session_progress(reader.session, clock_deadline_ns(1), &done, &err), code);
    assert_null(done);
    assert_says(&err, words);
    assert_int_equal(te_session_submit(reader.session, &asked.read, &err), code);
    free(asked.to);
    reader_close(&reader, fake);
}

static void fake_saying(struct fake *fake, unsigned version, const void *words, size_t bytes,
                        enum then then)
{
    fake_begin(fake, version);
    buf_append(&fake->words, words, bytes);
    fake->words_then = then;
}

static void words_in_place_of_a_status_are_refused(void **state)
{
    (void)state;
    uint8_t status[TE_STATUS_BYTES];
    struct fake fake;

    fake_saying(&fake, 2, "HTTP/1.1 400 Bad Request\r\n", 26, THEN_STALL);
    expect_death(&fake, WAIT_MS, RF_E_PROTO, "in place of a status");
    te_status_encode(7, status);
    fake_saying(&fake, 2, status, sizeof status, THEN_STALL);
    expect_death(&fake, WAIT_MS, RF_E_PROTO, "status 7");
    /* What only seeds of ours may say. */
    te_status_encode(TE_STATUS_CODE + RF_E_DENIED, status);
    fake_saying(&fake, 2, status, sizeof status, THEN_STALL);
    expect_death(&fake, WAIT_MS, RF_E_PROTO, "status 266");
}

static void half_answers_end_in_time(void **state)
{
    (void)state;
    uint8_t half[TE_STATUS_BYTES + 100] = {0};
    struct fake fake;

    te_status_encode(TE_STATUS_OK, half);
    for (unsigned version = 1; version <= 2; version++) {
        static const size_t parts[] = {0, 3, 8, 50};
        for (unsigned i = 0; i < 4; i++) {
            fake_saying(&fake, version, half, parts[i], THEN_STALL);
            expect_death(&fake, SHORT_MS, RF_E_TIMEOUT, "silent for 30 ms");
            fake_saying(&fake, version, half, parts[i], THEN_CLOSE);
            expect_death(&fake, WAIT_MS, RF_E_UNREACHABLE, "closed the connection");
            fake_saying(&fake, version, half, parts[i], THEN_RESET);
            expect_death(&fake, WAIT_MS, RF_E_UNREACHABLE, "engine 127.0.0.1:");
        }
    }
}

static void an_engine_that_stalls_in_the_middle_times_out(void **state)
{
    (void)state;

    for (unsigned version = 1; version <= 2; version++) {
        struct fake fake;

        fake_begin(&fake, version);
        fake.silent_after_bytes = 1000;
        expect_death(&fake, SHORT_MS, RF_E_TIMEOUT, "silent for 30 ms");
    }
}

static void bytes_that_nobody_asked_for_are_refused(void **state)
{
    (void)state;
    const struct stream_range range = {.bytes = 100, .count = 1};

    for (unsigned version = 1; version <= 2; version++) {
        uint8_t words[TE_STATUS_BYTES + 101] = {0};
        size_t bytes = version == 2 ? sizeof words : sizeof words - TE_STATUS_BYTES;
        struct reader reader;
        struct asked asked[2];
        struct fake fake;

        te_status_encode(TE_STATUS_OK, words);
        fake_saying(&fake, version, version == 2 ? words : words + TE_STATUS_BYTES, bytes,
                    THEN_STALL);
        reader_open(&reader, &fake, WAIT_MS);
        ask(&reader, &asked[0], 0, range, 0);
        assert_read(next_done(&reader), RF_OK, NULL);
        ask(&reader, &asked[1], 0, range, 0);
        assert_read(next_done(&reader), RF_E_PROTO, "nobody asked for");
        free(asked[0].to);
        free(asked[1].to);
        reader_close(&reader, &fake);
    }
}

static void an_engine_without_a_data_plane_is_unreachable(void **state)
{
    (void)state;
    const struct transport_open_options options = {.timeout_ms = WAIT_MS, .cancel_fd = -1};
    struct rf_error err = {0};
    struct reader reader;
    struct fake fake;

    fake_begin(&fake, 2);
    fake_start(&fake);
    assert_int_equal(reader_try(&reader, &fake, options, &err), RF_OK);
    te_session_close(reader.session);
    te_directory_close(reader.directory);
    (void)shutdown(fake.data_fd, SHUT_RDWR); /* from here on nobody listens */
    assert_int_equal(reader_try(&reader, &fake, options, &err), RF_E_UNREACHABLE);
    te_directory_close(reader.directory);
    fake_stop(&fake);
}

/* ---- seeds of ours ---- */

static void fake_ours(struct fake *fake)
{
    fake_begin(fake, 2);
    fake->ours = true;
    say_descriptor(fake, fake->session, "127.0.0.1");
}

static void expect_open_fails(struct fake *fake, enum rf_code code, const char *words)
{
    const struct transport_open_options options = {.timeout_ms = WAIT_MS, .cancel_fd = -1};
    struct rf_error err = {0};
    struct reader reader;

    fake->ours = true; /* what the reader takes it for */
    fake_start(fake);
    enum rf_code got = reader_try(&reader, fake, options, &err);
    if (got != code)
        fail_msg("%s: %s", rf_code_name(got), err.text);
    assert_says(&err, words);
    fake_stop(fake);
}

static void a_seed_of_ours_must_be_one(void **state)
{
    (void)state;
    struct fake fake;

    fake_begin(&fake, 2); /* a real engine's descriptor */
    expect_open_fails(&fake, RF_E_UNSUPPORTED, "only with a directory");
    fake_begin(&fake, 2);
    say_frame(&fake, TE_METADATA,
              "{\"buffers\":[{\"addr\":1,\"length\":1,\"name\":\"rank:0\"},{\"addr\":3,"
              "\"length\":1,\"name\":\"rank:0\"}],\"name\":\"a:1\",\"protocol\":\"tcp\","
              "\"rfork\":1,\"tcp_data_port\":1}");
    expect_open_fails(&fake, RF_E_PROTO, "rank 0 is there twice");
}

static void a_refused_token_is_put_into_words(void **state)
{
    (void)state;
    struct fake fake;

    fake_ours(&fake);
    fake.token_status = TE_STATUS_CODE + RF_E_DENIED;
    expect_open_fails(&fake, RF_E_DENIED, "refuses the token");
    fake_ours(&fake);
    fake.token_status = TE_STATUS_CODE + RF_E_CHANGED;
    expect_open_fails(&fake, RF_E_CHANGED, "RF_E_CHANGED");
    fake_ours(&fake);
    fake.token_status = TE_STATUS_REJECTED;
    expect_open_fails(&fake, RF_E_PROTO, "status 1");
    fake_ours(&fake);
    fake.token_status = TE_STATUS_CODE + 99;
    expect_open_fails(&fake, RF_E_PROTO, "status 355");
}

static void ranks_of_a_seed_are_its_buffers(void **state)
{
    (void)state;
    const struct stream_range range = {.bytes = PIECE_BYTES, .count = 1};
    struct reader reader;
    struct asked asked[2];
    struct fake fake;

    fake_ours(&fake);
    reader_open(&reader, &fake, WAIT_MS);
    ask(&reader, &asked[0], 17, range, 0);
    ask(&reader, &asked[1], PIECES, range, 0);
    assert_read(next_done(&reader), RF_OK, NULL);
    assert_memory_equal(asked[0].to, fake.content + 17 * PIECE_BYTES, PIECE_BYTES);
    assert_read(next_done(&reader), RF_E_INVAL, "no rank 64");
    free(asked[0].to);
    free(asked[1].to);
    reader_close(&reader, &fake);
}

static void assert_digest(const struct asked *asked)
{
    const struct read *read = &asked->read;
    uint8_t ours[HASH_MAX_BYTES];
    struct read_digest digest = {.hasher = NULL};

    assert_int_equal(read_digest_begin(&digest, read->digest, NULL), RF_OK);
    read_digest_update(&digest, asked->to, read->bytes);
    read_digest_final(&digest, read->rank, read->ranges, read->range_count, ours);
    assert_memory_equal(ours, read->said, hash_bytes(read->digest));
    read_digest_free(&digest);
}

static void digests_come_with_what_is_hashed(void **state)
{
    (void)state;
    const struct stream_range range = {.offset = 7, .bytes = 100, .stride = 1000, .count = 16};
    static const enum hash_algorithm algorithms[] = {HASH_XXH3_128, 0, HASH_SHA256, HASH_SHA256};
    struct reader reader;
    struct asked asked[4];
    struct fake fake;

    fake_ours(&fake);
    reader_open(&reader, &fake, WAIT_MS);
    for (unsigned i = 0; i < 4; i++)
        ask(&reader, &asked[i], i, range, algorithms[i]);
    for (unsigned i = 0; i < 4; i++) {
        assert_ptr_equal(next_done(&reader), &asked[i].read);
        assert_read(&asked[i].read, RF_OK, NULL);
        if (algorithms[i] != 0)
            assert_digest(&asked[i]);
        free(asked[i].to);
    }
    reader_close(&reader, &fake);
}

/* Refusals in all places of reads of many requests: what comes behind a refusal has been asked
 * already and must end up where it belongs. */
static void refusals_fail_reads_alone_and_nothing_is_mixed_up(void **state)
{
    (void)state;
    enum { READS = 12 };
    const struct stream_range range = {.offset = 3, .bytes = 50, .stride = 100, .count = 40};

    for (unsigned every = 7; every < 60; every += 13) {
        struct reader reader;
        struct asked asked[READS];
        unsigned failed = 0;
        struct fake fake;

        fake_ours(&fake);
        fake.refuse_at = every / 2;
        fake.refuse_every = every;
        fake.refuse_status = TE_STATUS_CODE + RF_E_CANCELLED;
        reader_open(&reader, &fake, WAIT_MS);
        for (unsigned i = 0; i < READS; i++) {
            ask(&reader, &asked[i], i, range, i % 2 == 0 ? HASH_XXH3_128 : 0);
            asked[i].sink.part_bytes = 1 + i * 9;
        }
        for (unsigned i = 0; i < READS; i++) {
            assert_ptr_equal(next_done(&reader), &asked[i].read);
            failed += asked[i].read.code != RF_OK;
            if (asked[i].read.code != RF_OK) {
                assert_read(&asked[i].read, RF_E_CANCELLED, "are refused: RF_E_CANCELLED");
                continue;
            }
            for (unsigned k = 0; k < range.count; k++)
                assert_memory_equal(asked[i].to + k * range.bytes,
                                    fake.content + (size_t)i * PIECE_BYTES + range.offset +
                                        k * range.stride,
                                    range.bytes);
            if (i % 2 == 0)
                assert_digest(&asked[i]);
        }
        assert_true(failed > 0);
        for (unsigned i = 0; i < READS; i++)
            free(asked[i].to);
        reader_close(&reader, &fake);
        assert_int_equal(fake.connections, 1);
    }
}

static void a_sink_that_fails_fails_its_read_alone(void **state)
{
    (void)state;
    const struct stream_range range = {.bytes = 4 * PIECE_BYTES, .count = 1};
    struct reader reader;
    struct asked asked[2];
    struct fake fake;

    for (unsigned kind = 0; kind < 3; kind++) {
        fake_begin(&fake, kind == 2 ? 2 : 1);
        fake.closes = kind == 0;
        reader_open(&reader, &fake, WAIT_MS);
        ask(&reader, &asked[0], 0, range, 0);
        asked[0].sink.fail_code = RF_E_CORRUPT;
        asked[0].sink.fail_after = PIECE_BYTES / 2;
        ask(&reader, &asked[1], 0, range, 0);
        assert_read(next_done(&reader), RF_E_CORRUPT, "had enough");
        assert_read(next_done(&reader), RF_OK, NULL);
        assert_memory_equal(asked[1].to, fake.content, range.bytes);
        free(asked[0].to);
        free(asked[1].to);
        reader_close(&reader, &fake);
    }
}

/* ---- cancelling, leaving ---- */

static void silence_can_be_cancelled(void **state)
{
    (void)state;
    const struct stream_range range = {.bytes = PIECE_BYTES, .count = 1};

    for (int with_fd = 0; with_fd < 2; with_fd++) {
        struct rig_canceller canceller = {.fd = with_fd ? eventfd(0, EFD_CLOEXEC) : -1};
        const struct transport_open_options options = {
            .timeout_ms = WAIT_MS, .cancel = &canceller.flag, .cancel_fd = canceller.fd};
        struct rf_error err = {0};
        struct reader reader;
        struct asked asked;
        pthread_t thread;
        struct fake fake;

        fake_begin(&fake, 2);
        fake.silent_after_bytes = 10;
        fake_start(&fake);
        assert_int_equal(reader_try(&reader, &fake, options, &err), RF_OK);
        ask(&reader, &asked, 0, range, 0);
        assert_int_equal(thread_start(&thread, "cancel", rig_cancel_soon, &canceller, &err), RF_OK);
        uint64_t begin_ns = clock_now_ns();
        assert_read(next_done(&reader), RF_E_CANCELLED, "cancelled");
        assert_true(clock_seconds(begin_ns, clock_now_ns()) < 2);
        pthread_join(thread, NULL);
        free(asked.to);
        reader_close(&reader, &fake);
        if (canceller.fd >= 0)
            close(canceller.fd);
    }
}

static void a_question_can_be_cancelled(void **state)
{
    (void)state;
    struct rig_canceller canceller = {.fd = -1};
    const struct te_reach reach = {
        .timeout_ms = WAIT_MS, .cancel = &canceller.flag, .cancel_fd = -1};
    struct transport_directory *directory = NULL;
    struct rf_error err = {0};
    pthread_t thread;
    struct fake fake;

    fake_begin(&fake, 2);
    fake.answer.bytes = 5;
    fake.answer_then = THEN_STALL;
    fake_start(&fake);
    assert_int_equal(thread_start(&thread, "cancel", rig_cancel_soon, &canceller, &err), RF_OK);
    uint64_t begin_ns = clock_now_ns();
    assert_int_equal(te_directory_open(fake.session, &reach, &directory, &err), RF_E_CANCELLED);
    assert_true(clock_seconds(begin_ns, clock_now_ns()) < 2);
    pthread_join(thread, NULL);
    fake_stop(&fake);
}

static void a_deadline_loses_nothing(void **state)
{
    (void)state;
    struct rf_error err = {0};
    struct read *done = NULL;
    struct reader reader;
    struct asked asked;
    struct fake fake;

    fake_begin(&fake, 1);
    fake.closes = true;
    reader_open(&reader, &fake, WAIT_MS);
    ask(&reader, &asked, 0, (struct stream_range){.bytes = CONTENT_BYTES, .count = 1}, 0);
    enum rf_code code = RF_E_TIMEOUT;
    for (unsigned i = 0; i < 100000 && code == RF_E_TIMEOUT; i++)
        code = te_session_progress(reader.session, clock_now_ns(), &done, &err);
    assert_int_equal(code, RF_OK);
    assert_read(&asked.read, RF_OK, NULL);
    assert_memory_equal(asked.to, fake.content, CONTENT_BYTES);
    free(asked.to);
    reader_close(&reader, &fake);
}

static void closing_in_the_middle_leaves_nothing_behind(void **state)
{
    (void)state;
    unsigned before = rig_open_fds();

    for (unsigned i = 0; i < 3; i++) {
        struct reader reader;
        struct asked asked[3];
        struct fake fake;

        fake_begin(&fake, 1 + i / 2);
        fake.closes = i == 0;
        reader_open(&reader, &fake, WAIT_MS);
        for (unsigned k = 0; k < 3; k++)
            ask(&reader, &asked[k], 0, (struct stream_range){.bytes = CONTENT_BYTES, .count = 1},
                0);
        assert_read(next_done(&reader), RF_OK, NULL);
        te_session_close(reader.session);
        te_directory_close(reader.directory);
        for (unsigned k = 0; k < 3; k++)
            free(asked[k].to);
        fake_stop(&fake);
    }
    assert_int_equal(rig_open_fds(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_engine_says_what_it_has),
        cmocka_unit_test(answers_that_are_none_are_refused),
        cmocka_unit_test(an_engine_that_dies_or_stalls_in_its_answer),
        cmocka_unit_test(engines_that_cannot_be_read_are_named),
        cmocka_unit_test(a_session_id_is_host_and_port),
        cmocka_unit_test(nobody_there_is_unreachable),
        cmocka_unit_test(a_name_is_looked_up),
        cmocka_unit_test(data_at_another_host_is_an_attack_unless_allowed),
        cmocka_unit_test(ranks_must_be_whole_and_registered),
        cmocka_unit_test(nothing_registered_is_said),
        cmocka_unit_test(every_kind_of_engine_is_read),
        cmocka_unit_test(strided_ranges_come_in_order),
        cmocka_unit_test(more_requests_than_the_window_holds),
        cmocka_unit_test(reads_that_cannot_be_fail_alone),
        cmocka_unit_test(a_rejected_address_fails_its_read_alone),
        cmocka_unit_test(words_in_place_of_a_status_are_refused),
        cmocka_unit_test(half_answers_end_in_time),
        cmocka_unit_test(an_engine_that_stalls_in_the_middle_times_out),
        cmocka_unit_test(bytes_that_nobody_asked_for_are_refused),
        cmocka_unit_test(an_engine_without_a_data_plane_is_unreachable),
        cmocka_unit_test(a_seed_of_ours_must_be_one),
        cmocka_unit_test(a_refused_token_is_put_into_words),
        cmocka_unit_test(ranks_of_a_seed_are_its_buffers),
        cmocka_unit_test(digests_come_with_what_is_hashed),
        cmocka_unit_test(refusals_fail_reads_alone_and_nothing_is_mixed_up),
        cmocka_unit_test(a_sink_that_fails_fails_its_read_alone),
        cmocka_unit_test(silence_can_be_cancelled),
        cmocka_unit_test(a_question_can_be_cancelled),
        cmocka_unit_test(a_deadline_loses_nothing),
        cmocka_unit_test(closing_in_the_middle_leaves_nothing_behind),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
