/* The binary form of a manifest: what survives it, and what a peer may try. */
#include "base/rand.h"
#include "util/bytes.h"
#include "util/golden.h"
#include "util/manifests.h"
#include "wire/wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void manifest_survives_the_wire(void **state)
{
    (void)state;
    struct manifest *sent = manifest_of_everything();
    struct manifest *got = NULL;
    struct rf_error err = {0};
    BUF_AUTO struct buf raw = {0};
    BUF_AUTO struct buf again = {0};

    assert_int_equal(manifest_encode(sent, &raw, NULL), RF_OK);
    golden_check("manifest_v1.bin", raw.data, raw.bytes);
    if (manifest_decode(raw.data, raw.bytes, &got, &err) != RF_OK)
        fail_msg("%s", err.text);
    assert_same_manifest(sent, got);
    assert_int_equal(manifest_encode(got, &again, NULL), RF_OK);
    assert_int_equal(again.bytes, raw.bytes);
    assert_memory_equal(again.data, raw.data, raw.bytes);
    manifest_unref(sent);
    manifest_unref(got);
}

static void sha256_manifest_survives_the_wire(void **state)
{
    (void)state;
    const struct manifest_identity identity = {
        .model = "m", .algorithm = HASH_SHA256, .stage = STAGE_PROCESSED};
    struct manifest_builder *builder = manifest_builder_create(&identity, NULL);
    struct manifest *got = NULL;
    BUF_AUTO struct buf raw = {0};

    add_file(builder, "config.json", FILE_SIDE, 5, 0);
    add_rank(builder, &whole_rank);
    struct manifest *sent = built(builder);
    assert_int_equal(manifest_encode(sent, &raw, NULL), RF_OK);
    assert_int_equal(manifest_decode(raw.data, raw.bytes, &got, NULL), RF_OK);
    assert_same_manifest(sent, got);
    manifest_unref(sent);
    manifest_unref(got);
}

static void released_manifest_is_still_read(void **state)
{
    (void)state;
    size_t bytes = 0;
    uint8_t *raw = golden_read("manifest_v1.bin", &bytes);
    struct manifest *expected = manifest_of_everything();
    struct manifest *got = NULL;

    assert_int_equal(manifest_decode(raw, bytes, &got, NULL), RF_OK);
    assert_same_manifest(expected, got);
    manifest_unref(got);
    manifest_unref(expected);
    free(raw);
}

/* ---- damage ---- */

static void truncated_manifest_is_refused(void **state)
{
    (void)state;
    struct manifest *manifest = manifest_of_everything();
    struct manifest *got = NULL;
    BUF_AUTO struct buf raw = {0};

    assert_int_equal(manifest_encode(manifest, &raw, NULL), RF_OK);
    for (size_t bytes = 0; bytes < raw.bytes; bytes++) {
        uint8_t *cut = exact_copy(raw.data, bytes);
        assert_int_equal(manifest_decode(cut, bytes, &got, NULL), RF_E_PROTO);
        free(cut);
    }
    assert_null(got);
    manifest_unref(manifest);
}

