#include "base/cleanup.h"
#include "format/safetensors_check.h"

#include <endian.h>
#include <inttypes.h>
#include <string.h>

/* Exactly `bytes` bytes from `offset` on. */
static enum rf_code read_all(const char *name, int fd, void *out, size_t bytes, uint64_t offset,
                             struct rf_error *err)
{
    size_t done = 0;

    while (done < bytes) {
        ssize_t got = pread(fd, (char *)out + done, bytes - done, (off_t)(offset + done));

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return rf_fail_sys(err, "%s: read %zu bytes at %" PRIu64, name, bytes, offset);
        if (got == 0) {
            return rf_fail(err, RF_E_FORMAT,
                           "%s: the file became shorter while it was read: it ends at byte %" PRIu64
                           "; wait until it is complete",
                           name, offset + done);
        }
        done += (size_t)got;
    }
    return RF_OK;
}

/* What people have in place of a safetensors file, by its first bytes; NULL: nothing we know. */
static const char *other_kind(const uint8_t *first)
{
    static const struct {
        const char *start;
        const char *is;
    } kinds[] = {
        {"version ", "a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"},
        {"PK\3\4", "a zip archive, as PyTorch writes: convert it to safetensors"},
        {"GGUF", "a GGUF file: convert it to safetensors"},
        {"<!DOCTYP", "a web page: the download went wrong, download it again"},
        {"<html", "a web page: the download went wrong, download it again"},
    };

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strncmp((const char *)first, kinds[i].start, strlen(kinds[i].start)) == 0)
            return kinds[i].is;
    }
    return NULL;
}

enum rf_code st_header_read(const char *name, int fd, uint64_t file_bytes,
                            struct st_header *ret_header, struct rf_error *err)
{
    uint8_t length[ST_LENGTH_BYTES + 1] = {0};
    uint64_t json_bytes;

    if (file_bytes < ST_LENGTH_BYTES) {
        return rf_fail(err, RF_E_FORMAT,
                       "%s: the file is truncated: %" PRIu64
                       " bytes, a safetensors file has at least 10; copy or download it again",
                       name, file_bytes);
    }
    enum rf_code code = read_all(name, fd, length, ST_LENGTH_BYTES, 0, err);
    if (code != RF_OK)
        return code;
    memcpy(&json_bytes, length, sizeof(json_bytes));
    json_bytes = le64toh(json_bytes);
    if (json_bytes > ST_MAX_HEADER_BYTES && other_kind(length) != NULL)
        return rf_fail(err, RF_E_FORMAT, "%s: %s", name, other_kind(length));
    code = st_check_length(name, json_bytes, file_bytes, err);
    if (code != RF_OK)
        return code;
    rf_autofree uint8_t *json = malloc(json_bytes > 0 ? json_bytes : 1);
    if (json == NULL)
        return rf_fail(err, RF_E_NOMEM, "%s: out of memory for a header of %" PRIu64 " bytes", name,
                       json_bytes);
    code = read_all(name, fd, json, json_bytes, ST_LENGTH_BYTES, err);
    if (code != RF_OK)
        return code;
    return st_header_parse(name, json, json_bytes, file_bytes, ret_header, err);
}
