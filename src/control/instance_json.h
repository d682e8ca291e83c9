/* GET /v1/instance and the lease's JSON, as both sides need them. Pure. */
#ifndef CONTROL_INSTANCE_JSON_H
#define CONTROL_INSTANCE_JSON_H

#include "control/client.h"

/* Fills info (zeroed before) from what a seed said; dialled: the address under which it was
 * reached. RF_E_PROTO, RF_E_NOMEM; info needs no instance_info_free() then. */
enum rf_code instance_json_parse(const void *text, size_t bytes, const char *dialled,
                                 struct instance_info *ret_info, struct rf_error *err);

/* The same for the answer to POST /v1/lease. */
enum rf_code lease_json_parse(const void *text, size_t bytes, const char *dialled,
                              struct lease *ret_lease, struct rf_error *err);

/* The body of POST /v1/lease. */
struct lease_request {
    char client[64];                   /* "" if not given */
    char manifest_id[HASH_TEXT_BYTES]; /* "" if not given */
};
/* An empty text is an empty object. Fields that we do not know are left alone, so that newer
 * clients can say more. RF_E_INVAL. */
enum rf_code lease_request_parse(const void *text, size_t bytes, struct lease_request *ret_request,
                                 struct rf_error *err);

/* Tokens as text: 64 hex digits, either case. false if it is anything else. */
bool lease_token_parse(const char *text, uint8_t ret_token[CHUNK_TOKEN_BYTES]);
void lease_token_text(const uint8_t token[CHUNK_TOKEN_BYTES], char out[2 * CHUNK_TOKEN_BYTES + 1]);

/* Appends "[{"transport":...}, ...]". */
void endpoints_json(const struct endpoint *endpoints, uint32_t count, struct buf *out);

#endif
