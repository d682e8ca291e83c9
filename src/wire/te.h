/* Codec of what Mooncake's TransferEngine says over TCP, releases 0.3.5 to 0.3.13, and of our own
 * additions to it. Pure: no I/O. Specified in docs/wire-protocol.md.
 *
 * Handshake: a connection each for one question and its answer: u64 length, u8 type, JSON; length
 * counts the type. In the old form the type is left out, in question and answer: the first byte is
 * then JSON's. The answer to METADATA is a descriptor: what the engine has registered, and where its
 * data plane is.
 *
 * Data: a request of 24 bytes (u64 bytes, u64 address, u8 opcode, 7 unused); a READ is answered with
 * the bytes (v1), or with a status of 8 bytes and the bytes (v2, TE_OP_V2 in the opcode). All
 * integers are little-endian.
 *
 * Additions, for readers whose seed's descriptor has "rfork": 1 (others skip that member):
 *  - TE_OP_TOKEN, first of all: `bytes` is CHUNK_TOKEN_BYTES and a lease's token follows; answered
 *    with a status. Without it a connection reads as anybody may.
 *  - TE_OP_HASHED: a v2 READ whose bytes are hashed at the seed, by the algorithm in byte 17 (enum
 *    hash_algorithm), together with those of HASHED reads before it.
 *  - TE_OP_DIGEST: `bytes` is that of a READ's body (wire/chunk.h), which follows: the rank and ranges
 *    of which all HASHED reads since the last DIGEST are the pieces, in order. Answered with a status
 *    and the digest, hash_bytes() of the algorithm in byte 17, of their bytes and this body
 *    (transport/read_digest.h); RF_E_INVAL if they are not those pieces.
 *  - a refusal of any of these, and of a v2 READ after a TOKEN, has a status with TE_STATUS_CODE
 *    added to an enum rf_code, and the connection lives on. */
#ifndef WIRE_TE_H
#define WIRE_TE_H

#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"
#include "base/hash.h"
#include "wire/wire.h"

enum {
    TE_FRAME_HEAD_BYTES = 8,          /* the length */
    TE_DEFAULT_FRAME_BYTES = 1 << 20, /* that Mooncake takes, type and JSON */
    TE_MAX_FRAME_BYTES = 128 << 20,   /* that it can be made to take */
    /* that our seed takes: it looks at the type alone, and engines with many buffers name them all */
    TE_MAX_QUESTION_BYTES = TE_MAX_FRAME_BYTES,
    TE_MAX_BUFFERS = 4 * 1000 * 1000, /* of a descriptor */
    TE_MAX_NAME_BYTES = 256,          /* of an engine, a host */
    TE_HDR_BYTES = 24,                /* of a data request */
    TE_STATUS_BYTES = 8,
};

enum te_type {
    TE_CONNECTION = 0,
    TE_METADATA = 1,
    TE_NOTIFY = 2,
    TE_PROBE = 3,
    TE_OLD_FORM = 255, /* no type byte: a CONNECTION of old */
};

/* ---- handshake ---- */

/* The bytes that follow a length: RF_E_PROTO for 0, or more than max_bytes. */
enum rf_code te_frame_length(const uint8_t head[TE_FRAME_HEAD_BYTES], uint64_t max_bytes,
                             uint64_t *ret_bytes, struct rf_error *err);
/* What a frame's first byte says. *ret_type is TE_OLD_FORM if the byte is the JSON's already.
 * RF_E_PROTO: a type nobody knows is not told from the old form, as at Mooncake: 4 to 255. */
enum te_type te_frame_type(uint8_t first);
/* Appends a frame around JSON; type TE_OLD_FORM: without a type byte. */
void te_frame_encode(enum te_type type, const void *json, size_t bytes, struct buf *out);

struct te_buffer {
    uint64_t address; /* not 0 */
    uint64_t bytes;   /* not 0; address + bytes does not wrap */
    const char *name; /* in ours "rank:R"; in Mooncake's the engine's name */
};

struct te_descriptor {
    const char *name; /* "HOST:PORT" by which the engine knows itself */
    const char
        *protocol; /* "tcp", "rdma", ...; of several the first, or "tcp" if it is among them */
    const char *data_host;     /* "tcp_data_host", from 0.3.13 on; "" if absent */
    const char *rdma_server;   /* "rdma_server_name"; "" if absent */
    uint16_t data_port;        /* 0: none over TCP */
    uint32_t version;          /* of the data plane: 1, or "tcp_proto_version" */
    uint32_t rfork;            /* our additions; 0: not ours */
    struct te_buffer *buffers; /* [buffer_count] by address */
    uint64_t buffer_count;
    struct arena arena; /* owns everything above, when it was decoded */
};

/* Appends the JSON of a descriptor, newline included, as Mooncake 0.3.13 writes it, with every field
 * that any release looks at. timestamp: "YYYY-MM-DD HH:MM:SS.uuuuuu", or NULL for now. */
void te_descriptor_encode(const struct te_descriptor *descriptor, const char *timestamp,
                          struct buf *out);
/* Decodes and checks: unknown members are skipped; numbers are exact up to 2^64 - 1. RF_E_PROTO
 * saying what is wrong (no JSON, a member of the wrong type, twice, an address of 0, one that wraps,
 * buffers that overlap, a port over 65535, too many); RF_E_NOMEM. Free with te_descriptor_free()
 * after success. */
enum rf_code te_descriptor_decode(const uint8_t *json, size_t bytes,
                                  struct te_descriptor *ret_descriptor, struct rf_error *err);
void te_descriptor_free(struct te_descriptor *descriptor);
/* The buffer that holds all of [address, address + bytes), or NULL. */
const struct te_buffer *te_descriptor_find(const struct te_descriptor *descriptor, uint64_t address,
                                           uint64_t bytes);

/* What a seed over TCP answers to the types that are not METADATA. */
void te_answer_encode(enum te_type type, struct buf *out);

/* ---- data ---- */

enum te_op {
    TE_OP_READ = 0,
    TE_OP_WRITE = 1,
    TE_OP_V2 = 0x80, /* added to either */
    TE_OP_TOKEN = 0xc0,
    TE_OP_HASHED = 0xc1,
    TE_OP_DIGEST = 0xc2,
};

struct te_hdr {
    uint64_t bytes;
    uint64_t address;
    uint8_t op;        /* enum te_op, or whatever the peer said */
    uint8_t algorithm; /* of HASHED and DIGEST */
};

void te_hdr_encode(const struct te_hdr *hdr, uint8_t out[TE_HDR_BYTES]);
void te_hdr_decode(const uint8_t in[TE_HDR_BYTES], struct te_hdr *ret_hdr);

enum {
    TE_STATUS_OK = 0,
    TE_STATUS_REJECTED = 1, /* the address, as Mooncake says it */
    TE_STATUS_CODE = 256,   /* added to an enum rf_code */
};

void te_status_encode(uint32_t status, uint8_t out[TE_STATUS_BYTES]);
/* RF_E_PROTO: no status. */
enum rf_code te_status_decode(const uint8_t in[TE_STATUS_BYTES], uint32_t *ret_status,
                              struct rf_error *err);

#endif
