/* Codec of the native data protocol: a reader asks for ranges of a rank's stream, a seed answers
 * with their bytes. Pure: no I/O. Specified in docs/wire-protocol.md.
 *
 * reader -> seed: hello, then READ frames, several of them in flight.
 * seed -> reader: welcome, then for each READ, in their order, DATA frames whose bytes laid end to
 * end are the bytes of the ranges; the last has CHUNK_FLAG_LAST, and is followed by a DIGEST if the
 * READ asked for one. ERROR in place of a DATA or DIGEST frame ends that READ. GOODBYE: the seed
 * takes no further READ, ends those it has, and closes. */
#ifndef WIRE_CHUNK_H
#define WIRE_CHUNK_H

#include "base/buf.h"
#include "base/error.h"
#include "base/hash.h"
#include "wire/wire.h"

enum {
    CHUNK_VERSION = 1, /* the only one so far */
    CHUNK_TOKEN_BYTES = 32,
    CHUNK_HELLO_BYTES = 48, /* "rfork/1\n" u16 version_min u16 version_max u32 flags token[32] */
    /* "rfork/1\n" u16 version u16 status u32 max_in_flight u64 max_read_bytes u64 zero */
    CHUNK_WELCOME_BYTES = 32,
    CHUNK_HDR_BYTES = 16,   /* u8 type u8 flags u16 zero u32 body_bytes u64 request_id */
    CHUNK_RANGE_BYTES = 32, /* u64 offset u64 bytes u64 stride u64 count */
    CHUNK_READ_BYTES = 8,   /* u32 rank u32 range_count, then the ranges */
    CHUNK_MAX_RANGES = 4096,
    CHUNK_MAX_DATA_BYTES = 1 << 20,  /* body of one DATA frame */
    CHUNK_MAX_READ_BYTES = 64 << 20, /* what one READ may ask for in all */
    CHUNK_MAX_IN_FLIGHT = 16,
    CHUNK_MAX_ERROR_BYTES = 512, /* of text */
    CHUNK_MAX_ERROR_BODY = 4 + CHUNK_MAX_ERROR_BYTES,
    CHUNK_MAGIC_BYTES = 8,
    CHUNK_MAX_READ_BODY = CHUNK_READ_BYTES + CHUNK_MAX_RANGES * CHUNK_RANGE_BYTES,
};

enum chunk_type {
    CHUNK_READ = 1,
    CHUNK_DATA = 2,
    CHUNK_ERROR = 3,
    CHUNK_GOODBYE = 4,
    CHUNK_DIGEST = 5,
};

enum {
    CHUNK_FLAG_LAST = 1,   /* of DATA */
    CHUNK_FLAG_XXH3 = 2,   /* of READ: a DIGEST by HASH_XXH3_128 is wanted */
    CHUNK_FLAG_SHA256 = 4, /* of READ: one by HASH_SHA256; not both */
};

/* A piece of a stream, or `count` equally spaced ones: for each i < count the bytes
 * [offset + i * stride, offset + i * stride + bytes). With count 1, stride is 0. */
struct stream_range {
    uint64_t offset;
    uint64_t bytes;
    uint64_t stride;
    uint64_t count;
};

struct chunk_hello {
    uint16_t version_min;
    uint16_t version_max;
    uint8_t token[CHUNK_TOKEN_BYTES];
};

struct chunk_welcome {
    uint16_t version; /* 0: none of the offered ones */
    uint16_t status;  /* an rf_code; not RF_OK: the seed closes */
    uint32_t max_in_flight;
    uint64_t max_read_bytes;
};

struct chunk_hdr {
    enum chunk_type type;
    uint8_t flags;
    uint32_t body_bytes;
    uint64_t request_id; /* the reader chooses one per READ; 0: the connection itself */
};

void chunk_hello_encode(const struct chunk_hello *hello, uint8_t out[CHUNK_HELLO_BYTES]);
/* Looks at the first CHUNK_HELLO_BYTES of buf. RF_E_PROTO: not this protocol (says what came
 * instead), a reserved field set, version_min 0 or > version_max. */
enum rf_code chunk_hello_decode(const uint8_t *buf, size_t len, struct chunk_hello *ret_hello,
                                struct rf_error *err);
