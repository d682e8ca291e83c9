/* The client of a seed's HTTP side: against a real seed, and against servers that are none, or
 * lie. */
/* ctest: timeout=300 serial */
#include "base/cleanup.h"
#include "base/clock.h"
#include "control/client.h"
#include "control/remote.h"
#include "control/seed_url.h"
#include "util/web.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

static struct web web;

static struct client *client_of(uint16_t port, uint64_t timeout_ms, const atomic_bool *cancel)
{
    const struct client_options options = {.timeout_ms = timeout_ms, .cancel = cancel};
    struct client *client = NULL;
    struct rf_error err;
    char url[64];

    snprintf(url, sizeof url, "http://127.0.0.1:%u", port);
    assert_int_equal(client_create(url, &options, &client, &err), RF_OK);
    assert_string_equal(client_url(client), url);
    return client;
}

static void assert_says(const struct rf_error *err, enum rf_code code, const char *words)
{
    if (err->code != code || strstr(err->text, words) == NULL)
        fail_msg("%s: \"%s\"; expected %s and \"%s\"", rf_code_name(err->code), err->text,
                 rf_code_name(code), words);
}

/* ---- URLs ---- */

static void urls_are_taken_apart(void **state)
{
    static const struct {
        const char *text;
        const char *host;
        uint16_t port;
        const char *url;
    } good[] = {
        {"http://host:1", "host", 1, "http://host:1"},
        {"host:30000", "host", 30000, "http://host:30000"},
        {"HTTP://10.0.0.1:65535/", "10.0.0.1", 65535, "http://10.0.0.1:65535"},
        {"[::1]:80", "::1", 80, "http://[::1]:80"},
        {"http://[fe80::1%25eth0]:80", "fe80::1%eth0", 80, "http://[fe80::1%25eth0]:80"},
        {"http://[fe80::1%eth0]:80", "fe80::1%eth0", 80, "http://[fe80::1%25eth0]:80"},
        {"a_b-c.example.org:9", "a_b-c.example.org", 9, "http://a_b-c.example.org:9"},
    };

    (void)state;
    for (unsigned i = 0; i < sizeof good / sizeof good[0]; i++) {
        struct seed_url url;
        struct rf_error err = {.text = ""};
        if (seed_url_parse(good[i].text, &url, &err) != RF_OK)
            fail_msg("%s: %s", good[i].text, err.text);
        assert_string_equal(url.host, good[i].host);
        assert_int_equal(url.port, good[i].port);
        assert_string_equal(url.text, good[i].url);
    }
}

static void other_urls_are_refused(void **state)
{
    static const char *const bad[][2] = {
        {"https://host:1", "https is not supported"},
        {"ftp://host:1", "not an http URL"},
        {"http://host", "port is missing"},
        {"host", "port is missing"},
        {"", "not a seed's URL"},
        {"http://", "not a seed's URL"},
        {"http://:80", "neither a name nor an address"},
        {"http://host:0", "not a port"},
        {"http://host:65536", "not a port"},
        {"http://host:+1", "not a port"},
        {"http://host:", "not a port"},
        {"http://host:1/v1", "path is not allowed"},
        {"http://host:1//", "path is not allowed"},
        {"http://host:1?x", "path is not allowed"},
        {"http://user:pass@host:1", "user name"},
        {"http://::1:80", "brackets"},
        {"http://[::1:80", "brackets"},
        {"http://[::1]x:80", "brackets"},
        {"http://[::g]:80", "neither"},
        {"http://[127.0.0.1]:80", "neither"},
        {"http://256.0.0.1:80", "neither"},
        {"http://1.2.3:80", "neither"},
        {"http://ho st:80", "neither"},
        {"http://-x:80", "neither"},
        {"http://h\xc3\xb6st:80", "neither"},
        {"http://a\nb:80", "neither"},
    };

    (void)state;
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct seed_url url;
        struct rf_error err;
        if (seed_url_parse(bad[i][0], &url, &err) == RF_OK)
            fail_msg("%s was accepted", bad[i][0]);
        assert_says(&err, RF_E_INVAL, bad[i][1]);
    }
}

static void wildcards_become_the_host_that_was_dialled(void **state)
{
    static const struct {
        const char *address;
        const char *host;
        const char *want;
    } cases[] = {
        {"0.0.0.0:5", "10.1.2.3", "10.1.2.3:5"}, {"[::]:5", "10.1.2.3", "10.1.2.3:5"},
        {"0.0.0.0:5", "fe80::1", "[fe80::1]:5"}, {"10.0.0.1:5", "h", "10.0.0.1:5"},
        {"@abstract", "h", "@abstract"},         {"/run/x.sock", "h", "/run/x.sock"},
    };

    (void)state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[64];
        assert_true(seed_url_replace_wildcard(cases[i].address, cases[i].host, out, sizeof out));
        assert_string_equal(out, cases[i].want);
    }
    char small[8];
    assert_false(seed_url_replace_wildcard("0.0.0.0:5", "10.1.2.3", small, sizeof small));
}

/* ---- a real seed ---- */

static int start_web(void **state)
{
    const struct web_options options = {.max_readers = 4};

    (void)state;
    web_start(&web, &options);
    return 0;
}

static int stop_web(void **state)
{
    (void)state;
    web_stop(&web);
    return 0;
}

