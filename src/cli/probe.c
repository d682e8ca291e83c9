#include "cli/probe.h"

#include "base/clock.h"
#include "base/thread.h"
#include "cli/signals.h"

#include <stdlib.h>
#include <string.h>

enum {
    PROBE_BYTES = 64 << 20,
    PROBE_MS = 300,
    PROBE_FIRST_BYTES = 256 << 10, /* the first read of a connection; each next is twice as large */
    PROBE_READ_BYTES = 4 << 20,    /* but no larger: on a slow link one read must end in time */
    PROBE_SCRATCH_BYTES = 512 << 10, /* reads land here one over the other: nobody looks at them */
};

/* Shared by the connections. */
struct probe {
    struct remote_peer peer; /* who has the rank */
    const struct transfer_options *options;
    uint32_t rank;
    uint64_t stream_bytes;
    uint64_t deadline_ns;
    unsigned connections;
    atomic_uint_fast64_t next;  /* relaxed: stream offset of the next read */
    atomic_uint_fast64_t bytes; /* relaxed: a counter */
};

struct probe_sink {
    struct sink sink; /* first: a sink pointer is a probe_sink pointer */
    uint8_t *scratch;
    uint64_t left;
};

static int probe_where(struct sink *sink, struct iovec *iov, int max, uint64_t *ret_bytes)
{
    struct probe_sink *probe = (struct probe_sink *)sink;

    (void)max;
    *ret_bytes = probe->left < PROBE_SCRATCH_BYTES ? probe->left : PROBE_SCRATCH_BYTES;
    iov[0] = (struct iovec){.iov_base = probe->scratch, .iov_len = *ret_bytes};
    return 1;
}

static enum rf_code probe_took(struct sink *sink, uint64_t bytes, struct rf_error *err)
{
    struct probe_sink *probe = (struct probe_sink *)sink;

    (void)err;
    probe->left -= bytes;
    return RF_OK;
}

static uint64_t grown(uint64_t bytes)
{
    return bytes * 2 < PROBE_READ_BYTES ? bytes * 2 : PROBE_READ_BYTES;
}

/* One read after the other: of the probe's purpose, a figure to go by, this is the pessimistic
 * side. */
static enum rf_code probe_reads(struct probe *probe, struct transport_session *session,
                                uint8_t *scratch, struct rf_error *err)
{
    const struct transport *transport = probe->peer.choice->transport;
    uint64_t bytes = PROBE_FIRST_BYTES;

    for (; clock_now_ns() < probe->deadline_ns; bytes = grown(bytes)) {
        uint64_t offset = atomic_fetch_add_explicit(&probe->next, bytes, memory_order_relaxed);
        if (offset >= probe->stream_bytes || offset >= PROBE_BYTES)
            return RF_OK;
        uint64_t left = probe->stream_bytes - offset;
        struct stream_range range = {
            .offset = offset,
            .bytes = left < bytes ? left : bytes,
            .count = 1,
        };
        struct probe_sink sink = {
            .sink = {.where = probe_where, .took = probe_took},
            .scratch = scratch,
            .left = range.bytes,
        };
        struct read read = {
            .rank = probe->rank,
            .ranges = &range,
            .range_count = 1,
            .bytes = range.bytes,
            .sink = &sink.sink,
        };
        struct read *done = NULL;
        enum rf_code code = transport->submit(session, &read, err);
        if (code == RF_OK)
            code = transport->progress(session, clock_deadline_ns(probe->options->timeout_ms),
                                       &done, err);
        if (code == RF_OK && done->code != RF_OK) {
            if (err != NULL)
                *err = done->error;
            code = done->code;
        }
        if (code != RF_OK)
            return code;
        atomic_fetch_add_explicit(&probe->bytes, range.bytes, memory_order_relaxed);
    }
    return RF_OK;
}

static enum rf_code probe_connection(void *ctx, uint64_t item, struct rf_error *err)
{
    struct probe *probe = ctx;
    struct transport_open_options options = {
        .timeout_ms = probe->options->timeout_ms,
        .cancel = signals_flag(),
        .cancel_fd = signals_fd(),
        .connections = probe->connections,
        .directory = probe->peer.directory,
    };
    const struct transport *transport = probe->peer.choice->transport;
    struct transport_session *session = NULL;
    uint8_t *scratch = malloc(PROBE_SCRATCH_BYTES);

    (void)item;
    if (scratch == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a probe");
    memcpy(options.token, probe->peer.token, sizeof(options.token));
    enum rf_code code = transport->open(&probe->peer.choice->endpoint, &options, &session, err);
    if (code == RF_OK)
        code = probe_reads(probe, session, scratch, err);
    transport->close(session);
    free(scratch);
    return code;
}

static uint32_t largest_rank(const struct manifest *manifest)
{
    uint32_t largest = 0;

    for (uint32_t i = 1; i < manifest->rank_count; i++) {
        if (manifest->ranks[i].stream_bytes > manifest->ranks[largest].stream_bytes)
            largest = i;
    }
    return largest;
}

enum rf_code probe_run(struct remote *remote, const struct transfer_options *options,
                       struct probe_result *ret_result, struct rf_error *err)
{
    const struct manifest *manifest = remote_manifest(remote);
    unsigned usual = remote_choice(remote)->transport->default_connections;
    struct lease lease;
    struct probe probe = {
        .options = options,
        .rank = largest_rank(manifest),
        .connections = options->connections != 0 ? (unsigned)options->connections : usual,
    };

    if (probe.connections == 0)
        probe.connections = 1;
    probe.stream_bytes = manifest->rank_count > 0 ? manifest->ranks[probe.rank].stream_bytes : 0;
    atomic_init(&probe.next, 0);
    atomic_init(&probe.bytes, 0);
    bool leases = remote_has_digests(remote); /* as all seeds of ours */
    enum rf_code code = RF_OK;
    remote_peer(remote, probe.rank, &probe.peer);
    if (leases)
        code = client_lease_open(remote_client(remote), &lease, err);
    if (code != RF_OK)
        return code;
    if (leases)
        probe.peer.token = lease.token;
    uint64_t start_ns = clock_now_ns();
    probe.deadline_ns = clock_deadline_ns(PROBE_MS);
    code = thread_parallel(probe.connections, probe.connections, probe_connection, &probe, err);
    double seconds = clock_seconds(start_ns, clock_now_ns());
    if (leases)
        client_lease_close(remote_client(remote), &lease);
    if (code != RF_OK)
        return code;
    uint64_t bytes = atomic_load_explicit(&probe.bytes, memory_order_relaxed);
    *ret_result = (struct probe_result){
        .bytes = bytes,
        .bytes_per_s = bytes > 0 && seconds > 0 ? (double)bytes / seconds : 0,
        .connections = probe.connections,
    };
    return RF_OK;
}
