/* The first node waits for the ranks of the others. They register, or are asked for. */
#include "base/clock.h"
#include "control/nodes_internal.h"

#include <inttypes.h>
#include <string.h>

enum {
    AWAIT_LOOK_MS = 1000,    /* between two looks, unless a rank comes */
    AWAIT_LIST_BYTES = 300,  /* of missing ranks: one more node is named, then it says "others" */
    AWAIT_NODE_RANGES = 4,   /* that are named of a node */
    AWAIT_REASON_BYTES = 80, /* of what kept a node from answering */
};

/* ---- what is missing ---- */

struct missing {
    struct buf text;
    uint64_t first; /* of the ranks of this node */
    uint64_t end;
    unsigned ranges;
};

static void end_range(struct missing *missing)
{
    if (missing->first == missing->end)
        return;
    missing->ranges++;
    if (missing->ranges > AWAIT_NODE_RANGES + 1)
        return;
    buf_printf(&missing->text, missing->ranges == 1 ? ": rank " : ", ");
    if (missing->ranges > AWAIT_NODE_RANGES)
        buf_printf(&missing->text, "others");
    else if (missing->end == missing->first + 1)
        buf_printf(&missing->text, "%" PRIu64, missing->first);
    else
        buf_printf(&missing->text, "%" PRIu64 "-%" PRIu64, missing->first, missing->end - 1);
}

/* "node 1 (10.0.0.2:15036): rank 8-15 (no answer within 5000 ms)" */
static void name_missing(struct nodes *nodes, uint32_t node, struct missing *missing)
{
    uint64_t first = (uint64_t)node * nodes->ranks_per_node;
    char reason[ENGINE_INFO_REASON_BYTES] = "";
    char text[ENGINE_INFO_REASON_BYTES];

    nodes_name(nodes, node, text);
    buf_printf(&missing->text, "%s%s", missing->text.bytes > 0 ? "; " : "", text);
    missing->ranges = 0;
    missing->first = first;
    missing->end = first;
    for (uint64_t rank = first; rank < first + nodes->ranks_per_node; rank++) {
        if (nodes_knows(nodes, rank, text)) {
            end_range(missing);
            missing->first = rank + 1;
        } else if (reason[0] == '\0') {
            memcpy(reason, text, sizeof reason);
        }
        missing->end = rank + 1;
    }
    end_range(missing);
    if (reason[0] != '\0')
        buf_printf(&missing->text, " (%.*s)", AWAIT_REASON_BYTES, reason);
}

/* Whether all ranks of the node are known. One that is not stands for the others, which are asked
 * for when it is there. */
static bool look_at(struct nodes *nodes, uint32_t node, bool ask)
{
    uint64_t first = (uint64_t)node * nodes->ranks_per_node;
    char reason[ENGINE_INFO_REASON_BYTES];
    struct info_found found;
    bool all = true;

    for (uint64_t rank = first; rank < first + nodes->ranks_per_node; rank++) {
        if (nodes_knows(nodes, rank, reason))
            continue;
        all = false;
        if (ask && nodes_find(nodes, rank, true, &found, NULL) == RF_OK)
            blob_unref(found.tensors); /* it came just now */
        if (rank == first || !ask)
            break;
    }
    return all;
}

static bool look(struct nodes *nodes, bool ask)
{
    bool all = true;

    for (uint32_t node = 0; node < nodes->options.node_count; node++) {
        if (node != nodes->options.node_rank && !look_at(nodes, node, ask))
            all = false;
    }
    return all;
}

static enum rf_code still_missing(struct nodes *nodes, struct rf_error *err)
{
    struct missing missing = {.first = 0};
    uint32_t named = 0;
    uint32_t count = 0;

    for (uint32_t node = 0; node < nodes->options.node_count; node++) {
        if (node == nodes->options.node_rank || look_at(nodes, node, false))
            continue;
        count++;
        if (missing.text.bytes > AWAIT_LIST_BYTES)
            continue;
        name_missing(nodes, node, &missing);
        named++;
    }
    if (count > named)
        buf_printf(&missing.text, "; and %" PRIu32 " other nodes", count - named);
    enum rf_code code = count == 0 ? RF_OK
                        : missing.text.failed
                            ? rf_fail(err, RF_E_TIMEOUT, "%" PRIu32 " nodes", count)
                            : rf_fail(err, RF_E_TIMEOUT, "%s", (const char *)missing.text.data);
    buf_free(&missing.text);
    return code;
}

/* ---- waiting ---- */

enum rf_code nodes_await(struct nodes *nodes, uint64_t timeout_ms, struct rf_error *err)
{
    uint64_t deadline_ns = clock_deadline_ns(timeout_ms);
    char reason[RF_ERROR_TEXT_BYTES];

    if (nodes->options.node_rank > 0)
        return RF_OK;
    while (!look(nodes, timeout_ms > 0)) {
        if (seed_state(nodes->seed, reason) == SEED_FAILED)
            return rf_fail(err, RF_E_CHANGED, "stopped serving: %.400s", reason);
        if (clock_left_ms(deadline_ns) == 0)
            return still_missing(nodes, err);
        uint64_t look_ns = clock_deadline_ns(AWAIT_LOOK_MS);
        nodes_wait_news(nodes, look_ns < deadline_ns ? look_ns : deadline_ns);
    }
    return RF_OK;
}
