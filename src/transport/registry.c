#include "base/cleanup.h"
#include "transport/transport.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

extern const struct transport transport_null;

/* Best first. */
static const struct transport *const transports[] = {
    &transport_null,
};

enum { TRANSPORT_COUNT = sizeof transports / sizeof transports[0] };

const struct transport *const *transport_list(uint32_t *ret_count)
{
    *ret_count = TRANSPORT_COUNT;
    return transports;
}

static const struct transport *find_plain(const char *name)
{
    for (unsigned i = 0; i < TRANSPORT_COUNT; i++) {
        if (strcmp(transports[i]->name, name) == 0)
            return transports[i];
    }
    return NULL;
}

enum rf_code transport_find(const char *name, const struct transport **ret_transport,
                            struct rf_error *err)
{
    struct buf names BUF_AUTO = {0};
    const struct transport *found = find_plain(name);

    if (found != NULL) {
        *ret_transport = found;
        return RF_OK;
    }
    for (unsigned i = 0; i < TRANSPORT_COUNT; i++)
        buf_printf(&names, "%s%s", i > 0 ? ", " : "", transports[i]->name);
    return rf_fail(err, RF_E_UNSUPPORTED, "no transport \"%s\"; there are: %s", name,
                   names.failed ? "?" : (const char *)names.data);
}

/* ---- choosing ---- */

/* The transport that a "fault:SEED:NAME" misbehaves on top of, or the name itself. */
static const char *inner_name(const char *name)
{
    const char *colon = strrchr(name, ':');

    return colon != NULL ? colon + 1 : name;
}

/* Whether `transport` works here and reaches the endpoint. */
static void judge_one(const struct transport *transport, const struct endpoint *endpoint,
                      struct transport_verdict *ret_verdict)
{
    struct transport_verdict here = {0};

    transport->available(&here);
    if (!here.usable) {
        *ret_verdict = here;
        return;
    }
    *ret_verdict = (struct transport_verdict){0};
    transport->judge(endpoint, ret_verdict);
}

static bool is_wanted(const char *wanted, const struct endpoint *endpoint)
{
    return strcmp(wanted, "auto") == 0 || strcmp(inner_name(wanted), endpoint->transport) == 0 ||
           strcmp(wanted, endpoint->transport) == 0;
}

/* What `wanted` means for this endpoint. Under "auto" only plain names count: a seed must not make a reader
 * inject faults into itself. */
static const struct transport *transport_for(const char *wanted, const struct endpoint *endpoint)
{
    const struct transport *found = NULL;

    if (strcmp(wanted, "auto") == 0)
        return find_plain(endpoint->transport);
    return transport_find(wanted, &found, NULL) == RF_OK ? found : NULL;
}

enum rf_code transport_choose(const char *wanted, const struct endpoint *endpoints, uint32_t count,
                              struct transport_choice *ret_choice, struct rf_error *err)
{
    struct transport_choice choice = {0};
    struct transport_verdict best = {0};
    struct buf others BUF_AUTO = {0};

    if (strcmp(wanted, "auto") != 0) {
        const struct transport *known = NULL;
        enum rf_code code = transport_find(wanted, &known, err);
        if (code != RF_OK)
            return code;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct transport_verdict verdict = {0};
        const struct transport *transport = NULL;
        if (!is_wanted(wanted, &endpoints[i]))
            continue;
        transport = transport_for(wanted, &endpoints[i]);
        if (transport == NULL)
            snprintf(verdict.reason, sizeof verdict.reason, "not known here");
        else
            judge_one(transport, &endpoints[i], &verdict);
        if (verdict.usable && (choice.transport == NULL || verdict.rank > best.rank)) {
            choice.transport = transport;
            choice.endpoint = endpoints[i];
            best = verdict;
        } else if (!verdict.usable) {
            buf_printf(&others, "; not %s: %s", endpoints[i].transport, verdict.reason);
        }
    }
    const char *why_not = others.data != NULL ? (const char *)others.data + 2 : "none offered";
    if (choice.transport == NULL)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "no usable transport (wanted %s, the seed offers %" PRIu32 "): %s", wanted,
                       count, why_not);
    snprintf(choice.reason, sizeof choice.reason, "%s%s", best.reason,
             others.data != NULL ? (const char *)others.data : "");
    rf_text_sanitise(choice.reason);
    *ret_choice = choice;
    return RF_OK;
}

/* ---- shared by transports ---- */

enum rf_code transport_read_check(const struct read *read, struct rf_error *err)
{
    uint64_t bytes = 0;

    if (read->range_count == 0 || read->range_count > CHUNK_MAX_RANGES)
        return rf_fail(err, RF_E_INVAL, "a read of %" PRIu32 " ranges: 1 to %d are possible",
                       read->range_count, CHUNK_MAX_RANGES);
    enum rf_code code =
        stream_ranges_check(read->ranges, read->range_count, UINT64_MAX, &bytes, err);
    if (code != RF_OK)
        return code;
    if (bytes != read->bytes || bytes > CHUNK_MAX_READ_BYTES)
        return rf_fail(err, RF_E_INVAL,
                       "a read of %" PRIu64 " bytes whose ranges sum up to %" PRIu64
                       ": must be equal and at most %d",
                       read->bytes, bytes, CHUNK_MAX_READ_BYTES);
    return RF_OK;
}

const char *transport_host_id(char out[64])
{
    rf_autoclose int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, out, 63) : 0;

    out[got > 0 ? got : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
    return out;
}
