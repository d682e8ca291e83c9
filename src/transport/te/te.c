#include "transport/te/te.h"

#include "transport/net/socket.h"

#include <stdio.h>
#include <string.h>

enum { TE_RANK = 5 }; /* below tcp, which does the same with less on the wire */

static void te_available(struct transport_verdict *ret_verdict)
{
    *ret_verdict = (struct transport_verdict){
        .usable = true, .rank = TE_RANK, .reason = "works on every machine"};
}

static void te_judge(const struct endpoint *endpoint, struct transport_verdict *ret_verdict)
{
    struct net_address address = {.bytes = 0};
    struct rf_error error = {0};
    char host_id[64];

    *ret_verdict = (struct transport_verdict){.rank = TE_RANK};
    if (net_address_parse(endpoint->address, &address, &error) != RF_OK) {
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "%.200s", error.text);
        return;
    }
    if (net_address_is_any(&address)) {
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason,
                 "the seed names no address, only a port");
        return;
    }
    bool same_host =
        endpoint->host_id[0] != '\0' && strcmp(endpoint->host_id, transport_host_id(host_id)) == 0;
    ret_verdict->usable = true;
    snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "%s",
             same_host ? "TransferEngine over IP, within one host" : "TransferEngine over IP");
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
