/* Ctrl-C and SIGTERM ask for an orderly end: a flag is set and a descriptor becomes readable.
 * The second one ends the program at once. */
#ifndef CLI_SIGNALS_H
#define CLI_SIGNALS_H

#include "base/error.h"

#include <stdatomic.h>

/* Once, before any thread is started. SIGHUP counts too; what was ignored when the program
 * started (nohup) stays so. */
enum rf_code signals_init(struct rf_error *err);

/* Set (release) by the handler; static. */
const atomic_bool *signals_flag(void);
/* An eventfd, readable from the first signal on. */
int signals_fd(void);
bool signals_came(void);

/* Waits for a signal, or for wake_fd (-1: none) to become readable, at most timeout_ms. Whether
 * a signal came. */
bool signals_wait(int wake_fd, int timeout_ms);

#endif
