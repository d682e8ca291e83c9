/* Slices of several ranks, from one seed or two, into the ranks of an instance that is cut
 * differently; with and without misbehaviour on the way. */
#include "base/clock.h"
#include "base/log.h"
#include "base/rand.h"
#include "fork/internal.h"
#include "model/convert.h"
#include "util/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    CHUNK_BYTES = 64 << 10,
    THREE_CHUNKS = 3 * CHUNK_BYTES,
    STREAM_BYTES = 12 * CHUNK_BYTES + 4096,
    RANKS = 2,
    TENSORS = 20,
    TARGETS = 3,
    TARGET_BYTES = 4 * STREAM_BYTES,
    MAX_MOVES = 400,
    MANY = 3 * FORK_MAX_ITEM_MOVES,
};

struct bed {
    struct rig rig;
    struct manifest *manifest;
    struct digest_table *truth[RANKS];
    struct digest_table *tables[2 * RANKS];
    const struct transport *null;
    struct transport_seed *halves[2];
    struct transport_choice choices[2];
    struct fork_peer peers[2];
    struct fork_source sources[2 * RANKS];
    struct fork_dest dests[TARGETS];
    struct fork_target targets[TARGETS];
    struct fork_move moves[MAX_MOVES];
    struct fork_plan plan;
    uint8_t *memory[TARGETS];
    uint8_t *expected[TARGETS];
    uint64_t used[TARGETS];
};

static struct manifest *make_manifest(void)
{
    const struct manifest_identity identity = {.model = "m",
                                               .layout = "checkpoint",
                                               .quantisation = "none",
                                               .algorithm = HASH_XXH3_128,
                                               .chunk_bytes = CHUNK_BYTES};
    struct manifest_builder *builder = manifest_builder_create(&identity, NULL);
    struct manifest *manifest = NULL;

    assert_non_null(builder);
    for (uint32_t r = 0; r < RANKS; r++) {
        const struct rank_id id = {
            .tp = r, .tp_size = RANKS, .pp_size = 1, .ep_size = 1, .dp_size = 1};

        assert_int_equal(manifest_add_rank(builder, &id, NULL), RF_OK);
        for (unsigned i = 0; i < TENSORS; i++) {
            char name[32];
            uint64_t shape[1] = {STREAM_BYTES / TENSORS};
            struct tensor tensor = {.name = name,
                                    .dtype = RF_DTYPE_U8,
                                    .ndim = 1,
                                    .shape = shape,
                                    .file = MANIFEST_NONE,
                                    .alias_of = MANIFEST_NONE};

            if (i + 1 == TENSORS)
                shape[0] += STREAM_BYTES % TENSORS;
            (void)snprintf(name, sizeof(name), "tensor.%02u", i);
            assert_int_equal(manifest_add_tensor(builder, &tensor, NULL, NULL), RF_OK);
        }
    }
    assert_int_equal(manifest_build(builder, &manifest, NULL), RF_OK);
    return manifest;
}

static struct digest_table *digests_of(const struct bed *bed, uint32_t rank)
{
    uint64_t chunks = manifest_chunk_count(bed->manifest, rank);
    struct digest_table *table = digest_table_create(HASH_XXH3_128, chunks);
    struct chunk_hasher *hasher = chunk_hasher_create(HASH_XXH3_128);

    for (uint64_t i = 0; i < chunks; i++) {
        uint8_t digest[HASH_MAX_BYTES];

        chunk_hasher_begin(hasher);
        chunk_hasher_update(hasher, bed->rig.ranks[rank].bytes + i * CHUNK_BYTES,
                            manifest_chunk_size(bed->manifest, rank, i));
        chunk_hasher_final(hasher, digest);
        assert_true(digest_table_set(table, i, digest));
    }
    chunk_hasher_destroy(hasher);
    return table;
}

static void start_seed(struct bed *bed, unsigned peer)
{
    const struct transport_seed_options options = {.host = "127.0.0.1"};
    struct transport_choice *choice = &bed->choices[peer];

    choice->transport = bed->null;
    assert_int_equal(bed->null->seed_start(&bed->rig.exporter, &options, &bed->halves[peer],
                                           &choice->endpoint, NULL),
                     RF_OK);
    bed->peers[peer] = (struct fork_peer){
        .choice = choice, .token = bed->rig.token, .name = peer == 0 ? "seed A" : "seed B"};
}

