/* The ranks of each family, against slices cut here in the obvious way. */
#include "util/bytes.h"
#include "util/checkpoint.h"

#include <inttypes.h>
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

/* ---- cutting ---- */

/* A matrix, or several of them, row by row. */
struct cut {
    uint64_t rows;
    uint64_t row_bytes;
    uint8_t *data;
};

static struct cut cut_rows(const struct checkpoint *of, const char *name, uint64_t begin,
                           uint64_t count)
{
    const struct checkpoint_tensor *from = checkpoint_find(of, name);
    struct cut cut = {.rows = count, .row_bytes = from->bytes / from->shape[0]};

    assert_true(begin + count <= from->shape[0]);
    cut.data = exact_copy(from->data + begin * cut.row_bytes, count * cut.row_bytes);
    return cut;
}

static struct cut cut_columns(const struct checkpoint *of, const char *name, uint64_t begin,
                              uint64_t count)
{
    const struct checkpoint_tensor *from = checkpoint_find(of, name);
    uint64_t size = rf_dtype_bits(from->dtype) / 8;
    struct cut cut = {.rows = from->shape[0], .row_bytes = count * size};

    assert_true(from->ndim == 2 && begin + count <= from->shape[1]);
    cut.data = malloc(cut.rows * cut.row_bytes + 1);
    for (uint64_t row = 0; row < cut.rows; row++)
        memcpy(cut.data + row * cut.row_bytes, from->data + (row * from->shape[1] + begin) * size,
               cut.row_bytes);
    return cut;
}

static struct cut cut_join(struct cut a, struct cut b)
{
    uint64_t bytes = a.rows * a.row_bytes;

    assert_int_equal(a.row_bytes, b.row_bytes);
    a.data = realloc(a.data, bytes + b.rows * b.row_bytes + 1);
    memcpy(a.data + bytes, b.data, b.rows * b.row_bytes);
    a.rows += b.rows;
    free(b.data);
    return a;
}

static struct cut cut_zeros(uint64_t rows, uint64_t row_bytes)
{
    return (struct cut){rows, row_bytes, calloc(rows + 1, row_bytes)};
}

/* The piece of n that one of size ranks has. */
static struct cut part_rows(const struct checkpoint *of, const char *name, uint32_t rank,
                            uint32_t size)
{
    uint64_t n = checkpoint_find(of, name)->shape[0] / size;
    return cut_rows(of, name, rank * n, n);
}

static struct cut part_columns(const struct checkpoint *of, const char *name, uint32_t rank,
                               uint32_t size)
{
    uint64_t n = checkpoint_find(of, name)->shape[1] / size;
    return cut_columns(of, name, rank * n, n);
}

/* A KV head's rows: its share, or one head for several ranks. */
static struct cut part_kv(const struct checkpoint *of, const char *name, uint32_t heads,
                          uint32_t rank, uint32_t size)
{
    uint32_t copies = heads >= size ? 1 : size / heads;
    return part_rows(of, name, rank / copies, size / copies);
}

static struct cut whole(const struct checkpoint *of, const char *name)
{
    return part_rows(of, name, 0, 1);
}

static const char *in_layer(uint32_t layer, const char *name, char out[128])
{
    snprintf(out, 128, "model.layers.%" PRIu32 ".%s", layer, name);
    return out;
}

/* ---- comparing ---- */

/* One rank's tensors in the order of the layout, looked at one after the other. */
struct reading {
    const struct checkpoint *checkpoint;
    const struct manifest *manifest;
    const struct manifest_rank *rank;
    uint32_t next;
};

static struct reading read_rank(const struct checkpoint *checkpoint,
                                const struct manifest *manifest, uint32_t rank)
{
    return (struct reading){checkpoint, manifest, &manifest->ranks[rank], 0};
}

/* The next tensor has this name, these bytes, and as many rows. */
static void expect(struct reading *reading, const char *name, struct cut cut)
{
    const struct tensor *tensor = NULL;

    for (uint32_t i = 0; i < reading->rank->tensor_count; i++) {
        if (reading->rank->tensors[i].order == reading->next)
            tensor = &reading->rank->tensors[i];
    }
    assert_non_null(tensor);
    assert_string_equal(tensor->name, name);
    if (tensor->bytes != cut.rows * cut.row_bytes)
        fail_msg("%s: %" PRIu64 " bytes, %" PRIu64 " are expected", name, tensor->bytes,
                 cut.rows * cut.row_bytes);
    uint8_t *bytes = checkpoint_tensor_bytes(reading->checkpoint, reading->manifest, tensor);
    assert_memory_equal(bytes, cut.data, tensor->bytes);
    free(bytes);
    free(cut.data);
    reading->next++;
}

