/* `map` against peers that break every rule: a seed made by hand for the reader, readers made by
 * hand for the seed. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "util/rig.h"
#include "wire/map.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cmocka.h>

extern const struct transport transport_map;

enum { MAX_SENT_FDS = 100, WAIT_MS = 5000, MEMFD_BYTES = 1 << 16, SILENCE_MS = 150 };

/* ---- a seed made by hand ---- */

struct script {
    struct buf bytes;      /* said after the hello */
    int fds[MAX_SENT_FDS]; /* with the first of them */
    unsigned fd_count;
    int late_fd; /* with the last byte; -1: none */
    bool drip;   /* one byte at a time */
    bool hold;   /* stays when it has said all, until the reader goes; else it closes */
};

struct hostile_seed {
    struct endpoint endpoint;
    const struct script *script;
    int listen_fd;
    int stop_fd;
    pthread_t thread;
};

static void send_part(int fd, const uint8_t *data, size_t bytes, const int *fds, unsigned fd_count)
{
    char room[CMSG_SPACE(MAX_SENT_FDS * sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec iov = {.iov_len = bytes};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    memcpy(&iov.iov_base, &data, sizeof data);
    if (fd_count > 0) {
        msg.msg_control = room;
        msg.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, fd_count * sizeof(int));
    }
    (void)!sendmsg(fd, &msg, MSG_NOSIGNAL); /* the reader may have had enough */
}

static void hostile_say(const struct script *script, int fd)
{
    const struct buf *bytes = &script->bytes;
    size_t first = script->drip ? 1 : bytes->bytes - (script->late_fd >= 0);

    send_part(fd, bytes->data, first, script->fds, script->fd_count);
    for (size_t at = first; at < bytes->bytes; at++)
        send_part(fd, bytes->data + at, 1, &script->late_fd, script->late_fd >= 0);
}

static void hostile_serve(const struct hostile_seed *seed, int fd)
{
    struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = seed->stop_fd, .events = POLLIN}};
    uint8_t hello[MAP_HELLO_BYTES];

    if (recv(fd, hello, sizeof hello, MSG_WAITALL) != sizeof hello)
        return;
    if (seed->script->bytes.bytes > 0)
        hostile_say(seed->script, fd);
    while (seed->script->hold && poll(fds, 2, WAIT_MS) > 0 && fds[1].revents == 0) {
        if (recv(fd, hello, sizeof hello, 0) <= 0)
            break;
    }
}

static void *hostile_run(void *arg)
{
    struct hostile_seed *seed = arg;
    struct pollfd fds[2] = {{.fd = seed->listen_fd, .events = POLLIN},
                            {.fd = seed->stop_fd, .events = POLLIN}};

    while (poll(fds, 2, -1) > 0 && fds[1].revents == 0) {
        rf_autoclose int fd = accept4(seed->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            hostile_serve(seed, fd);
    }
    return NULL;
}

static socklen_t abstract_address(const char *name, struct sockaddr_un *ret_un)
{
    size_t bytes = strlen(name);

    *ret_un = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(ret_un->sun_path, name, bytes);
    ret_un->sun_path[0] = '\0';
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes);
}

static void hostile_begin(struct hostile_seed *seed, const struct script *script)
{
    struct sockaddr_un un;

    *seed = (struct hostile_seed){.script = script, .endpoint = {.transport = "map"}};
    snprintf(seed->endpoint.address, sizeof seed->endpoint.address, "@rfork-hostile-%d",
             (int)getpid());
    socklen_t bytes = abstract_address(seed->endpoint.address, &un);
    seed->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    seed->stop_fd = eventfd(0, EFD_CLOEXEC);
    assert_true(seed->listen_fd >= 0 && seed->stop_fd >= 0);
    assert_int_equal(bind(seed->listen_fd, (struct sockaddr *)&un, bytes), 0);
    assert_int_equal(listen(seed->listen_fd, 8), 0);
    assert_int_equal(pthread_create(&seed->thread, NULL, hostile_run, seed), 0);
}