static void instance_is_read(void **state)
{
    struct client *client = client_of(web.port, 0, NULL);
    struct instance_info info;
    struct rf_error err;

    (void)state;
    assert_int_equal(client_instance(client, &info, &err), RF_OK);
    assert_string_equal(info.instance_id, seed_instance_id(web.seed));
    assert_string_equal(info.version, rf_version());
    assert_string_equal(info.state, "ready");
    assert_string_equal(info.model, "tiny <b>&\"model\"");
    assert_string_equal(info.stage, "checkpoint");
    assert_int_equal(strncmp(info.root_digest, "xxh3-128:", 9), 0);
    assert_int_equal(info.bytes, web.stream_bytes[0] + web.stream_bytes[1]);
    assert_int_equal(info.tensor_count, 7);
    assert_int_equal(info.rank_count, 2);
    assert_int_equal(info.digest_chunks_known, info.digest_chunks_total);
    assert_int_equal(info.endpoint_count, 1);
    assert_string_equal(info.endpoints[0].transport, "null");
    instance_info_free(&info);
    client_destroy(client);
}

static void manifest_is_read_and_checked(void **state)
{
    struct client *client = client_of(web.port, 0, NULL);
    struct manifest *manifest = NULL;
    struct rf_error err;

    (void)state;
    assert_int_equal(client_manifest(client, &manifest, &err), RF_OK);
    assert_memory_equal(manifest->id, web.store->manifest->id, 16);
    manifest_unref(manifest);
    client_destroy(client);
}

/* Whoever binds destinations, or waits for another seed, may take longer than a lease lasts. */
static void a_lease_is_kept_until_it_is_used(void **state)
{
    const struct web_options web_options = {.max_readers = 1, .lease_ttl_ms = 1000};
    const struct remote_options options = {.transport = "auto", .verify = true, .cancel_fd = -1};
    uint64_t deadline_ns = clock_deadline_ns(WEB_TIMEOUT_MS);
    struct seed_stats stats = {.leases_expired = 0};
    struct remote *remote = NULL;
    struct remote_result result;
    struct store *store = NULL;
    struct rf_error err;
    struct web other;
    char url[64];

    (void)state;
    web_start(&other, &web_options);
    snprintf(url, sizeof url, "http://127.0.0.1:%u", other.port);
    assert_int_equal(remote_open(url, &options, 0, &remote, &err), RF_OK);
    while (stats.leases_expired == 0 && clock_left_ms(deadline_ns) > 0) {
        poll(NULL, 0, 5);
        seed_stats(other.seed, &stats);
    }
    assert_int_equal(stats.leases_expired, 1);
    if (remote_fork_memory(remote, REMOTE_COPY, false, &store, &result, &err) != RF_OK)
        fail_msg("%s", err.text);
    assert_true(result.verified);
    store_destroy(store);
    remote_close(remote);
    seed_stats(other.seed, &stats);
    assert_int_equal(stats.leases_now, 0);
    web_stop(&other);
}

static void leases_are_opened_and_closed(void **state)
{
    struct client *client = client_of(web.port, 0, NULL);
    struct seed_stats stats;
    struct lease lease;
    struct rf_error err;

    (void)state;
    assert_int_equal(client_lease_open(client, &lease, &err), RF_OK);
    assert_int_equal(lease.ttl_ms, 20000);
    assert_int_equal(strlen(lease.manifest_id), 32);
    assert_int_equal(lease.endpoint_count, 1);
    assert_int_equal(seed_lease_renew(web.seed, lease.token, &err), RF_OK);
    client_lease_close(client, &lease);
    seed_stats(web.seed, &stats);
    assert_int_equal(stats.leases_now, 0);
    client_lease_close(client, &lease); /* unknown by now: nobody minds */
    struct lease four[4];
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(client_lease_open(client, &four[i], &err), RF_OK);
    assert_int_equal(client_lease_open(client, &lease, &err), RF_E_NOMEM);
    assert_says(&err, RF_E_NOMEM, ": 429: this seed has 4 readers");
    for (unsigned i = 0; i < 4; i++)
        client_lease_close(client, &four[i]);
    client_destroy(client);
}

static void digests_are_merged(void **state)
{
    struct client *client = client_of(web.port, 0, NULL);
    struct digest_table *table = digest_table_create(HASH_XXH3_128, 49);
    struct digest_table *tensors = NULL;
    struct rf_error err;

    (void)state;
    assert_int_equal(client_digests(client, 0, 1000, table, &err), RF_OK);
    assert_int_equal(digest_table_known(table), 49);
    assert_int_equal(client_digests(client, 0, 1000, table, &err), RF_OK); /* asks nobody */
    assert_int_equal(client_tensor_digests(client, 0, 5, HASH_XXH3_128,
                                           clock_deadline_ns(WEB_TIMEOUT_MS), &tensors, &err),
                     RF_OK);
    assert_int_equal(digest_table_known(tensors), 5);
    digest_table_destroy(tensors);
    digest_table_destroy(table);
    /* Another geometry is refused, and a rank that does not exist is the seed's to refuse. */
    table = digest_table_create(HASH_XXH3_128, 48);
    assert_int_equal(client_digests(client, 0, 0, table, &err), RF_E_PROTO);
    assert_int_equal(client_digests(client, 5, 0, table, &err), RF_E_INVAL);
    assert_says(&err, RF_E_INVAL, ": 400: rank 5: there are 2");
    digest_table_destroy(table);
    client_destroy(client);
}

