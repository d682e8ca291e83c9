#include "util/golden.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static FILE *golden_open(const char *name, const char *mode)
{
    const char *source = getenv("RFORK_SOURCE"); /* ctest sets it */
    char path[PATH_MAX];

    snprintf(path, sizeof path, "%s/tests/golden/%s", source != NULL ? source : ".", name);
    FILE *file = fopen(path, mode);
    if (file == NULL)
        fail_msg("%s: cannot be opened; run in the source folder or set RFORK_SOURCE", path);
    return file;
}

uint8_t *golden_read(const char *name, size_t *ret_bytes)
{
    FILE *file = golden_open(name, "rb");

    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    size_t bytes = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = malloc(bytes);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, bytes, file), bytes);
    fclose(file);
    *ret_bytes = bytes;
    return data;
}

static void golden_write(const char *name, const void *data, size_t bytes)
{
    FILE *file = golden_open(name, "wb");

    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

void golden_check(const char *name, const void *data, size_t bytes)
{
    size_t golden_bytes = 0;
    size_t same = 0;

    if (getenv("RFORK_GOLDEN_WRITE") != NULL)
        golden_write(name, data, bytes);
    uint8_t *golden = golden_read(name, &golden_bytes);
    while (same < bytes && same < golden_bytes && golden[same] == ((const uint8_t *)data)[same])
        same++;
    free(golden);
    if (same < bytes || same < golden_bytes)
        fail_msg("%s: %zu bytes were released, %zu are made now, they part at byte %zu", name,
                 golden_bytes, bytes, same);
}
