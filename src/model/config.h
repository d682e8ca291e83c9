/* What a model's config.json says, as far as plans ask for it. */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include "base/error.h"

struct model_config;

enum { CONFIG_MAX_BYTES = 16 << 20, CONFIG_TEXT_BYTES = 256 };

/* RF_E_FORMAT: no JSON object (line and reason), too long. RF_E_NOMEM. Free with
 * model_config_destroy(). */
enum rf_code model_config_parse(const char *data, size_t bytes, struct model_config **ret_config,
                                struct rf_error *err);
void model_config_destroy(struct model_config *config);

/* First entry of `architectures`; "" if there is none. */
const char *model_config_architecture(const struct model_config *config);
/* quantization_config.quant_method; "none" without one, "unknown" if it does not say. */
const char *model_config_quantisation(const struct model_config *config);

/* The dtype that the config says its weights have (`dtype`, else `torch_dtype`): F32, F16 or BF16.
 * false: it does not say, or says something else. */
bool model_config_dtype(const struct model_config *config, enum rf_dtype *ret_dtype);

/* A number of the config; `key` may lead into objects with dots
 * (quantization_config.weight_block_size.0). true and false are 1 and 0; null is as if absent.
 * RF_E_FORMAT: neither a number that is whole and not negative, nor a truth value. *ret_found says
 * whether it was there; *ret_value is untouched if not. */
enum rf_code model_config_number(const struct model_config *config, const char *key,
                                 uint64_t *ret_value, bool *ret_found, struct rf_error *err);

/* Whether the text that a key (as above) leads to is this one; false if it is not there. */
bool model_config_says(const struct model_config *config, const char *key, const char *text);

/* Whether this layer has experts. Says so for every family: n_routed_experts, num_experts or
 * num_local_experts is there and not 0, layer >= first_k_dense_replace, layer is a multiple of
 * moe_layer_freq, layer + 1 of decoder_sparse_step, and it is not in mlp_only_layers (each as
 * far as the config has it). RF_E_FORMAT as above. */
enum rf_code model_config_sparse(const struct model_config *config, uint64_t layer,
                                 bool *ret_sparse, struct rf_error *err);

#endif
