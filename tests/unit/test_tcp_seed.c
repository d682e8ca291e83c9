/* A seed against readers that break the protocol, ask for too much, stall, or leave: it says why,
 * closes, and goes on serving the others. Plain sockets, so that nothing of our own reader stands
 * between. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rand.h"
#include "transport/net/socket.h"
#include "util/plain.h"
#include "util/rig.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

extern const struct transport transport_tcp;

enum {
    WAIT_MS = 10 * 1000,
    IDLE_MS = 200,
    STREAM_BYTES = 3 * 1000 * 1000 + 1,
};

struct world {
    struct rig rig;
    struct transport_seed *seed;
    struct endpoint endpoint;
};

/* ---- the seed ---- */

static void world_serve(struct world *world, const struct transport_seed_options *options)
{
    struct rf_error err = {0};

    enum rf_code code = transport_tcp.seed_start(&world->rig.exporter, options, &world->seed,
                                                 &world->endpoint, &err);
    if (code != RF_OK)
        fail_msg("seed_start: %s", err.text);
}

static void world_start_with(struct world *world, const struct transport_seed_options *options)
{
    memset(world, 0, sizeof *world);
    rig_init(&world->rig, 1, STREAM_BYTES, 3);
    world_serve(world, options);
}

static void world_start(struct world *world)
{
    world_start_with(world, &(struct transport_seed_options){.host = "127.0.0.1"});
}

static void world_stop(struct world *world)
{
    assert_true(rig_wait_leases(&world->rig, 0));
    transport_tcp.seed_stop(world->seed);
    rig_free(&world->rig);
}

/* ---- a plain socket as a reader ---- */

static void plain_connect(const struct world *world, int fd)
{
    struct net_address address;

    assert_int_equal(net_address_parse(world->endpoint.address, &address, NULL), RF_OK);
    assert_int_equal(connect(fd, &address.any, address.bytes), 0);
    net_tune(fd, WAIT_MS);
}

static void say_hello(const struct world *world, int fd, uint16_t min, uint16_t max, int flip)
{
    struct chunk_hello hello = {.version_min = min, .version_max = max};
    uint8_t raw[CHUNK_HELLO_BYTES];

    memcpy(hello.token, world->rig.token, CHUNK_TOKEN_BYTES);
    hello.token[0] ^= (uint8_t)flip;
    chunk_hello_encode(&hello, raw);
    plain_say(fd, raw, sizeof raw);
}

static struct chunk_welcome hear_welcome(int fd)
{
    uint8_t raw[CHUNK_WELCOME_BYTES];
    struct chunk_welcome welcome = {0};

    plain_hear(fd, raw, sizeof raw);
    assert_int_equal(chunk_welcome_decode(raw, sizeof raw, &welcome, NULL), RF_OK);
    return welcome;
}

/* A connection that has been let in. */
static int plain_open(const struct world *world)
{
    int fd = plain_socket(WAIT_MS);

    plain_connect(world, fd);
    say_hello(world, fd, 1, 1, 0);
    struct chunk_welcome welcome = hear_welcome(fd);
    assert_int_equal(welcome.status, RF_OK);
    assert_int_equal(welcome.version, CHUNK_VERSION);
    assert_int_equal(welcome.max_in_flight, CHUNK_MAX_IN_FLIGHT);
    assert_int_equal(welcome.max_read_bytes, CHUNK_MAX_READ_BYTES);
    return fd;
}

static void say_header(int fd, unsigned type, uint64_t id, uint32_t body_bytes)
{
    const struct chunk_hdr hdr = {
        .type = (enum chunk_type)type, .body_bytes = body_bytes, .request_id = id};
    uint8_t raw[CHUNK_HDR_BYTES];

    chunk_hdr_encode(&hdr, raw);
    plain_say(fd, raw, sizeof raw);
}

static void say_read(int fd, uint64_t id, uint32_t rank, const struct stream_range *ranges,
                     uint32_t count)
{
    struct buf body BUF_AUTO = {0};

    chunk_read_encode(rank, ranges, count, &body);
    assert_false(body.failed);
    say_header(fd, CHUNK_READ, id, (uint32_t)body.bytes);
    plain_say(fd, body.data, body.bytes);
}

