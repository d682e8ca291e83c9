/* A keyed hash of short strings: without the key nobody can choose strings that collide. */
#ifndef BASE_SIPHASH_H
#define BASE_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

/* SipHash-1-3 (https://www.aumasson.jp/siphash/siphash.pdf), 64 bits. */
uint64_t siphash(const uint64_t key[2], const void *data, size_t bytes);

#endif
