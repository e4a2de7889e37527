/* A simulation that fails for a reason that is no UTF-8 everywhere, for the tests: one rank, in a study. */
#include "headrace.h"
#include <stdio.h>

int main(void)
{
    headrace_field field = {"u", 1, {2}};
    headrace *study = headrace_open(&field, 1, HEADRACE_FLOAT32, 0, 1);
    int code = headrace_next(study);
    if (code == 1) code = headrace_end(study, "\xdc" "berlauf: gr\xc3\xbc\xc3\x9f" "e f\xc3\xbcr \xe2\x82\xac, \xf0\x9f\x8c\x8a, \xed\xa0\x80, \xed\xc3");
    if (code < 0) fprintf(stderr, "%s\n", headrace_last_error(study));
    headrace_close(study);
    return code < 0;
}
