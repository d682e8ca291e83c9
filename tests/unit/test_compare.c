/* Comparing tensor tables: every difference once, in words. */
#include "model/compare.h"
#include "util/bytes.h"
#include "util/manifests.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* All differences as lines. */
static void put_line(void *ctx, const struct difference *difference)
{
    struct buf *out = ctx;

    difference_text(difference, "here", "there", out);
    buf_append(out, "\n", 1);
}

static void assert_differences(const struct tensor_spec *a, uint32_t a_count,
                               const struct tensor_spec *b, uint32_t b_count, uint64_t count,
                               const char *lines)
{
    struct manifest *here = manifest_of(a, a_count, 0);
    struct manifest *there = manifest_of(b, b_count, 0);
    BUF_AUTO struct buf out = {0};

    assert_int_equal(compare_tensors(&here->ranks[0], &there->ranks[0], put_line, &out), count);
    assert_int_equal(compare_tensors(&here->ranks[0], &there->ranks[0], NULL, NULL), count);
    buf_append(&out, "", 1);
    assert_string_equal((const char *)out.data, lines);
    manifest_unref(here);
    manifest_unref(there);
}

static void a_table_equals_itself(void **state)
{
    (void)state;
    struct manifest *one = manifest_of_everything();
    struct manifest *two = manifest_of_everything();
    struct rf_error err = {0};

    assert_int_equal(compare_tensors(&one->ranks[0], &two->ranks[0], NULL, NULL), 0);
    assert_int_equal(compare_explain(&one->ranks[0], &two->ranks[0], &err), RF_OK);
    /* the second rank holds other slices: wq, head, embed */
    assert_int_equal(compare_tensors(&one->ranks[0], &two->ranks[1], NULL, NULL), 5);
    manifest_unref(one);
    manifest_unref(two);
}

static void missing_and_extra_tensors_are_named_in_order(void **state)
{
    (void)state;
    const struct tensor_spec here[] = {
        {.name = "a", .dtype = RF_DTYPE_BF16, .ndim = 2, .shape = {960, 64}},
        {.name = "c", .dtype = RF_DTYPE_U8},
        {.name = "z", .dtype = RF_DTYPE_U8},
    };
    const struct tensor_spec there[] = {
        {.name = "b", .dtype = RF_DTYPE_F32, .ndim = 1, .shape = {3}},
        {.name = "c", .dtype = RF_DTYPE_U8},
        {.name = "d", .dtype = RF_DTYPE_U8},
    };

    assert_differences(here, 3, there, 3, 4,
                       "a: BF16 [960, 64] here, none there\n"
                       "b: F32 [3] there, none here\n"
                       "d: U8 [] there, none here\n"
                       "z: U8 [] here, none there\n");
    assert_differences(here, 3, NULL, 0, 3,
                       "a: BF16 [960, 64] here, none there\n"
                       "c: U8 [] here, none there\n"
                       "z: U8 [] here, none there\n");
}

static void shape_and_dtype_are_shown_on_both_sides(void **state)
{
    (void)state;
    const struct tensor_spec here[] = {
        {.name = "model.norm.weight", .dtype = RF_DTYPE_BF16, .ndim = 1, .shape = {576}},
        {.name = "x", .dtype = RF_DTYPE_F8_E4M3, .ndim = 1, .shape = {2}},
    };
    const struct tensor_spec there[] = {
        {.name = "model.norm.weight", .dtype = RF_DTYPE_BF16, .ndim = 1, .shape = {960}},
        {.name = "x", .dtype = RF_DTYPE_BF16, .ndim = 2, .shape = {2, 1}},
    };

    assert_differences(here, 2, there, 2, 3,
                       "model.norm.weight: shape [576] here, [960] there\n"
                       "x: dtype F8_E4M3 here, BF16 there\n"
                       "x: shape [2] here, [2, 1] there\n");
}

static struct manifest *made_of(const struct part *parts, uint32_t count, bool swapped)
{
    struct manifest_builder *builder = builder_new(0);

    add_source(builder, swapped ? "q" : "k", RF_DTYPE_U8, 1, (uint64_t[]){8});
    add_source(builder, swapped ? "k" : "q", RF_DTYPE_U8, 1, (uint64_t[]){8});
    add_rank(builder, &whole_rank);
    add_tensor(builder, &(struct tensor_spec){.name = "w",
                                              .dtype = RF_DTYPE_U8,
                                              .ndim = 1,
                                              .shape = {8},
                                              .parts = parts,
                                              .part_count = count});
    return built(builder);
}

static void parts_of_other_places_are_a_difference(void **state)
{
    (void)state;
    const struct part kq[] = {{.source = 0, .count = 4}, {.source = 1, .start = 4, .count = 4}};
    const struct part padded[] = {{.source = 0, .count = 4}, {.source = MANIFEST_NONE, .count = 4}};
    struct manifest *here = made_of(kq, 2, false);
    struct manifest *same = made_of(
        (struct part[]){{.source = 1, .count = 4}, {.source = 0, .start = 4, .count = 4}}, 2, true);
    struct manifest *there = made_of(padded, 2, false);
    struct manifest *silent = made_of(NULL, 0, false);
    BUF_AUTO struct buf out = {0};

    assert_int_equal(compare_tensors(&here->ranks[0], &same->ranks[0], NULL, NULL), 0);
    assert_int_equal(compare_tensors(&here->ranks[0], &silent->ranks[0], NULL, NULL), 0);
    assert_int_equal(compare_tensors(&here->ranks[0], &there->ranks[0], put_line, &out), 1);
    buf_append(&out, "", 1);
    assert_string_equal((const char *)out.data,
                        "w: made of k[0:4 of axis 0] + q[4:8 of axis 0] here, "
                        "k[0:4 of axis 0] + 4 zero bytes there\n");
    manifest_unref(here);
    manifest_unref(same);
    manifest_unref(there);
    manifest_unref(silent);
}