static void every_flipped_bit_is_noticed(void **state)
{
    (void)state;
    struct manifest *manifest = manifest_of_everything();
    struct manifest *got = NULL;
    BUF_AUTO struct buf raw = {0};

    assert_int_equal(manifest_encode(manifest, &raw, NULL), RF_OK);
    for (size_t bit = 0; bit < raw.bytes * 8; bit++) {
        raw.data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        assert_int_equal(manifest_decode(raw.data, raw.bytes, &got, NULL), RF_E_PROTO);
        raw.data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    manifest_unref(manifest);
}

static void another_version_is_named(void **state)
{
    (void)state;
    struct manifest *manifest = manifest_of_everything();
    struct manifest *got = NULL;
    struct rf_error err = {0};
    BUF_AUTO struct buf raw = {0};

    assert_int_equal(manifest_encode(manifest, &raw, NULL), RF_OK);
    raw.data[4] = 9;
    assert_int_equal(manifest_decode(raw.data, raw.bytes, &got, &err), RF_E_PROTO);
    assert_says(&err, "version 9, this rfork reads 1");
    manifest_unref(manifest);
}

/* The check at the end is no secret: a liar makes it fit. */
static void seal(struct buf *raw)
{
    uint8_t check[HASH_MAX_BYTES];

    hash_once(HASH_XXH3_128, raw->data, raw->bytes, check);
    buf_append(raw, check, MANIFEST_CHECK_BYTES);
}

static void cut_within_a_seal_is_refused(void **state)
{
    (void)state;
    struct manifest *manifest = manifest_of_everything();
    struct manifest *got = NULL;
    BUF_AUTO struct buf raw = {0};

    assert_int_equal(manifest_encode(manifest, &raw, NULL), RF_OK);
    size_t content = raw.bytes - MANIFEST_CHECK_BYTES;
    for (size_t bytes = 0; bytes < content; bytes++) {
        BUF_AUTO struct buf cut = {0};
        buf_append(&cut, raw.data, bytes);
        seal(&cut);
        uint8_t *copy = exact_copy(cut.data, cut.bytes);
        assert_int_equal(manifest_decode(copy, cut.bytes, &got, NULL), RF_E_PROTO);
        free(copy);
    }
    manifest_unref(manifest);
}

/* Whatever is sent, it is refused, or it is a manifest whose one encoding it is. */
static void damage_within_a_seal_is_refused_or_harmless(void **state)
{
    (void)state;
    struct manifest *manifest = manifest_of_everything();
    struct rand_seq seq = {3};
    BUF_AUTO struct buf raw = {0};
    unsigned accepted = 0;

    assert_int_equal(manifest_encode(manifest, &raw, NULL), RF_OK);
    raw.bytes -= MANIFEST_CHECK_BYTES;
    for (unsigned round = 0; round < 20000; round++) {
        struct manifest *got = NULL;
        BUF_AUTO struct buf bad = {0};
        BUF_AUTO struct buf again = {0};

        buf_append(&bad, raw.data, raw.bytes);
        for (uint64_t n = rand_below(&seq, 3) + 1; n > 0; n--)
            bad.data[rand_below(&seq, raw.bytes)] = (uint8_t)rand_next(&seq);
        seal(&bad);
        enum rf_code code = manifest_decode(bad.data, bad.bytes, &got, NULL);
        if (code != RF_OK) {
            assert_int_equal(code, RF_E_PROTO);
            continue;
        }
        accepted++;
        assert_int_equal(manifest_encode(got, &again, NULL), RF_OK);
        assert_int_equal(again.bytes, bad.bytes);
        assert_memory_equal(again.data, bad.data, bad.bytes);
        manifest_unref(got);
    }
    assert_true(accepted > 0); /* digests and names may be anything */
    manifest_unref(manifest);
}

/* ---- lies ---- */

/* What a liar writes by hand: an honest beginning of one file and the counts that follow. */
static void put_identity(struct buf *out, uint32_t file_count, uint32_t rank_count)
{
    buf_append(out, "RFMF", 4);
    wire_put_u16(out, MANIFEST_VERSION);
    wire_put_u16(out, 0);
    wire_put_u8(out, STAGE_CHECKPOINT);
    wire_put_u8(out, HASH_XXH3_128);
    wire_put_u16(out, 0);
    wire_put_u32(out, MANIFEST_MIN_CHUNK_BYTES);
    wire_put_u64(out, 0);
    for (unsigned i = 0; i < 4; i++)
        wire_put_u16(out, 0); /* no texts */
    wire_put_u32(out, file_count);
    wire_put_u32(out, 0); /* no sources */
    wire_put_u32(out, rank_count);
}

static void put_rank(struct buf *out, uint32_t tensor_count)
{
    for (unsigned i = 0; i < 4; i++) {
        wire_put_u32(out, 0);
        wire_put_u32(out, 1);
    }
    wire_put_u32(out, ROLE_TARGET);
    wire_put_u32(out, tensor_count);
}

/* A tensor of four bytes. */
struct raw_tensor {
    const char *name;
    uint8_t flags;
    uint32_t alias_of; /* written if flags has 2 */
    uint32_t order;
};

static void put_tensor(struct buf *out, const struct raw_tensor *tensor)
{
    size_t name_bytes = strlen(tensor->name);

    wire_put_u16(out, (uint16_t)name_bytes);
    wire_put_u8(out, RF_DTYPE_U8);
    wire_put_u8(out, 1);
    wire_put_u8(out, tensor->flags);
    buf_append(out, tensor->name, name_bytes);
    wire_put_u64(out, 4);
    if ((tensor->flags & 1) != 0) {
        wire_put_u64(out, 4);
        wire_put_u64(out, 0);
    }
    if ((tensor->flags & 2) != 0)
        wire_put_u32(out, tensor->alias_of);
    wire_put_u32(out, tensor->order);
    wire_put_u32(out, MANIFEST_NONE);
}

static enum rf_code decode_sealed(struct buf *raw, struct rf_error *err)
{
    struct manifest *got = NULL;

    seal(raw);
    enum rf_code code = manifest_decode(raw->data, raw->bytes, &got, err);
    manifest_unref(got);
    return code;
}

static void assert_tensors(const struct raw_tensor *tensors, uint32_t count, const char *words)
{
    struct rf_error err = {0};
    BUF_AUTO struct buf raw = {0};

    put_identity(&raw, 0, 1);
    put_rank(&raw, count);
    for (uint32_t i = 0; i < count; i++)
        put_tensor(&raw, &tensors[i]);
    enum rf_code code = decode_sealed(&raw, &err);
    assert_int_equal(code, words == NULL ? RF_OK : RF_E_PROTO);
    if (words != NULL)
        assert_says(&err, words);
}

static void tensors_out_of_order_or_twice_are_refused(void **state)
{
    (void)state;
    assert_tensors((struct raw_tensor[]){{"a", 0, 0, 1}, {"b", 0, 0, 0}}, 2, NULL);
    assert_tensors((struct raw_tensor[]){{"b", 0, 0, 1}, {"a", 0, 0, 0}}, 2, "out of place");
    assert_tensors((struct raw_tensor[]){{"ab", 0, 0, 1}, {"a", 0, 0, 0}}, 2, "out of place");
    assert_tensors((struct raw_tensor[]){{"a", 0, 0, 1}, {"a", 0, 0, 0}}, 2, "twice");
    assert_tensors((struct raw_tensor[]){{"a", 0, 0, 1}, {"b", 0, 0, 1}}, 2, "taken");
    assert_tensors((struct raw_tensor[]){{"a", 0, 0, 1}, {"b", 0, 0, 2}}, 2, "place 2 of 2");
}

static void names_that_lie_are_refused(void **state)
{
    (void)state;
    assert_tensors((struct raw_tensor[]){{"", 0, 0, 0}}, 1, NULL);
    assert_tensors((struct raw_tensor[]){{"a\xff", 0, 0, 0}}, 1, "UTF-8");
    assert_tensors((struct raw_tensor[]){{"a\nb", 0, 0, 0}}, 1, NULL);
    assert_tensors((struct raw_tensor[]){{"", 0, 0, 0}, {"", 0, 0, 1}}, 2, "twice");

    BUF_AUTO struct buf raw = {0};
    put_identity(&raw, 0, 1);
    put_rank(&raw, 1);
    put_tensor(&raw, &(struct raw_tensor){"abc", 0, 0, 0});
    uint8_t *name = memmem(raw.data, raw.bytes, "abc", 3);
    name[1] = '\0';
    assert_int_equal(decode_sealed(&raw, NULL), RF_E_PROTO);
}

static void aliases_that_lead_nowhere_are_refused(void **state)
{
    (void)state;
    assert_tensors((struct raw_tensor[]){{"a", 0, 0, 0}, {"b", 2, 0, 1}}, 2, NULL);
    assert_tensors((struct raw_tensor[]){{"a", 2, 1, 0}, {"b", 0, 0, 1}}, 2, NULL);
    assert_tensors((struct raw_tensor[]){{"a", 0, 0, 0}, {"b", 2, 1, 1}}, 2, "alias itself");
    assert_tensors((struct raw_tensor[]){{"a", 2, 1, 0}, {"b", 2, 0, 1}}, 2, "alias itself");
    assert_tensors((struct raw_tensor[]){{"a", 0, 0, 0}, {"b", 2, 2, 1}}, 2, "tensor 2 of 2");
    assert_tensors((struct raw_tensor[]){{"a", 0, 0, 0}, {"b", 2, UINT32_MAX, 1}}, 2, "flags");
}

static void there_is_one_way_to_say_a_thing(void **state)
{
    (void)state;
    assert_tensors((struct raw_tensor[]){{"a", 1, 0, 0}}, 1, "say what is not so");
    assert_tensors((struct raw_tensor[]){{"a", 8, 0, 0}}, 1, "flags 0x8");
    assert_tensors((struct raw_tensor[]){{"a", 0x80, 0, 0}}, 1, "flags 0x80");
    /* flag 4 and then a count of 0 parts, where order would be */
    assert_tensors((struct raw_tensor[]){{"a", 4, 0, 0}}, 1, "end inside a tensor");

    struct rf_error err = {0};
    BUF_AUTO struct buf raw = {0};
    put_identity(&raw, 0, 1);
    put_rank(&raw, 0);
    wire_put_u8(&raw, 0);
    assert_int_equal(decode_sealed(&raw, &err), RF_E_PROTO);
    assert_says(&err, "1 bytes more");
}

/* A source of 2 x 3 bytes. */
static void put_source(struct buf *out, const char *name, uint32_t file)
{
    wire_put_u16(out, (uint16_t)strlen(name));
    wire_put_u8(out, RF_DTYPE_U8);
    wire_put_u8(out, 2);
    buf_append(out, name, strlen(name));
    wire_put_u64(out, 2);
    wire_put_u64(out, 3);
    wire_put_u32(out, file);
}

/* An identity that announces sources. */
static void put_identity_of_sources(struct buf *out, uint32_t source_count)
{
    put_identity(out, 0, 1);
    wire_put_uint(out->data + out->bytes - 8, source_count, 4);
}

/* One tensor of four bytes that is made of these parts. */
static void assert_parts_said(const struct part *parts, uint32_t count, uint32_t said,
                              const char *words)
{
    struct rf_error err = {0};
    BUF_AUTO struct buf raw = {0};
    BUF_AUTO struct buf tensor = {0};

    put_identity_of_sources(&raw, 1);
    put_source(&raw, "src", MANIFEST_NONE);
    put_rank(&raw, 1);
    put_tensor(&tensor, &(struct raw_tensor){"a", 4, 0, 0});
    buf_append(&raw, tensor.data, tensor.bytes - 8);
    wire_put_u32(&raw, said);
    for (uint32_t i = 0; i < count; i++) {
        wire_put_u32(&raw, parts[i].source);
        wire_put_u8(&raw, (uint8_t)parts[i].axis);
        wire_put_u64(&raw, parts[i].start);
        wire_put_u64(&raw, parts[i].count);
    }
    buf_append(&raw, tensor.data + tensor.bytes - 8, 8);
    enum rf_code code = decode_sealed(&raw, &err);
    if (words != NULL)
        assert_says(&err, words);
    assert_int_equal(code, words == NULL ? RF_OK : RF_E_PROTO);
}

static void assert_parts(const struct part *parts, uint32_t count, const char *words)
{
    assert_parts_said(parts, count, count, words);
}

static void parts_that_lie_are_refused(void **state)
{
    (void)state;
    const struct part row = {.source = 0, .axis = 0, .start = 1, .count = 1};
    const struct part column = {.source = 0, .axis = 1, .start = 1, .count = 2};
    const struct part zero = {.source = MANIFEST_NONE, .count = 1};

    assert_parts(&column, 1, NULL);
    assert_parts((struct part[]){row, zero}, 2, NULL);
    assert_parts((struct part[]){zero, row}, 2, NULL);
    assert_parts((struct part[]){{.source = MANIFEST_NONE, .count = 4}}, 1, NULL);
    assert_parts(&row, 0, "say what is not so");
    assert_parts(&row, 1, "only 3 bytes of its 4");
    assert_parts((struct part[]){row, row}, 2, "more than it has room for");
    assert_parts((struct part[]){column, {.source = MANIFEST_NONE}}, 2, "has no bytes");
    assert_parts((struct part[]){{.source = 1, .count = 1}}, 1, "not there");
    assert_parts((struct part[]){{.axis = 2, .count = 1}}, 1, "axis that is not there");
    assert_parts((struct part[]){{.axis = 1, .start = 2, .count = 2}}, 1, "not inside the 3");
    assert_parts((struct part[]){{.axis = 1, .start = UINT64_MAX, .count = 2}}, 1, "not inside");
    assert_parts((struct part[]){{.source = MANIFEST_NONE, .start = 1, .count = 4}}, 1,
                 "no constant");
    assert_parts((struct part[]){{.source = MANIFEST_NONE, .axis = 2, .start = 0xbf80, .count = 4}},
                 1, NULL);
    assert_parts((struct part[]){{.source = MANIFEST_NONE, .axis = 2, .count = 4}}, 1,
                 "no constant");
    assert_parts((struct part[]){{.source = MANIFEST_NONE, .axis = 1, .start = 256, .count = 4}}, 1,
                 "no constant");
    assert_parts((struct part[]){{.source = MANIFEST_NONE, .axis = 3, .start = 1, .count = 4}}, 1,
                 "no constant");
    assert_parts((struct part[]){{.source = MANIFEST_NONE, .axis = 9, .start = 1, .count = 9}}, 1,
                 "no constant");
    assert_parts((struct part[]){{.source = MANIFEST_NONE, .count = UINT64_MAX},
                                 {.source = MANIFEST_NONE, .count = 5}},
                 2, "more than");
    assert_parts_said(&row, 1, UINT32_MAX, "parts, allowed are");
    assert_parts_said(&row, 1, 1000000, "parts cannot be in");
}

static void sources_that_lie_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *names[2];
        uint32_t file;
        const char *words;
    } cases[] = {
        {{"a", "b"}, MANIFEST_NONE, NULL},    {{"b", "a"}, MANIFEST_NONE, "out of place"},
        {{"a", "a"}, MANIFEST_NONE, "twice"}, {{"a", "b\xff"}, MANIFEST_NONE, "UTF-8"},
        {{"a", "b"}, 0, "file 0 of 0"},
    };

    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rf_error err = {0};
        BUF_AUTO struct buf raw = {0};

        put_identity_of_sources(&raw, 2);
        put_source(&raw, cases[i].names[0], MANIFEST_NONE);
        put_source(&raw, cases[i].names[1], cases[i].file);
        if (cases[i].file != MANIFEST_NONE)
            wire_put_u64(&raw, 0);
        put_rank(&raw, 0);
        enum rf_code code = decode_sealed(&raw, &err);
        assert_int_equal(code, cases[i].words == NULL ? RF_OK : RF_E_PROTO);
        if (cases[i].words != NULL)
            assert_says(&err, cases[i].words);
    }
}

