/* Regions: what each kind gives, what sealing promises, and files that change while being
 * served. */
#include "base/cleanup.h"
#include "base/thread.h"
#include "memory/region.h"
#include "util/bytes.h"
#include "util/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define MIB (UINT64_C(1) << 20)

static struct region *make_memfd(uint64_t bytes)
{
    struct region *region = NULL;
    struct rf_error err = {0};

    if (region_create_memfd("test-region", bytes, &region, &err) != RF_OK)
        fail_msg("%s", err.text);
    return region;
}

static unsigned open_descriptors(void)
{
    return folder_entries("/proc/self/fd");
}

/* ---- kinds ---- */

static void borrowed_memory_is_read_only_and_kept(void **state)
{
    (void)state;
    static const char text[] = "weights of the caller";
    struct region *region = NULL;
    char out[7] = "";

    assert_int_equal(region_create_borrowed(text, sizeof text, &region, NULL), RF_OK);
    assert_int_equal(region_kind(region), REGION_HOST);
    assert_int_equal(region_bytes(region), sizeof text);
    assert_ptr_equal(region_data(region), text);
    assert_null(region_data_writable(region));
    assert_int_equal(region_fd(region), -1);
    assert_false(region_is_sealed(region));
    assert_int_equal(region_read(region, 11, out, 6, NULL), RF_OK);
    assert_string_equal(out, "the ca");
    assert_int_equal(region_check(region, NULL), RF_OK);
    assert_int_equal(region_seal(region, NULL), RF_E_INVAL);
    assert_int_equal(region_populate(region, 0, 1, NULL), RF_E_INVAL);
    region_unref(region);
    assert_string_equal(text, "weights of the caller");
}

static void no_memory_cannot_be_borrowed(void **state)
{
    (void)state;
    struct region *region = NULL;
    struct rf_error err = {0};

    assert_int_equal(region_create_borrowed(NULL, 5, &region, &err), RF_E_INVAL);
    assert_says(&err, "5 bytes");
    assert_null(region);
    assert_int_equal(region_create_borrowed(NULL, 0, &region, &err), RF_OK);
    region_unref(region);
}

static void anonymous_memory_is_zero_and_writable(void **state)
{
    (void)state;
    struct region *region = NULL;

    assert_int_equal(region_create_anonymous(5 * MIB + 3, &region, NULL), RF_OK);
    assert_int_equal(region_kind(region), REGION_HOST);
    assert_int_equal(region_bytes(region), 5 * MIB + 3);
    assert_int_equal(region_fd(region), -1);
    uint8_t *data = region_data_writable(region);
    assert_ptr_equal(data, region_data(region));
    assert_int_equal((uintptr_t)data % (2 * MIB), 0);
    for (size_t i = 0; i < 5 * MIB + 3; i += 1021)
        assert_int_equal(data[i], 0);
    memset(data, 0x5a, 5 * MIB + 3);
    assert_int_equal(region_seal(region, NULL), RF_E_INVAL);
    region_unref(region);
}

