/* The options of everything that takes weights from a seed, and how results of it are said. */
#ifndef CLI_TRANSFER_H
#define CLI_TRANSFER_H

#include "cli/jsonout.h"
#include "cli/options.h"
#include "control/remote.h"

/* How a seed is asked what it has. */
struct ask_options {
    const char *seed_api;
    const char *te_data_hosts;
};

/* And of commands that take no weights, how long. */
struct look_options {
    uint64_t timeout_ms;
    struct ask_options ask;
};

struct transfer_options {
    const char *transport;
    uint64_t connections;
    uint64_t retries;
    uint64_t timeout_ms;
    uint64_t wait_ready_ms;
    bool no_verify;
    bool verify; /* mapped bytes too */
    bool copy;
    struct ask_options ask;
    const char *model_path; /* of the model's folder, for seeds that say names and sizes alone */
};

enum { TRANSFER_MAX_CONNECTIONS = 64, TRANSFER_MAX_RETRIES = 1000 };

/* Rows of an option table; `at` is the offset of a struct transfer_options. */
/* clang-format off */
#define TRANSFER_ROW_TRANSPORT(at)                                                                 \
    {.name = "transport", .type = OPTION_TEXT, .arg = "auto|map|tcp|te", .fallback = "auto",       \
     .env = "RFORK_TRANSPORT", .offset = (at) + offsetof(struct transfer_options, transport),      \
     .help = "Which path the weights take. auto: the best that works, with the reason."}
#define TRANSFER_ROW_CONNECTIONS(at)                                                               \
    {.name = "connections", .type = OPTION_COUNT, .arg = "N",                                      \
     .min = 1, .max = TRANSFER_MAX_CONNECTIONS, .env = "RFORK_CONNECTIONS",                        \
     .offset = (at) + offsetof(struct transfer_options, connections),                              \
     .help = "Connections at a time under tcp. Chosen by itself if not given."}
#define TRANSFER_ROW_RETRIES(at)                                                                   \
    {.name = "retries", .type = OPTION_COUNT, .arg = "N", .fallback = "3",                         \
     .max = TRANSFER_MAX_RETRIES, .offset = (at) + offsetof(struct transfer_options, retries),     \
     .help = "How often to read a corrupt chunk again, to replace a broken "                              \
             "connection, or to repeat a refused request."}
#define TRANSFER_ROW_TIMEOUT(at)                                                                   \
    {.name = "timeout", .type = OPTION_DURATION, .arg = "TIME", .fallback = "10s",                 \
     .env = "RFORK_TIMEOUT", .offset = (at) + offsetof(struct transfer_options, timeout_ms),       \
     .help = "How long to wait for a connection or an answer, and in silence for data."}
#define TRANSFER_ROW_WAIT_READY(at)                                                                \
    {.name = "wait-ready", .type = OPTION_DURATION, .arg = "TIME", .fallback = "0",                \
     .offset = (at) + offsetof(struct transfer_options, wait_ready_ms),                            \
     .help = "How long to wait for a seed that is still loading."}
#define TRANSFER_ROW_NO_VERIFY(at)                                                                 \
    {.name = "no-verify", .type = OPTION_FLAG,                                                     \
     .offset = (at) + offsetof(struct transfer_options, no_verify),                                \
     .help = "Do not compare what arrives with the seed's digests."}
#define TRANSFER_ROW_VERIFY(at)                                                                    \
    {.name = "verify", .type = OPTION_FLAG,                                                        \
     .offset = (at) + offsetof(struct transfer_options, verify),                                   \
     .help = "Compare mapped bytes with the seed's digests too; what is copied always is."}
#define TRANSFER_ROW_COPY(at)                                                                      \
    {.name = "copy", .type = OPTION_FLAG,                                                          \
     .offset = (at) + offsetof(struct transfer_options, copy),                                     \
     .help = "Take the weights into memory of our own even where the seed's could be shared."}
/* These are rows of a struct ask_options. */
#define ASK_ROW_SEED_API(at)                                                                       \
    {.name = "seed-api", .type = OPTION_TEXT, .arg = "auto|rfork|sglang", .fallback = "auto",      \
     .env = "RFORK_SEED_API", .offset = (at) + offsetof(struct ask_options, seed_api),             \
     .help = "How the seed is asked what it has. auto: as an rfork seed, and a server that is "    \
             "none in SGLang's way."}
#define ASK_ROW_TE_DATA_HOST(at)                                                                   \
    {.name = "te-data-host", .type = OPTION_TEXT, .arg = "ADDR,...|any",                           \
     .offset = (at) + offsetof(struct ask_options, te_data_hosts),                                 \
     .help = "Hosts that a TransferEngine may name for its data, besides the one that was asked."}
/* All of a struct look_options. */
#define LOOK_ROWS(at)                                                                              \
    {.name = "timeout", .type = OPTION_DURATION, .arg = "TIME", .fallback = "10s",                 \
     .env = "RFORK_TIMEOUT", .offset = (at) + offsetof(struct look_options, timeout_ms),           \
     .help = "How long to wait for a seed's answer."},                                             \
    ASK_ROW_SEED_API((at) + offsetof(struct look_options, ask)),                                   \
    ASK_ROW_TE_DATA_HOST((at) + offsetof(struct look_options, ask))
/* clang-format on */

/* Checks what no single option can; prints what is wrong. OPTIONS_GO_ON or 2. */
int transfer_check(const char *command, const struct transfer_options *options);
/* The same for what is in ask_options alone; the API is one of the three then. */
int ask_check(const char *command, const struct ask_options *options);
enum remote_seed_api ask_api(const struct ask_options *options);

/* Options of a remote: signals cancel it, progress goes to the terminal. *ret_options points
 * into options. */
void transfer_remote_options(const struct transfer_options *options,
                             struct remote_options *ret_options);

/* Whether the chosen transport would share the seed's pages. */
bool transfer_maps(const struct transfer_options *options, const struct remote *remote);

/* "xxh3-128:...", "" if it is not known; out of HASH_TEXT_BYTES. */
const char *transfer_root_text(const struct remote *remote, const struct remote_result *result,
                               char out[HASH_TEXT_BYTES]);

/* Members of the object that is open: bytes, seconds, bytes_per_s, transport, reason, verified,
 * root_digest and so on. manifest: what was taken. */
void transfer_json(const struct remote *remote, const struct manifest *manifest,
                   const struct remote_result *result, struct jsonout *out);

#endif
