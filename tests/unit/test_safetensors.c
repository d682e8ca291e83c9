#include "base/cleanup.h"
#include "format/safetensors.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

/* Parses json as the header of a file with data_bytes bytes of data. The text is copied to
 * memory of exactly its size, so that a sanitizer sees every read beyond it. */
static enum rf_code parse_bytes(const void *json, size_t bytes, uint64_t data_bytes,
                                struct st_header *ret_header, struct rf_error *err)
{
    rf_autofree uint8_t *copy = malloc(bytes > 0 ? bytes : 1);

    assert_non_null(copy);
    memcpy(copy, json, bytes);
    return st_header_parse("m", copy, bytes, 8 + bytes + data_bytes, ret_header, err);
}

static void accept(const char *json, uint64_t data_bytes, struct st_header *ret_header)
{
    struct rf_error err = {.code = RF_OK};

    if (parse_bytes(json, strlen(json), data_bytes, ret_header, &err) != RF_OK)
        fail_msg("%s: refused: %s", json, err.text);
    assert_int_equal(ret_header->data_offset, 8 + strlen(json));
    assert_int_equal(ret_header->data_bytes, data_bytes);
}

static void accept_only(const char *json, uint64_t data_bytes)
{
    struct st_header header;

    accept(json, data_bytes, &header);
    st_header_free(&header);
    assert_null(header.tensors);
    assert_int_equal(header.tensor_count, 0);
}

/* Refused, and the error line starts with `text`. */
static void refuse(const char *json, uint64_t data_bytes, const char *text)
{
    struct st_header header = {.data_offset = 4711};
    struct rf_error err = {.code = RF_OK};
    enum rf_code code = parse_bytes(json, strlen(json), data_bytes, &header, &err);

    if (code != RF_E_FORMAT || err.code != RF_E_FORMAT)
        fail_msg("%s: code %d, %s", json, (int)code, err.text);
    if (strncmp(err.text, text, strlen(text)) != 0)
        fail_msg("%s: \"%s\" does not start with \"%s\"", json, err.text, text);
    assert_int_equal(header.data_offset, 4711); /* untouched */
    assert_int_equal(parse_bytes(json, strlen(json), data_bytes, &header, NULL), RF_E_FORMAT);
}

#define TENSOR(fields) "{\"a\":{" fields "}}"
#define FOUR           "\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]"

static void tensors_are_read_with_all_their_fields(void **state)
{
    (void)state;
    struct st_header header;

    accept("{\"__metadata__\":{\"format\":\"pt\",\"\":\"x\"},"
           "\"w.1\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
           "\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[12,16]}}   ",
           16, &header);
    assert_int_equal(header.tensor_count, 2);
    assert_string_equal(header.tensors[0].name, "w.1");
    assert_int_equal(header.tensors[0].name_bytes, 3);
    assert_int_equal(header.tensors[0].dtype, RF_DTYPE_BF16);
    assert_int_equal(header.tensors[0].ndim, 2);
    assert_int_equal(header.tensors[0].shape[0], 2);
    assert_int_equal(header.tensors[0].shape[1], 3);
    assert_int_equal(header.tensors[0].offset, 0);
    assert_int_equal(header.tensors[0].bytes, 12);
    assert_string_equal(header.tensors[1].name, "b");
    assert_int_equal(header.tensors[1].ndim, 0);
    assert_int_equal(header.tensors[1].offset, 12);
    assert_int_equal(header.tensors[1].bytes, 4);
    assert_int_equal(header.metadata_count, 2);
    assert_string_equal(header.metadata[0].key, "format");
    assert_string_equal(header.metadata[0].value, "pt");
    assert_string_equal(header.metadata[1].key, "");
    st_header_free(&header);
}

static void every_dtype_is_known(void **state)
{
    (void)state;
    for (int i = 0; i < RF_DTYPE_COUNT; i++) {
        struct st_header header;
        char json[160];
        uint64_t bytes = rf_dtype_bits((enum rf_dtype)i);

        snprintf(json, sizeof(json),
                 "{\"a\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%" PRIu64 "]}}",
                 rf_dtype_name((enum rf_dtype)i), bytes);
        accept(json, bytes, &header);
        assert_int_equal(header.tensors[0].dtype, i);
        st_header_free(&header);
    }
    /* The same dtype again, and another after it: the last one is remembered while reading. */
    accept_only("{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]},"
                "\"b\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[1,2]},"
                "\"c\":{\"dtype\":\"U16\",\"shape\":[],\"data_offsets\":[2,4]}}",
                4);
}

