/* Leases, states and failures of a seed, seen through the exporter that transports are given and
 * through its own API. */
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "model/store.h"
#include "seed/seed.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { FILE_BYTES = 300000 };

struct bed {
    char path[64];
    int fd;
    struct seed *seed;
};

static const char *const only_null[] = {"null", NULL};

static struct manifest *make_manifest(void)
{
    const struct manifest_identity identity = {.model = "m",
                                               .layout = "checkpoint",
                                               .quantisation = "none",
                                               .algorithm = HASH_XXH3_128,
                                               .chunk_bytes = 64 << 10};
    const struct rank_id only = {.tp_size = 1, .pp_size = 1, .ep_size = 1, .dp_size = 1};
    static const uint64_t halves[] = {FILE_BYTES / 2};
    struct manifest_builder *builder = manifest_builder_create(&identity, NULL);
    struct manifest *manifest = NULL;

    assert_int_equal(manifest_add_rank(builder, &only, NULL), RF_OK);
    for (unsigned i = 0; i < 2; i++) {
        struct tensor tensor = {.name = i == 0 ? "a" : "b",
                                .name_bytes = 1,
                                .dtype = RF_DTYPE_U8,
                                .ndim = 1,
                                .shape = halves,
                                .file = MANIFEST_NONE,
                                .alias_of = MANIFEST_NONE};

        assert_int_equal(manifest_add_tensor(builder, &tensor, NULL, NULL), RF_OK);
    }
    assert_int_equal(manifest_build(builder, &manifest, NULL), RF_OK);
    return manifest;
}

/* Served from a file, so that there is something to change under the seed. */
static struct store *make_store(const struct bed *bed)
{
    struct manifest *manifest = make_manifest();
    struct region *region = NULL;
    struct store *store = NULL;

    assert_int_equal(store_create(manifest, &store, NULL), RF_OK);
    manifest_unref(manifest);
    assert_int_equal(region_create_file(bed->path, bed->fd, &region, NULL), RF_OK);
    assert_int_equal(store_add_region(store, region, NULL), RF_OK);
    assert_int_equal(layout_add(&store->ranks[0].layout, 0, FILE_BYTES, region, 0, NULL), RF_OK);
    assert_int_equal(layout_finish(&store->ranks[0].layout, FILE_BYTES, NULL), RF_OK);
    region_unref(region);
    return store;
}

static void make_seed(struct bed *bed, const struct seed_options *options)
{
    struct rf_error error = {.code = RF_OK};

    assert_int_equal(seed_create(options, &bed->seed, NULL), RF_OK);
    if (seed_publish(bed->seed, make_store(bed), &error) != RF_OK)
        fail_msg("%s", error.text);
}

static int bed_setup(void **state)
{
    struct bed *bed = calloc(1, sizeof(*bed));
    uint8_t *content = calloc(1, FILE_BYTES);

    log_set_level(LOG_ERROR);
    log_set_sink(NULL, NULL);
    snprintf(bed->path, sizeof(bed->path), "/tmp/rfork-test-seed-XXXXXX");
    bed->fd = mkstemp(bed->path);
    for (unsigned i = 0; i < FILE_BYTES; i++)
        content[i] = (uint8_t)(i * 31 >> 4);
    assert_int_equal(write(bed->fd, content, FILE_BYTES), FILE_BYTES);
    free(content);
    *state = bed;
    return 0;
}

static int bed_teardown(void **state)
{
    struct bed *bed = *state;

    seed_destroy(bed->seed);
    close(bed->fd);
    unlink(bed->path);
    free(bed);
    return 0;
}

/* Waits for a state that comes by itself: the watch looks several times a second. */
static bool becomes(struct seed *seed, enum seed_state wanted)
{
    uint64_t deadline_ns = clock_deadline_ns(10000);

    while (seed_state(seed, NULL) != wanted && clock_left_ms(deadline_ns) > 0)
        usleep(5000);
    return seed_state(seed, NULL) == wanted;
}

static void a_seed_says_that_it_is_loading_before_it_has_a_model(void **state)
{
    const struct seed_options options = {.transports = only_null};
    struct bed *bed = *state;
    uint8_t token[CHUNK_TOKEN_BYTES];
    struct rf_error error;
    uint64_t ttl_ms;
    uint32_t count;

    assert_int_equal(seed_create(&options, &bed->seed, NULL), RF_OK);
    assert_int_equal(seed_state(bed->seed, NULL), SEED_LOADING);
    assert_null(seed_store(bed->seed));
    seed_endpoints(bed->seed, &count);
    assert_int_equal(count, 0);
    assert_int_equal(seed_lease_open(bed->seed, "c", token, &ttl_ms, &error), RF_E_UNREACHABLE);
    assert_non_null(strstr(error.text, "loading"));
    assert_int_equal(seed_drain(bed->seed, 1000), 0);
}

