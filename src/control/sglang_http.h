/* What SGLang's routes share, on both of its servers: arguments and errors in the form of its
 * framework, and the answer about a rank. */
#ifndef CONTROL_SGLANG_HTTP_H
#define CONTROL_SGLANG_HTTP_H

#include "control/nodes_internal.h"

enum sglang_rank { SGLANG_RANK, SGLANG_RANK_ABSENT, SGLANG_RANK_NEGATIVE, SGLANG_RANK_NO_NUMBER };

enum { SGLANG_RANK_DIGITS = 40 };

/* ?rank=N. *ret_rank saturates; digits gets it as it will be shown, "" if it is no rank. Pure. */
enum sglang_rank sglang_rank_parse(const char *text, uint64_t *ret_rank,
                                   char digits[SGLANG_RANK_DIGITS + 1]);
/* 422, as FastAPI says that an argument is absent (input NULL) or no number. */
void sglang_reply_unprocessable(struct request *request, struct reply *reply, const char *input);
/* {"detail":"..."} */
void sglang_reply_detail(struct request *request, struct reply *reply, unsigned status,
                         const char *text);
/* {"rank":N,"remote_instance_transfer_engine_info":[SESSION,{...}]}; takes found->tensors over. A
 * wildcard host of the session becomes the one that the client reached. */
void sglang_reply_info(struct request *request, struct reply *reply, uint64_t rank,
                       struct info_found *found);

#endif
