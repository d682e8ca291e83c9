/* Codec of the `map` transport's exchange over a Unix stream socket. Specified in
 * docs/wire-protocol.md.
 *
 * reader -> seed: a hello as in wire/chunk.h, but beginning "rfmap/1\n", then u32 rank.
 * seed -> reader: a grant header with one SCM_RIGHTS message that carries the descriptors on its
 * first byte, then the u64 size of each descriptor, then the segments. A refusal is a grant whose
 * status is not RF_OK, and text_bytes of a line of text that says why. */
#ifndef WIRE_MAP_H
#define WIRE_MAP_H

#include "wire/chunk.h"

enum {
    MAP_HELLO_BYTES = CHUNK_HELLO_BYTES + 4,
    /* "rfmap/1\n" u16 version u16 status u32 fd_count u32 segment_count u32 text_bytes u64 zero */
    MAP_GRANT_BYTES = 32,
    MAP_SEGMENT_BYTES = 32, /* u64 stream_offset u64 bytes u64 fd_offset u32 fd_index u32 zero */
    MAP_FD_BYTES = 8,       /* u64 bytes of each descriptor, fd_count of them before the segments */
    MAP_MAX_FDS = 64,
    MAP_MAX_SEGMENTS = 8 << 20,
};

struct map_hello {
    struct chunk_hello hello;
    uint32_t rank;
};

struct map_grant {
    uint16_t version; /* 0: none of the offered ones */
    uint16_t status;  /* an rf_code */
    uint32_t fd_count;
    uint32_t segment_count; /* 0, and then fd_count too, for a rank without bytes */
    uint32_t text_bytes;    /* of the line that follows a refusal; at most CHUNK_MAX_ERROR_BYTES */
};

struct map_segment {
    uint64_t stream_offset;
    uint64_t bytes;
    uint64_t fd_offset;
    uint32_t fd_index;
};

void map_hello_encode(const struct map_hello *hello, uint8_t out[MAP_HELLO_BYTES]);
/* Each decoder looks at the first MAP_*_BYTES of buf. RF_E_PROTO: as chunk_hello_decode(). */
enum rf_code map_hello_decode(const uint8_t *buf, size_t len, struct map_hello *ret_hello,
                              struct rf_error *err);
void map_grant_encode(const struct map_grant *grant, uint8_t out[MAP_GRANT_BYTES]);
/* RF_E_PROTO: not this protocol, counts beyond the limits, a refusal that grants or a grant that
 * explains. */
enum rf_code map_grant_decode(const uint8_t *buf, size_t len, struct map_grant *ret_grant,
                              struct rf_error *err);
void map_segment_encode(const struct map_segment *segment, uint8_t out[MAP_SEGMENT_BYTES]);
/* RF_E_PROTO: no bytes, an end beyond 2^64, fd_index >= MAP_MAX_FDS. Whether it lies inside the
 * stream and its descriptor is for the caller to check. */
enum rf_code map_segment_decode(const uint8_t *buf, size_t len, struct map_segment *ret_segment,
                                struct rf_error *err);

#endif
