/* ctest: timeout=600 serial */
/* The HTTP side of a seed against clients that are slow, many, silent, or talk nonsense: none
 * may keep a good one from its answer. */

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rand.h"
#include "util/folder.h"
#include "util/web.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <cmocka.h>

enum {
    GOOD_CLIENT_MS = 2000, /* within which a good client has its answer, whatever the others do */
    FLOOD_CONNECTIONS = 3000,
};

static struct web web;

/* GET /healthz on a connection of its own; fails if it takes too long. */
static void assert_answers(const char *meanwhile)
{
    struct web_answer answer WEB_ANSWER_AUTO;
    uint64_t start_ns = clock_now_ns();

    web_get(web.port, "/healthz", &answer);
    double seconds = clock_seconds(start_ns, clock_now_ns());
    if (answer.status != 200)
        fail_msg("%s: status %d", meanwhile, answer.status);
    if (seconds * 1000 > GOOD_CLIENT_MS)
        fail_msg("%s: the answer took %.3f s", meanwhile, seconds);
}

/* The value of one sample of /metrics. */
static uint64_t metric(const char *name)
{
    struct web_answer answer WEB_ANSWER_AUTO;
    char line[128];

    web_get(web.port, "/metrics", &answer);
    assert_int_equal(answer.status, 200);
    snprintf(line, sizeof line, "\n%s ", name);
    const char *at = strstr((const char *)answer.body.data, line);
    assert_non_null(at);
    return at != NULL ? strtoull(at + strlen(line), NULL, 10) : 0;
}

static void pause_ms(int timeout_ms)
{
    poll(NULL, 0, timeout_ms);
}

/* How many descriptors the test may use, as far as the hard limit goes; both ends are in this
 * process. */
static unsigned connections_possible(unsigned wanted)
{
    struct rlimit limit;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    unsigned room = limit.rlim_cur > 8192 ? 8192 : (unsigned)limit.rlim_cur;
    if (room < wanted + 1600) {
        print_message("only %u descriptors: %u connections instead of %u\n", room, room / 3,
                      wanted);
        return room / 3;
    }
    return wanted;
}

/* ---- slow ones ---- */

/* Feeds a byte every 20 ms until the server has had enough; returns after how many milliseconds. */
static double drip(const char *text)
{
    uint64_t start_ns = clock_now_ns();
    int fd = web_connect(web.port);

    while (!web_wait_closed(fd, 20)) {
        if (*text != '\0')
            (void)!send(fd, text++, 1, MSG_NOSIGNAL);
        if (clock_seconds(start_ns, clock_now_ns()) > WEB_TIMEOUT_MS / 1000.0)
            fail_msg("still open after %d ms", WEB_TIMEOUT_MS);
    }
    close(fd);
    return clock_seconds(start_ns, clock_now_ns()) * 1000;
}

static void headers_must_be_complete_in_time(void **state)
{
    const struct web_options options = {
        .server = {.request_timeout_ms = 400, .idle_timeout_ms = 30000}};
    static char endless[8192] = "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ";

    (void)state;
    memset(endless + strlen(endless), 'a', sizeof endless - strlen(endless) - 1);
    web_start(&web, &options);
    assert_in_range(drip(endless), 380, 5000);
    assert_in_range(drip(""), 380, 5000);
    assert_in_range(drip("GET /"), 380, 5000);
    assert_in_range(metric("rfork_http_connections_timed_out_total"), 3, 3);
    assert_answers("after slow headers");
    web_stop(&web);
}

static void bodies_must_be_complete_in_time(void **state)
{
    const struct web_options options = {
        .server = {.request_timeout_ms = 400, .idle_timeout_ms = 30000}};
    const char *head = "POST /v1/lease HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{";
    const char *rest = "                                                                      "
                       "                                                                      ";

    (void)state;
    web_start(&web, &options);
    int fd = web_connect(web.port);
    uint64_t start_ns = clock_now_ns();
    assert_true(web_send(fd, head, strlen(head)));
    while (!web_wait_closed(fd, 20)) {
        if (*rest != '\0')
            (void)!send(fd, rest++, 1, MSG_NOSIGNAL);
        assert_true(clock_seconds(start_ns, clock_now_ns()) < 5);
    }
    assert_true(clock_seconds(start_ns, clock_now_ns()) > 0.38);
    close(fd);
    web_stop(&web);
}

