/* Every machine has it, and it is the fastest way between two without RDMA: several connections,
 * each one thread's, that ask for ranges of a stream and get their bytes straight into place. The
 * protocol is wire/chunk.h.
 *
 * The protocol's rules live in conn.c (what a seed may be asked) and intake.c (what a reader may be
 * told), which do no I/O; seed.c and session.c move bytes between these and sockets. */
#include "transport/tcp/tcp.h"

#include "transport/net/dial.h"

enum { TCP_RANK = 10 };

static void tcp_available(struct transport_verdict *ret_verdict)
{
    *ret_verdict = (struct transport_verdict){
        .usable = true, .rank = TCP_RANK, .reason = "works on every machine"};
}

static void tcp_judge(const struct endpoint *endpoint, struct transport_verdict *ret_verdict)
{
    net_judge(endpoint, TCP_RANK, "IP, within one host", "IP is what connects the two hosts",
              ret_verdict);
}

const struct transport transport_tcp = {
    .name = "tcp",
    .summary = "several TCP connections, bytes straight into place",
    .default_connections = 4,
    .available = tcp_available,
    .seed_start = tcp_seed_start,
    .seed_drain = tcp_seed_drain,
    .seed_stop = tcp_seed_stop,
    .judge = tcp_judge,
    .open = tcp_session_open,
    .submit = tcp_session_submit,
    .progress = tcp_session_progress,
    .close = tcp_session_close,
};
