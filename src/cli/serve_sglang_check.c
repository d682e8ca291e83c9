/* SGLang's arguments of `rfork serve` about nodes, and about what the checkpoint is. */
#include "base/cleanup.h"
#include "cli/output.h"
#include "cli/serve.h"
#include "model/config.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define GROUP_PORTS "--remote-instance-weight-loader-send-weights-group-ports"

static int usage(const char *option, const struct rf_error *error)
{
    if (error->code != RF_E_INVAL)
        return output_error(error);
    return output_usage("serve", "serve: %s: %s", option, error->text);
}

static uint32_t tp_size(const struct serve_command *command)
{
    return command->shard.tp > 0 ? (uint32_t)command->shard.tp : 1;
}

/* ---- ports ---- */

/* The ports that the kernel gives to connections; false if it does not say. */
static bool ephemeral_range(unsigned *ret_first, unsigned *ret_last)
{
    FILE *file = fopen("/proc/sys/net/ipv4/ip_local_port_range", "re");
    char line[64] = "";

    if (file == NULL)
        return false;
    bool read = fgets(line, sizeof(line), file) != NULL;
    fclose(file);
    char *end = line;
    *ret_first = (unsigned)strtoul(line, &end, 10);
    *ret_last = (unsigned)strtoul(end, NULL, 10);
    return read && *ret_first > 0 && *ret_first <= *ret_last;
}

static int check_group_ports(struct serve_command *command)
{
    struct serve_sglang *sglang = &command->sglang;
    uint32_t tp = tp_size(command);
    unsigned first = 0;
    unsigned last = 0;
    struct rf_error error;

    if (sglang->group_ports_text == NULL)
        return OPTIONS_GO_ON;
    if (node_ports_parse(sglang->group_ports_text, tp, &sglang->group_ports, &error) != RF_OK)
        return usage(GROUP_PORTS, &error);
    if (!ephemeral_range(&first, &last))
        return OPTIONS_GO_ON;
    for (uint32_t i = 0; i < tp; i++) {
        unsigned port = sglang->group_ports[i];

        if (port < first || port > last)
            continue;
        output_note(GROUP_PORTS ": port %u is one of %u ... %u, which the kernel gives to "
                                "connections: it may be taken when it is wanted",
                    port, first, last);
        break;
    }
    return OPTIONS_GO_ON;
}

/* ---- nodes ---- */

static int check_addresses(struct serve_sglang *sglang)
{
    struct rf_error error;

    if (sglang->dist_init_addr != NULL &&
        node_address_parse(sglang->dist_init_addr, &sglang->dist_init, &error) != RF_OK)
        return usage("--dist-init-addr", &error);
    if (sglang->node_hosts_text != NULL &&
        node_hosts_parse(sglang->node_hosts_text, (uint32_t)sglang->nnodes, &sglang->node_hosts,
                         &error) != RF_OK)
        return usage("--node-hosts", &error);
    if (sglang->nnodes > 1 && sglang->dist_init_addr == NULL && sglang->node_hosts_text == NULL)
        return output_usage("serve",
                            "serve: --nnodes %" PRIu64 ": nobody knows where the others are: give "
                            "--dist-init-addr HOST:PORT of the first, or --node-hosts",
                            sglang->nnodes);
    return OPTIONS_GO_ON;
}

/* The ranks of this node become what --ranks would have said. */
static int place_ranks(struct serve_command *command)
{
    struct serve_sglang *sglang = &command->sglang;
    uint32_t nodes = (uint32_t)sglang->nnodes;
    struct rf_error error;

    if (sglang->node_rank >= sglang->nnodes)
        return output_usage("serve",
                            "serve: --node-rank: node %" PRIu64 " does not exist: with --nnodes "
                            "%" PRIu64 " there %s 0%s",
                            sglang->node_rank, sglang->nnodes, nodes == 1 ? "is" : "are",
                            nodes == 1 ? " alone" : " and so on");
    if (nodes > 1 && command->shard.ranks != NULL)
        return output_usage("serve", "serve: --ranks and --nnodes both say which ranks to hold: "
                                     "give one of them");
    if (nodes > 1 && command->shard.tp == 0)
        return output_usage("serve",
                            "serve: --nnodes %" PRIu32 " divides the ranks of --tp: give "
                            "it, a multiple of %" PRIu32,
                            nodes, nodes);
    if (node_span(tp_size(command), nodes, (uint32_t)sglang->node_rank, &sglang->span, &error) !=
        RF_OK)
        return usage("--nnodes", &error);
    if (nodes == 1)
        return OPTIONS_GO_ON;
    const struct node_span *span = &sglang->span;
    snprintf(sglang->ranks_text, sizeof(sglang->ranks_text), "%" PRIu32 "-%" PRIu32, span->first,
             span->first + span->count - 1);
    command->shard.ranks = sglang->ranks_text;
    return OPTIONS_GO_ON;
}