/* Two seeds with the same two ranks; two runs of memory and one of halves as targets. */
static int bed_setup(void **state)
{
    struct bed *bed = calloc(1, sizeof(*bed));

    assert_non_null(bed);
    log_set_level(LOG_ERROR);
    rig_init(&bed->rig, RANKS, STREAM_BYTES, 3);
    bed->manifest = make_manifest();
    assert_int_equal(transport_find("null", &bed->null, NULL), RF_OK);
    start_seed(bed, 0);
    start_seed(bed, 1);
    for (uint32_t i = 0; i < RANKS; i++)
        bed->truth[i] = digests_of(bed, i);
    for (uint32_t i = 0; i < 2 * RANKS; i++) {
        bed->tables[i] =
            digest_table_create(HASH_XXH3_128, manifest_chunk_count(bed->manifest, i % RANKS));
        bed->sources[i] = (struct fork_source){.manifest = bed->manifest,
                                               .table = bed->tables[i],
                                               .peer = i / RANKS,
                                               .rank = i % RANKS};
    }
    for (unsigned i = 0; i < TARGETS; i++) {
        uint64_t cut = i == 2 ? TARGET_BYTES / 2 + 33 : TARGET_BYTES;
        bed->memory[i] = calloc(1, TARGET_BYTES);
        bed->expected[i] = calloc(1, TARGET_BYTES);
        assert_non_null(bed->memory[i]);
        assert_non_null(bed->expected[i]);
        struct fork_segment segment = {.bytes = cut, .addr = bed->memory[i], .fd = -1};
        if (i == 2) /* swapped halves */
            segment.addr = bed->memory[i] + (TARGET_BYTES - cut);
        assert_int_equal(fork_dest_add(&bed->dests[i], &segment, NULL), RF_OK);
        segment = (struct fork_segment){
            .stream_offset = cut, .bytes = TARGET_BYTES - cut, .addr = bed->memory[i], .fd = -1};
        if (i == 2)
            assert_int_equal(fork_dest_add(&bed->dests[i], &segment, NULL), RF_OK);
        assert_int_equal(fork_dest_finish(&bed->dests[i], TARGET_BYTES, NULL), RF_OK);
        bed->targets[i].dest = &bed->dests[i];
    }
    bed->plan = (struct fork_plan){.peers = bed->peers,
                                   .sources = bed->sources,
                                   .targets = bed->targets,
                                   .moves = bed->moves,
                                   .peer_count = 1,
                                   .source_count = RANKS,
                                   .target_count = TARGETS};
    *state = bed;
    return 0;
}

static int bed_teardown(void **state)
{
    struct bed *bed = *state;

    for (unsigned i = 0; i < 2; i++)
        bed->null->seed_stop(bed->halves[i]);
    for (unsigned i = 0; i < TARGETS; i++) {
        fork_dest_free(&bed->dests[i]);
        free(bed->memory[i]);
        free(bed->expected[i]);
    }
    for (unsigned i = 0; i < RANKS; i++)
        digest_table_destroy(bed->truth[i]);
    for (unsigned i = 0; i < 2 * RANKS; i++)
        digest_table_destroy(bed->tables[i]);
    manifest_unref(bed->manifest);
    rig_free(&bed->rig);
    free(bed);
    return 0;
}

/* ---- what is to move ---- */

/* Adds a move to free bytes of its target, `gap` apart, and does it to what is expected. */
static void add_move(struct bed *bed, struct fork_move move, uint64_t gap)
{
    const uint8_t *from = bed->rig.ranks[bed->sources[move.source].rank].bytes;
    uint64_t piece =
        move.from == move.to ? move.read.bytes : convert_bytes(move.from, move.read.bytes, move.to);

    assert_true(bed->plan.move_count < MAX_MOVES);
    move.write_offset = bed->used[move.target];
    move.write_stride = move.read.count > 1 ? piece + gap : 0;
    for (uint64_t i = 0; i < move.read.count; i++) {
        uint8_t *to = bed->expected[move.target] + move.write_offset + i * move.write_stride;
        const uint8_t *at = from + move.read.offset + i * move.read.stride;

        if (move.from == move.to)
            memcpy(to, at, piece);
        else
            assert_int_equal(convert_elements(move.from, at, move.read.bytes, move.to, to, NULL),
                             RF_OK);
    }
    bed->used[move.target] += move.read.count * (piece + gap);
    assert_true(bed->used[move.target] <= TARGET_BYTES);
    bed->moves[bed->plan.move_count++] = move;
}

