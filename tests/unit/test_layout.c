/* Streams mapped onto memory: what a layout accepts, and that a walk over it misses nothing. */
#include "base/rand.h"
#include "model/layout.h"
#include "util/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { REGION_BYTES = 4096 };

static struct region *region_of(const void *data, uint64_t bytes)
{
    struct region *region = NULL;

    assert_int_equal(region_create_borrowed(data, bytes, &region, NULL), RF_OK);
    return region;
}

static void neighbours_that_continue_each_other_are_one_segment(void **state)
{
    (void)state;
    static const uint8_t memory[REGION_BYTES];
    struct region *region = region_of(memory, sizeof memory);
    struct layout layout = {0};

    /* out of order: 20...30 joins both sides only once all is sorted */
    assert_int_equal(layout_add(&layout, 0, 10, region, 100, NULL), RF_OK);
    assert_int_equal(layout_add(&layout, 10, 10, region, 110, NULL), RF_OK);
    assert_int_equal(layout_add(&layout, 30, 10, region, 130, NULL), RF_OK);
    assert_int_equal(layout_add(&layout, 20, 10, region, 120, NULL), RF_OK);
    assert_int_equal(layout_add(&layout, 40, 10, region, 141, NULL), RF_OK);
    assert_int_equal(layout_finish(&layout, 50, NULL), RF_OK);
    assert_int_equal(layout.count, 2);
    assert_int_equal(layout.segments[0].bytes, 40);
    assert_int_equal(layout.segments[0].region_offset, 100);
    assert_int_equal(layout.segments[1].region_offset, 141);
    assert_int_equal(layout.stream_bytes, 50);
    layout_free(&layout);
    region_unref(region);
}

static void equal_addresses_in_two_regions_are_not_one_segment(void **state)
{
    (void)state;
    static const uint8_t memory[REGION_BYTES];
    struct region *one = region_of(memory, sizeof memory);
    struct region *two = region_of(memory, sizeof memory);
    struct layout layout = {0};

    assert_int_equal(layout_add(&layout, 0, 10, one, 0, NULL), RF_OK);
    assert_int_equal(layout_add(&layout, 10, 10, two, 10, NULL), RF_OK);
    assert_int_equal(layout_finish(&layout, 20, NULL), RF_OK);
    assert_int_equal(layout.count, 2);
    layout_free(&layout);
    region_unref(one);
    region_unref(two);
}

static void empty_tensors_and_empty_streams_need_no_segment(void **state)
{
    (void)state;
    static const uint8_t memory[REGION_BYTES];
    struct region *region = region_of(memory, sizeof memory);
    struct layout layout = {0};
    struct layout_cursor cursor;
    struct segment piece;

    assert_int_equal(layout_add(&layout, 7, 0, region, 9999, NULL), RF_OK);
    assert_int_equal(layout_finish(&layout, 0, NULL), RF_OK);
    assert_int_equal(layout.count, 0);
    layout_cursor_init(&cursor, &layout, NULL, 0);
    assert_false(layout_cursor_peek(&cursor, 100, &piece));
    layout_free(&layout);
    region_unref(region);
}

struct bad_layout {
    struct {
        uint64_t stream_offset;
        uint64_t bytes;
    } segments[3];
    uint64_t stream_bytes;
    const char *words;
};

