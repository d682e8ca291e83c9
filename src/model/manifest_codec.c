/* The binary form of a manifest: byte tables in docs/wire-protocol.md. What manifest_decode() accepts,
 * manifest_encode() turns into the same bytes again. */
#include "model/manifest_internal.h"

#include <assert.h>
#include <inttypes.h>

static const uint8_t manifest_magic[4] = {'R', 'F', 'M', 'F'};

enum {
    IDENTITY_FIXED_BYTES = 40, /* magic to file_count and rank_count, without the texts */
    TENSOR_FIXED_BYTES = 5,    /* u16 name_bytes u8 dtype u8 ndim u8 flags */
    TENSOR_PLACE_BYTES = 8,    /* u32 order u32 file */
    TENSOR_MIN_BYTES = TENSOR_FIXED_BYTES + 1 + TENSOR_PLACE_BYTES, /* with a name of one byte */
    RANK_FIXED_BYTES = 4 * RANK_ID_WORDS + 4,
    FILE_FIXED_BYTES = 1 + 2 + 8 + 8,
};

void manifest_set_id(struct manifest *manifest, const uint8_t *data, size_t bytes)
{
    hash_once(manifest->algorithm, data, bytes - MANIFEST_CHECK_BYTES, manifest->id);
}

/* ---- encoding ---- */

static bool is_sharded(const struct tensor *tensor)
{
    return tensor->global_shape != tensor->shape;
}

size_t tensor_facts_bytes(const struct tensor *tensor)
{
    size_t dims = is_sharded(tensor) ? 3 * (size_t)tensor->ndim : tensor->ndim;

    return TENSOR_FIXED_BYTES + tensor->name_bytes + 8 * dims +
           (tensor->alias_of != MANIFEST_NONE ? 4 : 0);
}

static void dims_set(struct wire_out *out, const uint64_t *dims, uint32_t ndim)
{
    for (uint32_t i = 0; i < ndim; i++)
        wire_set_u64(out, dims != NULL ? dims[i] : 0);
}

void tensor_facts_set(struct wire_out *out, const struct tensor *tensor)
{
    bool sharded = is_sharded(tensor);
    bool alias = tensor->alias_of != MANIFEST_NONE;

    wire_set_u16(out, (uint16_t)tensor->name_bytes);
    wire_set_u8(out, (uint8_t)tensor->dtype);
    wire_set_u8(out, (uint8_t)tensor->ndim);
    wire_set_u8(out, (uint8_t)((sharded ? TENSOR_SHARDED : 0) | (alias ? TENSOR_ALIAS : 0)));
    wire_set_bytes(out, tensor->name, tensor->name_bytes);
    dims_set(out, tensor->shape, tensor->ndim);
    if (sharded) {
        dims_set(out, tensor->global_shape, tensor->ndim);
        dims_set(out, tensor->slice_start, tensor->ndim);
    }
    if (alias)
        wire_set_u32(out, tensor->alias_of);
}

static uint64_t encoded_bytes(const struct manifest *manifest)
{
    uint64_t bytes = IDENTITY_FIXED_BYTES + strlen(manifest->model) +
                     strlen(manifest->architecture) + strlen(manifest->quantisation) +
                     strlen(manifest->layout) + MANIFEST_CHECK_BYTES;

    for (uint32_t i = 0; i < manifest->file_count; i++)
        bytes +=
            FILE_FIXED_BYTES + strlen(manifest->files[i].name) + hash_bytes(manifest->algorithm);
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        const struct manifest_rank *rank = &manifest->ranks[i];

        bytes += RANK_FIXED_BYTES;
        for (uint32_t j = 0; j < rank->tensor_count; j++)
            bytes += tensor_facts_bytes(&rank->tensors[j]) + TENSOR_PLACE_BYTES +
                     (rank->tensors[j].file != MANIFEST_NONE ? 8 : 0);
    }
    return bytes;
}

static void text_set(struct wire_out *out, const char *text)
{
    size_t bytes = strlen(text); /* checked: at most RF_MAX_NAME_BYTES */

    wire_set_u16(out, (uint16_t)bytes);
    wire_set_bytes(out, text, bytes);
}