static void files_are_read_in_part(void **state)
{
    struct client *client = client_of(web.port, 0, NULL);
    struct buf out BUF_AUTO = {0};
    struct rf_error err;

    (void)state;
    buf_append(&out, "kept", 4);
    assert_int_equal(client_file(client, "config.json", 0, 27, &out, &err), RF_OK);
    assert_int_equal(out.bytes, 31);
    assert_memory_equal(out.data, "kept{\"architectures\":[\"Tiny\"]}\n", 31);
    assert_int_equal(client_file(client, "config.json", 2, 4, &out, &err), RF_OK);
    assert_memory_equal(out.data + 31, "arch", 4);
    assert_int_equal(client_file(client, "sub/vocab list.txt", 4, 3, &out, &err), RF_OK);
    assert_memory_equal(out.data + 35, "two", 3);
    assert_int_equal(client_file(client, "empty.txt", 0, 0, &out, &err), RF_OK);
    assert_int_equal(out.bytes, 38);
    assert_int_equal(client_file(client, "config.json", 20, 100, &out, &err), RF_E_PROTO);
    assert_int_equal(client_file(client, "config.json", 100, 1, &out, &err), RF_E_INVAL);
    assert_says(&err, RF_E_INVAL, ": 416: ");
    assert_int_equal(client_file(client, "nope", 0, 1, &out, &err), RF_E_INVAL);
    assert_says(&err, RF_E_INVAL, "no file nope: there are model.safetensors config.json");
    assert_int_equal(client_file(client, "config.json", UINT64_MAX, 2, &out, &err), RF_E_INVAL);
    assert_int_equal(out.bytes, 38); /* errors leave nothing behind */
    client_destroy(client);
}

static void any_path_can_be_read(void **state)
{
    struct client *client = client_of(web.port, 0, NULL);
    struct buf out BUF_AUTO = {0};
    struct rf_error err;

    (void)state;
    assert_int_equal(client_get(client, "/healthz", 1000, &out, &err), RF_OK);
    assert_memory_equal(out.data, "{\"status\":\"ready\"}\n", 19);
    assert_int_equal(client_get(client, "/metrics", 100, &out, &err), RF_E_PROTO);
    assert_says(&err, RF_E_PROTO, "larger than 100 bytes");
    assert_int_equal(client_get(client, "/nowhere", 1000, &out, &err), RF_E_INVAL);
    assert_int_equal(client_get(client, "healthz", 1000, &out, &err), RF_E_INVAL);
    assert_int_equal(client_get(client, "/a b", 1000, &out, &err), RF_E_INVAL);
    assert_int_equal(client_get(client, "/a\r\nX: y", 1000, &out, &err), RF_E_INVAL);
    assert_int_equal(out.bytes, 19);
    client_destroy(client);
}

static uint64_t accepted(struct client *client)
{
    struct buf out BUF_AUTO = {0};
    struct rf_error err;

    assert_int_equal(client_get(client, "/metrics", 1 << 20, &out, &err), RF_OK);
    const char *at = strstr((const char *)out.data, "\nrfork_http_connections_accepted_total ");
    assert_non_null(at);
    return strtoull(strchr(at + 1, ' '), NULL, 10);
}

static void one_connection_is_kept(void **state)
{
    struct client *client = client_of(web.port, 0, NULL);
    struct instance_info info;
    struct rf_error err;
    uint64_t before = accepted(client);

    (void)state;
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(client_instance(client, &info, &err), RF_OK);
        instance_info_free(&info);
    }
    assert_int_equal(accepted(client), before);
    client_destroy(client);
}

static void proxies_of_the_environment_are_not_asked(void **state)
{
    struct instance_info info;
    struct rf_error err;

    (void)state;
    setenv("http_proxy", "http://127.0.0.1:1", 1);
    setenv("ALL_PROXY", "http://127.0.0.1:1", 1);
    struct client *client = client_of(web.port, 0, NULL);
    enum rf_code code = client_instance(client, &info, &err);
    unsetenv("http_proxy");
    unsetenv("ALL_PROXY");
    assert_int_equal(code, RF_OK);
    instance_info_free(&info);
    client_destroy(client);
}

/* The seed closes what has been idle; the next call makes a new connection by itself. */
static void closed_connections_are_replaced(void **state)
{
    const struct web_options options = {
        .server = {.request_timeout_ms = 200, .idle_timeout_ms = 200}};
    struct instance_info info;
    struct rf_error err;

    (void)state;
    web_start(&web, &options);
    struct client *client = client_of(web.port, 0, NULL);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(client_instance(client, &info, &err), RF_OK);
        instance_info_free(&info);
        poll(NULL, 0, 500);
    }
    client_destroy(client);
    web_stop(&web);
}

static void loading_seed_says_so(void **state)
{
    const struct web_options options = {.unpublished = true};
    struct manifest *manifest = NULL;
    struct instance_info info;
    struct lease lease;
    struct rf_error err;

    (void)state;
    web_start(&web, &options);
    struct client *client = client_of(web.port, 0, NULL);
    assert_int_equal(client_manifest(client, &manifest, &err), RF_E_UNREACHABLE);
    assert_says(&err, RF_E_UNREACHABLE, ": 503: loading: ");
    assert_int_equal(client_lease_open(client, &lease, &err), RF_E_UNREACHABLE);
    assert_int_equal(client_instance(client, &info, &err), RF_OK);
    assert_string_equal(info.state, "loading");
    assert_string_equal(info.root_digest, "");
    assert_string_equal(info.manifest_id, "");
    instance_info_free(&info);
    seed_fail(web.seed, RF_E_FORMAT, "a header is broken");
    assert_int_equal(client_manifest(client, &manifest, &err), RF_E_CHANGED);
    assert_says(&err, RF_E_CHANGED, ": 503: failed: a header is broken");
    client_destroy(client);
    web_stop(&web);
}

