/* What the files of the manifest share, and digest.c. */
#ifndef MODEL_MANIFEST_INTERNAL_H
#define MODEL_MANIFEST_INTERNAL_H

#include "model/manifest.h"
#include "wire/wire.h"

enum { RANK_ID_WORDS = 9, MANIFEST_SHOWN_NAME = 120 };

/* How the binary form begins, and what its pieces take. */
#define MANIFEST_MAGIC "RFMF"
enum {
    MANIFEST_MAGIC_BYTES = 4,
    IDENTITY_FIXED_BYTES = 44, /* magic to the three counts, without the texts */
    TENSOR_FIXED_BYTES = 5,    /* u16 name_bytes u8 dtype u8 ndim u8 flags */
    TENSOR_PLACE_BYTES = 8,    /* u32 order u32 file */
    TENSOR_MIN_BYTES = TENSOR_FIXED_BYTES + TENSOR_PLACE_BYTES, /* without a name */
    SOURCE_FIXED_BYTES = 4,  /* u16 name_bytes u8 dtype u8 ndim */
    SOURCE_PLACE_BYTES = 4,  /* u32 file */
    PART_BYTES = 4 + 1 + 16, /* u32 source u8 axis u64 start u64 count */
    RANK_FIXED_BYTES = 4 * RANK_ID_WORDS + 4,
    FILE_FIXED_BYTES = 1 + 2 + 8 + 8,
};

/* No stream and no file is larger, so that sums of a few sizes cannot wrap. */
#define MANIFEST_MAX_STREAM_BYTES (UINT64_C(1) << 60)

/* An empty manifest with one reference; NULL when out of memory. */
struct manifest *manifest_alloc(void);

/* Checks what one part says for itself; `code` is what it fails with: RF_E_INVAL for our
 * caller's mistakes, RF_E_PROTO for a peer's. tensor_check() needs the manifest's files, fills
 * tensor->bytes, and brings global_shape and slice_start into their one form (manifest.h). */
enum rf_code identity_check(const struct manifest *manifest, enum rf_code code,
                            struct rf_error *err);
enum rf_code file_check(const struct manifest_file *file, enum rf_code code, struct rf_error *err);
enum rf_code tensor_check(const struct manifest *manifest, struct tensor *tensor, enum rf_code code,
                          struct rf_error *err);
/* Needs the manifest's files; fills source->bytes. */
enum rf_code source_check(const struct manifest *manifest, struct manifest_source *source,
                          enum rf_code code, struct rf_error *err);
/* Needs the manifest's sources and a tensor that tensor_check() was content with. Fills offset and
 * bytes of parts[tensor->part_count], which are the tensor's or about to become them. */
enum rf_code parts_check(const struct manifest *manifest, const struct tensor *tensor,
                         struct part *parts, enum rf_code code, struct rf_error *err);

/* Checks what the parts must be to each other, given that each is good for itself: files and ranks
 * are distinct, tensors are in the order of their names, aliases lead to tensors, orders are a
 * permutation, limits hold; and lays out the streams. */
enum rf_code manifest_settle(struct manifest *manifest, enum rf_code code, struct rf_error *err);

/* id over the encoded bytes, with or without their check at the end. */
void manifest_set_id(struct manifest *manifest, const uint8_t *data, size_t bytes);
/* The same id, of what manifest_encode() would make, which is never there as a whole. RF_E_INVAL: it
 * would be too large; RF_E_NOMEM. */
enum rf_code manifest_make_id(struct manifest *manifest, struct rf_error *err);

/* The id's fields in the order of the struct. */
void rank_id_words(const struct rank_id *id, uint32_t ret_words[RANK_ID_WORDS]);

/* What a tensor is, whatever file it lies in: name, dtype, shape, slice, alias, parts. */
size_t tensor_facts_bytes(const struct tensor *tensor);
void tensor_facts_set(struct wire_out *out, const struct tensor *tensor);
/* The same of a source: name, dtype, shape. */
size_t source_facts_bytes(const struct manifest_source *source);
void source_facts_set(struct wire_out *out, const struct manifest_source *source);

/* Bits of the flags byte in a tensor's facts. */
enum {
    TENSOR_SHARDED = 1,
    TENSOR_ALIAS = 2,
    TENSOR_PARTS = 4,
    TENSOR_FLAGS = TENSOR_SHARDED | TENSOR_ALIAS | TENSOR_PARTS,
};

/* Orders names bytewise. */
int tensor_name_compare(const struct tensor *a, const struct tensor *b);
int name_compare(const char *a, uint32_t a_bytes, const char *b, uint32_t b_bytes);

/* A source seen around an axis: outer rows of n elements of inner bytes. A whole tensor is one
 * element of one row. false: the elements along the axis do not have whole bytes. */
struct part_shape {
    uint64_t outer;
    uint64_t n;
    uint64_t inner;
    uint64_t start;
    uint64_t count;
};
bool part_shape_of(const struct manifest_source *source, const struct part *part,
                   struct part_shape *ret_shape);

#endif
