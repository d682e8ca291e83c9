/* Manifests of ranks that say names and places alone. */
#include "control/sglang_manifest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define INFO(rank, tensors)                                                                     \
    "{\"rank\":" rank ",\"remote_instance_transfer_engine_info\":[\"10.0.0.1:15000\",{" tensors \
    "}]}"

static struct weight_map map_of(const char *json)
{
    struct weight_map map;
    struct rf_error err;

    if (weight_map_decode(json, strlen(json), &map, &err) != RF_OK)
        fail_msg("%s: %s", json, err.text);
    return map;
}

static struct model_config *config_of(const char *json)
{
    struct model_config *config = NULL;
    struct rf_error err;

    if (model_config_parse(json, strlen(json), &config, &err) != RF_OK)
        fail_msg("%s: %s", json, err.text);
    return config;
}

static struct manifest *make(const struct sglang_facts *facts, const struct weight_map *maps,
                             uint32_t count)
{
    struct manifest *manifest = NULL;
    struct rf_error err;

    if (sglang_manifest_make(facts, maps, count, &manifest, &err) != RF_OK)
        fail_msg("%s", err.text);
    return manifest;
}

static void assert_tensor(const struct manifest *manifest, const char *name, enum rf_dtype dtype,
                          uint64_t elements)
{
    const struct tensor *tensor = manifest_find(&manifest->ranks[0], name);

    assert_non_null(tensor);
    assert_int_equal(tensor->dtype, dtype);
    assert_int_equal(tensor->ndim, 1);
    assert_true(tensor->shape[0] == elements);
}

static const char sizes[] = INFO("0", "\"a\":[4096,10,1],\"b\":[8192,10,2],\"c\":[12288,10,4],"
                                      "\"d\":[16384,10,8],\"e\":[20480,10,16],\"f\":[24576,10,3]");

static void dtypes_are_guessed_from_element_sizes(void **state)
{
    const struct sglang_facts facts = {.model = "m"};
    struct weight_map map = map_of(sizes);
    struct manifest *manifest = make(&facts, &map, 1);

    (void)state;
    assert_tensor(manifest, "a", RF_DTYPE_U8, 10);
    assert_tensor(manifest, "b", RF_DTYPE_BF16, 10);
    assert_tensor(manifest, "c", RF_DTYPE_F32, 10);
    assert_tensor(manifest, "d", RF_DTYPE_I64, 10);
    assert_tensor(manifest, "e", RF_DTYPE_I64, 20);
    assert_tensor(manifest, "f", RF_DTYPE_U8, 30);
    assert_int_equal(manifest->stage, STAGE_PROCESSED);
    assert_true(manifest->ranks[0].stream_bytes == 10 * (1 + 2 + 4 + 8 + 16 + 3));
    manifest_unref(manifest);
    weight_map_free(&map);
}

static void a_config_says_which_dtypes_of_a_size(void **state)
{
    struct model_config *config = config_of(
        "{\"torch_dtype\":\"float16\",\"quantization_config\":{\"quant_method\":\"fp8\"}}");
    const struct sglang_facts facts = {.model = "m", .config = config};
    struct weight_map map = map_of(sizes);
    struct manifest *manifest = make(&facts, &map, 1);

    (void)state;
    assert_tensor(manifest, "a", RF_DTYPE_F8_E4M3, 10);
    assert_tensor(manifest, "b", RF_DTYPE_F16, 10);
    assert_tensor(manifest, "c", RF_DTYPE_F32, 10);
    manifest_unref(manifest);
    weight_map_free(&map);
    model_config_destroy(config);
}

static void tensors_of_one_place_are_aliases(void **state)
{
    const struct sglang_facts facts = {.model = "m"};
    struct weight_map map = map_of(INFO("0", "\"head\":[4096,8,2],\"embed\":[4096,8,2],"
                                             "\"part\":[4096,4,2],\"over\":[4104,8,2],"
                                             "\"as4\":[4096,4,4],\"e1\":[0,0,2],\"e2\":[0,0,2]"));
    struct manifest *manifest = make(&facts, &map, 1);
    const struct manifest_rank *rank = &manifest->ranks[0];
    const struct tensor *head = manifest_find(rank, "head");

    (void)state;
    assert_int_not_equal(head->alias_of, MANIFEST_NONE);
    assert_string_equal(rank->tensors[head->alias_of].name, "embed");
    assert_int_equal(manifest_find(rank, "part")->alias_of, MANIFEST_NONE);
    assert_int_equal(manifest_find(rank, "over")->alias_of, MANIFEST_NONE);
    assert_int_equal(manifest_find(rank, "as4")->alias_of, MANIFEST_NONE);
    assert_int_equal(manifest_find(rank, "e2")->alias_of, MANIFEST_NONE);
    assert_true(rank->stream_bytes == 16 + 8 + 16 + 16);
    manifest_unref(manifest);
    weight_map_free(&map);
}

