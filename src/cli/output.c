#include "cli/output.h"

#include "base/cleanup.h"
#include "cli/progress.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* One write per line, so that lines of several threads do not mix; a progress line gives way. */
__attribute__((format(printf, 1, 0))) static void put_line(const char *fmt, va_list args)
{
    char line[RF_ERROR_TEXT_BYTES + 512];

    vsnprintf(line, sizeof(line), fmt, args);
    rf_text_sanitise(line);
    progress_hide();
    fprintf(stderr, "rfork: %s\n", line);
}

void output_note(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    put_line(fmt, args);
    va_end(args);
}

int output_error(const struct rf_error *err)
{
    output_note("%s", err->text[0] != '\0' ? err->text : rf_code_name(err->code));
    return err->code > RF_OK && err->code < RF_AGAIN ? (int)err->code : (int)RF_E_FAILED;
}

int output_fail(enum rf_code code, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    put_line(fmt, args);
    va_end(args);
    return (int)code;
}

int output_usage(const char *command, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    put_line(fmt, args);
    va_end(args);
    fprintf(stderr, "Try 'rfork%s%s --help'.\n", command != NULL ? " " : "",
            command != NULL ? command : "");
    return RF_E_INVAL;
}

static int stdout_errno; /* of the first flush that failed */

void output_flush(void)
{
    if (fflush(stdout) != 0 && stdout_errno == 0)
        stdout_errno = errno;
}

/* Newlines at the format's beginning and end are its own, all others came with what it shows. */
__attribute__((format(printf, 1, 0))) static void put_text(const char *fmt, va_list args)
{
    rf_autofree char *text = NULL;

    if (vasprintf(&text, fmt, args) < 0) {
        text = NULL;
        stdout_errno = stdout_errno != 0 ? stdout_errno : ENOMEM;
        return;
    }
    char *begin = text + strspn(fmt, "\n");
    char *end = begin + strlen(begin);
    for (const char *at = fmt + strlen(fmt); at > fmt && at[-1] == '\n' && end > begin; at--)
        end--;
    size_t newlines = strlen(end);
    *end = '\0';
    rf_text_sanitise(begin);
    fputs(text, stdout);
    for (; newlines > 0; newlines--)
        putchar('\n');
}

void output_put(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    put_text(fmt, args);
    va_end(args);
}

void output_line(const char *fmt, ...)
{
    va_list args;

    progress_hide();
    va_start(args, fmt);
    put_text(fmt, args);
    va_end(args);
    putchar('\n');
    output_flush();
}

void output_json(const char *text)
{
    progress_hide();
    fputs(text, stdout);
    putchar('\n');
    output_flush();
}

/* Whether nobody reads stdout any more; printf() itself does not say why it failed. */
static bool reader_left(void)
{
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};

    return stdout_errno == EPIPE || (poll(&out, 1, 0) > 0 && (out.revents & POLLERR) != 0);
}

enum rf_code output_check(struct rf_error *err)
{
    char reason[128];

    output_flush();
    if ((stdout_errno == 0 && !ferror(stdout)) || reader_left())
        return RF_OK;
    return rf_fail(err, RF_E_SYS, "stdout: what was printed is not complete: %s",
                   stdout_errno != 0 ? strerror_r(stdout_errno, reason, sizeof(reason))
                                     : "a write failed");
}

int output_end(int exit_code)
{
    struct rf_error error;

    return output_check(&error) == RF_OK ? exit_code : output_error(&error);
}

void output_exit_codes(void)
{
    static const struct {
        enum rf_code code;
        const char *meaning;
    } codes[] = {
        {RF_OK, "done"},
        {RF_E_FAILED, "failed in a way that has no code of its own; diff: they differ"},
        {RF_E_INVAL, "the command line is wrong, or an output is in the way"},
        {RF_E_SYS, "the operating system refused: no such file, port taken"},
        {RF_E_FORMAT, "a file or folder is not what it should be"},
        {RF_E_PROTO, "the peer broke the protocol, or speaks an unknown version"},
        {RF_E_MISMATCH, "the two sides hold different models, tensors or digests"},
        {RF_E_CORRUPT, "bytes do not match their digest"},
        {RF_E_UNREACHABLE, "no seed answers there, or it went away"},
        {RF_E_TIMEOUT, "a deadline passed"},
        {RF_E_DENIED, "a token or permission was refused"},
        {RF_E_NOMEM, "memory, disk space or places for readers would not suffice"},
        {RF_E_CANCELLED, "a signal ended it before it was done"},
        {RF_E_UNSUPPORTED, "not available here: no device, no such transport"},
        {RF_E_CHANGED, "a file that is being served is no longer what it was"},
    };

    for (unsigned i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
        printf("  %2d  %s\n", (int)codes[i].code, codes[i].meaning);
}
