#include "base/cleanup.h"
#include "format/model_folder.h"
#include "util/folder.h"

#include <fcntl.h>
#include <glob.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmocka.h>

/* Every test has a folder in which nothing but its own target may be left. */
struct place {
    char *above;
    char *target; /* above/model */
};

static int make_place(void **state)
{
    struct place *place = malloc(sizeof(*place));

    assert_non_null(place);
    place->above = folder_make();
    place->target = folder_path(place->above, "model");
    *state = place;
    return 0;
}

static int remove_place(void **state)
{
    struct place *place = *state;

    folder_remove(place->above);
    free(place->target);
    free(place);
    return 0;
}

static struct folder_writer *create(const char *path)
{
    struct folder_writer *writer = NULL;
    struct rf_error err = {.code = RF_OK};

    if (folder_writer_create(path, &writer, &err) != RF_OK)
        fail_msg("%s", err.text);
    return writer;
}

static int add_file(struct folder_writer *writer, const char *name, uint64_t bytes)
{
    int fd = -1;
    struct rf_error err = {.code = RF_OK};

    if (folder_writer_file(writer, name, bytes, &fd, &err) != RF_OK)
        fail_msg("%s", err.text);
    assert_true(fd >= 0);
    return fd;
}

static void commit(struct folder_writer *writer, bool durable)
{
    struct rf_error err = {.code = RF_OK};

    if (folder_writer_commit(writer, durable, &err) != RF_OK)
        fail_msg("%s", err.text);
}

/* The line begins with the path of the target, and goes on with text. */
static void assert_error(const struct rf_error *err, const char *path, const char *text)
{
    if (strncmp(err->text, path, strlen(path)) != 0 ||
        strncmp(err->text + strlen(path), text, strlen(text)) != 0)
        fail_msg("\"%s\" does not go on with \"%s\"", err->text, text);
}

static void create_fails(const char *path, enum rf_code code, const char *text)
{
    struct folder_writer *writer = NULL;
    struct rf_error err = {.code = RF_OK};

    assert_int_equal(folder_writer_create(path, &writer, &err), code);
    assert_null(writer);
    assert_error(&err, path, text);
}

static void file_fails(struct folder_writer *writer, const struct place *place, const char *name,
                       uint64_t bytes, enum rf_code code, const char *text)
{
    int fd = -4711;
    struct rf_error err = {.code = RF_OK};

    assert_int_equal(folder_writer_file(writer, name, bytes, &fd, &err), code);
    assert_int_equal(fd, -4711);
    assert_error(&err, place->target, text);
}

static void commit_fails(struct folder_writer *writer, const struct place *place, enum rf_code code,
                         const char *text)
{
    struct rf_error err = {.code = RF_OK};

    assert_int_equal(folder_writer_commit(writer, false, &err), code);
    assert_error(&err, place->target, text);
}

static void the_folder_appears_at_commit(void **state)
{
    const struct place *place = *state;
    struct stat st;

    for (int durable = 0; durable < 2; durable++) {
        rf_autofree char *path = folder_path(place->above, durable ? "durable" : "plain");
        struct folder_writer *writer = create(path);
        int fd = add_file(writer, "model.safetensors", 5);

        assert_int_equal(pwrite(fd, "hello", 5, 0), 5);
        add_file(writer, "a/b/c.json", 100);
        add_file(writer, "a/d.json", 0);
        assert_int_equal(lstat(path, &st), -1);
        assert_int_equal(folder_entries(place->above), 1 + (unsigned)durable);
        commit(writer, durable);
        folder_writer_destroy(writer);
        assert_int_equal(folder_entries(place->above), 1 + (unsigned)durable);
        assert_true(folder_has(path, "a/b/c.json"));
        assert_true(folder_has(path, "a/d.json"));
        assert_int_equal(folder_entries(path), 2);
        assert_int_equal(fcntl(fd, F_GETFD), -1); /* closed */
    }
}

static void files_have_their_size_at_once(void **state)
{
    const struct place *place = *state;
    struct folder_writer *writer = create(place->target);
    struct stat st;

    assert_int_equal(fstat(add_file(writer, "x", 123457), &st), 0);
    assert_int_equal(st.st_size, 123457);
    assert_true(st.st_blocks * 512 >= 123457);
    folder_writer_destroy(writer);
}