/* A few bytes must not make us allocate for the millions that they announce. */
static void counts_beyond_the_bytes_are_refused(void **state)
{
    (void)state;
    static const uint32_t counts[][3] = {
        {UINT32_MAX, 1, 0}, {MANIFEST_MAX_FILES, 1, 0},       {1, 1, 0},
        {0, UINT32_MAX, 0}, {0, MANIFEST_MAX_RANKS, 0},       {0, 2, 0},
        {0, 1, UINT32_MAX}, {0, 1, MANIFEST_MAX_TENSORS},     {0, 1, 1},
        {0, 0, 0},          {0, 1, MANIFEST_MAX_TENSORS + 1},
    };

    for (unsigned i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        BUF_AUTO struct buf raw = {0};
        put_identity(&raw, counts[i][0], counts[i][1]);
        put_rank(&raw, counts[i][2]);
        assert_int_equal(decode_sealed(&raw, NULL), RF_E_PROTO);
    }
    for (unsigned i = 1; i <= 3; i++) {
        BUF_AUTO struct buf raw = {0};
        put_identity_of_sources(&raw, i == 1 ? 1 : i == 2 ? MANIFEST_MAX_SOURCES : UINT32_MAX);
        put_rank(&raw, 0);
        assert_int_equal(decode_sealed(&raw, NULL), RF_E_PROTO);
    }
}

