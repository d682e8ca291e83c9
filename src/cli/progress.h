/* One line on a terminal, redrawn: bytes, rate, time left. Nothing at all where stderr is no
 * terminal, and nothing for what takes less than a second. One at a time per program; every
 * function may be called from any thread. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdint.h>

/* label is borrowed until progress_end(). total_bytes 0: not known yet. */
void progress_begin(const char *label, uint64_t total_bytes);
/* Fits fork_progress_fn. */
void progress_set(void *ctx, uint64_t done_bytes, uint64_t total_bytes);
/* Fits region_progress_fn. */
void progress_add(void *ctx, uint64_t added_bytes);
/* Takes the line off the screen until the next redraw: before anything else is printed. */
void progress_hide(void);
void progress_end(void);

#endif