static void a_published_seed_leases_digests_and_counts(void **state)
{
    const struct seed_options options = {.transports = only_null};
    struct bed *bed = *state;
    uint8_t token[CHUNK_TOKEN_BYTES];
    uint8_t other[CHUNK_TOKEN_BYTES];
    struct seed_stats stats;
    struct rf_error error;
    uint64_t ttl_ms = 0;

    make_seed(bed, &options);
    assert_int_equal(seed_state(bed->seed, NULL), SEED_READY);
    assert_int_equal(seed_lease_open(bed->seed, "c", token, &ttl_ms, NULL), RF_OK);
    assert_int_equal(seed_lease_open(bed->seed, "c", other, &ttl_ms, NULL), RF_OK);
    assert_int_equal(ttl_ms, 20000);
    assert_memory_not_equal(token, other, sizeof(token));
    assert_int_equal(seed_lease_renew(bed->seed, token, NULL), RF_OK);
    assert_int_equal(seed_lease_close(bed->seed, token, NULL), RF_OK);
    assert_int_equal(seed_lease_close(bed->seed, token, &error), RF_E_DENIED);
    assert_int_equal(seed_lease_renew(bed->seed, token, &error), RF_E_DENIED);
    assert_int_equal(seed_wait_digests(bed->seed, clock_deadline_ns(10000), &error), RF_OK);
    seed_stats(bed->seed, &stats);
    assert_int_equal(stats.leases_opened, 2);
    assert_int_equal(stats.leases_now, 1);
    assert_int_equal(stats.denied_tokens, 2);
    assert_int_equal(stats.digest_chunks_known, 5);
    assert_int_equal(stats.digest_chunks_total, 5);
    assert_int_equal(strlen(seed_instance_id(bed->seed)), 32);
}

static void more_readers_than_allowed_are_turned_away(void **state)
{
    const struct seed_options options = {.transports = only_null, .max_readers = 1};
    struct bed *bed = *state;
    uint8_t token[CHUNK_TOKEN_BYTES];
    uint8_t second[CHUNK_TOKEN_BYTES];
    struct seed_stats stats;
    struct rf_error error;
    uint64_t ttl_ms;

    make_seed(bed, &options);
    assert_int_equal(seed_lease_open(bed->seed, "first", token, &ttl_ms, NULL), RF_OK);
    assert_int_equal(seed_lease_open(bed->seed, "second", second, &ttl_ms, &error), RF_E_NOMEM);
    assert_non_null(strstr(error.text, "--max-readers"));
    assert_int_equal(seed_lease_close(bed->seed, token, NULL), RF_OK);
    assert_int_equal(seed_lease_open(bed->seed, "second", second, &ttl_ms, NULL), RF_OK);
    seed_stats(bed->seed, &stats);
    assert_int_equal(stats.leases_refused, 1);
}

static void a_lease_nobody_uses_expires(void **state)
{
    const struct seed_options options = {.transports = only_null, .lease_ttl_ms = 1};
    struct bed *bed = *state;
    uint8_t token[CHUNK_TOKEN_BYTES];
    struct seed_stats stats = {.leases_now = 1};
    uint64_t deadline_ns = clock_deadline_ns(10000);
    uint64_t ttl_ms;

    make_seed(bed, &options);
    assert_int_equal(seed_lease_open(bed->seed, "gone", token, &ttl_ms, NULL), RF_OK);
    while (stats.leases_now > 0 && clock_left_ms(deadline_ns) > 0) {
        usleep(5000);
        seed_stats(bed->seed, &stats);
    }
    assert_int_equal(stats.leases_now, 0);
    assert_int_equal(stats.leases_expired, 1);
    assert_int_equal(seed_lease_renew(bed->seed, token, NULL), RF_E_DENIED);
}

static void a_file_truncated_while_served_stops_the_seed(void **state)
{
    const struct seed_options options = {.transports = only_null};
    struct bed *bed = *state;
    uint8_t token[CHUNK_TOKEN_BYTES];
    char reason[RF_ERROR_TEXT_BYTES];
    struct digest_table *table;
    struct rf_error error;
    uint64_t ttl_ms;

    make_seed(bed, &options);
    assert_int_equal(ftruncate(bed->fd, FILE_BYTES / 3), 0);
    assert_true(becomes(bed->seed, SEED_FAILED));
    seed_state(bed->seed, reason);
    assert_non_null(strstr(reason, bed->path));
    assert_int_equal(seed_lease_open(bed->seed, "late", token, &ttl_ms, &error), RF_E_CHANGED);
    assert_int_equal(seed_tensor_digests(bed->seed, 0, clock_deadline_ns(100), &table, &error),
                     RF_E_CHANGED);
}