static void tensors_without_bytes_are_accepted(void **state)
{
    (void)state;
    struct st_header header;

    accept_only("{}", 0);
    accept_only("{\"__metadata__\":{}}", 0);
    accept_only("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0);
    accept_only("{\"a\":{\"dtype\":\"F4\",\"shape\":[0,18446744073709551615,3],"
                "\"data_offsets\":[0,0]}}",
                0);
    /* One of no bytes goes before the one that starts where it is, wherever it is listed. */
    accept("{\"z\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]},"
           "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
           "\"y\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]},"
           "\"x\":{\"dtype\":\"U8\",\"shape\":[0,7],\"data_offsets\":[1,1]},"
           "\"end\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]}}",
           2, &header);
    const char *const order[] = {"a", "x", "y", "z", "end"};
    assert_int_equal(header.tensor_count, 5);
    for (int i = 0; i < 5; i++)
        assert_string_equal(header.tensors[i].name, order[i]);
    st_header_free(&header);
}

static void tensors_are_sorted_by_offset(void **state)
{
    (void)state;
    enum { COUNT = 1000 };
    struct buf json BUF_AUTO = {.data = NULL};
    struct st_header header;

    buf_append(&json, "{", 1);
    for (unsigned i = 0; i < COUNT; i++) {
        unsigned at = i * 7 % COUNT * 2; /* 7 and 1000 have no factor in common: each place once */
        buf_printf(&json, "%s\"t%u\":{\"dtype\":\"I16\",\"shape\":[1],\"data_offsets\":[%u,%u]}",
                   i > 0 ? "," : "", at / 2, at, at + 2);
    }
    buf_append(&json, "}", 1);
    accept((const char *)json.data, 2UL * COUNT, &header);
    assert_int_equal(header.tensor_count, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        char name[16];

        snprintf(name, sizeof(name), "t%u", i);
        assert_string_equal(header.tensors[i].name, name);
        assert_int_equal(header.tensors[i].offset, i * 2);
    }
    st_header_free(&header);
}

static void sixty_thousand_tensors_are_read(void **state)
{
    (void)state;
    enum { COUNT = 60000 };
    struct buf json BUF_AUTO = {.data = NULL};
    struct st_header header;
    uint64_t at = 0;

    buf_append(&json, "{", 1);
    for (unsigned i = 0; i < COUNT; i++) {
        buf_printf(&json,
                   "%s\"model.layers.%u.mlp.experts.%u.up_proj.weight\":{\"dtype\":\"BF16\","
                   "\"shape\":[768,2048],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                   i > 0 ? "," : "", i / 512, i % 512, at, at + 3145728);
        at += 3145728;
    }
    buf_append(&json, "}", 1);
    accept((const char *)json.data, at, &header);
    assert_int_equal(header.tensor_count, COUNT);
    assert_string_equal(header.tensors[COUNT - 1].name,
                        "model.layers.117.mlp.experts.95.up_proj.weight");
    assert_int_equal(header.tensors[COUNT - 1].offset, at - 3145728);
    st_header_free(&header);
}

/* What serde makes of JSON that no writer writes; each was tried with the safetensors package
 * 0.8.0. */
static void what_the_reference_accepts_is_accepted(void **state)
{
    (void)state;
    accept_only(" {}", 0);
    accept_only("\n\r\t {} \n\r\t", 0);
    accept_only(
        "{ \"a\" : { \"dtype\" : \"U8\" , \"shape\" : [ 4 ] , \"data_offsets\" : [ 0 , 4 ] } }", 4);
    accept_only("{\"a\":[\"U8\",[4],[0,4]]}", 4);
    accept_only("{\"a\":[{\"U8\":null},[4],[0,4]]}", 4);
    accept_only(TENSOR("\"dtype\":{\"U8\":null},\"shape\":[4],\"data_offsets\":[0,4]"), 4);
    accept_only(TENSOR("\"dtype\":\"\\u00558\",\"sh\\u0061pe\":[4],\"data_offsets\":[0,4]"), 4);
    accept_only(TENSOR(FOUR ",\"x\":{\"dtype\":1,\"dtype\":[{},[],[[{\"y\":null}]]]},\"x\":true"),
                4);
    accept_only(
        TENSOR(FOUR ",\"x\":[1,-1,0.5,1e308,1E+5,1e-999,-0,0e999,false,\"\\ud83d\\ude00\"]"), 4);
    accept_only(TENSOR(FOUR ",\"x\":123456789012345678901234567890.123456789012345678901234567890"),
                4);
    accept_only("{\"__metadata__\":null}", 0);
    accept_only("{\"\\u005f_metadata__\":{\"a\":\"b\"}}", 0);
    accept_only("{\"\":{" FOUR "}}", 4);
    accept_only("{\"\x7f\xef\xbf\xbe\xf4\x8f\xbf\xbf\":{" FOUR "}}", 4);
}

static void escapes_are_resolved(void **state)
{
    (void)state;
    struct st_header header;

    accept("{\"a\\/\\b\\f\\n\\r\\t\\\"\\\\\\u00e4\\u20AC\\ud83d\\ude00z\xc3\xa4\":{" FOUR "},"
           "\"__metadata__\":{\"k\\u0000\":\"v\\u0000w\",\"n\":\"1\",\"n\":\"2\"}}",
           4, &header);
    assert_string_equal(header.tensors[0].name,
                        "a/\b\f\n\r\t\"\\\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80z\xc3\xa4");
    assert_int_equal(header.tensors[0].name_bytes, strlen(header.tensors[0].name));
    /* NULs may be in metadata; a key given twice has its last value. */
    assert_int_equal(header.metadata_count, 2);
    assert_int_equal(header.metadata[0].key_bytes, 2);
    assert_memory_equal(header.metadata[0].value, "v\0w", 4);
    assert_int_equal(header.metadata[0].value_bytes, 3);
    assert_string_equal(header.metadata[1].value, "2");
    st_header_free(&header);
}

static void nesting_is_limited_to_127_levels(void **state)
{
    (void)state;
    for (unsigned levels = 120; levels < 140; levels++) {
        struct buf json BUF_AUTO = {.data = NULL};

        buf_printf(&json, "{\"a\":{" FOUR ",\"x\":");
        for (unsigned i = 0; i < levels; i++)
            buf_printf(&json, "%s", i % 2 > 0 ? "{\"k\":" : "[");
        buf_printf(&json, "1");
        for (unsigned i = levels; i > 0; i--)
            buf_printf(&json, "%s", (i - 1) % 2 > 0 ? "}" : "]");
        buf_printf(&json, "}}");
        if (levels + 2 <= 127)
            accept_only((const char *)json.data, 4);
        else
            refuse((const char *)json.data, 4, "m: tensor \"a\": more than 127 levels");
    }
}

struct refusal {
    const char *json;
    uint64_t data_bytes;
    const char *text;
};

static void refuse_all(const struct refusal *refusals, size_t count)
{
    for (size_t i = 0; i < count; i++)
        refuse(refusals[i].json, refusals[i].data_bytes, refusals[i].text);
}

static void what_is_not_json_is_refused(void **state)
{
    (void)state;
    static const struct refusal refusals[] = {
        {"", 0,
         "m: header: the text ends too early (byte 0 of it); the file is damaged or not "
         "safetensors: copy or download it again"},
        {"[]", 0, "m: header: expected '{' (byte 0 of it)"},
        {"null", 0, "m: header: expected '{' (byte 0 of it)"},
        {"\xef\xbb\xbf{}", 0, "m: header: expected '{' (byte 0 of it)"},
        {"{}x", 0, "m: header: text after the end of the JSON value (byte 2 of it)"},
        {"{}\x0b", 0, "m: header: text after the end of the JSON value (byte 2 of it)"},
        {"{,}", 0, "m: header: expected a string (byte 1 of it)"},
        {"{\"a\"}", 0, "m: header: expected ':' after a key (byte 4 of it)"},
        {"{\"a\":{" FOUR "},}", 4, "m: header: expected a string"},
        {"{\"a\":{" FOUR "}\"b\"", 4, "m: header: expected ',' or '}'"},
        {"{\"a\x1f\":{" FOUR "}}", 4, "m: header: control character in a string (byte 3 of it)"},
        {"{\"\\u0061\x1f\":{" FOUR "}}", 4, "m: header: control character in a string"},
        {"{\"a\\a\":{" FOUR "}}", 4, "m: header: unknown escape in a string (byte 3 of it)"},
        {"{\"a\\u00g0\":{" FOUR "}}", 4, "m: header: expected four hexadecimal digits after \\u"},
        {"{\"a\\ud83d\\u00g0\":{" FOUR "}}", 4,
         "m: header: expected four hexadecimal digits after \\u"},
        {"{\"\\ud800\":{" FOUR "}}", 4, "m: header: half a surrogate pair"},
        {"{\"\\ud800\\n\":{" FOUR "}}", 4, "m: header: half a surrogate pair"},
        {"{\"\\udc00\":{" FOUR "}}", 4, "m: header: half a surrogate pair"},
        {"{\"\\ud83d\\u0041\":{" FOUR "}}", 4, "m: header: half a surrogate pair"},
        {"{\"a\xff\":{" FOUR "}}", 4, "m: header: not valid UTF-8 (byte 3 of it)"},
        {"{\"\\na\xc0\x80\":{" FOUR "}}", 4, "m: header: not valid UTF-8 (byte 5 of it)"},
        {"{\"\xed\xa0\x80\":{" FOUR "}}", 4, "m: header: not valid UTF-8"},
        {"{\"\xf4\x90\x80\x80\":{" FOUR "}}", 4, "m: header: not valid UTF-8"},
    };

    refuse_all(refusals, sizeof(refusals) / sizeof(refusals[0]));
}

static void bad_values_of_unknown_fields_are_refused(void **state)
{
    (void)state;
    static const struct refusal refusals[] = {
        {TENSOR(FOUR ",\"x\":1e999"), 4, "m: tensor \"a\": the number is too large (byte 61"},
        {TENSOR(FOUR ",\"x\":1.7976931348623158e308"), 4,
         "m: tensor \"a\": the number is too large"},
        {TENSOR(FOUR ",\"x\":1e99999999999999999999"), 4,
         "m: tensor \"a\": the number is too large"},
        {TENSOR(FOUR ",\"x\":01"), 4, "m: tensor \"a\": a number starts with a needless 0"},
        {TENSOR(FOUR ",\"x\":-01"), 4, "m: tensor \"a\": a number starts with a needless 0"},
        {TENSOR(FOUR ",\"x\":1."), 4, "m: tensor \"a\": expected a digit"},
        {TENSOR(FOUR ",\"x\":1e+"), 4, "m: tensor \"a\": expected a digit"},
        {TENSOR(FOUR ",\"x\":-"), 4, "m: tensor \"a\": expected a digit"},
        {TENSOR(FOUR ",\"x\":+1"), 4, "m: tensor \"a\": expected a value"},
        {TENSOR(FOUR ",\"x\":NaN"), 4, "m: tensor \"a\": expected a value"},
        {TENSOR(FOUR ",\"x\":tru"), 4, "m: tensor \"a\": expected a value"},
        {TENSOR(FOUR ",\"x\":\"\\ud800\""), 4, "m: tensor \"a\": half a surrogate pair"},
        {TENSOR(FOUR ",\"x\":[1,]"), 4, "m: tensor \"a\": expected a value"},
        {TENSOR(FOUR ",\"x\":[1}"), 4, "m: tensor \"a\": expected ',' or ']'"},
        {TENSOR(FOUR ",\"x\":{1:2}"), 4, "m: tensor \"a\": expected a string"},
        {TENSOR(FOUR ",\"x\":{\"y\":1,}"), 4, "m: tensor \"a\": expected a string"},
        {TENSOR(FOUR ",\"x\":"), 4, "m: tensor \"a\": expected a value"},
        {TENSOR(FOUR ","), 4, "m: tensor \"a\": expected a string"},
    };

    refuse_all(refusals, sizeof(refusals) / sizeof(refusals[0]));
}

static void bad_fields_are_refused(void **state)
{
    (void)state;
    static const char number[] = "m: tensor \"a\": expected a whole number from 0 to 2^64 - 1";
    static const char offsets[] = "m: tensor \"a\": expected two data offsets";
    static const struct refusal refusals[] = {
        {"{\"a\":null}", 0,
         "m: tensor \"a\": expected an object with dtype, shape and data_offsets"},
        {TENSOR(""), 0, "m: tensor \"a\": needs dtype, shape and data_offsets"},
        {TENSOR("\"dtype\":\"U8\",\"shape\":[4]"), 4, "m: tensor \"a\": needs dtype, shape and"},
        {"{\"a\":[\"U8\",[4]]}", 4, "m: tensor \"a\": needs dtype, shape and data_offsets"},
        {"{\"a\":[\"U8\",[4],[0,4],1]}", 4, "m: tensor \"a\": expected ']' after data_offsets"},
        {TENSOR(FOUR ",\"dtype\":\"U8\""), 4, "m: tensor \"a\": a field is there twice"},
        {TENSOR(FOUR ",\"shape\":[4]"), 4, "m: tensor \"a\": a field is there twice"},
        {TENSOR(FOUR ",\"data_offsets\":[0,4]"), 4, "m: tensor \"a\": a field is there twice"},
        {TENSOR("\"dtype\":\"u8\",\"shape\":[4],\"data_offsets\":[0,4]"), 4,
         "m: tensor \"a\": unknown dtype \"u8\"; a newer rfork may know it"},
        {TENSOR("\"dtype\":\"\",\"shape\":[4],\"data_offsets\":[0,4]"), 4,
         "m: tensor \"a\": unknown dtype \"\""},
        {TENSOR("\"dtype\":\"a dtype of more than sixteen bytes\",\"shape\":[]"), 4,
         "m: tensor \"a\": unknown dtype \"a dtype of more than sixteen bytes\""},
        {TENSOR("\"dtype\":4"), 4, "m: tensor \"a\": expected a string"},
        {TENSOR("\"dtype\":{}"), 4, "m: tensor \"a\": expected the name of a dtype"},
        {TENSOR("\"dtype\":{\"U8\":{}}"), 4, "m: tensor \"a\": expected null"},
        {TENSOR("\"dtype\":{\"U8\":null,\"U8\":null}"), 4, "m: tensor \"a\": expected '}'"},
        {TENSOR("\"shape\":null"), 4, "m: tensor \"a\": expected a list of dimensions"},
        {TENSOR("\"shape\":[4,]"), 4, number},
        {TENSOR("\"shape\":[4.0]"), 4, number},
        {TENSOR("\"shape\":[4e0]"), 4, number},
        {TENSOR("\"shape\":[-1]"), 4, number},
        {TENSOR("\"shape\":[-0]"), 4, number},
        {TENSOR("\"shape\":[\"4\"]"), 4, number},
        {TENSOR("\"shape\":[18446744073709551616]"), 4, number},
        {TENSOR("\"shape\":[04]"), 4, "m: tensor \"a\": a number starts with a needless 0"},
        {TENSOR("\"shape\":[4 4]"), 4, "m: tensor \"a\": expected ',' or ']'"},
        {TENSOR("\"shape\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"), 4,
         "m: tensor \"a\": more than 32 dimensions"},
        {TENSOR("\"data_offsets\":[0]"), 4, offsets},
        {TENSOR("\"data_offsets\":[0,4,5]"), 4, offsets},
        {TENSOR("\"data_offsets\":{}"), 4, offsets},
        {TENSOR("\"data_offsets\":[0,-4]"), 4, number},
        {TENSOR("\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,0]"), 4,
         "m: tensor \"a\": ends at byte 0 of the data, before it starts at 4; the file is damaged: "
         "copy or download it again"},
    };

    refuse_all(refusals, sizeof(refusals) / sizeof(refusals[0]));
}

static void bad_metadata_is_refused(void **state)
{
    (void)state;
    static const struct refusal refusals[] = {
        {"{\"__metadata__\":[]}", 0, "m: header: __metadata__ is not an object"},
        {"{\"__metadata__\":nul}", 0, "m: header: expected a value"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "m: header: a value of __metadata__ is not a string"},
        {"{\"__metadata__\":{\"a\":null}}", 0,
         "m: header: a value of __metadata__ is not a string"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "m: header: __metadata__ is there twice"},
        {"{\"__metadata__\":null,\"__metadata__\":null}", 0,
         "m: header: __metadata__ is there twice"},
    };

    refuse_all(refusals, sizeof(refusals) / sizeof(refusals[0]));
}

#define U8(name, begin, end, count) \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #count "],\"data_offsets\":[" #begin "," #end "]}"

static void sizes_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    static const struct refusal refusals[] = {
        {TENSOR("\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,10]"), 10,
         "m: tensor \"a\": data offsets 0 to 10 are 10 bytes, but shape [2, 3] of F16 needs 12; "
         "the file is damaged: copy or download it again"},
        {TENSOR("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]"), 1,
         "m: tensor \"a\": shape [3] of F4 is 12 bits, not whole bytes"},
        {TENSOR("\"dtype\":\"F6_E2M3\",\"shape\":[2],\"data_offsets\":[0,1]"), 1,
         "m: tensor \"a\": shape [2] of F6_E2M3 is 12 bits, not whole bytes"},
        {TENSOR("\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]"), 0,
         "m: tensor \"a\": shape [4294967296, 4294967296] of U8 has more than 2^64 bits"},
        {TENSOR("\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]"), 0,
         "m: tensor \"a\": shape [2305843009213693952] of F64 has more than 2^64 bits"},
        {TENSOR("\"dtype\":\"U8\",\"shape\":[18446744073709551615,2,0],\"data_offsets\":[0,0]"), 0,
         "m: tensor \"a\": shape [18446744073709551615, 2, 0] of U8 has more than 2^64 bits"},
        {"{" U8("a", 1, 5, 4) "}", 5,
         "m: tensor \"a\": the first one starts at byte 1 of the data, not at 0; write the file "
         "again without holes"},
        {"{" U8("a", 0, 4, 4) "," U8("b", 5, 9, 4) "}", 9,
         "m: tensor \"b\": starts at byte 5 of the data, but \"a\" before it ends at 4; write the "
         "file again without holes"},
        {"{" U8("a", 0, 4, 4) "," U8("b", 3, 7, 4) "}", 7,
         "m: tensor \"b\": bytes 3 to 7 of the data overlap \"a\", bytes 0 to 4; write the file "
         "again, each tensor with its own bytes"},
        {"{" U8("a", 0, 4, 4) "," U8("b", 0, 4, 4) "}", 4,
         "m: tensor \"b\": bytes 0 to 4 of the data overlap \"a\", bytes 0 to 4"},
        {"{" U8("a", 0, 4, 4) "," U8("b", 2, 2, 0) "}", 4,
         "m: tensor \"b\": bytes 2 to 2 of the data overlap \"a\""},
        {"{" U8("a", 0, 4, 4) "," U8("a", 4, 8, 4) "}", 8,
         "m: tensor \"a\": the name is there twice; names must be unique"},
        {"{" U8("a", 0, 4, 4) "," U8("\\u0061", 0, 4, 4) "}", 4,
         "m: tensor \"a\": the name is there twice; names must be unique"},
        {"{" U8("a", 0, 4, 4) "}", 3,
         "m: the file is truncated: 64 bytes, its header says 65; copy or download it again"},
        {"{" U8("a", 0, 4, 4) "}", 5,
         "m: 1 bytes at the end belong to no tensor: the file has 66 bytes, its header says 65; "
         "copy or download it again"},
        {"{}", 1,
         "m: 1 bytes at the end belong to no tensor: the file has 11 bytes, its header says 10"},
    };

    refuse_all(refusals, sizeof(refusals) / sizeof(refusals[0]));
}

/* The reference adds in 64 bits that wrap; a sum that came round to the file's size would name
 * memory beyond it. */
static void offsets_near_2_to_64_are_refused(void **state)
{
    (void)state;
    struct buf json BUF_AUTO = {.data = NULL};
    uint64_t at = 0;

    buf_append(&json, "{", 1);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t bytes = (UINT64_C(1) << 61) - 1;
        buf_printf(&json,
                   "%s\"t%u\":{\"dtype\":\"U8\",\"shape\":[%" PRIu64 "],\"data_offsets\":[%" PRIu64
                   ",%" PRIu64 "]}",
                   i > 0 ? "," : "", i, bytes, at, at + bytes);
        at += bytes;
    }
    buf_append(&json, "}", 1);
    refuse((const char *)json.data, 0, "m: the file is truncated: ");
}

