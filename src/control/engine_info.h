/* What SGLang's control plane says of a rank that a TransferEngine can read: the engine's session
 * id ("HOST:PORT"), and for each tensor its address, elements and bytes of an element. Pure.
 *
 * Three forms carry it: the answer of the info routes, the body of a registration at the
 * bootstrap server, and the frames of the info service between nodes. */
#ifndef CONTROL_ENGINE_INFO_H
#define CONTROL_ENGINE_INFO_H

#include "base/buf.h"
#include "model/manifest.h"

enum {
    ENGINE_INFO_MAX_BYTES = 64 << 20,      /* of a registration, or a node's answer */
    ENGINE_INFO_MAX_QUESTION_BYTES = 4096, /* of a frame that asks */
    ENGINE_INFO_SESSION_BYTES = 288,
    ENGINE_INFO_MAX_RANK = MANIFEST_MAX_RANKS - 1,
    ENGINE_INFO_REASON_BYTES = 256,
};

/* Appends {"NAME":[ADDRESS,ELEMENTS,ELEMENT_BYTES],...}, aliases too, in the engine's own order.
 * base: the address of byte 0 of the rank's stream. out->failed when out of memory. */
void engine_info_tensors(const struct manifest_rank *rank, uint64_t base, struct buf *out);

/* Appends the members that begin an answer about a rank, "rank":N and the session in the list of
 * "remote_instance_transfer_engine_info", up to where the tensors go. */
void engine_info_begin(uint64_t rank, const char *session, struct buf *out);

/* The rank of a manifest that is SGLang's tensor-parallel rank: of the model itself, no draft, in
 * the first stage. MANIFEST_NONE if it is not among them. */
uint32_t engine_info_find_rank(const struct manifest *manifest, uint64_t tp_rank);

/* What somebody said of a rank. */
struct engine_info {
    uint32_t rank;
    char session[ENGINE_INFO_SESSION_BYTES]; /* as weight_map_session_ok() has it */
    const char *tensors; /* borrowed from the text: the object, checked entry by entry */
    size_t tensors_bytes;
    uint64_t tensor_count;
};

/* The body of PUT /register_transfer_engine_info: {"tp_rank":N,"transfer_engine_info":
 * {"session_id":S,"weights_info_dict":{...}}}; "rank" counts more than "tp_rank"; what else there
 * is is passed over. RF_E_INVAL saying what is wrong with it; RF_E_NOMEM. */
enum rf_code engine_info_parse_put(const void *text, size_t bytes, struct engine_info *ret_info,
                                   struct rf_error *err);
/* tensors: as engine_info_tensors() makes it. */
void engine_info_put(uint64_t rank, const char *session, const void *tensors, size_t bytes,
                     struct buf *out);

/* ---- between nodes ---- */

struct engine_question {
    bool knows_action;
    char action[64]; /* for people; cut off, and cleaned */
    bool has_rank;
    uint64_t rank;
};
/* {"action":"get_transfer_engine_info","rank":N}. RF_E_INVAL: not such an object. */
enum rf_code engine_question_parse(const void *text, size_t bytes,
                                   struct engine_question *ret_question, struct rf_error *err);
void engine_question_make(uint64_t rank, struct buf *out);

/* The answer to it: RF_OK with the info, whose rank is the one that was asked for. Else err: what
 * the node said (RF_E_UNREACHABLE), or what is wrong with its answer (RF_E_PROTO, RF_E_NOMEM). */
enum rf_code engine_answer_parse(const void *text, size_t bytes, uint64_t rank,
                                 struct engine_info *ret_info, struct rf_error *err);
void engine_answer_refuse(const char *reason, struct buf *out);

#endif
