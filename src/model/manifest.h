/* What a seed says it has: identity, ranks, tensors, files. Immutable once built; any thread may
 * read it.
 *
 * A rank's stream is its tensors laid end to end without padding, in the bytewise order of their
 * names. */
#ifndef MODEL_MANIFEST_H
#define MODEL_MANIFEST_H

#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"
#include "base/hash.h"
#include "wire/chunk.h"

enum {
    MANIFEST_VERSION = 1, /* of the binary form; the only one so far */
    MANIFEST_MAX_RANKS = 4096,
    MANIFEST_MAX_TENSORS = 4 * 1000 * 1000, /* of all ranks */
    MANIFEST_MAX_SOURCES = 1000 * 1000,
    MANIFEST_MAX_PARTS = 16 * 1000 * 1000, /* of all tensors of all ranks */
    MANIFEST_MAX_FILES = 10000,
    MANIFEST_MAX_SIDE_BYTES = 64 << 20, /* of one FILE_SIDE: forks hold them in memory */
    MANIFEST_MAX_TEXT_BYTES = 1024,     /* of each text of the identity */
    MANIFEST_MAX_CHUNKS = 1 << 28,      /* of all ranks: bounds what digest tables cost */
    MANIFEST_MAX_BYTES = 1 << 30,       /* encoded */
    MANIFEST_CHECK_BYTES = 16,          /* XXH3-128 at the end of the binary form */
    MANIFEST_LEAF_BYTES = 64 << 10,
    MANIFEST_DEFAULT_CHUNK_BYTES = 8 << 20,
    MANIFEST_MIN_CHUNK_BYTES = MANIFEST_LEAF_BYTES,
    MANIFEST_MAX_CHUNK_BYTES = 64 << 20, /* one chunk must fit one READ: CHUNK_MAX_READ_BYTES */
    MANIFEST_NONE = UINT32_MAX,
};

enum manifest_stage { STAGE_CHECKPOINT = 0, STAGE_FUSED = 1, STAGE_PROCESSED = 2, STAGE_COUNT };
enum manifest_role { ROLE_TARGET = 0, ROLE_DRAFT = 1, ROLE_COUNT };

/* Coordinates of one shard and the sizes of the axes they lie on; never a bare tp number. */
struct rank_id {
    uint32_t tp, tp_size;
    uint32_t pp, pp_size;
    uint32_t ep, ep_size;
    uint32_t dp, dp_size;
    enum manifest_role role;
};

/* A tensor of the checkpoint that the ranks of a sharded model are made of. */
struct manifest_source {
    const char *name; /* as a tensor's */
    uint32_t name_bytes;
    enum rf_dtype dtype;
    uint32_t ndim;
    const uint64_t *shape; /* [ndim] */
    uint64_t bytes;
    uint32_t file; /* index of its weight file, or MANIFEST_NONE */
    uint64_t file_offset;
};

/* A run of a rank tensor's bytes: a slice of one source along one axis, or a constant.
 *
 * With the source seen as [outer, n, inner bytes] around the axis, byte b of element i of outer
 * row o lies at (o * n + start + i) * inner + b in the source and at offset + (o * count + i) *
 * inner + b in the rank's tensor. A source without dimensions is one of shape [1]. When the
 * tensor's dtype is not the source's, every element is converted (model/convert.h) and the bytes
 * in the rank's tensor are more or fewer than those in the source. */
struct part {
    uint32_t source; /* index in manifest->sources; MANIFEST_NONE: a constant */
    uint32_t axis;   /* constant: bytes of the element that is repeated, 1 to 8; 0: zeros */
    uint64_t start;  /* elements along the axis; constant: the element as a little-endian number */
    uint64_t count;  /* elements along the axis; constant: bytes */
    uint64_t offset; /* of its first byte in the rank's tensor */
    uint64_t bytes;  /* in the rank's tensor */
};