static struct fork_move run(uint32_t source, uint32_t target, uint64_t offset, uint64_t bytes)
{
    return (struct fork_move){
        .read = {.offset = offset, .bytes = bytes, .count = 1}, .source = source, .target = target};
}

/* Rows of row_bytes cut into `columns` equal ones, those in the mask to a target each. */
static void add_columns(struct bed *bed, uint32_t source, uint64_t offset, uint64_t rows,
                        uint64_t row_bytes, unsigned columns, unsigned mask)
{
    for (unsigned i = 0; i < columns; i++) {
        struct fork_move move =
            run(source, i % TARGETS, offset + i * (row_bytes / columns), row_bytes / columns);

        move.read.count = rows;
        move.read.stride = rows > 1 ? row_bytes : 0;
        if ((mask >> i & 1) != 0)
            add_move(bed, move, i == 1 ? 13 : 0);
    }
}

/* Cuts a whole stream into tensors that are taken by rows, by columns, twice, converted, not. */
static void add_random(struct bed *bed, uint32_t source, struct rand_seq *rand)
{
    uint64_t at = rand_below(rand, 3) == 0 ? rand_below(rand, THREE_CHUNKS) : 0;

    while (at < STREAM_BYTES) {
        uint64_t bytes = 1 + rand_below(rand, rand_below(rand, 2) == 0 ? THREE_CHUNKS : 500);
        uint32_t target = (uint32_t)rand_below(rand, TARGETS);
        struct fork_move move;

        if (bytes > STREAM_BYTES - at)
            bytes = STREAM_BYTES - at;
        move = run(source, target, at, bytes);
        switch (rand_below(rand, 6)) {
        case 0: /* to all */
            for (move.target = 0; move.target < TARGETS; move.target++)
                add_move(bed, move, 0);
            break;
        case 1: /* columns */
            if (bytes >= 64)
                add_columns(bed, source, at, bytes / 48, 48, 3, 1 + (unsigned)rand_below(rand, 7));
            break;
        case 2:
            move.from = RF_DTYPE_BF16;
            move.to = RF_DTYPE_F32;
            move.read.bytes = bytes / 2 * 2;
            if (bytes >= 2)
                add_move(bed, move, 0);
            break;
        case 3: /* a hole */
            break;
        default:
            add_move(bed, move, 0);
        }
        at += bytes;
    }
}

/* ---- running ---- */

static enum rf_code give_digests(void *ctx, uint32_t source, struct digest_table *table,
                                 uint64_t deadline_ns, struct rf_error *err)
{
    const struct bed *bed = ctx;

    (void)deadline_ns;
    (void)err;
    for (uint64_t i = 0; i < digest_table_count(table); i++) {
        uint8_t digest[HASH_MAX_BYTES];

        assert_true(digest_table_get(bed->truth[bed->sources[source].rank], i, digest));
        assert_true(digest_table_set(table, i, digest));
    }
    return RF_OK;
}

static struct fork_options plain_options(struct bed *bed)
{
    return (struct fork_options){.connections = 3,
                                 .verify = true,
                                 .timeout_ms = 5000,
                                 .retries = 2,
                                 .cancel_fd = -1,
                                 .digests = give_digests,
                                 .digests_ctx = bed};
}

static void misbehave(struct bed *bed, unsigned peer, const char *spec)
{
    char name[TRANSPORT_NAME_BYTES];
    struct transport_choice *choice = &bed->choices[peer];

    (void)snprintf(name, sizeof(name), "fault:%s:null", spec);
    assert_int_equal(transport_find(name, &choice->transport, NULL), RF_OK);
    (void)snprintf(choice->endpoint.transport, sizeof(choice->endpoint.transport), "%s", name);
}

static enum rf_code go(struct bed *bed, struct fork_stats *ret_stats, struct rf_error *err)
{
    struct fork_options options = plain_options(bed);

    return fork_run(&bed->plan, &options, ret_stats, err);
}

static void assert_arrived(const struct bed *bed)
{
    uint64_t cut = TARGET_BYTES / 2 + 33;

    assert_memory_equal(bed->memory[0], bed->expected[0], TARGET_BYTES);
    assert_memory_equal(bed->memory[1], bed->expected[1], TARGET_BYTES);
    assert_memory_equal(bed->memory[2] + (TARGET_BYTES - cut), bed->expected[2], cut);
    assert_memory_equal(bed->memory[2], bed->expected[2] + cut, TARGET_BYTES - cut);
}