static void digests_are_waited_for(void **state)
{
    const struct web_options options = {.max_readers = 0};
    const uint8_t digest[HASH_MAX_BYTES] = {9};
    struct digest_table *got = digest_table_create(HASH_XXH3_128, 49);
    struct rf_error err;

    (void)state;
    web_start(&web, &options);
    struct digest_table *mine = digest_table_create(HASH_XXH3_128, 49);
    struct digest_table *old = web.store->ranks[0].digests;
    web.store->ranks[0].digests = mine;
    struct client *client = client_of(web.port, 0, NULL);
    uint64_t start_ns = clock_now_ns();
    assert_int_equal(client_digests(client, 0, 300, got, &err), RF_OK);
    assert_int_equal(digest_table_known(got), 0);
    assert_true(clock_seconds(start_ns, clock_now_ns()) >= 0.3);
    digest_table_set(mine, 3, digest);
    assert_int_equal(client_digests(client, 0, 20000, got, &err), RF_OK);
    assert_int_equal(digest_table_known(got), 1);
    /* Another digest than the one it knows is corruption. */
    const uint8_t other[HASH_MAX_BYTES] = {10};
    struct digest_table *liar = digest_table_create(HASH_XXH3_128, 49);
    digest_table_set(liar, 3, other);
    web.store->ranks[0].digests = liar;
    assert_int_equal(client_digests(client, 0, 0, got, &err), RF_E_CORRUPT);
    web.store->ranks[0].digests = old;
    client_destroy(client);
    web_stop(&web);
    digest_table_destroy(mine);
    digest_table_destroy(liar);
    digest_table_destroy(got);
}

/* ---- servers that are no seeds ---- */

struct fake {
    int listener;
    uint16_t port;
    pthread_t thread;
    void (*serve)(const struct fake *fake, int fd); /* after a request's headers have come */
    const char *text;
    atomic_bool stop; /* relaxed: the listener's end wakes the thread */
};

/* Waits until the peer goes away or the test ends. */
static void hold(const struct fake *fake, int fd)
{
    while (!atomic_load_explicit(&fake->stop, memory_order_relaxed) && !web_wait_closed(fd, 20))
        continue;
}

static void serve_text(const struct fake *fake, int fd)
{
    web_send(fd, fake->text, strlen(fake->text));
}

static void serve_text_and_hold(const struct fake *fake, int fd)
{
    serve_text(fake, fd);
    hold(fake, fd);
}

static void serve_endlessly(const struct fake *fake, int fd)
{
    static const char block[] = "4000\r\n";
    static char zeros[16384];

    serve_text(fake, fd);
    bool chunked = strstr(fake->text, "chunked") != NULL;
    bool sent = true;
    while (sent && !atomic_load_explicit(&fake->stop, memory_order_relaxed)) {
        sent = !chunked || web_send(fd, block, strlen(block));
        sent = sent && web_send(fd, zeros, sizeof zeros);
        sent = sent && (!chunked || web_send(fd, "\r\n", 2));
    }
}

static void serve_endless_headers(const struct fake *fake, int fd)
{
    serve_text(fake, fd);
    for (unsigned i = 0; !atomic_load_explicit(&fake->stop, memory_order_relaxed); i++) {
        char line[64];
        snprintf(line, sizeof line, "X-Header-%u: value\r\n", i);
        if (!web_send(fd, line, strlen(line)))
            return;
    }
}

static void serve_slowly(const struct fake *fake, int fd)
{
    for (const char *at = fake->text; *at != '\0'; at++) {
        if (atomic_load_explicit(&fake->stop, memory_order_relaxed) || !web_send(fd, at, 1))
            return;
        poll(NULL, 0, 20);
    }
    hold(fake, fd);
}

static void read_request(int fd)
{
    struct buf head BUF_AUTO = {0};
    char byte;

    while (recv(fd, &byte, 1, 0) == 1) {
        buf_append(&head, &byte, 1);
        if (head.bytes >= 4 && memcmp(head.data + head.bytes - 4, "\r\n\r\n", 4) == 0)
            return;
    }
}

static void *fake_main(void *arg)
{
    struct fake *fake = arg;

    for (;;) {
        int fd = accept(fake->listener, NULL, NULL);
        if (fd < 0)
            return NULL;
        read_request(fd);
        fake->serve(fake, fd);
        close(fd);
    }
}

static void fake_start(struct fake *fake, void (*serve)(const struct fake *, int), const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
    socklen_t bytes = sizeof address;

    fake->serve = serve;
    fake->text = text;
    atomic_init(&fake->stop, false);
    fake->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fake->listener >= 0);
    assert_int_equal(bind(fake->listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fake->listener, 16), 0);
    assert_int_equal(getsockname(fake->listener, (struct sockaddr *)&address, &bytes), 0);
    fake->port = ntohs(address.sin_port);
    assert_int_equal(pthread_create(&fake->thread, NULL, fake_main, fake), 0);
}

static void fake_stop(struct fake *fake)
{
    atomic_store_explicit(&fake->stop, true, memory_order_relaxed);
    shutdown(fake->listener, SHUT_RDWR);
    pthread_join(fake->thread, NULL);
    close(fake->listener);
}

/* What client_instance() makes of that server, and within how many milliseconds. */
static void expect_instance_error(void (*serve)(const struct fake *, int), const char *text,
                                  enum rf_code code, const char *words, double within_ms)
{
    struct instance_info info;
    struct rf_error err = {.code = RF_OK, .text = ""};
    struct fake fake;

    fake_start(&fake, serve, text);
    struct client *client = client_of(fake.port, 500, NULL);
    uint64_t start_ns = clock_now_ns();
    client_instance(client, &info, &err);
    double ms = clock_seconds(start_ns, clock_now_ns()) * 1000;
    assert_says(&err, code, words);
    if (ms > within_ms)
        fail_msg("took %.0f ms", ms);
    client_destroy(client);
    fake_stop(&fake);
}

