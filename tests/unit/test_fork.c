/* A rank taken from a seed in this process, with and without misbehaviour on the way. */
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "fork/fork.h"
#include "util/rig.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    CHUNK_BYTES = 64 << 10,
    STREAM_BYTES = 40 * CHUNK_BYTES + 1234,
    TENSORS = 100,
};

struct bed {
    struct rig rig;
    struct manifest *manifest;
    struct digest_table *truth; /* what the seed says */
    struct digest_table *table; /* what the fork is given */
    const struct transport *null;
    struct transport_seed *half;
    struct transport_choice choice;
    atomic_uint digest_calls;
    uint64_t known_after_calls; /* the seed's digests are there from this call on */
    uint64_t refused_calls;     /* so many calls fail first */
    enum rf_code refusal;
    atomic_bool cancel;
};

static struct manifest *make_manifest(void)
{
    const struct manifest_identity identity = {.model = "m",
                                               .layout = "checkpoint",
                                               .quantisation = "none",
                                               .algorithm = HASH_XXH3_128,
                                               .chunk_bytes = CHUNK_BYTES};
    const struct rank_id only = {.tp_size = 1, .pp_size = 1, .ep_size = 1, .dp_size = 1};
    struct manifest_builder *builder = manifest_builder_create(&identity, NULL);
    struct manifest *manifest = NULL;
    uint64_t left = STREAM_BYTES;

    assert_non_null(builder);
    assert_int_equal(manifest_add_rank(builder, &only, NULL), RF_OK);
    for (unsigned i = 0; i < TENSORS; i++) {
        char name[32];
        uint64_t shape[1] = {i + 1 < TENSORS ? STREAM_BYTES / TENSORS : left};
        struct tensor tensor = {.name = name,
                                .dtype = RF_DTYPE_U8,
                                .ndim = 1,
                                .shape = shape,
                                .file = MANIFEST_NONE,
                                .alias_of = MANIFEST_NONE};

        tensor.name_bytes = (uint32_t)snprintf(name, sizeof(name), "tensor.%03u", i);
        left -= shape[0];
        assert_int_equal(manifest_add_tensor(builder, &tensor, NULL, NULL), RF_OK);
    }
    assert_int_equal(manifest_build(builder, &manifest, NULL), RF_OK);
    return manifest;
}

static void digest_all(const struct bed *bed)
{
    struct chunk_hasher *hasher = chunk_hasher_create(HASH_XXH3_128);

    for (uint64_t i = 0; i < manifest_chunk_count(bed->manifest, 0); i++) {
        uint8_t digest[HASH_MAX_BYTES];

        chunk_hasher_begin(hasher);
        chunk_hasher_update(hasher, bed->rig.ranks[0].bytes + i * CHUNK_BYTES,
                            manifest_chunk_size(bed->manifest, 0, i));
        chunk_hasher_final(hasher, digest);
        assert_true(digest_table_set(bed->truth, i, digest));
    }
    chunk_hasher_destroy(hasher);
}

static int bed_setup(void **state)
{
    struct bed *bed = calloc(1, sizeof(*bed));
    struct endpoint endpoint;
    const struct transport_seed_options options = {.host = "127.0.0.1"};

    log_set_level(LOG_ERROR);
    rig_init(&bed->rig, 1, STREAM_BYTES, 3);
    bed->manifest = make_manifest();
    bed->truth = digest_table_create(HASH_XXH3_128, manifest_chunk_count(bed->manifest, 0));
    bed->table = digest_table_create(HASH_XXH3_128, manifest_chunk_count(bed->manifest, 0));
    digest_all(bed);
    assert_int_equal(transport_find("null", &bed->null, NULL), RF_OK);
    assert_int_equal(
        bed->null->seed_start(&bed->rig.exporter, &options, &bed->half, &endpoint, NULL), RF_OK);
    bed->choice = (struct transport_choice){.transport = bed->null, .endpoint = endpoint};
    atomic_init(&bed->cancel, false);
    *state = bed;
    return 0;
}