int sglang_check_nodes(struct serve_command *command)
{
    int exit_code = place_ranks(command);

    if (exit_code == OPTIONS_GO_ON)
        exit_code = check_addresses(&command->sglang);
    if (exit_code == OPTIONS_GO_ON)
        exit_code = check_group_ports(command);
    return exit_code;
}

/* ---- what the checkpoint is ---- */

/* NULL if there is no config.json to read, or none that can be: whoever loads it says so. */
static struct model_config *read_config(const char *folder)
{
    struct model_config *config = NULL;
    struct rf_error error;
    char path[PATH_MAX];
    size_t bytes = 0;

    if (snprintf(path, sizeof(path), "%s/config.json", folder) >= (int)sizeof(path))
        return NULL;
    rf_autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    rf_autofree char *text = malloc(CONFIG_MAX_BYTES + 1);
    while (fd >= 0 && text != NULL && bytes <= CONFIG_MAX_BYTES) {
        ssize_t got = read(fd, text + bytes, CONFIG_MAX_BYTES + 1 - bytes);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        bytes += (size_t)got;
    }
    if (bytes == 0 || model_config_parse(text, bytes, &config, &error) != RF_OK)
        return NULL;
    return config;
}

static enum rf_dtype dtype_meant(const char *name)
{
    if (strcmp(name, "half") == 0 || strcmp(name, "float16") == 0)
        return RF_DTYPE_F16;
    return strcmp(name, "bfloat16") == 0 ? RF_DTYPE_BF16 : RF_DTYPE_F32;
}

static int check_dtype(const struct serve_command *command, const struct model_config *config)
{
    const char *asked = command->sglang.dtype;
    enum rf_dtype dtype;

    if (strcmp(asked, "auto") == 0)
        return OPTIONS_GO_ON;
    if (config == NULL || !model_config_dtype(config, &dtype)) {
        output_note("--dtype %s is compared with nothing, for no config.json says what the weights "
                    "are: they are served as they are stored",
                    asked);
        return OPTIONS_GO_ON;
    }
    if (dtype == dtype_meant(asked))
        return OPTIONS_GO_ON;
    return output_fail(RF_E_UNSUPPORTED,
                       "not available here: --dtype %s: the weights of %.200s are %s, and nothing "
                       "is converted; leave it out",
                       asked, command->model_path, rf_dtype_name(dtype));
}

/* "awq_marlin" is another kernel for weights that are stored as "awq". */
static bool is_quantised_so(const char *asked, const char *stored)
{
    static const char kernel[] = "_marlin";
    size_t bytes = strlen(stored);

    if (strcmp(asked, "unquant") == 0)
        return strcmp(stored, "none") == 0;
    return strncmp(asked, stored, bytes) == 0 &&
           (asked[bytes] == '\0' || strcmp(asked + bytes, kernel) == 0);
}

static int check_quantization(const struct serve_command *command,
                              const struct model_config *config)
{
    const char *asked = command->sglang.quantization;
    const char *stored = config != NULL ? model_config_quantisation(config) : "unknown";

    if (asked == NULL || (config != NULL && is_quantised_so(asked, stored)))
        return OPTIONS_GO_ON;
    if (command->model_path == NULL) {
        output_note("--quantization %.60s is compared with nothing: the seed's weights are taken "
                    "as they are",
                    asked);
        return OPTIONS_GO_ON;
    }
    return output_fail(RF_E_UNSUPPORTED,
                       "not available here: --quantization %.60s: that of %.200s is %s, and "
                       "weights are served as they are stored; serve a checkpoint that is "
                       "quantised so, or leave it out",
                       asked, command->model_path, stored);
}

/* SGLang sets --ep to --tp itself with all of them but "none". */
static int check_experts(const struct serve_command *command)
{
    const char *backend = command->sglang.a2a_backend;

    if (backend == NULL || strcmp(backend, "none") == 0 || tp_size(command) == 1 ||
        command->shard.ep == command->shard.tp)
        return OPTIONS_GO_ON;
    return output_usage("serve",
                        "serve: --moe-a2a-backend %.60s divides the experts among all ranks: add "
                        "--ep %" PRIu64,
                        backend, command->shard.tp);
}

int sglang_check_model(const struct serve_command *command)
{
    struct model_config *config =
        command->model_path != NULL ? read_config(command->model_path) : NULL;
    int exit_code = check_dtype(command, config);

    if (exit_code == OPTIONS_GO_ON)
        exit_code = check_quantization(command, config);
    model_config_destroy(config);
    return exit_code == OPTIONS_GO_ON ? check_experts(command) : exit_code;
}
