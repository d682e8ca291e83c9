#include "transport/map/map.h"

#include "base/cleanup.h"
#include "transport/map/address.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static void map_available(struct transport_verdict *ret_verdict)
{
    rf_autoclose int fd = memfd_create("rfork-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    ret_verdict->usable = fd >= 0 && access("/proc/self/fd", X_OK) == 0;
    if (ret_verdict->usable)
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason,
                 "memory can be sealed and shared on this host");
    else
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "%s",
                 fd < 0 ? "this kernel has no memory that can be sealed (memfd_create)"
                        : "/proc is not mounted");
}

static void judge_unreachable(const struct endpoint *endpoint, int why, char reason[256])
{
    bool abstract = endpoint->address[0] == '@';

    if (why == ECONNREFUSED || why == ENOENT)
        snprintf(reason, 256, "same host, but nobody listens on %.*s here: %s", 100,
                 endpoint->address,
                 abstract ? "the seed is gone, or in a container with its own network"
                          : "the seed is gone, or in a container with its own files");
    else
        snprintf(reason, 256, "same host, but %.*s cannot be reached: %s", 100, endpoint->address,
                 strerror(why));
}

static void map_judge(const struct endpoint *endpoint, struct transport_verdict *ret_verdict)
{
    struct map_address address;
    struct rf_error err = {0};
    char here[64];

    *ret_verdict = (struct transport_verdict){.rank = 300};
    transport_host_id(here);
    if (here[0] == '\0' || endpoint->host_id[0] == '\0') {
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason,
                 "which host the seed is on cannot be told: no boot id");
        return;
    }
    if (strncmp(here, endpoint->host_id, sizeof here) != 0) {
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "the seed is on another host");
        return;
    }
    if (map_address_parse(endpoint->address, &address, &err) != RF_OK) {
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "%.255s", err.text);
        return;
    }
    int why = map_address_knock(&address);
    if (why != 0) {
        judge_unreachable(endpoint, why, ret_verdict->reason);
        return;
    }
    if (!map_address_admits(&address)) {
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason,
                 "same host, but the seed runs as another user: pages are shared with its own "
                 "user and root");
        return;
    }
    ret_verdict->usable = true;
    snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "same host: shares the seed's pages");
}

extern const struct transport transport_map;

const struct transport transport_map = {
    .name = "map",
    .summary = "the seed's own pages, read-only, on the same host: no copy, whatever the size",
    .default_connections = 4,
    .available = map_available,
    .seed_start = map_seed_start,
    .seed_drain = map_seed_drain,
    .seed_stop = map_seed_stop,
    .judge = map_judge,
    .open = map_session_open,
    .submit = map_session_submit,
    .progress = map_session_progress,
    .close = map_session_close,
    .map = map_session_map,
};