static void identity_set(struct wire_out *out, const struct manifest *manifest)
{
    wire_set_bytes(out, manifest_magic, sizeof manifest_magic);
    wire_set_u16(out, MANIFEST_VERSION);
    wire_set_u16(out, 0);
    wire_set_u8(out, (uint8_t)manifest->stage);
    wire_set_u8(out, (uint8_t)manifest->algorithm);
    wire_set_u16(out, 0);
    wire_set_u32(out, manifest->chunk_bytes);
    wire_set_u64(out, manifest->weight_version);
    text_set(out, manifest->model);
    text_set(out, manifest->architecture);
    text_set(out, manifest->quantisation);
    text_set(out, manifest->layout);
    wire_set_u32(out, manifest->file_count);
    wire_set_u32(out, manifest->rank_count);
}

static void file_set(struct wire_out *out, const struct manifest *manifest,
                     const struct manifest_file *file)
{
    wire_set_u8(out, (uint8_t)file->kind);
    text_set(out, file->name);
    wire_set_u64(out, file->bytes);
    wire_set_u64(out, file->header_bytes);
    wire_set_bytes(out, file->digest, hash_bytes(manifest->algorithm));
}

static void rank_set(struct wire_out *out, const struct manifest_rank *rank)
{
    uint32_t words[RANK_ID_WORDS];

    rank_id_words(&rank->id, words);
    for (unsigned i = 0; i < RANK_ID_WORDS; i++)
        wire_set_u32(out, words[i]);
    wire_set_u32(out, rank->tensor_count);
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];

        tensor_facts_set(out, tensor);
        wire_set_u32(out, tensor->order);
        wire_set_u32(out, tensor->file);
        if (tensor->file != MANIFEST_NONE)
            wire_set_u64(out, tensor->file_offset);
    }
}

enum rf_code manifest_encode(const struct manifest *manifest, struct buf *out, struct rf_error *err)
{
    uint64_t bytes = encoded_bytes(manifest);
    uint8_t check[HASH_MAX_BYTES];

    if (bytes > MANIFEST_MAX_BYTES)
        return rf_fail(err, RF_E_INVAL,
                       "manifest: %" PRIu64 " bytes in binary form, allowed are %d", bytes,
                       MANIFEST_MAX_BYTES);
    uint8_t *begin = buf_reserve(out, bytes);
    if (begin == NULL)
        return rf_fail(err, RF_E_NOMEM, "manifest: no memory for its %" PRIu64 " bytes", bytes);

    struct wire_out at = {.at = begin};
    identity_set(&at, manifest);
    for (uint32_t i = 0; i < manifest->file_count; i++)
        file_set(&at, manifest, &manifest->files[i]);
    for (uint32_t i = 0; i < manifest->rank_count; i++)
        rank_set(&at, &manifest->ranks[i]);
    hash_once(HASH_XXH3_128, begin, (size_t)(at.at - begin), check);
    wire_set_bytes(&at, check, MANIFEST_CHECK_BYTES);
    assert(at.at == begin + bytes);
    out->bytes += bytes;
    return RF_OK;
}

/* ---- decoding ---- */

struct decoder {
    struct wire_in in;
    size_t bytes;
    struct manifest *manifest;
    uint64_t tensor_count; /* of all ranks so far */
    struct rf_error *err;
};

static enum rf_code fail_short(const struct decoder *decoder, const char *what)
{
    return rf_fail(decoder->err, RF_E_PROTO, "manifest: its %zu bytes end inside %s",
                   decoder->bytes, what);
}

static enum rf_code fail_memory(const struct decoder *decoder)
{
    return rf_fail(decoder->err, RF_E_NOMEM, "manifest: no memory to decode its %zu bytes",
                   decoder->bytes);
}

/* A text of u16 length, NUL-terminated in the arena. max is below 2^16. */
static enum rf_code text_get(struct decoder *decoder, const char *what, unsigned max,
                             const char **ret_text)
{
    unsigned bytes = wire_get_u16(&decoder->in);
    const uint8_t *text = wire_get_bytes(&decoder->in, bytes);

    if (text == NULL)
        return fail_short(decoder, what);
    if (bytes > max)
        return rf_fail(decoder->err, RF_E_PROTO, "manifest: %s of %u bytes, allowed are %u", what,
                       bytes, max);
    /* A NUL inside would make two names of different bytes the same string. */
    if (memchr(text, 0, bytes) != NULL)
        return rf_fail(decoder->err, RF_E_PROTO, "manifest: %s holds a NUL", what);
    const char *copy = arena_strndup(&decoder->manifest->arena, (const char *)text, bytes);
    if (copy == NULL)
        return fail_memory(decoder);
    *ret_text = copy;
    return RF_OK;
}

