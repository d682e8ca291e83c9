#include "util/checkpoint.h"

#include "base/dtype.h"
#include "base/rand.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- tensors ---- */

struct checkpoint *checkpoint_new(const char *config)
{
    struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);

    assert_non_null(checkpoint);
    checkpoint->config = strdup(config);
    return checkpoint;
}

void checkpoint_free(struct checkpoint *checkpoint)
{
    for (uint32_t i = 0; i < checkpoint->count; i++) {
        free(checkpoint->tensors[i].name);
        free(checkpoint->tensors[i].data);
    }
    free(checkpoint->tensors);
    free(checkpoint->config);
    free(checkpoint);
}

/* Bytes that depend on the name; exponents that are all ones would be NaN, which nobody
 * compares. */
static void data_make(struct checkpoint_tensor *tensor)
{
    struct rand_seq seq = {5381};

    for (const char *at = tensor->name; *at != '\0'; at++)
        seq.state = seq.state * 33 + (uint8_t)*at;
    for (uint64_t i = 0; i < tensor->bytes; i++)
        tensor->data[i] = (uint8_t)rand_next(&seq) & 0xbf;
}

void checkpoint_add(struct checkpoint *checkpoint, const char *name, enum rf_dtype dtype,
                    uint32_t ndim, const uint64_t *shape)
{
    checkpoint->tensors =
        reallocarray(checkpoint->tensors, checkpoint->count + 1, sizeof *checkpoint->tensors);
    assert_non_null(checkpoint->tensors);
    struct checkpoint_tensor *tensor = &checkpoint->tensors[checkpoint->count++];
    *tensor = (struct checkpoint_tensor){.name = strdup(name), .dtype = dtype, .ndim = ndim};
    if (ndim > 0)
        memcpy(tensor->shape, shape, ndim * sizeof *shape);
    assert_true(dtype_tensor_bytes(dtype, shape, ndim, &tensor->bytes));
    tensor->data = malloc(tensor->bytes + 1);
    assert_non_null(tensor->data);
    data_make(tensor);
}

struct checkpoint_tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name)
{
    for (uint32_t i = 0; i < checkpoint->count; i++) {
        if (strcmp(checkpoint->tensors[i].name, name) == 0)
            return &checkpoint->tensors[i];
    }
    fail_msg("%s: not in the checkpoint", name);
    return NULL;
}

void checkpoint_remove(struct checkpoint *checkpoint, const char *name)
{
    struct checkpoint_tensor *tensor = checkpoint_find(checkpoint, name);

    free(tensor->name);
    free(tensor->data);
    *tensor = checkpoint->tensors[--checkpoint->count];
}

/* ---- families ---- */

