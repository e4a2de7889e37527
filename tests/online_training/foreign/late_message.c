/* late_message.py in C. */
#include "headrace_mpi.h"
#include <stdio.h>

enum { VALUES = 1 << 20 };
static double values[VALUES];

int main(int argc, char **argv)
{
    int rank, failed = 0;
    MPI_Request request;
    headrace_field field = {"u", 1, {2}};
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    headrace *study = headrace_open_comm(&field, 1, HEADRACE_FLOAT32, MPI_COMM_WORLD);
    failed |= headrace_next(study) != 1;
    for (int step = 0; step < 2 && !failed; step++) {
        int64_t offset[] = {rank}, shape[] = {1};
        double u = step;
        if (step == 0 && rank == 0) MPI_Isend(values, VALUES, MPI_DOUBLE, 1, 0, MPI_COMM_WORLD, &request);
        if (step == 0 && rank == 1) MPI_Recv(values, VALUES, MPI_DOUBLE, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        failed |= headrace_put(study, 0, HEADRACE_FLOAT64, &u, NULL, offset, shape) < 0;
        failed |= headrace_send(study, step, step) < 0;
    }
    if (rank == 0) MPI_Wait(&request, MPI_STATUS_IGNORE);
    failed |= headrace_end(study, NULL) < 0;
    if (failed) fprintf(stderr, "%s\n", headrace_last_error(study));
    headrace_close(study);
    MPI_Finalize();
    return failed;
}