static enum rf_code texts_get(struct decoder *decoder)
{
    struct manifest *manifest = decoder->manifest;
    struct {
        const char *what;
        const char **ret;
    } texts[] = {
        {"the model's name", &manifest->model},
        {"the architecture", &manifest->architecture},
        {"the quantisation", &manifest->quantisation},
        {"the layout", &manifest->layout},
    };

    for (unsigned i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        enum rf_code code = text_get(decoder, texts[i].what, MANIFEST_MAX_TEXT_BYTES, texts[i].ret);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

static enum rf_code identity_get(struct decoder *decoder)
{
    struct manifest *manifest = decoder->manifest;
    struct wire_in *in = &decoder->in;

    wire_get_bytes(in,
                   sizeof manifest_magic); /* looked at by envelope_check(), and so is version */
    wire_get_u16(in);
    unsigned flags = wire_get_u16(in);
    manifest->stage = (enum manifest_stage)wire_get_u8(in);
    manifest->algorithm = (enum hash_algorithm)wire_get_u8(in);
    unsigned zero = wire_get_u16(in);
    manifest->chunk_bytes = wire_get_u32(in);
    manifest->weight_version = wire_get_u64(in);
    if (in->ok && (flags != 0 || zero != 0))
        return rf_fail(decoder->err, RF_E_PROTO, "manifest: reserved fields are %#x and %#x, not 0",
                       flags, zero);
    enum rf_code code = texts_get(decoder);
    if (code != RF_OK)
        return code;
    manifest->file_count = wire_get_u32(in);
    manifest->rank_count = wire_get_u32(in);
    if (!in->ok)
        return fail_short(decoder, "its first part");
    return identity_check(manifest, RF_E_PROTO, decoder->err);
}

/* Fails unless count things of at least min_bytes each can be in what is left. */
static enum rf_code count_check(const struct decoder *decoder, const char *what, uint64_t count,
                                uint64_t max, uint64_t min_bytes)
{
    uint64_t left = wire_left(&decoder->in);

    if (count > max)
        return rf_fail(decoder->err, RF_E_PROTO, "manifest: %" PRIu64 " %s, allowed are %" PRIu64,
                       count, what, max);
    if (count > left / min_bytes)
        return rf_fail(decoder->err, RF_E_PROTO,
                       "manifest: %" PRIu64 " %s cannot be in the %" PRIu64 " bytes that are left",
                       count, what, left);
    return RF_OK;
}

static enum rf_code files_get(struct decoder *decoder)
{
    struct manifest *manifest = decoder->manifest;
    unsigned digest_bytes = hash_bytes(manifest->algorithm);
    enum rf_code code = count_check(decoder, "files", manifest->file_count, MANIFEST_MAX_FILES,
                                    FILE_FIXED_BYTES + digest_bytes);

    if (code != RF_OK)
        return code;
    manifest->files = arena_alloc(&manifest->arena, manifest->file_count * sizeof *manifest->files);
    if (manifest->files == NULL)
        return fail_memory(decoder);
    for (uint32_t i = 0; i < manifest->file_count; i++) {
        struct manifest_file *file = &manifest->files[i];

        *file = (struct manifest_file){.kind = (enum manifest_file_kind)wire_get_u8(&decoder->in)};
        code = text_get(decoder, "a file's name", RF_MAX_NAME_BYTES, &file->name);
        if (code != RF_OK)
            return code;
        file->bytes = wire_get_u64(&decoder->in);
        file->header_bytes = wire_get_u64(&decoder->in);
        const uint8_t *digest = wire_get_bytes(&decoder->in, digest_bytes);
        if (digest == NULL)
            return fail_short(decoder, "its files");
        memcpy(file->digest, digest, digest_bytes);
        code = file_check(file, RF_E_PROTO, decoder->err);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

/* `arrays` arrays of ndim dimensions that follow each other; NULL when out of memory or input, the
 * latter shows in in.ok. */
static const uint64_t *dims_get(struct decoder *decoder, unsigned ndim, unsigned arrays)
{
    unsigned count = ndim * arrays;
    struct wire_in in = wire_in_over(wire_get_bytes(&decoder->in, 8 * (uint64_t)count), 0);

    if (!decoder->in.ok)
        return NULL;
    uint64_t *dims = arena_alloc(&decoder->manifest->arena, count * sizeof *dims);
    in.end = in.at + 8 * (size_t)count;
    for (unsigned i = 0; dims != NULL && i < count; i++)
        dims[i] = wire_get_u64(&in);
    return dims;
}

/* What comes before the dimensions. */
static enum rf_code tensor_begin(struct decoder *decoder, struct tensor *tensor,
                                 unsigned *ret_flags)
{
    struct wire_in *in = &decoder->in;

    *tensor = (struct tensor){.alias_of = MANIFEST_NONE};
    tensor->name_bytes = wire_get_u16(in);
    tensor->dtype = (enum rf_dtype)wire_get_u8(in);
    tensor->ndim = wire_get_u8(in);
    unsigned flags = wire_get_u8(in);
    const uint8_t *name = wire_get_bytes(in, tensor->name_bytes);
    if (!in->ok)
        return fail_short(decoder, "a tensor's name");
    tensor->name = arena_strndup(&decoder->manifest->arena, (const char *)name, tensor->name_bytes);
    if (tensor->name == NULL)
        return fail_memory(decoder);
    if (flags > (TENSOR_SHARDED | TENSOR_ALIAS))
        return rf_fail(decoder->err, RF_E_PROTO, "tensor %.*s: flags %#x, allowed are %#x",
                       MANIFEST_SHOWN_NAME, tensor->name, flags, TENSOR_SHARDED | TENSOR_ALIAS);
    if (tensor->ndim > RF_MAX_DIMS)
        return rf_fail(decoder->err, RF_E_PROTO,
                       "tensor %.*s: %" PRIu32 " dimensions, allowed are %d", MANIFEST_SHOWN_NAME,
                       tensor->name, tensor->ndim, RF_MAX_DIMS);
    *ret_flags = flags;
    return RF_OK;
}

static enum rf_code tensor_dims_get(struct decoder *decoder, struct tensor *tensor, bool sharded)
{
    tensor->shape = dims_get(decoder, tensor->ndim, sharded ? 3 : 1);
    if (!decoder->in.ok)
        return fail_short(decoder, "a tensor's shape");
    if (tensor->shape == NULL)
        return fail_memory(decoder);
    tensor->global_shape = tensor->shape;
    if (sharded) {
        tensor->global_shape = tensor->shape + tensor->ndim;
        tensor->slice_start = tensor->shape + 2 * (size_t)tensor->ndim;
    }
    return RF_OK;
}

static enum rf_code tensor_get(struct decoder *decoder, struct tensor *tensor)
{
    struct wire_in *in = &decoder->in;
    unsigned flags = 0;
    enum rf_code code = tensor_begin(decoder, tensor, &flags);
    bool sharded = (flags & TENSOR_SHARDED) != 0;
    bool alias = (flags & TENSOR_ALIAS) != 0;

    if (code == RF_OK)
        code = tensor_dims_get(decoder, tensor, sharded);
    if (code != RF_OK)
        return code;
    if (alias)
        tensor->alias_of = wire_get_u32(in);
    tensor->order = wire_get_u32(in);
    tensor->file = wire_get_u32(in);
    tensor->file_offset = tensor->file != MANIFEST_NONE ? wire_get_u64(in) : 0;
    if (!in->ok)
        return fail_short(decoder, "a tensor");
    code = tensor_check(decoder->manifest, tensor, RF_E_PROTO, decoder->err);
    if (code != RF_OK)
        return code;
    /* There must be one way to say a thing, or equal manifests would have different ids. */
    if (sharded != is_sharded(tensor) || alias != (tensor->alias_of != MANIFEST_NONE))
        return rf_fail(decoder->err, RF_E_PROTO, "tensor %.*s: flags %#x say what is not so",
                       MANIFEST_SHOWN_NAME, tensor->name, flags);
    return RF_OK;
}

static enum rf_code rank_get(struct decoder *decoder, struct manifest_rank *rank)
{
    struct rank_id *id = &rank->id;
    uint32_t *fields[] = {&id->tp, &id->tp_size, &id->pp, &id->pp_size,
                          &id->ep, &id->ep_size, &id->dp, &id->dp_size};

    *rank = (struct manifest_rank){0};
    for (unsigned i = 0; i < sizeof fields / sizeof fields[0]; i++)
        *fields[i] = wire_get_u32(&decoder->in);
    id->role = (enum manifest_role)wire_get_u32(&decoder->in);
    uint32_t count = wire_get_u32(&decoder->in);
    if (!decoder->in.ok)
        return fail_short(decoder, "a rank");

    enum rf_code code = count_check(decoder, "tensors", count,
                                    MANIFEST_MAX_TENSORS - decoder->tensor_count, TENSOR_MIN_BYTES);
    if (code != RF_OK)
        return code;
    decoder->tensor_count += count;
    rank->tensors = arena_alloc(&decoder->manifest->arena, (size_t)count * sizeof *rank->tensors);
    if (rank->tensors == NULL)
        return fail_memory(decoder);
    rank->tensor_count = count;
    for (uint32_t i = 0; i < count && code == RF_OK; i++)
        code = tensor_get(decoder, &rank->tensors[i]);
    return code;
}

static enum rf_code ranks_get(struct decoder *decoder)
{
    struct manifest *manifest = decoder->manifest;
    enum rf_code code =
        count_check(decoder, "ranks", manifest->rank_count, MANIFEST_MAX_RANKS, RANK_FIXED_BYTES);

    if (code != RF_OK)
        return code;
    manifest->ranks = arena_alloc(&manifest->arena, manifest->rank_count * sizeof *manifest->ranks);
    if (manifest->ranks == NULL)
        return fail_memory(decoder);
    for (uint32_t i = 0; i < manifest->rank_count && code == RF_OK; i++)
        code = rank_get(decoder, &manifest->ranks[i]);
    if (code == RF_OK && wire_left(&decoder->in) != 0)
        return rf_fail(decoder->err, RF_E_PROTO,
                       "manifest: %" PRIu64 " bytes more than its counts explain",
                       wire_left(&decoder->in));
    return code;
}

/* Whether these bytes are a manifest, of our version, and arrived whole. */
static enum rf_code envelope_check(const uint8_t *data, size_t bytes, struct rf_error *err)
{
    struct wire_in in = wire_in_over(data, bytes);
    const uint8_t *magic = wire_get_bytes(&in, sizeof manifest_magic);
    unsigned version = wire_get_u16(&in);
    uint8_t check[HASH_MAX_BYTES];

    if (!in.ok || memcmp(magic, manifest_magic, sizeof manifest_magic) != 0)
        return rf_fail(err, RF_E_PROTO,
                       "these %zu bytes are no manifest: they do not begin with RFMF", bytes);
    if (version != MANIFEST_VERSION)
        return rf_fail(
            err, RF_E_PROTO,
            "manifest: version %u, this rfork reads %d: use the same version on both sides",
            version, MANIFEST_VERSION);
    if (bytes > MANIFEST_MAX_BYTES)
        return rf_fail(err, RF_E_PROTO, "manifest: %zu bytes, allowed are %d", bytes,
                       MANIFEST_MAX_BYTES);
    if (bytes < IDENTITY_FIXED_BYTES + MANIFEST_CHECK_BYTES)
        return rf_fail(err, RF_E_PROTO, "manifest: cut short to %zu bytes", bytes);
    hash_once(HASH_XXH3_128, data, bytes - MANIFEST_CHECK_BYTES, check);
    if (memcmp(check, data + bytes - MANIFEST_CHECK_BYTES, MANIFEST_CHECK_BYTES) != 0)
        return rf_fail(err, RF_E_PROTO,
                       "manifest: its %zu bytes do not match the check at their end: cut short or "
                       "damaged on the way; fetch it again",
                       bytes);
    return RF_OK;
}

enum rf_code manifest_decode(const uint8_t *data, size_t bytes, struct manifest **ret_manifest,
                             struct rf_error *err)
{
    enum rf_code code = envelope_check(data, bytes, err);

    if (code != RF_OK)
        return code;
    struct decoder decoder = {
        .in = wire_in_over(data, bytes - MANIFEST_CHECK_BYTES),
        .bytes = bytes,
        .manifest = manifest_alloc(),
        .err = err,
    };
    if (decoder.manifest == NULL)
        return fail_memory(&decoder);
    code = identity_get(&decoder);
    if (code == RF_OK)
        code = files_get(&decoder);
    if (code == RF_OK)
        code = ranks_get(&decoder);
    if (code == RF_OK)
        code = manifest_settle(decoder.manifest, RF_E_PROTO, err);
    if (code != RF_OK) {
        manifest_unref(decoder.manifest);
        return code;
    }
    manifest_set_id(decoder.manifest, data, bytes);
    *ret_manifest = decoder.manifest;
    return RF_OK;
}
