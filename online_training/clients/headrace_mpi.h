/* headrace_open for an MPI communicator. The library itself does not know MPI, so one build serves every MPI. */
#ifndef HEADRACE_MPI_H
#define HEADRACE_MPI_H

#include "headrace.h"
#include <mpi.h>

/* headrace_open with rank and size of a communicator. Collective. */
static inline headrace *headrace_open_comm(const headrace_field *fields, int num_fields, int type, MPI_Comm comm)
{
    int rank = 0, ranks = 1;
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &ranks);
    return headrace_open(fields, num_fields, type, rank, ranks);
}

#endif