static int bed_teardown(void **state)
{
    struct bed *bed = *state;

    bed->null->seed_stop(bed->half);
    digest_table_destroy(bed->truth);
    digest_table_destroy(bed->table);
    manifest_unref(bed->manifest);
    rig_free(&bed->rig);
    free(bed);
    return 0;
}

/* Puts `fault:SPEC:` before the transport's name. */
static void misbehave(struct bed *bed, const char *spec)
{
    char name[TRANSPORT_NAME_BYTES];

    snprintf(name, sizeof(name), "fault:%s:null", spec);
    assert_int_equal(transport_find(name, &bed->choice.transport, NULL), RF_OK);
    snprintf(bed->choice.endpoint.transport, sizeof(bed->choice.endpoint.transport), "%s", name);
}

static enum rf_code give_digests(void *ctx, uint32_t rank, struct digest_table *table,
                                 uint64_t deadline_ns, struct rf_error *err)
{
    struct bed *bed = ctx;

    (void)rank;
    (void)deadline_ns;
    if (bed->refused_calls > 0) {
        bed->refused_calls--;
        return rf_fail(err, bed->refusal, "not now");
    }
    if (atomic_fetch_add(&bed->digest_calls, 1) < bed->known_after_calls)
        return RF_OK;
    for (uint64_t i = 0; i < digest_table_count(table); i++) {
        uint8_t digest[HASH_MAX_BYTES];

        assert_true(digest_table_get(bed->truth, i, digest));
        assert_true(digest_table_set(table, i, digest));
    }
    return RF_OK;
}

static struct fork_options plain_options(struct bed *bed)
{
    return (struct fork_options){.connections = 2,
                                 .verify = true,
                                 .timeout_ms = 5000,
                                 .retries = 2,
                                 .cancel = &bed->cancel,
                                 .cancel_fd = -1,
                                 .digests = give_digests,
                                 .digests_ctx = bed};
}

static void dest_whole(struct fork_dest *dest, uint8_t *memory)
{
    const struct fork_segment whole = {.bytes = STREAM_BYTES, .addr = memory, .fd = -1};

    assert_int_equal(fork_dest_add(dest, &whole, NULL), RF_OK);
    assert_int_equal(fork_dest_finish(dest, STREAM_BYTES, NULL), RF_OK);
}

static enum rf_code take(struct bed *bed, const struct fork_options *options,
                         const struct fork_dest *dest, struct fork_stats *ret_stats,
                         struct rf_error *err)
{
    return fork_rank(bed->manifest, 0, &bed->choice, bed->rig.token, dest, bed->table, options,
                     ret_stats, err);
}

/* Into one run of memory; the caller checks what came. */
static enum rf_code take_whole(struct bed *bed, const struct fork_options *options,
                               uint8_t **ret_memory, struct fork_stats *ret_stats,
                               struct rf_error *err)
{
    struct fork_dest dest = {.count = 0};

    *ret_memory = calloc(1, STREAM_BYTES);
    dest_whole(&dest, *ret_memory);
    enum rf_code code = take(bed, options, &dest, ret_stats, err);
    fork_dest_free(&dest);
    return code;
}

static void the_whole_stream_arrives_verified(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    uint8_t *memory;

    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_OK);
    assert_memory_equal(memory, bed->rig.ranks[0].bytes, STREAM_BYTES);
    assert_int_equal(stats.bytes, STREAM_BYTES);
    assert_int_equal(stats.chunks, 41);
    assert_int_equal(stats.chunks_verified, 41);
    assert_int_equal(stats.chunks_retried, 0);
    free(memory);
}

