/* Tied tensors in "__metadata__". */
#include "format/safetensors.h"

#include <string.h>

static const char prefix[] = "rfork.alias.";

enum { PREFIX_BYTES = sizeof prefix - 1 };

bool st_alias_entry(struct arena *arena, const char *name, size_t name_bytes, const char *target,
                    struct st_metadata *ret_entry)
{
    char *key = arena_alloc(arena, PREFIX_BYTES + name_bytes + 1);

    if (key == NULL)
        return false;
    memcpy(key, prefix, PREFIX_BYTES);
    memcpy(key + PREFIX_BYTES, name, name_bytes);
    key[PREFIX_BYTES + name_bytes] = '\0';
    *ret_entry = (struct st_metadata){.key = key, .value = target};
    return true;
}

const char *st_alias_name(const struct st_metadata *entry)
{
    return strncmp(entry->key, prefix, PREFIX_BYTES) == 0 ? entry->key + PREFIX_BYTES : NULL;
}
