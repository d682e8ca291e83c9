/* Loading: every byte where it belongs, whatever the offsets, and errors that say what is
 * missing. */
#include "base/cleanup.h"
#include "memory/region.h"
#include "util/bytes.h"
#include "util/folder.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { MIB = 1 << 20, FILE_BYTES = 11 * MIB + 1234 };

static char *folder;
static uint8_t *content;
static char *path;
static int fd = -1;

static int make_file(void **state)
{
    (void)state;
    folder = folder_make();
    content = malloc(FILE_BYTES);
    if (content == NULL)
        return -1;
    for (size_t i = 0; i < FILE_BYTES; i++)
        content[i] = (uint8_t)((i * 2654435761u >> 13) | 1); /* never 0 */
    folder_put(folder, "weights", content, FILE_BYTES);
    path = folder_path(folder, "weights");
    fd = open(path, O_RDWR | O_CLOEXEC);
    return fd >= 0 ? 0 : -1;
}

static int remove_file(void **state)
{
    (void)state;
    close(fd);
    free(path);
    free(content);
    folder_remove(folder);
    return 0;
}

static struct region *make_region(enum region_kind kind, uint64_t bytes)
{
    struct region *region = NULL;
    enum rf_code code = kind == REGION_MEMFD ? region_create_memfd("test", bytes, &region, NULL)
                                             : region_create_anonymous(bytes, &region, NULL);

    assert_int_equal(code, RF_OK);
    return region;
}

static void add_up(void *ctx, uint64_t added_bytes)
{
    atomic_fetch_add((atomic_uint_fast64_t *)ctx, added_bytes);
}

static void check_zero(const uint8_t *at, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(at[i], 0);
}

static void every_byte_lands_where_it_belongs(void **state)
{
    (void)state;
    static const struct {
        uint64_t offset;
        uint64_t file_offset;
        uint64_t bytes;
    } cases[] = {
        {0, 0, FILE_BYTES},
        {0, 0, 1},
        {1, 0, 4096},
        {4096, 0, 4 * MIB},
        {100, 100, 3 * MIB}, /* congruent, unaligned ends */
        {5, 8192 + 7, 3 * MIB + 11},
        {8 * MIB - 3, 1, MIB + 6}, /* around extents */
        {0, FILE_BYTES - 1, 1},
        {6 * MIB, 3 * MIB, 8 * MIB + 1234}, /* to the end of the file */
        {2 * MIB, 2 * MIB + 512, 2 * MIB},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (unsigned variant = 0; variant < 8; variant++) {
            bool direct = (variant & 1) != 0;
            unsigned threads = (variant & 2) != 0 ? 4 : 1;
            enum region_kind kind = (variant & 4) != 0 ? REGION_MEMFD : REGION_HOST;
            uint64_t end = cases[i].offset + cases[i].bytes;
            struct region *region = make_region(kind, end + 100);
            atomic_uint_fast64_t progress = 0;
            struct rf_error err = {0};
            if (region_load(region, cases[i].offset, path, fd, cases[i].file_offset, cases[i].bytes,
                            threads, direct, add_up, &progress, &err) != RF_OK)
                fail_msg("case %zu, variant %u: %s", i, variant, err.text);
            assert_int_equal(progress, cases[i].bytes);
            const uint8_t *data = region_data(region);
            if (memcmp(data + cases[i].offset, content + cases[i].file_offset,
                       (size_t)cases[i].bytes) != 0)
                fail_msg("case %zu, variant %u: wrong bytes", i, variant);
            size_t before = cases[i].offset < 5000 ? (size_t)cases[i].offset : 5000;
            check_zero(data + cases[i].offset - before, before);
            check_zero(data + end, 100);
            region_unref(region);
        }
    }
}

/* Many small loads in turn, as for tensors that lie elsewhere in the stream than in the file. */
static void small_loads_do_not_disturb_their_neighbours(void **state)
{
    (void)state;
    enum { PIECE = 300 * 1024 + 7 };
    struct region *region = make_region(REGION_MEMFD, FILE_BYTES);

    /* From the end to the beginning. */
    for (uint64_t end = FILE_BYTES; end > 0;) {
        uint64_t from = end > PIECE ? end - PIECE : 0;
        assert_int_equal(
            region_load(region, from, path, fd, from, end - from, 2, false, NULL, NULL, NULL),
            RF_OK);
        end = from;
    }
    assert_true(memcmp(region_data(region), content, FILE_BYTES) == 0);
    assert_int_equal(region_seal(region, NULL), RF_OK);
    assert_true(memcmp(region_data(region), content, FILE_BYTES) == 0);
    region_unref(region);
}