static void idle_connections_are_closed(void **state)
{
    const struct web_options options = {
        .server = {.request_timeout_ms = 10000, .idle_timeout_ms = 400}};
    const char *ask = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    struct web_answer answer WEB_ANSWER_AUTO;

    (void)state;
    web_start(&web, &options);
    int fd = web_connect(web.port);
    assert_true(web_send(fd, ask, strlen(ask)));
    web_receive(fd, false, &answer);
    assert_int_equal(answer.status, 200);
    assert_false(web_wait_closed(fd, 200));
    assert_true(web_wait_closed(fd, 5000));
    close(fd);
    web_stop(&web);
}

/* Half of them ask for the largest answer and read nothing of it. */
static void stalled_readers_hold_no_thread(void **state)
{
    enum { STALLED = 200 };
    static const char *const asks[] = {
        "GET /v1/tensors/big?rank=0 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /v1/ranks/0.safetensors HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /v1/files/model.safetensors HTTP/1.1\r\nHost: x\r\n\r\n",
    };
    /* More than sockets buffer. */
    const struct web_options options = {.server = {.max_connections = STALLED + 50},
                                        .big_bytes = 96 << 20};
    int fds[STALLED];

    (void)state;
    web_start(&web, &options);
    for (unsigned i = 0; i < STALLED; i++) {
        fds[i] = web_connect(web.port);
        assert_true(web_send(fds[i], asks[i % 3], strlen(asks[i % 3])));
    }
    for (unsigned i = 0; i < 20; i++)
        assert_answers("stalled readers");
    /* They are not cut off for it either, while there is room. */
    struct web_answer answer WEB_ANSWER_AUTO;
    web_receive(fds[STALLED - 3], false, &answer);
    assert_true(answer.status == 200 && answer.whole);
    for (unsigned i = 0; i < STALLED; i++)
        close(fds[i]);
    assert_answers("after stalled readers");
    web_stop(&web);
}

/* A place among them is found for each good client once they have stood still for a while. */
static void stalled_readers_make_room(void **state)
{
    enum { STALLED = 40 };
    const struct web_options options = {
        .server = {.max_connections = STALLED, .idle_timeout_ms = 3000}, .big_bytes = 96 << 20};
    const char *ask = "GET /v1/tensors/big?rank=0 HTTP/1.1\r\nHost: x\r\n\r\n";
    int fds[STALLED];

    (void)state;
    web_start(&web, &options);
    for (unsigned i = 0; i < STALLED; i++) {
        fds[i] = web_connect(web.port);
        assert_true(web_send(fds[i], ask, strlen(ask)));
    }
    assert_answers("young stalled readers");
    pause_ms(700); /* a sixth of the idle time is 500 ms */
    for (unsigned i = 0; i < STALLED; i++)
        assert_answers("old stalled readers");
    assert_true(metric("rfork_http_connections_evicted_total") >= 1);
    assert_true(metric("rfork_http_connections{doing=\"answering\"}") < STALLED + 1);
    for (unsigned i = 0; i < STALLED; i++)
        close(fds[i]);
    web_stop(&web);
}

/* ---- many ---- */

static void idle_connections_do_not_lock_out_a_good_client(void **state)
{
    unsigned count = connections_possible(FLOOD_CONNECTIONS);
    const struct web_options options = {.server = {.max_connections = count / 3}};
    rf_autofree int *fds = calloc(count, sizeof *fds);

    (void)state;
    web_start(&web, &options);
    for (unsigned i = 0; i < count; i++) {
        fds[i] = web_connect(web.port);
        if (i % 500 == 250)
            assert_answers("while idle connections come in");
    }
    for (unsigned i = 0; i < 10; i++)
        assert_answers("with idle connections");
    assert_true(metric("rfork_http_connections_evicted_total") >= count - count / 3);
    assert_true(metric("rfork_http_connections{doing=\"idle\"}") <= count / 3);
    /* It is the oldest that had to go, and a young one that still works. */
    assert_true(web_wait_closed(fds[0], WEB_TIMEOUT_MS));
    const char *ask = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    struct web_answer answer WEB_ANSWER_AUTO;
    assert_true(web_send(fds[count - 1], ask, strlen(ask)));
    web_receive(fds[count - 1], false, &answer);
    assert_int_equal(answer.status, 200);
    for (unsigned i = 0; i < count; i++)
        close(fds[i]);
    assert_answers("after idle connections");
    web_stop(&web);
}

