/* What the Fortran test needs of MPI, in C: an MPI without Fortran bindings serves too. */
#include <mpi.h>

void mpi_begin(int *rank, int *ranks)
{
    MPI_Init(0, 0);
    MPI_Comm_rank(MPI_COMM_WORLD, rank);
    MPI_Comm_size(MPI_COMM_WORLD, ranks);
}

void mpi_shift(const double *line, double *received, int n, int to, int from)
{
    MPI_Sendrecv(line, n, MPI_DOUBLE, to, 0, received, n, MPI_DOUBLE, from, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

void mpi_total(const double *mine, double *all)
{
    MPI_Reduce(mine, all, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
}

void mpi_work(void *unused)
{
    int rank, found;
    (void)unused;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Iprobe(rank, MPI_ANY_TAG, MPI_COMM_WORLD, &found, MPI_STATUS_IGNORE);
}

void mpi_end(void) { MPI_Finalize(); }