static void names_beyond_our_limits_are_refused(void **state)
{
    (void)state;
    struct buf json BUF_AUTO = {.data = NULL};
    rf_autofree char *name = malloc(RF_MAX_NAME_BYTES + 2);

    assert_non_null(name);
    memset(name, 'n', RF_MAX_NAME_BYTES + 1);
    name[RF_MAX_NAME_BYTES + 1] = '\0';
    buf_printf(&json, "{\"%s\":{" FOUR "}}", name + 1);
    accept_only((const char *)json.data, 4);
    json.bytes = 0;
    buf_printf(&json, "{\"%s\":{" FOUR "}}", name);
    refuse((const char *)json.data, 4,
           "m: a tensor's name is 4097 bytes long, more than 4096: \"nnn");
    refuse("{\"ab\\u0000c\":{" FOUR "}}", 4, "m: tensor \"ab\": a NUL byte in its name");
}

static void truncated_header_is_refused(void **state)
{
    (void)state;
    static const char json[] =
        "{\"__metadata__\":{\"format\":\"p\\ud83d\\ude00t\"},\"\xc3\xa4\\n\":{\"dtype\":\"U8\","
        "\"shape\":[2,2],\"data_offsets\":[0,4],\"x\":[{\"y\":-1.5e3},null,true]},\"b\":"
        "[{\"F32\":null},[],[4,8]]}";
    struct st_header header;

    accept_only(json, 8);
    for (size_t bytes = 0; bytes < sizeof(json) - 1; bytes++) {
        struct rf_error err = {.code = RF_OK};

        assert_int_equal(parse_bytes(json, bytes, 8, &header, &err), RF_E_FORMAT);
        assert_ptr_equal(strstr(err.text, "m: "), err.text);
    }
}