#define SEED_HEAD "HTTP/1.1 200 OK\r\nX-Rfork-Instance: 1\r\nContent-Type: application/json\r\n"

static void nobody_there(void **state)
{
    struct instance_info info;
    struct rf_error err;
    struct fake fake;

    (void)state;
    fake_start(&fake, serve_text, "");
    fake_stop(&fake); /* its port is free again */
    struct client *client = client_of(fake.port, 500, NULL);
    assert_int_equal(client_instance(client, &info, &err), RF_E_UNREACHABLE);
    assert_says(&err, RF_E_UNREACHABLE, "no seed answers there");
    client_destroy(client);
    const struct client_options options = {.timeout_ms = 5000};
    assert_int_equal(client_create("http://no-such-host.invalid:1", &options, &client, &err),
                     RF_OK);
    assert_int_equal(client_instance(client, &info, &err), RF_E_UNREACHABLE);
    client_destroy(client);
}

static void silent_and_slow_servers_time_out(void **state)
{
    (void)state;
    expect_instance_error(hold, "", RF_E_TIMEOUT, "within 500 ms", 2000);
    expect_instance_error(serve_slowly,
                          SEED_HEAD "Content-Length: 1000\r\n\r\n{                   ",
                          RF_E_TIMEOUT, "within 500 ms", 2000);
    expect_instance_error(serve_text_and_hold, SEED_HEAD "Content-Length: 1000\r\n\r\n{",
                          RF_E_TIMEOUT, "no complete answer to /v1/instance", 2000);
}

static void dying_servers_are_noticed(void **state)
{
    (void)state;
    expect_instance_error(serve_text, "", RF_E_UNREACHABLE, "broke off", 400);
    expect_instance_error(serve_text,
                          SEED_HEAD "Content-Length: 1000\r\n\r\n{\"a\":", RF_E_UNREACHABLE,
                          "broke off", 400);
    expect_instance_error(serve_text, SEED_HEAD "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"a\"",
                          RF_E_UNREACHABLE, "broke off", 400);
    expect_instance_error(serve_text, SEED_HEAD "Transfer-Encoding: chunked\r\n\r\nzzz\r\n",
                          RF_E_UNREACHABLE, "broke off", 400);
}

static void other_servers_are_recognised(void **state)
{
    (void)state;
    expect_instance_error(serve_text, "SSH-2.0-OpenSSH_9.2p1\r\n", RF_E_UNREACHABLE,
                          "not an rfork seed", 400);
    expect_instance_error(serve_text,
                          "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n"
                          "Content-Length: 4\r\n\r\noops",
                          RF_E_UNREACHABLE, "(HTTP 404, text/html), but it is not an rfork seed",
                          400);
    expect_instance_error(serve_text, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
                          RF_E_UNREACHABLE, "(HTTP 200, no type), but it is not an rfork seed",
                          400);
    expect_instance_error(serve_text, "\x16\x03\x01 TLS?", RF_E_UNREACHABLE, "not an rfork seed",
                          400);
}

static void foreign_servers_can_be_asked_whatever_they_answer(void **state)
{
    static const struct {
        const char *text;
        long status;
        const char *body;
    } answers[] = {
        {"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\noops", 404, "oops"},
        {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, "{}"},
        {"HTTP/1.1 500 No\r\nX-Rfork-Instance: 1\r\nContent-Length: 0\r\n\r\n", 500, ""},
    };

    (void)state;
    for (unsigned i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        struct buf out BUF_AUTO = {0};
        struct rf_error err;
        struct fake fake;
        long status = 0;

        fake_start(&fake, serve_text, answers[i].text);
        struct client *client = client_of(fake.port, WEB_TIMEOUT_MS, NULL);
        assert_false(client_is_foreign(client));
        assert_int_equal(client_ask_any(client, "/x?y=1", NULL, 100, &out, &status, &err), RF_OK);
        assert_int_equal(status, answers[i].status);
        assert_int_equal(out.bytes, strlen(answers[i].body));
        assert_memory_equal(out.data != NULL ? (char *)out.data : "", answers[i].body, out.bytes);
        assert_int_equal(client_is_foreign(client), i < 2);
        client_destroy(client);
        fake_stop(&fake);
    }
}

static void refusals_of_foreign_servers_are_told_in_their_words(void **state)
{
    static const char *const bodies[] = {
        "{\"detail\":\"no such rank\"}",
        "{\"error\":\"no such rank\"}",
        "{\"error\":{\"message\":\"no such rank\"}}",
    };

    (void)state;
    for (unsigned i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        struct buf out BUF_AUTO = {0};
        struct rf_error err;
        struct fake fake;
        char text[256];

        snprintf(text, sizeof text, "HTTP/1.1 400 Bad Request\r\nContent-Length: %zu\r\n\r\n%s",
                 strlen(bodies[i]), bodies[i]);
        fake_start(&fake, serve_text, text);
        struct client *client = client_of(fake.port, WEB_TIMEOUT_MS, NULL);
        assert_int_equal(client_ask_any(client, "/x", "{}", 100, &out, NULL, &err), RF_E_INVAL);
        assert_says(&err, RF_E_INVAL, "400: no such rank");
        assert_int_equal(out.bytes, 0);
        client_destroy(client);
        fake_stop(&fake);
    }
}

