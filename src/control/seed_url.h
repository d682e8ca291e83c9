/* Where a seed is: "http://HOST:PORT" taken apart, and back together. Pure. */
#ifndef CONTROL_SEED_URL_H
#define CONTROL_SEED_URL_H

#include "base/buf.h"
#include "base/error.h"

enum { SEED_URL_HOST_BYTES = 256, SEED_URL_BYTES = 288 };

struct seed_url {
    char host[SEED_URL_HOST_BYTES]; /* without brackets; IPv6 with its zone, "fe80::1%eth0" */
    uint16_t port;
    bool is_ipv6;
    bool is_address;           /* IPv4 or IPv6, no name */
    char text[SEED_URL_BYTES]; /* "http://HOST:PORT", no slash at the end */
};

/* Takes "http://HOST:PORT", "HOST:PORT" and one slash behind it. Refuses (RF_E_INVAL) https,
 * paths, users, a missing port, and what is neither a name nor an address. */
enum rf_code seed_url_parse(const char *text, struct seed_url *ret_url, struct rf_error *err);

/* Appends text with everything percent-encoded that may not stand in a path; '/' stays. */
void seed_url_escape(const char *text, struct buf *out);

/* "HOST:PORT" or "[IP6]:PORT" with a wildcard HOST (0.0.0.0, [::], *) gets `host` in its place.
 * Anything else is copied. false if it does not fit into out[room]. */
bool seed_url_replace_wildcard(const char *address, const char *host, char *out, size_t room);

#endif