static void loading_over_old_content_replaces_it(void **state)
{
    (void)state;
    struct region *region = make_region(REGION_MEMFD, FILE_BYTES);

    memset(region_data_writable(region), 0, FILE_BYTES);
    assert_int_equal(region_load(region, 0, path, fd, 0, FILE_BYTES, 2, false, NULL, NULL, NULL),
                     RF_OK);
    assert_true(memcmp(region_data(region), content, FILE_BYTES) == 0);
    region_unref(region);
}

static void truncated_file_is_reported_not_a_crash(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {0, 5, 4096, 8 * MIB + 17, FILE_BYTES - 1};

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        folder_put(folder, "cut", content, (size_t)sizes[i]);
        rf_autofree char *cut_path = folder_path(folder, "cut");
        rf_autoclose int cut = open(cut_path, O_RDONLY | O_CLOEXEC);
        for (unsigned variant = 0; variant < 8; variant++) {
            struct region *region =
                make_region((variant & 4) != 0 ? REGION_MEMFD : REGION_HOST, FILE_BYTES + 10);
            struct rf_error err = {0};
            assert_int_equal(region_load(region, (variant & 2) != 0 ? 10 : 0, cut_path, cut, 0,
                                         FILE_BYTES, 3, (variant & 1) != 0, NULL, NULL, &err),
                             RF_E_CHANGED);
            assert_says(&err, "cut");
            assert_says(&err, "ends at");
            region_unref(region);
        }
    }
}

static void load_behind_the_end_of_the_file_is_reported(void **state)
{
    (void)state;
    static const uint64_t offsets[] = {FILE_BYTES, FILE_BYTES + 4096, INT64_MAX - 4096};
    struct region *region = make_region(REGION_MEMFD, MIB);

    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        for (int direct = 0; direct < 2; direct++) {
            struct rf_error err = {0};
            enum rf_code code = region_load(region, 0, path, fd, offsets[i], 4096, 1, direct != 0,
                                            NULL, NULL, &err);
            /* Above the largest file of this file system the kernel says EINVAL instead. */
            assert_true(code == RF_E_CHANGED || code == RF_E_SYS);
            assert_says(&err, "weights");
        }
    }
    region_unref(region);
}

static void impossible_ranges_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint64_t offset;
        uint64_t file_offset;
        uint64_t bytes;
    } cases[] = {
        {0, 0, MIB + 1},    {MIB, 0, 1},          {UINT64_MAX, 0, 2},       {1, 0, UINT64_MAX},
        {0, UINT64_MAX, 1}, {0, INT64_MAX, 4096}, {0, UINT64_MAX - 1, MIB},
    };
    struct region *region = make_region(REGION_MEMFD, MIB);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(region_load(region, cases[i].offset, path, fd, cases[i].file_offset,
                                     cases[i].bytes, 2, false, NULL, NULL, NULL),
                         RF_E_INVAL);
    assert_int_equal(region_load(region, MIB, path, fd, 0, 0, 2, false, NULL, NULL, NULL), RF_OK);
    region_unref(region);
}

static void what_is_not_writable_is_not_loaded_into(void **state)
{
    (void)state;
    struct region *region = make_region(REGION_MEMFD, MIB);
    struct rf_error err = {0};

    assert_int_equal(region_seal(region, NULL), RF_OK);
    assert_int_equal(region_load(region, 0, path, fd, 0, 10, 1, false, NULL, NULL, &err),
                     RF_E_INVAL);
    assert_says(&err, "not writable");
    region_unref(region);
    assert_int_equal(region_create_borrowed(content, MIB, &region, NULL), RF_OK);
    assert_int_equal(region_load(region, 0, path, fd, 0, 10, 1, false, NULL, NULL, &err),
                     RF_E_INVAL);
    region_unref(region);
    assert_int_equal(region_create_file(path, fd, &region, NULL), RF_OK);
    assert_int_equal(region_load(region, 0, path, fd, 0, 10, 1, false, NULL, NULL, &err),
                     RF_E_INVAL);
    region_unref(region);
}

static void unreadable_descriptor_is_an_error_of_the_system(void **state)
{
    (void)state;
    struct region *region = make_region(REGION_MEMFD, MIB);
    rf_autoclose int dir = open(folder, O_RDONLY | O_CLOEXEC | O_DIRECTORY);

    for (int direct = 0; direct < 2; direct++) {
        struct rf_error err = {0};
        assert_int_equal(
            region_load(region, 0, folder, dir, 0, MIB, 2, direct != 0, NULL, NULL, &err),
            RF_E_SYS);
        assert_says(&err, folder);
        assert_int_equal(
            region_load(region, 0, "closed", -1, 0, MIB, 2, direct != 0, NULL, NULL, &err),
            RF_E_SYS);
    }
    region_unref(region);
}

