/* `rfork doctor`: which paths work on this machine and towards a seed, and why the others do
 * not. */
#include "base/size.h"
#include "base/thread.h"
#include "cli/commands.h"
#include "cli/host.h"
#include "cli/jsonout.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "cli/transfer.h"
#include "control/sglang_seed.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct doctor_command {
    bool json;
    struct look_options look;
};

enum { AT_LOOK = offsetof(struct doctor_command, look) };

static const struct option_spec doctor_options[] = {
    {.name = "json",
     .type = OPTION_FLAG,
     .offset = offsetof(struct doctor_command, json),
     .help = "Print one JSON object instead of lines."},
    LOOK_ROWS(AT_LOOK),
};

static const struct command_spec doctor_spec = {
    .name = "doctor",
    .operands = "[URL]",
    .max_operands = 1,
    .summary = "say which transports work here and towards a seed",
    .text = "Says which transports work on this machine, and with a URL, towards that seed; which "
            "one a fork would take; and why the others cannot be used.\n",
    OPTION_ROWS(doctor_options),
    .examples = "  rfork doctor\n"
                "  rfork doctor http://10.0.0.5:30000\n",
    .exits = "  0 a fork could start; 2 wrong command line; 8 no seed answers;\n"
             "  13 no transport works towards that seed\n",
};

enum { DOCTOR_MAX_TRANSPORTS = 32 };

/* One line: a transport here, or an endpoint of the seed. */
struct doctor_path {
    const char *name;
    const char *summary;
    struct transport_verdict verdict;
};

struct doctor {
    struct host_facts host;
    struct doctor_path here[DOCTOR_MAX_TRANSPORTS];
    uint32_t here_count;
    /* of the seed */
    const char *url; /* NULL: none was asked for */
    struct instance_info info;
    struct doctor_path there[TRANSPORT_MAX_ENDPOINTS];
    struct transport_choice choice;
    bool chosen;
    char no_choice[RF_ERROR_TEXT_BYTES];
};

/* ---- looking ---- */

static void look_here(struct doctor *doctor)
{
    uint32_t count;
    const struct transport *const *list = transport_list(&count);

    for (uint32_t i = 0; i < count && i < DOCTOR_MAX_TRANSPORTS; i++) {
        struct doctor_path *path = &doctor->here[doctor->here_count++];

        path->name = list[i]->name;
        path->summary = list[i]->summary;
        list[i]->available(&path->verdict);
    }
}

static void judge(struct doctor_path *path, const struct endpoint *endpoint)
{
    const struct transport *transport;

    path->name = endpoint->transport;
    if (transport_find(endpoint->transport, &transport, NULL) != RF_OK) {
        snprintf(path->verdict.reason, sizeof(path->verdict.reason),
                 "this program does not know it; another version may");
        return;
    }
    transport->available(&path->verdict);
    if (path->verdict.usable)
        transport->judge(endpoint, &path->verdict);
}

/* A server that is no seed of ours. */
static enum rf_code look_at_sglang(struct doctor *doctor, struct client *client,
                                   const struct look_options *look, struct rf_error *err)
{
    const struct sglang_options options = {.data_hosts = look->ask.te_data_hosts,
                                           .timeout_ms = look->timeout_ms,
                                           .cancel = signals_flag(),
                                           .cancel_fd = signals_fd()};
    struct sglang_seed *seed = NULL;
    enum rf_code code = sglang_seed_open(client, &options, &seed, err);

    if (code == RF_AGAIN) /* nobody waits here */
        return RF_E_UNREACHABLE;
    if (code == RF_OK)
        code = sglang_seed_info(seed, &doctor->info, err);
    if (code == RF_OK && doctor->info.endpoint_count > 1)
        doctor->info.endpoint_count = 1; /* the engines are reached alike */
    sglang_seed_close(seed);
    return code;
}

static enum rf_code ask_there(struct doctor *doctor, struct client *client,
                              const struct look_options *look, struct rf_error *err)
{
    enum remote_seed_api api = ask_api(&look->ask);

    if (api != REMOTE_API_SGLANG) {
        enum rf_code code = client_instance(client, &doctor->info, err);

        if (code == RF_OK || api == REMOTE_API_RFORK || !client_is_foreign(client))
            return code;
    }
    return look_at_sglang(doctor, client, look, err);
}

