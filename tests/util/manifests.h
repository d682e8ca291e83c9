/* Manifests for tests. */
#ifndef UTIL_MANIFESTS_H
#define UTIL_MANIFESTS_H

#include "model/manifest.h"

enum { SPEC_DIMS = 3 };

/* A tensor in few words. */
struct tensor_spec {
    const char *name;
    enum rf_dtype dtype;
    uint32_t ndim;
    uint64_t shape[SPEC_DIMS];
    uint64_t global_shape[SPEC_DIMS]; /* all zero: not a shard */
    uint64_t slice_start[SPEC_DIMS];
    const char *alias_of;
    bool in_file;
    uint32_t file;
    uint64_t file_offset;
    const struct part *parts;
    uint32_t part_count;
};

extern const struct rank_id whole_rank; /* tp0/1 */

/* A builder that has taken a plain identity. */
struct manifest_builder *builder_new(uint32_t chunk_bytes);
void add_rank(struct manifest_builder *builder, const struct rank_id *id);
void add_file(struct manifest_builder *builder, const char *name, enum manifest_file_kind kind,
              uint64_t bytes, uint64_t header_bytes);
/* A source without a file; returns its index. */
uint32_t add_source(struct manifest_builder *builder, const char *name, enum rf_dtype dtype,
                    uint32_t ndim, const uint64_t *shape);
enum rf_code try_tensor(struct manifest_builder *builder, const struct tensor_spec *spec,
                        struct rf_error *err);
void add_tensor(struct manifest_builder *builder, const struct tensor_spec *spec);
/* Builds, or fails the running test with the reason. */
struct manifest *built(struct manifest_builder *builder);
/* Builds, which must fail; the line of the error holds these words. */
void assert_build_fails(struct manifest_builder *builder, const char *words);

/* One rank of these tensors without files; the caller unrefs it. */
struct manifest *manifest_of(const struct tensor_spec *specs, uint32_t count, uint32_t chunk_bytes);

/* Has one of everything: a weight file and a side file, two sources, two ranks, slices, parts (a
 * slice, zeros, a conversion), an alias, a scalar, an empty tensor, names beyond ASCII and
 * without a character. */
struct manifest *manifest_of_everything(void);

/* Fails the running test unless both say the same. */
void assert_same_manifest(const struct manifest *a, const struct manifest *b);

#endif
