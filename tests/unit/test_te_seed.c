/* A te seed as engines of any release meet it, and as those do who mean harm: plain sockets, so that
 * nothing of our own reader stands between. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "transport/net/socket.h"
#include "transport/read_digest.h"
#include "transport/te/te.h"
#include "util/plain.h"
#include "util/rig.h"

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

enum {
    WAIT_MS = 10 * 1000,
    IDLE_MS = 200,
    RANKS = 3,
    STREAM_BYTES = 1000 * 1000 + 1,
    CROWD = 100,
};

struct world {
    struct rig rig;
    struct transport_seed *seed;
    struct endpoint endpoint;
    struct net_address shake;
    struct net_address data;
};

/* ---- the seed ---- */

static int dial(const struct net_address *address)
{
    int fd = plain_socket(WAIT_MS);

    assert_int_equal(connect(fd, &address->any, address->bytes), 0);
    return fd;
}

static void hear_end(int fd)
{
    plain_hear_end(fd);
    close(fd);
}

/* Asks by a whole frame, type 255 for the old form; the answer's JSON is the caller's. */
static struct buf ask(const struct world *world, unsigned type, const char *json)
{
    uint8_t head[TE_FRAME_HEAD_BYTES];
    struct buf question BUF_AUTO = {0};
    struct buf answer = {0};
    uint64_t bytes = 0;
    int fd = dial(&world->shake);

    te_frame_encode((enum te_type)type, json, strlen(json), &question);
    plain_say(fd, question.data, question.bytes);
    plain_hear(fd, head, sizeof head);
    assert_int_equal(te_frame_length(head, TE_DEFAULT_FRAME_BYTES, &bytes, NULL), RF_OK);
    rf_autofree uint8_t *body = malloc(bytes);
    assert_non_null(body);
    plain_hear(fd, body, bytes);
    hear_end(fd);
    size_t typed = type != TE_OLD_FORM;
    if (typed)
        assert_int_equal(body[0], type);
    buf_append(&answer, body + typed, bytes - typed);
    buf_append(&answer, "", 1);
    assert_false(answer.failed);
    return answer;
}

static void ask_descriptor(const struct world *world, struct te_descriptor *ret_descriptor)
{
    struct buf json BUF_AUTO = ask(world, TE_METADATA, "{}\n");
    struct rf_error err = {0};

    if (te_descriptor_decode(json.data, json.bytes - 1, ret_descriptor, &err) != RF_OK)
        fail_msg("descriptor: %s", err.text);
}

static void world_serve(struct world *world, const struct transport_seed_options *options)
{
    struct te_descriptor descriptor;
    struct rf_error err = {0};

    if (te_seed_start(&world->rig.exporter, options, &world->seed, &world->endpoint, &err) != RF_OK)
        fail_msg("seed_start: %s", err.text);
    assert_int_equal(net_address_parse(world->endpoint.address, &world->shake, NULL), RF_OK);
    if (net_address_is_any(&world->shake))
        world->shake.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ask_descriptor(world, &descriptor);
    world->data = world->shake;
    world->data.v4.sin_port = htons(descriptor.data_port);
    te_descriptor_free(&descriptor);
}

static void world_start_with(struct world *world, const struct transport_seed_options *options)
{
    memset(world, 0, sizeof *world);
    rig_init(&world->rig, RANKS, STREAM_BYTES, 2);
    world_serve(world, options);
}

static void world_start(struct world *world)
{
    world_start_with(world, &(struct transport_seed_options){.host = "127.0.0.1"});
}

static void world_stop(struct world *world)
{
    te_seed_stop(world->seed);
    assert_true(rig_wait_leases(&world->rig, 0));
    rig_free(&world->rig);
}

/* ---- data ---- */

static void say_request(int fd, unsigned op, uint64_t address, uint64_t bytes, unsigned algorithm)
{
    uint8_t raw[TE_HDR_BYTES];

    te_hdr_encode(
        &(struct te_hdr){
            .bytes = bytes, .address = address, .op = (uint8_t)op, .algorithm = (uint8_t)algorithm},
        raw);
    plain_say(fd, raw, sizeof raw);
}

static uint32_t hear_status(int fd)
{
    uint8_t raw[TE_STATUS_BYTES];
    uint32_t status = 0;

    plain_hear(fd, raw, sizeof raw);
    assert_int_equal(te_status_decode(raw, &status, NULL), RF_OK);
    return status;
}