static void must_go(struct bed *bed, struct fork_stats *ret_stats)
{
    struct rf_error error;

    if (go(bed, ret_stats, &error) != RF_OK)
        fail_msg("%s", error.text);
    assert_arrived(bed);
}

static void start_over(struct bed *bed)
{
    bed->plan.move_count = 0;
    for (unsigned i = 0; i < TARGETS; i++) {
        bed->used[i] = 0;
        memset(bed->memory[i], 0, TARGET_BYTES);
        memset(bed->expected[i], 0, TARGET_BYTES);
    }
}

/* ---- tests ---- */

static void whatever_is_wanted_arrives_where_it_belongs(void **state)
{
    struct bed *bed = *state;
    struct fork_stats stats;

    misbehave(bed, 0, "3,kind=short");
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct rand_seq rand = {.state = seed};

        start_over(bed);
        add_random(bed, 0, &rand);
        add_random(bed, 1, &rand);
        must_go(bed, &stats);
        assert_int_equal(stats.chunks_verified, stats.chunks);
    }
}

static void what_is_wanted_whole_is_read_by_chunks(void **state)
{
    struct bed *bed = *state;
    struct item_list list;
    struct fork_stats stats;

    add_columns(bed, 0, 0, STREAM_BYTES / 1024, 1024, 4, 15);
    assert_int_equal(STREAM_BYTES % 1024, 0);
    assert_int_equal(item_list_make(&bed->plan, &list, NULL), RF_OK);
    assert_int_equal(list.count, manifest_chunk_count(bed->manifest, 0));
    for (uint64_t i = 0; i < list.count; i++)
        assert_int_equal(list.items[i].kind, ITEM_CHUNK);
    assert_int_equal(list.bytes, STREAM_BYTES);
    item_list_free(&list);
    must_go(bed, &stats);
    assert_int_equal(stats.wire_bytes, STREAM_BYTES);
}

static void slices_cost_their_own_bytes(void **state)
{
    struct bed *bed = *state;
    struct fork_stats stats;

    add_columns(bed, 0, 0, STREAM_BYTES / 1024, 1024, 4, 2);
    add_columns(bed, 1, 512, 300, 96, 3, 5);
    must_go(bed, &stats);
    assert_int_equal(stats.bytes, STREAM_BYTES / 4 + 300 * 64);
    assert_int_equal(stats.wire_bytes, stats.bytes);
}

static void a_small_hole_does_not_break_up_a_chunk(void **state)
{
    struct bed *bed = *state;
    struct item_list list;
    struct fork_stats stats;

    add_move(bed, run(0, 0, 0, CHUNK_BYTES / 2), 0);
    add_move(bed, run(0, 1, CHUNK_BYTES / 2 + 200, CHUNK_BYTES / 2 - 200), 0);
    assert_int_equal(item_list_make(&bed->plan, &list, NULL), RF_OK);
    assert_int_equal(list.count, 1);
    assert_int_equal(list.items[0].kind, ITEM_CHUNK);
    item_list_free(&list);
    must_go(bed, &stats);
    assert_int_equal(stats.wire_bytes, CHUNK_BYTES);
}

/* As a transport does that fills many places at once, and only then says so. */
static void take_all_at_once(struct item_slot *slot, const uint8_t *bytes, uint64_t count)
{
    struct iovec iov[16];
    uint64_t offered;
    int places = slot->sink.where(&slot->sink, iov, 16, &offered);

    assert_int_equal(offered, count);
    for (int i = 0; i < places; i++) {
        memcpy(iov[i].iov_base, bytes, iov[i].iov_len);
        bytes += iov[i].iov_len;
    }
    assert_int_equal(slot->sink.took(&slot->sink, count, NULL), RF_OK);
}