static void holes_and_overlaps_are_refused(void **state)
{
    (void)state;
    static const uint8_t memory[REGION_BYTES];
    static const struct bad_layout bad[] = {
        {{{0, 10}, {11, 9}, {20, 10}}, 30, "bytes 10 to 11 are nowhere"},
        {{{1, 9}, {10, 10}, {20, 10}}, 30, "bytes 0 to 1 are nowhere"},
        {{{0, 10}, {10, 10}, {19, 11}}, 30, "bytes 19 to 20 are in two places"},
        {{{0, 10}, {0, 10}, {10, 10}}, 20, "bytes 0 to 10 are in two places"},
        {{{0, 10}, {10, 10}, {20, 10}}, 31, "covers 30 bytes of a stream of 31"},
        {{{0, 10}, {10, 10}, {20, 10}}, 29, "covers 30 bytes of a stream of 29"},
    };
    struct region *region = region_of(memory, sizeof memory);

    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct layout layout = {0};
        struct rf_error err = {0};

        for (unsigned j = 0; j < 3; j++)
            assert_int_equal(layout_add(&layout, bad[i].segments[j].stream_offset,
                                        bad[i].segments[j].bytes, region, 1000 * j, NULL),
                             RF_OK);
        assert_int_equal(layout_finish(&layout, bad[i].stream_bytes, &err), RF_E_INVAL);
        assert_says(&err, bad[i].words);
        layout_free(&layout);
    }
    region_unref(region);
}

static void segments_outside_their_region_are_refused(void **state)
{
    (void)state;
    static const uint8_t memory[REGION_BYTES];
    struct region *region = region_of(memory, sizeof memory);
    struct layout layout = {0};
    const uint64_t max = UINT64_MAX;

    assert_int_equal(layout_add(&layout, 0, 10, region, REGION_BYTES - 9, NULL), RF_E_INVAL);
    assert_int_equal(layout_add(&layout, 0, max, region, 0, NULL), RF_E_INVAL);
    assert_int_equal(layout_add(&layout, 0, 10, region, max, NULL), RF_E_INVAL);
    assert_int_equal(layout_add(&layout, max, 10, region, 0, NULL), RF_E_INVAL);
    assert_int_equal(layout_add(&layout, 0, 10, region, REGION_BYTES - 10, NULL), RF_OK);
    assert_int_equal(layout.count, 1);
    layout_free(&layout);
    region_unref(region);
}

/* ---- the walk ---- */

enum { WORLD_REGIONS = 4, WORLD_STREAM = 3000 };

/* A stream cut at random places, whose pieces lie somewhere in some region. */
struct world {
    uint8_t memory[WORLD_REGIONS][2 * WORLD_STREAM];
    struct region *regions[WORLD_REGIONS];
    uint8_t stream[WORLD_STREAM];
    struct layout layout;
};

static void world_make(struct world *world, struct rand_seq *seq)
{
    uint64_t used[WORLD_REGIONS] = {0};
    struct {
        uint64_t at, bytes, region, offset;
    } cuts[WORLD_STREAM];
    unsigned count = 0;

    memset(world->memory, 0, sizeof world->memory);
    for (unsigned i = 0; i < WORLD_REGIONS; i++)
        world->regions[i] = region_of(world->memory[i], sizeof world->memory[i]);
    for (uint64_t at = 0; at < WORLD_STREAM; count++) {
        uint64_t bytes = rand_below(seq, 60) + 1;
        uint64_t region = rand_below(seq, WORLD_REGIONS);

        if (bytes > WORLD_STREAM - at)
            bytes = WORLD_STREAM - at;
        used[region] += rand_below(seq, 3) == 0 ? rand_below(seq, 40) : 0;
        cuts[count].at = at;
        cuts[count].bytes = bytes;
        cuts[count].region = region;
        cuts[count].offset = used[region];
        for (uint64_t i = 0; i < bytes; i++) {
            world->stream[at + i] = (uint8_t)rand_next(seq);
            world->memory[region][used[region] + i] = world->stream[at + i];
        }
        used[region] += bytes;
        at += bytes;
    }
    world->layout = (struct layout){0};
    for (unsigned left = count; left > 0; left--) { /* added in random order */
        unsigned pick = (unsigned)rand_below(seq, left);
        assert_int_equal(layout_add(&world->layout, cuts[pick].at, cuts[pick].bytes,
                                    world->regions[cuts[pick].region], cuts[pick].offset, NULL),
                         RF_OK);
        cuts[pick] = cuts[left - 1];
    }
    assert_int_equal(layout_finish(&world->layout, WORLD_STREAM, NULL), RF_OK);
}

