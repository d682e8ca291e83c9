/* What a parsed header must hold true as a whole. For safetensors*.c alone. */
#ifndef FORMAT_SAFETENSORS_CHECK_H
#define FORMAT_SAFETENSORS_CHECK_H

#include "base/strmap.h"
#include "format/safetensors.h"

enum { ST_LENGTH_BYTES = 8 };

/* As much of a tensor's name as an error line has room for. */
#define ST_NAME_FMT "%.120s"

/* Whether a header of this length can be in a file of this size. RF_E_FORMAT. */
enum rf_code st_check_length(const char *name, uint64_t json_bytes, uint64_t file_bytes,
                             struct rf_error *err);

/* Sorts the tensors and checks that no name is there twice, that each has the bytes its shape
 * asks for, and that together they cover the file's data. Errors: RF_E_FORMAT, RF_E_NOMEM. */
enum rf_code st_check(const char *name, struct st_header *header, struct rf_error *err);

/* Bytes of a tensor by its shape, as the reference implementation counts: from left to right, so
 * that an overflow before a zero is one. Fails with `code` on an overflow, or a part of a byte. */
enum rf_code st_check_shape(const char *name, const struct st_tensor *tensor, enum rf_code code,
                            uint64_t *ret_bytes, struct rf_error *err);

/* Fails with `code` if a name is there twice. */
enum rf_code st_check_names(const char *name, const struct st_tensor *tensors, uint32_t count,
                            enum rf_code code, struct rf_error *err);

#endif
