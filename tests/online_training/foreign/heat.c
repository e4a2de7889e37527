/* A heat solver in C for the tests: explicit steps on a periodic square, slabs of rows, one ghost row on each side.
 * heat N STEPS [FOLDER [cells]]: the last state goes to FOLDER/SIMULATION-RANK.bin, as doubles; with the word cells a rank
 * names its cells by number, the last one first, instead of its slab; with the word once it ends after one simulation. */
#include "headrace_mpi.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int check(headrace *study, int code)
{
    if (code < 0) {
        fprintf(stderr, "%s\n", headrace_last_error(study));
        _exit(1); /* mpirun ends the other ranks, and passes on what was said, which MPI_Abort may make it forget */
    }
    return code;
}

int main(int argc, char **argv)
{
    int rank, ranks, n = atoi(argv[1]), steps = atoi(argv[2]), simulations = 0, by_cells = argc > 4 && !strcmp(argv[4], "cells");
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int first = n * rank / ranks, rows = n * (rank + 1) / ranks - first;
    size_t bytes = sizeof(double) * (size_t)((rows + 2) * n);
    double *u = malloc(bytes), *v = malloc(bytes);
    unsigned long long sent = 0;
    headrace_field field = {"u", 2, {n, n}};
    headrace *study = headrace_open_comm(&field, 1, HEADRACE_FLOAT32, MPI_COMM_WORLD);
    if (by_cells) {
        int64_t *cells = malloc(sizeof *cells * (size_t)(rows * n));
        for (int i = 0; i < rows * n; i++) cells[i] = (int64_t)n * (first + rows) - 1 - i;
        check(study, headrace_cells(study, cells, (int64_t)rows * n));
        free(cells);
    }
    while (check(study, headrace_next(study)) == 1) {
        double nu = 0.25;
        headrace_parameter(study, "nu", &nu);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < n; j++)
                u[(i + 1) * n + j] = sin(2 * M_PI * (first + i) / n) * cos(4 * M_PI * j / n) + (first + i) * 0.01 * j / n;
        for (int step = 0; step < steps; step++) {
            int64_t offset[] = {first, 0}, shape[] = {rows, n};
            if (by_cells) check(study, headrace_put_cells(study, 0, HEADRACE_FLOAT64, u + n + rows * n - 1, -1));
            else check(study, headrace_put(study, 0, HEADRACE_FLOAT64, u + n, NULL, offset, shape));
            if (check(study, headrace_send(study, step, 0.1 * step)) == HEADRACE_STOP) break;
            int up = (rank + 1) % ranks, down = (rank + ranks - 1) % ranks;
            MPI_Sendrecv(u + rows * n, n, MPI_DOUBLE, up, 0, u, n, MPI_DOUBLE, down, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Sendrecv(u + n, n, MPI_DOUBLE, down, 1, u + (rows + 1) * n, n, MPI_DOUBLE, up, 1, MPI_COMM_WORLD,
                         MPI_STATUS_IGNORE);
            for (int i = 1; i <= rows; i++)
                for (int j = 0; j < n; j++) {
                    double *c = u + i * n;
                    v[i * n + j] = c[j] + 0.2 * nu * (c[j + n] + c[j - n] + c[(j + 1) % n] + c[(j + n - 1) % n] - 4 * c[j]);
                }
            memcpy(u + n, v + n, sizeof(double) * (size_t)(rows * n));
        }
        check(study, headrace_end(study, NULL));
        sent += headrace_bytes_sent(study);
        if (argc > 3) {
            char path[1024];
            snprintf(path, sizeof path, "%s/%llu-%d.bin", argv[3], (unsigned long long)headrace_simulation(study), rank);
            FILE *file = fopen(path, "wb");
            fwrite(u + n, sizeof(double), (size_t)(rows * n), file);
            fclose(file);
        }
        simulations++;
        if (argc > 4 && !strcmp(argv[4], "once")) break;
    }
    headrace_close(study);
    unsigned long long all = 0;
    MPI_Reduce(&sent, &all, 1, MPI_UNSIGNED_LONG_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("{\"simulations\": %d, \"bytes\": %llu}\n", simulations, all);
    free(u);
    free(v);
    MPI_Finalize();
    return 0;
}
