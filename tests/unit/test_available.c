/* How much memory may be taken: the least of the machine and every cgroup above us. */
#include "memory/available.h"
#include "memory/region.h"
#include "util/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MIB (UINT64_C(1) << 20)

static char *root;

static int make_root(void **state)
{
    (void)state;
    root = folder_make();
    folder_mkdir(root, "proc");
    folder_mkdir(root, "proc/self");
    folder_mkdir(root, "sys");
    folder_mkdir(root, "sys/fs");
    folder_mkdir(root, "sys/fs/cgroup");
    folder_put_text(root, "proc/meminfo",
                    "MemTotal:       24684092 kB\nMemFree:        13093000 kB\n"
                    "MemAvailable:   10485760 kB\nBuffers:            1000 kB\n");
    return 0;
}

static int remove_root(void **state)
{
    (void)state;
    folder_remove(root);
    return 0;
}

static void put_v2(const char *cgroup, const char *max, const char *current)
{
    char name[256];

    snprintf(name, sizeof name, "sys/fs/cgroup%s/memory.max", cgroup);
    folder_put_text(root, name, max);
    snprintf(name, sizeof name, "sys/fs/cgroup%s/memory.current", cgroup);
    folder_put_text(root, name, current);
}

static void machine_alone_sets_the_limit(void **state)
{
    (void)state;
    assert_true(memory_available_under(root) == 10240 * MIB);
    folder_put_text(root, "proc/self/cgroup", "0::/\n");
    assert_true(memory_available_under(root) == 10240 * MIB);
}

static void cgroup_v2_sets_a_lower_limit(void **state)
{
    (void)state;
    folder_put_text(root, "proc/self/cgroup", "0::/job\n");
    folder_mkdir(root, "sys/fs/cgroup/job");
    put_v2("/job", "1073741824\n", "268435456\n");
    assert_true(memory_available_under(root) == 768 * MIB);
}

static void page_cache_of_a_cgroup_counts_as_free(void **state)
{
    (void)state;
    folder_put_text(root, "proc/self/cgroup", "0::/job\n");
    folder_mkdir(root, "sys/fs/cgroup/job");
    put_v2("/job", "1073741824\n", "1073741824\n");
    assert_true(memory_available_under(root) == 0);
    folder_put_text(root, "sys/fs/cgroup/job/memory.stat",
                    "anon 104857600\nfile 900000000\nshmem 10\ninactive_anon 5\n"
                    "inactive_file 524288000\nactive_file 104857600\nunevictable 0\n");
    assert_true(memory_available_under(root) == 600 * MIB);
}

static void limit_of_a_cgroup_above_counts(void **state)
{
    (void)state;
    folder_put_text(root, "proc/self/cgroup", "0::/pod/container/inner\n");
    folder_mkdir(root, "sys/fs/cgroup/pod");
    folder_mkdir(root, "sys/fs/cgroup/pod/container");
    folder_mkdir(root, "sys/fs/cgroup/pod/container/inner");
    put_v2("/pod", "2147483648\n", "1073741824\n");
    put_v2("/pod/container", "max\n", "1073741824\n");
    put_v2("/pod/container/inner", "8589934592\n", "0\n");
    assert_true(memory_available_under(root) == 1024 * MIB);
}

static void soft_limit_counts_like_the_hard_one(void **state)
{
    (void)state;
    folder_put_text(root, "proc/self/cgroup", "0::/job\n");
    folder_mkdir(root, "sys/fs/cgroup/job");
    put_v2("/job", "max\n", "104857600\n");
    folder_put_text(root, "sys/fs/cgroup/job/memory.high", "209715200\n");
    assert_true(memory_available_under(root) == 100 * MIB);
}

static void used_beyond_the_limit_leaves_nothing(void **state)
{
    (void)state;
    folder_put_text(root, "proc/self/cgroup", "0::/job\n");
    folder_mkdir(root, "sys/fs/cgroup/job");
    put_v2("/job", "1000\n", "2000\n");
    assert_true(memory_available_under(root) == 0);
}