static void expect_end(const struct reading *reading)
{
    assert_int_equal(reading->next, reading->rank->tensor_count);
}

static struct cut vocabulary(const struct checkpoint *of, const char *name, uint32_t rank,
                             uint32_t size)
{
    const struct checkpoint_tensor *from = checkpoint_find(of, name);
    uint64_t padded = (from->shape[0] + 63) / 64 * 64;

    if (padded % size != 0)
        padded = (from->shape[0] + 64 * size - 1) / (64 * size) * 64 * size;
    struct cut all =
        cut_join(whole(of, name), cut_zeros(padded - from->shape[0], from->bytes / from->shape[0]));
    uint64_t bytes = padded / size * all.row_bytes;
    struct cut part = {padded / size, all.row_bytes, exact_copy(all.data + rank * bytes, bytes)};
    free(all.data);
    return part;
}

static void expect_qkv(struct reading *reading, const struct family *family, uint32_t layer,
                       const char *what, uint32_t rank, uint32_t size)
{
    char q[128];
    char k[128];
    char v[128];
    char name[128];
    char text[64];

    snprintf(text, sizeof text, "self_attn.q_proj.%s", what);
    in_layer(layer, text, q);
    snprintf(text, sizeof text, "self_attn.k_proj.%s", what);
    in_layer(layer, text, k);
    snprintf(text, sizeof text, "self_attn.v_proj.%s", what);
    in_layer(layer, text, v);
    snprintf(text, sizeof text, "self_attn.qkv_proj.%s", what);
    const struct checkpoint *of = reading->checkpoint;
    struct cut cut =
        cut_join(part_rows(of, q, rank, size), part_kv(of, k, family->kv_heads, rank, size));
    cut = cut_join(cut, part_kv(of, v, family->kv_heads, rank, size));
    expect(reading, in_layer(layer, text, name), cut);
}

static void expect_mlp(struct reading *reading, uint32_t layer, const char *mlp, uint32_t rank,
                       uint32_t size)
{
    const struct checkpoint *of = reading->checkpoint;
    char a[128];
    char b[128];
    char name[128];
    char text[64];

    snprintf(text, sizeof text, "%s.gate_proj.weight", mlp);
    in_layer(layer, text, a);
    snprintf(text, sizeof text, "%s.up_proj.weight", mlp);
    in_layer(layer, text, b);
    snprintf(text, sizeof text, "%s.gate_up_proj.weight", mlp);
    expect(reading, in_layer(layer, text, name),
           cut_join(part_rows(of, a, rank, size), part_rows(of, b, rank, size)));
    snprintf(text, sizeof text, "%s.down_proj.weight", mlp);
    in_layer(layer, text, a);
    expect(reading, a, part_columns(of, a, rank, size));
}

static void expect_whole(struct reading *reading, uint32_t layer, const char *name)
{
    char text[128];

    in_layer(layer, name, text);
    expect(reading, text, whole(reading->checkpoint, text));
}

static void expect_norms(struct reading *reading, uint32_t layer)
{
    expect_whole(reading, layer, "input_layernorm.weight");
    expect_whole(reading, layer, "post_attention_layernorm.weight");
}

static void expect_embedding(struct reading *reading, const char *name, uint32_t rank,
                             uint32_t size)
{
    expect(reading, name, vocabulary(reading->checkpoint, name, rank, size));
}

static void expect_columns(struct reading *reading, uint32_t layer, const char *name, uint32_t rank,
                           uint32_t size)
{
    char text[128];

    in_layer(layer, name, text);
    expect(reading, text, part_columns(reading->checkpoint, text, rank, size));
}

/* ---- families, layout sglang ---- */