static void say_read_one(int fd, uint64_t id, uint64_t offset, uint64_t bytes)
{
    say_read(fd, id, 0, &(struct stream_range){.offset = offset, .bytes = bytes, .count = 1}, 1);
}

/* A full window of reads of the whole stream, in one piece, and the seed has them: more than any
 * sockets hold. */
static void stall_with_reads(int fd)
{
    const struct stream_range all = {.bytes = STREAM_BYTES, .count = 1};
    struct chunk_hdr hdr = {.type = CHUNK_READ, .body_bytes = CHUNK_READ_BYTES + CHUNK_RANGE_BYTES};
    uint8_t raw[CHUNK_HDR_BYTES];
    struct buf words BUF_AUTO = {0};

    for (hdr.request_id = 1; hdr.request_id <= CHUNK_MAX_IN_FLIGHT; hdr.request_id++) {
        chunk_hdr_encode(&hdr, raw);
        buf_append(&words, raw, sizeof raw);
        chunk_read_encode(0, &all, 1, &words);
    }
    assert_false(words.failed);
    plain_say(fd, words.data, words.bytes);
    struct pollfd answer = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&answer, 1, WAIT_MS), 1);
}

static struct chunk_hdr hear_header(int fd)
{
    uint8_t raw[CHUNK_HDR_BYTES];
    struct chunk_hdr hdr = {0};

    plain_hear(fd, raw, sizeof raw);
    assert_int_equal(chunk_hdr_decode(raw, sizeof raw, &hdr, NULL), RF_OK);
    return hdr;
}

/* The rest of an ERROR frame. */
static enum rf_code hear_error(int fd, const struct chunk_hdr *hdr, struct rf_error *err)
{
    uint8_t body[CHUNK_MAX_ERROR_BODY];

    assert_int_equal(hdr->type, CHUNK_ERROR);
    plain_hear(fd, body, hdr->body_bytes);
    return chunk_error_decode(body, hdr->body_bytes, err);
}

/* A whole answer, whatever its frames. */
static void hear_answer(int fd, uint64_t id, void *to, uint64_t bytes)
{
    uint64_t done = 0;

    while (done < bytes) {
        struct chunk_hdr hdr = hear_header(fd);
        assert_int_equal(hdr.type, CHUNK_DATA);
        assert_true(hdr.request_id == id);
        assert_true(hdr.body_bytes <= bytes - done);
        plain_hear(fd, (uint8_t *)to + done, hdr.body_bytes);
        done += hdr.body_bytes;
        assert_int_equal((hdr.flags & CHUNK_FLAG_LAST) != 0, done == bytes);
    }
}

/* The connection still serves. */
static void expect_alive(const struct world *world, int fd)
{
    uint8_t bytes[1000];

    say_read_one(fd, 1000, 17, sizeof bytes);
    hear_answer(fd, 1000, bytes, sizeof bytes);
    assert_memory_equal(bytes, world->rig.ranks[0].bytes + 17, sizeof bytes);
}