static void hostile_end(struct hostile_seed *seed)
{
    uint64_t one = 1;

    assert_int_equal(write(seed->stop_fd, &one, sizeof one), sizeof one);
    assert_int_equal(pthread_join(seed->thread, NULL), 0);
    close(seed->stop_fd);
    close(seed->listen_fd);
}

/* ---- what it says ---- */

static int sealed_memfd(unsigned seals)
{
    int fd = memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, MEMFD_BYTES), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static int good_memfd(void)
{
    return sealed_memfd(F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
}

static void say_grant(struct script *script, uint32_t fd_count, uint32_t segment_count)
{
    buf_append(&script->bytes, "rfmap/1\n", 8);
    wire_put_u16(&script->bytes, CHUNK_VERSION);
    wire_put_u16(&script->bytes, RF_OK);
    wire_put_u32(&script->bytes, fd_count);
    wire_put_u32(&script->bytes, segment_count);
    wire_put_u32(&script->bytes, 0);
    wire_put_u64(&script->bytes, 0);
}

static void say_segment(struct script *script, uint64_t stream_offset, uint64_t bytes,
                        uint64_t fd_offset, uint32_t fd_index)
{
    wire_put_u64(&script->bytes, stream_offset);
    wire_put_u64(&script->bytes, bytes);
    wire_put_u64(&script->bytes, fd_offset);
    wire_put_u32(&script->bytes, fd_index);
    wire_put_u32(&script->bytes, 0);
}

static struct script script_new(void)
{
    return (struct script){.late_fd = -1, .hold = true};
}

/* A grant of one memfd with `segments` segments to be said. */
static struct script script_grant(uint32_t segments)
{
    struct script script = script_new();

    script.fds[script.fd_count++] = good_memfd();
    say_grant(&script, 1, segments);
    wire_put_u64(&script.bytes, MEMFD_BYTES);
    return script;
}

static void script_end(struct script *script)
{
    for (unsigned i = 0; i < script->fd_count; i++)
        close(script->fds[i]);
    if (script->late_fd >= 0)
        close(script->late_fd);
    buf_free(&script->bytes);
}

static struct transport_session *open_hostile(const struct endpoint *endpoint, uint64_t timeout_ms)
{
    struct transport_open_options options = {.timeout_ms = timeout_ms, .cancel_fd = -1};
    struct transport_session *session = NULL;
    struct rf_error err = {0};

    if (transport_map.open(endpoint, &options, &session, &err) != RF_OK)
        fail_msg("%s", err.text);
    return session;
}

/* What mapping from a seed that says so comes to: the code, an error that contains `text`, no
 * descriptor left behind, and a session that is dead unless the seed merely refused. Takes the
 * script over. */
static void expect_within(struct script *script, uint64_t timeout_ms, enum rf_code code,
                          const char *text, bool dead)
{
    unsigned fds = rig_open_fds();
    struct hostile_seed seed;
    struct transport_mapping mapping = {0};
    struct rf_error err = {0};
    struct read read = {.bytes = 1};
    uint64_t begin_ns = clock_now_ns();

    hostile_begin(&seed, script);
    struct transport_session *session = open_hostile(&seed.endpoint, timeout_ms);
    enum rf_code got = transport_map.map(session, 0, MEMFD_BYTES, &mapping, &err);
    if (got != code || (text != NULL && strstr(err.text, text) == NULL))
        fail_msg("%s (\"%s\"), expected %s (\"%s\")", rf_code_name(got), err.text,
                 rf_code_name(code), text);
    assert_true(clock_now_ns() - begin_ns < WAIT_MS * CLOCK_NS_PER_MS);
    if (dead) {
        assert_int_equal(transport_map.submit(session, &read, &err), code);
        assert_int_equal(transport_map.map(session, 1, 1, &mapping, &err), code);
    }
    transport_map.close(session);
    layout_free(&mapping.layout);
    hostile_end(&seed);
    assert_int_equal(rig_open_fds(), fds);
    script_end(script);
}

static void expect(struct script script, enum rf_code code, const char *text)
{
    expect_within(&script, 10 * 1000, code, text, code != RF_OK);
}

/* ---- the reader's tests ---- */

static void an_honest_grant_made_by_hand_is_taken(void **state)
{
    struct script script = script_grant(2);

    (void)state;
    say_segment(&script, 4096, MEMFD_BYTES - 4096, 4096, 0);
    say_segment(&script, 0, 4096, 0, 0); /* any order will do */
    expect(script, RF_OK, NULL);
    script = script_grant(1);
    say_segment(&script, 0, MEMFD_BYTES, 0, 0);
    script.drip = true;
    expect(script, RF_OK, NULL);
}

static void another_protocol_is_named(void **state)
{
    struct script script = script_new();

    (void)state;
    buf_printf(&script.bytes, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    expect(script, RF_E_PROTO, "HTTP/1.1");
}

static void silence_ends_with_the_deadline(void **state)
{
    struct script script = script_new();

    (void)state;
    expect_within(&script, SILENCE_MS, RF_E_TIMEOUT, "rank 0 within 150 ms", true);
    script = script_grant(1);
    expect_within(&script, SILENCE_MS, RF_E_TIMEOUT, "rank 0 within 150 ms", true);
}

static void death_is_unreachable_wherever_it_happens(void **state)
{
    struct script whole = script_grant(3000); /* more than one batch */

    (void)state;
    for (uint32_t i = 0; i < 3000; i++)
        say_segment(&whole, i, 1, i, 0);
    const size_t ends[] = {
        0, 1, 31, 32, 39, 40, 71, 1000, 40 + 2048 * 32, 40 + 2999 * 32, whole.bytes.bytes - 1};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        struct script script = script_new();
        script.hold = false;
        script.fds[script.fd_count++] = good_memfd();
        buf_append(&script.bytes, whole.bytes.data, ends[i]);
        expect(script, RF_E_UNREACHABLE, "the seed closed in the middle");
    }
    script_end(&whole);
}

static void descriptors_are_counted(void **state)
{
    struct script script = script_grant(1);

    (void)state;
    say_segment(&script, 0, MEMFD_BYTES, 0, 0);
    script.fds[script.fd_count++] = good_memfd(); /* one more than said */
    expect(script, RF_E_PROTO, "1 descriptors, 2 came");

    script = script_new();
    say_grant(&script, 1, 1);
    expect(script, RF_E_PROTO, "1 descriptors, 0 came");

    script = script_grant(1);
    say_segment(&script, 0, MEMFD_BYTES, 0, 0);
    script.late_fd = good_memfd();
    expect(script, RF_E_PROTO, "more in its middle");

    script = script_grant(1);
    while (script.fd_count < MAX_SENT_FDS)
        script.fds[script.fd_count++] = good_memfd();
    expect(script, RF_E_PROTO, "more than 64 descriptors");

    script = script_new();
    script.fds[script.fd_count++] = good_memfd();
    buf_append(&script.bytes, "rfmap/1\n", 8);
    wire_put_u16(&script.bytes, CHUNK_VERSION);
    wire_put_u16(&script.bytes, RF_E_DENIED);
    for (int i = 0; i < 5; i++)
        wire_put_u32(&script.bytes, 0);
    expect(script, RF_E_PROTO, "0 descriptors, 1 came");
}

static void expect_memfd(int fd, uint64_t said_bytes)
{
    struct script script = script_new();

    script.fds[script.fd_count++] = fd;
    say_grant(&script, 1, 1);
    wire_put_u64(&script.bytes, said_bytes);
    say_segment(&script, 0, MEMFD_BYTES, 0, 0);
    expect(script, RF_E_PROTO, "descriptor 0 of 1");
}

static void what_could_change_or_shrink_is_refused(void **state)
{
    int pipe_fds[2];

    (void)state;
    expect_memfd(sealed_memfd(0), MEMFD_BYTES);
    expect_memfd(sealed_memfd(F_SEAL_SHRINK | F_SEAL_GROW), MEMFD_BYTES);
    expect_memfd(sealed_memfd(F_SEAL_WRITE | F_SEAL_GROW), MEMFD_BYTES);
    expect_memfd(sealed_memfd(F_SEAL_WRITE | F_SEAL_SHRINK), MEMFD_BYTES);
    expect_memfd(good_memfd(), MEMFD_BYTES + 1);
    expect_memfd(good_memfd(), MEMFD_BYTES - 1);
    expect_memfd(good_memfd(), 0);
    expect_memfd(good_memfd(), UINT64_MAX);
    expect_memfd(open("/dev/zero", O_RDONLY | O_CLOEXEC), MEMFD_BYTES);
    expect_memfd(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), MEMFD_BYTES);
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    close(pipe_fds[1]);
    expect_memfd(pipe_fds[0], MEMFD_BYTES);
}

