#include "control/seed_url.h"

#include "control/target.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static bool is_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_';
}

/* Names of network interfaces: what may stand in a URL without being encoded. */
static bool zone_ok(const char *zone)
{
    if (zone[0] == '\0' || strlen(zone) > 15)
        return false;
    for (; *zone != '\0'; zone++) {
        if (!is_name_byte(*zone))
            return false;
    }
    return true;
}

static bool ipv6_ok(const char *host)
{
    struct in6_addr address;
    char plain[INET6_ADDRSTRLEN];
    const char *percent = strchr(host, '%');
    size_t bytes = percent != NULL ? (size_t)(percent - host) : strlen(host);

    if (bytes >= sizeof plain || (percent != NULL && !zone_ok(percent + 1)))
        return false;
    memcpy(plain, host, bytes);
    plain[bytes] = '\0';
    return inet_pton(AF_INET6, plain, &address) == 1;
}

/* A name of letters, digits, '-', '_' and '.', or an IPv4 address. All digits and dots must be
 * an address: resolvers take "1.2.3" for 1.2.0.3. */
static bool name_ok(const char *host, bool *ret_is_address)
{
    struct in_addr address;
    bool only_digits = true;

    if (host[0] == '\0' || host[0] == '-' || host[0] == '.')
        return false;
    for (const char *at = host; *at != '\0'; at++) {
        if (!is_name_byte(*at))
            return false;
        only_digits = only_digits && (*at == '.' || (*at >= '0' && *at <= '9'));
    }
    *ret_is_address = inet_pton(AF_INET, host, &address) == 1;
    return *ret_is_address || !only_digits;
}

/* The part behind "http://": up to the only slash allowed, which must be the last byte. */
static enum rf_code authority(const char *text, char out[SEED_URL_HOST_BYTES], struct rf_error *err)
{
    const char *at = text;
    const char *scheme = strstr(text, "://");

    if (strncasecmp(text, "https://", 8) == 0)
        return rf_fail(err, RF_E_INVAL, "%.256s: https is not supported: seeds speak plain http",
                       text);
    if (strncasecmp(text, "http://", 7) == 0)
        at = text + 7;
    else if (scheme != NULL)
        return rf_fail(err, RF_E_INVAL, "%.256s: not an http URL: write http://HOST:PORT", text);
    size_t bytes = strcspn(at, "/?#");
    if (at[bytes] != '\0' && strcmp(at + bytes, "/") != 0)
        return rf_fail(err, RF_E_INVAL, "%.256s: a path is not allowed: write http://HOST:PORT",
                       text);
    if (memchr(at, '@', bytes) != NULL)
        return rf_fail(err, RF_E_INVAL, "a user name in a seed's URL: write http://HOST:PORT");
    if (bytes == 0 || bytes >= SEED_URL_HOST_BYTES)
        return rf_fail(err, RF_E_INVAL, "\"%.256s\": not a seed's URL: write http://HOST:PORT",
                       text);
    memcpy(out, at, bytes);
    out[bytes] = '\0';
    return RF_OK;
}

/* Splits "HOST:PORT" and "[IP6]:PORT" in place; *ret_port is NULL if there is none. */
static bool split(char *text, char **ret_host, char **ret_port, bool *ret_is_ipv6)
{
    char *colon = strrchr(text, ':');

    *ret_is_ipv6 = text[0] == '[';
    if (*ret_is_ipv6) {
        char *end = strchr(text, ']');
        if (end == NULL || (end[1] != '\0' && end[1] != ':'))
            return false;
        colon = end[1] == ':' ? end + 1 : NULL;
        *end = '\0';
        text++;
    } else if (colon != NULL && strchr(text, ':') != colon) {
        return false; /* an address without brackets: where it ends is anybody's guess */
    }
    if (colon != NULL)
        *colon = '\0';
    *ret_host = text;
    *ret_port = colon != NULL ? colon + 1 : NULL;
    return true;
}

/* "%25" is how a URL spells the '%' before a zone. */
static void unescape_zone(char *host)
{
    char *percent = strstr(host, "%25");

    if (percent != NULL && percent[3] != '\0')
        memmove(percent + 1, percent + 3, strlen(percent + 3) + 1);
}

static void put_text(struct seed_url *url)
{
    const char *percent = url->is_ipv6 ? strchr(url->host, '%') : NULL;
    int before = percent != NULL ? (int)(percent - url->host) : (int)strlen(url->host);

    snprintf(url->text, sizeof url->text, "http://%s%.*s%s%s%s:%u", url->is_ipv6 ? "[" : "", before,
             url->host, percent != NULL ? "%25" : "", percent != NULL ? percent + 1 : "",
             url->is_ipv6 ? "]" : "", url->port);
}

enum rf_code seed_url_parse(const char *text, struct seed_url *ret_url, struct rf_error *err)
{
    struct seed_url url = {.port = 0};
    char work[SEED_URL_HOST_BYTES] = "";
    char *host = NULL;
    char *port = NULL;
    uint64_t number = 0;

    enum rf_code code = authority(text, work, err);
    if (code != RF_OK)
        return code;
    if (!split(work, &host, &port, &url.is_ipv6))
        return rf_fail(err, RF_E_INVAL,
                       "%.256s: write an IPv6 address in brackets: http://[::1]:PORT", text);
    if (url.is_ipv6)
        unescape_zone(host);
    url.is_address = url.is_ipv6;
    if (!(url.is_ipv6 ? ipv6_ok(host) : name_ok(host, &url.is_address)))
        return rf_fail(err, RF_E_INVAL, "%.256s: \"%.64s\" is neither a name nor an address", text,
                       host);
    if (port == NULL)
        return rf_fail(err, RF_E_INVAL, "%.256s: the port is missing: write http://HOST:PORT",
                       text);
    if (!target_digits(port, strlen(port), UINT16_MAX, &number) || number == 0)
        return rf_fail(err, RF_E_INVAL, "%.256s: \"%.16s\" is not a port, 1 to 65535", text, port);
    url.port = (uint16_t)number;
    snprintf(url.host, sizeof url.host, "%s", host);
    put_text(&url);
    *ret_url = url;
    return RF_OK;
}

void seed_url_escape(const char *text, struct buf *out)
{
    for (; *text != '\0'; text++) {
        if (is_name_byte(*text) || *text == '/' || *text == '~')
            buf_append(out, text, 1);
        else
            buf_printf(out, "%%%02X", (unsigned char)*text);
    }
}

bool seed_url_replace_wildcard(const char *address, const char *host, char *out, size_t room)
{
    static const char *const wildcards[] = {"0.0.0.0:", "[::]:", "*:"};
    const char *port = NULL;

    for (unsigned i = 0; i < sizeof wildcards / sizeof wildcards[0]; i++) {
        size_t bytes = strlen(wildcards[i]);
        if (strncmp(address, wildcards[i], bytes) == 0)
            port = address + bytes;
    }
    int wanted = port == NULL                ? snprintf(out, room, "%s", address)
                 : strchr(host, ':') != NULL ? snprintf(out, room, "[%s]:%s", host, port)
                                             : snprintf(out, room, "%s:%s", host, port);
    return wanted >= 0 && (size_t)wanted < room;
}