/* The seed says why it ends the connection, and ends it. */
static void expect_break(const struct world *world, int fd, const char *words)
{
    struct rf_error err = {0};
    struct chunk_hdr hdr = hear_header(fd);

    while (hdr.type == CHUNK_DATA) { /* what was asked before */
        rf_autofree uint8_t *body = malloc(hdr.body_bytes);
        assert_non_null(body);
        plain_hear(fd, body, hdr.body_bytes);
        hdr = hear_header(fd);
    }
    assert_true(hdr.request_id == 0);
    assert_int_equal(hear_error(fd, &hdr, &err), RF_E_PROTO);
    if (strstr(err.text, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    plain_hear_end(fd);
    close(fd);

    fd = plain_open(world);
    expect_alive(world, fd);
    close(fd);
}

/* ---- hello ---- */

static void expect_refusal(const struct world *world, int fd, enum rf_code status)
{
    assert_int_equal(hear_welcome(fd).status, status);
    plain_hear_end(fd);
    close(fd);
    fd = plain_open(world);
    expect_alive(world, fd);
    close(fd);
}

static void garbage_is_refused(void **state)
{
    uint8_t garbage[CHUNK_HELLO_BYTES + 500];
    struct rand_seq rand = {.state = 5};
    struct world world;

    (void)state;
    for (size_t i = 0; i < sizeof garbage; i++)
        garbage[i] = (uint8_t)rand_next(&rand);
    world_start(&world);
    int fd = plain_socket(WAIT_MS);
    plain_connect(&world, fd);
    plain_say(fd, garbage, sizeof garbage);
    expect_refusal(&world, fd, RF_E_PROTO);
    world_stop(&world);
}

static void a_wrong_token_is_refused(void **state)
{
    struct world world;

    (void)state;
    world_start(&world);
    int fd = plain_socket(WAIT_MS);
    plain_connect(&world, fd);
    say_hello(&world, fd, 1, 1, 1);
    expect_refusal(&world, fd, RF_E_DENIED);
    world_stop(&world);
}

static void unknown_versions_are_refused(void **state)
{
    struct world world;

    (void)state;
    world_start(&world);
    int fd = plain_socket(WAIT_MS);
    plain_connect(&world, fd);
    say_hello(&world, fd, 2, 9, 0);
    expect_refusal(&world, fd, RF_E_UNSUPPORTED);
    fd = plain_socket(WAIT_MS);
    plain_connect(&world, fd);
    say_hello(&world, fd, 1, 9, 0);
    assert_int_equal(hear_welcome(fd).version, CHUNK_VERSION);
    expect_alive(&world, fd);
    close(fd);
    world_stop(&world);
}

static void a_hello_that_does_not_end_is_given_up(void **state)
{
    struct world world;
    uint8_t byte = 'r';

    (void)state;
    world_start_with(
        &world, &(struct transport_seed_options){.host = "127.0.0.1", .idle_timeout_ms = IDLE_MS});
    int fd = plain_socket(WAIT_MS);
    plain_connect(&world, fd);
    uint64_t begin_ns = clock_now_ns();
    /* A byte now and then does not prolong it. */
    struct pollfd gone = {.fd = fd, .events = POLLIN};
    while (poll(&gone, 1, IDLE_MS / 10) == 0) {
        assert_true(clock_seconds(begin_ns, clock_now_ns()) < WAIT_MS / 1e3 / 2);
        (void)send(fd, &byte, 1, MSG_NOSIGNAL);
    }
    assert_true(recv(fd, &byte, 1, 0) <= 0);
    close(fd);
    world_stop(&world);
}

static void a_hello_may_come_byte_by_byte_with_a_read_behind_it(void **state)
{
    struct buf words BUF_AUTO = {0};
    struct chunk_hello hello = {.version_min = 1, .version_max = 1};
    const struct stream_range range = {.offset = 5, .bytes = 1000, .count = 1};
    const struct chunk_hdr hdr = {
        .type = CHUNK_READ, .body_bytes = CHUNK_READ_BYTES + CHUNK_RANGE_BYTES, .request_id = 77};
    uint8_t raw[CHUNK_HELLO_BYTES];
    uint8_t bytes[1000];
    struct world world;

    (void)state;
    world_start(&world);
    memcpy(hello.token, world.rig.token, CHUNK_TOKEN_BYTES);
    chunk_hello_encode(&hello, raw);
    buf_append(&words, raw, CHUNK_HELLO_BYTES);
    chunk_hdr_encode(&hdr, raw);
    buf_append(&words, raw, CHUNK_HDR_BYTES);
    chunk_read_encode(0, &range, 1, &words);
    int fd = plain_socket(WAIT_MS);
    plain_connect(&world, fd);
    for (size_t i = 0; i < words.bytes; i++)
        plain_say(fd, words.data + i, 1);
    assert_int_equal(hear_welcome(fd).status, RF_OK);
    hear_answer(fd, 77, bytes, sizeof bytes);
    assert_memory_equal(bytes, world.rig.ranks[0].bytes + 5, sizeof bytes);
    close(fd);
    world_stop(&world);
}

/* ---- frames ---- */

static void frames_no_reader_sends_end_the_connection(void **state)
{
    struct world world;

    (void)state;
    world_start(&world);
    int fd = plain_open(&world);
    say_header(fd, CHUNK_DATA, 1, 10);
    expect_break(&world, fd, "type 2");
    fd = plain_open(&world);
    say_header(fd, CHUNK_GOODBYE, 0, 0);
    expect_break(&world, fd, "type 4");
    fd = plain_open(&world);
    say_header(fd, 77, 0, 0);
    expect_break(&world, fd, "unknown type 77");
    fd = plain_open(&world);
    say_read_one(fd, 0, 0, 10);
    expect_break(&world, fd, "id 0");
    world_stop(&world);
}

static void a_frame_too_large_ends_the_connection(void **state)
{
    struct world world;

    (void)state;
    world_start(&world);
    int fd = plain_open(&world);
    say_read_one(fd, 1, 0, STREAM_BYTES);
    say_header(fd, CHUNK_READ, 2, CHUNK_MAX_READ_BODY + 1);
    expect_break(&world, fd, "READ frame");
    world_stop(&world);
}

static void more_reads_than_allowed_end_the_connection(void **state)
{
    struct world world;

    (void)state;
    world_start(&world);
    int fd = plain_open(&world);
    /* More than any socket buffers hold, so that they stay in flight. */
    for (uint64_t id = 1; id <= 8 * CHUNK_MAX_IN_FLIGHT; id++)
        say_read_one(fd, id, 0, STREAM_BYTES);
    expect_break(&world, fd, "in flight");
    world_stop(&world);
}

static void a_read_that_cannot_be_is_refused_alone(void **state)
{
    const struct stream_range ranges[] = {
        {.offset = STREAM_BYTES, .bytes = 1, .count = 1},
        {.offset = UINT64_MAX, .bytes = 2, .count = 1},
        {.offset = 0, .bytes = 10, .stride = UINT64_MAX / 2, .count = 4},
        {.offset = 0, .bytes = 10, .stride = 9, .count = 2},
        {.offset = 0, .bytes = 0, .count = 1},
        {.offset = 0, .bytes = 1, .count = 0},
    };
    struct stream_range large[CHUNK_MAX_READ_BYTES / STREAM_BYTES + 1];
    struct rf_error err = {0};
    struct world world;

    (void)state;
    world_start(&world);
    int fd = plain_open(&world);
    for (unsigned i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        say_read(fd, i + 1, 0, &ranges[i], 1);
        struct chunk_hdr hdr = hear_header(fd);
        assert_true(hdr.request_id == i + 1);
        assert_int_equal(hear_error(fd, &hdr, &err), RF_E_INVAL);
    }
    say_read(fd, 50, 1, &(struct stream_range){.bytes = 1, .count = 1}, 1);
    struct chunk_hdr hdr = hear_header(fd);
    assert_int_equal(hear_error(fd, &hdr, &err), RF_E_INVAL);
    assert_non_null(strstr(err.text, "rank 1"));
    for (unsigned i = 0; i < sizeof large / sizeof large[0]; i++)
        large[i] = (struct stream_range){.bytes = STREAM_BYTES, .count = 1};
    say_read(fd, 51, 0, large, sizeof large / sizeof large[0]);
    hdr = hear_header(fd);
    assert_int_equal(hear_error(fd, &hdr, &err), RF_E_INVAL);
    assert_non_null(strstr(err.text, "67108864"));
    expect_alive(&world, fd);
    close(fd);
    world_stop(&world);
}

/* ---- many ranges ---- */

/* The bytes that ranges mean, laid end to end. */
static uint8_t *bytes_of(const struct world *world, const struct stream_range *ranges,
                         uint32_t count, uint64_t *ret_bytes)
{
    struct buf out = {0};

    for (uint32_t i = 0; i < count; i++) {
        for (uint64_t k = 0; k < ranges[i].count; k++)
            buf_append(&out, world->rig.ranks[0].bytes + ranges[i].offset + k * ranges[i].stride,
                       ranges[i].bytes);
    }
    assert_false(out.failed);
    *ret_bytes = out.bytes;
    return out.data;
}

static void as_many_ranges_as_allowed_in_as_many_reads(void **state)
{
    rf_autofree struct stream_range *ranges = calloc(CHUNK_MAX_RANGES, sizeof *ranges);
    struct rand_seq rand = {.state = 9};
    uint64_t bytes = 0;
    struct world world;

    (void)state;
    assert_non_null(ranges);
    world_start(&world);
    for (unsigned i = 0; i < CHUNK_MAX_RANGES; i++) {
        ranges[i] = (struct stream_range){.offset = rand_below(&rand, 1000 * 1000),
                                          .bytes = 1 + rand_below(&rand, 40),
                                          .stride = 50,
                                          .count = 2 + rand_below(&rand, 5)};
    }
    rf_autofree uint8_t *expected = bytes_of(&world, ranges, CHUNK_MAX_RANGES, &bytes);
    rf_autofree uint8_t *got = malloc(bytes);
    assert_non_null(got);
    int fd = plain_open(&world);
    /* The seed has room for two such reads' ranges and makes the others wait in the sockets. */
    for (uint64_t id = 1; id <= CHUNK_MAX_IN_FLIGHT; id++)
        say_read(fd, id, 0, ranges, CHUNK_MAX_RANGES);
    for (uint64_t id = 1; id <= CHUNK_MAX_IN_FLIGHT; id++) {
        memset(got, 0, bytes);
        hear_answer(fd, id, got, bytes);
        assert_memory_equal(got, expected, bytes);
    }
    expect_alive(&world, fd);
    close(fd);
    world_stop(&world);
}

static void reads_of_changing_numbers_of_ranges(void **state)
{
    rf_autofree struct stream_range *ranges = calloc(CHUNK_MAX_RANGES, sizeof *ranges);
    struct rand_seq rand = {.state = 10};
    struct world world;

    (void)state;
    assert_non_null(ranges);
    world_start(&world);
    for (unsigned i = 0; i < CHUNK_MAX_RANGES; i++)
        ranges[i] = (struct stream_range){.offset = i * 7, .bytes = 1 + i % 5, .count = 1};
    int fd = plain_open(&world);
    uint32_t counts[CHUNK_MAX_IN_FLIGHT];
    for (uint64_t id = 0; id < 200; id++) {
        uint32_t *slot = &counts[id % CHUNK_MAX_IN_FLIGHT];
        if (id >= CHUNK_MAX_IN_FLIGHT) {
            uint64_t bytes = 0;
            rf_autofree uint8_t *expected = bytes_of(&world, ranges, *slot, &bytes);
            rf_autofree uint8_t *got = malloc(bytes);
            assert_non_null(got);
            hear_answer(fd, id - CHUNK_MAX_IN_FLIGHT + 1, got, bytes);
            assert_memory_equal(got, expected, bytes);
        }
        *slot = 1 + (uint32_t)rand_below(&rand, UINT64_C(1) << rand_below(&rand, 13));
        say_read(fd, id + 1, 0, ranges, *slot);
    }
    close(fd);
    world_stop(&world);
}

static void a_reader_with_little_room_gets_every_byte(void **state)
{
    const int room = 8 << 10;
    struct rand_seq rand = {.state = 12};
    rf_autofree uint8_t *got = malloc(STREAM_BYTES);
    struct world world;

    (void)state;
    assert_non_null(got);
    world_start(&world);
    int fd = plain_socket(WAIT_MS);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room), 0);
    plain_connect(&world, fd);
    say_hello(&world, fd, 1, 1, 0);
    assert_int_equal(hear_welcome(fd).status, RF_OK);
    for (uint64_t id = 1; id <= 3; id++) {
        say_read_one(fd, id, id, STREAM_BYTES - id);
        for (uint64_t done = 0; done < STREAM_BYTES - id;) {
            struct chunk_hdr hdr = hear_header(fd);
            for (uint32_t left = hdr.body_bytes; left > 0;) {
                uint32_t part = 1 + (uint32_t)rand_below(&rand, 9000);
                part = part < left ? part : left;
                plain_hear(fd, got + done, part);
                done += part;
                left -= part;
            }
        }
        assert_memory_equal(got, world.rig.ranks[0].bytes + id, STREAM_BYTES - id);
    }
    close(fd);
    world_stop(&world);
}