static void scattered_destinations_get_their_bytes(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_dest dest = {.count = 0};
    struct fork_stats stats;
    uint8_t *pieces[TENSORS];
    const struct manifest_rank *rank = &bed->manifest->ranks[0];

    for (unsigned i = TENSORS; i-- > 0;) {
        pieces[i] = malloc(rank->tensors[i].bytes);
        const struct fork_segment segment = {.stream_offset = rank->tensors[i].stream_offset,
                                             .bytes = rank->tensors[i].bytes,
                                             .addr = pieces[i],
                                             .fd = -1};
        assert_int_equal(fork_dest_add(&dest, &segment, NULL), RF_OK);
    }
    assert_int_equal(fork_dest_finish(&dest, STREAM_BYTES, NULL), RF_OK);
    assert_int_equal(take(bed, &options, &dest, &stats, NULL), RF_OK);
    for (unsigned i = 0; i < TENSORS; i++) {
        assert_memory_equal(pieces[i], bed->rig.ranks[0].bytes + rank->tensors[i].stream_offset,
                            rank->tensors[i].bytes);
        free(pieces[i]);
    }
    fork_dest_free(&dest);
}

static void files_get_their_bytes(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_dest dest = {.count = 0};
    struct fork_stats stats;
    char path[] = "/tmp/rfork-test-fork-XXXXXX";
    int fd = mkstemp(path);
    uint8_t *back = malloc(STREAM_BYTES);
    const uint64_t cut = 3 * CHUNK_BYTES + 77;
    const struct fork_segment first = {.bytes = cut, .fd = fd, .fd_offset = STREAM_BYTES - cut};
    const struct fork_segment second = {
        .stream_offset = cut, .bytes = STREAM_BYTES - cut, .fd = fd, .fd_offset = 0};

    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(fork_dest_add(&dest, &first, NULL), RF_OK);
    assert_int_equal(fork_dest_add(&dest, &second, NULL), RF_OK);
    assert_int_equal(fork_dest_finish(&dest, STREAM_BYTES, NULL), RF_OK);
    assert_int_equal(take(bed, &options, &dest, &stats, NULL), RF_OK);
    assert_int_equal(pread(fd, back, cut, STREAM_BYTES - cut), cut);
    assert_memory_equal(back, bed->rig.ranks[0].bytes, cut);
    assert_int_equal(pread(fd, back, STREAM_BYTES - cut, 0), STREAM_BYTES - cut);
    assert_memory_equal(back, bed->rig.ranks[0].bytes + cut, STREAM_BYTES - cut);
    free(back);
    close(fd);
    fork_dest_free(&dest);
}

static void a_file_that_cannot_be_written_fails_the_fork(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_dest dest = {.count = 0};
    struct fork_stats stats;
    struct rf_error error;
    int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    const struct fork_segment whole = {.bytes = STREAM_BYTES, .fd = fd};

    assert_true(fd >= 0);
    assert_int_equal(fork_dest_add(&dest, &whole, NULL), RF_OK);
    assert_int_equal(fork_dest_finish(&dest, STREAM_BYTES, NULL), RF_OK);
    assert_int_equal(take(bed, &options, &dest, &stats, &error), RF_E_NOMEM);
    assert_non_null(strstr(error.text, "No space left"));
    close(fd);
    fork_dest_free(&dest);
}

static void digests_that_come_late_are_waited_for(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    uint8_t *memory;

    bed->known_after_calls = 3;
    assert_int_equal(take_whole(bed, &options, &memory, &stats, NULL), RF_OK);
    assert_int_equal(stats.chunks_verified, 41);
    assert_true(atomic_load(&bed->digest_calls) >= 4);
    free(memory);
}

static void a_refused_request_for_digests_is_made_again(void **state)
{
    const enum rf_code transient[] = {RF_E_UNREACHABLE, RF_E_TIMEOUT, RF_E_PROTO};
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    uint8_t *memory;

    for (unsigned i = 0; i < sizeof(transient) / sizeof(transient[0]); i++) {
        bed->refused_calls = options.retries;
        bed->refusal = transient[i];
        digest_table_destroy(bed->table);
        bed->table = digest_table_create(HASH_XXH3_128, manifest_chunk_count(bed->manifest, 0));
        assert_int_equal(take_whole(bed, &options, &memory, &stats, NULL), RF_OK);
        assert_int_equal(stats.chunks_verified, 41);
        assert_int_equal(bed->refused_calls, 0);
        free(memory);
    }
}