static void permissions_follow_the_umask(void **state)
{
    const struct place *place = *state;
    mode_t old = umask(027);
    struct folder_writer *writer = create(place->target);
    rf_autofree char *file = folder_path(place->target, "sub/x");
    rf_autofree char *sub = folder_path(place->target, "sub");
    struct stat st;

    add_file(writer, "sub/x", 1);
    commit(writer, false);
    folder_writer_destroy(writer);
    umask(old);
    assert_int_equal(stat(place->target, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0750);
    assert_int_equal(stat(sub, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0750);
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
}

static void destroy_removes_what_was_not_committed(void **state)
{
    const struct place *place = *state;
    struct folder_writer *writer = create(place->target);

    add_file(writer, "model.safetensors", 1000);
    add_file(writer, "a/b/c.json", 10);
    assert_int_equal(folder_entries(place->above), 1);
    folder_writer_destroy(writer);
    assert_int_equal(folder_entries(place->above), 0);
    folder_writer_destroy(NULL);
}

/* Only what it created: neither a file that somebody else put there, nor anything behind a link. */
static void destroy_leaves_what_is_not_its_own(void **state)
{
    const struct place *place = *state;
    struct folder_writer *writer = create(place->target);
    rf_autofree char *pattern = folder_path(place->above, "model.rfork-partial-*");
    glob_t found;

    add_file(writer, "sub/x", 10);
    folder_mkdir(place->above, "precious");
    folder_put_text(place->above, "precious/x", "keep me");
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 1);
    const char *partial = found.gl_pathv[0];
    rf_autofree char *sub = folder_path(partial, "sub");
    rf_autofree char *moved = folder_path(partial, "moved");
    folder_put_text(partial, "mine", "");
    assert_int_equal(rename(sub, moved), 0);
    folder_link(partial, "sub", "../precious");
    folder_writer_destroy(writer);
    assert_true(folder_has(place->above, "precious/x"));
    assert_true(folder_has(partial, "mine"));
    assert_int_equal(folder_entries(moved), 0);
    globfree(&found);
}

static void an_empty_folder_is_replaced(void **state)
{
    const struct place *place = *state;
    rf_autofree char *with_slash = folder_path(place->target, "/");

    folder_mkdir(place->above, "model");
    struct folder_writer *writer = create(with_slash);
    add_file(writer, "x", 1);
    commit(writer, false);
    folder_writer_destroy(writer);
    assert_true(folder_has(place->target, "x"));
}

static void a_relative_path_is_below_the_working_folder(void **state)
{
    const struct place *place = *state;
    rf_autofree char *old = getcwd(NULL, 0);

    assert_non_null(old);
    assert_int_equal(chdir(place->above), 0);
    struct folder_writer *writer = create("model");
    assert_int_equal(chdir(old), 0); /* it does not matter where we are later */
    add_file(writer, "x", 1);
    commit(writer, false);
    folder_writer_destroy(writer);
    assert_true(folder_has(place->target, "x"));
}

static void what_is_there_is_never_replaced(void **state)
{
    const struct place *place = *state;

    folder_mkdir(place->above, "model");
    folder_put_text(place->above, "model/config.json", "{}");
    create_fails(
        place->target, RF_E_INVAL,
        ": the folder is not empty (it holds config.json); remove it, or give another path");
    rf_autofree char *file = folder_path(place->target, "config.json");
    create_fails(file, RF_E_INVAL, ": exists and is not a folder; remove it, or give another path");
    rf_autofree char *link = folder_path(place->above, "link");
    folder_link(place->above, "link", "model");
    create_fails(link, RF_E_INVAL, ": exists and is a link; remove it, or give another path");
    assert_int_equal(folder_entries(place->above), 2);
    assert_true(folder_has(place->target, "config.json"));
}

static void paths_that_name_no_new_folder_are_refused(void **state)
{
    const struct place *place = *state;
    struct folder_writer *writer = NULL;
    struct rf_error err = {.code = RF_OK};
    static const char *const paths[] = {"", "/", ".", "..", "x/..", "///"};

    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        assert_int_equal(folder_writer_create(paths[i], &writer, &err), RF_E_INVAL);
        assert_non_null(strstr(err.text, "cannot be replaced by a model's folder; give the path"));
    }
    rf_autofree char *orphan = folder_path(place->target, "below");
    create_fails(orphan, RF_E_SYS, ": open folder ");
}

/* Not root but nobody, where the test runs as root. */
static void an_unwritable_parent_is_refused(void **state)
{
    const struct place *place = *state;
    bool root = geteuid() == 0;

    assert_int_equal(chmod(place->above, 0555), 0);
    if (root)
        assert_int_equal(seteuid(65534), 0);
    struct folder_writer *writer = NULL;
    struct rf_error err = {.code = RF_OK};
    enum rf_code code = folder_writer_create(place->target, &writer, &err);
    if (root)
        assert_int_equal(seteuid(0), 0);
    assert_int_equal(chmod(place->above, 0755), 0);
    assert_int_equal(code, RF_E_DENIED);
    assert_error(&err, place->target, ": create folder model.rfork-partial-");
    assert_non_null(strstr(err.text, ": Permission denied"));
}

static void bad_file_names_are_refused(void **state)
{
    const struct place *place = *state;
    struct folder_writer *writer = create(place->target);

    file_fails(writer, place, "../x", 1, RF_E_INVAL,
               ": \"../x\" is not the name of a file inside the folder");
    file_fails(writer, place, "/etc/x", 1, RF_E_INVAL,
               ": \"/etc/x\" is not the name of a file inside the folder");
    add_file(writer, "a", 1);
    add_file(writer, "sub/b", 1);
    file_fails(writer, place, "a", 1, RF_E_INVAL,
               ": a: a file or folder of that name is there already");
    file_fails(writer, place, "sub", 1, RF_E_INVAL,
               ": sub: a file or folder of that name is there already");
    file_fails(writer, place, "a/b", 1, RF_E_SYS, ": create folder a: File exists");
    file_fails(writer, place, "huge", UINT64_MAX, RF_E_INVAL,
               ": huge: no file has 18446744073709551615 bytes");
    folder_writer_destroy(writer);
    assert_int_equal(folder_entries(place->above), 0);
}

