/* Plans: whatever a user writes is refused with a line, or a plan that shards a small checkpoint or
 * says why not. */
#include "model/plan_internal.h"
#include "model/shard.h"
#include "must.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const char config_text[] =
    "{\"hidden_size\":8,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"vocab_size\":10,"
    "\"num_key_value_heads\":2,\"intermediate_size\":8,\"num_experts\":2,\"n\":2,"
    "\"moe_intermediate_size\":4,\"quantization_config\":{\"weight_block_size\":[2,2]}}";

static const char *const names[] = {
    "a",
    "b",
    "model.embed_tokens.weight",
    "model.layers.0.w",
    "model.layers.1.w",
    "w_scale_inv",
    "model.layers.0.mlp.experts.0.w",
    "model.layers.0.mlp.experts.1.w",
    "w",
    "lm_head.weight",
};

static struct manifest_builder *builder_make(const char *layout)
{
    const struct manifest_identity identity = {.model = "m",
                                               .architecture = "a",
                                               .quantisation = "none",
                                               .layout = layout,
                                               .stage = shard_stage(layout),
                                               .algorithm = HASH_XXH3_128};
    struct manifest_builder *builder = manifest_builder_create(&identity, NULL);
    const uint64_t shape[] = {8, 8};

    must(builder != NULL);
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct manifest_source source = {.name = names[i],
                                               .dtype = i % 3 == 0 ? RF_DTYPE_BF16 : RF_DTYPE_U8,
                                               .ndim = i % 4 == 3 ? 1 : 2,
                                               .shape = shape,
                                               .file = MANIFEST_NONE};
        must(manifest_add_source(builder, &source, NULL, NULL) == RF_OK);
    }
    return builder;
}

static void shard(const struct plan *plan, const struct model_config *config, const char *layout,
                  uint32_t tp)
{
    const struct shard_request request = {
        .plan = plan, .config = config, .layout = layout, .tp_size = tp, .ep_size = tp / 2};
    struct manifest_builder *builder = builder_make(layout);
    struct manifest *manifest = NULL;
    struct rf_error err = {0};

    enum rf_code code = shard_ranks(builder, &request, &err);
    if (code != RF_OK) {
        must(err.text[0] != '\0' && err.code == code);
        manifest_builder_destroy(builder);
        return;
    }
    if (manifest_build(builder, &manifest, &err) == RF_OK)
        manifest_unref(manifest);
    else
        must(err.text[0] != '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config *config = NULL;
    struct plan *plan = NULL;
    struct rf_error err = {0};
    char *copy = malloc(size + 1);

    must(copy != NULL);
    if (size > 0)
        memcpy(copy, data, size);
    must(model_config_parse(config_text, sizeof config_text - 1, &config, NULL) == RF_OK);
    enum rf_code code = plan_parse("fuzz", copy, size, &plan, &err);
    if (code == RF_OK) {
        for (uint32_t tp = 1; tp <= 4; tp *= 2) {
            shard(plan, config, "checkpoint", tp);
            for (unsigned i = 0; i < plan->layout_count; i++)
                shard(plan, config, plan->layouts[i].name, tp);
        }
    } else {
        must(code == RF_E_FORMAT && err.text[0] != '\0');
    }
    plan_destroy(plan);
    model_config_destroy(config);
    free(copy);
    return 0;
}