/* The second of two descriptors is bad: the first one is a region by then, a third one not yet. */
static void a_bad_descriptor_takes_no_other_with_it(void **state)
{
    struct script script = script_new();

    (void)state;
    script.fds[script.fd_count++] = good_memfd();
    script.fds[script.fd_count++] = sealed_memfd(0);
    script.fds[script.fd_count++] = good_memfd();
    say_grant(&script, 3, 1);
    for (int i = 0; i < 3; i++)
        wire_put_u64(&script.bytes, MEMFD_BYTES);
    expect(script, RF_E_PROTO, "descriptor 1 of 3");
}

static void expect_segments(uint64_t a_stream, uint64_t a_bytes, uint64_t a_fd, uint32_t a_index,
                            const char *text)
{
    struct script script = script_grant(2);

    say_segment(&script, 0, 4096, 0, 0);
    say_segment(&script, a_stream, a_bytes, a_fd, a_index);
    expect(script, RF_E_PROTO, text);
}

static void segments_outside_or_on_top_of_each_other_are_refused(void **state)
{
    (void)state;
    expect_segments(4097, 4096, 4096, 0, NULL);                  /* hole */
    expect_segments(4095, 4096, 4096, 0, NULL);                  /* overlap */
    expect_segments(0, 4096, 0, 0, NULL);                        /* twice */
    expect_segments(4096, MEMFD_BYTES, 1, 0, "of descriptor 0"); /* beyond its memory */
    expect_segments(4096, 1, UINT64_C(1) << 63, 0, "of descriptor 0");
    expect_segments(4096, UINT64_MAX, 0, 0, "beyond 2^64");           /* wraps in the stream */
    expect_segments(4096, UINT64_MAX - 4096, 4097, 0, "beyond 2^64"); /* wraps in the memory */
    expect_segments(4096, 0, 0, 0, "empty");
    expect_segments(4096, 4096, 0, 1, "in descriptor 1, there are 1");
    expect_segments(4096, 4096, 0, 64, NULL);
    expect_segments(4096, 4096, 0, UINT32_MAX, NULL);
}