static void later_ranks_do_not_count_earlier_tensors(void **state)
{
    (void)state;
    BUF_AUTO struct buf raw = {0};

    put_identity(&raw, 0, 2);
    put_rank(&raw, 3);
    put_tensor(&raw, &(struct raw_tensor){"a", 0, 0, 0});
    put_tensor(&raw, &(struct raw_tensor){"b", 0, 0, 1});
    put_tensor(&raw, &(struct raw_tensor){"c", 0, 0, 2});
    size_t second = raw.bytes;
    put_rank(&raw, 0);
    raw.data[second + 32] = ROLE_DRAFT;
    assert_int_equal(decode_sealed(&raw, NULL), RF_OK);
}

static void sixty_thousand_tensors_survive_the_wire(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);
    struct manifest *got = NULL;
    BUF_AUTO struct buf raw = {0};

    add_rank(builder, &whole_rank);
    for (unsigned i = 0; i < 60000; i++) {
        char name[64];
        snprintf(name, sizeof name, "model.layers.%u.mlp.experts.%u.w", i % 61, i / 61);
        add_tensor(builder, &(struct tensor_spec){
                                .name = name, .dtype = RF_DTYPE_BF16, .ndim = 2, .shape = {2, i}});
    }
    struct manifest *sent = built(builder);
    assert_int_equal(manifest_encode(sent, &raw, NULL), RF_OK);
    assert_int_equal(manifest_decode(raw.data, raw.bytes, &got, NULL), RF_OK);
    assert_same_manifest(sent, got);
    manifest_unref(sent);
    manifest_unref(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(manifest_survives_the_wire),
        cmocka_unit_test(sha256_manifest_survives_the_wire),
        cmocka_unit_test(released_manifest_is_still_read),
        cmocka_unit_test(truncated_manifest_is_refused),
        cmocka_unit_test(every_flipped_bit_is_noticed),
        cmocka_unit_test(another_version_is_named),
        cmocka_unit_test(cut_within_a_seal_is_refused),
        cmocka_unit_test(damage_within_a_seal_is_refused_or_harmless),
        cmocka_unit_test(tensors_out_of_order_or_twice_are_refused),
        cmocka_unit_test(names_that_lie_are_refused),
        cmocka_unit_test(aliases_that_lead_nowhere_are_refused),
        cmocka_unit_test(there_is_one_way_to_say_a_thing),
        cmocka_unit_test(parts_that_lie_are_refused),
        cmocka_unit_test(sources_that_lie_are_refused),
        cmocka_unit_test(counts_beyond_the_bytes_are_refused),
        cmocka_unit_test(later_ranks_do_not_count_earlier_tensors),
        cmocka_unit_test(sixty_thousand_tensors_survive_the_wire),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