static void foreign_answers_are_limited_too(void **state)
{
    struct buf out BUF_AUTO = {0};
    struct rf_error err;
    struct fake fake;
    long status = 0;

    (void)state;
    fake_start(&fake, serve_text, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\noops");
    struct client *client = client_of(fake.port, WEB_TIMEOUT_MS, NULL);
    assert_int_equal(client_ask_any(client, "/x", NULL, 3, &out, &status, &err), RF_E_PROTO);
    assert_says(&err, RF_E_PROTO, "larger than 3 bytes");
    assert_int_equal(out.bytes, 0);
    assert_int_equal(client_ask_any(client, "x", NULL, 3, &out, &status, &err), RF_E_INVAL);
    client_destroy(client);
    fake_stop(&fake);
}

static void redirects_are_not_followed(void **state)
{
    (void)state;
    expect_instance_error(
        serve_text,
        "HTTP/1.1 302 Found\r\nX-Rfork-Instance: 1\r\nLocation: http://127.0.0.1:1/\r\n"
        "Content-Length: 0\r\n\r\n",
        RF_E_PROTO, "302", 400);
}

static void answers_without_end_are_cut_off(void **state)
{
    (void)state;
    expect_instance_error(serve_endlessly, SEED_HEAD "Content-Length: 100000000000000\r\n\r\n",
                          RF_E_PROTO, "larger than 1048576 bytes", 2000);
    expect_instance_error(serve_endlessly, SEED_HEAD "Transfer-Encoding: chunked\r\n\r\n",
                          RF_E_PROTO, "larger than 1048576 bytes", 2000);
    expect_instance_error(
        serve_endlessly,
        "HTTP/1.1 500 Bad\r\nX-Rfork-Instance: 1\r\nTransfer-Encoding: chunked\r\n\r\n", RF_E_PROTO,
        "500", 2000);
    expect_instance_error(serve_endless_headers, SEED_HEAD, RF_E_PROTO, "bytes of headers", 2000);
}

/* A whole instance, with one field replaced by what `field` says. */
static char *instance_with(const char *key, const char *value)
{
    static const char *const fields[][2] = {
        {"instance_id", "\"i\""},     {"version", "\"0\""},
        {"state", "\"ready\""},       {"bytes", "1"},
        {"tensor_count", "1"},        {"rank_count", "1"},
        {"digest_chunks_known", "0"}, {"digest_chunks_total", "0"},
        {"endpoints", "[]"},          {"model", "\"m\""},
        {"root_digest", "null"},
    };
    struct buf json = {0};
    struct buf text = {0};

    for (unsigned i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        bool same = strcmp(fields[i][0], key) == 0;
        if (!same || value != NULL)
            buf_printf(&json, "%s\"%s\":%s", json.bytes > 0 ? "," : "", fields[i][0],
                       same ? value : fields[i][1]);
    }
    buf_printf(&text, SEED_HEAD "Content-Length: %zu\r\n\r\n{%s}", json.bytes + 2,
               (const char *)json.data);
    buf_free(&json);
    return (char *)text.data;
}

static void fields_of_an_instance_are_checked(void **state)
{
    static const struct {
        const char *key;
        const char *value; /* NULL: left out */
        const char *words;
    } cases[] = {
        {"instance_id", NULL, "\"instance_id\" is missing"},
        {"instance_id", "1", "\"instance_id\" is a number, not a string"},
        {"instance_id", "null", "\"instance_id\" is missing"},
        {"state", "[\"ready\"]", "\"state\" is an array"},
        {"model", "{}", "\"model\" is an object"},
        {"model", "\"a\\u0007b\"", "control characters"},
        {"model", "\"a\\u0000b\"", "not JSON"},
        {"model", "\"\xff\"", "not JSON"},
        {"bytes", "\"1\"", "\"bytes\" is a string"},
        {"bytes", "-1", "\"bytes\" is -1"},
        {"bytes", "1.5", "\"bytes\" is a fraction"},
        {"bytes", "99999999999999999999", "not JSON"},
        {"rank_count", "4097", "\"rank_count\" is 4097"},
        {"tensor_count", "true", "\"tensor_count\" is true"},
        {"endpoints", NULL, "\"endpoints\" is missing"},
        {"endpoints", "{}", "\"endpoints\" is an object"},
        {"endpoints", "[1]", "no object"},
        {"endpoints", "[{}]", "\"transport\" is missing"},
        {"endpoints", "[{\"transport\":\"tcp\"}]", "\"address\" is missing"},
        {"endpoints", "[{\"transport\":\"T C P\",\"address\":\"x\"}]",
         "not the name of a transport"},
        {"endpoints", "[{\"transport\":\"tcp\",\"address\":\"\"}]", "is empty"},
        {"endpoints", "[{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}]", "17 items"},
        {"endpoints",
         "[{\"transport\":\"tcp\",\"address\":\"x\",\"host_id\":"
         "\"0123456789012345678901234567890123456789012345678901234567890123\"}]",
         "\"host_id\" has 64 bytes"},
        {"model", "\"m\",\"model\":\"n\"", "duplicate"},
    };

    (void)state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        rf_autofree char *text = instance_with(cases[i].key, cases[i].value);
        expect_instance_error(serve_text, text, RF_E_PROTO, cases[i].words, 400);
    }
    expect_instance_error(serve_text, SEED_HEAD "Content-Length: 2\r\n\r\n[]", RF_E_PROTO,
                          "not an object", 400);
    expect_instance_error(serve_text, SEED_HEAD "Content-Length: 0\r\n\r\n", RF_E_PROTO, "not JSON",
                          400);
    static char deep[100100] = SEED_HEAD "Content-Length: 100000\r\n\r\n";
    memset(deep + strlen(deep), '[', 99999);
    expect_instance_error(serve_text_and_hold, deep, RF_E_TIMEOUT, "", 2000);
}