/* ---- readers that stall or leave ---- */

static void a_reader_that_says_no_more_is_let_go(void **state)
{
    struct world world;

    (void)state;
    world_start(&world);
    int fd = plain_open(&world);
    say_read_one(fd, 1, 0, STREAM_BYTES);
    assert_int_equal(shutdown(fd, SHUT_WR), 0);
    assert_true(rig_wait_leases(&world.rig, 0));
    close(fd);
    world_stop(&world);
}

static void a_reader_that_does_not_read_is_let_go(void **state)
{
    struct world world;

    (void)state;
    world_start_with(
        &world, &(struct transport_seed_options){.host = "127.0.0.1", .idle_timeout_ms = IDLE_MS});
    int stalled = plain_open(&world);
    stall_with_reads(stalled);
    int idle = plain_open(&world);
    assert_true(rig_wait_leases(&world.rig, 0));
    close(stalled);
    close(idle);
    world_stop(&world);
}

static void beyond_the_limit_readers_are_told_so(void **state)
{
    struct world world;

    (void)state;
    world_start_with(&world,
                     &(struct transport_seed_options){.host = "127.0.0.1", .max_connections = 2});
    int first = plain_open(&world);
    int second = plain_open(&world);
    int third = plain_socket(WAIT_MS);
    plain_connect(&world, third);
    say_hello(&world, third, 1, 1, 0);
    assert_int_equal(hear_welcome(third).status, RF_E_NOMEM);
    plain_hear_end(third);
    close(third);
    expect_alive(&world, first);
    close(second);
    assert_true(rig_wait_leases(&world.rig, 1));
    third = plain_open(&world);
    expect_alive(&world, third);
    close(first);
    close(third);
    world_stop(&world);
}