static void hear_bytes(const struct world *world, int fd, uint32_t rank, uint64_t offset,
                       uint64_t bytes)
{
    rf_autofree uint8_t *got = malloc(bytes);

    assert_non_null(got);
    plain_hear(fd, got, bytes);
    assert_memory_equal(got, world->rig.ranks[rank].bytes + offset, bytes);
}

/* A read of framing 1 or 2, from asking to the last byte. */
static void read_one(const struct world *world, int fd, int version, uint32_t rank, uint64_t offset,
                     uint64_t bytes)
{
    say_request(fd, version == 2 ? TE_OP_READ | TE_OP_V2 : TE_OP_READ,
                te_seed_base(world->seed, rank) + offset, bytes, 0);
    if (version == 2)
        assert_int_equal(hear_status(fd), TE_STATUS_OK);
    hear_bytes(world, fd, rank, offset, bytes);
}

static void expect_serving(const struct world *world)
{
    int fd = dial(&world->data);

    read_one(world, fd, 2, 1, 17, 1000);
    close(fd);
}

static void say_token(const struct world *world, int fd, int flip)
{
    uint8_t token[CHUNK_TOKEN_BYTES];

    memcpy(token, world->rig.token, sizeof token);
    token[0] ^= (uint8_t)flip;
    say_request(fd, TE_OP_TOKEN, 0, sizeof token, 0);
    plain_say(fd, token, sizeof token);
}

static int dial_with_token(const struct world *world)
{
    int fd = dial(&world->data);

    say_token(world, fd, 0);
    assert_int_equal(hear_status(fd), TE_STATUS_OK);
    return fd;
}

/* ---- handshakes ---- */

static void the_descriptor_says_where_and_what(void **state)
{
    struct te_descriptor descriptor;
    struct world world;
    uint64_t end = 0;

    (void)state;
    world_start(&world);
    ask_descriptor(&world, &descriptor);
    assert_string_equal(descriptor.name, world.endpoint.address);
    assert_string_equal(descriptor.protocol, "tcp");
    assert_string_equal(descriptor.data_host, "127.0.0.1");
    assert_true(descriptor.data_port != 0);
    assert_int_equal(descriptor.version, 2);
    assert_int_equal(descriptor.rfork, 1);
    assert_true(descriptor.buffer_count == RANKS);
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        const struct te_buffer *buffer = &descriptor.buffers[rank];
        char name[16];
        snprintf(name, sizeof name, "rank:%u", rank);
        assert_string_equal(buffer->name, name);
        assert_true(buffer->address == te_seed_base(world.seed, rank));
        assert_true(buffer->address >= UINT64_C(1) << 44 && buffer->address < UINT64_C(1) << 46);
        assert_true(buffer->address % (2 << 20) == 0);
        assert_true(buffer->address >= end + (1 << 30));
        assert_true(buffer->bytes == STREAM_BYTES);
        end = buffer->address + buffer->bytes;
    }
    assert_true(te_seed_base(world.seed, RANKS) == 0);
    te_descriptor_free(&descriptor);
    world_stop(&world);
}

static void addresses_are_others_at_each_start(void **state)
{
    struct world one;
    struct world other;

    (void)state;
    world_start(&one);
    world_start(&other);
    assert_true(te_seed_base(one.seed, 0) != te_seed_base(other.seed, 0));
    world_stop(&one);
    world_stop(&other);
}

static void a_rank_without_bytes_has_no_address(void **state)
{
    struct te_descriptor descriptor;
    struct world world;

    (void)state;
    memset(&world, 0, sizeof world);
    rig_init(&world.rig, 2, 0, 1);
    world_serve(&world, &(struct transport_seed_options){.host = "127.0.0.1"});
    assert_true(te_seed_base(world.seed, 0) == 0);
    ask_descriptor(&world, &descriptor);
    assert_true(descriptor.buffer_count == 0);
    te_descriptor_free(&descriptor);
    world_stop(&world);
}

static void a_wildcard_names_the_address_that_was_dialled(void **state)
{
    static const char *const hosts[] = {"0.0.0.0", "::"};
    struct te_descriptor descriptor;
    struct world world;
    char name[64];

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        const struct transport_seed_options options = {.host = hosts[i]};
        struct rf_error err = {0};
        memset(&world, 0, sizeof world);
        rig_init(&world.rig, 1, 100, 1);
        if (te_seed_start(&world.rig.exporter, &options, &world.seed, &world.endpoint, &err) !=
            RF_OK) {
            assert_int_equal(i, 1);
            printf("%s: %s\n", hosts[i], err.text); /* a kernel without IPv6 */
            rig_free(&world.rig);
            continue;
        }
        int port = atoi(strrchr(world.endpoint.address, ':') + 1);
        snprintf(name, sizeof name, "127.0.0.7:%d", port);
        assert_int_equal(net_address_parse(name, &world.shake, NULL), RF_OK);
        ask_descriptor(&world, &descriptor);
        assert_string_equal(descriptor.name, name);
        assert_string_equal(descriptor.data_host, "127.0.0.7");
        te_descriptor_free(&descriptor);
        world_stop(&world);
    }
}

