#include "base/json_scan.h"
#include "format/model_folder.h"

#include <string.h>

static bool part_ok(const char *part, size_t bytes)
{
    if (bytes == 0 || (bytes == 1 && part[0] == '.') ||
        (bytes == 2 && part[0] == '.' && part[1] == '.'))
        return false;
    for (size_t i = 0; i < bytes; i++) {
        uint8_t byte = (uint8_t)part[i];

        if (byte < 0x20 || byte == 0x7f || byte == '\\')
            return false;
    }
    return true;
}

bool folder_name_ok(const char *name)
{
    size_t bytes = strnlen(name, RF_MAX_NAME_BYTES + 1);

    if (bytes > RF_MAX_NAME_BYTES || !json_utf8_ok(name, bytes))
        return false;
    for (;;) {
        const char *slash = strchr(name, '/');
        size_t part = slash != NULL ? (size_t)(slash - name) : strlen(name);

        if (!part_ok(name, part))
            return false;
        if (slash == NULL)
            return true;
        name = slash + 1;
    }
}