static void check_dense(const struct family *family, uint32_t size)
{
    bool qwen3 = strcmp(family->architecture, "Qwen3ForCausalLM") == 0;
    bool o_bias = family->bias && strcmp(family->architecture, "Qwen2ForCausalLM") != 0;
    struct checkpoint *of = checkpoint_of(family);
    struct manifest *manifest = checkpoint_shard(of, "sglang", size, 1);

    assert_int_equal(manifest->rank_count, size);
    for (uint32_t rank = 0; rank < size; rank++) {
        struct reading reading = read_rank(of, manifest, rank);

        expect_embedding(&reading, "model.embed_tokens.weight", rank, size);
        for (uint32_t layer = 0; layer < family->layers; layer++) {
            if (qwen3) {
                expect_whole(&reading, layer, "self_attn.q_norm.weight");
                expect_whole(&reading, layer, "self_attn.k_norm.weight");
            }
            expect_qkv(&reading, family, layer, "weight", rank, size);
            if (family->bias)
                expect_qkv(&reading, family, layer, "bias", rank, size);
            expect_columns(&reading, layer, "self_attn.o_proj.weight", rank, size);
            if (o_bias)
                expect_whole(&reading, layer, "self_attn.o_proj.bias");
            expect_mlp(&reading, layer, "mlp", rank, size);
            expect_norms(&reading, layer);
        }
        expect(&reading, "model.norm.weight", whole(of, "model.norm.weight"));
        if (!family->tied)
            expect_embedding(&reading, "lm_head.weight", rank, size);
        expect_end(&reading);
    }
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void llama_is_fused_as_sglang_does(void **state)
{
    (void)state;
    struct family family = llama;

    for (uint32_t size = 1; size <= 8; size *= 2)
        check_dense(&family, size);
    family.tied = true;
    check_dense(&family, 2);
    family.bias = true;
    check_dense(&family, 4);
}

static void vocabulary_is_padded_by_the_ranks_when_64_does_not_divide(void **state)
{
    (void)state;
    struct family family = llama;

    family.heads = 6;
    family.kv_heads = 3;
    family.intermediate = 12;
    check_dense(&family, 3);
    check_dense(&family, 6);
}

static void qwen2_is_fused_as_sglang_does(void **state)
{
    (void)state;
    struct family family = llama;

    family.architecture = "Qwen2ForCausalLM";
    family.bias = true;
    for (uint32_t size = 1; size <= 8; size *= 2)
        check_dense(&family, size);
}

static void qwen3_is_fused_as_sglang_does(void **state)
{
    (void)state;
    struct family family = llama;

    family.architecture = "Qwen3ForCausalLM";
    family.head_dim = 6;
    for (uint32_t size = 1; size <= 8; size *= 2)
        check_dense(&family, size);
    family.tied = true;
    check_dense(&family, 2);
}

/* [E, ...] of what each expert has. */
static void expect_experts(struct reading *reading, uint32_t layer, uint32_t begin, uint32_t end,
                           uint32_t rank, uint32_t size)
{
    const struct checkpoint *of = reading->checkpoint;
    struct cut w13 = {0};
    struct cut w2 = {0};
    char name[128];
    char text[64];

    for (uint32_t e = begin; e < end; e++) {
        snprintf(text, sizeof text, "mlp.experts.%" PRIu32 ".gate_proj.weight", e);
        struct cut gate = part_rows(of, in_layer(layer, text, name), rank, size);
        snprintf(text, sizeof text, "mlp.experts.%" PRIu32 ".up_proj.weight", e);
        struct cut up = part_rows(of, in_layer(layer, text, name), rank, size);
        snprintf(text, sizeof text, "mlp.experts.%" PRIu32 ".down_proj.weight", e);
        struct cut down = part_columns(of, in_layer(layer, text, name), rank, size);
        w13 = e == begin ? cut_join(gate, up) : cut_join(w13, cut_join(gate, up));
        w2 = e == begin ? down : cut_join(w2, down);
    }
    expect(reading, in_layer(layer, "mlp.experts.w13_weight", name), w13);
    expect(reading, in_layer(layer, "mlp.experts.w2_weight", name), w2);
}

static const struct family qwen3_moe = {.architecture = "Qwen3MoeForCausalLM",
                                        .layers = 2,
                                        .hidden = 24,
                                        .heads = 8,
                                        .kv_heads = 4,
                                        .head_dim = 4,
                                        .intermediate = 16,
                                        .vocab = 130,
                                        .experts = 4,
                                        .moe = 8};

static void check_qwen3_moe(uint32_t size, uint32_t ep)
{
    struct checkpoint *of = checkpoint_of(&qwen3_moe);
    struct manifest *manifest = checkpoint_shard(of, "sglang", size, ep);

    for (uint32_t rank = 0; rank < size; rank++) {
        struct reading reading = read_rank(of, manifest, rank);
        uint32_t moe_size = size / ep;
        uint32_t local = qwen3_moe.experts / ep;
        uint32_t group = rank / moe_size;

        assert_int_equal(reading.rank->id.ep, group);
        expect_embedding(&reading, "model.embed_tokens.weight", rank, size);
        for (uint32_t layer = 0; layer < qwen3_moe.layers; layer++) {
            expect_qkv(&reading, &qwen3_moe, layer, "weight", rank, size);
            expect_columns(&reading, layer, "self_attn.o_proj.weight", rank, size);
            expect_whole(&reading, layer, "self_attn.q_norm.weight");
            expect_whole(&reading, layer, "self_attn.k_norm.weight");
            expect_experts(&reading, layer, group * local, (group + 1) * local, rank % moe_size,
                           moe_size);
            expect_whole(&reading, layer, "mlp.gate.weight");
            expect_norms(&reading, layer);
        }
        expect(&reading, "model.norm.weight", whole(of, "model.norm.weight"));
        expect_embedding(&reading, "lm_head.weight", rank, size);
        expect_end(&reading);
    }
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void qwen3_moe_is_stacked_as_sglang_does(void **state)
{
    (void)state;
    for (uint32_t size = 1; size <= 8; size *= 2)
        check_qwen3_moe(size, 1);
}

static void experts_are_divided_over_groups_of_ranks(void **state)
{
    (void)state;
    check_qwen3_moe(4, 4);
    check_qwen3_moe(4, 2);
    check_qwen3_moe(8, 2);
}

static const struct family deepseek = {.architecture = "DeepseekV3ForCausalLM",
                                       .layers = 3,
                                       .hidden = 24,
                                       .heads = 8,
                                       .kv_heads = 8,
                                       .intermediate = 16,
                                       .vocab = 130,
                                       .experts = 4,
                                       .moe = 8,
                                       .dense = 1,
                                       .q_lora = 10,
                                       .nextn = 1};

static struct cut widened(const struct checkpoint *of, const char *name)
{
    const struct checkpoint_tensor *from = checkpoint_find(of, name);
    struct cut cut = {from->shape[0], 4, calloc(from->shape[0], 4)};

    for (uint64_t i = 0; i < from->shape[0]; i++)
        memcpy(cut.data + 4 * i + 2, from->data + 2 * i, 2); /* little-endian */
    return cut;
}

static void expect_mla(struct reading *reading, const struct family *family, uint32_t layer,
                       uint32_t rank, uint32_t size)
{
    const struct checkpoint *of = reading->checkpoint;
    char a[128];
    char b[128];
    char name[128];

    if (family->q_lora > 0) {
        in_layer(layer, "self_attn.q_a_proj.weight", a);
        in_layer(layer, "self_attn.kv_a_proj_with_mqa.weight", b);
        expect(reading, in_layer(layer, "self_attn.fused_qkv_a_proj_with_mqa.weight", name),
               cut_join(whole(of, a), whole(of, b)));
        expect_whole(reading, layer, "self_attn.q_a_layernorm.weight");
        in_layer(layer, "self_attn.q_b_proj.weight", a);
        expect(reading, a, part_rows(of, a, rank, size));
    } else {
        in_layer(layer, "self_attn.q_proj.weight", a);
        expect(reading, a, part_rows(of, a, rank, size));
        expect_whole(reading, layer, "self_attn.kv_a_proj_with_mqa.weight");
    }
    in_layer(layer, "self_attn.kv_b_proj.weight", a);
    expect(reading, a, part_rows(of, a, rank, size));
    expect_columns(reading, layer, "self_attn.o_proj.weight", rank, size);
    expect_whole(reading, layer, "self_attn.kv_a_layernorm.weight");
}

static void check_deepseek(const struct family *family, uint32_t size)
{
    struct checkpoint *of = checkpoint_of(family);
    struct manifest *manifest = checkpoint_shard(of, "sglang", size, 1);
    char name[128];

    for (uint32_t rank = 0; rank < size; rank++) {
        struct reading reading = read_rank(of, manifest, rank);

        expect_embedding(&reading, "model.embed_tokens.weight", rank, size);
        for (uint32_t layer = 0; layer < family->layers; layer++) {
            expect_mla(&reading, family, layer, rank, size);
            if (layer < family->dense) {
                expect_mlp(&reading, layer, "mlp", rank, size);
            } else {
                expect_whole(&reading, layer, "mlp.gate.weight");
                in_layer(layer, "mlp.gate.e_score_correction_bias", name);
                expect(&reading, name, widened(of, name));
                expect_experts(&reading, layer, 0, family->experts, rank, size);
                expect_mlp(&reading, layer, "mlp.shared_experts", rank, size);
            }
            expect_norms(&reading, layer);
        }
        expect(&reading, "model.norm.weight", whole(of, "model.norm.weight"));
        expect_embedding(&reading, "lm_head.weight", rank, size);
        expect_end(&reading);
    }
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void deepseek_v3_is_fused_as_sglang_does(void **state)
{
    (void)state;
    struct family family = deepseek;

    for (uint32_t size = 1; size <= 8; size *= 2)
        check_deepseek(&family, size);
    family.q_lora = 0;
    family.nextn = 0;
    check_deepseek(&family, 2);
}

static void shared_expert_can_be_the_last_of_the_stack(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&deepseek);
    struct manifest *apart = checkpoint_shard(of, "sglang", 2, 1);
    struct manifest *fused = checkpoint_shard(of, "sglang-shared-fused", 2, 1);
    const struct manifest_rank *rank = &fused->ranks[1];
    const struct tensor *stack = manifest_find(rank, "model.layers.1.mlp.experts.w13_weight");
    const struct tensor *shared =
        manifest_find(&apart->ranks[1], "model.layers.1.mlp.shared_experts.gate_up_proj.weight");

    assert_null(manifest_find(rank, "model.layers.1.mlp.shared_experts.gate_up_proj.weight"));
    assert_int_equal(stack->shape[0], 5);
    assert_int_equal(stack->bytes, 5 * shared->bytes);
    uint8_t *all = checkpoint_tensor_bytes(of, fused, stack);
    uint8_t *last = checkpoint_tensor_bytes(of, apart, shared);
    assert_memory_equal(all + 4 * shared->bytes, last, shared->bytes);
    free(all);
    free(last);
    manifest_unref(apart);
    manifest_unref(fused);
    checkpoint_free(of);
}

/* ---- scales ---- */

static void assert_shape(const struct manifest *manifest, const char *name, enum rf_dtype dtype,
                         uint64_t a, uint64_t b, uint64_t c)
{
    const struct tensor *tensor = manifest_find(&manifest->ranks[manifest->rank_count - 1], name);

    if (tensor == NULL)
        fail_msg("%s: is not there", name);
    assert_int_equal(tensor->dtype, dtype);
    assert_int_equal(tensor->ndim, c > 0 ? 3 : 2);
    assert_int_equal(tensor->shape[0], a);
    assert_int_equal(tensor->shape[1], b);
    if (c > 0)
        assert_int_equal(tensor->shape[2], c);
}

static void scales_of_blocks_follow_their_weights(void **state)
{
    (void)state;
    struct family family = qwen3_moe;

    family.fp8 = true;
    family.block = 4;
    struct checkpoint *of = checkpoint_of(&family);
    struct manifest *manifest = checkpoint_shard(of, "sglang", 2, 1);
    assert_shape(manifest, "model.layers.0.self_attn.qkv_proj.weight", RF_DTYPE_F8_E4M3, 32, 24, 0);
    assert_shape(manifest, "model.layers.0.self_attn.qkv_proj.weight_scale_inv", RF_DTYPE_F32, 8, 6,
                 0);
    assert_shape(manifest, "model.layers.0.self_attn.o_proj.weight_scale_inv", RF_DTYPE_F32, 6, 4,
                 0);
    assert_shape(manifest, "model.layers.0.mlp.experts.w13_weight_scale_inv", RF_DTYPE_F32, 4, 2,
                 6);
    assert_shape(manifest, "model.layers.0.mlp.experts.w2_weight_scale_inv", RF_DTYPE_F32, 4, 6, 1);
    manifest_unref(manifest);
    manifest = checkpoint_shard(of, "checkpoint", 2, 1);
    assert_shape(manifest, "model.layers.0.mlp.experts.3.down_proj.weight_scale_inv", RF_DTYPE_BF16,
                 6, 1, 0);
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void scales_of_experts_go_where_the_experts_go(void **state)
{
    (void)state;
    struct family family = qwen3_moe;

    family.fp8 = true;
    family.block = 4;
    struct checkpoint *of = checkpoint_of(&family);
    struct manifest *manifest = checkpoint_shard(of, "sglang", 2, 2);
    assert_shape(manifest, "model.layers.0.mlp.experts.w13_weight", RF_DTYPE_F8_E4M3, 2, 16, 24);
    assert_shape(manifest, "model.layers.0.mlp.experts.w13_weight_scale_inv", RF_DTYPE_F32, 2, 4,
                 6);
    assert_shape(manifest, "model.layers.0.mlp.experts.w2_weight_scale_inv", RF_DTYPE_F32, 2, 6, 2);
    manifest_unref(manifest);
    manifest = checkpoint_shard(of, "checkpoint", 2, 2);
    assert_shape(manifest, "model.layers.0.mlp.experts.3.down_proj.weight_scale_inv", RF_DTYPE_BF16,
                 6, 2, 0);
    assert_null(manifest_find(&manifest->ranks[1],
                              "model.layers.0.mlp.experts.1.down_proj.weight_scale_inv"));
    assert_non_null(manifest_find(&manifest->ranks[0],
                                  "model.layers.0.mlp.experts.1.down_proj.weight_scale_inv"));
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void fp8_deepseek_has_scales_and_constants(void **state)
{
    (void)state;
    struct family family = deepseek;
    float minus_one = -1;

    family.fp8 = true;
    family.block = 2;
    struct checkpoint *of = checkpoint_of(&family);
    struct manifest *manifest = checkpoint_shard(of, "sglang", 2, 1);
    assert_shape(manifest, "model.layers.2.self_attn.fused_qkv_a_proj_with_mqa.weight_scale_inv",
                 RF_DTYPE_F32, 9, 12, 0);
    const struct tensor *scale =
        manifest_find(&manifest->ranks[1], "model.layers.0.self_attn.attn_mha.v_scale");
    assert_non_null(scale);
    uint8_t *bytes = checkpoint_tensor_bytes(of, manifest, scale);
    assert_int_equal(scale->bytes, 4);
    assert_memory_equal(bytes, &minus_one, 4);
    free(bytes);
    manifest_unref(manifest);
    checkpoint_free(of);
}

/* ---- layout checkpoint ---- */

static void checkpoint_layout_keeps_names_order_and_dtypes(void **state)
{
    (void)state;
    struct family family = deepseek;

    family.vocab = 128;
    struct checkpoint *of = checkpoint_of(&family);
    struct manifest *manifest = checkpoint_shard(of, "checkpoint", 4, 1);
    for (uint32_t rank = 0; rank < 4; rank++) {
        struct reading reading = read_rank(of, manifest, rank);

        for (uint32_t i = 0; i < of->count; i++) {
            const struct checkpoint_tensor *from = &of->tensors[i];
            const struct tensor *tensor = manifest_find(reading.rank, from->name);

            assert_non_null(tensor);
            assert_int_equal(tensor->dtype, from->dtype);
            assert_memory_equal(tensor->global_shape, from->shape, from->ndim * 8);
            uint64_t share = from->bytes / tensor->bytes;
            assert_true(share == 1 || share == 4);
            if (share == 1)
                expect(&reading, from->name, whole(of, from->name));
            else if (tensor->shape[0] < from->shape[0])
                expect(&reading, from->name, part_rows(of, from->name, rank, 4));
            else
                expect(&reading, from->name, part_columns(of, from->name, rank, 4));
        }
        expect_end(&reading);
    }
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void slices_say_where_they_are(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);
    struct manifest *manifest = checkpoint_shard(of, "sglang", 4, 1);
    const struct tensor *down =
        manifest_find(&manifest->ranks[3], "model.layers.1.mlp.down_proj.weight");
    const struct tensor *embed = manifest_find(&manifest->ranks[3], "model.embed_tokens.weight");

    assert_int_equal(down->global_shape[1], 16);
    assert_int_equal(down->slice_start[1], 12);
    assert_int_equal(down->parts[0].axis, 1);
    assert_int_equal(embed->global_shape[0], 128);
    assert_int_equal(embed->slice_start[0], 96);
    assert_int_equal(embed->part_count, 2);
    assert_int_equal(embed->parts[0].count, 4); /* 100 rows are there */
    assert_int_equal(embed->parts[1].source, MANIFEST_NONE);
    manifest_unref(manifest);
    checkpoint_free(of);
}

static void some_of_the_ranks_can_be_made(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);
    struct manifest *all = checkpoint_shard(of, "sglang", 4, 1);
    struct manifest_builder *builder = checkpoint_builder(of, "sglang");
    struct model_config *config = NULL;
    struct plan *plan = NULL;
    struct manifest *some = NULL;
    const uint32_t ranks[] = {3, 1};

    assert_int_equal(model_config_parse(of->config, strlen(of->config), &config, NULL), RF_OK);
    assert_int_equal(plan_for_architecture("LlamaForCausalLM", &plan, NULL), RF_OK);
    const struct shard_request request = {.plan = plan,
                                          .config = config,
                                          .layout = "sglang",
                                          .tp_size = 4,
                                          .ranks = ranks,
                                          .rank_count = 2,
                                          .role = ROLE_DRAFT};
    assert_int_equal(shard_ranks(builder, &request, NULL), RF_OK);
    assert_int_equal(manifest_build(builder, &some, NULL), RF_OK);
    assert_int_equal(some->rank_count, 2);
    for (uint32_t i = 0; i < 2; i++) {
        uint8_t *a = checkpoint_stream(of, some, i);
        uint8_t *b = checkpoint_stream(of, all, ranks[i]);

        assert_int_equal(some->ranks[i].id.tp, ranks[i]);
        assert_int_equal(some->ranks[i].id.role, ROLE_DRAFT);
        assert_memory_equal(a, b, some->ranks[i].stream_bytes);
        free(a);
        free(b);
    }
    manifest_unref(some);
    manifest_unref(all);
    plan_destroy(plan);
    model_config_destroy(config);
    checkpoint_free(of);
}

/* ---- placement ---- */

static void layers_are_divided_over_stages_the_last_ones_longer(void **state)
{
    (void)state;
    static const uint32_t cases[][4] = {
        /* layers, stages, stage, first; ends where the next begins */
        {10, 4, 0, 0}, {10, 4, 1, 2},  {10, 4, 2, 4}, {10, 4, 3, 7},
        {8, 2, 1, 4},  {61, 4, 3, 45}, {5, 1, 0, 0}};
    uint32_t first = 0;
    uint32_t end = 0;

    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        plan_stage_layers(cases[i][0], cases[i][2], cases[i][1], &first, &end);
        assert_int_equal(first, cases[i][3]);
    }
    for (uint32_t layers = 1; layers < 20; layers++) {
        for (uint32_t stages = 1; stages <= layers; stages++) {
            uint32_t at = 0;
            for (uint32_t stage = 0; stage < stages; stage++) {
                plan_stage_layers(layers, stage, stages, &first, &end);
                assert_int_equal(first, at);
                assert_true(end > first);
                at = end;
            }
            assert_int_equal(at, layers);
        }
    }
}

static void ranks_find_their_experts(void **state)
{
    (void)state;
    uint32_t a = 0;
    uint32_t b = 0;

    plan_ep_experts(256, 3, 8, &a, &b);
    assert_int_equal(a, 96);
    assert_int_equal(b, 128);
    plan_ep_place(5, 8, 4, &a, &b);
    assert_int_equal(a, 2);
    assert_int_equal(b, 1);
    plan_ep_place(5, 8, 1, &a, &b);
    assert_int_equal(a, 0);
    assert_int_equal(b, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_is_fused_as_sglang_does),
        cmocka_unit_test(vocabulary_is_padded_by_the_ranks_when_64_does_not_divide),
        cmocka_unit_test(qwen2_is_fused_as_sglang_does),
        cmocka_unit_test(qwen3_is_fused_as_sglang_does),
        cmocka_unit_test(qwen3_moe_is_stacked_as_sglang_does),
        cmocka_unit_test(experts_are_divided_over_groups_of_ranks),
        cmocka_unit_test(deepseek_v3_is_fused_as_sglang_does),
        cmocka_unit_test(shared_expert_can_be_the_last_of_the_stack),
        cmocka_unit_test(scales_of_blocks_follow_their_weights),
        cmocka_unit_test(scales_of_experts_go_where_the_experts_go),
        cmocka_unit_test(fp8_deepseek_has_scales_and_constants),
        cmocka_unit_test(checkpoint_layout_keeps_names_order_and_dtypes),
        cmocka_unit_test(slices_say_where_they_are),
        cmocka_unit_test(some_of_the_ranks_can_be_made),
        cmocka_unit_test(layers_are_divided_over_stages_the_last_ones_longer),
        cmocka_unit_test(ranks_find_their_experts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