static void a_file_overwritten_while_served_stops_the_seed(void **state)
{
    const struct seed_options options = {.transports = only_null};
    struct bed *bed = *state;

    make_seed(bed, &options);
    assert_int_equal(seed_wait_digests(bed->seed, clock_deadline_ns(10000), NULL), RF_OK);
    assert_int_equal(pwrite(bed->fd, "x", 1, 12345), 1);
    assert_true(becomes(bed->seed, SEED_FAILED));
}

static void reads_of_a_lease_end_with_it(void **state)
{
    const struct seed_options options = {.transports = only_null};
    struct bed *bed = *state;
    struct transport_open_options open_options = {.timeout_ms = 5000, .cancel_fd = -1};
    const struct transport *null = NULL;
    struct transport_session *session = NULL;
    struct rf_error error;
    uint64_t ttl_ms;
    uint32_t count;

    make_seed(bed, &options);
    const struct endpoint *endpoints = seed_endpoints(bed->seed, &count);
    assert_int_equal(count, 1);
    assert_int_equal(transport_find("null", &null, NULL), RF_OK);
    assert_int_equal(null->open(&endpoints[0], &open_options, &session, &error), RF_E_DENIED);
    assert_int_equal(seed_lease_open(bed->seed, "c", open_options.token, &ttl_ms, NULL), RF_OK);
    assert_int_equal(null->open(&endpoints[0], &open_options, &session, &error), RF_OK);
    struct seed_stats stats;
    seed_stats(bed->seed, &stats);
    assert_int_equal(stats.connections_now, 1);
    assert_int_equal(seed_lease_close(bed->seed, open_options.token, NULL), RF_OK);
    assert_int_equal(
        null->open(&endpoints[0], &open_options, &(struct transport_session *){NULL}, &error),
        RF_E_DENIED);
    null->close(session);
    seed_stats(bed->seed, &stats);
    assert_int_equal(stats.connections_now, 0);
    assert_int_equal(seed_drain(bed->seed, 1000), 0);
    assert_int_equal(seed_state(bed->seed, NULL), SEED_DRAINING);
    assert_int_equal(seed_lease_open(bed->seed, "late", open_options.token, &ttl_ms, &error),
                     RF_E_UNREACHABLE);
}

static void tensor_digests_are_made_on_demand(void **state)
{
    const struct seed_options options = {.transports = only_null};
    struct bed *bed = *state;
    struct digest_table *table = NULL;
    struct digest_table *again = NULL;
    uint8_t digest[HASH_MAX_BYTES];
    uint8_t expected[HASH_MAX_BYTES];
    struct rf_error error;

    make_seed(bed, &options);
    assert_int_equal(seed_tensor_digests(bed->seed, 0, clock_deadline_ns(10000), &table, &error),
                     RF_OK);
    assert_int_equal(digest_table_known(table), 2);
    assert_true(digest_table_get(table, 1, digest));
    assert_int_equal(store_tensor_digest(seed_store(bed->seed), 0, 1, expected, NULL), RF_OK);
    assert_memory_equal(digest, expected, 16);
    assert_int_equal(seed_tensor_digests(bed->seed, 0, 0, &again, &error), RF_OK);
    assert_ptr_equal(table, again);
    assert_int_equal(seed_tensor_digests(bed->seed, 1, 0, &again, &error), RF_E_INVAL);
}

static void a_seed_no_transport_can_serve_says_why(void **state)
{
    static const char *const none[] = {"map", NULL};
    const struct seed_options options = {.transports = none};
    struct bed *bed = *state;
    struct rf_error error;

    assert_int_equal(seed_create(&options, &bed->seed, NULL), RF_OK);
    assert_int_equal(seed_publish(bed->seed, make_store(bed), &error), RF_E_UNSUPPORTED);
    assert_non_null(strstr(error.text, "map:"));
    assert_non_null(strstr(error.text, "mmap"));
}

static void publishing_twice_is_refused(void **state)
{
    const struct seed_options options = {.transports = only_null};
    struct bed *bed = *state;
    struct rf_error error;

    make_seed(bed, &options);
    assert_int_equal(seed_publish(bed->seed, make_store(bed), &error), RF_E_INVAL);
    assert_int_equal(seed_state(bed->seed, NULL), SEED_READY);
}

int main(void)
{
#define BED_TEST(name) cmocka_unit_test_setup_teardown(name, bed_setup, bed_teardown)
    const struct CMUnitTest tests[] = {
        BED_TEST(a_seed_says_that_it_is_loading_before_it_has_a_model),
        BED_TEST(a_published_seed_leases_digests_and_counts),
        BED_TEST(more_readers_than_allowed_are_turned_away),
        BED_TEST(a_lease_nobody_uses_expires),
        BED_TEST(a_file_truncated_while_served_stops_the_seed),
        BED_TEST(a_file_overwritten_while_served_stops_the_seed),
        BED_TEST(reads_of_a_lease_end_with_it),
        BED_TEST(tensor_digests_are_made_on_demand),
        BED_TEST(a_seed_no_transport_can_serve_says_why),
        BED_TEST(publishing_twice_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
