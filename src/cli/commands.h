/* The commands of the program. Each takes its own name as argv[0], prints what it has to say,
 * and returns the exit code. */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

int cmd_serve(int argc, char **argv);
int cmd_fork(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_diff(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_doctor(int argc, char **argv);

#endif
