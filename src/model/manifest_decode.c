/* Reading the binary form of a manifest, which may come from anybody. */
#include "model/manifest_internal.h"

#include <inttypes.h>

struct decoder {
    struct wire_in in;
    size_t bytes;
    struct manifest *manifest;
    uint64_t tensor_count; /* of all ranks so far */
    uint64_t part_count;   /* of all tensors so far */
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

    wire_get_bytes(in, MANIFEST_MAGIC_BYTES); /* looked at by envelope_check(), and so is version */
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
    manifest->source_count = wire_get_u32(in);
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
    if (flags > TENSOR_FLAGS)
        return rf_fail(decoder->err, RF_E_PROTO, "tensor %.*s: flags %#x, allowed are %#x",
                       MANIFEST_SHOWN_NAME, tensor->name, flags, TENSOR_FLAGS);
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

/* Reads the parts as they are said; parts_check() comes later. */
static enum rf_code parts_get(struct decoder *decoder, struct tensor *tensor,
                              struct part **ret_parts)
{
    uint32_t count = wire_get_u32(&decoder->in);

    if (!decoder->in.ok)
        return fail_short(decoder, "a tensor");
    enum rf_code code =
        count_check(decoder, "parts", count, MANIFEST_MAX_PARTS - decoder->part_count, PART_BYTES);
    if (code != RF_OK)
        return code;
    decoder->part_count += count;
    struct part *parts =
        arena_alloc(&decoder->manifest->arena, (size_t)count * sizeof *tensor->parts);
    if (parts == NULL)
        return fail_memory(decoder);
    for (uint32_t i = 0; i < count; i++) {
        parts[i] = (struct part){.source = wire_get_u32(&decoder->in)};
        parts[i].axis = wire_get_u8(&decoder->in);
        parts[i].start = wire_get_u64(&decoder->in);
        parts[i].count = wire_get_u64(&decoder->in);
    }
    tensor->parts = parts;
    tensor->part_count = count;
    *ret_parts = parts;
    return RF_OK;
}

static enum rf_code tensor_get(struct decoder *decoder, struct tensor *tensor)
{
    struct wire_in *in = &decoder->in;
    struct part *parts = NULL;
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
    if ((flags & TENSOR_PARTS) != 0)
        code = parts_get(decoder, tensor, &parts);
    if (code != RF_OK)
        return code;
    tensor->order = wire_get_u32(in);
    tensor->file = wire_get_u32(in);
    tensor->file_offset = tensor->file != MANIFEST_NONE ? wire_get_u64(in) : 0;
    if (!in->ok)
        return fail_short(decoder, "a tensor");
    code = tensor_check(decoder->manifest, tensor, RF_E_PROTO, decoder->err);
    if (code == RF_OK && parts != NULL)
        code = parts_check(decoder->manifest, tensor, parts, RF_E_PROTO, decoder->err);
    if (code != RF_OK)
        return code;
    /* There must be one way to say a thing, or equal manifests would have different ids. */
    if (sharded != (tensor->global_shape != tensor->shape) ||
        alias != (tensor->alias_of != MANIFEST_NONE) ||
        ((flags & TENSOR_PARTS) != 0) != (tensor->part_count > 0))
        return rf_fail(decoder->err, RF_E_PROTO, "tensor %.*s: flags %#x say what is not so",
                       MANIFEST_SHOWN_NAME, tensor->name, flags);
    return RF_OK;
}

static enum rf_code source_get(struct decoder *decoder, struct manifest_source *source)
{
    struct wire_in *in = &decoder->in;

    *source = (struct manifest_source){.name_bytes = wire_get_u16(in)};
    source->dtype = (enum rf_dtype)wire_get_u8(in);
    source->ndim = wire_get_u8(in);
    const uint8_t *name = wire_get_bytes(in, source->name_bytes);
    if (!in->ok)
        return fail_short(decoder, "a source's name");
    source->name = arena_strndup(&decoder->manifest->arena, (const char *)name, source->name_bytes);
    if (source->name == NULL)
        return fail_memory(decoder);
    source->shape = dims_get(decoder, source->ndim, 1);
    source->file = wire_get_u32(in);
    source->file_offset = source->file != MANIFEST_NONE ? wire_get_u64(in) : 0;
    if (!in->ok)
        return fail_short(decoder, "a source");
    if (source->shape == NULL)
        return fail_memory(decoder);
    return source_check(decoder->manifest, source, RF_E_PROTO, decoder->err);
}

static enum rf_code sources_get(struct decoder *decoder)
{
    struct manifest *manifest = decoder->manifest;
    enum rf_code code = count_check(decoder, "sources", manifest->source_count,
                                    MANIFEST_MAX_SOURCES, SOURCE_FIXED_BYTES + SOURCE_PLACE_BYTES);

    if (code != RF_OK)
        return code;
    manifest->sources =
        arena_alloc(&manifest->arena, manifest->source_count * sizeof *manifest->sources);
    if (manifest->sources == NULL)
        return fail_memory(decoder);
    for (uint32_t i = 0; i < manifest->source_count && code == RF_OK; i++)
        code = source_get(decoder, &manifest->sources[i]);
    return code;
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
    const uint8_t *magic = wire_get_bytes(&in, MANIFEST_MAGIC_BYTES);
    unsigned version = wire_get_u16(&in);
    uint8_t check[HASH_MAX_BYTES];

    if (!in.ok || memcmp(magic, MANIFEST_MAGIC, MANIFEST_MAGIC_BYTES) != 0)
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
        code = sources_get(&decoder);
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
