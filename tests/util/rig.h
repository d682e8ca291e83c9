/* A seed without a seed: an exporter over generated memory, a reader's sink, and a read from
 * beginning to end, for tests and measurements of one transport. */
#ifndef TESTS_UTIL_RIG_H
#define TESTS_UTIL_RIG_H

#include "base/thread.h"
#include "transport/transport.h"

enum { RIG_MAX_RANKS = 4, RIG_MAX_REGIONS = 8 };

struct rig_rank {
    struct layout layout;
    uint8_t *bytes; /* what the stream holds; NULL in a rig made for size */
    uint64_t stream_bytes;
};

struct rig {
    struct exporter exporter;
    uint8_t token[CHUNK_TOKEN_BYTES];
    struct rig_rank ranks[RIG_MAX_RANKS];
    uint32_t rank_count;
    atomic_uint check_code; /* what lease_check() answers; relaxed: it stands for itself */
    struct mutex lock;
    struct cond changed;
    unsigned leases_now RF_GUARDED_BY(lock);
    unsigned leases_taken RF_GUARDED_BY(lock);
    uint64_t accounted_bytes RF_GUARDED_BY(lock);
};

/* ranks x stream_bytes of pseudo-random content, each rank scattered over `regions` sealed
 * memfds. Aborts on failure. */
void rig_init(struct rig *rig, uint32_t ranks, uint64_t stream_bytes, unsigned regions);
/* The same with layouts of the caller's, taken over; bytes stays NULL. */
void rig_init_layout(struct rig *rig, struct layout *layout);
void rig_free(struct rig *rig);

/* Waits until so many leases are held: false after five seconds. */
bool rig_wait_leases(struct rig *rig, unsigned count);
/* Waits until so many bytes have been accounted for. */
bool rig_wait_bytes(struct rig *rig, uint64_t bytes);
unsigned rig_leases_taken(struct rig *rig);

/* Writes into one run of memory. */
struct rig_sink {
    struct sink sink;
    uint8_t *at;
    uint64_t bytes;
    uint64_t done;
    uint64_t part_bytes;    /* 0: all that is left */
    enum rf_code fail_code; /* not RF_OK: took() answers so once fail_after bytes have arrived */
    uint64_t fail_after;
};
void rig_sink_init(struct rig_sink *sink, void *at, uint64_t bytes);

/* One read from submit to its end, within ten seconds: its code, or the call's that failed. */
enum rf_code rig_read(const struct transport *transport, struct transport_session *session,
                      uint32_t rank, const struct stream_range *ranges, uint32_t count, void *to,
                      struct rf_error *err);

/* Somebody else cancels: a thread of rig_cancel_soon() with one of these sets the flag, and writes to
 * fd unless it is -1, when whoever started it most likely waits already; it may not. */
struct rig_canceller {
    atomic_bool flag;
    int fd;
};
void *rig_cancel_soon(void *canceller);

/* Descriptors this process has open. */
unsigned rig_open_fds(void);

#endif
