/* What an SGLang rank says that it publishes. */
#include "wire/weight_map.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct weight_map map;
    struct rf_error err;

    if (weight_map_decode(data, len, &map, &err) != RF_OK)
        return 0;
    if (!weight_map_session_ok(map.session, strlen(map.session)) ||
        strlen(map.session) >= WEIGHT_MAP_SESSION_BYTES)
        abort();
    for (uint32_t i = 0; i < map.count; i++) {
        const struct weight_entry *entry = &map.entries[i];

        if (strlen(entry->name) != entry->name_bytes || entry->element_bytes == 0 ||
            entry->bytes != entry->elements * entry->element_bytes ||
            entry->address + entry->bytes < entry->address ||
            (i > 0 && strcmp(map.entries[i - 1].name, entry->name) >= 0) ||
            weight_map_find(&map, entry->name) != entry)
            abort();
    }
    weight_map_free(&map);
    return 0;
}