static void several_small_holes_of_a_chunk_are_kept_apart(void **state)
{
    struct bed *bed = *state;
    atomic_uint_fast64_t arrived = 0;
    struct item_list list;
    struct item_slot slot;
    uint8_t found[HASH_MAX_BYTES];
    uint8_t wanted[HASH_MAX_BYTES];

    add_move(bed, run(0, 0, 64, 20000), 0);
    add_move(bed, run(0, 1, 20100, 20000), 0);
    add_move(bed, run(0, 0, 40130, CHUNK_BYTES - 40130 - 10), 0);
    assert_int_equal(item_list_make(&bed->plan, &list, NULL), RF_OK);
    assert_int_equal(list.count, 1);
    assert_int_equal(list.items[0].kind, ITEM_CHUNK);
    item_slot_init(&slot, &bed->plan, false, &arrived);
    assert_int_equal(item_slot_begin(&slot, &list.items[0], 0, true, NULL), RF_OK);
    assert_false(slot.bounces);
    take_all_at_once(&slot, bed->rig.ranks[0].bytes, CHUNK_BYTES);
    item_slot_digest(&slot, found);
    assert_true(digest_table_get(bed->truth[0], 0, wanted));
    assert_memory_equal(found, wanted, hash_bytes(HASH_XXH3_128));
    assert_arrived(bed);
    item_slot_free(&slot);
    item_list_free(&list);
}

static void what_many_want_is_read_once(void **state)
{
    struct bed *bed = *state;
    struct fork_stats stats;

    for (uint32_t target = 0; target < TARGETS; target++)
        add_move(bed, run(0, target, 1000, 20000), 0);
    must_go(bed, &stats);
    assert_int_equal(stats.bytes, 60000);
    assert_int_equal(stats.wire_bytes, 20000);
}

static void more_pieces_than_a_read_may_have_are_several_reads(void **state)
{
    struct bed *bed = *state;
    struct item_list list;
    static struct fork_move many[MANY];

    for (uint64_t i = 0; i < MANY; i++) {
        many[i] = run(0, 0, i * 8, 4);
        many[i].write_offset = i * 4;
    }
    bed->plan.moves = many;
    bed->plan.move_count = MANY;
    assert_int_equal(item_list_make(&bed->plan, &list, NULL), RF_OK);
    assert_int_equal(list.count, 3);
    assert_int_equal(list.bytes, 4 * MANY);
    item_list_free(&list);
    struct fork_stats stats;
    assert_int_equal(go(bed, &stats, NULL), RF_OK);
    for (uint64_t i = 0; i < MANY; i++)
        assert_memory_equal(bed->memory[0] + i * 4, bed->rig.ranks[0].bytes + i * 8, 4);
}

static void moves_beside_source_or_target_are_refused(void **state)
{
    struct bed *bed = *state;
    struct fork_move bad[] = {
        run(0, 0, STREAM_BYTES - 1, 2),
        run(RANKS, 0, 0, 1),
        run(0, TARGETS, 0, 1),
        run(0, 0, 0, 100),
        run(0, 0, 0, 8),
        run(0, 0, 0, 8),
    };
    struct fork_stats stats;
    struct rf_error error;

    bad[3].write_offset = TARGET_BYTES - 99;
    bad[4].read.count = 3;
    bad[4].read.stride = 8;
    bad[4].write_stride = UINT64_MAX / 2;
    bad[5].from = RF_DTYPE_I64;
    bad[5].to = RF_DTYPE_F32;
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        bed->moves[0] = bad[i];
        bed->plan.move_count = 1;
        assert_int_not_equal(go(bed, &stats, &error), RF_OK);
        assert_true(strlen(error.text) > 0);
    }
}

static void a_corrupt_slice_is_read_again(void **state)
{
    struct bed *bed = *state;
    struct fork_stats stats;

    misbehave(bed, 0, "11,kind=corrupt,times=1");
    add_columns(bed, 0, 0, STREAM_BYTES / 1024, 1024, 4, 2);
    must_go(bed, &stats);
    assert_true(stats.chunks_retried >= 1);
}

static void lasting_corruption_names_rank_and_tensors(void **state)
{
    struct bed *bed = *state;
    struct fork_stats stats;
    struct rf_error error;

    misbehave(bed, 0, "3,kind=corrupt");
    add_columns(bed, 1, 0, STREAM_BYTES / 1024, 1024, 4, 2);
    assert_int_equal(go(bed, &stats, &error), RF_E_CORRUPT);
    assert_non_null(strstr(error.text, "rank tp1/2"));
    assert_non_null(strstr(error.text, "tensor."));
    assert_non_null(strstr(error.text, "3 times"));
}

