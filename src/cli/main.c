/* The program: which command, and what all of them need before they start. */
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "cli/suggest.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
};

static int cmd_help(int argc, char **argv);
static int cmd_version(int argc, char **argv);

static const struct command commands[] = {
    {"serve", cmd_serve, "hold a model in memory and let new instances fork it"},
    {"fork", cmd_fork, "take a model from a seed, into a folder or as a drill"},
    {"inspect", cmd_inspect, "say what a seed, folder or file holds"},
    {"diff", cmd_diff, "compare two models name by name"},
    {"verify", cmd_verify, "recompute the digests of a seed or folder"},
    {"bench", cmd_bench, "measure each path beside its ceiling"},
    {"doctor", cmd_doctor, "say which transports work here and towards a seed"},
    {"help", cmd_help, "explain a command, or: rfork help exit-codes"},
    {"version", cmd_version, "print the version"},
};

enum { COMMAND_COUNT = sizeof(commands) / sizeof(commands[0]) };

static const struct command *find_command(const char *name)
{
    for (unsigned i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    }
    return NULL;
}

static void put_usage(FILE *out)
{
    fprintf(out, "usage: rfork COMMAND [options] [arguments]\n\n"
                 "Takes the weights of a model from a running instance instead of from disk.\n\n"
                 "Commands:\n");
    for (unsigned i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\n"
                 "Examples:\n"
                 "  rfork serve --model-path models/all-MiniLM-L6-v2\n"
                 "  rfork fork http://127.0.0.1:30000 -o copy\n"
                 "  rfork serve --from http://127.0.0.1:30000 --port 30001\n"
                 "\n"
                 "'rfork help COMMAND' or 'rfork COMMAND --help' says more; rfork(1) all of it.\n");
}

static int unknown_command(const char *name)
{
    struct suggest suggest = {.typed = name};

    for (unsigned i = 0; i < COMMAND_COUNT; i++)
        suggest_offer(&suggest, commands[i].name);
    if (suggest.best == NULL)
        return output_usage(NULL, "no such command: %.100s", name);
    return output_usage(NULL, "no such command: %.100s; did you mean %s?", name, suggest.best);
}

static int cmd_help(int argc, char **argv)
{
    if (argc > 2)
        return output_usage(NULL, "help: one argument too many: \"%.200s\"", argv[2]);
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        put_usage(stdout);
        return output_end(RF_OK);
    }
    if (strcmp(argv[1], "exit-codes") == 0) {
        output_exit_codes();
        return output_end(RF_OK);
    }
    const struct command *command = find_command(argv[1]);
    if (command == NULL)
        return unknown_command(argv[1]);
    char help[] = "--help";
    char *words[] = {argv[1], help, NULL};
    return command->run(2, words);
}

static int cmd_version(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        printf("usage: rfork version\n\nPrints the version of the program.\n");
        return output_end(RF_OK);
    }
    if (argc > 1)
        return output_usage(NULL, "version: takes no arguments: \"%.200s\"", argv[1]);
    printf("rfork %s\n", rf_version());
    return output_end(RF_OK);
}

int main(int argc, char **argv)
{
    struct rf_error error;

    /* A peer or a pipe that goes away is an error code of the call that noticed, not the end of
     * a server. */
    signal(SIGPIPE, SIG_IGN);
    /* The same for a file that would grow beyond `ulimit -f`: EFBIG of the write. */
    signal(SIGXFSZ, SIG_IGN);
    if (argc < 2) {
        put_usage(stderr);
        return RF_E_INVAL;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return cmd_help(1, argv);
    if (strcmp(argv[1], "--version") == 0)
        return cmd_version(1, argv);
    if (argv[1][0] == '-')
        return output_usage(NULL, "no such option: %.100s; the command comes first", argv[1]);
    const struct command *command = find_command(argv[1]);
    if (command == NULL)
        return unknown_command(argv[1]);
    if (signals_init(&error) != RF_OK)
        return output_error(&error);
    return command->run(argc - 1, argv + 1);
}
