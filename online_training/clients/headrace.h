/* Headrace's client for solvers in C, C++ and (with headrace.f90) Fortran: streams fields to a study while they run.
 *
 * Needs libzmq and libsodium. Link it as a CMake target, through pkg-config, or compile headrace.c with the solver.
 *
 *     headrace_field fields[] = {{"u", 2, {64, 64}}};
 *     headrace *study = headrace_open(fields, 1, HEADRACE_FLOAT32, rank, ranks);
 *     while (headrace_next(study) == 1) {                      // one simulation after another
 *         headrace_parameter(study, "nu", &nu);
 *         for (step = 0; step < num_steps; step++) {
 *             headrace_put(study, 0, HEADRACE_FLOAT64, u, NULL, offset, shape);
 *             if (headrace_send(study, step, time) == HEADRACE_STOP) break;
 *         }
 *         headrace_end(study, NULL);
 *     }
 *     headrace_close(study);
 *
 * The calls and what they mean are those of client.py; docs/clients.md has both, docs/wire.md the protocol. No call aborts
 * or prints: negative results are errors, and headrace_last_error says which. One exception follows from the protocol:
 * a process whose study has been silent for a lease (60 s) is ended with code 75, so that no rank outlives its study.
 * A handle is not thread-safe. "Collective" calls must be made by all ranks of the job.
 */
#ifndef HEADRACE_H
#define HEADRACE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HEADRACE_MAX_NDIM 4

/* Types of values, as numbered on the wire. */
enum { HEADRACE_FLOAT32 = 1, HEADRACE_FLOAT64 = 2, HEADRACE_INT32 = 3, HEADRACE_INT64 = 4, HEADRACE_UINT8 = 5 };

/* What a study says to a step. */
enum { HEADRACE_CONTINUE = 0, HEADRACE_STOP = 1, HEADRACE_SLOW = 2 };

/* Errors. */
enum {
    HEADRACE_WRONG_USE = -1,   /* an argument or an order of calls that cannot be; nothing was sent */
    HEADRACE_REFUSED = -2,     /* the study refused, e.g. because it has other fields; both are named */
    HEADRACE_UNREACHABLE = -3, /* no study answered for a lease */
    HEADRACE_SYSTEM = -4       /* memory, files or sockets */
};

/* A field: its name and global shape. */
typedef struct {
    const char *name;
    int ndim;
    int64_t shape[HEADRACE_MAX_NDIM];
} headrace_field;

typedef struct headrace headrace;

/* Make a handle for this rank; `type` is the type of the values on the wire. Collective.
 * Never NULL except without memory: ask headrace_last_error, empty where all is well. Without HEADRACE_ADDRESS in the
 * environment there is no study: headrace_next then gives one simulation without parameters, and its blocks go to files in
 * the folder HEADRACE_OUTPUT, for `headrace convert`, or nowhere. */
headrace *headrace_open(const headrace_field *fields, int num_fields, int type, int rank, int ranks);

/* Have a function called now and then, a millisecond to 20 apart, while a call waits for the study; NULL: none.
 * An MPI may move a rank's messages only while that rank is inside MPI, and another rank that waits for one of them would
 * never come to send its own block: headrace_open_comm has MPI_Iprobe called, which lets MPI work. */
void headrace_while_waiting(headrace *study, void (*function)(void *), void *argument);

/* Take the next simulation: 1 there is one, 0 none is left, negative an error. Collective. */
int headrace_next(headrace *study);

/* The simulation's parameter of that name: 0, or HEADRACE_WRONG_USE where there is none (value is left alone). */
int headrace_parameter(const headrace *study, const char *name, double *value);

int headrace_active(const headrace *study);          /* 1 where there is a study, 0 where nothing is sent */
int64_t headrace_num_steps(const headrace *study);   /* number of snapshots that the study expects; -1 without one */
uint64_t headrace_simulation(const headrace *study); /* the simulation's number */
uint64_t headrace_seed(const headrace *study);       /* for the simulation's random numbers, the same on all ranks */
uint64_t headrace_bytes_sent(const headrace *study); /* payload bytes of this simulation sent by this rank */
double headrace_blocked(const headrace *study);      /* seconds of this simulation spent waiting for the study */
int headrace_lost(const headrace *study);            /* 1: the study did not keep this simulation and will run it again */

/* Copy this rank's block of a field for the next headrace_send; `field` counts from 0.
 * type: of the values; converted to the type on the wire. strides: distance of neighbours along each axis, in elements;
 * NULL: C order without gaps. offset, shape: place and size of the block in the global field. */
int headrace_put(headrace *study, int field, int type, const void *values, const int64_t *strides,
                 const int64_t *offset, const int64_t *shape);

/* Name the cells that this rank owns, where they are no box: their numbers in the global field, in C order. They are copied,
 * and travel once. All fields must have one shape. */
int headrace_cells(headrace *study, const int64_t *cells, int64_t num_cells);

/* headrace_put for the values of these cells, in their order; stride: distance of neighbours, in elements. */
int headrace_put_cells(headrace *study, int field, int type, const void *values, int64_t stride);

/* Send the step whose fields were all put; return what the study said to the step before, the same on all ranks, or an
 * error. Collective. Steps are 0, 1, 2, ... Waits, asleep in a poll, while the study has no room. */
int headrace_send(headrace *study, int64_t step, double time);

/* End the simulation: failure NULL where it was completed or stopped, else the reason. Collective if NULL. */
int headrace_end(headrace *study, const char *failure);

/* Leave the study and free the handle. */
void headrace_close(headrace *study);

/* The last error of this handle in words; "" where there was none. Valid until the next call. */
const char *headrace_last_error(const headrace *study);

/* The wire, for tests: sign a header's first 192 bytes (and the payload where flag bit 0 is set) into its last 32. */
void headrace_wire_sign(unsigned char header[224], const unsigned char token[32], const void *payload, size_t length);
uint32_t headrace_wire_crc32(uint32_t crc, const void *data, size_t length);

#ifdef __cplusplus
}
#endif
#endif
