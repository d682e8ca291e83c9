/* Little-endian integers read from and written to byte buffers. Structs are never cast onto buffers. */
#ifndef WIRE_WIRE_H
#define WIRE_WIRE_H

#include "base/buf.h"
#include <string.h>

/* A reader over bytes from outside: a short read clears ok and yields 0. */
struct wire_in {
    const uint8_t *at;
    const uint8_t *end;
    bool ok;
};

static inline const uint8_t *wire_get_bytes(struct wire_in *in, uint64_t bytes)
{
    const uint8_t *at = in->at;

    if (!in->ok || bytes > (uint64_t)(in->end - in->at)) {
        in->ok = false;
        return NULL;
    }
    in->at += bytes;
    return at;
}

static inline uint64_t wire_get_uint(struct wire_in *in, unsigned bytes)
{
    const uint8_t *at = wire_get_bytes(in, bytes);
    uint64_t value = 0;

    for (unsigned i = 0; at != NULL && i < bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
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
    for (unsigned i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
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
