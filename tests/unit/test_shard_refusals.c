/* What cannot be sharded is refused, with the tensor, the numbers and the way out. */
#include "util/bytes.h"
#include "util/checkpoint.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct family llama = {.architecture = "LlamaForCausalLM",
                                    .layers = 2,
                                    .hidden = 24,
                                    .heads = 8,
                                    .kv_heads = 2,
                                    .head_dim = 4,
                                    .intermediate = 16,
                                    .vocab = 100};

static const struct family qwen3_moe = {.architecture = "Qwen3MoeForCausalLM",
                                        .layers = 2,
                                        .hidden = 24,
                                        .heads = 8,
                                        .kv_heads = 4,
                                        .head_dim = 4,
                                        .intermediate = 16,
                                        .vocab = 128,
                                        .experts = 4,
                                        .moe = 8};

static void assert_refused(const struct checkpoint *of, const char *plan, const char *layout,
                           uint32_t tp, uint32_t ep, enum rf_code expected, const char *words)
{
    struct manifest *manifest = NULL;
    struct rf_error err = {0};
    enum rf_code code = checkpoint_try(of, plan, layout, tp, ep, &manifest, &err);

    if (code != expected)
        fail_msg("code %d, expected %d: %s", code, expected, err.text);
    assert_null(manifest);
    assert_says(&err, words);
}

static void assert_family_refused(const struct family *family, const char *layout, uint32_t tp,
                                  enum rf_code expected, const char *words)
{
    struct checkpoint *of = checkpoint_of(family);

    assert_refused(of, NULL, layout, tp, 1, expected, words);
    checkpoint_free(of);
}

static void heads_that_do_not_divide_are_refused(void **state)
{
    (void)state;
    struct family family = llama;

    assert_family_refused(&llama, "sglang", 3, RF_E_INVAL,
                          "8 num_attention_heads cannot be divided by tp 3");
    family.heads = 6;
    family.kv_heads = 4;
    family.intermediate = 12;
    assert_family_refused(&family, "sglang", 6, RF_E_INVAL,
                          "tp 6 is no multiple of its 4 KV heads");
    family.kv_heads = 2;
    family.heads = 12;
    assert_family_refused(&family, "sglang", 3, RF_E_INVAL,
                          "tp 3 is no multiple of its 2 KV heads");
    family.kv_heads = 6;
    family.intermediate = 16;
    assert_family_refused(&family, "sglang", 3, RF_E_INVAL, "16 elements along the axis");
}

static void a_vocabulary_is_divided_or_padded(void **state)
{
    (void)state;
    struct family family = llama;

    family.vocab = 101;
    assert_family_refused(&family, "checkpoint", 2, RF_E_INVAL,
                          "a vocabulary of 101 cannot be divided by tp 2, and nothing says to pad");
}

static void experts_that_do_not_divide_are_refused(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&qwen3_moe);

    assert_refused(of, NULL, "sglang", 8, 8, RF_E_INVAL, "4 experts cannot be divided by ep 8");
    assert_refused(of, NULL, "sglang", 4, 3, RF_E_INVAL, "ep 3: does not divide tp 4");
    checkpoint_free(of);
    of = checkpoint_of(&llama);
    assert_refused(of, NULL, "sglang", 2, 2, RF_E_INVAL, "ep 2: plan llama knows no experts");
    checkpoint_free(of);
}

static void blocks_are_not_cut(void **state)
{
    (void)state;
    struct family family = llama;

    family.fp8 = true;
    family.block = 8;
    family.kv_heads = 8;
    family.vocab = 128;
    assert_family_refused(&family, "sglang", 4, RF_E_INVAL,
                          "which are not whole blocks of 8 that share a scale");
    family.block = 32; /* one rank: gate has 16 rows, up follows it */
    assert_family_refused(&family, "sglang", 1, RF_E_INVAL, "so that its scales cannot be fused");
}

