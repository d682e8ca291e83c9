#include "cli/serve_sglang.h"

#include "base/buf.h"
#include "cli/output.h"
#include "cli/serve.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOADER "--remote-instance-weight-loader"

/* ---- names that are accepted ---- */

const struct foreign_spec sglang_foreign = {
    .program = "SGLang",
    .names =
        {
            [FOREIGN_NONE] = sglang_flag_names,
            [FOREIGN_ONE] = sglang_value_names,
            [FOREIGN_MAYBE] = sglang_maybe_names,
            [FOREIGN_LIST] = sglang_list_names,
        },
    .take = sglang_take,
};

static void remember_ignored(struct serve_sglang *sglang, const char *name)
{
    for (unsigned i = 0; i < sglang->ignored_count && i < SGLANG_MAX_NAMED; i++) {
        if (sglang->ignored[i] == name)
            return;
    }
    if (sglang->ignored_count < SGLANG_MAX_NAMED)
        sglang->ignored[sglang->ignored_count] = name;
    sglang->ignored_count++;
}

static void remember_said(struct serve_sglang *sglang, const struct sglang_rule *rule)
{
    for (unsigned i = 0; i < sglang->said_count; i++) {
        if (sglang->said[i] == rule)
            return;
    }
    if (sglang->said_count < SGLANG_MAX_NAMED)
        sglang->said[sglang->said_count++] = rule;
}

enum rf_code sglang_take(void *command, const char *name, const char *value, struct rf_error *err)
{
    struct serve_sglang *sglang = &((struct serve_command *)command)->sglang;
    const struct sglang_rule *rule = sglang_rule_find(name, value);

    if (strcmp(name, "moe-a2a-backend") == 0)
        sglang->a2a_backend = value;
    else if (strcmp(name, "model-loader-extra-config") == 0)
        sglang->extra_config = value;
    if (rule == NULL)
        remember_ignored(sglang, name);
    else if (!rule->refused)
        remember_said(sglang, rule);
    else if (rule->harmless != NULL)
        return rf_fail(err, RF_E_UNSUPPORTED, "not available here: --%s %.60s: %s", name, value,
                       rule->why);
    else /* what is secret does not come here with its value */
        return rf_fail(err, RF_E_UNSUPPORTED, "not available here: --%s: %s", name, rule->why);
    return RF_OK;
}

static void say_names(const struct serve_sglang *sglang)
{
    struct buf list BUF_AUTO = {0};
    unsigned shown =
        sglang->ignored_count < SGLANG_MAX_NAMED ? sglang->ignored_count : SGLANG_MAX_NAMED;

    for (unsigned i = 0; i < sglang->said_count; i++)
        output_note("--%s is not honoured: %s", sglang->said[i]->name, sglang->said[i]->why);
    for (unsigned i = 0; i < shown && list.bytes < 800; i++)
        buf_printf(&list, "%s--%s", i > 0 ? ", " : "", sglang->ignored[i]);
    if (shown > 0 && !list.failed)
        output_note("ignored, as without bearing on weights: %s%s", (const char *)list.data,
                    list.bytes >= 800 || sglang->ignored_count > shown ? " and others" : "");
}

/* ---- load formats ---- */

static const char as_disk[] = "safetensors";

static const struct load_format {
    const char *name;
    const char *taken_as; /* NULL: not available */
    const char *why;
} load_formats[] = {
    {"auto", "auto", NULL},
    {"safetensors", as_disk, NULL},
    {"remote_instance", "remote_instance", NULL},
    /* Other ways to read the same files. */
    {"instanttensor", as_disk, "another reader of the same files"},
    {"fastsafetensors", as_disk, "another reader of the same files"},
    {"runai_streamer", as_disk, "another reader of the same files"},
    {"layered", as_disk, "an order in which the same files are read"},
    {"pt", NULL, "only safetensors files are read; convert the checkpoint"},
    {"npcache", NULL, "only safetensors files are read; convert the checkpoint"},
    {"gguf", NULL, "only safetensors files are read; convert the checkpoint"},
    {"expert_pack", NULL, "only safetensors files are read; convert the checkpoint"},
    {"mistral", NULL,
     "Mistral's own names of tensors are not known; take the checkpoint in the "
     "format of Hugging Face"},
    {"bitsandbytes", NULL, "nothing is quantised while it is loaded; serve a checkpoint that is"},
    {"flash_rl", NULL, "nothing is quantised while it is loaded; serve a checkpoint that is"},
    {"dummy", NULL, "there are no weights to serve; give a checkpoint"},
    {"sharded_state", NULL, "a checkpoint is cut while it is loaded; give the whole one and --tp"},
    {"presharded", NULL, "a checkpoint is cut while it is loaded; give the whole one and --tp"},
    {"remote", NULL, "weights come from files or from a seed; give --model-path or --from"},
    {"private", NULL, "a loader of somebody's own cannot be called; give safetensors files"},
};

static int check_load_format(struct serve_command *command)
{
    const char *asked = command->load_format;

    for (unsigned i = 0; i < sizeof(load_formats) / sizeof(load_formats[0]); i++) {
        const struct load_format *format = &load_formats[i];

        if (strcmp(format->name, asked) != 0)
            continue;
        if (format->taken_as == NULL)
            return output_fail(RF_E_UNSUPPORTED, "not available here: --load-format %s: %s", asked,
                               format->why);
        if (format->why != NULL)
            output_note("--load-format %s is taken as %s: it is %s", asked, format->taken_as,
                        format->why);
        command->load_format = format->taken_as;
        return OPTIONS_GO_ON;
    }
    return output_usage("serve",
                        "serve: --load-format: \"%.100s\" is none of "
                        "auto|safetensors|remote_instance, nor another one of SGLang",
                        asked);
}