static void memfd_is_the_same_through_its_descriptor(void **state)
{
    (void)state;
    struct region *region = make_memfd(3 * MIB + 5);
    struct stat st;
    uint8_t byte = 0;

    assert_int_equal(region_kind(region), REGION_MEMFD);
    assert_int_equal((uintptr_t)region_data(region) % (2 * MIB), 0);
    assert_int_equal(fstat(region_fd(region), &st), 0);
    assert_int_equal(st.st_size, 3 * MIB + 5);
    assert_int_equal(fcntl(region_fd(region), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    region_data_writable(region)[3 * MIB + 4] = 0x77;
    assert_int_equal(pread(region_fd(region), &byte, 1, 3 * MIB + 4), 1);
    assert_int_equal(byte, 0x77);
    assert_int_equal(pwrite(region_fd(region), "x", 1, 0), 1);
    assert_int_equal(region_data(region)[0], 'x');
    region_unref(region);
}

static void empty_regions_work(void **state)
{
    (void)state;
    struct region *region = make_memfd(0);

    assert_int_equal(region_bytes(region), 0);
    assert_int_equal(region_read(region, 0, NULL, 0, NULL), RF_OK);
    assert_int_equal(region_populate(region, 0, 0, NULL), RF_OK);
    assert_int_equal(region_seal(region, NULL), RF_OK);
    region_unref(region);
    assert_int_equal(region_create_anonymous(0, &region, NULL), RF_OK);
    region_unref(region);
}

static void references_keep_it_alive(void **state)
{
    (void)state;
    unsigned before = open_descriptors();
    struct region *region = make_memfd(MIB);

    region_data_writable(region)[0] = 1;
    assert_ptr_equal(region_ref(region), region);
    region_unref(region);
    assert_int_equal(region_data(region)[0], 1);
    assert_int_equal(open_descriptors(), before + 1);
    region_unref(region);
    assert_int_equal(open_descriptors(), before);
    region_unref(NULL);
}

static enum rf_code take_and_drop(void *ctx, uint64_t item, struct rf_error *err)
{
    (void)item;
    (void)err;
    for (int i = 0; i < 1000; i++)
        region_unref(region_ref(ctx));
    return RF_OK;
}

static void references_are_counted_by_all_threads(void **state)
{
    (void)state;
    struct region *region = make_memfd(1);

    assert_int_equal(thread_parallel(4, 4, take_and_drop, region, NULL), RF_OK);
    region_data_writable(region)[0] = 1;
    region_unref(region);
}

/* ---- too much ---- */

static void memory_that_is_not_there_is_refused_with_numbers(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {UINT64_C(1) << 50, UINT64_MAX, UINT64_C(1) << 63};

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct region *region = NULL;
        struct rf_error err = {0};
        unsigned before = open_descriptors();
        assert_int_equal(region_create_memfd("huge-model", sizes[i], &region, &err), RF_E_NOMEM);
        assert_says(&err, "huge-model");
        assert_says(&err, "available");
        assert_says(&err, "--mmap");
        assert_int_equal(region_create_anonymous(sizes[i], &region, &err), RF_E_NOMEM);
        assert_says(&err, "available");
        assert_null(region);
        assert_int_equal(open_descriptors(), before);
    }
}

static void memory_promised_to_others_is_not_promised_again(void **state)
{
    (void)state;
    struct region *first = NULL;
    struct region *second = NULL;
    struct rf_error err = {0};
    uint64_t available = memory_available(); /* of which others may take some meanwhile */

    assert_int_equal(region_create_memfd("first", available / 4 * 3, &first, &err), RF_OK);
    assert_int_equal(region_create_memfd("second", available / 2, &second, &err), RF_E_NOMEM);
    assert_says(&err, "promised already");
    assert_null(second);
    region_unref(first);
    assert_int_equal(region_create_memfd("second", available / 2, &second, &err), RF_OK);
    region_unref(second);
}

static void no_address_space_is_an_error(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip();
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    skip();
#endif
#endif
    struct rlimit before;
    struct region *region = NULL;
    struct rf_error err = {0};

    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    struct rlimit tight = {.rlim_cur = 32 * MIB, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
    enum rf_code code = region_create_memfd("m", 64 * MIB, &region, &err);
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
    assert_int_equal(code, RF_E_NOMEM);
    assert_says(&err, "address space");
}

static void limit_on_files_is_an_error_not_a_signal(void **state)
{
    (void)state;
    struct rlimit before;
    struct region *region = NULL;
    struct rf_error err = {0};

    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    struct rlimit tight = {.rlim_cur = 32 * MIB, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    enum rf_code code = region_create_memfd("m", 32 * MIB + 1, &region, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(code, RF_E_NOMEM);
    assert_says(&err, "ulimit -f");
}

static void populated_memory_is_there(void **state)
{
    (void)state;
    struct region *region = make_memfd(20 * MIB + 5000);
    struct stat st;

    region_data_writable(region)[9 * MIB] = 0x42;
    assert_int_equal(region_populate(region, 3, 20 * MIB + 4997, NULL), RF_OK);
    assert_int_equal(fstat(region_fd(region), &st), 0);
    assert_true((uint64_t)st.st_blocks * 512 >= 20 * MIB + 4997);
    assert_int_equal(region_data(region)[9 * MIB], 0x42);
    assert_int_equal(region_populate(region, 20 * MIB, 5001, NULL), RF_E_INVAL);
    assert_int_equal(region_populate(region, UINT64_MAX, 2, NULL), RF_E_INVAL);
    region_unref(region);
    assert_int_equal(region_create_anonymous(9 * MIB, &region, NULL), RF_OK);
    assert_int_equal(region_populate(region, MIB, 8 * MIB, NULL), RF_OK);
    assert_int_equal(region_data(region)[5 * MIB], 0);
    region_unref(region);
}

/* ---- sealing ---- */

static void sealed_content_is_what_was_written(void **state)
{
    (void)state;
    struct region *region = make_memfd(3 * MIB);

    memset(region_data_writable(region), 0x3c, 3 * MIB);
    const uint8_t *before = region_data(region);
    assert_int_equal(region_seal(region, NULL), RF_OK);
    assert_true(region_is_sealed(region));
    assert_ptr_equal(region_data(region), before);
    assert_null(region_data_writable(region));
    for (size_t i = 0; i < 3 * MIB; i++)
        assert_int_equal(before[i], 0x3c);
    assert_int_equal(region_seal(region, NULL), RF_OK);
    assert_int_equal(region_populate(region, 0, 1, NULL), RF_E_INVAL);
    region_unref(region);
}

/* Runs fn in a child; returns the signal that killed it, or 0. */
static int signal_of_child(void (*fn)(struct region *region), struct region *region)
{
    int status = 0;
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        signal(SIGSEGV, SIG_DFL); /* a sanitiser has its own */
        signal(SIGBUS, SIG_DFL);
        fn(region);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void write_first_byte(struct region *region)
{
    *(volatile uint8_t *)(uintptr_t)region_data(region) = 1;
}

static void write_to_sealed_memory_dies_by_sigsegv(void **state)
{
    (void)state;
    struct region *region = make_memfd(MIB);

    assert_int_equal(signal_of_child(write_first_byte, region), 0);
    assert_int_equal(region_seal(region, NULL), RF_OK);
    assert_int_equal(signal_of_child(write_first_byte, region), SIGSEGV);
    region_unref(region);
}

static void sealed_memfd_cannot_be_changed_by_anybody(void **state)
{
    (void)state;
    struct region *region = make_memfd(MIB);
    int fd = region_fd(region);

    assert_int_equal(region_seal(region, NULL), RF_OK);
    assert_int_equal(pwrite(fd, "x", 1, 0), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(fd, 0), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(fd, 2 * MIB), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    assert_int_equal(errno, EPERM);
    assert_ptr_equal(mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
    region_unref(region);
}

static void region_that_is_mapped_elsewhere_is_not_sealed_but_stays_usable(void **state)
{
    (void)state;
    struct region *region = make_memfd(MIB);
    struct rf_error err = {0};
    uint8_t *other = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, region_fd(region), 0);

    assert_ptr_not_equal(other, MAP_FAILED);
    /* As long as a device could hold its pages: tried again and again, then refused. */
    assert_int_equal(region_seal(region, &err), RF_E_SYS);
    assert_int_equal(err.sys_errno, EBUSY);
    assert_says(&err, "mapped writable");
    assert_false(region_is_sealed(region));
    region_data_writable(region)[5] = 5;
    assert_int_equal(other[5], 5);
    munmap(other, MIB);
    assert_int_equal(region_seal(region, &err), RF_OK);
    region_unref(region);
}

/* ---- adopting ---- */

static int sealed_memfd(uint64_t bytes, int seals)
{
    int fd = memfd_create("peer", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    assert_int_equal(pwrite(fd, "peer", 4, 0), 4);
    if (seals != 0)
        assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static const int all_seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;

static void sealed_memfd_is_adopted_read_only(void **state)
{
    (void)state;
    unsigned before = open_descriptors();
    struct region *region = NULL;
    struct rf_error err = {0};
    int fd = sealed_memfd(3 * MIB, all_seals);

    if (region_adopt_memfd(fd, 3 * MIB, &region, &err) != RF_OK)
        fail_msg("%s", err.text);
    assert_int_equal(region_kind(region), REGION_MEMFD);
    assert_true(region_is_sealed(region));
    assert_null(region_data_writable(region));
    assert_memory_equal(region_data(region), "peer", 4);
    assert_int_equal(region_data(region)[3 * MIB - 1], 0);
    assert_int_equal(signal_of_child(write_first_byte, region), SIGSEGV);
    region_unref(region);
    assert_int_equal(open_descriptors(), before);
}

static void own_sealed_region_can_be_adopted(void **state)
{
    (void)state;
    struct region *mine = make_memfd(9 * MIB);
    struct region *theirs = NULL;

    memset(region_data_writable(mine), 0x11, 9 * MIB);
    assert_int_equal(region_adopt_memfd(dup(region_fd(mine)), 9 * MIB, &theirs, NULL), RF_E_PROTO);
    assert_int_equal(region_seal(mine, NULL), RF_OK);
    assert_int_equal(region_adopt_memfd(dup(region_fd(mine)), 9 * MIB, &theirs, NULL), RF_OK);
    region_unref(mine);
    assert_int_equal(region_data(theirs)[9 * MIB - 1], 0x11);
    region_unref(theirs);
}

static void memfd_that_can_still_change_is_refused(void **state)
{
    (void)state;
    static const int seals[] = {
        0,
        F_SEAL_WRITE,
        F_SEAL_SHRINK | F_SEAL_GROW,
        F_SEAL_WRITE | F_SEAL_SHRINK,
        F_SEAL_WRITE | F_SEAL_GROW,
        F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW, /* old mappings still write */
    };
    unsigned before = open_descriptors();

    for (size_t i = 0; i < sizeof seals / sizeof seals[0]; i++) {
        struct region *region = NULL;
        struct rf_error err = {0};
        int fd = sealed_memfd(MIB, seals[i]);
        assert_int_equal(region_adopt_memfd(fd, MIB, &region, &err), RF_E_PROTO);
        assert_says(&err, "can still change");
        assert_null(region);
        assert_int_equal(open_descriptors(), before);
    }
}

static void memfd_of_another_size_is_refused(void **state)
{
    (void)state;
    static const uint64_t announced[] = {0, MIB - 1, MIB + 1, UINT64_MAX};
    unsigned before = open_descriptors();

    for (size_t i = 0; i < sizeof announced / sizeof announced[0]; i++) {
        struct region *region = NULL;
        struct rf_error err = {0};
        int fd = sealed_memfd(MIB, all_seals);
        assert_int_equal(region_adopt_memfd(fd, announced[i], &region, &err), RF_E_PROTO);
        assert_says(&err, "1048576");
        assert_null(region);
        assert_int_equal(open_descriptors(), before);
    }
}

static void other_descriptors_are_refused_and_closed(void **state)
{
    (void)state;
    unsigned before = open_descriptors();
    struct region *region = NULL;
    struct rf_error err = {0};
    int pipes[2];

    assert_int_equal(region_adopt_memfd(open("/dev/zero", O_RDONLY | O_CLOEXEC), 0, &region, &err),
                     RF_E_PROTO);
    assert_says(&err, "not a memfd");
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    assert_int_equal(region_adopt_memfd(pipes[0], 4096, &region, &err), RF_E_PROTO);
    close(pipes[1]);
    assert_int_equal(region_adopt_memfd(-1, 4096, &region, &err), RF_E_PROTO);
    assert_null(region);
    assert_int_equal(open_descriptors(), before);
}

/* ---- reading ---- */

static void reads_outside_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint64_t offset;
        uint64_t bytes;
    } cases[] = {{0, 101}, {100, 1}, {101, 0}, {UINT64_MAX, 1}, {1, UINT64_MAX}, {50, 51}};
    char data[100] = "";
    char out[200];
    struct region *region = NULL;

    assert_int_equal(region_create_borrowed(data, sizeof data, &region, NULL), RF_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rf_error err = {0};
        assert_int_equal(region_read(region, cases[i].offset, out, cases[i].bytes, &err),
                         RF_E_INVAL);
        assert_says(&err, "100");
    }
    assert_int_equal(region_read(region, 100, out, 0, NULL), RF_OK);
    assert_int_equal(region_read(region, 0, out, 100, NULL), RF_OK);
    region_unref(region);
}

/* ---- files ---- */

static char *folder;
static char *path;
static int file = -1;
static struct region *file_region;

enum { FILE_BYTES = 10000 };

static int file_start(void **state)
{
    uint8_t data[FILE_BYTES];

    (void)state;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i % 251);
    folder = folder_make();
    folder_put(folder, "model.safetensors", data, sizeof data);
    path = folder_path(folder, "model.safetensors");
    file = open(path, O_RDWR | O_CLOEXEC);
    /* Older than any change that follows: times have the step of the kernel's tick. */
    const struct timespec past[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    futimens(file, past);
    return region_create_file(path, file, &file_region, NULL) == RF_OK ? 0 : -1;
}

static int file_stop(void **state)
{
    (void)state;
    region_unref(file_region);
    file_region = NULL;
    close(file);
    free(path);
    folder_remove(folder);
    return 0;
}

static void file_is_read_through_its_own_descriptor(void **state)
{
    (void)state;
    uint8_t out[300];

    assert_int_equal(region_kind(file_region), REGION_FILE);
    assert_int_equal(region_bytes(file_region), FILE_BYTES);
    assert_null(region_data(file_region));
    assert_null(region_data_writable(file_region));
    assert_true(region_fd(file_region) >= 0 && region_fd(file_region) != file);
    close(rf_take(file, -1));
    assert_int_equal(region_read(file_region, 9700, out, 300, NULL), RF_OK);
    for (size_t i = 0; i < sizeof out; i++)
        assert_int_equal(out[i], (9700 + i) % 251);
    assert_int_equal(region_check(file_region, NULL), RF_OK);
    assert_int_equal(region_read(file_region, 9701, out, 300, NULL), RF_E_INVAL);
    assert_int_equal(region_seal(file_region, NULL), RF_E_INVAL);
}

static void truncated_file_is_reported_not_a_crash(void **state)
{
    (void)state;
    uint8_t out[FILE_BYTES];
    struct rf_error err = {0};

    assert_int_equal(ftruncate(file, 5000), 0);
    assert_int_equal(region_check(file_region, &err), RF_E_CHANGED);
    assert_says(&err, "model.safetensors");
    assert_says(&err, "10000 to 5000");
    assert_int_equal(region_read(file_region, 4000, out, 2000, &err), RF_E_CHANGED);
    assert_says(&err, "now ends at 5000");
    assert_int_equal(region_read(file_region, 4000, out, 1000, &err), RF_OK);
}

static void grown_file_is_reported(void **state)
{
    (void)state;
    struct rf_error err = {0};

    assert_int_equal(ftruncate(file, FILE_BYTES + 1), 0);
    assert_int_equal(region_check(file_region, &err), RF_E_CHANGED);
    assert_says(&err, "10000 to 10001");
}

static void written_file_is_reported(void **state)
{
    (void)state;
    struct rf_error err = {0};

    assert_int_equal(pwrite(file, "x", 1, 77), 1);
    assert_int_equal(region_check(file_region, &err), RF_E_CHANGED);
    assert_says(&err, "written to");
}

static void written_file_with_its_old_time_is_reported(void **state)
{
    (void)state;
    struct rf_error err = {0};
    struct stat before;

    /* The change must fall into another tick of the kernel's clock than file_start(). */
    struct timespec tick = {.tv_nsec = 20000000};
    assert_int_equal(fstat(file, &before), 0);
    nanosleep(&tick, NULL);
    assert_int_equal(pwrite(file, "x", 1, 77), 1);
    const struct timespec times[2] = {before.st_atim, before.st_mtim};
    assert_int_equal(futimens(file, times), 0);
    assert_int_equal(region_check(file_region, &err), RF_E_CHANGED);
    assert_says(&err, "ctime");
}

static void deleted_linked_or_chmoded_file_is_still_served(void **state)
{
    (void)state;
    char *link_path = folder_path(folder, "link");
    uint8_t byte = 0;
    struct timespec tick = {.tv_nsec = 20000000};

    nanosleep(&tick, NULL);
    assert_int_equal(link(path, link_path), 0);
    assert_int_equal(region_check(file_region, NULL), RF_OK);
    assert_int_equal(unlink(link_path), 0);
    free(link_path);
    assert_int_equal(fchmod(file, 0400), 0);
    assert_int_equal(region_check(file_region, NULL), RF_OK);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(region_check(file_region, NULL), RF_OK);
    assert_int_equal(region_read(file_region, 9999, &byte, 1, NULL), RF_OK);
    assert_int_equal(byte, 9999 % 251);
}

static void replaced_file_is_served_as_it_was(void **state)
{
    (void)state;
    uint8_t byte = 0;
    char *other = folder_path(folder, "new");

    folder_put_text(folder, "new", "another model");
    assert_int_equal(rename(other, path), 0);
    free(other);
    assert_int_equal(region_check(file_region, NULL), RF_OK);
    assert_int_equal(region_read(file_region, 9999, &byte, 1, NULL), RF_OK);
    assert_int_equal(byte, 9999 % 251);
}

static void only_regular_files_are_served(void **state)
{
    (void)state;
    struct region *region = NULL;
    struct rf_error err = {0};
    unsigned before = open_descriptors();
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    assert_int_equal(region_create_file("/dev/null", null_fd, &region, &err), RF_E_INVAL);
    assert_says(&err, "/dev/null is not a regular file");
    close(null_fd);
    assert_int_equal(region_create_file("gone", -1, &region, &err), RF_E_SYS);
    assert_int_equal(err.sys_errno, EBADF);
    assert_null(region);
    assert_int_equal(open_descriptors(), before);
}

#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, file_start, file_stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(borrowed_memory_is_read_only_and_kept),
        cmocka_unit_test(no_memory_cannot_be_borrowed),
        cmocka_unit_test(anonymous_memory_is_zero_and_writable),
        cmocka_unit_test(memfd_is_the_same_through_its_descriptor),
        cmocka_unit_test(empty_regions_work),
        cmocka_unit_test(references_keep_it_alive),
        cmocka_unit_test(references_are_counted_by_all_threads),
        cmocka_unit_test(memory_that_is_not_there_is_refused_with_numbers),
        cmocka_unit_test(memory_promised_to_others_is_not_promised_again),
        cmocka_unit_test(no_address_space_is_an_error),
        cmocka_unit_test(limit_on_files_is_an_error_not_a_signal),
        cmocka_unit_test(populated_memory_is_there),
        cmocka_unit_test(sealed_content_is_what_was_written),
        cmocka_unit_test(write_to_sealed_memory_dies_by_sigsegv),
        cmocka_unit_test(sealed_memfd_cannot_be_changed_by_anybody),
        cmocka_unit_test(region_that_is_mapped_elsewhere_is_not_sealed_but_stays_usable),
        cmocka_unit_test(sealed_memfd_is_adopted_read_only),
        cmocka_unit_test(own_sealed_region_can_be_adopted),
        cmocka_unit_test(memfd_that_can_still_change_is_refused),
        cmocka_unit_test(memfd_of_another_size_is_refused),
        cmocka_unit_test(other_descriptors_are_refused_and_closed),
        cmocka_unit_test(reads_outside_are_refused),
        WITH_FILE(file_is_read_through_its_own_descriptor),
        WITH_FILE(truncated_file_is_reported_not_a_crash),
        WITH_FILE(grown_file_is_reported),
        WITH_FILE(written_file_is_reported),
        WITH_FILE(written_file_with_its_old_time_is_reported),
        WITH_FILE(deleted_linked_or_chmoded_file_is_still_served),
        WITH_FILE(replaced_file_is_served_as_it_was),
        cmocka_unit_test(only_regular_files_are_served),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