/* A table of which nothing is known yet, in the place of rank 0's. */
static struct digest_table *swap_digests(struct digest_table *table)
{
    struct digest_table *old = web.store->ranks[0].digests;

    web.store->ranks[0].digests = table;
    return old;
}

/* The server goes first: those who still wait look at the table. */
static void stop_with_old_digests(struct digest_table *old)
{
    server_stop(web.server);
    web.server = NULL;
    digest_table_destroy(swap_digests(old));
    web_stop(&web);
}

static void start_pollers(int *fds, unsigned count, unsigned wait_ms)
{
    char ask[128];

    snprintf(ask, sizeof ask, "GET /v1/digests?rank=0&wait_ms=%u HTTP/1.1\r\nHost: x\r\n\r\n",
             wait_ms);
    for (unsigned i = 0; i < count; i++) {
        fds[i] = web_connect(web.port);
        assert_true(web_send(fds[i], ask, strlen(ask)));
    }
}

static void long_polls_hold_no_thread(void **state)
{
    enum { POLLERS = 1000 };
    unsigned count = connections_possible(POLLERS);
    const struct web_options options = {.server = {.max_connections = count + 50}};
    rf_autofree int *fds = calloc(count, sizeof *fds);
    const uint8_t digest[HASH_MAX_BYTES] = {1, 2, 3};

    (void)state;
    web_start(&web, &options);
    struct digest_table *mine = digest_table_create(HASH_XXH3_128, 49);
    struct digest_table *old = swap_digests(mine);
    start_pollers(fds, count, 30000);
    uint64_t deadline_ns = clock_deadline_ns(WEB_TIMEOUT_MS);
    while (metric("rfork_http_connections{doing=\"waiting_for_news\"}") < count)
        assert_true(clock_left_ms(deadline_ns) > 0);
    for (unsigned i = 0; i < 20; i++)
        assert_answers("with long polls");
    /* News end all the waits at once. */
    uint64_t start_ns = clock_now_ns();
    assert_true(digest_table_set(mine, 0, digest));
    for (unsigned i = 0; i < count; i++) {
        struct web_answer answer WEB_ANSWER_AUTO;
        struct digest_table *got = digest_table_create(HASH_XXH3_128, 49);
        web_receive(fds[i], false, &answer);
        assert_int_equal(answer.status, 200);
        assert_int_equal(digest_table_merge(got, answer.body.data, answer.body.bytes, NULL), RF_OK);
        assert_int_equal(digest_table_known(got), 1);
        digest_table_destroy(got);
        close(fds[i]);
    }
    double seconds = clock_seconds(start_ns, clock_now_ns());
    print_message("%u long polls answered in %.3f s\n", count, seconds);
    assert_true(seconds < 10);
    stop_with_old_digests(old);
}

