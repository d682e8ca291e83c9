#include "cli/host.h"

#include "base/cleanup.h"
#include "base/thread.h"
#include "memory/region.h"
#include "transport/transport.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/utsname.h>

const struct host_missing host_missing[] = {
    {"cuda", "not in this build"},
    {"rdma", "not in this build"},
    {NULL, NULL},
};

/* What region_seal() does, in small. */
static void look_memfd(struct host_facts *facts)
{
    rf_autoclose int fd = memfd_create("rfork-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    const char *step = "memfd_create";
    char reason[96];

    if (fd >= 0) {
        step = "ftruncate";
        if (ftruncate(fd, 4096) == 0) {
            step = "F_ADD_SEALS";
            facts->memfd_seal =
                fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) ==
                0;
        }
    }
    if (!facts->memfd_seal)
        snprintf(facts->memfd_reason, sizeof(facts->memfd_reason), "no: %s: %s", step,
                 strerror_r(errno, reason, sizeof(reason)));
}

/* "always within_size [advise] never deny force" */
static void look_huge(struct host_facts *facts)
{
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");
    char line[160] = "";

    snprintf(facts->shmem_huge, sizeof(facts->shmem_huge), "unknown");
    if (file == NULL)
        return;
    if (fgets(line, sizeof(line), file) != NULL) {
        const char *open = strchr(line, '[');
        const char *close = open != NULL ? strchr(open, ']') : NULL;

        if (close != NULL)
            snprintf(facts->shmem_huge, sizeof(facts->shmem_huge), "%.*s", (int)(close - open - 1),
                     open + 1);
    }
    fclose(file);
}

static void look_meminfo(struct host_facts *facts)
{
    FILE *file = fopen("/proc/meminfo", "re");
    char line[160];

    if (file == NULL)
        return;
    while (fgets(line, sizeof(line), file) != NULL) {
        const char *colon = strchr(line, ':');
        uint64_t number = colon != NULL ? strtoull(colon + 1, NULL, 10) : 0;

        if (strncmp(line, "MemTotal:", 9) == 0)
            facts->total_bytes = number * 1024;
        else if (strncmp(line, "HugePages_Total:", 16) == 0)
            facts->hugetlb_total = number;
        else if (strncmp(line, "HugePages_Free:", 15) == 0)
            facts->hugetlb_free = number;
    }
    fclose(file);
}

static uint64_t limit_of(int resource)
{
    struct rlimit limit;

    if (getrlimit((__rlimit_resource_t)resource, &limit) != 0)
        return 0;
    return limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : (uint64_t)limit.rlim_cur;
}

void host_look(struct host_facts *ret_facts)
{
    struct utsname name;

    *ret_facts = (struct host_facts){.cpus = thread_cpus(), .available_bytes = memory_available()};
    if (uname(&name) == 0)
        snprintf(ret_facts->kernel, sizeof(ret_facts->kernel), "%.60s %.60s %.30s", name.sysname,
                 name.release, name.machine);
    look_memfd(ret_facts);
    look_huge(ret_facts);
    look_meminfo(ret_facts);
    ret_facts->nofile = limit_of(RLIMIT_NOFILE);
    ret_facts->memlock = limit_of(RLIMIT_MEMLOCK);
    transport_host_id(ret_facts->boot_id);
}

uint64_t host_peak_resident_bytes(void)
{
    FILE *status = fopen("/proc/self/status", "re");
    char line[256];
    uint64_t kib = 0;

    if (status == NULL)
        return 0;
    while (kib == 0 && fgets(line, sizeof(line), status) != NULL) {
        if (strncmp(line, "VmHWM:", 6) == 0)
            kib = strtoull(line + 6, NULL, 10);
    }
    fclose(status);
    return kib * 1024;
}
