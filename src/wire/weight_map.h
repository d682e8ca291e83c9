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
    WEIGHT_MAP_SESSION_BYTES = 256, /* longest session id that we read from, NUL included */
    WEIGHT_MAP_HOST_BYTES = 256,    /* longest host in one, NUL included */
};

/* Whether it is "HOST:PORT": what an engine may be called. Host: 1 to WEIGHT_MAP_HOST_BYTES - 1
 * printable bytes of ASCII without quotes, slashes and commas; port: 1 to 65535, not a digit more. */
bool weight_map_session_ok(const char *text, size_t bytes);

/* A tensor as the text has it. */
struct weight_item {
    const char *name; /* may have NULs in it, and no end but name_bytes; NULL: none was found */
    size_t name_bytes;
    uint64_t address;
    uint64_t elements;
    uint64_t element_bytes;
};

struct json_scan; /* base/json_scan.h, which does not go together with jansson.h */

/* Steps through {"name": [address, elements, bytes of an element], ...}, whose opening bracket has
 * been consumed, as json_item() does: true if a tensor came, false at the closing bracket (consumed)
 * or on a problem. *first must be true at the first call. */
bool weight_map_item(struct json_scan *scan, bool *first, struct weight_item *ret_item);
/* Its size and whether it ends before 2^64: NULL, or what is wrong. */
const char *weight_item_bytes(const struct weight_item *item, uint64_t *ret_bytes);

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
    const char *session;          /* "HOST:PORT" of the engine */
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