static void counts_beyond_the_limits_are_refused_before_anything_is_made(void **state)
{
    struct script script = script_new();

    (void)state;
    script.fds[script.fd_count++] = good_memfd();
    say_grant(&script, 1, MAP_MAX_SEGMENTS + 1);
    expect(script, RF_E_PROTO, "segments, allowed are");
    script = script_new();
    say_grant(&script, MAP_MAX_FDS + 1, 1);
    expect(script, RF_E_PROTO, "descriptors");
    script = script_new();
    say_grant(&script, UINT32_MAX, UINT32_MAX);
    expect(script, RF_E_PROTO, "descriptors");
    script = script_grant(MAP_MAX_SEGMENTS); /* allowed, but none comes */
    script.hold = false;
    expect(script, RF_E_UNREACHABLE, NULL);
}

static void say_refusal(struct script *script, uint16_t status, uint32_t text_bytes)
{
    buf_append(&script->bytes, "rfmap/1\n", 8);
    wire_put_u16(&script->bytes, CHUNK_VERSION);
    wire_put_u16(&script->bytes, status);
    wire_put_u64(&script->bytes, 0);
    wire_put_u32(&script->bytes, text_bytes);
    wire_put_u64(&script->bytes, 0);
}

static void refusals_are_told_and_cannot_deface(void **state)
{
    struct script script = script_new();

    (void)state;
    say_refusal(&script, RF_E_CHANGED, 14);
    buf_append(&script.bytes, "not\x1b[31m\nred\xff\xff", 14);
    expect_within(&script, 10 * 1000, RF_E_CHANGED, "refused: not?[31m?red??", false);
    script = script_new();
    say_refusal(&script, RF_E_NOMEM, 0);
    expect_within(&script, 10 * 1000, RF_E_NOMEM, "does not say why", false);
    script = script_new();
    say_refusal(&script, RF_E_NOMEM, CHUNK_MAX_ERROR_BYTES + 1);
    expect(script, RF_E_PROTO, "text of 513 bytes");
    script = script_new();
    say_refusal(&script, 4711, 0);
    expect(script, RF_E_PROTO, "unknown status 4711");
}

