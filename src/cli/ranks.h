/* Lists of tensor-parallel ranks as one types them: "3", "0-7", "0,2,4-6". */
#ifndef CLI_RANKS_H
#define CLI_RANKS_H

#include "base/error.h"

/* Ascending, each once. The caller frees `list` with free(). */
struct ranks {
    uint32_t *list;
    uint32_t count;
};

/* text NULL: all ranks of tp_size (1 ... MANIFEST_MAX_RANKS). RF_E_INVAL names what is wrong: no
 * number, a range that goes backwards, a rank twice, a rank not below tp_size; RF_E_NOMEM. */
enum rf_code ranks_parse(const char *text, uint32_t tp_size, struct ranks *ret_ranks,
                         struct rf_error *err);

#endif