/* The highest version that both sides speak; 0 if there is none. */
uint16_t chunk_version_choose(const struct chunk_hello *hello);
void chunk_welcome_encode(const struct chunk_welcome *welcome, uint8_t out[CHUNK_WELCOME_BYTES]);
/* Looks at the first CHUNK_WELCOME_BYTES. A refusal (status not RF_OK, any version) is no error
 * here: the caller reports welcome.status. RF_E_PROTO: not this protocol, a status that is no
 * rf_code, a version that we do not speak, a limit of 0 or beyond CHUNK_MAX_IN_FLIGHT and
 * CHUNK_MAX_READ_BYTES. */
enum rf_code chunk_welcome_decode(const uint8_t *buf, size_t len, struct chunk_welcome *ret_welcome,
                                  struct rf_error *err);

void chunk_hdr_encode(const struct chunk_hdr *hdr, uint8_t out[CHUNK_HDR_BYTES]);
/* Checks type, flags and the body's size against what that type allows: READ 1 ...
 * CHUNK_MAX_RANGES ranges, DATA 1 ... CHUNK_MAX_DATA_BYTES (an empty one would move nothing),
 * ERROR 4 ... CHUNK_MAX_ERROR_BODY, GOODBYE none, DIGEST 16 or 32. Only DATA may have
 * CHUNK_FLAG_LAST, only READ one of the two that ask for a digest. Looks at the first
 * CHUNK_HDR_BYTES. RF_E_PROTO. */
enum rf_code chunk_hdr_decode(const uint8_t *buf, size_t len, struct chunk_hdr *ret_hdr,
                              struct rf_error *err);

/* The flag by which a READ asks for a digest; 0 (none) for algorithm 0. */
uint8_t chunk_digest_flag(enum hash_algorithm algorithm);
/* The opposite: what a READ's flags ask for, 0 if nothing. */
enum hash_algorithm chunk_digest_wanted(uint8_t flags);

/* Appends the body of a READ (not its header). count in 1 ... CHUNK_MAX_RANGES. */
void chunk_read_encode(uint32_t rank, const struct stream_range *ranges, uint32_t count,
                       struct buf *out);
/* Decodes a READ's body, all of it, into ranges[max]. Only the form is checked here; whether the
 * ranges lie inside the rank's stream is stream_ranges_check()'s business. RF_E_PROTO. */
enum rf_code chunk_read_decode(const uint8_t *body, size_t len, uint32_t *ret_rank,
                               struct stream_range *ranges, uint32_t max, uint32_t *ret_count,
                               struct rf_error *err);

/* One range as it lies in a READ. */
void chunk_range_encode(const struct stream_range *range, uint8_t out[CHUNK_RANGE_BYTES]);

/* Whether a number from a peer is an rf_code that may travel: any we know but RF_AGAIN. */
bool chunk_code_ok(uint32_t code);
/* Appends an ERROR body: u32 rf_code, then UTF-8 text, cut to CHUNK_MAX_ERROR_BYTES between two
 * characters. */
void chunk_error_encode(enum rf_code code, const char *text, struct buf *out);
/* Fills err from an ERROR body; returns the peer's code (RF_E_PROTO if it is none we know, or
 * RF_OK). */
enum rf_code chunk_error_decode(const uint8_t *body, size_t len, struct rf_error *err);

/* Sum of the ranges' bytes, and whether each lies in [0, stream_bytes): RF_E_INVAL naming the
 * range. Zero bytes, zero count, a stride smaller than the bytes (or not 0 when count is 1), and
 * any wrap-around are refused. */
enum rf_code stream_ranges_check(const struct stream_range *ranges, uint32_t count,
                                 uint64_t stream_bytes, uint64_t *ret_bytes, struct rf_error *err);

/* The part that wire/map.h shares: magic (CHUNK_MAGIC_BYTES), versions, flags, token. protocol is
 * for messages. */
void chunk_hello_put(struct wire_out *out, const char *magic, const struct chunk_hello *hello);
enum rf_code chunk_hello_get(struct wire_in *in, const char *protocol, const char *magic,
                             struct chunk_hello *ret_hello, struct rf_error *err);
/* Takes the magic off; RF_E_PROTO says what came instead. */
enum rf_code chunk_magic_get(struct wire_in *in, const char *protocol, const char *magic,
                             struct rf_error *err);

#endif
