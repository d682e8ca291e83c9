#include "base/cleanup.h"
#include "format/folder_index.h"
#include "format/model_folder.h"
#include "util/folder.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmocka.h>

#define INDEX  "model.safetensors.index.json"
#define SHARD1 "model-00001-of-00002.safetensors"
#define SHARD2 "model-00002-of-00002.safetensors"

static const char tensor_a[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";
static const char tensor_b[] = "{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";

static int make_folder(void **state)
{
    *state = folder_make();
    return 0;
}

static int remove_folder(void **state)
{
    folder_remove(*state);
    return 0;
}

static void open_ok(const char *path, struct model_folder *ret_folder)
{
    struct rf_error err = {.code = RF_OK};

    if (model_folder_open(path, ret_folder, &err) != RF_OK)
        fail_msg("%s: %s", path, err.text);
}

/* Opening fails, and the error line is "<folder>" and then `text`. */
static void open_fails(const char *folder, const char *name, enum rf_code code, const char *text)
{
    rf_autofree char *path = name != NULL ? folder_path(folder, name) : strdup(folder);
    struct model_folder opened = {.file_count = 4711};
    struct rf_error err = {.code = RF_OK};

    assert_int_equal(model_folder_open(path, &opened, &err), code);
    assert_int_equal(err.code, code);
    const char *rest = strstr(err.text, folder);
    if (rest == NULL || strncmp(rest + strlen(folder), text, strlen(text)) != 0)
        fail_msg("\"%s\" does not go on with \"%s\" after the folder", err.text, text);
    assert_int_equal(opened.file_count, 4711);
}

static void assert_names(const struct model_folder *folder, const char *const *names)
{
    for (uint32_t i = 0; i < folder->file_count; i++) {
        assert_non_null(names[i]);
        assert_string_equal(folder->files[i].name, names[i]);
    }
    assert_null(names[folder->file_count]);
}

static void put_shards(const char *folder)
{
    folder_put_tensors(folder, SHARD1, tensor_a, 4);
    folder_put_tensors(folder, SHARD2, tensor_b, 4);
    folder_put_text(folder, INDEX,
                    "{\"metadata\":{\"total_size\":8},\"weight_map\":{\"b\":\"" SHARD2
                    "\",\"a\":\"" SHARD1 "\"}}");
}

static void one_file_alone_is_a_model(void **state)
{
    struct model_folder folder;
    rf_autofree char *path = folder_path(*state, "x.safetensors");

    folder_put_tensors(*state, "x.safetensors", tensor_a, 4);
    folder_put_text(*state, "config.json", "{}");
    open_ok(path, &folder);
    assert_names(&folder, (const char *const[]){"x.safetensors", NULL});
    assert_int_equal(folder.weights_count, 1);
    assert_int_equal(folder.weights_bytes, 8 + sizeof(tensor_a) - 1 + 4);
    assert_int_equal(folder.side_bytes, 0);
    assert_int_equal(folder.files[0].header.tensor_count, 1);
    assert_true(folder.files[0].fd >= 0);
    model_folder_close(&folder);
    assert_null(folder.files);
}

static void a_folder_with_model_safetensors_is_a_model(void **state)
{
    struct model_folder folder;
    rf_autofree char *path = folder_path(*state, "//");

    folder_put_tensors(*state, "model.safetensors", tensor_a, 4);
    folder_put_tensors(*state, "other.safetensors", "{}", 0);
    folder_put_text(*state, "tokenizer.json", "{}");
    folder_put_text(*state, "config.json", "{\"x\": 1}");
    folder_put_text(*state, ".gitattributes", "x");
    folder_put_text(*state, "pytorch_model.bin", "x");
    folder_put_text(*state, "pytorch_model.bin.index.json", "x");
    folder_put_text(*state, "model.GGUF", "x");
    folder_put_text(*state, "back\\slash", "x");
    folder_mkdir(*state, "1_Pooling");
    folder_put_text(*state, "1_Pooling/config.json", "12");
    folder_put_text(*state, "1_Pooling/.hidden", "12");
    folder_put_tensors(*state, "1_Pooling/model.safetensors", "{}", 0);
    folder_mkdir(*state, "1_Pooling/deeper");
    folder_put_text(*state, "1_Pooling/deeper/config.json", "12");
    folder_mkdir(*state, ".cache");
    folder_put_text(*state, ".cache/x", "12");
    open_ok(path, &folder);
    assert_string_equal(folder.path, *state);
    assert_names(&folder,
                 (const char *const[]){"model.safetensors", "1_Pooling/config.json", "config.json",
                                       "pytorch_model.bin.index.json", "tokenizer.json", NULL});
    assert_int_equal(folder.weights_count, 1);
    assert_int_equal(folder.side_bytes, 2 + 8 + 1 + 2);
    assert_int_equal(folder.files[1].kind, FOLDER_SIDE);
    assert_int_equal(folder.files[1].fd, -1);
    model_folder_close(&folder);
}

static void shards_are_those_the_index_names(void **state)
{
    struct model_folder folder;

    put_shards(*state);
    folder_put_tensors(*state, "consolidated.safetensors", "{}", 0);
    folder_put_tensors(*state, "model.safetensors", "{}", 0);
    open_ok(*state, &folder);
    assert_names(&folder, (const char *const[]){SHARD1, SHARD2, INDEX, NULL});
    assert_int_equal(folder.weights_count, 2);
    assert_string_equal(folder.files[0].header.tensors[0].name, "a");
    assert_string_equal(folder.files[1].header.tensors[0].name, "b");
    model_folder_close(&folder);
}

static void shards_may_be_in_sub_folders(void **state)
{
    struct model_folder folder;

    folder_mkdir(*state, "transformer");
    folder_put_tensors(*state, "transformer/x.safetensors", tensor_a, 4);
    folder_put_text(*state, INDEX, "{\"weight_map\":{\"a\":\"transformer/x.safetensors\"}}");
    open_ok(*state, &folder);
    assert_names(&folder, (const char *const[]){"transformer/x.safetensors", INDEX, NULL});
    model_folder_close(&folder);
}

static void many_shards_are_read(void **state)
{
    enum { COUNT = 50 };
    struct buf index BUF_AUTO = {.data = NULL};
    struct model_folder folder;

    buf_printf(&index, "{\"weight_map\":{");
    for (unsigned i = COUNT; i > 0; i--) {
        char name[32];
        char json[80];

        snprintf(name, sizeof(name), "m-%02u.safetensors", i);
        snprintf(json, sizeof(json),
                 "{\"t%u\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", i);
        folder_put_tensors(*state, name, json, 1);
        buf_printf(&index, "\"t%u\":\"%s\"%s", i, name, i > 1 ? "," : "}}");
    }
    folder_put(*state, INDEX, index.data, index.bytes);
    open_ok(*state, &folder);
    assert_int_equal(folder.weights_count, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        char name[16];

        snprintf(name, sizeof(name), "t%u", i + 1);
        assert_string_equal(folder.files[i].header.tensors[0].name, name);
    }
    model_folder_close(&folder);
}

/* models--org--name/snapshots/REVISION/FILE -> ../../blobs/DIGEST */
static void a_hugging_face_cache_is_read_through_its_links(void **state)
{
    struct model_folder folder;
    rf_autofree char *path = folder_path(*state, "snapshots/0123");
    rf_autofree char *data = NULL;
    size_t bytes = 0;

    folder_mkdir(*state, "blobs");
    folder_mkdir(*state, "snapshots");
    folder_mkdir(*state, "snapshots/0123");
    folder_put_tensors(*state, "blobs/aaaa", tensor_a, 4);
    folder_put_text(*state, "blobs/bbbb", "{\"x\":1}");
    folder_mkdir(*state, "blobs/folder");
    folder_put_text(*state, "blobs/folder/x.json", "1");
    folder_link(path, "model.safetensors", "../../blobs/aaaa");
    folder_link(path, "config.json", "../../blobs/bbbb");
    folder_link(path, "gone.json", "../../blobs/cccc");
    folder_link(path, "folder", "../../blobs/folder"); /* links to folders are not followed */
    folder_link(path, "loop.json", "loop.json");
    open_ok(path, &folder);
    assert_names(&folder, (const char *const[]){"model.safetensors", "config.json", NULL});
    assert_int_equal(model_folder_read(&folder, &folder.files[1], &data, &bytes, NULL), RF_OK);
    assert_int_equal(bytes, 7);
    assert_string_equal(data, "{\"x\":1}");
    model_folder_close(&folder);
}

static void a_link_to_a_missing_blob_is_refused(void **state)
{
    folder_link(*state, "model.safetensors", "../blobs/aaaa");
    open_fails(
        *state, NULL, RF_E_FORMAT,
        "/model.safetensors: is a link to a file that is not there; download the model again");
}

static void side_files_are_read_again_unless_they_changed(void **state)
{
    struct model_folder folder;
    struct rf_error err = {.code = RF_OK};
    char *data = NULL;
    size_t bytes = 0;

    folder_put_tensors(*state, "model.safetensors", "{}", 0);
    folder_put_text(*state, "config.json", "{\"x\":1}");
    folder_put_text(*state, "empty", "");
    open_ok(*state, &folder);
    assert_int_equal(model_folder_read(&folder, &folder.files[1], &data, &bytes, &err), RF_OK);
    assert_int_equal(bytes, 7);
    assert_string_equal(data, "{\"x\":1}");
    free(data);
    assert_int_equal(model_folder_read(&folder, &folder.files[2], &data, &bytes, &err), RF_OK);
    assert_int_equal(bytes, 0);
    assert_string_equal(data, "");
    free(data);
    assert_int_equal(model_folder_read(&folder, &folder.files[0], &data, &bytes, &err), RF_E_INVAL);
    folder_put_text(*state, "config.json", "{}");
    assert_int_equal(model_folder_read(&folder, &folder.files[1], &data, &bytes, &err),
                     RF_E_CHANGED);
    assert_non_null(strstr(err.text, "/config.json: had 7 bytes when the model was opened, has 2"));
    model_folder_close(&folder);
}

static void a_large_side_file_is_left_out(void **state)
{
    struct model_folder folder;
    rf_autofree char *path = folder_path(*state, "large.json");

    folder_put_tensors(*state, "model.safetensors", "{}", 0);
    folder_put_text(*state, "large.json", "");
    assert_int_equal(truncate(path, FOLDER_MAX_SIDE_BYTES + 1), 0);
    open_ok(*state, &folder);
    assert_int_equal(folder.file_count, 1);
    model_folder_close(&folder);
    assert_int_equal(truncate(path, FOLDER_MAX_SIDE_BYTES), 0);
    open_ok(*state, &folder);
    assert_int_equal(folder.file_count, 2);
    model_folder_close(&folder);
}

static void side_files_alone_are_a_folder_where_that_is_enough(void **state)
{
    struct model_folder folder;
    struct rf_error err = {.code = RF_OK};

    folder_put_text(*state, "config.json", "{}");
    assert_int_equal(model_folder_open(*state, &folder, &err), RF_E_FORMAT);
    assert_int_equal(model_folder_open_any(*state, &folder, &err), RF_OK);
    assert_int_equal(folder.weights_count, 0);
    assert_names(&folder, (const char *const[]){"config.json", NULL});
    model_folder_close(&folder);
    /* Half a download is no such folder. */
    folder_put_text(*state, "model.safetensors.index.json",
                    "{\"weight_map\": {\"a\": \"model-00001-of-00002.safetensors\"}}");
    assert_int_equal(model_folder_open_any(*state, &folder, &err), RF_E_FORMAT);
    assert_non_null(strstr(err.text, "finish the download"));
}

static void folders_without_a_model_are_refused(void **state)
{
    open_fails(*state, "nothing", RF_E_SYS, "/nothing: No such file or directory");
    open_fails(*state, NULL, RF_E_FORMAT,
               ": no .safetensors file in this folder; is it the folder of a model?");
    folder_put_text(*state, "pytorch_model.bin", "x");
    open_fails(*state, NULL, RF_E_FORMAT,
               ": no .safetensors file in this folder; its weights are in another format: convert "
               "them");
    folder_put_tensors(*state, SHARD1, tensor_a, 4);
    folder_put_tensors(*state, SHARD2, tensor_b, 4);
    open_fails(*state, NULL, RF_E_FORMAT,
               ": 2 .safetensors files, but neither model.safetensors nor "
               "model.safetensors.index.json; finish the download, or name one of the files");
}

static void what_is_not_a_file_is_refused(void **state)
{
    rf_autofree char *path = folder_path(*state, "pipe.safetensors");

    assert_int_equal(mkfifo(path, 0600), 0);
    open_fails(*state, "pipe.safetensors", RF_E_FORMAT,
               "/pipe.safetensors: neither a folder nor a regular file");
    folder_put_text(*state, INDEX, "{\"weight_map\":{\"a\":\"pipe.safetensors\"}}");
    open_fails(*state, NULL, RF_E_FORMAT,
               "/pipe.safetensors: not a regular file"); /* and no wait */
}

static void missing_shards_are_counted(void **state)
{
    folder_put_tensors(*state, SHARD1, tensor_a, 4);
    folder_put_text(*state, INDEX,
                    "{\"weight_map\":{\"a\":\"" SHARD1 "\",\"b\":\"" SHARD2
                    "\",\"c\":\"sub/x.safetensors\"}}");
    open_fails(
        *state, NULL, RF_E_FORMAT,
        ": 2 of the 3 files that model.safetensors.index.json names are missing, the first is "
        "model-00002-of-00002.safetensors; finish the download");
}

static void a_bad_shard_is_named(void **state)
{
    put_shards(*state);
    folder_put_tensors(*state, SHARD2, tensor_b, 3);
    open_fails(*state, NULL, RF_E_FORMAT, "/" SHARD2 ": the file is truncated: ");
}

static void tensors_must_be_where_the_index_says(void **state)
{
    put_shards(*state);
    folder_put_tensors(*state, SHARD2, tensor_a, 4);
    open_fails(*state, NULL, RF_E_FORMAT,
               ": tensor \"a\": is in " SHARD2 ", but " INDEX " says it is in " SHARD1
               "; a tensor must be in one file only, the one named there");
    folder_put_tensors(*state, SHARD2, "{}", 0);
    open_fails(*state, NULL, RF_E_FORMAT,
               ": tensor \"b\": " INDEX " says it is in " SHARD2
               ", which does not hold it; the files do not belong together: download them again");
    folder_put_tensors(*state, SHARD2,
                       "{\"c\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0);
    open_fails(*state, NULL, RF_E_FORMAT,
               ": tensor \"c\": is in " SHARD2 ", but " INDEX
               " does not name it; the files do not belong together: download them again");
}

static void bad_indexes_are_refused(void **state)
{
    static const struct {
        const char *text;
        const char *error;
    } bad[] = {
        {"", ": the text ends too early (byte 0); the file is damaged: copy or download it again"},
        {"[]", ": expected '{' (byte 0)"},
        {"{}", ": has no weight_map, or an empty one; remove it or download it again"},
        {"{\"weight_map\":{}}", ": has no weight_map, or an empty one"},
        {"{\"weight_map\":[]}", ": weight_map is not an object (byte 14)"},
        {"{\"weight_map\":{\"a\":1}}", ": expected a string"},
        {"{\"weight_map\":{\"a\":\"x.safetensors\"},\"weight_map\":{}}",
         ": weight_map is there twice"},
        {"{\"weight_map\":{\"a\":\"x.safetensors\"}}x", ": text after the end of the JSON value"},
        {"{\"weight_map\":{\"a\":\"x.safetensors\",\"a\":\"y.safetensors\"}}",
         ": tensor \"a\": is there twice, in x.safetensors and in y.safetensors"},
        {"{\"weight_map\":{\"a\":\"../x.safetensors\"}}",
         ": \"../x.safetensors\" is not the name of a .safetensors file inside the folder"},
        {"{\"weight_map\":{\"a\":\"/etc/x.safetensors\"}}",
         ": \"/etc/x.safetensors\" is not the name of a .safetensors file inside the folder"},
        {"{\"weight_map\":{\"a\":\"x\\u0000.safetensors\"}}",
         ": \"x\" is not the name of a .safetensors file inside the folder"},
        {"{\"weight_map\":{\"a\":\".safetensors\"}}",
         ": \".safetensors\" is not the name of a .safetensors file inside the folder"},
        {"{\"weight_map\":{\"a\":\"x.bin\"}}",
         ": \"x.bin\" is not the name of a .safetensors file inside the folder"},
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct folder_index index;
        struct rf_error err = {.code = RF_OK};

        assert_int_equal(folder_index_parse("i", bad[i].text, strlen(bad[i].text), &index, &err),
                         RF_E_FORMAT);
        if (strncmp(err.text + 1, bad[i].error, strlen(bad[i].error)) != 0)
            fail_msg("\"%s\" does not start with \"i%s\"", err.text, bad[i].error);
    }
    folder_put_text(*state, INDEX, "{}");
    open_fails(*state, NULL, RF_E_FORMAT, "/" INDEX ": has no weight_map");
}

static void a_truncated_index_is_refused(void **state)
{
    (void)state;
    static const char text[] =
        "{\"metadata\":{\"total_size\":1.5e3,\"x\":[{},null]},\"weight_map\":{\"\\u00e4\":"
        "\"x.safetensors\",\"b\":\"y.safetensors\"}}";
    struct folder_index index;

    assert_int_equal(folder_index_parse("i", text, sizeof(text) - 1, &index, NULL), RF_OK);
    assert_int_equal(index.tensor_count, 2);
    assert_string_equal(index.tensors[0].name, "\xc3\xa4");
    folder_index_free(&index);
    for (size_t bytes = 0; bytes < sizeof(text) - 1; bytes++) {
        rf_autofree char *copy = malloc(bytes + 1);

        assert_non_null(copy);
        memcpy(copy, text, bytes);
        assert_int_equal(folder_index_parse("i", copy, bytes, &index, NULL), RF_E_FORMAT);
    }
}

static void an_index_of_sixty_thousand_tensors_is_read(void **state)
{
    (void)state;
    enum { COUNT = 60000 };
    struct buf text BUF_AUTO = {.data = NULL};
    struct folder_index index;
    struct rf_error err = {.code = RF_OK};

    buf_printf(&text, "{\"weight_map\":{");
    for (unsigned i = 0; i < COUNT; i++)
        buf_printf(&text,
                   "\"model.layers.%u.mlp.experts.%u.up_proj.weight\":\"m-%02u.safetensors\"%s",
                   i / 512, i % 512, 99 - i / 1000, i + 1 < COUNT ? "," : "}}");
    assert_int_equal(folder_index_parse("i", (char *)text.data, text.bytes, &index, &err), RF_OK);
    assert_int_equal(index.tensor_count, COUNT);
    assert_int_equal(index.file_count, 60);
    assert_string_equal(index.files[0], "m-40.safetensors");
    assert_int_equal(index.tensors[0].file, 59);
    assert_int_equal(index.tensors[COUNT - 1].file, 0);
    folder_index_free(&index);
}

static void running_out_of_descriptors_says_what_to_raise(void **state)
{
    struct rlimit limit;
    struct rlimit low;

    put_shards(*state);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    int next = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(next >= 0);
    close(next);
    low = limit;
    low.rlim_cur = (rlim_t)next + 1;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    struct model_folder folder;
    struct rf_error err = {.code = RF_OK};
    enum rf_code code = model_folder_open(*state, &folder, &err);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(code, RF_E_SYS);
    assert_non_null(strstr(err.text, "(raise the limit of open files: ulimit -n)"));
}

static void names_that_lead_out_of_the_folder_are_not_ok(void **state)
{
    (void)state;
    static const char *const ok[] = {"a",   "a/b/c.json", ".hidden",    "..a",
                                     "a..", "...",        "\xc3\xa4 b", "-rf"};
    static const char *const bad[] = {"",     "/",    "/a",    "a/",   "a//b",        ".",
                                      "..",   "./a",  "a/.",   "a/..", "../a",        "a/../b",
                                      "a\\b", "a\nb", "a\x7f", "\xff", "\xed\xa0\x80"};
    char name[RF_MAX_NAME_BYTES + 2];

    for (size_t i = 0; i < sizeof(ok) / sizeof(ok[0]); i++)
        assert_true(folder_name_ok(ok[i]));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(folder_name_ok(bad[i]));
    memset(name, 'n', sizeof(name));
    name[RF_MAX_NAME_BYTES + 1] = '\0';
    assert_false(folder_name_ok(name));
    name[RF_MAX_NAME_BYTES] = '\0';
    assert_true(folder_name_ok(name));
}

#define FOLDER_TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(one_file_alone_is_a_model),
        FOLDER_TEST(a_folder_with_model_safetensors_is_a_model),
        FOLDER_TEST(shards_are_those_the_index_names),
        FOLDER_TEST(shards_may_be_in_sub_folders),
        FOLDER_TEST(many_shards_are_read),
        FOLDER_TEST(a_hugging_face_cache_is_read_through_its_links),
        FOLDER_TEST(a_link_to_a_missing_blob_is_refused),
        FOLDER_TEST(side_files_are_read_again_unless_they_changed),
        FOLDER_TEST(a_large_side_file_is_left_out),
        FOLDER_TEST(side_files_alone_are_a_folder_where_that_is_enough),
        FOLDER_TEST(folders_without_a_model_are_refused),
        FOLDER_TEST(what_is_not_a_file_is_refused),
        FOLDER_TEST(missing_shards_are_counted),
        FOLDER_TEST(a_bad_shard_is_named),
        FOLDER_TEST(tensors_must_be_where_the_index_says),
        FOLDER_TEST(bad_indexes_are_refused),
        FOLDER_TEST(a_truncated_index_is_refused),
        FOLDER_TEST(an_index_of_sixty_thousand_tensors_is_read),
        FOLDER_TEST(running_out_of_descriptors_says_what_to_raise),
        cmocka_unit_test(names_that_lead_out_of_the_folder_are_not_ok),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
