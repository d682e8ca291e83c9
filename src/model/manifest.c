#include "model/manifest.h"

#include "base/utf8.h"
#include "model/manifest_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

/* The public part is handed out; the count stays here. */
struct manifest_box {
    struct manifest manifest;
    atomic_uint refs;
};

static struct manifest_box *box_of(struct manifest *manifest)
{
    return (struct manifest_box *)((char *)manifest - offsetof(struct manifest_box, manifest));
}

struct manifest *manifest_alloc(void)
{
    struct manifest_box *box = calloc(1, sizeof *box);

    if (box == NULL)
        return NULL;
    atomic_init(&box->refs, 1);
    return &box->manifest;
}

struct manifest *manifest_ref(struct manifest *manifest)
{
    /* relaxed: whoever has a reference may give one on; nothing is published by it */
    atomic_fetch_add_explicit(&box_of(manifest)->refs, 1, memory_order_relaxed);
    return manifest;
}

void manifest_unref(struct manifest *manifest)
{
    if (manifest == NULL)
        return;

    /* release: our reads come before the free of whoever is last; acquire pairs with the others'
     * release */
    struct manifest_box *box = box_of(manifest);
    if (atomic_fetch_sub_explicit(&box->refs, 1, memory_order_acq_rel) != 1)
        return;
    arena_free(&manifest->arena);
    free(box);
}

int name_compare(const char *a, uint32_t a_bytes, const char *b, uint32_t b_bytes)
{
    uint32_t common = a_bytes < b_bytes ? a_bytes : b_bytes;
    int order = memcmp(a, b, common);

    if (order != 0)
        return order;
    return a_bytes < b_bytes ? -1 : a_bytes > b_bytes;
}

int tensor_name_compare(const struct tensor *a, const struct tensor *b)
{
    return name_compare(a->name, a->name_bytes, b->name, b->name_bytes);
}

const struct tensor *manifest_find(const struct manifest_rank *rank, const char *name)
{
    struct tensor wanted = {.name = name};
    size_t bytes = strnlen(name, RF_MAX_NAME_BYTES + 1);
    uint32_t low = 0;
    uint32_t high = rank->tensor_count;

    wanted.name_bytes = (uint32_t)bytes;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = tensor_name_compare(&wanted, &rank->tensors[middle]);

        if (order == 0)
            return &rank->tensors[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

uint32_t manifest_tensor_at(const struct manifest_rank *rank, uint64_t stream_offset)
{
    uint32_t low = 0;
    uint32_t high = rank->placed_count;

    if (stream_offset >= rank->stream_bytes)
        return MANIFEST_NONE;
    /* The last one that begins at or before the offset; the first begins at 0. */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        if (rank->tensors[rank->placed[middle]].stream_offset <= stream_offset)
            low = middle;
        else
            high = middle;
    }
    return rank->placed[low];
}

uint64_t manifest_total_bytes(const struct manifest *manifest)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < manifest->rank_count; i++)
        total += manifest->ranks[i].stream_bytes;
    return total;
}

uint64_t manifest_chunk_count(const struct manifest *manifest, uint32_t rank)
{
    uint64_t bytes = manifest->ranks[rank].stream_bytes;

    return bytes / manifest->chunk_bytes + (bytes % manifest->chunk_bytes != 0);
}

uint64_t manifest_chunk_size(const struct manifest *manifest, uint32_t rank, uint64_t chunk)
{
    assert(chunk < manifest_chunk_count(manifest, rank));
    uint64_t left = manifest->ranks[rank].stream_bytes - chunk * manifest->chunk_bytes;

    return left < manifest->chunk_bytes ? left : manifest->chunk_bytes;
}

/* ---- ranks ---- */

void rank_id_words(const struct rank_id *id, uint32_t ret_words[RANK_ID_WORDS])
{
    const uint32_t words[RANK_ID_WORDS] = {
        id->tp,      id->tp_size, id->pp,      id->pp_size, id->ep,
        id->ep_size, id->dp,      id->dp_size, id->role,
    };

    memcpy(ret_words, words, sizeof words);
}

int rank_id_compare(const struct rank_id *a, const struct rank_id *b)
{
    uint32_t words_a[RANK_ID_WORDS];
    uint32_t words_b[RANK_ID_WORDS];

    rank_id_words(a, words_a);
    rank_id_words(b, words_b);
    for (unsigned i = 0; i < RANK_ID_WORDS; i++) {
        if (words_a[i] != words_b[i])
            return words_a[i] < words_b[i] ? -1 : 1;
    }
    return 0;
}

const char *rank_id_text(const struct rank_id *id, char out[64])
{
    const struct {
        const char *axis;
        uint32_t at;
        uint32_t size;
    } axes[] = {
        {"tp", id->tp, id->tp_size},
        {"pp", id->pp, id->pp_size},
        {"ep", id->ep, id->ep_size},
        {"dp", id->dp, id->dp_size},
    };
    size_t used = 0;

    out[0] = '\0';
    for (unsigned i = 0; i < sizeof axes / sizeof axes[0] && used < 64; i++) {
        if (axes[i].size != 1)
            used += (size_t)snprintf(out + used, 64 - used, "%s%s%" PRIu32 "/%" PRIu32,
                                     used > 0 ? "," : "", axes[i].axis, axes[i].at, axes[i].size);
    }
    if (used == 0)
        used += (size_t)snprintf(out, 64, "tp0/1");
    if (id->role == ROLE_DRAFT && used < 64)
        snprintf(out + used, 64 - used, ",draft");
    return out;
}

/* ---- text ---- */

/* Valid UTF-8 without NUL; control characters only if they are let through. */
static bool text_ok(const char *text, size_t bytes, bool controls)
{
    const uint64_t ones = UINT64_C(0x0101010101010101);
    const uint8_t *at = (const uint8_t *)text;
    const uint8_t *end = bytes > 0 ? at + bytes : at;

    while (at < end) {
        uint64_t word;

        /* Names are printable ASCII nearly always: eight bytes at once, none of them below 0x20,
         * 0x7f, or above. A borrow can only make us look closer, never overlook. */
        if (end - at >= 8) {
            memcpy(&word, at, sizeof word);
            uint64_t del = word ^ (ones * 0x7f);
            if ((((word - ones * 0x20) | word | (del - ones)) & (ones * 0x80)) == 0) {
                at += 8;
                continue;
            }
        }
        uint32_t character = 0;
        size_t taken = utf8_decode(at, (size_t)(end - at), &character);
        bool control = character < 0x20 || (character >= 0x7f && character < 0xa0);
        if (taken == 0 || character == 0 || (control && !controls))
            return false;
        at += taken;
    }
    return true;
}

bool manifest_text_ok(const char *text, size_t bytes)
{
    return text_ok(text, bytes, false);
}

bool manifest_name_ok(const char *name, size_t bytes)
{
    return text_ok(name, bytes, true);
}