/* No byte in any place may do harm; what it may do is change a name. */
static void flipped_bytes_do_no_harm(void **state)
{
    (void)state;
    static const char json[] =
        "{\"__metadata__\":{\"a\":\"\\u00e4\"},\"b\":{\"dtype\":\"U8\",\"shape\":[4],"
        "\"data_offsets\":[0,4],\"x\":[1.5e3,{}]}}";
    char copy[sizeof(json)];

    for (size_t at = 0; at < sizeof(json) - 1; at++) {
        for (unsigned value = 0; value < 256; value++) {
            struct st_header header;

            memcpy(copy, json, sizeof(json));
            copy[at] = (char)value;
            if (parse_bytes(copy, sizeof(json) - 1, 4, &header, NULL) != RF_OK)
                continue;
            assert_in_range(header.tensor_count, 0, 1);
            st_header_free(&header);
        }
    }
}

/* ---- files ---- */

static int memory_file(const void *bytes, size_t count)
{
    int fd = memfd_create("st", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, count), count);
    return fd;
}

static void refuse_file(const void *bytes, size_t count, uint64_t file_bytes, const char *text)
{
    rf_autoclose int fd = memory_file(bytes, count);
    struct rf_error err = {.code = RF_OK};
    struct st_header header;

    assert_int_equal(st_header_read("m", fd, file_bytes, &header, &err), RF_E_FORMAT);
    assert_string_equal(err.text, text);
}

