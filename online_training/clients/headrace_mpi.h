/* headrace_open for an MPI communicator. The library itself does not know MPI, so one build serves every MPI. */
#ifndef HEADRACE_MPI_H
#define HEADRACE_MPI_H

#include "headrace.h"
#include <mpi.h>

static inline void headrace_let_mpi_work(void *unused)
{
    int rank, found;
    (void)unused;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank); /* on MPI_COMM_SELF, MPICH would do nothing */
    MPI_Iprobe(rank, MPI_ANY_TAG, MPI_COMM_WORLD, &found, MPI_STATUS_IGNORE);
}

/* headrace_open with rank and size of a communicator, whose messages move on while calls wait for the study: these calls
 * belong to a thread that may call MPI. Collective. */
static inline headrace *headrace_open_comm(const headrace_field *fields, int num_fields, int type, MPI_Comm comm)
{
    int rank = 0, ranks = 1;
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &ranks);
    headrace *study = headrace_open(fields, num_fields, type, rank, ranks);
    headrace_while_waiting(study, headrace_let_mpi_work, NULL);
    return study;
}

#endif
