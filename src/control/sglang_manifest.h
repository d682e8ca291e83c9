/* Manifests of ranks that say no more than names and places (wire/weight_map.h): made from that
 * alone, or compared with what a model's files say; and where each byte of a rank's stream lies in
 * its engine. Pure. */
#ifndef CONTROL_SGLANG_MANIFEST_H
#define CONTROL_SGLANG_MANIFEST_H

#include "model/config.h"
#include "model/manifest.h"
#include "transport/te/te.h"
#include "wire/weight_map.h"

/* What is known beside the maps. */
struct sglang_facts {
    const char *model;                 /* a name */
    const struct manifest *side;       /* identity and side files of a folder; NULL: none */
    const struct model_config *config; /* NULL: none */
    uint32_t ep_size;                  /* 0: 1 */
};

/* From the maps alone, [count] one for each tp rank: every tensor has the shape [elements] and the
 * dtype that elements of its size most likely have: 8 bytes I64, 4 F32, 2 what the config says (else
 * BF16), 1 F8_E4M3 if the config says fp8, else U8; 16 are two of I64. Tensors of one place and
 * size are aliases of the first of them; those that overlap otherwise are tensors of their own, and
 * their bytes are read more than once. Layout "sglang", stage processed: nothing but these ranks
 * can be made of it. Errors: RF_E_MISMATCH (a map without tensors), RF_E_PROTO (what no manifest
 * can have: says what), RF_E_NOMEM. */
enum rf_code sglang_manifest_make(const struct sglang_facts *facts, const struct weight_map *maps,
                                  uint32_t count, struct manifest **ret_manifest,
                                  struct rf_error *err);

/* Whether the maps have just the manifest's tensors, each as large as it is there. RF_E_MISMATCH
 * counts the differences and names the first ones; *ret_differences (may be NULL) is set in both
 * cases. */
enum rf_code sglang_manifest_check(const struct manifest *manifest, const struct weight_map *maps,
                                   uint32_t count, uint64_t *ret_differences, struct rf_error *err);

/* Whether every tensor of a map lies in what its engine has registered. RF_E_MISMATCH: how many do not,
 * and the first of them. */
enum rf_code sglang_check_registered(const struct weight_map *map,
                                     const struct te_descriptor *descriptor, struct rf_error *err);

/* Where a rank's stream lies: [*ret_count] segments, the caller frees them. Every tensor of the
 * manifest must be in the map, as large: RF_E_MISMATCH. RF_E_NOMEM. */
enum rf_code sglang_segments(const struct manifest_rank *rank, const struct weight_map *map,
                             struct te_segment **ret_segments, uint64_t *ret_count,
                             struct rf_error *err);

#endif
