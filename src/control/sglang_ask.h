/* What an SGLang server answers about its weights: its info routes, old and new, those of its
 * bootstrap server, and how many ranks there are. As with clients, one thread at a time; calls
 * block until the client's deadlines. */
#ifndef CONTROL_SGLANG_ASK_H
#define CONTROL_SGLANG_ASK_H

#include "control/client.h"
#include "wire/weight_map.h"

enum { SGLANG_NAME_BYTES = 256 };

/* Which of the routes answers; found with rank 0. */
struct sglang_route {
    const char *path; /* NULL: not known yet */
    bool bootstrap;   /* a bare bootstrap server: it knows nothing of the model */
};

/* Asks for a rank's map; *ret_map is the caller's to free. Finds the route first if it is not known.
 * RF_AGAIN: the server is there, and publishes no such rank, or not yet (err says what it answered).
 * Other errors: RF_E_UNREACHABLE (nothing listens, or what answers has no such route), RF_E_TIMEOUT,
 * RF_E_DENIED (it wants an API key), RF_E_PROTO, those of weight_map_decode(). */
enum rf_code sglang_ask_map(struct client *client, struct sglang_route *route, uint32_t rank,
                            struct weight_map *ret_map, struct rf_error *err);

/* What a server says of itself, as far as it does: 0 and "" where it does not. */
struct sglang_server {
    uint32_t tp_size;
    uint32_t pp_size;
    uint32_t ep_size;
    char model[SGLANG_NAME_BYTES]; /* served_model_name, else the end of model_path */
};
/* Never fails for what is answered; RF_E_CANCELLED. */
enum rf_code sglang_ask_server(struct client *client, struct sglang_server *ret_server,
                               struct rf_error *err);

#endif
