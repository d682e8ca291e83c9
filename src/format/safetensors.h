/* The safetensors file format: 8 bytes little-endian header length, a JSON header, the tensors'
 * bytes. Source: https://github.com/huggingface/safetensors (README "Format", and
 * safetensors/src/tensor.rs, whose acceptance we follow; docs/safetensors.md lists where we are
 * stricter). */
#ifndef FORMAT_SAFETENSORS_H
#define FORMAT_SAFETENSORS_H

#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"

enum {
    ST_MAX_HEADER_BYTES = 100 * 1000 * 1000, /* as in the reference implementation */
    ST_MAX_TENSORS = 4 * 1000 * 1000,
    ST_MAX_METADATA = 1000 * 1000,
};

/* One tensor of a file. Strings and shape live in the header's arena; name is NUL-terminated, holds
 * no NUL inside, and is valid UTF-8 with JSON escapes resolved. */
struct st_tensor {
    const char *name;
    uint32_t name_bytes;
    enum rf_dtype dtype;
    uint32_t ndim;         /* 0 ... RF_MAX_DIMS */
    const uint64_t *shape; /* [ndim] */
    uint64_t offset;       /* into the file's data, not into the file */
    uint64_t bytes;
};

/* One entry of "__metadata__". Both texts are NUL-terminated; the counts tell what stands behind
 * a NUL inside ("\u0000" is allowed here). Whoever writes may leave a count 0: then strlen()
 * counts. */
struct st_metadata {
    const char *key;
    const char *value;
    uint32_t key_bytes;
    uint32_t value_bytes;
};

struct st_header {
    uint64_t data_offset; /* of the data in the file: 8 + header length */
    uint64_t data_bytes;
    struct st_tensor
        *tensors; /* by offset, end, name; they cover the data without hole or overlap */
    uint32_t tensor_count;
    struct st_metadata
        *metadata; /* "__metadata__", in the file's order; of a key given twice the last */
    uint32_t metadata_count;
    struct arena arena;
};

/* Parses a header. json is the header's text without the 8 length bytes; file_bytes the size of
 * the whole file, so that offsets are checked against it. name is used in error lines. In one
 * pass over the text, linear in its length, without recursion. Errors: RF_E_FORMAT (with the
 * tensor's name and the numbers), RF_E_NOMEM. Free with st_header_free(). */
enum rf_code st_header_parse(const char *name, const uint8_t *json, size_t json_bytes,
                             uint64_t file_bytes, struct st_header *ret_header,
                             struct rf_error *err);

/* Reads and parses the header of an open file of file_bytes bytes with pread(). */
enum rf_code st_header_read(const char *name, int fd, uint64_t file_bytes,
                            struct st_header *ret_header, struct rf_error *err);

void st_header_free(struct st_header *header);

/* Appends the 8 length bytes and the JSON header (padded with blanks to a multiple of 8) of a
 * file that holds these tensors in this order; their offset members are ignored, data is laid
 * end to end. Follows the reference writer: metadata first, no blanks. Errors: RF_E_INVAL (a
 * name twice, header too large), RF_E_NOMEM. */
enum rf_code st_header_write(const struct st_tensor *tensors, uint32_t count,
                             const struct st_metadata *metadata, uint32_t metadata_count,
                             struct buf *out, struct rf_error *err);

/* The format knows no shared bytes. Where a file is to tell that a tensor is another one of the same
 * file (tied weights), its metadata has "rfork.alias.NAME": "TARGET"; dtype and shape are the
 * target's. Whoever does not know that sees only the target. The key is made in the arena, target
 * is borrowed; false: no memory. */
bool st_alias_entry(struct arena *arena, const char *name, size_t name_bytes, const char *target,
                    struct st_metadata *ret_entry);
/* The NAME of such an entry; NULL: it is another one. */
const char *st_alias_name(const struct st_metadata *entry);

#endif