static void idle_connections_cost_the_others_nothing(void **state)
{
    enum { IDLE = 300 };
    int fds[IDLE];
    struct world world;

    (void)state;
    world_start(&world);
    for (unsigned i = 0; i < IDLE; i++) {
        if (i % 2 == 0) {
            fds[i] = plain_open(&world);
        } else {
            fds[i] = plain_socket(WAIT_MS); /* not even a hello */
            plain_connect(&world, fds[i]);
        }
    }
    int fd = plain_open(&world);
    expect_alive(&world, fd);
    expect_alive(&world, fds[0]);
    close(fd);
    for (unsigned i = 0; i < IDLE; i++)
        close(fds[i]);
    world_stop(&world);
}

/* More silent connections than there are places; the listener's queue holds the reader until
 * they are given up, which is sooner than in a seed with room. */
static void silent_connections_do_not_keep_readers_out(void **state)
{
    enum { SILENT = 100 };
    int fds[SILENT];
    struct world world;

    (void)state;
    world_start_with(&world,
                     &(struct transport_seed_options){.host = "127.0.0.1", .max_connections = 4});
    for (unsigned i = 0; i < SILENT; i++) {
        fds[i] = plain_socket(WAIT_MS);
        plain_connect(&world, fds[i]);
    }
    uint64_t begin_ns = clock_now_ns();
    int fd = plain_open(&world);
    expect_alive(&world, fd);
    assert_true(clock_seconds(begin_ns, clock_now_ns()) < WAIT_MS / 1e3 / 2);
    close(fd);
    for (unsigned i = 0; i < SILENT; i++)
        close(fds[i]);
    world_stop(&world);
}

