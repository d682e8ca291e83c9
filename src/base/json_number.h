/* Numbers for json_scan.c. */
#ifndef BASE_JSON_NUMBER_H
#define BASE_JSON_NUMBER_H

#include "base/json_scan.h"

/* Steps over any number; nothing blank stands before it. */
bool json_skip_number(struct json_scan *scan);

#endif