static void wildcard_endpoints_are_replaced(void **state)
{
    rf_autofree char *text = instance_with(
        "endpoints", "[{\"transport\":\"tcp\",\"address\":\"0.0.0.0:77\",\"host_id\":\"h\"},"
                     "{\"transport\":\"map\",\"address\":\"@x\"}]");
    struct instance_info info;
    struct rf_error err;
    struct fake fake;

    (void)state;
    fake_start(&fake, serve_text, text);
    struct client *client = client_of(fake.port, 0, NULL);
    assert_int_equal(client_instance(client, &info, &err), RF_OK);
    assert_string_equal(info.endpoints[0].address, "127.0.0.1:77");
    assert_string_equal(info.endpoints[0].host_id, "h");
    assert_string_equal(info.endpoints[1].address, "@x");
    assert_string_equal(info.root_digest, "");
    instance_info_free(&info);
    client_destroy(client);
    /* A name stands for the address it led to: transports take addresses only. */
    char url[64];
    const struct client_options options = {.timeout_ms = 0};
    snprintf(url, sizeof url, "localhost:%u", fake.port);
    assert_int_equal(client_create(url, &options, &client, &err), RF_OK);
    assert_int_equal(client_instance(client, &info, &err), RF_OK);
    assert_string_equal(info.endpoints[0].address, "127.0.0.1:77");
    instance_info_free(&info);
    client_destroy(client);
    fake_stop(&fake);
}

static void refusals_keep_the_seeds_words(void **state)
{
    static const struct {
        const char *status;
        const char *body;
        enum rf_code code;
        const char *words;
    } cases[] = {
        {"503", "{\"error\":{\"code\":\"RF_E_UNREACHABLE\",\"message\":\"loading\"}}",
         RF_E_UNREACHABLE, ": 503: loading"},
        {"500", "{\"error\":{\"code\":\"RF_E_CORRUPT\",\"message\":\"m\"}}", RF_E_CORRUPT,
         ": 500: m"},
        {"403", "{\"error\":{\"code\":\"RF_OK\",\"message\":\"m\"}}", RF_E_DENIED, ": 403: m"},
        {"409", "{\"error\":{\"code\":\"RF_AGAIN\",\"message\":\"m\"}}", RF_E_MISMATCH, ": 409: m"},
        {"429", "{\"error\":{\"code\":7,\"message\":\"m\"}}", RF_E_NOMEM, ": 429: no reason"},
        {"404", "{\"error\":\"m\"}", RF_E_INVAL, ": 404: no reason"},
        {"418", "teapot", RF_E_PROTO, ": 418: no reason"},
        {"503", "{\"error\":{\"code\":\"RF_E_INVAL\",\"message\":\"a\\u001b[2Jb\"}}",
         RF_E_UNREACHABLE, ": 503: no reason"},
    };

    (void)state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[512];
        snprintf(text, sizeof text,
                 "HTTP/1.1 %s Refused\r\nX-Rfork-Instance: 1\r\nContent-Length: %zu\r\n\r\n%s",
                 cases[i].status, strlen(cases[i].body), cases[i].body);
        expect_instance_error(serve_text, text, cases[i].code, cases[i].words, 400);
    }
}

static void nonsense_where_a_manifest_should_be(void **state)
{
    struct manifest *manifest = NULL;
    struct digest_table *table = digest_table_create(HASH_XXH3_128, 49);
    struct lease lease;
    struct rf_error err;
    struct fake fake;

    (void)state;
    fake_start(&fake, serve_text, SEED_HEAD "Content-Length: 10\r\n\r\n0123456789");
    struct client *client = client_of(fake.port, 0, NULL);
    assert_int_equal(client_manifest(client, &manifest, &err), RF_E_PROTO);
    assert_int_equal(client_digests(client, 0, 0, table, &err), RF_E_PROTO);
    assert_int_equal(client_lease_open(client, &lease, &err), RF_E_PROTO);
    client_destroy(client);
    fake_stop(&fake);
    fake_start(&fake, serve_endlessly, SEED_HEAD "Transfer-Encoding: chunked\r\n\r\n");
    client = client_of(fake.port, 0, NULL);
    assert_int_equal(client_digests(client, 0, 0, table, &err), RF_E_PROTO);
    assert_says(&err, RF_E_PROTO, "larger than");
    client_destroy(client);
    fake_stop(&fake);
    digest_table_destroy(table);
}

#define ZEROS_63 "000000000000000000000000000000000000000000000000000000000000000"
#define ZEROS    ZEROS_63 "0"

static void leases_are_checked(void **state)
{
    static const struct {
        const char *body;
        const char *words;
    } cases[] = {
        {"{\"token\":\"00\",\"ttl_ms\":1,\"manifest_id\":\"m\",\"endpoints\":[]}", "64 hex digits"},
        {"{\"ttl_ms\":1,\"manifest_id\":\"m\",\"endpoints\":[]}", "\"token\" is missing"},
        {"{\"token\":\"" ZEROS_63 "g\",\"ttl_ms\":1,"
         "\"manifest_id\":\"m\",\"endpoints\":[]}",
         "64 hex digits"},
        {"{\"token\":\"" ZEROS "\",\"ttl_ms\":-1,"
         "\"manifest_id\":\"m\",\"endpoints\":[]}",
         "\"ttl_ms\" is -1"},
        {"{\"token\":\"" ZEROS "\",\"ttl_ms\":1,"
         "\"endpoints\":[]}",
         "\"manifest_id\" is missing"},
    };

    (void)state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct lease lease;
        struct rf_error err;
        struct fake fake;
        char text[512];
        snprintf(text, sizeof text,
                 "HTTP/1.1 201 Created\r\nX-Rfork-Instance: 1\r\nContent-Length: %zu\r\n\r\n%s",
                 strlen(cases[i].body), cases[i].body);
        fake_start(&fake, serve_text, text);
        struct client *client = client_of(fake.port, 0, NULL);
        assert_int_equal(client_lease_open(client, &lease, &err), RF_E_PROTO);
        assert_says(&err, RF_E_PROTO, cases[i].words);
        client_destroy(client);
        fake_stop(&fake);
    }
}