static void each_type_has_its_answer_in_both_forms(void **state)
{
    static const struct {
        unsigned type;
        const char *question;
        const char *part;
    } types[] = {
        {TE_CONNECTION, "{\"local_nic_path\":\"a@b\"}", "\"qp_num\":[]"},
        {TE_OLD_FORM, "{\"local_nic_path\":\"a@b\"}", "\"qp_num\":[]"},
        {TE_NOTIFY, "{\"name\":\"a\",\"notify_msg\":\"b\"}", "\"notify_msg\":\"success\""},
        {TE_PROBE, "{}", "\"status\":\"success\""},
        {TE_METADATA, "no JSON at all", "\"protocol\":\"tcp\""},
        {TE_METADATA, "", "\"protocol\":\"tcp\""},
    };
    struct world world;

    (void)state;
    world_start(&world);
    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++) {
        struct buf answer BUF_AUTO = ask(&world, types[i].type, types[i].question);
        if (strstr((const char *)answer.data, types[i].part) == NULL)
            fail_msg("type %u: %s", types[i].type, (const char *)answer.data);
    }
    world_stop(&world);
}

static void a_question_may_come_byte_by_byte_and_be_long(void **state)
{
    rf_autofree char *spaces = malloc(3 << 20);
    struct buf question BUF_AUTO = {0};
    struct world world;
    uint8_t head[TE_FRAME_HEAD_BYTES + 1];

    (void)state;
    assert_non_null(spaces);
    world_start(&world);
    int fd = dial(&world.shake);
    te_frame_encode(TE_PROBE, "{}", 2, &question);
    for (size_t i = 0; i < question.bytes; i++)
        plain_say(fd, question.data + i, 1);
    plain_hear(fd, head, sizeof head);
    assert_int_equal(head[TE_FRAME_HEAD_BYTES], TE_PROBE);
    close(fd);

    /* An engine with very many buffers. */
    memset(spaces, ' ', 3 << 20);
    spaces[(3 << 20) - 1] = '\0';
    struct buf answer BUF_AUTO = ask(&world, TE_METADATA, spaces);
    assert_non_null(strstr((const char *)answer.data, "\"buffers\""));
    world_stop(&world);
}

static void frames_of_no_length_are_closed_without_an_answer(void **state)
{
    static const uint8_t lengths[][TE_FRAME_HEAD_BYTES] = {
        {0},
        {1, 0, 0, 8}, /* 128 MiB and a byte */
        {255, 255, 255, 255, 255, 255, 255, 255},
        {'G', 'E', 'T', ' ', '/', ' ', 'H', 'T'},
    };
    struct world world;

    (void)state;
    world_start(&world);
    for (unsigned i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        int fd = dial(&world.shake);
        plain_say(fd, lengths[i], sizeof lengths[i]);
        hear_end(fd);
    }
    expect_serving(&world);
    world_stop(&world);
}

static void half_and_endless_questions_are_given_up(void **state)
{
    static const uint8_t half[] = {100, 0, 0, 0, 0, 0, 0, 0, TE_METADATA, '{'};
    struct world world;

    (void)state;
    world_start_with(
        &world, &(struct transport_seed_options){.host = "127.0.0.1", .idle_timeout_ms = IDLE_MS});
    for (size_t bytes = 1; bytes <= sizeof half; bytes += 3) {
        int fd = dial(&world.shake);
        plain_say(fd, half, bytes);
        hear_end(fd);
    }
    /* A byte now and then does not prolong it. */
    int fd = dial(&world.shake);
    uint64_t begin_ns = clock_now_ns();
    struct pollfd gone = {.fd = fd, .events = POLLIN};
    uint8_t byte = 1;
    while (poll(&gone, 1, IDLE_MS / 10) == 0) {
        assert_true(clock_seconds(begin_ns, clock_now_ns()) < WAIT_MS / 1e3 / 2);
        (void)send(fd, &byte, 1, MSG_NOSIGNAL);
    }
    assert_true(recv(fd, &byte, 1, 0) <= 0);
    close(fd);
    world_stop(&world);
}