static enum rf_code look_there(struct doctor *doctor, const char *url,
                               const struct look_options *look, struct rf_error *err)
{
    const struct client_options options = {.timeout_ms = look->timeout_ms,
                                           .cancel = signals_flag()};
    struct client *client = NULL;
    struct rf_error why;
    enum rf_code code = client_create(url, &options, &client, err);

    if (code == RF_OK)
        code = ask_there(doctor, client, look, err);
    client_destroy(client);
    if (code != RF_OK)
        return code;
    doctor->url = url;
    for (uint32_t i = 0; i < doctor->info.endpoint_count; i++)
        judge(&doctor->there[i], &doctor->info.endpoints[i]);
    doctor->chosen = transport_choose("auto", doctor->info.endpoints, doctor->info.endpoint_count,
                                      &doctor->choice, &why) == RF_OK;
    if (!doctor->chosen)
        snprintf(doctor->no_choice, sizeof(doctor->no_choice), "%s", why.text);
    return RF_OK;
}

/* ---- for people ---- */

static void print_path(const struct doctor_path *path)
{
    output_put("  %-10s%-4s %s\n", path->name, path->verdict.usable ? "yes" : "no",
               path->verdict.reason);
}

static void print_host(const struct host_facts *host)
{
    char available[SIZE_TEXT_BYTES];
    char total[SIZE_TEXT_BYTES];
    char locked[SIZE_TEXT_BYTES];

    output_put("This machine\n");
    output_put("  kernel          %s\n", host->kernel);
    output_put("  processors      %u\n", host->cpus);
    output_put("  memory          %s available of %s\n",
               size_text(host->available_bytes, available), size_text(host->total_bytes, total));
    output_put("  sealed memfd    %s\n", host->memfd_seal ? "yes" : host->memfd_reason);
    output_put("  huge pages      transparent for shared memory: %s; reserved: %" PRIu64
               " free of %" PRIu64 "\n",
               host->shmem_huge, host->hugetlb_free, host->hugetlb_total);
    output_put("  open files      at most %" PRIu64 "%s\n", host->nofile,
               host->nofile < HOST_FEW_FILES ? ": few for a seed with many readers; ulimit -n"
                                             : "");
    if (host->memlock == UINT64_MAX)
        output_put("  locked memory   unlimited\n");
    else
        output_put("  locked memory   at most %s\n", size_text(host->memlock, locked));
    output_put("  host id         %s\n", host->boot_id[0] != '\0' ? host->boot_id : "unknown");
}

static void print_seed(const struct doctor *doctor)
{
    output_put("\nTowards %s (%s, %s)\n", doctor->url, doctor->info.model, doctor->info.state);
    if (doctor->info.state_reason[0] != '\0')
        output_put("  %s\n", doctor->info.state_reason);
    for (uint32_t i = 0; i < doctor->info.endpoint_count; i++)
        print_path(&doctor->there[i]);
    if (doctor->info.refused_transports[0] != '\0')
        output_put("  not offered by the seed: %s\n", doctor->info.refused_transports);
    if (doctor->chosen)
        output_put("  a fork would take %s: %s\n", doctor->choice.transport->name,
                   doctor->choice.reason);
    else
        output_put("  a fork would fail: %s\n", doctor->no_choice);
}

static void print_lines(const struct doctor *doctor)
{
    print_host(&doctor->host);
    output_put("\nTransports here\n");
    for (uint32_t i = 0; i < doctor->here_count; i++)
        print_path(&doctor->here[i]);
    for (unsigned i = 0; host_missing[i].name != NULL; i++)
        output_put("  %-10s%-4s %s\n", host_missing[i].name, "no", host_missing[i].reason);
    if (doctor->url != NULL)
        print_seed(doctor);
}

/* ---- for programs ---- */

static void json_path(struct jsonout *out, const struct doctor_path *path)
{
    jsonout_open(out, path->name, '{');
    jsonout_bool(out, "usable", path->verdict.usable);
    jsonout_text(out, "reason", path->verdict.reason);
    if (path->summary != NULL)
        jsonout_text(out, "summary", path->summary);
    jsonout_close(out, '}');
}