/* ---- which seed, by which backend ---- */

static const char *or_else(const struct serve_command *command)
{
    return command->model_path != NULL ? ", else from --model-path" : "";
}

/* SGLang's rules for remote_instance that end in "auto". Ours takes the seed that is named all the
 * same, by another path. */
static int fall_back(struct serve_command *command)
{
    struct serve_sglang *sglang = &command->sglang;
    bool nccl = strcmp(sglang->backend, "nccl") == 0;
    bool complete = sglang->seed_ip != NULL && sglang->seed_port != 0;
    if (strcmp(command->load_format, "remote_instance") != 0)
        return OPTIONS_GO_ON;
    if (nccl && sglang->group_ports != NULL && (complete || command->from != NULL))
        return output_fail(RF_E_UNSUPPORTED, "not available here: " LOADER "-backend nccl: drop "
                                             "...-send-weights-group-ports to fork by rfork's own "
                                             "transports, or give ...-backend transfer_engine");
    if (command->from != NULL)
        return OPTIONS_GO_ON;
    if (!complete) {
        sglang->missing = sglang->seed_ip == NULL && sglang->seed_port == 0
                              ? "the seed's ip and service port are missing"
                          : sglang->seed_ip == NULL ? "the seed's ip is missing"
                                                    : "the seed's service port is missing";
        output_note("--load-format remote_instance is taken as auto, as in SGLang: %s "
                    "(" LOADER "-seed-instance-ip, ...-seed-instance-service-port)",
                    sglang->missing);
        sglang->seed_ip = NULL;
        sglang->seed_port = 0;
        command->load_format = "auto";
    } else if (nccl) {
        output_note("--load-format remote_instance is taken as auto, as in SGLang, for backend "
                    "nccl has no ...-send-weights-group-ports: from the seed by rfork's own "
                    "transports%s",
                    or_else(command));
        command->load_format = "auto";
    }
    return OPTIONS_GO_ON;
}

static int find_seed(struct serve_command *command)
{
    const struct serve_sglang *sglang = &command->sglang;
    bool v6 = sglang->seed_ip != NULL && strchr(sglang->seed_ip, ':') != NULL &&
              sglang->seed_ip[0] != '[';

    if (sglang->seed_ip == NULL && sglang->seed_port == 0)
        return OPTIONS_GO_ON;
    if (sglang->seed_ip == NULL || sglang->seed_port == 0)
        return output_usage("serve",
                            "serve: " LOADER "-seed-instance-ip and "
                            "...-seed-instance-service-port go together: %s is missing",
                            sglang->seed_ip == NULL ? "the first" : "the second");
    if (command->from != NULL)
        return output_usage("serve", "serve: --from and " LOADER "-... name the seed twice: give "
                                     "one of them");
    int bytes = snprintf(command->seed_url, sizeof(command->seed_url), "http://%s%s%s:%" PRIu64,
                         v6 ? "[" : "", sglang->seed_ip, v6 ? "]" : "", sglang->seed_port);
    if (bytes < 0 || (size_t)bytes >= sizeof(command->seed_url))
        return output_usage("serve", "serve: " LOADER "-seed-instance-ip: too long for an address");
    command->from = command->seed_url;
    return OPTIONS_GO_ON;
}

static void choose_transport(struct serve_command *command)
{
    struct serve_sglang *sglang = &command->sglang;

    if (sglang->start_seed && sglang->memory_saver) {
        output_note(LOADER "-start-seed-via-transfer-engine is taken back, as in SGLang: "
                           "--enable-memory-saver excludes it");
        sglang->start_seed = false;
    }
    if (strcmp(sglang->backend, "transfer_engine") != 0 || command->from == NULL)
        return;
    if (sglang->memory_saver) {
        output_note("--load-format is taken as auto, as in SGLang, for --enable-memory-saver "
                    "excludes backend transfer_engine: from the seed by rfork's own transports%s",
                    or_else(command));
        command->load_format = "auto";
    } else if (strcmp(command->transfer.transport, "auto") == 0) {
        command->transfer.transport = "te";
    }
}

/* ---- the whole ---- */

static int check_backend(struct serve_command *command)
{
    struct serve_sglang *sglang = &command->sglang;

    if (strcmp(sglang->backend, "modelexpress") == 0)
        return output_fail(RF_E_UNSUPPORTED,
                           "not available here: " LOADER "-backend modelexpress: give "
                           "transfer_engine, or leave it out to fork by rfork's own transports");
    /* SGLang refuses it there, and reads it as advice on files else. */
    if (strcmp(command->load_format, "remote_instance") == 0 && sglang->extra_config != NULL &&
        sglang->extra_config[0] != '\0' && strcmp(sglang->extra_config, "{}") != 0)
        return output_usage("serve", "serve: --model-loader-extra-config: --load-format "
                                     "remote_instance takes none");
    int exit_code = fall_back(command);
    if (exit_code == OPTIONS_GO_ON)
        exit_code = find_seed(command);
    if (exit_code == OPTIONS_GO_ON)
        choose_transport(command);
    return exit_code;
}

int sglang_check(struct serve_command *command)
{
    int exit_code = check_load_format(command);

    say_names(&command->sglang);
    if (exit_code == OPTIONS_GO_ON)
        exit_code = sglang_check_nodes(command);
    if (exit_code == OPTIONS_GO_ON)
        exit_code = check_backend(command);
    if (exit_code == OPTIONS_GO_ON)
        exit_code = sglang_check_model(command);
    return exit_code;
}

void sglang_free(struct serve_sglang *sglang)
{
    free(sglang->group_ports);
    node_hosts_free(&sglang->node_hosts);
    sglang->group_ports = NULL;
}
