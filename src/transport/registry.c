#include "base/cleanup.h"
#include "transport/fault/spec.h"
#include "transport/transport.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

extern const struct transport transport_map;
extern const struct transport transport_tcp;
extern const struct transport transport_te;
extern const struct transport transport_null;
extern const struct transport transport_fault;

/* Best first. Not in the list: fault, which is no way to move bytes but something that happens to
 * one. */
static const struct transport *const transports[] = {
    &transport_map,
    &transport_tcp,
    &transport_te,
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

/* Whether a name asks for another transport's faults. */
static bool is_fault(const char *name)
{
    return strncmp(name, "fault:", strlen("fault:")) == 0;
}

enum rf_code transport_find(const char *name, const struct transport **ret_transport,
                            struct rf_error *err)
{
    struct buf names BUF_AUTO = {0};
    struct fault_spec spec;
    bool fault = is_fault(name);

    enum rf_code code = fault ? fault_spec_parse(name, &spec, err) : RF_OK;
    if (code != RF_OK)
        return code;
    const struct transport *found = find_plain(fault ? spec.inner : name);
    if (found != NULL) {
        *ret_transport = fault ? &transport_fault : found;
        return RF_OK;
    }
    for (unsigned i = 0; i < TRANSPORT_COUNT; i++)
        buf_printf(&names, "%s%s", i > 0 ? ", " : "", transports[i]->name);
    return rf_fail(err, RF_E_UNSUPPORTED, "no transport \"%s\"; there are: %s",
                   fault ? spec.inner : name, names.failed ? "?" : (const char *)names.data);
}

/* ---- choosing ---- */

struct candidate {
    const struct transport *transport;
    struct endpoint endpoint;
    struct transport_verdict verdict;
};

/* What `wanted` makes of an endpoint; false if it is not about this one. Under "auto" only plain
 * names count: a seed must not make a reader inject faults into itself. */
static bool consider(const char *wanted, const struct endpoint *endpoint,
                     struct candidate *ret_candidate)
{
    struct candidate it = {.endpoint = *endpoint};
    struct fault_spec spec;
    bool any = strcmp(wanted, "auto") == 0;

    if (any || strcmp(wanted, endpoint->transport) == 0) {
        it.transport = find_plain(endpoint->transport);
    } else {
        if (!is_fault(wanted) || fault_spec_parse(wanted, &spec, NULL) != RF_OK ||
            strcmp(spec.inner, endpoint->transport) != 0)
            return false;
        snprintf(it.endpoint.transport, sizeof it.endpoint.transport, "%s", wanted);
    }
    if (it.transport == NULL && !any)
        (void)transport_find(wanted, &it.transport, NULL);
    if (it.transport == NULL) {
        snprintf(it.verdict.reason, sizeof it.verdict.reason, "not known here");
    } else {
        it.transport->available(&it.verdict);
        if (it.verdict.usable)
            it.transport->judge(&it.endpoint, &it.verdict);
    }
    *ret_candidate = it;
    return true;
}

enum rf_code transport_choose(const char *wanted, const struct endpoint *endpoints, uint32_t count,
                              struct transport_choice *ret_choice, struct rf_error *err)
{
    struct transport_choice choice = {0};
    struct candidate best = {0};
    struct candidate it;
    struct buf others BUF_AUTO = {0};

    if (strcmp(wanted, "auto") != 0) {
        const struct transport *known = NULL;
        enum rf_code code = transport_find(wanted, &known, err);
        if (code != RF_OK)
            return code;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!consider(wanted, &endpoints[i], &it))
            continue;
        if (!it.verdict.usable)
            buf_printf(&others, "; not %s: %s", endpoints[i].transport, it.verdict.reason);
        else if (best.transport == NULL || it.verdict.rank > best.verdict.rank)
            best = it;
    }
    const char *why_not = others.data != NULL ? (const char *)others.data : "";
    if (best.transport == NULL)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "none of the seed's %" PRIu32 " transports can be used as \"%s\"%s", count,
                       wanted, why_not);
    choice.transport = best.transport;
    choice.endpoint = best.endpoint;
    snprintf(choice.reason, sizeof choice.reason, "%s%s", best.verdict.reason, why_not);
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
