/* Whether several seeds are of one model, before a byte moves. */
#ifndef CONTROL_REMOTE_AGREE_H
#define CONTROL_REMOTE_AGREE_H

#include "control/remote.h"

/* Compares two seeds that are to give ranks of one model: the tensors of the checkpoint by name,
 * config.json, and the bytes of some small tensors that both have whole, as norms are, over HTTP.
 * Two versions of a model that differ in none of these cannot be told apart. RF_E_MISMATCH names
 * what differs; errors of client_get(). */
enum rf_code remote_agree(struct remote *one, struct remote *other, struct rf_error *err);

#endif
