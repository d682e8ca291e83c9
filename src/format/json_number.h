/* Numbers for json_scan.c. */
#ifndef FORMAT_JSON_NUMBER_H
#define FORMAT_JSON_NUMBER_H

#include "format/json_scan.h"

/* Steps over any number; nothing blank stands before it. */
bool json_skip_number(struct json_scan *scan);

#endif
