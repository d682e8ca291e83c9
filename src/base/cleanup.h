/* Scope-bound release, and handing over. */
#ifndef BASE_CLEANUP_H
#define BASE_CLEANUP_H

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *at)
{
    int saved = errno;
    free(*(void **)at);
    errno = saved;
}

static inline void cleanup_close(const int *fd)
{
    int saved = errno;
    if (*fd >= 0)
        close(*fd);
    errno = saved;
}

/* Freed, closed at the end of the scope; errno is kept. An fd of -1 and NULL are left alone. */
#define rf_autofree  __attribute__((cleanup(cleanup_free)))
#define rf_autoclose __attribute__((cleanup(cleanup_close)))

/* Yields the value and leaves `null` behind: rf_take(p, NULL), rf_take(fd, -1). */
#define rf_take(var, null)              \
    __extension__({                     \
        __typeof__(var) taken_ = (var); \
        (var) = (null);                 \
        taken_;                         \
    })

#endif