static void silent_connections_delay_nobody(void **state)
{
    struct world world;
    int silent[CROWD];

    (void)state;
    world_start(&world);
    for (unsigned i = 0; i < CROWD; i++) {
        silent[i] = dial(&world.shake);
        if (i % 2 != 0)
            plain_say(silent[i], "\x10", 1);
    }
    for (unsigned i = 0; i < 10 * CROWD; i++) {
        struct buf answer BUF_AUTO = ask(&world, TE_PROBE, "{}");
        assert_true(answer.bytes > 1);
    }
    for (unsigned i = 0; i < CROWD; i++)
        close(silent[i]);
    world_stop(&world);
}

static void many_ask_at_once(void **state)
{
    struct buf question BUF_AUTO = {0};
    struct world world;
    int fds[4 * CROWD];

    (void)state;
    te_frame_encode(TE_METADATA, "{}", 2, &question);
    world_start(&world);
    for (unsigned i = 0; i < 4 * CROWD; i++)
        fds[i] = dial(&world.shake);
    for (unsigned i = 4 * CROWD; i > 0; i--) /* the last to come is the first to ask */
        plain_say(fds[i - 1], question.data, question.bytes);
    for (unsigned i = 0; i < 4 * CROWD; i++) {
        uint8_t head[TE_FRAME_HEAD_BYTES + 1];
        plain_hear(fds[i], head, sizeof head);
        assert_int_equal(head[TE_FRAME_HEAD_BYTES], TE_METADATA);
        close(fds[i]);
    }
    world_stop(&world);
}

/* ---- reads ---- */

static void both_framings_bring_the_same_bytes(void **state)
{
    static const uint64_t sizes[] = {1, 24, 511, 4096, 65536, 65537, 300000, STREAM_BYTES};
    struct world world;

    (void)state;
    world_start(&world);
    int fd = dial(&world.data);
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (uint32_t rank = 0; rank < RANKS; rank++) {
            read_one(&world, fd, 1, rank, 0, sizes[i]);
            read_one(&world, fd, 2, rank, STREAM_BYTES - sizes[i], sizes[i]);
        }
    }
    close(fd);
    world_stop(&world);
}

static void requests_may_be_pipelined_and_split_anywhere(void **state)
{
    enum { MANY = 300 };
    struct buf words BUF_AUTO = {0};
    uint8_t raw[TE_HDR_BYTES];
    struct world world;

    (void)state;
    world_start(&world);
    for (unsigned i = 0; i < MANY; i++) {
        te_hdr_encode(&(struct te_hdr){.bytes = 1 + i * 37,
                                       .address = te_seed_base(world.seed, i % RANKS) + i,
                                       .op = i % 2 != 0 ? TE_OP_READ | TE_OP_V2 : TE_OP_READ},
                      raw);
        buf_append(&words, raw, sizeof raw);
    }
    assert_false(words.failed);
    int fd = dial(&world.data);
    for (size_t at = 0; at < words.bytes; at += 1001)
        plain_say(fd, words.data + at, words.bytes - at < 1001 ? words.bytes - at : 1001);
    for (unsigned i = 0; i < MANY; i++) {
        if (i % 2 != 0)
            assert_int_equal(hear_status(fd), TE_STATUS_OK);
        hear_bytes(&world, fd, i % RANKS, i, 1 + i * 37);
    }
    close(fd);
    world_stop(&world);
}

static void a_connection_for_each_read_shares_one_lease(void **state)
{
    struct world world;

    (void)state;
    world_start_with(&world, &(struct transport_seed_options){.host = "127.0.0.1", .threads = 1});
    for (unsigned i = 0; i < 10 * CROWD; i++)
        expect_serving(&world);
    assert_true(rig_wait_bytes(&world.rig, UINT64_C(10) * CROWD * 1000));
    assert_true(rig_leases_taken(&world.rig) <= 10); /* a slow machine may give it back meanwhile */
    world_stop(&world);
}

static void an_idle_connection_holds_no_lease(void **state)
{
    struct world world;

    (void)state;
    world_start(&world);
    int fd = dial(&world.data);
    read_one(&world, fd, 2, 0, 0, 100);
    assert_true(rig_wait_leases(&world.rig, 0));
    read_one(&world, fd, 2, 0, 0, 100);
    close(fd);
    world_stop(&world);
}