static void cgroup_v1_sets_a_lower_limit(void **state)
{
    (void)state;
    folder_put_text(root, "proc/self/cgroup",
                    "9:name=systemd:/\n5:cpu,memory:/docker/abc\n3:cpuset:/\n0::/\n");
    folder_mkdir(root, "sys/fs/cgroup/memory");
    folder_mkdir(root, "sys/fs/cgroup/memory/docker");
    folder_mkdir(root, "sys/fs/cgroup/memory/docker/abc");
    folder_put_text(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    folder_put_text(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "5000000000\n");
    folder_put_text(root, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "536870912\n");
    folder_put_text(root, "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "471859200\n");
    folder_put_text(root, "sys/fs/cgroup/memory/docker/abc/memory.stat",
                    "cache 1\ninactive_file 7\ntotal_inactive_file 104857600\n"
                    "total_active_file 104857600\n");
    assert_true(memory_available_under(root) == 262 * MIB);
}

/* What a container sees that has its own mount but not its own cgroup namespace. */
static void unknown_path_falls_back_to_the_mount(void **state)
{
    (void)state;
    folder_put_text(root, "proc/self/cgroup", "0::/system.slice/docker-0123.scope\n");
    put_v2("", "524288000\n", "104857600\n");
    assert_true(memory_available_under(root) == 400 * MIB);
    folder_put_text(root, "proc/self/cgroup", "0::/../../other\n");
    assert_true(memory_available_under(root) == 400 * MIB);
}

static void nonsense_sets_no_limit(void **state)
{
    (void)state;
    static const char *const cgroups[] = {
        "", "\n", "0", "0:", "0::", "::::", "0:memory", "4:mem:/\n", "4:memoryx:/job\n", "\xff\xff",
    };
    static const char *const numbers[] = {"", "\n", "none\n", "-1\n", "99999999999999999999999\n"};

    folder_mkdir(root, "sys/fs/cgroup/job");
    for (size_t i = 0; i < sizeof cgroups / sizeof cgroups[0]; i++) {
        folder_put_text(root, "proc/self/cgroup", cgroups[i]);
        assert_true(memory_available_under(root) == 10240 * MIB);
    }
    folder_put_text(root, "proc/self/cgroup", "0::/job\n");
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        put_v2("/job", numbers[i], "1\n");
        assert_true(memory_available_under(root) == 10240 * MIB);
        put_v2("/job", "1000\n", numbers[i]);
        assert_true(memory_available_under(root) == 10240 * MIB);
    }
    put_v2("/job", "1000\n", "100\n");
    folder_put_text(root, "sys/fs/cgroup/job/memory.stat", "inactive_file 5000\nactive_file 1\n");
    assert_true(memory_available_under(root) == 900);
    folder_put_text(root, "proc/meminfo", "MemAvailable: lots\n");
    assert_true(memory_available_under(root) == 900);
}

static void very_long_path_is_no_trouble(void **state)
{
    (void)state;
    static char line[12000];

    memset(line, 'a', sizeof line - 1);
    memcpy(line, "0::/", 4);
    folder_put_text(root, "proc/self/cgroup", line);
    assert_true(memory_available_under(root) == 10240 * MIB);
}

static void missing_files_set_no_limit(void **state)
{
    (void)state;
    assert_true(memory_available_under("/nonexistent") == UINT64_MAX);
}

static void this_machine_has_some(void **state)
{
    (void)state;
    assert_in_range(memory_available(), MIB, UINT64_C(1) << 50);
}

#define ROOTED(test) cmocka_unit_test_setup_teardown(test, make_root, remove_root)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ROOTED(machine_alone_sets_the_limit),
        ROOTED(cgroup_v2_sets_a_lower_limit),
        ROOTED(page_cache_of_a_cgroup_counts_as_free),
        ROOTED(limit_of_a_cgroup_above_counts),
        ROOTED(soft_limit_counts_like_the_hard_one),
        ROOTED(used_beyond_the_limit_leaves_nothing),
        ROOTED(cgroup_v1_sets_a_lower_limit),
        ROOTED(unknown_path_falls_back_to_the_mount),
        ROOTED(nonsense_sets_no_limit),
        ROOTED(very_long_path_is_no_trouble),
        cmocka_unit_test(missing_files_set_no_limit),
        cmocka_unit_test(this_machine_has_some),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