static void long_polls_end_when_their_time_has_come(void **state)
{
    const struct web_options options = {.max_readers = 0};
    struct web_answer answer WEB_ANSWER_AUTO;
    uint8_t digest[HASH_MAX_BYTES] = {7};

    (void)state;
    web_start(&web, &options);
    struct digest_table *mine = digest_table_create(HASH_XXH3_128, 49);
    struct digest_table *old = swap_digests(mine);
    uint64_t start_ns = clock_now_ns();
    web_get(web.port, "/v1/digests?rank=0&wait_ms=300", &answer);
    double seconds = clock_seconds(start_ns, clock_now_ns());
    assert_int_equal(answer.status, 200);
    assert_true(seconds >= 0.3 && seconds < 3);
    /* known= waits for more than that many, wherever they are; from= for that one. */
    assert_true(digest_table_set(mine, 5, digest));
    static const struct {
        const char *path;
        bool waits;
    } cases[] = {
        {"/v1/digests?rank=0&wait_ms=200", true},
        {"/v1/digests?rank=0&from=5&wait_ms=20000", false},
        {"/v1/digests?rank=0&known=0&wait_ms=20000", false},
        {"/v1/digests?rank=0&known=1&wait_ms=200", true},
        {"/v1/digests?rank=0&from=49&wait_ms=20000", false},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct web_answer one WEB_ANSWER_AUTO;
        start_ns = clock_now_ns();
        web_get(web.port, cases[i].path, &one);
        seconds = clock_seconds(start_ns, clock_now_ns());
        assert_int_equal(one.status, 200);
        if (cases[i].waits != (seconds >= 0.2) || seconds > 5)
            fail_msg("%s took %.3f s", cases[i].path, seconds);
    }
    stop_with_old_digests(old);
}

static void failure_ends_long_polls(void **state)
{
    const struct web_options options = {.max_readers = 0};
    struct web_answer answer WEB_ANSWER_AUTO;
    int fd;

    (void)state;
    web_start(&web, &options);
    struct digest_table *mine = digest_table_create(HASH_XXH3_128, 49);
    struct digest_table *old = swap_digests(mine);
    start_pollers(&fd, 1, 30000);
    while (metric("rfork_http_connections{doing=\"waiting_for_news\"}") < 1)
        continue;
    seed_fail(web.seed, RF_E_CHANGED, "gone");
    web_receive(fd, false, &answer);
    assert_int_equal(answer.status, 503);
    close(fd);
    stop_with_old_digests(old);
}

/* More polls than connections: the longest wait is answered early, whole and with what there is. */
static void too_many_long_polls_are_answered_early(void **state)
{
    enum { POLLERS = 600, ALLOWED = 100 };
    const struct web_options options = {.server = {.max_connections = ALLOWED}};
    int fds[POLLERS];
    unsigned answered = 0;

    (void)state;
    (void)connections_possible(POLLERS);
    web_start(&web, &options);
    struct digest_table *mine = digest_table_create(HASH_XXH3_128, 49);
    struct digest_table *old = swap_digests(mine);
    for (unsigned i = 0; i < POLLERS; i += 50) {
        start_pollers(fds + i, 50, 30000);
        assert_answers("with too many long polls");
    }
    for (unsigned i = 0; i < POLLERS; i++) {
        struct pollfd poll_fd = {.fd = fds[i], .events = POLLIN};
        struct web_answer answer WEB_ANSWER_AUTO;
        if (poll(&poll_fd, 1, 0) > 0) {
            web_receive(fds[i], false, &answer);
            answered += answer.status == 200 && answer.whole;
        }
        close(fds[i]);
    }
    print_message("%u of %u long polls answered early\n", answered, POLLERS);
    assert_true(answered >= POLLERS / 2);
    assert_answers("after too many long polls");
    stop_with_old_digests(old);
}

/* ---- nonsense ---- */