static void addresses_outside_one_rank_are_refused(void **state)
{
    struct world world;

    (void)state;
    world_start(&world);
    const uint64_t base = te_seed_base(world.seed, 1);
    const uint64_t next = te_seed_base(world.seed, 2);
    const struct {
        uint64_t address;
        uint64_t bytes;
    } bad[] = {
        {base, 0},
        {base, STREAM_BYTES + 1},
        {base + STREAM_BYTES, 1},
        {base + STREAM_BYTES - 1, 2},
        {base - 1, 1},
        {base - 1, 2},
        {base, next - base + 1},
        {base, UINT64_MAX},
        {base + 1, UINT64_MAX - base},
        {UINT64_MAX, 2},
        {0, 1},
        {(uintptr_t)world.rig.ranks[0].bytes, 16}, /* where the bytes really are */
    };
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int fd = dial(&world.data);
        read_one(&world, fd, 2, 1, 0, 100);
        say_request(fd, TE_OP_READ | TE_OP_V2, bad[i].address, bad[i].bytes, 0);
        assert_int_equal(hear_status(fd), TE_STATUS_REJECTED);
        hear_end(fd);
        fd = dial(&world.data);
        say_request(fd, TE_OP_READ, bad[i].address, bad[i].bytes, 0);
        hear_end(fd);
    }
    world_stop(&world);
}

static void what_is_served_is_not_written_to(void **state)
{
    rf_autofree uint8_t *body = calloc(1, STREAM_BYTES);
    struct world world;

    (void)state;
    assert_non_null(body);
    world_start(&world);
    for (int v2 = 0; v2 < 2; v2++) {
        int fd = dial(&world.data);
        say_request(fd, v2 ? TE_OP_WRITE | TE_OP_V2 : TE_OP_WRITE, te_seed_base(world.seed, 0),
                    STREAM_BYTES, 0);
        plain_say(fd, body, STREAM_BYTES); /* all of it is taken, so that the answer arrives */
        if (v2)
            assert_int_equal(hear_status(fd), TE_STATUS_REJECTED);
        hear_end(fd);
    }
    int fd = dial(&world.data);
    read_one(&world, fd, 2, 0, 0, STREAM_BYTES);
    close(fd);
    world_stop(&world);
}

static void unknown_opcodes_are_refused(void **state)
{
    static const uint8_t ops[] = {2, 3, 0x7f, 0x82, 0xbf, 0xc3, 0xff};
    struct world world;

    (void)state;
    world_start(&world);
    for (unsigned i = 0; i < sizeof ops; i++) {
        int fd = dial(&world.data);
        say_request(fd, ops[i], te_seed_base(world.seed, 0), 10, 0);
        if ((ops[i] & TE_OP_V2) != 0)
            assert_int_equal(hear_status(fd), TE_STATUS_REJECTED);
        hear_end(fd);
    }
    expect_serving(&world);
    world_stop(&world);
}

static void a_lease_that_is_over_ends_reads(void **state)
{
    struct world world;

    (void)state;
    world_start(&world);
    int ours = dial_with_token(&world);
    atomic_store_explicit(&world.rig.check_code, RF_E_CHANGED, memory_order_relaxed);
    say_request(ours, TE_OP_READ | TE_OP_V2, te_seed_base(world.seed, 0), 10, 0);
    assert_int_equal(hear_status(ours), TE_STATUS_CODE + RF_E_CHANGED);
    int fd = dial(&world.data);
    say_request(fd, TE_OP_READ | TE_OP_V2, te_seed_base(world.seed, 0), 10, 0);
    assert_int_equal(hear_status(fd), TE_STATUS_REJECTED);
    hear_end(fd);
    atomic_store_explicit(&world.rig.check_code, RF_OK, memory_order_relaxed);
    read_one(&world, ours, 2, 0, 0, 10);
    close(ours);
    world_stop(&world);
}

/* ---- our additions ---- */

static void a_token_takes_a_lease_and_makes_refusals_harmless(void **state)
{
    struct world world;

    (void)state;
    world_start(&world);
    int fd = dial_with_token(&world);
    assert_true(rig_wait_leases(&world.rig, 1));
    say_request(fd, TE_OP_READ | TE_OP_V2, 1, 1, 0);
    assert_int_equal(hear_status(fd), TE_STATUS_CODE + RF_E_INVAL);
    read_one(&world, fd, 2, 2, 5, 500);
    say_token(&world, fd, 0); /* once is enough */
    assert_int_equal(hear_status(fd), TE_STATUS_CODE + RF_E_PROTO);
    hear_end(fd);

    fd = dial(&world.data);
    say_token(&world, fd, 1);
    assert_int_equal(hear_status(fd), TE_STATUS_CODE + RF_E_DENIED);
    hear_end(fd);
    fd = dial(&world.data);
    say_request(fd, TE_OP_TOKEN, 0, CHUNK_TOKEN_BYTES - 1, 0);
    assert_int_equal(hear_status(fd), TE_STATUS_REJECTED);
    hear_end(fd);
    world_stop(&world);
}

