#include "base/arena.h"

#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA_ALIGN = 16, ARENA_BLOCK_BYTES = 64 * 1024 };

struct arena_block {
    struct arena_block *next;
    size_t used;
    size_t room;
    alignas(ARENA_ALIGN) unsigned char data[];
};

static struct arena_block *block_create(size_t room)
{
    size_t bytes = 0;

    if (__builtin_add_overflow(sizeof(struct arena_block), room, &bytes))
        return NULL;
    struct arena_block *block = malloc(bytes);
    if (block != NULL)
        *block = (struct arena_block){.room = room};
    return block;
}

void *arena_alloc(struct arena *arena, size_t bytes)
{
    struct arena_block *head = arena->head;

    if (bytes > SIZE_MAX - ARENA_ALIGN)
        return NULL;
    bytes = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    if (head != NULL && bytes <= head->room - head->used) {
        void *at = head->data + head->used;
        head->used += bytes;
        return at;
    }
    bool large = bytes > ARENA_BLOCK_BYTES / 4;
    struct arena_block *block = block_create(large ? bytes : ARENA_BLOCK_BYTES);
    if (block == NULL)
        return NULL;
    block->used = bytes;
    if (large && head != NULL) { /* behind the head, whose rest stays in use */
        block->next = head->next;
        head->next = block;
    } else {
        block->next = head;
        arena->head = block;
    }
    return block->data;
}

char *arena_strndup(struct arena *arena, const char *text, size_t bytes)
{
    if (bytes == SIZE_MAX)
        return NULL;
    char *copy = arena_alloc(arena, bytes + 1);
    if (copy == NULL)
        return NULL;
    if (bytes > 0)
        memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    return copy;
}

void arena_free(struct arena *arena)
{
    struct arena_block *block = arena->head;

    while (block != NULL) {
        struct arena_block *next = block->next;
        free(block);
        block = next;
    }
    arena->head = NULL;
}