static void garbage_is_survived(void **state)
{
    const struct web_options options = {.server = {.request_timeout_ms = 2000}};
    struct rand_seq seq = {.state = 42};
    static const char *const starts[] = {
        "",
        "GET ",
        "GET / HTTP/1.1\r\n",
        "POST /v1/lease HTTP/1.1\r\nHost: x\r\nContent-Length: ",
        "\r\n\r\n",
        "GET /v1/files/%",
        "GET / HTTP/9.9\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    };

    (void)state;
    web_start(&web, &options);
    for (unsigned i = 0; i < 2000; i++) {
        uint8_t bytes[512];
        int fd = web_connect(web.port);
        const char *start = starts[rand_below(&seq, sizeof starts / sizeof starts[0])];
        size_t count = rand_below(&seq, sizeof bytes);
        for (size_t k = 0; k < count; k++)
            bytes[k] = (uint8_t)(rand_next(&seq) >> (i % 2 == 0 ? 8 : 57));
        if (web_send(fd, start, strlen(start)))
            web_send(fd, bytes, count);
        close(fd);
        if (i % 100 == 0)
            assert_answers("with garbage");
    }
    assert_answers("after garbage");
    web_stop(&web);
}

static int status_of(const char *text)
{
    struct web_answer answer WEB_ANSWER_AUTO;
    int fd = web_connect(web.port);

    web_send(fd, text, strlen(text));
    web_receive(fd, false, &answer);
    close(fd);
    return answer.status;
}

static void broken_requests_are_refused(void **state)
{
    const struct web_options options = {.max_readers = 0};
    static char huge[70000];

    (void)state;
    web_start(&web, &options);
    assert_int_equal(status_of("GET /healthz HTTP/1.1\r\n\r\n"), 400); /* no Host */
    assert_int_equal(status_of("GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n"), 400);
    assert_int_equal(status_of("POST /v1/lease HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
                     400);
    assert_int_equal(status_of("POST /v1/lease HTTP/1.1\r\nHost: x\r\nContent-Length: 1x\r\n\r\n"),
                     400);
    assert_int_equal(
        status_of(
            "POST /v1/lease HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n"),
        413);
    assert_int_equal(
        status_of("POST /v1/lease HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        400);
    int bytes = snprintf(huge, sizeof huge, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Large: ");
    memset(huge + bytes, 'a', 65000);
    snprintf(huge + bytes + 65000, 5, "\r\n\r\n");
    assert_int_equal(status_of(huge), 431);
    bytes = snprintf(huge, sizeof huge, "GET /healthz HTTP/1.1\r\nHost: x\r\n");
    for (unsigned i = 0; i < 5000; i++)
        bytes += snprintf(huge + bytes, sizeof huge - (size_t)bytes, "A%u: b\r\n", i);
    snprintf(huge + bytes, sizeof huge - (size_t)bytes, "\r\n");
    assert_int_equal(status_of(huge), 431);
    bytes = snprintf(huge, sizeof huge, "GET /");
    memset(huge + bytes, 'a', 65000);
    snprintf(huge + bytes + 65000, 40, " HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(status_of(huge), 414);
    assert_answers("after broken requests");
    web_stop(&web);
}

/* ---- what is served changes ---- */

static void overwrite(const char *path, off_t offset)
{
    rf_autoclose int fd = open(path, O_WRONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, "changed", 7, offset), 7);
}

static void changed_files_are_not_served(void **state)
{
    rf_autofree char *path = NULL;
    char *folder = folder_make();

    (void)state;
    path = folder_path(folder, "weights");
    const struct web_options options = {.weights_path = path};
    web_start(&web, &options);
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/v1/tensors/big?rank=0", &answer);
        assert_int_equal(answer.status, 200);
        assert_memory_equal(answer.body.data, web.memory[0] + 24, WEB_BIG_BYTES);
    }
    pause_ms(20); /* beyond the grain of a file's times */
    overwrite(path, 100);
    struct web_answer answer WEB_ANSWER_AUTO;
    web_get(web.port, "/v1/tensors/big?rank=0", &answer);
    assert_int_equal(answer.status, 503);
    assert_non_null(strstr((const char *)answer.body.data, "RF_E_CHANGED"));
    web_stop(&web);
    folder_remove(folder);
}

/* A reader that has begun never gets a complete answer out of two versions. */
static void change_during_an_answer_cuts_it_off(void **state)
{
    const char *ask = "GET /v1/files/model.safetensors HTTP/1.1\r\nHost: x\r\n\r\n";
    rf_autofree char *path = NULL;
    char *folder = folder_make();
    struct web_answer answer WEB_ANSWER_AUTO;

    (void)state;
    path = folder_path(folder, "weights");
    /* More than sockets buffer: else all of it may have gone out before the change. */
    const struct web_options options = {.weights_path = path, .big_bytes = 96 << 20};
    web_start(&web, &options);
    int fd = web_connect(web.port);
    assert_true(web_send(fd, ask, strlen(ask)));
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&poll_fd, 1, WEB_TIMEOUT_MS), 1);
    pause_ms(20);
    overwrite(path, WEB_BIG_BYTES);
    web_receive(fd, false, &answer);
    assert_int_equal(answer.status, 200);
    assert_false(answer.whole);
    close(fd);
    web_stop(&web);
    folder_remove(folder);
}

/* ---- starting and stopping ---- */

static void taken_port_is_named(void **state)
{
    const struct web_options options = {.max_readers = 0};
    struct server *second = NULL;
    struct rf_error err;

    (void)state;
    web_start(&web, &options);
    const struct server_options same = {.port = web.port};
    char want[128];
    snprintf(want, sizeof want, "port %u on 127.0.0.1 is taken: pass --port 0 for a free one",
             web.port);
    assert_int_equal(server_start(&same, web.seed, &second, &err), RF_E_SYS);
    assert_string_equal(err.text, want);
    assert_int_equal(err.sys_errno, EADDRINUSE);
    const struct server_options bad = {.host = "not a host"};
    assert_int_equal(server_start(&bad, web.seed, &second, &err), RF_E_INVAL);
    const struct server_options unknown = {.host = "256.1.1.1"};
    assert_int_equal(server_start(&unknown, web.seed, &second, &err), RF_E_INVAL);
    const struct server_options foreign = {.host = "192.0.2.1"};
    assert_int_equal(server_start(&foreign, web.seed, &second, &err), RF_E_SYS);
    assert_non_null(strstr(err.text, "192.0.2.1"));
    web_stop(&web);
}

static void hosts_show_as_they_were_given(void **state)
{
    static const struct {
        const char *host;
        const char *url;
    } cases[] = {
        {"0.0.0.0", "http://0.0.0.0:"}, {"localhost", "http://localhost:"},
        {"::1", "http://[::1]:"},       {"[::1]", "http://[::1]:"},
        {"::", "http://[::]:"},
    };

    (void)state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct web_options options = {.max_readers = 0};
        struct server *server = NULL;
        struct rf_error err;
        web_start(&web, &options);
        const struct server_options at = {.host = cases[i].host};
        enum rf_code code = server_start(&at, web.seed, &server, &err);
        if (code == RF_OK) {
            assert_int_equal(strncmp(server_url(server), cases[i].url, strlen(cases[i].url)), 0);
            assert_true(server_port(server) > 0);
        } else {
            print_message("%s: %s\n", cases[i].host, err.text); /* no IPv6 here */
            assert_true(strchr(cases[i].host, ':') != NULL);
        }
        server_stop(server);
        web_stop(&web);
    }
}

static void stop_does_not_wait_for_slow_clients(void **state)
{
    enum { EACH = 50 };
    const struct web_options options = {.max_readers = 0};
    int fds[3 * EACH];
    const char *ask = "GET /v1/tensors/big?rank=0 HTTP/1.1\r\nHost: x\r\n\r\n";

    (void)state;
    web_start(&web, &options);
    struct digest_table *mine = digest_table_create(HASH_XXH3_128, 49);
    struct digest_table *old = swap_digests(mine);
    start_pollers(fds, EACH, 30000);
    for (unsigned i = EACH; i < 3 * EACH; i++) {
        fds[i] = web_connect(web.port);
        if (i >= 2 * EACH)
            assert_true(web_send(fds[i], ask, strlen(ask)));
    }
    uint64_t deadline_ns = clock_deadline_ns(WEB_TIMEOUT_MS);
    while (metric("rfork_http_connections{doing=\"waiting_for_news\"}") < EACH)
        assert_true(clock_left_ms(deadline_ns) > 0);
    uint64_t start_ns = clock_now_ns();
    server_stop(web.server);
    double seconds = clock_seconds(start_ns, clock_now_ns());
    assert_true(seconds < 2);
    web.server = NULL;
    for (unsigned i = 0; i < 3 * EACH; i++) {
        if (i < EACH) { /* those who waited have an answer */
            struct web_answer answer WEB_ANSWER_AUTO;
            web_receive(fds[i], false, &answer);
            assert_int_equal(answer.status, 200);
        }
        assert_true(web_wait_closed(fds[i], WEB_TIMEOUT_MS));
        close(fds[i]);
    }
    stop_with_old_digests(old);
}

/* Requests, polls and connections from several threads while the server stops. */
static void *ask_until_refused(void *arg)
{
    uint16_t port = *(const uint16_t *)arg;
    const char *ask = "GET /v1/tensor-digests?rank=0&wait_ms=100 HTTP/1.1\r\nHost: x\r\n\r\n";
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(port),
                                  .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
    bool answered = true;

    while (answered) {
        struct web_answer answer WEB_ANSWER_AUTO = {.status = 0};
        rf_autoclose int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        answered = connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
                   web_send(fd, ask, strlen(ask));
        if (answered)
            web_receive(fd, false, &answer);
        answered = answered && answer.status != 0;
    }
    return NULL;
}

static void stop_under_load_is_clean(void **state)
{
    enum { THREADS = 4, ROUNDS = 10 };

    (void)state;
    for (unsigned round = 0; round < ROUNDS; round++) {
        const struct web_options options = {.max_readers = 0};
        pthread_t threads[THREADS];
        uint16_t port;
        web_start(&web, &options);
        port = web.port;
        for (unsigned i = 0; i < THREADS; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, ask_until_refused, &port), 0);
        pause_ms((int)round * 5);
        web_stop(&web);
        for (unsigned i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
    }
}

static atomic_bool nonsense_seen; /* relaxed: only waited for */

/* Holds libmicrohttpd at the place where it is about to refuse what is no HTTP. */
static void hold_refusal(void *ctx, enum log_level level, const char *line)
{
    (void)ctx;
    (void)level;
    if (strstr(line, "Error processing request") == NULL)
        return;
    atomic_store_explicit(&nonsense_seen, true, memory_order_relaxed);
    pause_ms(300);
}

/* libmicrohttpd 0.9.75 crashes when it refuses what is no HTTP after it was told to stop. */
static void stop_while_nonsense_is_refused_is_clean(void **state)
{
    const struct web_options options = {.max_readers = 0};

    (void)state;
    atomic_init(&nonsense_seen, false);
    log_set_sink(hold_refusal, NULL);
    web_start(&web, &options);
    log_set_level(LOG_DEBUG);
    int fd = web_connect(web.port);
    assert_true(web_send(fd, "GET / HTTP/1.1\r\n\r\n", 18)); /* no Host */
    uint64_t deadline_ns = clock_deadline_ns(WEB_TIMEOUT_MS);
    while (!atomic_load_explicit(&nonsense_seen, memory_order_relaxed))
        assert_true(clock_left_ms(deadline_ns) > 0);
    web_stop(&web);
    log_set_level(LOG_ERROR);
    log_set_sink(NULL, NULL);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_must_be_complete_in_time),
        cmocka_unit_test(bodies_must_be_complete_in_time),
        cmocka_unit_test(idle_connections_are_closed),
        cmocka_unit_test(stalled_readers_hold_no_thread),
        cmocka_unit_test(stalled_readers_make_room),
        cmocka_unit_test(idle_connections_do_not_lock_out_a_good_client),
        cmocka_unit_test(long_polls_hold_no_thread),
        cmocka_unit_test(long_polls_end_when_their_time_has_come),
        cmocka_unit_test(failure_ends_long_polls),
        cmocka_unit_test(too_many_long_polls_are_answered_early),
        cmocka_unit_test(garbage_is_survived),
        cmocka_unit_test(broken_requests_are_refused),
        cmocka_unit_test(changed_files_are_not_served),
        cmocka_unit_test(change_during_an_answer_cuts_it_off),
        cmocka_unit_test(taken_port_is_named),
        cmocka_unit_test(hosts_show_as_they_were_given),
        cmocka_unit_test(stop_does_not_wait_for_slow_clients),
        cmocka_unit_test(stop_under_load_is_clean),
        cmocka_unit_test(stop_while_nonsense_is_refused_is_clean),
    };
    return cmocka_run_group_tests_name("server, hostile", tests, NULL, NULL);
}
