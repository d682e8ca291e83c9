#include "cli/signals.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static atomic_bool signal_flag;
static int signal_fd = -1;

static void on_signal(int number)
{
    int saved = errno;
    uint64_t one = 1;

    /* Release: pairs with the acquire loads of whoever polls the flag. */
    if (atomic_exchange_explicit(&signal_flag, true, memory_order_acq_rel)) {
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    (void)!write(signal_fd, &one, sizeof(one));
    errno = saved;
}

static enum rf_code handle(int number, struct rf_error *err)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    struct sigaction old;

    sigemptyset(&action.sa_mask);
    if (sigaction(number, NULL, &old) != 0)
        return rf_fail_sys(err, "sigaction");
    if (old.sa_handler == SIG_IGN)
        return RF_OK;
    if (sigaction(number, &action, NULL) != 0)
        return rf_fail_sys(err, "sigaction");
    return RF_OK;
}

enum rf_code signals_init(struct rf_error *err)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};

    signal_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (signal_fd < 0)
        return rf_fail_sys(err, "eventfd");
    for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        enum rf_code code = handle(numbers[i], err);

        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

const atomic_bool *signals_flag(void)
{
    return &signal_flag;
}

int signals_fd(void)
{
    return signal_fd;
}

bool signals_came(void)
{
    return atomic_load_explicit(&signal_flag, memory_order_acquire);
}

bool signals_wait(int wake_fd, int timeout_ms)
{
    struct pollfd fds[2] = {
        {.fd = signal_fd, .events = POLLIN},
        {.fd = wake_fd, .events = POLLIN}, /* poll() passes over -1 */
    };

    (void)poll(fds, 2, timeout_ms);
    return signals_came();
}
