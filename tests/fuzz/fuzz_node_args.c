/* What is said of nodes on the command line: their addresses, their head's, and lists of ports. The
 * first byte is how many there are. */
#include "control/node_hosts.h"
#include "must.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_host(const char *host, size_t room)
{
    must(host[0] != '\0' && strnlen(host, room) < room);
    must(strpbrk(host, " \t\r\n/@[]") == NULL);
}

static void check_hosts(const char *text, uint32_t count)
{
    struct node_hosts hosts;
    struct rf_error err = {.code = RF_OK};

    if (node_hosts_parse(text, count, &hosts, &err) != RF_OK) {
        must(err.text[0] != '\0');
        return;
    }
    must(hosts.count == count);
    for (uint32_t i = 0; i < count; i++)
        check_host(hosts.hosts[i], sizeof hosts.hosts[i]);
    node_hosts_free(&hosts);
}

static void check_ports(const char *text, uint32_t count)
{
    struct rf_error err = {.code = RF_OK};
    uint16_t *ports = NULL;

    if (node_ports_parse(text, count, &ports, &err) != RF_OK) {
        must(err.text[0] != '\0');
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        must(ports[i] != 0 && (i == 0 || ports[i] != ports[i - 1]));
    free(ports);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct node_address address;
    struct rf_error err = {.code = RF_OK};

    if (size == 0)
        return 0;
    char *text = malloc(size);
    must(text != NULL);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    check_hosts(text, data[0]);
    check_ports(text, data[0]);
    if (node_address_parse(text, &address, &err) == RF_OK) {
        must(address.port != 0);
        check_host(address.host, sizeof address.host);
    }
    free(text);
    return 0;
}