/* A tensor of BF16, named as by printf. */
static void put(struct checkpoint *to, uint64_t rows, uint64_t columns, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static void put(struct checkpoint *to, uint64_t rows, uint64_t columns, const char *fmt, ...)
{
    char name[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    checkpoint_add(to, name, RF_DTYPE_BF16, columns > 0 ? 2 : 1, (uint64_t[]){rows, columns});
}

/* A weight that is quantised if the family is. */
static void put_weight(struct checkpoint *to, const struct family *family, uint64_t rows,
                       uint64_t columns, const char *prefix, const char *module)
{
    uint64_t block = family->block;
    char name[256];

    snprintf(name, sizeof name, "%s.%s.weight", prefix, module);
    checkpoint_add(to, name, family->fp8 ? RF_DTYPE_F8_E4M3 : RF_DTYPE_BF16, 2,
                   (uint64_t[]){rows, columns});
    if (!family->fp8)
        return;
    snprintf(name, sizeof name, "%s.%s.weight_scale_inv", prefix, module);
    checkpoint_add(to, name, RF_DTYPE_BF16, 2,
                   (uint64_t[]){(rows + block - 1) / block, (columns + block - 1) / block});
}

static void put_mlp(struct checkpoint *to, const struct family *family, uint64_t size,
                    const char *prefix)
{
    put_weight(to, family, size, family->hidden, prefix, "gate_proj");
    put_weight(to, family, size, family->hidden, prefix, "up_proj");
    put_weight(to, family, family->hidden, size, prefix, "down_proj");
}

static void put_attention(struct checkpoint *to, const struct family *family, const char *prefix,
                          bool norms)
{
    uint64_t q = (uint64_t)family->heads * family->head_dim;
    uint64_t kv = (uint64_t)family->kv_heads * family->head_dim;

    put_weight(to, family, q, family->hidden, prefix, "q_proj");
    put_weight(to, family, kv, family->hidden, prefix, "k_proj");
    put_weight(to, family, kv, family->hidden, prefix, "v_proj");
    put_weight(to, family, family->hidden, q, prefix, "o_proj");
    if (family->bias) {
        put(to, q, 0, "%s.q_proj.bias", prefix);
        put(to, kv, 0, "%s.k_proj.bias", prefix);
        put(to, kv, 0, "%s.v_proj.bias", prefix);
        if (strcmp(family->architecture, "Qwen2ForCausalLM") != 0)
            put(to, family->hidden, 0, "%s.o_proj.bias", prefix);
    }
    if (norms) {
        put(to, family->head_dim, 0, "%s.q_norm.weight", prefix);
        put(to, family->head_dim, 0, "%s.k_norm.weight", prefix);
    }
}

enum { NOPE = 4, ROPE = 2, VALUE = 4, KV_LORA = 6 };

static void put_mla(struct checkpoint *to, const struct family *family, const char *prefix)
{
    uint64_t heads = family->heads;

    if (family->q_lora > 0) {
        put_weight(to, family, family->q_lora, family->hidden, prefix, "q_a_proj");
        put(to, family->q_lora, 0, "%s.q_a_layernorm.weight", prefix);
        put_weight(to, family, heads * (NOPE + ROPE), family->q_lora, prefix, "q_b_proj");
    } else {
        put_weight(to, family, heads * (NOPE + ROPE), family->hidden, prefix, "q_proj");
    }
    put_weight(to, family, KV_LORA + ROPE, family->hidden, prefix, "kv_a_proj_with_mqa");
    put(to, KV_LORA, 0, "%s.kv_a_layernorm.weight", prefix);
    put_weight(to, family, heads * (NOPE + VALUE), KV_LORA, prefix, "kv_b_proj");
    put_weight(to, family, family->hidden, heads * VALUE, prefix, "o_proj");
}

static void put_experts(struct checkpoint *to, const struct family *family, const char *prefix,
                        bool deepseek)
{
    char expert[256];

    for (uint32_t e = 0; e < family->experts; e++) {
        snprintf(expert, sizeof expert, "%s.experts.%" PRIu32, prefix, e);
        put_mlp(to, family, family->moe, expert);
    }
    put(to, family->experts, family->hidden, "%s.gate.weight", prefix);
    if (deepseek) {
        put(to, family->experts, 0, "%s.gate.e_score_correction_bias", prefix);
        snprintf(expert, sizeof expert, "%s.shared_experts", prefix);
        put_mlp(to, family, family->moe, expert);
    }
}

static void put_layer(struct checkpoint *to, const struct family *family, uint32_t layer)
{
    bool deepseek = strncmp(family->architecture, "Deepseek", 8) == 0;
    bool qwen3 = strncmp(family->architecture, "Qwen3", 5) == 0;
    bool sparse = family->experts > 0 && layer >= family->dense;
    char prefix[64];
    char attention[128];
    char mlp[128];

    snprintf(prefix, sizeof prefix, "model.layers.%" PRIu32, layer);
    snprintf(attention, sizeof attention, "%s.self_attn", prefix);
    snprintf(mlp, sizeof mlp, "%s.mlp", prefix);
    put(to, family->hidden, 0, "%s.input_layernorm.weight", prefix);
    if (sparse)
        put_experts(to, family, mlp, deepseek);
    else
        put_mlp(to, family, family->intermediate, mlp);
    put(to, family->hidden, 0, "%s.post_attention_layernorm.weight", prefix);
    if (deepseek)
        put_mla(to, family, attention);
    else
        put_attention(to, family, attention, qwen3);
    if (layer >= family->layers) {
        put(to, family->vocab, family->hidden, "%s.embed_tokens.weight", prefix);
        put(to, family->vocab, family->hidden, "%s.shared_head.head.weight", prefix);
        put(to, family->hidden, 2 * family->hidden, "%s.eh_proj.weight", prefix);
        put(to, family->hidden, 0, "%s.enorm.weight", prefix);
        put(to, family->hidden, 0, "%s.hnorm.weight", prefix);
        put(to, family->hidden, 0, "%s.shared_head.norm.weight", prefix);
    }
}

static char *config_of(const struct family *family)
{
    bool deepseek = strncmp(family->architecture, "Deepseek", 8) == 0;
    struct buf out = {0};

    buf_printf(&out,
               "{\"architectures\":[\"%s\"],\"num_hidden_layers\":%" PRIu32
               ",\"hidden_size\":%" PRIu32 ",\"num_attention_heads\":%" PRIu32
               ",\"num_key_value_heads\":%" PRIu32 ",\"intermediate_size\":%" PRIu32
               ",\"vocab_size\":%" PRIu32 ",\"tie_word_embeddings\":%s,\"attention_bias\":%s,"
               "\"torch_dtype\":\"bfloat16\",\"moe_intermediate_size\":%" PRIu32,
               family->architecture, family->layers, family->hidden, family->heads,
               family->kv_heads, family->intermediate, family->vocab,
               family->tied ? "true" : "false", family->bias ? "true" : "false", family->moe);
    if (family->head_dim > 0)
        buf_printf(&out, ",\"head_dim\":%" PRIu32, family->head_dim);
    if (family->experts > 0)
        buf_printf(&out, ",\"%s\":%" PRIu32, deepseek ? "n_routed_experts" : "num_experts",
                   family->experts);
    if (deepseek)
        buf_printf(&out,
                   ",\"qk_nope_head_dim\":%d,\"qk_rope_head_dim\":%d,\"v_head_dim\":%d,"
                   "\"kv_lora_rank\":%d,\"first_k_dense_replace\":%" PRIu32
                   ",\"moe_layer_freq\":1,\"n_shared_experts\":1,\"topk_method\":\"noaux_tc\","
                   "\"num_nextn_predict_layers\":%" PRIu32,
                   NOPE, ROPE, VALUE, KV_LORA, family->dense, family->nextn);
    if (family->q_lora > 0)
        buf_printf(&out, ",\"q_lora_rank\":%" PRIu32, family->q_lora);
    else if (deepseek)
        buf_printf(&out, ",\"q_lora_rank\":null");
    if (family->fp8)
        buf_printf(&out,
                   ",\"quantization_config\":{\"quant_method\":\"fp8\","
                   "\"weight_block_size\":[%" PRIu32 ",%" PRIu32 "]}",
                   family->block, family->block);
    buf_printf(&out, "}");
    assert_false(out.failed);
    return (char *)out.data;
}

struct checkpoint *checkpoint_of(const struct family *family)
{
    char *config = config_of(family);
    struct checkpoint *to = checkpoint_new(config);

    free(config);
    put(to, family->vocab, family->hidden, "model.embed_tokens.weight");
    for (uint32_t i = 0; i < family->layers + family->nextn; i++)
        put_layer(to, family, i);
    put(to, family->hidden, 0, "model.norm.weight");
    if (!family->tied)
        put(to, family->vocab, family->hidden, "lm_head.weight");
    return to;
}

/* ---- manifests ---- */

struct manifest_builder *checkpoint_builder(const struct checkpoint *checkpoint, const char *layout)
{
    const struct manifest_identity identity = {.model = "tiny",
                                               .architecture = "some",
                                               .quantisation = "none",
                                               .layout = layout,
                                               .stage = shard_stage(layout),
                                               .algorithm = HASH_XXH3_128,
                                               .chunk_bytes = MANIFEST_MIN_CHUNK_BYTES};
    struct manifest_builder *builder = manifest_builder_create(&identity, NULL);

    assert_non_null(builder);
    for (uint32_t i = 0; i < checkpoint->count; i++) {
        const struct checkpoint_tensor *tensor = &checkpoint->tensors[i];
        const struct manifest_source source = {.name = tensor->name,
                                               .dtype = tensor->dtype,
                                               .ndim = tensor->ndim,
                                               .shape = tensor->shape,
                                               .file = MANIFEST_NONE};
        assert_int_equal(manifest_add_source(builder, &source, NULL, NULL), RF_OK);
    }
    return builder;
}

static enum rf_code plan_get(const struct model_config *config, const char *plan_text,
                             struct plan **ret_plan, struct rf_error *err)
{
    if (plan_text != NULL)
        return plan_parse("test.plan", plan_text, strlen(plan_text), ret_plan, err);
    return plan_for_architecture(model_config_architecture(config), ret_plan, err);
}

enum rf_code checkpoint_try(const struct checkpoint *checkpoint, const char *plan_text,
                            const char *layout, uint32_t tp_size, uint32_t ep_size,
                            struct manifest **ret_manifest, struct rf_error *err)
{
    struct model_config *config = NULL;
    struct plan *plan = NULL;
    enum rf_code code =
        model_config_parse(checkpoint->config, strlen(checkpoint->config), &config, err);

    if (code == RF_OK)
        code = plan_get(config, plan_text, &plan, err);
    if (code == RF_OK) {
        const struct shard_request request = {.plan = plan,
                                              .config = config,
                                              .layout = layout,
                                              .tp_size = tp_size,
                                              .ep_size = ep_size};
        struct manifest_builder *builder = checkpoint_builder(checkpoint, layout);

        code = shard_ranks(builder, &request, err);
        if (code == RF_OK)
            code = manifest_build(builder, ret_manifest, err);
        else
            manifest_builder_destroy(builder);
    }
    plan_destroy(plan);
    model_config_destroy(config);
    return code;
}

struct manifest *checkpoint_shard(const struct checkpoint *checkpoint, const char *layout,
                                  uint32_t tp_size, uint32_t ep_size)
{
    struct manifest *manifest = NULL;
    struct rf_error err = {0};

    if (checkpoint_try(checkpoint, NULL, layout, tp_size, ep_size, &manifest, &err) != RF_OK)
        fail_msg("%s", err.text);
    return manifest;
}

struct manifest *checkpoint_whole(const struct checkpoint *checkpoint)
{
    const struct rank_id only = {.tp_size = 1, .pp_size = 1, .ep_size = 1, .dp_size = 1};
    const struct checkpoint nothing = {.count = 0};
    struct manifest_builder *builder = checkpoint_builder(&nothing, "checkpoint");
    struct manifest *manifest = NULL;

    assert_int_equal(manifest_add_rank(builder, &only, NULL), RF_OK);
    for (uint32_t i = 0; i < checkpoint->count; i++) {
        const struct checkpoint_tensor *from = &checkpoint->tensors[i];
        const struct tensor tensor = {.name = from->name,
                                      .dtype = from->dtype,
                                      .ndim = from->ndim,
                                      .shape = from->shape,
                                      .file = MANIFEST_NONE};
        assert_int_equal(manifest_add_tensor(builder, &tensor, NULL, NULL), RF_OK);
    }
    assert_int_equal(manifest_build(builder, &manifest, NULL), RF_OK);
    return manifest;
}

/* ---- bytes ---- */

/* What a half-precision number is worth (IEEE 754-2008), by arithmetic: clang 14 knows no _Float16
 * on this processor. */
static float half_value(uint16_t half)
{
    int exponent = half >> 10 & 31;
    float fraction = (float)(half & 1023);
    float value = exponent == 0    ? ldexpf(fraction, -24)
                  : exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                                   : ldexpf(1024 + fraction, exponent - 25);

    return (half & 0x8000) != 0 ? -value : value;
}

static float as_float(enum rf_dtype dtype, const uint8_t *at)
{
    uint16_t half;
    float value;

    memcpy(&half, at, sizeof half);
    uint32_t word = (uint32_t)half << 16;
    memcpy(&value, &word, sizeof value);
    return dtype == RF_DTYPE_BF16 ? value : half_value(half);
}

static uint64_t product(const uint64_t *shape, uint32_t begin, uint32_t end)
{
    uint64_t all = 1;

    for (uint32_t i = begin; i < end; i++)
        all *= shape[i];
    return all;
}

static void part_bytes(const struct checkpoint *checkpoint, const struct manifest *manifest,
                       const struct tensor *tensor, const struct part *part, uint8_t *out)
{
    const struct checkpoint_tensor *from =
        checkpoint_find(checkpoint, manifest->sources[part->source].name);
    uint64_t outer = product(from->shape, 0, part->axis < from->ndim ? part->axis : 0);
    uint64_t n = from->ndim > 0 ? from->shape[part->axis] : 1;
    uint64_t inner = from->ndim > 0 ? product(from->shape, part->axis + 1, from->ndim) : 1;
    uint64_t size = rf_dtype_bits(from->dtype) / 8;
    uint64_t to_size = rf_dtype_bits(tensor->dtype) / 8;

    for (uint64_t o = 0; o < outer; o++) {
        for (uint64_t i = 0; i < part->count * inner; i++) {
            const uint8_t *at = from->data + ((o * n + part->start) * inner + i) * size;
            uint8_t *to = out + part->offset + (o * part->count * inner + i) * to_size;

            if (from->dtype == tensor->dtype) {
                memcpy(to, at, size);
            } else {
                float value = as_float(from->dtype, at);
                memcpy(to, &value, sizeof value);
            }
        }
    }
}

uint8_t *checkpoint_tensor_bytes(const struct checkpoint *checkpoint,
                                 const struct manifest *manifest, const struct tensor *tensor)
{
    uint8_t *out = malloc(tensor->bytes + 1);

    assert_non_null(out);
    for (uint32_t i = 0; i < tensor->part_count; i++) {
        const struct part *part = &tensor->parts[i];

        if (part->source == MANIFEST_NONE)
            part_fill(part, out + part->offset, part->bytes);
        else
            part_bytes(checkpoint, manifest, tensor, part, out);
    }
    if (tensor->part_count == 0 && tensor->bytes > 0)
        memcpy(out, checkpoint_find(checkpoint, tensor->name)->data, tensor->bytes);
    return out;
}

uint8_t *checkpoint_stream(const struct checkpoint *checkpoint, const struct manifest *manifest,
                           uint32_t rank)
{
    const struct manifest_rank *of = &manifest->ranks[rank];
    uint8_t *stream = malloc(of->stream_bytes + 1);

    assert_non_null(stream);
    for (uint32_t i = 0; i < of->tensor_count; i++) {
        const struct tensor *tensor = &of->tensors[i];
        uint8_t *bytes = checkpoint_tensor_bytes(checkpoint, manifest, tensor);

        memcpy(stream + tensor->stream_offset, bytes, tensor->bytes);
        free(bytes);
    }
    return stream;
}