static void files_are_read(void **state)
{
    (void)state;
    static const char file[] = "\x3a\0\0\0\0\0\0\0{\"a\":{" FOUR "}}     ABCD";
    rf_autoclose int fd = memory_file(file, sizeof(file) - 1);
    struct rf_error err = {.code = RF_OK};
    struct st_header header;

    assert_int_equal(st_header_read("m", fd, sizeof(file) - 1, &header, &err), RF_OK);
    assert_int_equal(header.data_offset, 66);
    assert_int_equal(header.tensor_count, 1);
    st_header_free(&header);
}

static void files_that_are_cut_short_are_refused(void **state)
{
    (void)state;
    static const char file[] = "\x3a\0\0\0\0\0\0\0{\"a\":{" FOUR "}}     ABCD";

    refuse_file("", 0, 0,
                "m: the file is truncated: 0 bytes, a safetensors file has at least 10; copy or "
                "download it again");
    refuse_file("abcdefg", 7, 7,
                "m: the file is truncated: 7 bytes, a safetensors file has at least 10; copy or "
                "download it again");
    refuse_file(
        file, 20, 20,
        "m: the file is truncated: 20 bytes, its header alone needs 66; copy or download it "
        "again");
    refuse_file(
        file, 68, 68,
        "m: the file is truncated: 68 bytes, its header says 70; copy or download it again");
    refuse_file(
        file, 20, 70,
        "m: the file became shorter while it was read: it ends at byte 20; wait until it is "
        "complete");
    for (size_t bytes = 0; bytes < sizeof(file) - 1; bytes++) {
        rf_autoclose int fd = memory_file(file, bytes);
        struct st_header header;

        assert_int_equal(st_header_read("m", fd, bytes, &header, NULL), RF_E_FORMAT);
    }
}

