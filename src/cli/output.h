/* What the program says: results on stdout, everything else on stderr, one line each. */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H

#include "base/error.h"

/* "rfork: <line>" on stderr; returns the exit code that goes with the error. */
int output_error(const struct rf_error *err);
/* The same for a line made here. */
int output_fail(enum rf_code code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same for a wrong command line: adds where to read more. Returns 2. */
int output_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "rfork: <line>" on stderr: something the user should know although all goes well. Any thread. */
void output_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* printf() for stdout. Control characters and the like in what it shows become '?', since names of
 * tensors and texts of peers may be anything; newlines count only at the format's beginning and
 * end. Not flushed. */
void output_put(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The same as a line of its own, flushed. A reader of stdout that went away is not an error: whoever pipes
 * into `head` has seen enough, and a server has others to care for. */
void output_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A JSON text as a line, as it is: whoever made it has escaped what needs it. */
void output_json(const char *text);

/* Flushes stdout, and remembers what went wrong for output_end(). */
void output_flush(void);

/* Flushes stdout. RF_E_SYS if what was written so far got lost (disk full). */
enum rf_code output_check(struct rf_error *err);

/* The same at the end of a command: the exit code, or RF_E_SYS with a line on stderr if what was written got lost
 * (disk full). */
int output_end(int exit_code);

/* All codes with their meaning, on stdout. */
void output_exit_codes(void);

#endif