static void say_digest(int fd, uint32_t rank, const struct stream_range *ranges, uint32_t count,
                       enum hash_algorithm algorithm)
{
    struct buf body BUF_AUTO = {0};

    chunk_read_encode(rank, ranges, count, &body);
    assert_false(body.failed);
    say_request(fd, TE_OP_DIGEST, 0, body.bytes, algorithm);
    plain_say(fd, body.data, body.bytes);
}

static void hashed_reads_have_the_digest_of_their_ranges(void **state)
{
    const struct stream_range ranges[] = {
        {.offset = 10, .bytes = 100, .stride = 1000, .count = 3},
        {.offset = 5000, .bytes = 70000, .count = 1},
        {.offset = 75000, .bytes = 8, .stride = 8, .count = 4},
    };
    struct world world;

    (void)state;
    world_start(&world);
    int fd = dial_with_token(&world);
    for (int algorithm = HASH_XXH3_128; algorithm <= HASH_SHA256; algorithm++) {
        struct read_digest digest = {.on = false};
        uint8_t wanted[HASH_MAX_BYTES];
        uint8_t got[HASH_MAX_BYTES];
        assert_int_equal(read_digest_begin(&digest, (enum hash_algorithm)algorithm, NULL), RF_OK);
        for (unsigned i = 0; i < 3; i++) {
            for (uint64_t k = 0; k < ranges[i].count; k++) {
                uint64_t offset = ranges[i].offset + k * ranges[i].stride;
                say_request(fd, TE_OP_HASHED, te_seed_base(world.seed, 1) + offset, ranges[i].bytes,
                            (unsigned)algorithm);
                assert_int_equal(hear_status(fd), TE_STATUS_OK);
                hear_bytes(&world, fd, 1, offset, ranges[i].bytes);
                read_digest_update(&digest, world.rig.ranks[1].bytes + offset, ranges[i].bytes);
            }
        }
        say_digest(fd, 1, ranges, 3, (enum hash_algorithm)algorithm);
        assert_int_equal(hear_status(fd), TE_STATUS_OK);
        plain_hear(fd, got, hash_bytes((enum hash_algorithm)algorithm));
        read_digest_final(&digest, 1, ranges, 3, wanted);
        read_digest_free(&digest);
        assert_memory_equal(got, wanted, hash_bytes((enum hash_algorithm)algorithm));
    }
    close(fd);
    world_stop(&world);
}

static void digests_of_other_ranges_than_were_read_are_refused(void **state)
{
    const struct stream_range read = {.offset = 10, .bytes = 100, .count = 1};
    const struct {
        uint32_t rank;
        struct stream_range range;
    } other[] = {
        {0, {.offset = 11, .bytes = 100, .count = 1}},
        {0, {.offset = 10, .bytes = 99, .count = 1}},
        {0, {.offset = 10, .bytes = 50, .stride = 60, .count = 2}},
        {0, {.offset = 10, .bytes = 1, .stride = 2, .count = 100}},
        {0, {.offset = 10, .bytes = 1, .stride = 1, .count = UINT64_MAX / 2}},
        {1, read},
        {RANKS, read},
    };
    struct world world;
    uint8_t got[HASH_MAX_BYTES];

    (void)state;
    world_start(&world);
    int fd = dial_with_token(&world);
    say_digest(fd, 0, &read, 1, HASH_XXH3_128); /* of nothing */
    assert_int_equal(hear_status(fd), TE_STATUS_CODE + RF_E_INVAL);
    for (unsigned i = 0; i < sizeof other / sizeof other[0]; i++) {
        say_request(fd, TE_OP_HASHED, te_seed_base(world.seed, 0) + 10, 100, HASH_XXH3_128);
        assert_int_equal(hear_status(fd), TE_STATUS_OK);
        hear_bytes(&world, fd, 0, 10, 100);
        say_digest(fd, other[i].rank, &other[i].range, 1, HASH_XXH3_128);
        assert_int_equal(hear_status(fd), TE_STATUS_CODE + RF_E_INVAL);
    }
    /* After one that was refused there is no digest of the rest; the next begins anew. */
    say_request(fd, TE_OP_HASHED, te_seed_base(world.seed, 0) + 10, 100, HASH_XXH3_128);
    assert_int_equal(hear_status(fd), TE_STATUS_OK);
    hear_bytes(&world, fd, 0, 10, 100);
    say_request(fd, TE_OP_HASHED, te_seed_base(world.seed, 1), 100, HASH_XXH3_128);
    assert_int_equal(hear_status(fd), TE_STATUS_CODE + RF_E_INVAL);
    say_digest(fd, 0, &read, 1, HASH_XXH3_128);
    assert_int_equal(hear_status(fd), TE_STATUS_CODE + RF_E_INVAL);
    say_request(fd, TE_OP_HASHED, te_seed_base(world.seed, 0) + 10, 100, 77);
    assert_int_equal(hear_status(fd), TE_STATUS_CODE + RF_E_INVAL);
    say_digest(fd, 0, &read, 1, 77);
    assert_int_equal(hear_status(fd), TE_STATUS_CODE + RF_E_INVAL);
    say_request(fd, TE_OP_HASHED, te_seed_base(world.seed, 0) + 10, 100, HASH_XXH3_128);
    assert_int_equal(hear_status(fd), TE_STATUS_OK);
    hear_bytes(&world, fd, 0, 10, 100);
    say_digest(fd, 0, &read, 1, HASH_XXH3_128);
    assert_int_equal(hear_status(fd), TE_STATUS_OK);
    plain_hear(fd, got, hash_bytes(HASH_XXH3_128));
    close(fd);

    /* And none for who has no token. */
    fd = dial(&world.data);
    say_request(fd, TE_OP_HASHED, te_seed_base(world.seed, 0) + 10, 100, HASH_XXH3_128);
    assert_int_equal(hear_status(fd), TE_STATUS_REJECTED);
    hear_end(fd);
    world_stop(&world);
}