static void other_files_are_named(void **state)
{
    (void)state;
    refuse_file("version https://git-lfs.github.com/spec/v1\n", 43, 43,
                "m: a Git LFS pointer, not the file itself: run `git lfs pull` in its folder");
    refuse_file("PK\3\4xxxxxxxx", 12, 12,
                "m: a zip archive, as PyTorch writes: convert it to safetensors");
    refuse_file("GGUF\3\0\0\0\1\0\0\0", 12, 12, "m: a GGUF file: convert it to safetensors");
    refuse_file("<!DOCTYPE html>", 15, 15,
                "m: a web page: the download went wrong, download it again");
    refuse_file("some other text", 15, 15,
                "m: not a safetensors file: its first 8 bytes give a header of 7526763062174248819 "
                "bytes, more than 100000000");
}

static void an_unreadable_file_is_a_system_error(void **state)
{
    (void)state;
    struct rf_error err = {.code = RF_OK};
    struct st_header header;

    assert_int_equal(st_header_read("m", -1, 100, &header, &err), RF_E_SYS);
    assert_string_equal(err.text, "m: read 8 bytes at 0: Bad file descriptor");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_read_with_all_their_fields),
        cmocka_unit_test(every_dtype_is_known),
        cmocka_unit_test(tensors_without_bytes_are_accepted),
        cmocka_unit_test(tensors_are_sorted_by_offset),
        cmocka_unit_test(sixty_thousand_tensors_are_read),
        cmocka_unit_test(what_the_reference_accepts_is_accepted),
        cmocka_unit_test(escapes_are_resolved),
        cmocka_unit_test(nesting_is_limited_to_127_levels),
        cmocka_unit_test(what_is_not_json_is_refused),
        cmocka_unit_test(bad_values_of_unknown_fields_are_refused),
        cmocka_unit_test(bad_fields_are_refused),
        cmocka_unit_test(bad_metadata_is_refused),
        cmocka_unit_test(sizes_that_do_not_fit_are_refused),
        cmocka_unit_test(offsets_near_2_to_64_are_refused),
        cmocka_unit_test(names_beyond_our_limits_are_refused),
        cmocka_unit_test(truncated_header_is_refused),
        cmocka_unit_test(flipped_bytes_do_no_harm),
        cmocka_unit_test(files_are_read),
        cmocka_unit_test(files_that_are_cut_short_are_refused),
        cmocka_unit_test(other_files_are_named),
        cmocka_unit_test(an_unreadable_file_is_a_system_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
