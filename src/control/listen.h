/* A listening TCP socket from a name and a port as people write them. */
#ifndef CONTROL_LISTEN_H
#define CONTROL_LISTEN_H

#include "base/error.h"

enum { LISTEN_URL_BYTES = 300 };

/* host: name, IPv4, or IPv6 with or without brackets. port 0: any free one. url_out gets
 * "http://HOST:PORT" with the host as given. The descriptor is the caller's; it does not block.
 * RF_E_INVAL (no such host), RF_E_SYS, RF_E_DENIED. */
enum rf_code listen_open(const char *host, uint16_t port, int *ret_fd, uint16_t *ret_port,
                         char url_out[LISTEN_URL_BYTES], struct rf_error *err);

#endif