#define PART_HEAD "HTTP/1.1 206 Part\r\nX-Rfork-Instance: 1\r\n"

static void parts_of_files_are_checked(void **state)
{
    static const char *const answers[] = {
        SEED_HEAD "Content-Length: 4\r\n\r\nabcd",
        PART_HEAD "Content-Length: 4\r\n\r\nabcd",
        PART_HEAD "Content-Range: bytes 0-3/9\r\nContent-Length: 4\r\n\r\nabcd",
        PART_HEAD "Content-Range: bytes 2-5/9\r\nContent-Length: 3\r\n\r\nabc",
        PART_HEAD "Content-Range: bytes 2-5/9\r\nContent-Length: 5\r\n\r\nabcde",
        "HTTP/1.1 204 None\r\nX-Rfork-Instance: 1\r\n\r\n",
    };

    (void)state;
    for (unsigned i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        struct buf out BUF_AUTO = {0};
        struct rf_error err;
        struct fake fake;
        fake_start(&fake, serve_text, answers[i]);
        struct client *client = client_of(fake.port, 0, NULL);
        assert_int_equal(client_file(client, "f", 2, 4, &out, &err), RF_E_PROTO);
        assert_int_equal(out.bytes, 0);
        client_destroy(client);
        fake_stop(&fake);
    }
}

/* ---- cancelling ---- */

static void *cancel_soon(void *arg)
{
    poll(NULL, 0, 100);
    atomic_store_explicit((atomic_bool *)arg, true, memory_order_relaxed);
    return NULL;
}

static void cancelling_ends_a_call(void **state)
{
    struct instance_info info;
    struct lease lease = {.ttl_ms = 0};
    struct rf_error err;
    struct fake fake;
    pthread_t thread;
    atomic_bool cancel;

    (void)state;
    atomic_init(&cancel, false);
    fake_start(&fake, hold, "");
    struct client *client = client_of(fake.port, 20000, &cancel);
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, &cancel), 0);
    uint64_t start_ns = clock_now_ns();
    assert_int_equal(client_instance(client, &info, &err), RF_E_CANCELLED);
    assert_true(clock_seconds(start_ns, clock_now_ns()) < 1);
    pthread_join(thread, NULL);
    /* Closing a lease is tried all the same, for a second. */
    start_ns = clock_now_ns();
    client_lease_close(client, &lease);
    double seconds = clock_seconds(start_ns, clock_now_ns());
    assert_true(seconds > 0.9 && seconds < 2.5);
    client_destroy(client);
    fake_stop(&fake);
}

static void null_client_is_fine(void **state)
{
    (void)state;
    client_destroy(NULL);
    instance_info_free(NULL);
}

int main(void)
{
    const struct CMUnitTest real[] = {
        cmocka_unit_test(instance_is_read),
        cmocka_unit_test(manifest_is_read_and_checked),
        cmocka_unit_test(leases_are_opened_and_closed),
        cmocka_unit_test(a_lease_is_kept_until_it_is_used),
        cmocka_unit_test(digests_are_merged),
        cmocka_unit_test(files_are_read_in_part),
        cmocka_unit_test(any_path_can_be_read),
        cmocka_unit_test(one_connection_is_kept),
        cmocka_unit_test(proxies_of_the_environment_are_not_asked),
    };
    const struct CMUnitTest other[] = {
        cmocka_unit_test(urls_are_taken_apart),
        cmocka_unit_test(other_urls_are_refused),
        cmocka_unit_test(wildcards_become_the_host_that_was_dialled),
        cmocka_unit_test(closed_connections_are_replaced),
        cmocka_unit_test(loading_seed_says_so),
        cmocka_unit_test(digests_are_waited_for),
        cmocka_unit_test(nobody_there),
        cmocka_unit_test(silent_and_slow_servers_time_out),
        cmocka_unit_test(dying_servers_are_noticed),
        cmocka_unit_test(other_servers_are_recognised),
        cmocka_unit_test(foreign_servers_can_be_asked_whatever_they_answer),
        cmocka_unit_test(refusals_of_foreign_servers_are_told_in_their_words),
        cmocka_unit_test(foreign_answers_are_limited_too),
        cmocka_unit_test(redirects_are_not_followed),
        cmocka_unit_test(answers_without_end_are_cut_off),
        cmocka_unit_test(fields_of_an_instance_are_checked),
        cmocka_unit_test(wildcard_endpoints_are_replaced),
        cmocka_unit_test(refusals_keep_the_seeds_words),
        cmocka_unit_test(nonsense_where_a_manifest_should_be),
        cmocka_unit_test(leases_are_checked),
        cmocka_unit_test(parts_of_files_are_checked),
        cmocka_unit_test(cancelling_ends_a_call),
        cmocka_unit_test(null_client_is_fine),
    };
    int failed = cmocka_run_group_tests_name("client", real, start_web, stop_web);
    return failed + cmocka_run_group_tests_name("client alone", other, NULL, NULL);
}