struct tensor {
    const char *name; /* NUL-terminated UTF-8 of any characters, also none at all: what may be in a
                       * safetensors file may be here. For messages: rf_fail() cleans them */
    uint32_t name_bytes;
    enum rf_dtype dtype;
    uint32_t ndim;
    const uint64_t *shape;        /* [ndim], of this rank's piece */
    const uint64_t *global_shape; /* [ndim]; the same pointer as shape when not sharded */
    const uint64_t *slice_start;  /* [ndim] where the piece begins in it; NULL: all zero */
    uint64_t bytes;
    uint64_t stream_offset;
    /* Index in the rank of the tensor whose bytes these are, or MANIFEST_NONE. An alias takes no
     * place in the stream: its stream_offset is the other's. */
    uint32_t alias_of;
    uint32_t order;           /* place in the engine's or file's own order */
    uint32_t file;            /* index of the weight file that it came from, or MANIFEST_NONE */
    uint64_t file_offset;     /* of its bytes in that file, header included; 0 without a file */
    const struct part *parts; /* [part_count] by offset, covering the tensor exactly once */
    uint32_t part_count;      /* 0: the tensor is a source itself, whole, and may have a file. With
                               * parts it has none: its sources have */
};

enum manifest_file_kind { FILE_WEIGHTS = 0, FILE_SIDE = 1 };

struct manifest_file {
    const char *name; /* folder_name_ok() */
    enum manifest_file_kind kind;
    uint64_t bytes;
    uint64_t header_bytes; /* of FILE_WEIGHTS: 8 + header; its bytes are fetched as a file */
    uint8_t digest[HASH_MAX_BYTES]; /* of the header (FILE_WEIGHTS) or the whole file (FILE_SIDE) */
};

struct manifest_rank {
    struct rank_id id;
    struct tensor *tensors; /* by name, bytewise; names are unique */
    uint32_t tensor_count;
    const struct manifest_source *sources; /* the manifest's, which parts count in */
    uint64_t stream_bytes;
    uint32_t *placed; /* indices of the tensors that take bytes of the stream (no alias, not empty),
                       * in its order */
    uint32_t placed_count;
};

struct manifest {
    const char *model;        /* a name people know it by */
    const char *architecture; /* "LlamaForCausalLM"; "" if unknown */
    const char *quantisation; /* "none", "fp8", ... as the config says */
    const char *layout;       /* "checkpoint"; an engine's name in other layouts */
    enum manifest_stage stage;
    uint64_t weight_version;
    enum hash_algorithm algorithm;
    uint32_t chunk_bytes;
    struct manifest_rank *ranks;
    uint32_t rank_count;
    struct manifest_file *files; /* weights first */
    uint32_t file_count;
    struct manifest_source
        *sources; /* by name, bytewise; names are unique. Empty: nothing is sharded, or
                             * nobody knows of what */
    uint32_t source_count;
    struct arena arena;
    uint8_t id[HASH_MAX_BYTES]; /* hash over the encoded manifest without its last
                                 * MANIFEST_CHECK_BYTES: which manifest this is */
};

/* Builds a manifest piece by piece. Strings and arrays are copied. */
struct manifest_builder;

struct manifest_identity {
    const char *model;
    const char *architecture;
    const char *quantisation;
    const char *layout;
    enum manifest_stage stage;
    uint64_t weight_version;
    enum hash_algorithm algorithm;
    uint32_t chunk_bytes; /* 0: MANIFEST_DEFAULT_CHUNK_BYTES */
};

struct manifest_builder *manifest_builder_create(const struct manifest_identity *identity,
                                                 struct rf_error *err);
void manifest_builder_destroy(struct manifest_builder *builder);
/* FILE_WEIGHTS come first; a tensor's `file` counts all files from 0 in the order they are added,
 * and its file must be there before it. Of digest, hash_bytes() are kept. */
enum rf_code manifest_add_file(struct manifest_builder *builder, const struct manifest_file *file,
                               struct rf_error *err);
/* Adds a tensor of the checkpoint. Of `source` are read: name (up to its NUL), dtype, ndim,
 * shape, file, file_offset. *ret_index (may be NULL) is what a part names until the manifest is
 * built, which sorts the sources: they count from 0 in the order they are added. RF_E_INVAL
 * naming the source. */
enum rf_code manifest_add_source(struct manifest_builder *builder,
                                 const struct manifest_source *source, uint32_t *ret_index,
                                 struct rf_error *err);
