/* The text of a model.safetensors.index.json. */
#include "format/folder_index.h"
#include "format/model_folder.h"

#include <stdlib.h>
#include <string.h>

static void require(bool holds)
{
    if (!holds)
        abort();
}

static void check_index(const struct folder_index *index)
{
    require(index->file_count > 0);
    for (uint32_t i = 0; i < index->file_count; i++) {
        require(folder_name_ok(index->files[i]));
        require(i == 0 || strcmp(index->files[i - 1], index->files[i]) < 0);
    }
    for (uint32_t i = 0; i < index->tensor_count; i++) {
        const struct index_tensor *tensor = &index->tensors[i];
        uint32_t found = UINT32_MAX;

        require(tensor->file < index->file_count && tensor->name[tensor->name_bytes] == '\0');
        require(strmap_find(index->by_name, tensor->name, tensor->name_bytes, &found) &&
                found == i);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rf_error err = {.code = RF_OK};
    struct folder_index index;
    enum rf_code code = folder_index_parse("index", (const char *)data, size, &index, &err);

    if (code != RF_OK) {
        require(code == RF_E_FORMAT && err.code == code && err.text[0] != '\0');
        return 0;
    }
    check_index(&index);
    folder_index_free(&index);
    return 0;
}