static void every_rank_is_a_tp_rank(void **state)
{
    const struct sglang_facts facts = {.model = "m"};
    struct weight_map maps[2] = {map_of(INFO("0", "\"w\":[4096,8,2]")),
                                 map_of(INFO("1", "\"w\":[4096,9,2]"))};
    struct manifest *manifest = make(&facts, maps, 2);

    (void)state;
    assert_int_equal(manifest->rank_count, 2);
    assert_int_equal(manifest->ranks[1].id.tp, 1);
    assert_int_equal(manifest->ranks[1].id.tp_size, 2);
    assert_true(manifest->ranks[1].stream_bytes == 18);
    manifest_unref(manifest);
    weight_map_free(&maps[0]);
    weight_map_free(&maps[1]);
}

static void a_map_without_tensors_is_refused(void **state)
{
    const struct sglang_facts facts = {.model = "m"};
    struct weight_map maps[2] = {map_of(INFO("0", "\"w\":[4096,8,2]")), map_of(INFO("1", ""))};
    struct manifest *manifest = NULL;
    struct rf_error err;

    (void)state;
    assert_int_equal(sglang_manifest_make(&facts, maps, 2, &manifest, &err), RF_E_MISMATCH);
    assert_non_null(strstr(err.text, "rank 1: its map names no tensor at all"));
    assert_null(manifest);
    weight_map_free(&maps[0]);
    weight_map_free(&maps[1]);
}

/* ---- against a model ---- */

static void differences_are_named_both_ways(void **state)
{
    const struct sglang_facts facts = {.model = "m"};
    struct weight_map files =
        map_of(INFO("0", "\"a\":[4096,8,2],\"b\":[8192,4,4],\"c\":[9000,1,1]"));
    struct weight_map seed =
        map_of(INFO("0", "\"a\":[4096,8,2],\"b\":[8192,8,2],\"x\":[9000,1,1]"));
    struct manifest *manifest = make(&facts, &files, 1);
    uint64_t differences = 0;
    struct rf_error err;

    (void)state;
    assert_int_equal(sglang_manifest_check(manifest, &files, 1, &differences, &err), RF_OK);
    assert_int_equal(differences, 0);
    assert_int_equal(sglang_manifest_check(manifest, &seed, 1, &differences, &err), RF_E_MISMATCH);
    assert_int_equal(differences, 3);
    assert_non_null(strstr(err.text, "3 differences"));
    assert_non_null(strstr(err.text, "rank 0, b: 8 elements of 2 bytes at the seed, 4 of 4"));
    assert_non_null(strstr(err.text, "rank 0, c: not published by the seed"));
    assert_non_null(strstr(err.text, "rank 0, x: not in the files"));
    manifest_unref(manifest);
    weight_map_free(&files);
    weight_map_free(&seed);
}

/* Whatever is in front of it, a line has room for what is said of them. */
static void of_many_differences_whole_ones_are_named(void **state)
{
    const struct sglang_facts facts = {.model = "m"};
    struct buf many = {0};
    struct weight_map files = map_of(INFO("0", "\"w\":[4096,8,2]"));
    struct manifest *manifest = make(&facts, &files, 1);
    struct rf_error err;

    (void)state;
    buf_printf(&many, "{\"rank\":0,\"remote_instance_transfer_engine_info\":[\"h:1\",{");
    for (unsigned i = 0; i < 10; i++)
        buf_printf(&many, "\"model.layers.%u.%080u\":[4096,8,2],", i, 0);
    buf_printf(&many, "\"w\":[4096,8,2]}]}");
    buf_append(&many, "", 1);
    struct weight_map seed = map_of((const char *)many.data);
    assert_int_equal(sglang_manifest_check(manifest, &seed, 1, NULL, &err), RF_E_MISMATCH);
    assert_true(strlen(err.text) < 300);
    assert_non_null(strstr(err.text, "10 differences: rank 0, model.layers.0."));
    assert_string_equal(err.text + strlen(err.text) - strlen("0: not in the files; ..."),
                        "0: not in the files; ...");
    manifest_unref(manifest);
    weight_map_free(&files);
    weight_map_free(&seed);
    buf_free(&many);
}