static void a_missing_tensor_is_named(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);

    checkpoint_remove(of, "model.layers.1.mlp.up_proj.weight");
    assert_refused(
        of, NULL, "sglang", 2, 1, RF_E_FORMAT,
        "tensor model.layers.1.mlp.up_proj.weight: missing in the checkpoint; plan llama");
    checkpoint_free(of);
    of = checkpoint_of(&qwen3_moe);
    checkpoint_remove(of, "model.layers.1.mlp.experts.3.up_proj.weight");
    assert_refused(of, NULL, "checkpoint", 2, 1, RF_E_FORMAT,
                   "tensor model.layers.1.mlp.experts.3.up_proj.weight: missing");
    checkpoint_free(of);
    struct family family = qwen3_moe;
    family.fp8 = true;
    family.block = 4;
    of = checkpoint_of(&family);
    checkpoint_remove(of, "model.layers.0.self_attn.k_proj.weight_scale_inv");
    assert_refused(of, NULL, "sglang", 2, 1, RF_E_FORMAT,
                   "self_attn.k_proj.weight_scale_inv: missing");
    checkpoint_free(of);
}

static void a_tensor_nobody_knows_is_named(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);

    checkpoint_add(of, "model.vision.weight", RF_DTYPE_BF16, 1, (uint64_t[]){4});
    assert_refused(of, NULL, "sglang", 2, 1, RF_E_FORMAT,
                   "tensor model.vision.weight: no line of plan llama knows it");
    checkpoint_free(of);
    of = checkpoint_of(&llama);
    checkpoint_add(of, "model.layers.2.input_layernorm.weight", RF_DTYPE_BF16, 1,
                   (uint64_t[]){24}); /* there are two layers */
    assert_refused(of, NULL, "sglang", 2, 1, RF_E_FORMAT,
                   "model.layers.2.input_layernorm.weight: no");
    checkpoint_free(of);
}

static void buffers_that_are_no_weights_are_left_out(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);

    checkpoint_add(of, "model.layers.0.self_attn.rotary_emb.inv_freq", RF_DTYPE_F32, 1,
                   (uint64_t[]){2});
    struct manifest *manifest = checkpoint_shard(of, "sglang", 2, 1);
    assert_null(manifest_find(&manifest->ranks[0], "model.layers.0.self_attn.rotary_emb.inv_freq"));
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void a_tied_head_may_be_in_the_checkpoint(void **state)
{
    (void)state;
    struct family family = llama;

    family.tied = true;
    struct checkpoint *of = checkpoint_of(&family);
    checkpoint_add(of, "lm_head.weight", RF_DTYPE_BF16, 2, (uint64_t[]){100, 24});
    struct manifest *manifest = checkpoint_shard(of, "sglang", 2, 1);
    assert_null(manifest_find(&manifest->ranks[0], "lm_head.weight"));
    manifest_unref(manifest);
    manifest = checkpoint_shard(of, "checkpoint", 2, 1);
    assert_non_null(manifest_find(&manifest->ranks[0], "lm_head.weight"));
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void a_shape_that_disagrees_with_the_config_is_shown(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);

    checkpoint_remove(of, "model.layers.0.mlp.down_proj.weight");
    checkpoint_add(of, "model.layers.0.mlp.down_proj.weight", RF_DTYPE_BF16, 2,
                   (uint64_t[]){24, 32});
    assert_refused(
        of, NULL, "checkpoint", 2, 1, RF_E_FORMAT,
        "mlp.down_proj.weight: shape [24, 32] in the checkpoint, [24, 16] by config.json");
    checkpoint_free(of);
}

static void a_dtype_that_would_be_narrowed_is_refused(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);

    checkpoint_remove(of, "model.norm.weight");
    checkpoint_add(of, "model.norm.weight", RF_DTYPE_F32, 1, (uint64_t[]){24});
    assert_refused(of, NULL, "sglang", 2, 1, RF_E_FORMAT,
                   "tensor model.norm.weight: F32 in the checkpoint, but BF16 in layout sglang");
    struct manifest *manifest = checkpoint_shard(of, "checkpoint", 2, 1);
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void a_config_without_what_the_plan_needs_is_refused(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);

    free(of->config);
    of->config = strdup("{\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":2,"
                        "\"hidden_size\":24,\"vocab_size\":100}");
    assert_refused(of, NULL, "sglang", 2, 1, RF_E_FORMAT,
                   "config.json: has no intermediate_size, which plan llama needs in line");
    free(of->config);
    of->config = strdup("{\"architectures\":[\"LlamaForCausalLM\"]}");
    assert_refused(of, NULL, "sglang", 2, 1, RF_E_FORMAT, "has no num_hidden_layers");
    free(of->config);
    of->config = strdup("{\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":1e9}");
    assert_refused(of, NULL, "sglang", 2, 1, RF_E_FORMAT, "num_hidden_layers is no whole number");
    free(of->config);
    of->config =
        strdup("{\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":4000000000}");
    assert_refused(of, NULL, "sglang", 2, 1, RF_E_FORMAT, "4000000000 layers from 0 on; allowed");
    free(of->config);
    of->config = strdup("{\"architectures\":[\"Other\"]}");
    assert_refused(of, NULL, "sglang", 2, 1, RF_E_UNSUPPORTED, "architecture \"Other\"");
    checkpoint_free(of);
}

