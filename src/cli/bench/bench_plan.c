/* Planning a fork of very many tensors into very many ranks. */
#include "base/clock.h"
#include "cli/bench/bench.h"
#include "model/reshard.h"
#include "model/shard.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    PLAN_LAYERS = 153,
    PLAN_EXPERTS = 128,
    PLAN_SEED_RANKS = 32,
    PLAN_NEW_RANKS = 64,
    PLAN_NAME_BYTES = 96,
    PLAN_HIDDEN = 4096,
    PLAN_HEADS = 64,
    PLAN_KV_HEADS = 4,
    PLAN_HEAD_DIM = 128,
    PLAN_EXPERT_SIZE = 1536,
    PLAN_VOCAB = 151936,
};

struct planning {
    struct plan *plan;
    struct model_config *config;
};

/* columns 0: a vector. */
static enum rf_code add_source(struct manifest_builder *builder, const char *name, uint64_t rows,
                               uint64_t columns, struct rf_error *err)
{
    const uint64_t shape[] = {rows, columns};
    const struct manifest_source source = {.name = name,
                                           .dtype = RF_DTYPE_BF16,
                                           .ndim = columns > 0 ? 2 : 1,
                                           .shape = shape,
                                           .file = MANIFEST_NONE};

    return manifest_add_source(builder, &source, NULL, err);
}

static enum rf_code add_experts(struct manifest_builder *builder, unsigned layer,
                                struct rf_error *err)
{
    static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
    enum rf_code code = RF_OK;

    for (unsigned i = 0; code == RF_OK && i < PLAN_EXPERTS * 3; i++) {
        char name[PLAN_NAME_BYTES];
        bool down = i % 3 == 2;

        snprintf(name, sizeof(name), "model.layers.%u.mlp.experts.%u.%s.weight", layer, i / 3,
                 parts[i % 3]);
        code = add_source(builder, name, down ? PLAN_HIDDEN : PLAN_EXPERT_SIZE,
                          down ? PLAN_EXPERT_SIZE : PLAN_HIDDEN, err);
    }
    return code;
}

static enum rf_code add_layer(struct manifest_builder *builder, unsigned layer,
                              struct rf_error *err)
{
    static const struct {
        const char *name;
        uint64_t rows;
        uint64_t columns;
    } parts[] = {
        {"input_layernorm", PLAN_HIDDEN, 0},
        {"post_attention_layernorm", PLAN_HIDDEN, 0},
        {"self_attn.q_proj", PLAN_HEADS * (uint64_t)PLAN_HEAD_DIM, PLAN_HIDDEN},
        {"self_attn.k_proj", PLAN_KV_HEADS * (uint64_t)PLAN_HEAD_DIM, PLAN_HIDDEN},
        {"self_attn.v_proj", PLAN_KV_HEADS * (uint64_t)PLAN_HEAD_DIM, PLAN_HIDDEN},
        {"self_attn.o_proj", PLAN_HIDDEN, PLAN_HEADS * (uint64_t)PLAN_HEAD_DIM},
        {"self_attn.q_norm", PLAN_HEAD_DIM, 0},
        {"self_attn.k_norm", PLAN_HEAD_DIM, 0},
        {"mlp.gate", PLAN_EXPERTS, PLAN_HIDDEN},
    };
    enum rf_code code = RF_OK;

    for (unsigned i = 0; code == RF_OK && i < sizeof(parts) / sizeof(parts[0]); i++) {
        char name[PLAN_NAME_BYTES];

        snprintf(name, sizeof(name), "model.layers.%u.%s.weight", layer, parts[i].name);
        code = add_source(builder, name, parts[i].rows, parts[i].columns, err);
    }
    return code == RF_OK ? add_experts(builder, layer, err) : code;
}

static enum rf_code add_sources(struct manifest_builder *builder, struct rf_error *err)
{
    enum rf_code code =
        add_source(builder, "model.embed_tokens.weight", PLAN_VOCAB, PLAN_HIDDEN, err);

    if (code == RF_OK)
        code = add_source(builder, "model.norm.weight", PLAN_HIDDEN, 0, err);
    if (code == RF_OK)
        code = add_source(builder, "lm_head.weight", PLAN_VOCAB, PLAN_HIDDEN, err);
    for (unsigned i = 0; code == RF_OK && i < PLAN_LAYERS; i++)
        code = add_layer(builder, i, err);
    return code;
}

static enum rf_code parse_config(struct model_config **ret_config, struct rf_error *err)
{
    char text[1024];
    int bytes = snprintf(
        text, sizeof(text),
        "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"dtype\": \"bfloat16\",\n"
        " \"num_hidden_layers\": %d, \"hidden_size\": %d, \"num_attention_heads\": %d,\n"
        " \"num_key_value_heads\": %d, \"head_dim\": %d, \"vocab_size\": %d,\n"
        " \"num_experts\": %d, \"moe_intermediate_size\": %d, \"decoder_sparse_step\": 1,\n"
        " \"intermediate_size\": 12288, \"tie_word_embeddings\": false}\n",
        PLAN_LAYERS, PLAN_HIDDEN, PLAN_HEADS, PLAN_KV_HEADS, PLAN_HEAD_DIM, PLAN_VOCAB,
        PLAN_EXPERTS, PLAN_EXPERT_SIZE);