static void *cancel_later(void *arg)
{
    struct transport_open_options *options = arg;
    uint64_t one = 1;

    (void)poll(NULL, 0,
               30); /* so that the reader is mostly waiting by then; either way it must end */
    atomic_store((atomic_bool *)(uintptr_t)options->cancel, true);
    if (options->cancel_fd >= 0)
        (void)!write(options->cancel_fd, &one, sizeof one);
    return NULL;
}

static void waiting_ends_when_cancelled(bool with_fd)
{
    const struct stream_range first = {.bytes = 1, .count = 1};
    struct script script = script_new();
    struct hostile_seed seed;
    atomic_bool cancel = false;
    struct transport_open_options options = {.timeout_ms = 60 * 1000,
                                             .cancel = &cancel,
                                             .cancel_fd = with_fd ? eventfd(0, EFD_CLOEXEC) : -1};
    struct transport_session *session = NULL;
    struct rf_error err = {0};
    struct rig_sink sink;
    uint8_t got = 0;
    struct read read = {.ranges = &first, .range_count = 1, .bytes = 1, .sink = &sink.sink};
    struct read *done = NULL;
    pthread_t thread;

    rig_sink_init(&sink, &got, 1);
    hostile_begin(&seed, &script);
    assert_int_equal(transport_map.open(&seed.endpoint, &options, &session, &err), RF_OK);
    assert_int_equal(transport_map.submit(session, &read, &err), RF_OK);
    /* A deadline passes without anything being lost. */
    assert_int_equal(transport_map.progress(session, clock_deadline_ns(1), &done, &err),
                     RF_E_TIMEOUT);
    assert_int_equal(pthread_create(&thread, NULL, cancel_later, &options), 0);
    uint64_t begin_ns = clock_now_ns();
    assert_int_equal(transport_map.progress(session, clock_deadline_ns(60 * 1000), &done, &err),
                     RF_OK);
    assert_true(clock_now_ns() - begin_ns < 230 * CLOCK_NS_PER_MS);
    assert_ptr_equal(done, &read);
    assert_int_equal(read.code, RF_E_CANCELLED);
    assert_int_equal(transport_map.progress(session, clock_deadline_ns(1000), &done, &err),
                     RF_E_CANCELLED);
    assert_int_equal(pthread_join(thread, NULL), 0);
    transport_map.close(session);
    hostile_end(&seed);
    if (with_fd)
        close(options.cancel_fd);
}

