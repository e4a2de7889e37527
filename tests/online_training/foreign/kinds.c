/* Fields of different shapes, in every type and with strides, for the tests: kinds TYPE, one rank, without a study.
 * a (2, 3, 2, 4): every second value along axis 1, as int64; b (3): int32; c (4, 5): the whole as uint8. Value = place. */
#include "headrace.h"
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    headrace_field fields[] = {{"a", 4, {2, 3, 2, 4}}, {"b", 1, {3}}, {"c", 2, {4, 5}}};
    int64_t wide[2][6][2][4], nowhere[4] = {0}, a_shape[] = {2, 3, 2, 4}, b_shape[] = {3}, c_shape[] = {4, 5};
    int64_t strides[] = {48, 16, 4, 1};
    int32_t b[3] = {0, 1, 2};
    uint8_t c[20];
    int code = argc == 2 ? 0 : -1;
    headrace *study = headrace_open(fields, 3, argc == 2 ? atoi(argv[1]) : 0, 0, 1);
    for (int i = 0; i < 2 * 6 * 2 * 4; i++) (&wide[0][0][0][0])[i] = -1;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 3; j++)
            for (int k = 0; k < 2; k++)
                for (int l = 0; l < 4; l++) wide[i][2 * j][k][l] = ((i * 3 + j) * 2 + k) * 4 + l;
    for (int i = 0; i < 20; i++) c[i] = (uint8_t)i;
    if (code >= 0) code = headrace_next(study);
    for (int step = 0; step < 2 && code >= 0; step++) {
        code = headrace_put(study, 0, HEADRACE_INT64, wide, strides, nowhere, a_shape);
        if (code >= 0) code = headrace_put(study, 1, HEADRACE_INT32, b, NULL, nowhere, b_shape);
        if (code >= 0) code = headrace_put(study, 2, HEADRACE_UINT8, c, NULL, nowhere, c_shape);
        if (code >= 0) code = headrace_send(study, step, 0.5 * step);
    }
    if (code >= 0) code = headrace_end(study, NULL);
    if (code < 0) fprintf(stderr, "%s\n", headrace_last_error(study));
    headrace_close(study);
    return code < 0;
}