static void requests_for_digests_are_not_made_again_for_ever(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    uint8_t *memory;

    bed->refused_calls = options.retries + 1;
    bed->refusal = RF_E_TIMEOUT;
    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_E_TIMEOUT);
    assert_non_null(strstr(error.text, "digests: not now"));
    free(memory);
    bed->refused_calls = 1;
    bed->refusal = RF_E_CHANGED;
    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_E_CHANGED);
    free(memory);
}

static void digests_that_never_come_end_the_fork(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    uint8_t *memory;

    options.timeout_ms = 300;
    bed->known_after_calls = UINT64_MAX;
    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_E_TIMEOUT);
    assert_non_null(strstr(error.text, "of 41 digests the seed has made 0"));
    free(memory);
}

static void a_corrupt_chunk_is_read_again(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    uint8_t *memory;

    misbehave(bed, "11,kind=corrupt,times=1");
    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_OK);
    assert_memory_equal(memory, bed->rig.ranks[0].bytes, STREAM_BYTES);
    assert_true(stats.chunks_retried >= 1);
    assert_true(stats.wire_bytes > stats.bytes);
    free(memory);
}

static void bytes_of_another_place_are_found_out(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    uint8_t *memory;

    misbehave(bed, "5,kind=lie");
    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_E_CORRUPT);
    free(memory);
}

static void lasting_corruption_names_chunk_and_tensors(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    uint8_t *memory;

    misbehave(bed, "3,kind=corrupt");
    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_E_CORRUPT);
    assert_non_null(strstr(error.text, "chunk "));
    assert_non_null(strstr(error.text, "tensor."));
    assert_non_null(strstr(error.text, "3 times"));
    free(memory);
}

static void without_verification_corruption_passes(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    uint8_t *memory;

    options.verify = false;
    misbehave(bed, "3,kind=corrupt");
    assert_int_equal(take_whole(bed, &options, &memory, &stats, NULL), RF_OK);
    assert_int_equal(stats.chunks_verified, 0);
    assert_memory_not_equal(memory, bed->rig.ranks[0].bytes, STREAM_BYTES);
    free(memory);
}

static void a_broken_connection_is_opened_again(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    uint8_t *memory;

    options.connections = 1;
    options.retries = 50;
    misbehave(bed, "9,kind=death,after=700000");
    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_OK);
    assert_memory_equal(memory, bed->rig.ranks[0].bytes, STREAM_BYTES);
    assert_true(rig_leases_taken(&bed->rig) > 1);
    free(memory);
}

static void a_path_that_keeps_breaking_is_given_up(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    uint8_t *memory;

    misbehave(bed, "9,kind=death");
    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_E_UNREACHABLE);
    free(memory);
}

static void a_refused_read_fails_the_fork_with_the_seeds_words(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    uint8_t *memory;

    atomic_store_explicit(&bed->rig.check_code, RF_E_CHANGED, memory_order_relaxed);
    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_E_CHANGED);
    assert_true(strlen(error.text) > 0);
    free(memory);
}

static void a_wrong_token_is_refused(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    uint8_t *memory;

    bed->rig.token[0] ^= 1;
    uint8_t stranger[CHUNK_TOKEN_BYTES];
    memcpy(stranger, bed->rig.token, sizeof(stranger));
    bed->rig.token[0] ^= 1;
    struct fork_dest dest = {.count = 0};
    memory = calloc(1, STREAM_BYTES);
    dest_whole(&dest, memory);
    assert_int_equal(fork_rank(bed->manifest, 0, &bed->choice, stranger, &dest, bed->table,
                               &options, &stats, &error),
                     RF_E_DENIED);
    fork_dest_free(&dest);
    free(memory);
}

static void *cancel_main(void *arg)
{
    struct bed *bed = arg;

    assert_true(rig_wait_leases(&bed->rig, 1));
    atomic_store_explicit(&bed->cancel, true, memory_order_release);
    return NULL;
}

