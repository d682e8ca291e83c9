/* What the files of the manifest share, and digest.c. */
#ifndef MODEL_MANIFEST_INTERNAL_H
#define MODEL_MANIFEST_INTERNAL_H

#include "model/manifest.h"
#include "wire/wire.h"

enum { RANK_ID_WORDS = 9, MANIFEST_SHOWN_NAME = 120 };

/* No stream and no file is larger, so that sums of a few sizes cannot wrap. */
#define MANIFEST_MAX_STREAM_BYTES (UINT64_C(1) << 60)

/* An empty manifest with one reference; NULL when out of memory. */
struct manifest *manifest_alloc(void);

/* Checks what one part says for itself; `code` is what it fails with: RF_E_INVAL for our caller's
 * mistakes, RF_E_PROTO for a peer's. tensor_check() needs the manifest's files, fills tensor->bytes,
 * and brings global_shape and slice_start into their one form (manifest.h). */
enum rf_code identity_check(const struct manifest *manifest, enum rf_code code,
                            struct rf_error *err);
enum rf_code file_check(const struct manifest_file *file, enum rf_code code, struct rf_error *err);
enum rf_code tensor_check(const struct manifest *manifest, struct tensor *tensor, enum rf_code code,
                          struct rf_error *err);

/* Checks what the parts must be to each other, given that each is good for itself: files and ranks
 * are distinct, tensors are in the order of their names, aliases lead to tensors, orders are a
 * permutation, limits hold; and lays out the streams. */
enum rf_code manifest_settle(struct manifest *manifest, enum rf_code code, struct rf_error *err);

/* id over the encoded bytes, with or without their check at the end. */
void manifest_set_id(struct manifest *manifest, const uint8_t *data, size_t bytes);

/* The id's fields in the order of the struct. */
void rank_id_words(const struct rank_id *id, uint32_t ret_words[RANK_ID_WORDS]);

/* What a tensor is, whatever file it lies in: name, dtype, shape, slice, alias. */
size_t tensor_facts_bytes(const struct tensor *tensor);
void tensor_facts_set(struct wire_out *out, const struct tensor *tensor);

/* Bits of the flags byte in a tensor's facts. */
enum { TENSOR_SHARDED = 1, TENSOR_ALIAS = 2 };

/* Orders names bytewise. */
int tensor_name_compare(const struct tensor *a, const struct tensor *b);

#endif