static void waiting_for_a_silent_seed_can_be_cancelled(void **state)
{
    (void)state;
    waiting_ends_when_cancelled(true);
    waiting_ends_when_cancelled(false);
}

/* ---- readers made by hand ---- */

struct fixture {
    struct rig rig;
    struct transport_seed *seed;
    struct endpoint endpoint;
};

static void fixture_begin(struct fixture *fixture, const struct transport_seed_options *options)
{
    struct rf_error err = {0};

    rig_init(&fixture->rig, 1, MEMFD_BYTES, 2);
    if (transport_map.seed_start(&fixture->rig.exporter, options, &fixture->seed,
                                 &fixture->endpoint, &err) != RF_OK)
        fail_msg("%s", err.text);
}

static void fixture_end(struct fixture *fixture)
{
    transport_map.seed_stop(fixture->seed);
    assert_true(rig_wait_leases(&fixture->rig, 0));
    rig_free(&fixture->rig);
}

/* The seed still serves who behaves. */
static void assert_serves(struct fixture *fixture)
{
    struct transport_open_options options = {.timeout_ms = WAIT_MS, .cancel_fd = -1};
    struct transport_session *session = NULL;
    struct transport_mapping mapping = {0};
    struct rf_error err = {0};

    memcpy(options.token, fixture->rig.token, sizeof options.token);
    if (transport_map.open(&fixture->endpoint, &options, &session, &err) != RF_OK ||
        transport_map.map(session, 0, MEMFD_BYTES, &mapping, &err) != RF_OK)
        fail_msg("%s", err.text);
    layout_free(&mapping.layout);
    transport_map.close(session);
}

static int raw_connect(const struct fixture *fixture)
{
    struct sockaddr_un un;
    socklen_t bytes = abstract_address(fixture->endpoint.address, &un);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&un, bytes), 0);
    return fd;
}

/* Receives until the seed has closed or `bytes` are there; returns how many. */
static size_t raw_receive(int fd, void *to, size_t bytes)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    size_t done = 0;

    while (done < bytes) {
        assert_int_equal(poll(&wait, 1, WAIT_MS), 1);
        ssize_t got = recv(fd, (uint8_t *)to + done, bytes - done, 0);
        if (got <= 0)
            break;
        done += (size_t)got;
    }
    return done;
}

static void raw_hello(const struct fixture *fixture, uint8_t out[MAP_HELLO_BYTES])
{
    struct map_hello hello = {.hello = {.version_min = 1, .version_max = 1}};

    memcpy(hello.hello.token, fixture->rig.token, CHUNK_TOKEN_BYTES);
    map_hello_encode(&hello, out);
}

/* Sends bytes, then expects a refusal with that code and the end of the connection. */
static void expect_refusal(const struct fixture *fixture, const void *data, size_t bytes,
                           enum rf_code code)
{
    rf_autoclose int fd = raw_connect(fixture);
    uint8_t answer[MAP_GRANT_BYTES + CHUNK_MAX_ERROR_BYTES];
    struct map_grant grant;
    struct rf_error err = {0};

    assert_int_equal(send(fd, data, bytes, MSG_NOSIGNAL), bytes);
    size_t got = raw_receive(fd, answer, sizeof answer);
    assert_true(got >= MAP_GRANT_BYTES);
    if (map_grant_decode(answer, MAP_GRANT_BYTES, &grant, &err) != RF_OK)
        fail_msg("%s", err.text);
    assert_int_equal(grant.status, code);
    assert_int_equal(got, MAP_GRANT_BYTES + grant.text_bytes);
}

