#include "transport/te/te.h"

#include "transport/net/dial.h"

enum { TE_RANK = 5 }; /* below tcp, which does the same with less on the wire */

static void te_available(struct transport_verdict *ret_verdict)
{
    *ret_verdict = (struct transport_verdict){
        .usable = true, .rank = TE_RANK, .reason = "works on every machine"};
}

static void te_judge(const struct endpoint *endpoint, struct transport_verdict *ret_verdict)
{
    net_judge(endpoint, TE_RANK, "TransferEngine over IP, within one host",
              "TransferEngine over IP", ret_verdict);
}

const struct transport transport_te = {
    .name = "te",
    .summary = "Mooncake's TransferEngine over TCP, for its engines and ours; no tokens",
    .default_connections = 4,
    .on_request = true,
    .available = te_available,
    .seed_start = te_seed_start,
    .seed_drain = te_seed_drain,
    .seed_stop = te_seed_stop,
    .seed_base = te_seed_base,
    .judge = te_judge,
    .open = te_session_open,
    .submit = te_session_submit,
    .progress = te_session_progress,
    .close = te_session_close,
};