/* ---- places ---- */

static void streams_are_placed_in_registered_memory(void **state)
{
    const struct sglang_facts facts = {.model = "m"};
    struct weight_map map = map_of(INFO("0", "\"a\":[9007199254740994,8,2],\"b\":[8192,4,4],"
                                             "\"tied\":[8192,4,4],\"none\":[0,0,2]"));
    struct manifest *manifest = make(&facts, &map, 1);
    struct te_buffer buffers[] = {{.address = 8192, .bytes = 16},
                                  {.address = 9007199254740993, .bytes = 64}};
    const struct te_descriptor descriptor = {.buffers = buffers, .buffer_count = 2};
    struct te_segment *segments = NULL;
    uint64_t count = 0;
    struct rf_error err;

    (void)state;
    assert_int_equal(sglang_check_registered(&map, &descriptor, &err), RF_OK);
    assert_int_equal(sglang_segments(&manifest->ranks[0], &map, &segments, &count, &err), RF_OK);
    assert_true(count == 2);
    assert_true(segments[0].address == UINT64_C(9007199254740994) && segments[0].bytes == 16 &&
                segments[0].stream_offset == 0);
    assert_true(segments[1].address == 8192 && segments[1].stream_offset == 16);
    free(segments);
    manifest_unref(manifest);
    weight_map_free(&map);
}

static void unregistered_tensors_are_refused(void **state)
{
    struct weight_map map = map_of(INFO("0", "\"a\":[4096,8,2],\"b\":[8192,8,2],\"e\":[0,0,2]"));
    struct te_buffer buffers[] = {{.address = 4096, .bytes = 16}, {.address = 8192, .bytes = 16}};
    struct te_descriptor descriptor = {.buffers = buffers, .buffer_count = 2};
    struct rf_error err;

    (void)state;
    assert_int_equal(sglang_check_registered(&map, &descriptor, &err), RF_OK);
    buffers[1].bytes = 15;
    assert_int_equal(sglang_check_registered(&map, &descriptor, &err), RF_E_MISMATCH);
    assert_non_null(strstr(err.text, "1 of 3 tensors"));
    assert_non_null(strstr(err.text, "first is b (16 bytes at 0x2000)"));
    descriptor.buffer_count = 0;
    assert_int_equal(sglang_check_registered(&map, &descriptor, &err), RF_E_MISMATCH);
    assert_non_null(strstr(err.text, "has registered nothing"));
    weight_map_free(&map);
}

static void what_no_manifest_can_have_is_the_seeds_fault(void **state)
{
    const struct sglang_facts facts = {.model = "m"};
    struct weight_map map = map_of(INFO("0", "\"w\":[4096,9007199254740993,8]"));
    struct manifest *manifest = NULL;
    struct rf_error err;

    (void)state;
    assert_int_equal(sglang_manifest_make(&facts, &map, 1, &manifest, &err), RF_E_PROTO);
    assert_int_equal(err.code, RF_E_PROTO);
    assert_null(manifest);
    weight_map_free(&map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dtypes_are_guessed_from_element_sizes),
        cmocka_unit_test(a_config_says_which_dtypes_of_a_size),
        cmocka_unit_test(tensors_of_one_place_are_aliases),
        cmocka_unit_test(every_rank_is_a_tp_rank),
        cmocka_unit_test(a_map_without_tensors_is_refused),
        cmocka_unit_test(differences_are_named_both_ways),
        cmocka_unit_test(of_many_differences_whole_ones_are_named),
        cmocka_unit_test(streams_are_placed_in_registered_memory),
        cmocka_unit_test(unregistered_tensors_are_refused),
        cmocka_unit_test(what_no_manifest_can_have_is_the_seeds_fault),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