/* Whoever puts something there while we write wins; what we wrote is removed. */
static void a_target_that_appears_meanwhile_is_kept(void **state)
{
    const struct place *place = *state;
    struct folder_writer *writer = create(place->target);

    add_file(writer, "x", 1);
    folder_mkdir(place->above, "model");
    folder_put_text(place->above, "model/config.json", "{}");
    commit_fails(writer, place, RF_E_INVAL,
                 ": something else was put there meanwhile; remove it, or give another path");
    folder_writer_destroy(writer);
    assert_int_equal(folder_entries(place->above), 1);
    assert_true(folder_has(place->target, "config.json"));
}

static void a_failed_commit_can_be_repeated_once(void **state)
{
    const struct place *place = *state;
    struct folder_writer *writer = create(place->target);

    add_file(writer, "x", 1);
    folder_put_text(place->above, "model", "");
    commit_fails(writer, place, RF_E_INVAL, ": something else was put there meanwhile");
    assert_int_equal(unlink(place->target), 0);
    commit(writer, true);
    commit_fails(writer, place, RF_E_INVAL, ": committed already");
    folder_writer_destroy(writer);
    assert_true(folder_has(place->target, "x"));
}

static void the_limit_of_file_sizes_is_told(void **state)
{
    const struct place *place = *state;
    struct folder_writer *writer = create(place->target);
    struct rlimit limit;
    struct rlimit low;

    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    void (*old)(int) = signal(SIGXFSZ, SIG_IGN);
    low = limit;
    low.rlim_cur = 1000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    int fd = -1;
    struct rf_error err = {.code = RF_OK};
    enum rf_code code = folder_writer_file(writer, "x", 1001, &fd, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    signal(SIGXFSZ, old);
    assert_int_equal(code, RF_E_SYS);
    assert_error(&err, place->target, ": reserve 1001 bytes for x: File too large");
    folder_writer_destroy(writer);
    assert_int_equal(folder_entries(place->above), 0);
}

/* On a file system of one megabyte; needs the right to mount one. */
static void a_full_disk_is_told_before_the_transfer(void **state)
{
    const struct place *place = *state;

    if (mount("none", place->above, "tmpfs", 0, "size=1m") != 0)
        skip();
    struct folder_writer *writer = create(place->target);
    add_file(writer, "a", 512 * 1024);
    file_fails(
        writer, place, "b", 600 * 1024, RF_E_NOMEM,
        ": the disk is full: b needs 614400 bytes, 524288 are free; make room or give a path "
        "on another disk");
    add_file(writer, "c", 4096); /* a smaller one still fits: nothing of b was left behind */
    folder_writer_destroy(writer);
    unsigned left = folder_entries(place->above);
    assert_int_equal(umount(place->above), 0);
    assert_int_equal(left, 0);
}

static void a_mount_point_is_refused(void **state)
{
    const struct place *place = *state;
    static const char *const sources[] = {"none", NULL}; /* another disk, and this one bound */

    folder_mkdir(place->above, "model");
    folder_mkdir(place->above, "other");
    rf_autofree char *other = folder_path(place->above, "other");
    for (size_t i = 0; i < 2; i++) {
        const char *source = sources[i] != NULL ? sources[i] : other;
        struct folder_writer *writer = NULL;
        struct rf_error err = {.code = RF_OK};

        if (mount(source, place->target, "tmpfs", i == 0 ? 0 : MS_BIND, NULL) != 0)
            skip();
        enum rf_code code = folder_writer_create(place->target, &writer, &err);
        assert_int_equal(umount(place->target), 0);
        assert_int_equal(code, RF_E_INVAL);
        assert_error(&err, place->target,
                     ": is a mount point and cannot be replaced; give the path");
    }
}

#define PLACE_TEST(name) cmocka_unit_test_setup_teardown(name, make_place, remove_place)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(the_folder_appears_at_commit),
        PLACE_TEST(files_have_their_size_at_once),
        PLACE_TEST(permissions_follow_the_umask),
        PLACE_TEST(destroy_removes_what_was_not_committed),
        PLACE_TEST(destroy_leaves_what_is_not_its_own),
        PLACE_TEST(an_empty_folder_is_replaced),
        PLACE_TEST(a_relative_path_is_below_the_working_folder),
        PLACE_TEST(what_is_there_is_never_replaced),
        PLACE_TEST(paths_that_name_no_new_folder_are_refused),
        PLACE_TEST(an_unwritable_parent_is_refused),
        PLACE_TEST(bad_file_names_are_refused),
        PLACE_TEST(a_target_that_appears_meanwhile_is_kept),
        PLACE_TEST(a_failed_commit_can_be_repeated_once),
        PLACE_TEST(the_limit_of_file_sizes_is_told),
        PLACE_TEST(a_full_disk_is_told_before_the_transfer),
        PLACE_TEST(a_mount_point_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
