/* What this machine offers: kernel, memory, limits. */
#ifndef CLI_HOST_H
#define CLI_HOST_H

#include <stdbool.h>
#include <stdint.h>

enum { HOST_FEW_FILES = 4096 }; /* below that a seed of many readers runs out of descriptors */

struct host_facts {
    char kernel[160];
    unsigned cpus;
    uint64_t available_bytes;
    uint64_t total_bytes;
    bool memfd_seal;
    char memfd_reason[160]; /* why not */
    char shmem_huge[32];    /* "always", "advise", "never", ...; "unknown" */
    uint64_t hugetlb_total;
    uint64_t hugetlb_free;
    uint64_t nofile;
    uint64_t memlock; /* UINT64_MAX: no limit */
    char boot_id[64];
};

/* Looks; what cannot be read stays zero. Does not block. */
void host_look(struct host_facts *ret_facts);

/* The largest resident set this process has had since it was executed, shared pages included; 0
 * if unknown. */
uint64_t host_peak_resident_bytes(void);

/* Transports that people ask for and this build has not; NULL name at the end. */
struct host_missing {
    const char *name;
    const char *reason;
};
extern const struct host_missing host_missing[];

#endif
