/* SGLang's arguments of `rfork serve`: those with a meaning here as rows of its table, the others as
 * names that are accepted. Not for others than serve. */
#ifndef CLI_SERVE_SGLANG_H
#define CLI_SERVE_SGLANG_H

#include "cli/options.h"
#include "cli/sglang_args.h"
#include "control/node_hosts.h"

struct serve_command;

enum { SGLANG_MAX_NAMED = 64, SGLANG_BOOTSTRAP_PORT = 6789 };

struct serve_sglang {
    /* As given. */
    const char *backend; /* "nccl", "transfer_engine" or "modelexpress" */
    const char *seed_ip;
    uint64_t seed_port; /* 0: not given */
    const char *group_ports_text;
    bool start_seed; /* publish for TransferEngine; false again where that is excluded */
    bool memory_saver;
    uint64_t bootstrap_port;
    const char *dist_init_addr;
    uint64_t nnodes;
    uint64_t node_rank;
    const char *node_hosts_text;
    uint64_t info_port; /* 0: not given */
    uint64_t wait_nodes_ms;
    const char *dtype;
    const char *quantization; /* NULL: not given */
    const char *a2a_backend;  /* of MoE; NULL: not given */
    const char *extra_config; /* of the model loader; NULL: not given */

    /* From sglang_check() on. */
    const char *missing;           /* what a seed would have needed, in words; "" if nothing */
    uint16_t *group_ports;         /* one a rank; NULL: not given */
    struct node_hosts node_hosts;  /* count 0: not given */
    struct node_address dist_init; /* host "": not given */
    struct node_span span;         /* the ranks of this node; all of them with one node */
    char ranks_text[32];           /* the same as a list of ranks */

    /* Names that were accepted. */
    const char *ignored[SGLANG_MAX_NAMED];
    unsigned ignored_count; /* may be more than fit */
    const struct sglang_rule *said[SGLANG_MAX_NAMED];
    unsigned said_count;
};

/* Rows of an option table; `at` is the offset of a struct serve_sglang. */
/* clang-format off */
#define SGLANG_ROW_SEED_IP(at)                                                                     \
    {.name = "remote-instance-weight-loader-seed-instance-ip", .type = OPTION_TEXT, .arg = "IP",   \
     .offset = (at) + offsetof(struct serve_sglang, seed_ip),                                      \
     .help = "With the next: the same as --from."}
#define SGLANG_ROW_SEED_PORT(at)                                                                   \
    {.name = "remote-instance-weight-loader-seed-instance-service-port", .type = OPTION_COUNT,     \
     .arg = "PORT", .min = 1, .max = UINT16_MAX,                                                   \
     .offset = (at) + offsetof(struct serve_sglang, seed_port),                                    \
     .help = "The port that the seed's HTTP side listens on."}
#define SGLANG_ROW_BACKEND(at)                                                                     \
    {.name = "remote-instance-weight-loader-backend", .type = OPTION_CHOICE,                       \
     .arg = "nccl|transfer_engine|modelexpress", .fallback = "nccl",                               \
     .offset = (at) + offsetof(struct serve_sglang, backend),                                      \
     .help = "transfer_engine: take the weights by --transport te, from a seed of SGLang too. "    \
             "nccl without group ports: as --load-format auto. The rest is not available here."}
#define SGLANG_ROW_GROUP_PORTS(at)                                                                 \
    {.name = "remote-instance-weight-loader-send-weights-group-ports", .type = OPTION_TEXT,        \
     .arg = "LIST", .offset = (at) + offsetof(struct serve_sglang, group_ports_text),              \
     .help = "Of nccl: a port for each rank, as [50000,50001]."}
#define SGLANG_ROW_START_SEED(at)                                                                  \
    {.name = "remote-instance-weight-loader-start-seed-via-transfer-engine", .type = OPTION_FLAG,  \
     .offset = (at) + offsetof(struct serve_sglang, start_seed),                                   \
     .help = "Offer the weights to readers with a TransferEngine, such as SGLang."}
#define SGLANG_ROW_BOOTSTRAP_PORT(at)                                                              \
    {.name = "engine-info-bootstrap-port", .type = OPTION_COUNT, .arg = "PORT",                    \
     .fallback = "6789", .min = 1, .max = UINT16_MAX,                                              \
     .offset = (at) + offsetof(struct serve_sglang, bootstrap_port),                               \
     .help = "Where the first node answers what each rank has published."}