static void slices_of_another_place_are_found_out(void **state)
{
    struct bed *bed = *state;
    struct fork_stats stats;
    struct rf_error error;

    misbehave(bed, 0, "5,kind=lie");
    add_columns(bed, 0, 2048, STREAM_BYTES / 1024 - 2, 1024, 4, 2);
    assert_int_equal(go(bed, &stats, &error), RF_E_CORRUPT);
}

static void a_broken_connection_is_opened_again(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;
    struct rand_seq rand = {.state = 77};

    options.connections = 1;
    options.retries = 60;
    add_random(bed, 0, &rand);
    add_random(bed, 1, &rand);
    misbehave(bed, 0, "9,kind=death,after=150000");
    assert_int_equal(fork_run(&bed->plan, &options, &stats, NULL), RF_OK);
    assert_arrived(bed);
    assert_true(rig_leases_taken(&bed->rig) > 1);
}

static void two_seeds_give_what_each_has(void **state)
{
    struct bed *bed = *state;
    struct fork_options options = plain_options(bed);
    struct fork_stats stats;

    bed->plan.peer_count = 2;
    bed->plan.source_count = 2 * RANKS;
    for (unsigned connections = 1; connections <= 5; connections++) {
        struct rand_seq rand = {.state = connections};

        start_over(bed);
        add_random(bed, 0, &rand);
        add_random(bed, RANKS + 1, &rand);
        options.connections = connections;
        assert_int_equal(fork_run(&bed->plan, &options, &stats, NULL), RF_OK);
        assert_arrived(bed);
    }
}

static void a_seed_that_vanishes_is_named(void **state)
{
    struct bed *bed = *state;
    struct fork_stats stats;
    struct rf_error error;

    bed->plan.peer_count = 2;
    bed->plan.source_count = 2 * RANKS;
    misbehave(bed, 1, "4,kind=death,after=100000");
    add_move(bed, run(0, 0, 0, STREAM_BYTES), 0);
    add_move(bed, run(RANKS + 1, 1, 0, STREAM_BYTES), 0);
    assert_int_equal(go(bed, &stats, &error), RF_E_UNREACHABLE);
    assert_non_null(strstr(error.text, "seed B"));
    assert_non_null(strstr(error.text, "rank tp1/2"));
}

static void a_seed_that_cannot_be_reached_is_named_with_the_rank(void **state)
{
    struct bed *bed = *state;
    struct fork_stats stats;
    struct rf_error error;

    bed->plan.peer_count = 2;
    bed->plan.source_count = 2 * RANKS;
    bed->null->seed_stop(bed->halves[1]);
    bed->halves[1] = NULL;
    add_move(bed, run(0, 0, 0, STREAM_BYTES), 0);
    add_move(bed, run(RANKS + 1, 1, 0, STREAM_BYTES), 0);
    assert_int_equal(go(bed, &stats, &error), RF_E_UNREACHABLE);
    assert_non_null(strstr(error.text, "seed B: rank tp1/2: "));
}

static void nothing_to_move_is_no_error(void **state)
{
    struct bed *bed = *state;
    struct fork_stats stats;

    must_go(bed, &stats);
    assert_int_equal(stats.bytes, 0);
}

int main(void)
{
#define BED_TEST(name) cmocka_unit_test_setup_teardown(name, bed_setup, bed_teardown)
    const struct CMUnitTest tests[] = {
        BED_TEST(whatever_is_wanted_arrives_where_it_belongs),
        BED_TEST(what_is_wanted_whole_is_read_by_chunks),
        BED_TEST(slices_cost_their_own_bytes),
        BED_TEST(a_small_hole_does_not_break_up_a_chunk),
        BED_TEST(several_small_holes_of_a_chunk_are_kept_apart),
        BED_TEST(what_many_want_is_read_once),
        BED_TEST(more_pieces_than_a_read_may_have_are_several_reads),
        BED_TEST(moves_beside_source_or_target_are_refused),
        BED_TEST(a_corrupt_slice_is_read_again),
        BED_TEST(lasting_corruption_names_rank_and_tensors),
        BED_TEST(slices_of_another_place_are_found_out),
        BED_TEST(a_broken_connection_is_opened_again),
        BED_TEST(two_seeds_give_what_each_has),
        BED_TEST(a_seed_that_vanishes_is_named),
        BED_TEST(a_seed_that_cannot_be_reached_is_named_with_the_rank),
        BED_TEST(nothing_to_move_is_no_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