static void slice_of_another_place_is_a_difference(void **state)
{
    (void)state;
    const struct tensor_spec here[] = {
        {.name = "w", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {4, 8}, .global_shape = {8, 8}}};
    const struct tensor_spec there[] = {{.name = "w",
                                         .dtype = RF_DTYPE_U8,
                                         .ndim = 2,
                                         .shape = {4, 8},
                                         .global_shape = {8, 8},
                                         .slice_start = {4, 0}}};
    const struct tensor_spec whole[] = {
        {.name = "w", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {4, 8}}};

    assert_differences(here, 1, there, 1, 1,
                       "w: slice [4, 8] at [0, 0] of [8, 8] here, "
                       "[4, 8] at [4, 0] of [8, 8] there\n");
    assert_differences(here, 1, whole, 1, 1,
                       "w: slice [4, 8] at [0, 0] of [8, 8] here, "
                       "[4, 8] at [0, 0] of [4, 8] there\n");
}

static void aliases_are_compared_by_where_they_lead(void **state)
{
    (void)state;
    const struct tensor_spec here[] = {
        {.name = "embed", .dtype = RF_DTYPE_U8},
        {.name = "head", .dtype = RF_DTYPE_U8, .alias_of = "embed"},
        {.name = "other", .dtype = RF_DTYPE_U8},
    };
    const struct tensor_spec untied[] = {
        {.name = "embed", .dtype = RF_DTYPE_U8},
        {.name = "head", .dtype = RF_DTYPE_U8},
        {.name = "other", .dtype = RF_DTYPE_U8},
    };
    const struct tensor_spec elsewhere[] = {
        {.name = "embed", .dtype = RF_DTYPE_U8},
        {.name = "head", .dtype = RF_DTYPE_U8, .alias_of = "other"},
        {.name = "other", .dtype = RF_DTYPE_U8},
    };
    const struct tensor_spec shifted[] = {
        {.name = "a", .dtype = RF_DTYPE_U8}, /* moves all indices by one */
        {.name = "embed", .dtype = RF_DTYPE_U8},
        {.name = "head", .dtype = RF_DTYPE_U8, .alias_of = "embed"},
        {.name = "other", .dtype = RF_DTYPE_U8},
    };

    assert_differences(here, 3, untied, 3, 1,
                       "head: an alias of embed here, bytes of its own there\n");
    assert_differences(here, 3, elsewhere, 3, 1,
                       "head: an alias of embed here, an alias of other there\n");
    assert_differences(here, 3, shifted, 4, 1, "a: U8 [] there, none here\n");
}

static void callers_kinds_have_words_too(void **state)
{
    (void)state;
    const struct tensor tensor = {.name = "w", .name_bytes = 1};
    const struct difference content = {DIFF_CONTENT, .name = "w", .a = &tensor, .b = &tensor};
    const struct difference identity = {DIFF_IDENTITY, .name = "stage"};
    BUF_AUTO struct buf out = {0};

    put_line(&out, &content);
    put_line(&out, &identity);
    assert_string_equal((const char *)out.data,
                        "w: other bytes there than here\nstage: another model there than here\n");
}

static void explanation_counts_and_shows_the_first(void **state)
{
    (void)state;
    const struct tensor_spec want[] = {
        {.name = "a", .dtype = RF_DTYPE_U8}, {.name = "b", .dtype = RF_DTYPE_U8},
        {.name = "c", .dtype = RF_DTYPE_U8}, {.name = "d", .dtype = RF_DTYPE_U8},
        {.name = "e", .dtype = RF_DTYPE_U8},
    };
    const struct tensor_spec have[] = {
        {.name = "d", .dtype = RF_DTYPE_I8},
        {.name = "e", .dtype = RF_DTYPE_U8},
        {.name = "f", .dtype = RF_DTYPE_U8},
    };
    struct manifest *wanted = manifest_of(want, 5, 0);
    struct manifest *there = manifest_of(have, 3, 0);
    struct rf_error err = {0};

    assert_int_equal(compare_explain(&wanted->ranks[0], &there->ranks[0], &err), RF_E_MISMATCH);
    assert_string_equal(
        err.text, "5 differences among 5 tensors wanted and 3 there: 3 missing, 1 not wanted, 1 "
                  "other dtype; a: U8 [] wanted, none there; b: U8 [] wanted, none there; c: U8 "
                  "[] wanted, none there; ...");
    assert_int_equal(compare_explain(&wanted->ranks[0], &there->ranks[0], NULL), RF_E_MISMATCH);
    manifest_unref(wanted);
    manifest_unref(there);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_equals_itself),
        cmocka_unit_test(missing_and_extra_tensors_are_named_in_order),
        cmocka_unit_test(shape_and_dtype_are_shown_on_both_sides),
        cmocka_unit_test(parts_of_other_places_are_a_difference),
        cmocka_unit_test(slice_of_another_place_is_a_difference),
        cmocka_unit_test(aliases_are_compared_by_where_they_lead),
        cmocka_unit_test(callers_kinds_have_words_too),
        cmocka_unit_test(explanation_counts_and_shows_the_first),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
