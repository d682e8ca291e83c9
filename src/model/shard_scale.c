/* Scales of weights that are quantised in blocks: which weight they are of. */
#include "model/shard_internal.h"

#include <inttypes.h>
#include <string.h>

static const char scale_suffix[] = "_scale_inv";

static enum rf_code blocks_know(struct shard *shard)
{
    static const char *const keys[2] = {"quantization_config.weight_block_size.0",
                                        "quantization_config.weight_block_size.1"};

    for (unsigned i = 0; i < 2; i++) {
        bool found = false;
        enum rf_code code = model_config_number(shard->request->config, keys[i], &shard->block[i],
                                                &found, shard->err);
        if (code != RF_OK)
            return code;
        if (found && shard->block[i] == 0)
            return rf_fail(shard->err, RF_E_FORMAT, "config.json: %s is 0", keys[i]);
    }
    return RF_OK;
}

static enum rf_code scale_bind(struct shard *shard, uint32_t index)
{
    const struct manifest_source *source = &shard->sources[index];
    size_t suffix = sizeof scale_suffix - 1;
    uint64_t wanted[2];
    uint32_t scaled = 0;

    if (source->name_bytes <= suffix ||
        memcmp(source->name + source->name_bytes - suffix, scale_suffix, suffix) != 0 ||
        !strmap_find(shard->names, source->name, source->name_bytes - suffix, &scaled))
        return rf_fail(shard->err, RF_E_FORMAT,
                       "tensor %.*s: scales of a tensor that is not in the checkpoint",
                       SHARD_SHOWN_NAME, source->name);
    if (shard->block[0] == 0 || shard->block[1] == 0)
        return rf_fail(
            shard->err, RF_E_FORMAT,
            "config.json: has no quantization_config.weight_block_size, which %.*s needs",
            SHARD_SHOWN_NAME, source->name);
    const struct manifest_source *weight = &shard->sources[scaled];
    if (weight->ndim != 2 || shard->bound[scaled].rule->kind == KIND_SCALE)
        return rf_fail(shard->err, RF_E_FORMAT, "tensor %.*s: scales of %.*s, which is no matrix",
                       SHARD_SHOWN_NAME, source->name, SHARD_SHOWN_NAME, weight->name);
    for (unsigned i = 0; i < 2; i++)
        wanted[i] = weight->shape[i] / shard->block[i] + (weight->shape[i] % shard->block[i] != 0);
    if (source->ndim != 2 || memcmp(source->shape, wanted, sizeof wanted) != 0)
        return shard_shape_fail(shard, index, wanted, 2, "its weight and weight_block_size");
    shard->bound[index].scaled = scaled;
    /* An expert's scales are where it is, also when the rule for them knows no numbers. */
    shard->bound[index].numbers = shard->bound[scaled].numbers;
    shard->bound[scaled].has_scale = true;
    return RF_OK;
}

static bool is_f8(enum rf_dtype dtype)
{
    return dtype == RF_DTYPE_F8_E4M3 || dtype == RF_DTYPE_F8_E5M2;
}

enum rf_code shard_scales_bind(struct shard *shard)
{
    enum rf_code code = blocks_know(shard);

    for (uint32_t i = 0; i < shard->source_count && code == RF_OK; i++) {
        if (shard->bound[i].rule->kind == KIND_SCALE)
            code = scale_bind(shard, i);
    }
    for (uint32_t i = 0; i < shard->source_count && code == RF_OK && shard->block[0] != 0; i++) {
        if (is_f8(shard->sources[i].dtype) && !shard->bound[i].has_scale)
            code = rf_fail(shard->err, RF_E_FORMAT,
                           "tensor %.*s%s: missing in the checkpoint; a weight of %s in blocks "
                           "needs its scales",
                           SHARD_SHOWN_NAME, shard->sources[i].name, scale_suffix,
                           rf_dtype_name(shard->sources[i].dtype));
    }
    return code;
}