static void garbage_is_refused_in_words(void **state)
{
    struct fixture fixture;
    uint8_t hello[2 * MAP_HELLO_BYTES];

    (void)state;
    fixture_begin(&fixture, &(struct transport_seed_options){0});
    memset(hello, 0xff, sizeof hello);
    expect_refusal(&fixture, hello, MAP_HELLO_BYTES, RF_E_PROTO);
    expect_refusal(&fixture, "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8\r\n\r\n",
                   MAP_HELLO_BYTES, RF_E_PROTO);
    raw_hello(&fixture, hello);
    hello[8] = 7; /* versions 7 to 7 */
    hello[10] = 7;
    expect_refusal(&fixture, hello, MAP_HELLO_BYTES, RF_E_PROTO);
    raw_hello(&fixture, hello);
    hello[20] ^= 1;
    expect_refusal(&fixture, hello, MAP_HELLO_BYTES, RF_E_DENIED);
    assert_int_equal(rig_leases_taken(&fixture.rig), 0);
    assert_serves(&fixture);
    fixture_end(&fixture);
}

static void a_hello_byte_by_byte_is_answered(void **state)
{
    struct fixture fixture;
    uint8_t hello[MAP_HELLO_BYTES];
    uint8_t answer[MAP_GRANT_BYTES];
    struct map_grant grant;
    struct rf_error err = {0};

    (void)state;
    fixture_begin(&fixture, &(struct transport_seed_options){0});
    int fd = raw_connect(&fixture);
    raw_hello(&fixture, hello);
    for (size_t i = 0; i < sizeof hello; i++)
        assert_int_equal(send(fd, hello + i, 1, MSG_NOSIGNAL), 1);
    assert_int_equal(raw_receive(fd, answer, sizeof answer), sizeof answer);
    assert_int_equal(map_grant_decode(answer, sizeof answer, &grant, &err), RF_OK);
    assert_int_equal(grant.status, RF_OK);
    assert_int_equal(grant.fd_count, 2);
    assert_true(rig_wait_leases(&fixture.rig, 1));
    close(fd);
    assert_true(rig_wait_leases(&fixture.rig, 0));
    fixture_end(&fixture);
}

static void half_a_hello_is_not_waited_for(void **state)
{
    struct fixture fixture;
    uint8_t hello[MAP_HELLO_BYTES];
    uint8_t answer = 0;

    (void)state;
    fixture_begin(&fixture, &(struct transport_seed_options){.idle_timeout_ms = 50});
    rf_autoclose int fd = raw_connect(&fixture);
    raw_hello(&fixture, hello);
    assert_int_equal(send(fd, hello, MAP_HELLO_BYTES - 1, MSG_NOSIGNAL), MAP_HELLO_BYTES - 1);
    assert_int_equal(raw_receive(fd, &answer, 1), 0);
    assert_int_equal(rig_leases_taken(&fixture.rig), 0);
    assert_serves(&fixture);
    fixture_end(&fixture);
}

static void another_token_on_the_same_connection_is_denied(void **state)
{
    struct fixture fixture;
    uint8_t hello[2 * MAP_HELLO_BYTES];
    uint8_t answer[4096];

    (void)state;
    fixture_begin(&fixture, &(struct transport_seed_options){0});
    rf_autoclose int fd = raw_connect(&fixture);
    raw_hello(&fixture, hello);
    raw_hello(&fixture, hello + MAP_HELLO_BYTES);
    hello[MAP_HELLO_BYTES + 16] ^= 1;
    assert_int_equal(send(fd, hello, sizeof hello, MSG_NOSIGNAL), sizeof hello);
    assert_true(raw_receive(fd, answer, sizeof answer) <
                sizeof answer); /* both answers, then the end */
    assert_true(rig_wait_leases(&fixture.rig, 0));
    assert_int_equal(rig_leases_taken(&fixture.rig), 1);
    assert_serves(&fixture);
    fixture_end(&fixture);
}