static void without_descriptors_accepting_waits(void **state)
{
    struct world world;
    struct rlimit before;

    (void)state;
    world_start(&world);
    int first = plain_open(&world);
    int second = plain_socket(WAIT_MS);
    int third = plain_socket(WAIT_MS);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    struct rlimit none = {.rlim_cur = 1, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    plain_connect(&world, second);
    plain_connect(&world, third);
    say_hello(&world, second, 1, 1, 0);
    for (unsigned i = 0; i < 20; i++)
        expect_alive(&world, first);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(hear_welcome(second).status, RF_OK);
    expect_alive(&world, second);
    say_hello(&world, third, 1, 1, 0);
    assert_int_equal(hear_welcome(third).status, RF_OK);
    close(first);
    close(second);
    close(third);
    world_stop(&world);
}

/* ---- what is served ---- */

static void a_file_that_shrinks_ends_only_its_connection(void **state)
{
    char path[] = "/tmp/rfork-shrink-XXXXXX";
    struct region *region = NULL;
    struct layout layout = {0};
    struct rf_error err = {0};
    struct world world = {.seed = NULL};
    rf_autofree uint8_t *content = calloc(1, STREAM_BYTES);
    rf_autofree uint8_t *got = malloc(STREAM_BYTES);

    (void)state;
    assert_non_null(content);
    assert_non_null(got);
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(write(file, content, STREAM_BYTES), STREAM_BYTES);
    assert_int_equal(region_create_file(path, file, &region, &err), RF_OK);
    assert_int_equal(layout_add(&layout, 0, STREAM_BYTES, region, 0, &err), RF_OK);
    assert_int_equal(layout_finish(&layout, STREAM_BYTES, &err), RF_OK);
    rig_init_layout(&world.rig, &layout);
    world_serve(&world, &(struct transport_seed_options){.host = "127.0.0.1"});

    int fd = plain_open(&world);
    say_read_one(fd, 1, 0, STREAM_BYTES);
    hear_answer(fd, 1, got, STREAM_BYTES);
    assert_int_equal(ftruncate(file, STREAM_BYTES / 2), 0);
    say_read_one(fd, 2, 0, STREAM_BYTES);
    while (recv(fd, got, STREAM_BYTES, 0) > 0)
        ;
    close(fd);
    say_read_one(fd = plain_open(&world), 1, 0, STREAM_BYTES / 2);
    hear_answer(fd, 1, got, STREAM_BYTES / 2);
    close(fd);
    close(file);
    region_unref(region);
    world_stop(&world);
}

/* ---- starting and stopping ---- */

static void it_listens_where_it_is_told(void **state)
{
    static const struct {
        const char *host;
        const char *address;
    } hosts[] = {
        {"127.0.0.1", "127.0.0.1:"}, {"0.0.0.0", "0.0.0.0:"}, {"", "0.0.0.0:"},
        {NULL, "0.0.0.0:"},          {"::1", "[::1]:"},       {"::", "[::]:"},
    };
    struct rf_error err = {0};
    struct world world;

    (void)state;
    memset(&world, 0, sizeof world);
    rig_init(&world.rig, 1, 100, 1);
    for (unsigned i = 0; i < sizeof hosts / sizeof hosts[0]; i++) {
        const struct transport_seed_options options = {.host = hosts[i].host};
        enum rf_code code = transport_tcp.seed_start(&world.rig.exporter, &options, &world.seed,
                                                     &world.endpoint, &err);
        if (code != RF_OK && hosts[i].address[0] == '[') {
            printf("%s: %s\n", hosts[i].host, err.text); /* a kernel without IPv6 */
            continue;
        }
        assert_int_equal(code, RF_OK);
        assert_string_equal(world.endpoint.transport, "tcp");
        assert_int_equal(
            strncmp(world.endpoint.address, hosts[i].address, strlen(hosts[i].address)), 0);
        assert_true(atoi(strrchr(world.endpoint.address, ':') + 1) > 0);
        transport_tcp.seed_stop(world.seed);
    }
    /* Too long for a name, so that no name server is asked. */
    char long_name[100] = "";
    memset(long_name, 'x', sizeof long_name - 1);
    const struct transport_seed_options nowhere = {.host = long_name};
    assert_int_equal(
        transport_tcp.seed_start(&world.rig.exporter, &nowhere, &world.seed, &world.endpoint, &err),
        RF_E_INVAL);
    rig_free(&world.rig);
}

static void ipv6_works_like_ipv4(void **state)
{
    const struct stream_range range = {.offset = 3, .bytes = STREAM_BYTES - 3, .count = 1};
    struct transport_open_options options = {.cancel_fd = -1};
    struct transport_session *session = NULL;
    rf_autofree uint8_t *got = malloc(STREAM_BYTES);
    struct rf_error err = {0};
    struct world world;

    (void)state;
    assert_non_null(got);
    memset(&world, 0, sizeof world);
    rig_init(&world.rig, 1, STREAM_BYTES, 1);
    const struct transport_seed_options where = {.host = "::1"};
    if (transport_tcp.seed_start(&world.rig.exporter, &where, &world.seed, &world.endpoint, &err) ==
        RF_OK) {
        memcpy(options.token, world.rig.token, CHUNK_TOKEN_BYTES);
        assert_int_equal(transport_tcp.open(&world.endpoint, &options, &session, &err), RF_OK);
        assert_int_equal(rig_read(&transport_tcp, session, 0, &range, 1, got, &err), RF_OK);
        assert_memory_equal(got, world.rig.ranks[0].bytes + 3, STREAM_BYTES - 3);
        transport_tcp.close(session);
    } else {
        printf("::1: %s\n", err.text); /* a kernel without IPv6 */
    }
    world_stop(&world);
}

static void a_port_in_use_is_said(void **state)
{
    struct transport_seed *second = NULL;
    struct rf_error err = {0};
    struct endpoint endpoint;
    struct world world;

    (void)state;
    world_start(&world);
    const struct transport_seed_options options = {
        .host = "127.0.0.1", .port = (uint16_t)atoi(strrchr(world.endpoint.address, ':') + 1)};
    assert_int_equal(
        transport_tcp.seed_start(&world.rig.exporter, &options, &second, &endpoint, &err),
        RF_E_SYS);
    assert_non_null(strstr(err.text, world.endpoint.address));
    world_stop(&world);
}

static void stopping_waits_for_nobody(void **state)
{
    struct world world;
    int fds[4];

    (void)state;
    world_start(&world);
    fds[0] = plain_socket(WAIT_MS); /* silent */
    plain_connect(&world, fds[0]);
    fds[1] = plain_open(&world); /* idle */
    fds[2] = plain_open(&world); /* stalled */
    stall_with_reads(fds[2]);
    fds[3] = plain_open(&world); /* on its way out */
    say_header(fds[3], 77, 0, 0);
    uint64_t begin_ns = clock_now_ns();
    transport_tcp.seed_stop(world.seed);
    assert_true(clock_seconds(begin_ns, clock_now_ns()) < WAIT_MS / 1e3 / 2);
    for (unsigned i = 0; i < 4; i++)
        close(fds[i]);
    world.seed = NULL;
    world_stop(&world);
}

static void goodbye_comes_between_frames_and_then_the_end(void **state)
{
    rf_autofree uint8_t *got = malloc(STREAM_BYTES);
    struct world world;

    (void)state;
    assert_non_null(got);
    world_start(&world);
    int idle = plain_open(&world);
    int stalled = plain_open(&world);
    stall_with_reads(stalled);
    uint32_t cut = transport_tcp.seed_drain(world.seed, clock_deadline_ns(50));
    assert_int_equal(hear_header(idle).type, CHUNK_GOODBYE);
    plain_hear_end(idle);
    /* What the sockets held arrives, frames are whole up to where it was cut off. */
    uint64_t whole = 0;
    for (ssize_t n = 1; n > 0;)
        whole += (uint64_t)((n = recv(stalled, got, STREAM_BYTES, 0)) > 0 ? n : 0);
    assert_true(cut >= 1 && cut <= CHUNK_MAX_IN_FLIGHT);
    assert_true(whole < (uint64_t)CHUNK_MAX_IN_FLIGHT * STREAM_BYTES);
    close(idle);
    close(stalled);
    world_stop(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(garbage_is_refused),
        cmocka_unit_test(a_wrong_token_is_refused),
        cmocka_unit_test(unknown_versions_are_refused),
        cmocka_unit_test(a_hello_that_does_not_end_is_given_up),
        cmocka_unit_test(a_hello_may_come_byte_by_byte_with_a_read_behind_it),
        cmocka_unit_test(frames_no_reader_sends_end_the_connection),
        cmocka_unit_test(a_frame_too_large_ends_the_connection),
        cmocka_unit_test(more_reads_than_allowed_end_the_connection),
        cmocka_unit_test(a_read_that_cannot_be_is_refused_alone),
        cmocka_unit_test(as_many_ranges_as_allowed_in_as_many_reads),
        cmocka_unit_test(reads_of_changing_numbers_of_ranges),
        cmocka_unit_test(a_reader_with_little_room_gets_every_byte),
        cmocka_unit_test(a_reader_that_says_no_more_is_let_go),
        cmocka_unit_test(a_reader_that_does_not_read_is_let_go),
        cmocka_unit_test(beyond_the_limit_readers_are_told_so),
        cmocka_unit_test(idle_connections_cost_the_others_nothing),
        cmocka_unit_test(silent_connections_do_not_keep_readers_out),
        cmocka_unit_test(without_descriptors_accepting_waits),
        cmocka_unit_test(a_file_that_shrinks_ends_only_its_connection),
        cmocka_unit_test(it_listens_where_it_is_told),
        cmocka_unit_test(ipv6_works_like_ipv4),
        cmocka_unit_test(a_port_in_use_is_said),
        cmocka_unit_test(stopping_waits_for_nobody),
        cmocka_unit_test(goodbye_comes_between_frames_and_then_the_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