/* ---- starting and stopping ---- */

static void beyond_the_limit_readers_wait(void **state)
{
    struct world world;
    int fds[8];

    (void)state;
    world_start_with(&world,
                     &(struct transport_seed_options){.host = "127.0.0.1", .max_connections = 2});
    for (unsigned i = 0; i < 8; i++)
        fds[i] = dial(&world.data);
    for (unsigned i = 0; i < 8; i++) {
        read_one(&world, fds[i], 2, 0, i, 1000);
        close(fds[i]);
    }
    world_stop(&world);
}

static void who_says_nothing_makes_room_when_there_is_none(void **state)
{
    struct world world;

    (void)state;
    world_start_with(&world,
                     &(struct transport_seed_options){.host = "127.0.0.1", .max_connections = 2});
    int talker = dial(&world.data);
    read_one(&world, talker, 2, 0, 0, 1000);
    int silent = dial(&world.data);
    /* It does not wait as long as one that is silent may be while there is room. */
    int late = plain_socket(WAIT_MS / 2);
    assert_int_equal(connect(late, &world.data.any, world.data.bytes), 0);
    read_one(&world, late, 2, 0, 1, 1000);
    hear_end(silent);
    read_one(&world, talker, 2, 0, 2, 1000);
    close(late);
    close(talker);
    world_stop(&world);
}

static void a_chosen_port_is_the_handshakes_and_the_next_the_datas(void **state)
{
    struct te_descriptor descriptor;
    struct rf_error err = {0};
    struct world world;

    (void)state;
    memset(&world, 0, sizeof world);
    rig_init(&world.rig, 1, 100, 1);
    struct transport_seed_options options = {.host = "127.0.0.1"};
    for (unsigned port = 22000; world.seed == NULL && port < 22100; port += 2) {
        options.port = (uint16_t)port;
        (void)te_seed_start(&world.rig.exporter, &options, &world.seed, &world.endpoint, &err);
    }
    if (world.seed == NULL)
        fail_msg("none of fifty ports: %s", err.text);
    assert_int_equal(net_address_parse(world.endpoint.address, &world.shake, NULL), RF_OK);
    assert_int_equal(ntohs(world.shake.v4.sin_port), options.port);
    ask_descriptor(&world, &descriptor);
    assert_int_equal(descriptor.data_port, options.port + 1);
    te_descriptor_free(&descriptor);

    struct transport_seed *second = NULL;
    struct endpoint endpoint;
    unsigned fds = rig_open_fds();
    assert_int_equal(te_seed_start(&world.rig.exporter, &options, &second, &endpoint, &err),
                     RF_E_SYS);
    assert_non_null(strstr(err.text, "--te-port"));
    options.port--; /* its data plane would be where the first one's handshakes are */
    assert_int_equal(te_seed_start(&world.rig.exporter, &options, &second, &endpoint, &err),
                     RF_E_SYS);
    assert_non_null(strstr(err.text, "one behind --te-port"));
    options.port = UINT16_MAX;
    assert_int_equal(te_seed_start(&world.rig.exporter, &options, &second, &endpoint, &err),
                     RF_E_INVAL);
    assert_true(rig_open_fds() <= fds); /* the seed may close the question's connection meanwhile */
    world_stop(&world);
}