    return model_config_parse(text, (size_t)bytes, ret_config, err);
}

/* An instance of so many ranks. */
static enum rf_code make_manifest(const struct planning *planning, const char *layout,
                                  uint32_t ranks, struct manifest **ret_manifest,
                                  struct rf_error *err)
{
    const struct manifest_identity identity = {.model = "bench",
                                               .architecture = "Qwen3MoeForCausalLM",
                                               .quantisation = "none",
                                               .layout = layout,
                                               .stage = shard_stage(layout),
                                               .algorithm = HASH_XXH3_128};
    const struct shard_request request = {.plan = planning->plan,
                                          .config = planning->config,
                                          .layout = layout,
                                          .tp_size = ranks,
                                          .ep_size = 1,
                                          .role = ROLE_TARGET};
    struct manifest_builder *builder = manifest_builder_create(&identity, err);

    if (builder == NULL)
        return RF_E_NOMEM;
    enum rf_code code = add_sources(builder, err);
    if (code == RF_OK)
        code = shard_ranks(builder, &request, err);
    if (code != RF_OK) {
        manifest_builder_destroy(builder);
        return code;
    }
    return manifest_build(builder, ret_manifest, err);
}

static double cpu_seconds(void)
{
    struct timespec now = {.tv_sec = 0};

    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static enum rf_code plan_rounds(struct bench *bench, const struct manifest *seed,
                                const struct manifest *wanted, struct bench_result *result,
                                struct samples *cpu, uint64_t *ret_moves, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    /* The first gets its memory from the system; so does that of every new process, and it counts
     * like the others. */
    for (unsigned i = 0; code == RF_OK && i < bench->rounds; i++) {
        struct reshard *plan = NULL;
        double before = cpu_seconds();
        uint64_t start_ns = clock_now_ns();

        code = reshard_plan(&seed, 1, wanted, &plan, err);
        if (code != RF_OK)
            break;
        samples_add(&result->samples, clock_seconds(start_ns, clock_now_ns()));
        samples_add(cpu, cpu_seconds() - before);
        *ret_moves = 0;
        for (uint32_t r = 0; r < plan->rank_count; r++)
            *ret_moves += plan->ranks[r].move_count;
        reshard_destroy(plan);
    }
    return code;
}

/* target 0: none. */
static enum rf_code plan_layout(struct bench *bench, const struct planning *planning,
                                const char *layout, double target, struct rf_error *err)
{
    struct manifest *seed = NULL;
    struct manifest *wanted = NULL;
    struct samples cpu = {.count = 0};
    char name[BENCH_TEXT_BYTES];
    uint64_t moves = 0;
    enum rf_code code = make_manifest(planning, layout, PLAN_SEED_RANKS, &seed, err);

    if (code == RF_OK)
        code = make_manifest(planning, layout, PLAN_NEW_RANKS, &wanted, err);
    if (code == RF_OK) {
        snprintf(name, sizeof(name), "plan: %d ranks of %" PRIu32 " tensors, layout %s",
                 PLAN_NEW_RANKS, seed->source_count, layout);
        struct bench_result *result = bench_result(bench, name);

        code = plan_rounds(bench, seed, wanted, result, &cpu, &moves, err);
        bench_judge_most(result, "s", target);
        result->at_most = target > 0;
        snprintf(result->note, sizeof(result->note),
                 "from a seed of %d ranks, both manifests at hand; %" PRIu64
                 " moves; %.0f ms of processor time%s",
                 PLAN_SEED_RANKS, moves, samples_median(&cpu) * 1000,
                 target > 0 ? "" : "; no target");
    }
    manifest_unref(seed);
    manifest_unref(wanted);
    return code;
}

static enum rf_code plan_part(struct bench *bench, const char *layout, double target,
                              struct rf_error *err)
{
    struct planning planning = {.plan = NULL};
    enum rf_code code = plan_for_architecture("Qwen3MoeForCausalLM", &planning.plan, err);

    if (code == RF_OK)
        code = parse_config(&planning.config, err);
    if (code == RF_OK)
        code = plan_layout(bench, &planning, layout, target, err);
    model_config_destroy(planning.config);
    plan_destroy(planning.plan);
    return code;
}

enum rf_code bench_reshard_plan(struct bench *bench, struct rf_error *err)
{
    return plan_part(bench, "sglang", 0.1, err);
}

/* Where experts are not stacked nothing can be joined: a move for each tensor of each rank. */
enum rf_code bench_reshard_moves(struct bench *bench, struct rf_error *err)
{
    return plan_part(bench, "checkpoint", 0, err);
}
