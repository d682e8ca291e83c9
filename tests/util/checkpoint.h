/* Small checkpoints with bytes of their own, and ranks made of them the slow and obvious way. */
#ifndef UTIL_CHECKPOINT_H
#define UTIL_CHECKPOINT_H

#include "model/shard.h"

struct checkpoint_tensor {
    char *name;
    enum rf_dtype dtype;
    uint32_t ndim;
    uint64_t shape[4];
    uint64_t bytes;
    uint8_t *data;
};

struct checkpoint {
    char *config; /* JSON */
    struct checkpoint_tensor *tensors;
    uint32_t count;
};

/* The families that have plans, in their smallest forms; `fp8`: weights in blocks of `block`. */
struct family {
    const char *architecture;
    uint32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, experts, moe, block;
    bool tied, bias, fp8;
    uint32_t dense;  /* DeepSeek: so many layers without experts */
    uint32_t q_lora; /* DeepSeek: 0: none */
    uint32_t nextn;  /* DeepSeek: further layers that predict */
};

/* Fails the running test with the reason when something is wrong. */
struct checkpoint *checkpoint_of(const struct family *family);
struct checkpoint *checkpoint_new(const char *config);
void checkpoint_free(struct checkpoint *checkpoint);
/* Adds a tensor of made-up bytes (no NaN in floating ones); up to 4 dimensions. */
void checkpoint_add(struct checkpoint *checkpoint, const char *name, enum rf_dtype dtype,
                    uint32_t ndim, const uint64_t *shape);
void checkpoint_remove(struct checkpoint *checkpoint, const char *name);
/* Fails the running test if there is none. */
struct checkpoint_tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name);

/* A builder that has the checkpoint's tensors as sources. */
struct manifest_builder *checkpoint_builder(const struct checkpoint *checkpoint,
                                            const char *layout);
/* Shards it by the built-in plan of its architecture, or by plan_text if that is not NULL. */
enum rf_code checkpoint_try(const struct checkpoint *checkpoint, const char *plan_text,
                            const char *layout, uint32_t tp_size, uint32_t ep_size,
                            struct manifest **ret_manifest, struct rf_error *err);
struct manifest *checkpoint_shard(const struct checkpoint *checkpoint, const char *layout,
                                  uint32_t tp_size, uint32_t ep_size);
/* One rank of whole tensors, without sources. */
struct manifest *checkpoint_whole(const struct checkpoint *checkpoint);

/* The bytes of a tensor of a rank, put together by the definition in manifest.h, element by
 * element; of the stream: all of them. The caller frees. */
uint8_t *checkpoint_tensor_bytes(const struct checkpoint *checkpoint,
                                 const struct manifest *manifest, const struct tensor *tensor);
uint8_t *checkpoint_stream(const struct checkpoint *checkpoint, const struct manifest *manifest,
                           uint32_t rank);

#endif