static void thousands_of_connections_are_survived(void **state)
{
    struct fixture fixture;
    uint8_t hello[MAP_HELLO_BYTES];
    unsigned fds = rig_open_fds();
    int silent[100];

    (void)state;
    fixture_begin(&fixture, &(struct transport_seed_options){0});
    raw_hello(&fixture, hello);
    for (int i = 0; i < 100; i++)
        silent[i] = raw_connect(&fixture);
    for (int i = 0; i < 3000; i++) {
        int fd = raw_connect(&fixture);
        size_t bytes =
            (size_t)(i % (MAP_HELLO_BYTES + 1)); /* the whole one, and gone before the grant, too */
        assert_int_equal(send(fd, hello, bytes, MSG_NOSIGNAL), bytes);
        close(fd);
    }
    assert_serves(&fixture);
    for (int i = 0; i < 100; i++)
        close(silent[i]);
    assert_true(rig_wait_leases(&fixture.rig, 0));
    fixture_end(&fixture);
    assert_int_equal(rig_open_fds(), fds);
}

static void who_reads_no_grants_stops_nobody(void **state)
{
    struct fixture fixture;
    uint8_t hello[MAP_HELLO_BYTES];
    unsigned fds = rig_open_fds();

    (void)state;
    fixture_begin(&fixture, &(struct transport_seed_options){.idle_timeout_ms = 200});
    int fd = raw_connect(&fixture);
    struct pollfd gone = {.fd = fd};
    raw_hello(&fixture, hello);
    /* Until the seed, its own sends blocked, reads no more. */
    for (int i = 0; i < 100 * 1000; i++) {
        if (send(fd, hello, sizeof hello, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            break;
    }
    assert_serves(&fixture);
    assert_int_equal(poll(&gone, 1, WAIT_MS), 1); /* the seed has had enough of it */
    close(fd);
    assert_true(rig_wait_leases(&fixture.rig, 0));
    fixture_end(&fixture);
    assert_int_equal(rig_open_fds(), fds);
}

static void descriptors_from_a_reader_are_not_kept(void **state)
{
    struct fixture fixture;
    uint8_t hello[MAP_HELLO_BYTES];
    uint8_t answer[MAP_GRANT_BYTES];

    (void)state;
    fixture_begin(&fixture, &(struct transport_seed_options){0});
    int sent = good_memfd();
    unsigned fds = rig_open_fds();
    int fd = raw_connect(&fixture);
    raw_hello(&fixture, hello);
    send_part(fd, hello, sizeof hello, &sent, 1);
    assert_int_equal(raw_receive(fd, answer, sizeof answer), sizeof answer);
    assert_int_equal(rig_open_fds(), fds + 2); /* the two ends of the connection */
    close(fd);
    close(sent);
    fixture_end(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_honest_grant_made_by_hand_is_taken),
        cmocka_unit_test(another_protocol_is_named),
        cmocka_unit_test(silence_ends_with_the_deadline),
        cmocka_unit_test(death_is_unreachable_wherever_it_happens),
        cmocka_unit_test(descriptors_are_counted),
        cmocka_unit_test(what_could_change_or_shrink_is_refused),
        cmocka_unit_test(a_bad_descriptor_takes_no_other_with_it),
        cmocka_unit_test(segments_outside_or_on_top_of_each_other_are_refused),
        cmocka_unit_test(counts_beyond_the_limits_are_refused_before_anything_is_made),
        cmocka_unit_test(refusals_are_told_and_cannot_deface),
        cmocka_unit_test(waiting_for_a_silent_seed_can_be_cancelled),
        cmocka_unit_test(garbage_is_refused_in_words),
        cmocka_unit_test(a_hello_byte_by_byte_is_answered),
        cmocka_unit_test(half_a_hello_is_not_waited_for),
        cmocka_unit_test(another_token_on_the_same_connection_is_denied),
        cmocka_unit_test(thousands_of_connections_are_survived),
        cmocka_unit_test(who_reads_no_grants_stops_nobody),
        cmocka_unit_test(descriptors_from_a_reader_are_not_kept),
    };

    return cmocka_run_group_tests_name("map_hostile", tests, NULL, NULL);
}