static void cancelling_ends_a_stalled_fork_within_a_second(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rf_error error;
    pthread_t thread;
    uint8_t *memory;

    options.timeout_ms = 60000;
    options.connections = 1; /* one lease: what the other thread waits for */
    misbehave(bed, "1,kind=stall");
    uint64_t start_ns = clock_now_ns();
    assert_int_equal(thread_start(&thread, "cancel", cancel_main, bed, NULL), RF_OK);
    assert_int_equal(take_whole(bed, &options, &memory, &stats, &error), RF_E_CANCELLED);
    assert_true(clock_seconds(start_ns, clock_now_ns()) < 10); /* far from 60: it did not wait */
    pthread_join(thread, NULL);
    free(memory);
}

struct seen {
    uint64_t last;
    unsigned calls;
    bool went_back;
};

static void see_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
    struct seen *seen = ctx;

    assert_int_equal(total_bytes, STREAM_BYTES);
    seen->went_back = seen->went_back || done_bytes < seen->last;
    seen->last = done_bytes;
    seen->calls++;
}

static void progress_ends_at_the_total(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct seen seen = {.last = 0};
    uint8_t *memory;

    options.progress = see_progress;
    options.progress_ctx = &seen;
    misbehave(bed, "2");
    assert_int_equal(take_whole(bed, &options, &memory, &stats, NULL), RF_OK);
    assert_memory_equal(memory, bed->rig.ranks[0].bytes, STREAM_BYTES);
    assert_false(seen.went_back);
    assert_int_equal(seen.last, STREAM_BYTES);
    assert_true(seen.calls >= 1);
    free(memory);
}

static void destinations_with_holes_or_overlaps_are_refused(void **state)
{
    static const struct fork_segment tables[][2] = {
        {{.bytes = 10, .fd = 1}, {.stream_offset = 11, .bytes = 9, .fd = 1}},
        {{.bytes = 10, .fd = 1}, {.stream_offset = 9, .bytes = 11, .fd = 1}},
        {{.bytes = 10, .fd = 1}, {.stream_offset = 10, .bytes = 9, .fd = 1}},
        {{.bytes = 10, .fd = 1}, {.stream_offset = 10, .bytes = UINT64_MAX, .fd = 1}},
        {{.stream_offset = 1, .bytes = 9, .fd = 1}, {.stream_offset = 10, .bytes = 10, .fd = 1}},
    };
    struct rf_error error;

    (void)state;
    for (unsigned i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        struct fork_dest dest = {.count = 0};

        assert_int_equal(fork_dest_add(&dest, &tables[i][0], &error), RF_OK);
        assert_int_equal(fork_dest_add(&dest, &tables[i][1], &error), RF_OK);
        assert_int_equal(fork_dest_finish(&dest, 20, &error), RF_E_INVAL);
        fork_dest_free(&dest);
    }
}

int main(void)
{
#define BED_TEST(name) cmocka_unit_test_setup_teardown(name, bed_setup, bed_teardown)
    const struct CMUnitTest tests[] = {
        BED_TEST(the_whole_stream_arrives_verified),
        BED_TEST(scattered_destinations_get_their_bytes),
        BED_TEST(files_get_their_bytes),
        BED_TEST(a_file_that_cannot_be_written_fails_the_fork),
        BED_TEST(digests_that_come_late_are_waited_for),
        BED_TEST(a_refused_request_for_digests_is_made_again),
        BED_TEST(requests_for_digests_are_not_made_again_for_ever),
        BED_TEST(digests_that_never_come_end_the_fork),
        BED_TEST(a_corrupt_chunk_is_read_again),
        BED_TEST(bytes_of_another_place_are_found_out),
        BED_TEST(lasting_corruption_names_chunk_and_tensors),
        BED_TEST(without_verification_corruption_passes),
        BED_TEST(a_broken_connection_is_opened_again),
        BED_TEST(a_path_that_keeps_breaking_is_given_up),
        BED_TEST(a_refused_read_fails_the_fork_with_the_seeds_words),
        BED_TEST(a_wrong_token_is_refused),
        BED_TEST(cancelling_ends_a_stalled_fork_within_a_second),
        BED_TEST(progress_ends_at_the_total),
        cmocka_unit_test(destinations_with_holes_or_overlaps_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
