/* The toy model that both examples know: a two-layer transformer's tensors, computed from their
 * names. In a real engine these come from training, quantising, or a file. */
#ifndef EXAMPLES_ENGINE_WEIGHTS_H
#define EXAMPLES_ENGINE_WEIGHTS_H

#include <rfork/rfork.h>

enum { ENGINE_TENSORS = 9 };

static const uint64_t engine_shapes[ENGINE_TENSORS][2] = {
    {4096, 512}, {512, 512},  {1536, 512}, {512, 1536}, {512, 512},
    {1536, 512}, {512, 1536}, {512, 1},    {4096, 512},
};

static const struct rf_tensor engine_tensors[ENGINE_TENSORS] = {
    {"model.embed_tokens.weight", RF_DTYPE_BF16, 2, engine_shapes[0]},
    {"model.layers.0.attn.weight", RF_DTYPE_BF16, 2, engine_shapes[1]},
    {"model.layers.0.up.weight", RF_DTYPE_BF16, 2, engine_shapes[2]},
    {"model.layers.0.down.weight", RF_DTYPE_BF16, 2, engine_shapes[3]},
    {"model.layers.1.attn.weight", RF_DTYPE_BF16, 2, engine_shapes[4]},
    {"model.layers.1.up.weight", RF_DTYPE_BF16, 2, engine_shapes[5]},
    {"model.layers.1.down.weight", RF_DTYPE_BF16, 2, engine_shapes[6]},
    {"model.norm.weight", RF_DTYPE_F32, 1, engine_shapes[7]},
    {"lm_head.weight", RF_DTYPE_BF16, 2, engine_shapes[8]}, /* tied to the embedding */
};

enum { ENGINE_EMBEDDING = 0, ENGINE_HEAD = 8 };

static inline uint64_t engine_tensor_bytes(const struct rf_tensor *tensor)
{
    uint64_t elements = 1;

    for (uint32_t i = 0; i < tensor->ndim; i++)
        elements *= tensor->shape[i];
    return elements * rf_dtype_bits(tensor->dtype) / 8;
}

/* "Computes" a tensor: bytes that depend on its index and their place, so that any mix-up shows. */
static inline void engine_compute(unsigned index, uint8_t *out, uint64_t bytes)
{
    uint64_t state = 0x9e3779b97f4a7c15u * (index + 1);

    for (uint64_t i = 0; i < bytes; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        out[i] = (uint8_t)(state >> 56);
    }
}

#endif