static void world_free(struct world *world)
{
    layout_free(&world->layout);
    for (unsigned i = 0; i < WORLD_REGIONS; i++)
        region_unref(world->regions[i]);
}

static struct stream_range random_range(struct rand_seq *seq)
{
    struct stream_range range = {.bytes = rand_below(seq, 100) + 1, .count = 1};

    if (rand_below(seq, 2) == 0) {
        range.count = rand_below(seq, 8) + 2;
        range.stride = range.bytes + rand_below(seq, 200);
    }
    uint64_t reach = (range.count - 1) * range.stride + range.bytes;
    range.offset = rand_below(seq, WORLD_STREAM - reach + 1);
    return range;
}

static size_t expected_bytes(const struct world *world, const struct stream_range *ranges,
                             uint32_t count, uint8_t *out)
{
    size_t at = 0;

    for (uint32_t i = 0; i < count; i++) {
        for (uint64_t j = 0; j < ranges[i].count; j++) {
            memcpy(out + at, world->stream + ranges[i].offset + j * ranges[i].stride,
                   ranges[i].bytes);
            at += ranges[i].bytes;
        }
    }
    return at;
}

static size_t walked_bytes(const struct world *world, const struct stream_range *ranges,
                           uint32_t count, struct rand_seq *seq, uint8_t *out)
{
    struct layout_cursor cursor;
    struct segment piece;
    size_t at = 0;

    layout_cursor_init(&cursor, &world->layout, ranges, count);
    while (layout_cursor_peek(&cursor, rand_below(seq, 70) + 1, &piece)) {
        assert_true(piece.bytes > 0);
        /* taking less than was offered, like a short send */
        uint64_t take = rand_below(seq, 3) == 0 ? rand_below(seq, piece.bytes + 1) : piece.bytes;
        assert_memory_equal(region_data(piece.region) + piece.region_offset,
                            world->stream + piece.stream_offset, piece.bytes);
        memcpy(out + at, region_data(piece.region) + piece.region_offset, take);
        layout_cursor_skip(&cursor, take);
        at += take;
    }
    return at;
}

static void walk_over_random_ranges_misses_nothing(void **state)
{
    (void)state;
    static struct world world;
    static uint8_t expected[16 * 1000];
    static uint8_t walked[16 * 1000];
    struct rand_seq seq = {4};

    for (unsigned round = 0; round < 30; round++) {
        world_make(&world, &seq);
        for (unsigned i = 0; i < 30; i++) {
            struct stream_range ranges[16];
            uint32_t count = (uint32_t)rand_below(&seq, 16) + 1;
            uint64_t bytes = 0;

            for (uint32_t j = 0; j < count; j++)
                ranges[j] = random_range(&seq);
            assert_int_equal(stream_ranges_check(ranges, count, WORLD_STREAM, &bytes, NULL), RF_OK);
            assert_int_equal(expected_bytes(&world, ranges, count, expected), bytes);
            assert_int_equal(walked_bytes(&world, ranges, count, &seq, walked), bytes);
            assert_memory_equal(expected, walked, bytes);
        }
        world_free(&world);
    }
}

static void every_offset_finds_its_segment(void **state)
{
    (void)state;
    static struct world world;
    struct rand_seq seq = {5};

    world_make(&world, &seq);
    for (uint64_t at = 0; at < WORLD_STREAM; at++) {
        const struct segment *segment = &world.layout.segments[layout_find(&world.layout, at)];
        assert_true(segment->stream_offset <= at && at < segment->stream_offset + segment->bytes);
    }
    world_free(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neighbours_that_continue_each_other_are_one_segment),
        cmocka_unit_test(equal_addresses_in_two_regions_are_not_one_segment),
        cmocka_unit_test(empty_tensors_and_empty_streams_need_no_segment),
        cmocka_unit_test(holes_and_overlaps_are_refused),
        cmocka_unit_test(segments_outside_their_region_are_refused),
        cmocka_unit_test(walk_over_random_ranges_misses_nothing),
        cmocka_unit_test(every_offset_finds_its_segment),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
