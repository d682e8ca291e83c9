/* Little-endian integers read from and written to byte buffers. Structs are never cast onto
 * buffers. */
#ifndef WIRE_WIRE_H
#define WIRE_WIRE_H

#include "base/buf.h"

#include <endian.h>
#include <string.h>

/* A reader over bytes from outside: a short read clears ok and yields 0, and so does every later
 * one. */
struct wire_in {
    const uint8_t *at;
    const uint8_t *end;
    bool ok;
};

/* data is borrowed; NULL is fine when bytes is 0. */
static inline struct wire_in wire_in_over(const void *data, size_t bytes)
{
    const uint8_t *at = data != NULL ? data : (const uint8_t *)"";

    return (struct wire_in){.at = at, .end = data != NULL ? at + bytes : at, .ok = true};
}

static inline uint64_t wire_left(const struct wire_in *in)
{
    return (uint64_t)(in->end - in->at);
}

/* NULL if there are not that many. */
static inline const uint8_t *wire_get_bytes(struct wire_in *in, uint64_t bytes)
{
    const uint8_t *at = in->at;

    if (!in->ok || bytes > wire_left(in)) {
        in->ok = false;
        return NULL;
    }
    in->at += bytes;
    return at;
}

/* bytes is at most 8; a constant, so that this becomes one load. */
static inline uint64_t wire_get_uint(struct wire_in *in, unsigned bytes)
{
    const uint8_t *at = wire_get_bytes(in, bytes);
    uint64_t value = 0;

    if (at != NULL)
        memcpy(&value, at, bytes);
    return le64toh(value);
}

static inline uint8_t wire_get_u8(struct wire_in *in)
{
    return (uint8_t)wire_get_uint(in, 1);
}

static inline uint16_t wire_get_u16(struct wire_in *in)
{
    return (uint16_t)wire_get_uint(in, 2);
}

static inline uint32_t wire_get_u32(struct wire_in *in)
{
    return (uint32_t)wire_get_uint(in, 4);
}

static inline uint64_t wire_get_u64(struct wire_in *in)
{
    return wire_get_uint(in, 8);
}

static inline void wire_put_uint(uint8_t *at, uint64_t value, unsigned bytes)
{
    value = htole64(value);
    memcpy(at, &value, bytes);
}

/* A writer over an array that is known to be large enough: `at` moves on. */
struct wire_out {
    uint8_t *at;
};

static inline void wire_set_bytes(struct wire_out *out, const void *data, size_t bytes)
{
    memcpy(out->at, data, bytes);
    out->at += bytes;
}

static inline void wire_set_uint(struct wire_out *out, uint64_t value, unsigned bytes)
{
    wire_put_uint(out->at, value, bytes);
    out->at += bytes;
}

static inline void wire_set_u8(struct wire_out *out, uint8_t value)
{
    wire_set_uint(out, value, 1);
}

static inline void wire_set_u16(struct wire_out *out, uint16_t value)
{
    wire_set_uint(out, value, 2);
}

static inline void wire_set_u32(struct wire_out *out, uint32_t value)
{
    wire_set_uint(out, value, 4);
}

static inline void wire_set_u64(struct wire_out *out, uint64_t value)
{
    wire_set_uint(out, value, 8);
}

/* Appending to a buf; a failed allocation shows in buf->failed. */
static inline void wire_put(struct buf *out, uint64_t value, unsigned bytes)
{
    uint8_t raw[8];

    wire_put_uint(raw, value, bytes);
    buf_append(out, raw, bytes);
}

static inline void wire_put_u8(struct buf *out, uint8_t value)
{
    wire_put(out, value, 1);
}

static inline void wire_put_u16(struct buf *out, uint16_t value)
{
    wire_put(out, value, 2);
}

static inline void wire_put_u32(struct buf *out, uint32_t value)
{
    wire_put(out, value, 4);
}

static inline void wire_put_u64(struct buf *out, uint64_t value)
{
    wire_put(out, value, 8);
}

#endif