static void json_host(struct jsonout *out, const struct host_facts *host)
{
    jsonout_open(out, "host", '{');
    jsonout_text(out, "kernel", host->kernel);
    jsonout_u64(out, "processors", host->cpus);
    jsonout_u64(out, "memory_available_bytes", host->available_bytes);
    jsonout_u64(out, "memory_total_bytes", host->total_bytes);
    jsonout_bool(out, "memfd_sealing", host->memfd_seal);
    jsonout_text(out, "shared_huge_pages", host->shmem_huge);
    jsonout_u64(out, "reserved_huge_pages", host->hugetlb_total);
    jsonout_u64(out, "reserved_huge_pages_free", host->hugetlb_free);
    jsonout_u64(out, "open_files", host->nofile);
    jsonout_text(out, "host_id", host->boot_id);
    jsonout_close(out, '}');
}

static void json_seed(struct jsonout *out, const struct doctor *doctor)
{
    jsonout_open(out, "seed", '{');
    jsonout_text(out, "url", doctor->url);
    jsonout_text(out, "model", doctor->info.model);
    jsonout_text(out, "state", doctor->info.state);
    jsonout_open(out, "transports", '{');
    for (uint32_t i = 0; i < doctor->info.endpoint_count; i++)
        json_path(out, &doctor->there[i]);
    jsonout_close(out, '}');
    jsonout_text(out, "not_offered", doctor->info.refused_transports);
    jsonout_text_or_null(out, "choice", doctor->chosen ? doctor->choice.transport->name : NULL);
    jsonout_text(out, "reason", doctor->chosen ? doctor->choice.reason : doctor->no_choice);
    jsonout_close(out, '}');
}

static enum rf_code print_json(const struct doctor *doctor, struct rf_error *err)
{
    struct jsonout out = {.comma = false};

    jsonout_open(&out, NULL, '{');
    jsonout_text(&out, "version", rf_version());
    json_host(&out, &doctor->host);
    jsonout_open(&out, "transports", '{');
    for (uint32_t i = 0; i < doctor->here_count; i++)
        json_path(&out, &doctor->here[i]);
    for (unsigned i = 0; host_missing[i].name != NULL; i++) {
        jsonout_open(&out, host_missing[i].name, '{');
        jsonout_bool(&out, "usable", false);
        jsonout_text(&out, "reason", host_missing[i].reason);
        jsonout_close(&out, '}');
    }
    jsonout_close(&out, '}');
    if (doctor->url != NULL)
        json_seed(&out, doctor);
    jsonout_close(&out, '}');
    return jsonout_print(&out, err);
}

/* ---- the command ---- */

static enum rf_code doctor_run(struct doctor *doctor, const struct doctor_command *command,
                               const char *url, struct rf_error *err)
{
    enum rf_code unreachable = RF_OK;
    struct rf_error why;

    host_look(&doctor->host);
    look_here(doctor);
    /* What is known of this machine is shown also when the seed does not answer. */
    if (url != NULL)
        unreachable = look_there(doctor, url, &command->look, &why);
    enum rf_code code = RF_OK;
    if (command->json)
        code = print_json(doctor, err);
    else
        print_lines(doctor);
    output_flush();
    if (code != RF_OK)
        return code;
    if (unreachable != RF_OK) {
        *err = why;
        return unreachable;
    }
    if (url != NULL && !doctor->chosen)
        return rf_fail(err, RF_E_UNSUPPORTED, "%s: %s", url, doctor->no_choice);
    return RF_OK;
}

int cmd_doctor(int argc, char **argv)
{
    struct doctor_command command = {.json = false};
    struct doctor doctor = {.here_count = 0};
    struct rf_error error;
    unsigned operands;
    int exit_code = options_parse(&doctor_spec, argc, argv, &command, &operands);

    if (exit_code == OPTIONS_GO_ON)
        exit_code = ask_check("doctor", &command.look.ask);
    if (exit_code != OPTIONS_GO_ON)
        return exit_code;
    enum rf_code code = doctor_run(&doctor, &command, operands > 0 ? argv[1] : NULL, &error);
    instance_info_free(&doctor.info);
    return output_end(code != RF_OK ? output_error(&error) : RF_OK);
}