/* Many answers, and the first of them has begun. */
static void stall(const struct world *world, int fd)
{
    for (unsigned i = 0; i < 60; i++)
        say_request(fd, TE_OP_READ | TE_OP_V2, te_seed_base(world->seed, 0),
                    world->rig.ranks[0].stream_bytes, 0);
    struct pollfd answer = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&answer, 1, WAIT_MS), 1);
}

static void draining_ends_idle_connections_and_cuts_stalled_ones(void **state)
{
    rf_autofree uint8_t *got = malloc(STREAM_BYTES);
    struct world world;

    (void)state;
    assert_non_null(got);
    memset(&world, 0, sizeof world);
    /* What a connection has taken in already is still answered: more than any sockets hold. */
    rig_init(&world.rig, 1, 10 * STREAM_BYTES, 1);
    world_serve(&world, &(struct transport_seed_options){.host = "127.0.0.1"});
    int idle = dial(&world.data);
    read_one(&world, idle, 2, 0, 0, 10);
    int silent = dial(&world.shake);
    int stalled = dial(&world.data);
    stall(&world, stalled);
    uint32_t cut = te_seed_drain(world.seed, clock_deadline_ns(50));
    assert_true(cut >= 1 && cut <= 60);
    hear_end(idle);
    hear_end(silent);
    while (recv(stalled, got, STREAM_BYTES, 0) > 0)
        ;
    close(stalled);
    int late = plain_socket(WAIT_MS);
    assert_int_equal(connect(late, &world.shake.any, world.shake.bytes), -1);
    close(late);
    world_stop(&world);
}

static void stopping_waits_for_nobody(void **state)
{
    struct world world;
    int fds[4];

    (void)state;
    unsigned before = rig_open_fds();
    world_start(&world);
    fds[0] = dial(&world.shake);
    fds[1] = dial(&world.data);
    fds[2] = dial(&world.data);
    stall(&world, fds[2]);
    fds[3] = dial_with_token(&world);
    uint64_t begin_ns = clock_now_ns();
    te_seed_stop(world.seed);
    world.seed = NULL;
    assert_true(clock_seconds(begin_ns, clock_now_ns()) < WAIT_MS / 1e3 / 2);
    for (unsigned i = 0; i < 4; i++)
        close(fds[i]);
    world_stop(&world);
    assert_int_equal(rig_open_fds(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_descriptor_says_where_and_what),
        cmocka_unit_test(addresses_are_others_at_each_start),
        cmocka_unit_test(a_rank_without_bytes_has_no_address),
        cmocka_unit_test(a_wildcard_names_the_address_that_was_dialled),
        cmocka_unit_test(each_type_has_its_answer_in_both_forms),
        cmocka_unit_test(a_question_may_come_byte_by_byte_and_be_long),
        cmocka_unit_test(frames_of_no_length_are_closed_without_an_answer),
        cmocka_unit_test(half_and_endless_questions_are_given_up),
        cmocka_unit_test(silent_connections_delay_nobody),
        cmocka_unit_test(many_ask_at_once),
        cmocka_unit_test(both_framings_bring_the_same_bytes),
        cmocka_unit_test(requests_may_be_pipelined_and_split_anywhere),
        cmocka_unit_test(a_connection_for_each_read_shares_one_lease),
        cmocka_unit_test(an_idle_connection_holds_no_lease),
        cmocka_unit_test(addresses_outside_one_rank_are_refused),
        cmocka_unit_test(what_is_served_is_not_written_to),
        cmocka_unit_test(unknown_opcodes_are_refused),
        cmocka_unit_test(a_lease_that_is_over_ends_reads),
        cmocka_unit_test(a_token_takes_a_lease_and_makes_refusals_harmless),
        cmocka_unit_test(hashed_reads_have_the_digest_of_their_ranges),
        cmocka_unit_test(digests_of_other_ranges_than_were_read_are_refused),
        cmocka_unit_test(beyond_the_limit_readers_wait),
        cmocka_unit_test(who_says_nothing_makes_room_when_there_is_none),
        cmocka_unit_test(a_chosen_port_is_the_handshakes_and_the_next_the_datas),
        cmocka_unit_test(draining_ends_idle_connections_and_cuts_stalled_ones),
        cmocka_unit_test(stopping_waits_for_nobody),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
