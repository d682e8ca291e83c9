/* Codec of what an SGLang rank publishes of itself for TransferEngine: the answer to GET
 * .../transfer_engine_info?rank=N,
 *
 *   {"rank": N, "remote_instance_transfer_engine_info":
 *       ["HOST:PORT", {"name": [address, elements, bytes of an element], ...}]}
 *
 * Names and places are all there is: no dtypes, no shapes, no digests. Pure. */
#ifndef WIRE_WEIGHT_MAP_H
#define WIRE_WEIGHT_MAP_H

#include "base/arena.h"
#include "base/error.h"

enum {
    WEIGHT_MAP_MAX_BYTES = 64 << 20,
    WEIGHT_MAP_MAX_TENSORS = 1000 * 1000,
    WEIGHT_MAP_MAX_ELEMENT_BYTES = 16,
    WEIGHT_MAP_SESSION_BYTES = 256, /* longest session id, NUL included */
};

struct weight_entry {
    const char *name; /* UTF-8 without NUL inside, NUL-terminated */
    uint32_t name_bytes;
    uint32_t element_bytes; /* 1 to WEIGHT_MAP_MAX_ELEMENT_BYTES */
    uint64_t elements;      /* 0: takes no memory, and its address says nothing */
    uint64_t address;       /* not 0, address + bytes does not wrap; where bytes is not 0 */
    uint64_t bytes;         /* elements * element_bytes */
};

struct weight_map {
    uint64_t rank;
    const char *session;          /* "HOST:PORT" of the engine; not empty */
    struct weight_entry *entries; /* by name, bytewise; names are unique */
    uint32_t count;               /* may be 0 */
    struct arena arena;           /* owns everything above */
};

/* Decodes and checks. Unknown members are skipped; numbers are exact up to 2^64 - 1. Errors, naming
 * the tensor where there is one: RF_E_PROTO (no such JSON, a member missing or twice, a number that is
 * negative, a fraction or too large, an address of 0, one that wraps, too many), RF_E_UNSUPPORTED
 * (the info is an object: another backend's), RF_E_NOMEM. Free with weight_map_free() after
 * success. */
enum rf_code weight_map_decode(const void *json, size_t bytes, struct weight_map *ret_map,
                               struct rf_error *err);
void weight_map_free(struct weight_map *map); /* a zeroed one is fine */
/* NULL if there is none of that name. */
const struct weight_entry *weight_map_find(const struct weight_map *map, const char *name);

#endif