#define SGLANG_ROW_MEMORY_SAVER(at)                                                                \
    {.name = "enable-memory-saver", .type = OPTION_FLAG,                                           \
     .offset = (at) + offsetof(struct serve_sglang, memory_saver),                                 \
     .help = "Excludes TransferEngine, as in SGLang; nothing else here."}
#define SGLANG_ROW_NNODES(at)                                                                      \
    {.name = "nnodes", .type = OPTION_COUNT, .arg = "N", .fallback = "1",                          \
     .min = 1, .max = NODE_HOSTS_MAX, .offset = (at) + offsetof(struct serve_sglang, nnodes),      \
     .help = "Divide the ranks of --tp among N nodes, in their order."}
#define SGLANG_ROW_NODE_RANK(at)                                                                   \
    {.name = "node-rank", .type = OPTION_COUNT, .arg = "N", .fallback = "0",                       \
     .max = NODE_HOSTS_MAX - 1, .offset = (at) + offsetof(struct serve_sglang, node_rank),         \
     .help = "Which of the nodes this is; the first, 0, answers for all."}
#define SGLANG_ROW_DIST_INIT_ADDR(at)                                                              \
    {.name = "dist-init-addr", .aliases = "nccl-init-addr", .type = OPTION_TEXT,                   \
     .arg = "HOST:PORT", .offset = (at) + offsetof(struct serve_sglang, dist_init_addr),           \
     .help = "An address of the first node. Its host is where the others find that node."}
#define SGLANG_ROW_NODE_HOSTS(at)                                                                  \
    {.name = "node-hosts", .type = OPTION_TEXT, .arg = "JSON",                                     \
     .offset = (at) + offsetof(struct serve_sglang, node_hosts_text),                              \
     .help = "The address of each node: {\"0\":\"10.0.0.1\",\"1\":\"10.0.0.2\"}."}
#define SGLANG_ROW_INFO_PORT(at)                                                                   \
    {.name = "inter-node-transfer-engine-info-port", .type = OPTION_COUNT, .arg = "PORT",          \
     .min = 1, .max = UINT16_MAX, .offset = (at) + offsetof(struct serve_sglang, info_port),       \
     .help = "Where nodes other than the first are asked by ZeroMQ what they have published."}
#define SGLANG_ROW_WAIT_NODES(at)                                                                  \
    {.name = "wait-nodes", .type = OPTION_DURATION, .arg = "TIME", .fallback = "60s",              \
     .offset = (at) + offsetof(struct serve_sglang, wait_nodes_ms),                                \
     .help = "How long the first node waits for the ranks of the others before it is ready "       \
             "without them. Not SGLang's."}
#define SGLANG_ROW_DTYPE(at)                                                                       \
    {.name = "dtype", .type = OPTION_CHOICE, .arg = "auto|half|float16|bfloat16|float|float32",    \
     .fallback = "auto", .offset = (at) + offsetof(struct serve_sglang, dtype),                    \
     .help = "Must be that of --model-path: nothing is converted."}
#define SGLANG_ROW_QUANTIZATION(at)                                                                \
    {.name = "quantization", .type = OPTION_TEXT, .arg = "NAME",                                   \
     .offset = (at) + offsetof(struct serve_sglang, quantization),                                 \
     .help = "The same: must be that of --model-path."}
/* clang-format on */

/* For struct foreign_spec; `command` is a struct serve_command. */
enum rf_code sglang_take(void *command, const char *name, const char *value, struct rf_error *err);

/* Names of SGLang, with sglang_take(). */
extern const struct foreign_spec sglang_foreign;

/* Applies what was given to the command, before anything else is checked: the seed's URL, the load
 * format that is left after SGLang's own rules of fallback, the transport, the ranks of this node.
 * Says on stderr what is not as it was asked for. OPTIONS_GO_ON, or the exit code; what was wrong
 * has been printed then. */
int sglang_check(struct serve_command *command);

/* Parts of it: ports and nodes; what is said about the checkpoint. */
int sglang_check_nodes(struct serve_command *command);
int sglang_check_model(const struct serve_command *command);

void sglang_free(struct serve_sglang *sglang);

#endif