/* Those added so far, in the order they were; valid until the next one is added. */
const struct manifest_source *manifest_builder_sources(const struct manifest_builder *builder,
                                                       uint32_t *ret_count);
/* Later tensors belong to this rank. Ranks must differ and, within a role, agree in their sizes:
 * manifest_build() checks it. */
enum rf_code manifest_add_rank(struct manifest_builder *builder, const struct rank_id *id,
                               struct rf_error *err);
/* Of `tensor` are read: name (name_bytes is not: it ends at its NUL), dtype, ndim, shape,
 * global_shape (NULL = shape), slice_start, file, file_offset, parts and part_count, alias name
 * below. Of a part are read: source (added before), axis, start, count; its offset and bytes and
 * the tensor's bytes are computed, and the parts must fill the tensor exactly. An alias has no
 * parts. alias_of_name: NULL, or a tensor of the same rank with the same bytes (added before or
 * after). Errors: RF_E_INVAL naming the tensor. */
enum rf_code manifest_add_tensor(struct manifest_builder *builder, const struct tensor *tensor,
                                 const char *alias_of_name, struct rf_error *err);
/* Sorts, checks (unique names, aliases resolve and agree in bytes, slices inside, limits), lays
 * out the streams, computes the id. The builder is spent in both cases. Free with
 * manifest_unref(). */
enum rf_code manifest_build(struct manifest_builder *builder, struct manifest **ret_manifest,
                            struct rf_error *err);

struct manifest *manifest_ref(struct manifest *manifest);
void manifest_unref(struct manifest *manifest);

/* Binary form (docs/wire-protocol.md), the one peers exchange. */
enum rf_code manifest_encode(const struct manifest *manifest, struct buf *out,
                             struct rf_error *err);
/* Decodes and checks everything that manifest_build() checks. RF_E_PROTO, RF_E_NOMEM. */
enum rf_code manifest_decode(const uint8_t *data, size_t bytes, struct manifest **ret_manifest,
                             struct rf_error *err);
/* The same facts as JSON, for people and scripts. rank MANIFEST_NONE: all. */
void manifest_json(const struct manifest *manifest, uint32_t rank, struct buf *out);

/* Binary search by name; NULL if there is none. */
const struct tensor *manifest_find(const struct manifest_rank *rank, const char *name);
/* First tensor (no alias, not empty) that covers the stream offset; index, or MANIFEST_NONE. */
uint32_t manifest_tensor_at(const struct manifest_rank *rank, uint64_t stream_offset);

uint64_t manifest_total_bytes(const struct manifest *manifest);
uint64_t manifest_chunk_count(const struct manifest *manifest, uint32_t rank);
/* Bytes of chunk i: chunk_bytes, fewer for the last one. */
uint64_t manifest_chunk_size(const struct manifest *manifest, uint32_t rank, uint64_t chunk);
/* Text without control characters, in UTF-8: what the identity's texts may be made of. */
bool manifest_text_ok(const char *text, size_t bytes);
/* Any UTF-8 without NUL: what names of tensors may be made of. */
bool manifest_name_ok(const char *name, size_t bytes);
/* Fills memory with a constant part's bytes from its beginning (or from after whole elements)
 * on. */
void part_fill(const struct part *part, void *dst, uint64_t bytes);
/* Where the bytes of a part (not of a constant) lie in its source: `count` runs of `bytes` each,
 * which laid end to end are the part (before a conversion). count 1: the part is contiguous in
 * the file, so that a loader can show it where it is; else it must be made. */
struct stream_range part_range(const struct manifest *manifest, const struct part *part);
/* Whether the elements of the part have another dtype in the source than in this tensor. */
bool part_converts(const struct manifest *manifest, const struct tensor *tensor,
                   const struct part *part);
/* Orders by tp, tp_size, pp, ... role, as the struct has them. <0, 0, >0. */
int rank_id_compare(const struct rank_id *a, const struct rank_id *b);
/* "tp0/1", with the axes whose size is not 1; out of 64 bytes. */
const char *rank_id_text(const struct rank_id *id, char out[64]);

#endif