/* A file system that knows no O_DIRECT, or refuses it when it comes to reading. */
static void direct_reads_fall_back_to_buffered_ones(void **state)
{
    (void)state;
    enum { BYTES = 3 * MIB + 5 };
    struct region *source = make_region(REGION_MEMFD, BYTES);
    struct region *region = make_region(REGION_MEMFD, BYTES);

    memcpy(region_data_writable(source), content, BYTES);
    assert_int_equal(
        region_load(region, 0, "memfd", region_fd(source), 0, BYTES, 2, true, NULL, NULL, NULL),
        RF_OK);
    assert_true(memcmp(region_data(region), content, BYTES) == 0);
    region_unref(source);
    region_unref(region);
}

/* Many small ones in an extent, large ones over several, gaps between them, two files in turn. */
static void spans_of_several_files_land_side_by_side(void **state)
{
    (void)state;
    enum { SPANS = 300, REGION_BYTES = 40 * MIB };
    const struct region_file files[] = {{path, fd}, {"again", fd}};
    struct region_span spans[SPANS];
    uint64_t wanted = 0;
    uint64_t at = 7;

    for (unsigned i = 0; i < SPANS; i++) {
        uint64_t bytes = i % 100 == 99 ? 9 * MIB + i : 20 + (i * 7919) % 30000;
        uint64_t from = (i * 104729) % (FILE_BYTES - bytes);

        spans[i] = (struct region_span){at, bytes, from, i % 2};
        at += bytes + (i % 3 == 0 ? 0 : (i * 31) % 5000);
        wanted += bytes;
    }
    assert_true(at <= REGION_BYTES);
    for (unsigned variant = 0; variant < 4; variant++) {
        struct region *region = make_region(REGION_MEMFD, REGION_BYTES);
        atomic_uint_fast64_t progress = 0;
        struct rf_error err = {0};

        if (region_load_spans(region, files, 2, spans, SPANS, variant & 1 ? 4 : 1, variant >= 2,
                              add_up, &progress, &err) != RF_OK)
            fail_msg("variant %u: %s", variant, err.text);
        assert_int_equal(progress, wanted);
        for (unsigned i = 0; i < SPANS; i++) {
            const uint8_t *data = region_data(region) + spans[i].offset;

            assert_memory_equal(data, content + spans[i].file_offset, (size_t)spans[i].bytes);
            uint64_t end = spans[i].offset + spans[i].bytes;
            uint64_t next = i + 1 < SPANS ? spans[i + 1].offset : REGION_BYTES;
            check_zero(region_data(region) + end, (size_t)(next - end));
        }
        region_unref(region);
    }
}

static void spans_out_of_order_are_refused(void **state)
{
    (void)state;
    const struct region_file file = {path, fd};
    const struct region_span spans[] = {{100, 50, 0, 0}, {149, 10, 0, 0}};
    struct region *region = make_region(REGION_MEMFD, MIB);
    struct rf_error err = {0};

    assert_int_equal(region_load_spans(region, &file, 1, spans, 2, 1, false, NULL, NULL, &err),
                     RF_E_INVAL);
    assert_says(&err, "what goes to 149");
    assert_int_equal(region_load_spans(region, &file, 1, spans, 0, 1, false, NULL, NULL, &err),
                     RF_OK);
    region_unref(region);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_lands_where_it_belongs),
        cmocka_unit_test(small_loads_do_not_disturb_their_neighbours),
        cmocka_unit_test(loading_over_old_content_replaces_it),
        cmocka_unit_test(truncated_file_is_reported_not_a_crash),
        cmocka_unit_test(load_behind_the_end_of_the_file_is_reported),
        cmocka_unit_test(impossible_ranges_are_refused),
        cmocka_unit_test(what_is_not_writable_is_not_loaded_into),
        cmocka_unit_test(unreadable_descriptor_is_an_error_of_the_system),
        cmocka_unit_test(direct_reads_fall_back_to_buffered_ones),
        cmocka_unit_test(spans_of_several_files_land_side_by_side),
        cmocka_unit_test(spans_out_of_order_are_refused),
    };
    return cmocka_run_group_tests(tests, make_file, remove_file);
}