static void sglang_has_experts_in_every_layer(void **state)
{
    (void)state;
    struct family family = qwen3_moe;
    struct checkpoint *of;

    family.dense = 1;
    of = checkpoint_of(&family);
    char *config = malloc(strlen(of->config) + 32);
    sprintf(config, "%.*s,\"mlp_only_layers\":[0]}", (int)strlen(of->config) - 1, of->config);
    free(of->config);
    of->config = config;
    struct manifest *manifest = checkpoint_shard(of, "checkpoint", 2, 1);
    manifest_unref(manifest);
    assert_refused(of, NULL, "sglang", 2, 1, RF_E_FORMAT,
                   "experts.0.gate_proj.weight: missing in the checkpoint; layout sglang");
    checkpoint_free(of);
}

/* ---- plans that are wrong ---- */

static void a_plan_that_overlaps_or_leaves_holes_is_refused(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_new("{\"n\":2}");

    checkpoint_add(of, "l.0.w", RF_DTYPE_U8, 2, (uint64_t[]){4, 6});
    checkpoint_add(of, "l.1.w", RF_DTYPE_U8, 2, (uint64_t[]){4, 6});
    checkpoint_add(of, "odd", RF_DTYPE_U8, 2, (uint64_t[]){4, 7});
    assert_refused(of, "plan p\nindex l n\ntensor l.{l}.w column\ntensor *.w row\ntensor odd row\n",
                   "checkpoint", 2, 1, RF_E_FORMAT, "l.0.w: plan p knows it in line 3 and in 4");
    assert_refused(of, "plan p\nindex l n\ntensor l.{l}.w column\n", "checkpoint", 2, 1,
                   RF_E_FORMAT, "tensor odd: no line of plan p knows it");
    assert_refused(of, "plan p\nindex l n\ntensor l.{l}.w column\ntensor odd row\n", "checkpoint",
                   2, 1, RF_E_INVAL,
                   "7 elements along the axis it is split cannot be divided by tp 2");
    assert_refused(of, "plan p\nindex l n\ntensor l.{l}.w column axis=2\ntensor odd column\n",
                   "checkpoint", 2, 1, RF_E_FORMAT, "has 2 dimensions, and is to be split along");
    assert_refused(of,
                   "plan p\nindex l n\ntensor l.{l}.w column\ntensor odd column\nlayout x\n"
                   "make l.{l}.w\n",
                   "x", 2, 1, RF_E_FORMAT, "tensor odd: layout x of plan p makes nothing of it");
    assert_refused(of,
                   "plan p\nindex l n\ntensor l.{l}.w column\ntensor odd column\nlayout x\n"
                   "make both from l.0.w odd\ndrop l.{l}.w\n",
                   "x", 2, 1, RF_E_FORMAT, "shapes or dtypes that do not go together");
    assert_refused(of,
                   "plan p\nindex l n\ntensor l.{l}.w column\ntensor odd column\nlayout x\n"
                   "make a from l.0.w\nmake b from missing\ndrop *\n",
                   "x", 2, 1, RF_E_FORMAT, "tensor missing: missing in the checkpoint; layout x");
    assert_refused(of, "plan p\nindex l n\ntensor l.{l}.w column by=n\ntensor odd column by=3\n",
                   "checkpoint", 2, 1, RF_E_FORMAT, "4 elements along axis 0 are not 3 = 3 equal");
    assert_refused(of, "plan p\ntensor * column\n", "other", 2, 1, RF_E_INVAL,
                   "layout \"other\": plan p has checkpoint");
    assert_refused(of, "plan p\ntensor * column\n", "checkpoint", 0, 1, RF_E_INVAL,
                   "tp 0: allowed are 1 to 4096");
    checkpoint_free(of);
}

static void a_stack_of_nothing_is_refused(void **state)
{
    (void)state;
    static const char text[] = "plan p\nindex e n\ntensor a column\ntensor b.{e} column\n"
                               "layout x\nmake a\nmake c stack=e %s from b.{e}\n";
    struct checkpoint *of = checkpoint_new("{\"n\":0}");
    struct manifest *manifest = NULL;
    char plan[256];

    checkpoint_add(of, "a", RF_DTYPE_U8, 1, (uint64_t[]){4});
    snprintf(plan, sizeof plan, text, "");
    assert_refused(of, plan, "x", 2, 1, RF_E_FORMAT, "makes c of nothing: the config has no es");
    snprintf(plan, sizeof plan, text, "optional");
    assert_int_equal(checkpoint_try(of, plan, "x", 2, 1, &manifest, NULL), RF_OK);
    assert_int_equal(manifest->ranks[0].tensor_count, 1);
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void the_same_name_made_twice_is_refused(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_new("{}");

    checkpoint_add(of, "a", RF_DTYPE_U8, 1, (uint64_t[]){4});
    assert_refused(of, "plan p\ntensor a column\nlayout x\nmake b from a\nmake b from a\n", "x", 2,
                   1, RF_E_INVAL, "tensor b: twice in the rank");
    checkpoint_free(of);
}

static void tensors_without_bytes_are_sharded_too(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_new("{}");
    struct manifest *manifest = NULL;
    struct rf_error err = {0};

    checkpoint_add(of, "a", RF_DTYPE_U8, 2, (uint64_t[]){0, 4});
    checkpoint_add(of, "b", RF_DTYPE_U8, 2, (uint64_t[]){4, 0});
    checkpoint_add(of, "c", RF_DTYPE_U8, 0, NULL);
    checkpoint_add(of, "v", RF_DTYPE_U8, 2, (uint64_t[]){1, 3});
    if (checkpoint_try(of,
                       "plan p\ntensor (a|b) column\ntensor c replicated\n"
                       "tensor v embedding pad=4\n",
                       "checkpoint", 2, 1, &manifest, &err) != RF_OK)
        fail_msg("%s", err.text);
    const struct manifest_rank *rank = &manifest->ranks[1];
    assert_int_equal(rank->stream_bytes, 1 + 6);
    assert_int_equal(manifest_find(rank, "a")->part_count, 1);
    assert_int_equal(manifest_find(rank, "b")->shape[0], 2);
    const struct tensor *padding = manifest_find(rank, "v");
    assert_int_equal(padding->part_count, 1);
    assert_int_equal(padding->parts[0].source, MANIFEST_NONE);
    assert_int_equal(padding->bytes, 6);
    manifest_unref(manifest);
    checkpoint_free(of);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_that_do_not_divide_are_refused),
        cmocka_unit_test(a_vocabulary_is_divided_or_padded),
        cmocka_unit_test(experts_that_do_not_divide_are_refused),
        cmocka_unit_test(blocks_are_not_cut),
        cmocka_unit_test(a_missing_tensor_is_named),
        cmocka_unit_test(a_tensor_nobody_knows_is_named),
        cmocka_unit_test(buffers_that_are_no_weights_are_left_out),
        cmocka_unit_test(a_tied_head_may_be_in_the_checkpoint),
        cmocka_unit_test(a_shape_that_disagrees_with_the_config_is_shown),
        cmocka_unit_test(a_dtype_that_would_be_narrowed_is_refused),
        cmocka_unit_test(a_config_without_what_the_plan_needs_is_refused),
        cmocka_unit_test(sglang_has_experts_in_every_layer),
        cmocka_unit_test(a_plan_that_overlaps_or_leaves_holes_is_refused),
        cmocka_unit_test(a_stack_of_nothing_is_refused),
        cmocka_unit_test(the_same_name_made_twice_is_refused),
        cmocka_unit_test(tensors_without_bytes_are_sharded_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
