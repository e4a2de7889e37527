"""Runs one simulation of a case, serial or on MPI ranks, and hands its snapshots to a sink."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .blocks import Blocks
from .case import Case
from .exponential import ExponentialRungeKutta4
from .imex import SBDF2
from .march import march
from .newton import DivergenceError
from .parameters import Parameters
from .right_hand_side import right_hand_side
from .scheme import SSPRK3, Scheme
from .sink import Sink, Snapshot
from .transforms import slabs

if TYPE_CHECKING:
    from mpi4py import MPI


def simulate(
    case: Case, parameters: Parameters, sink: Sink, *, comm: MPI.Comm | None = None,
    study_seed: int = 0, simulation: int = 0,
) -> None:  # fmt: skip
    """Solve the case for one set of parameters and write every snapshot to the sink.

    Collective over comm; None solves serially.

    Implicit schemes take one step per snapshot unless the case says `steps_per_snapshot`. A case without a
    scheme is solved by SSPRK3, with a stiff part by SBDF2; steps that are explicit in some part are the largest stable
    ones, estimated anew for every snapshot. Dormand-Prince chooses its steps by their estimated error.

    Parameters
    ----------
    study_seed, simulation : key of the random generator that `case.initial` receives, the same on all ranks.

    Raises
    ------
    ValueError : the grid cannot be split over the ranks, or a function of the case breaks its contract.
    DivergenceError : the solution left the finite numbers; every rank names the time, the field and the parameters.
    """
    keep_heap()
    rng = np.random.default_rng(np.random.SeedSequence([study_seed, simulation]))
    states = (_own_snapshots if case.solver else snapshots)(case, parameters, comm, rng)
    sink.open(case, parameters, comm)
    try:
        # A state that overflows is reported below; numpy's warnings would say it once per operator and rank.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for snapshot in states:
                if not sink.write(snapshot):
                    break
    except DivergenceError as error:
        message = f"Simulation {simulation} of case {case.name} diverged: {error}; {parameters}."
        sink.close(failure=message)
        raise DivergenceError(message) from error
    except BaseException as error:
        # One rank alone must not enter a collective call: with several ranks, ending the job is the caller's part.
        if comm is None or comm.size == 1:
            sink.close(failure=f"{type(error).__name__}: {error}")
        raise
    finally:
        states.close()
    sink.close()


def initial_state(case: Case, parameters: Parameters, blocks: Blocks, rng: np.random.Generator) -> np.ndarray:
    """Return this rank's block of the initial state, (fields, *block) float64.

    `case.initial` is evaluated on the whole grid on every rank, so that random fields do not depend on the ranks.

    Raises
    ------
    ValueError : it did not return one real array per field that fits the grid.
    """
    axes = [case.grid.points(axis, periodic=periodic) for axis, periodic in enumerate(case.periodic)]
    x = tuple(np.meshgrid(*axes, indexing="ij"))
    given = case.initial(x, parameters, rng)
    parts = list(given) if isinstance(given, tuple | list) else [given]
    if len(parts) == 1 and np.ndim(parts[0]) == case.grid.ndim + 1:
        parts = list(parts[0])
    if len(parts) != len(case.fields):
        raise ValueError(
            f"Case {case.name}: initial returned {len(parts)} fields; return one array for each of {case.fields}."
        )
    state = np.empty((len(case.fields), *blocks.shape))
    for name, part, target in zip(case.fields, parts, state, strict=True):
        if np.iscomplexobj(part):
            raise ValueError(
                f"Case {case.name}: initial returned complex numbers for field {name}; fields are real. Give real and "
                "imaginary part a field each."
            )
        try:
            whole = np.broadcast_to(np.asarray(part, dtype=np.float64), case.grid.shape)
        except ValueError:
            raise ValueError(
                f"Case {case.name}: initial returned shape {np.shape(part)} for field {name}; "
                f"the coordinates x[0], x[1], ... have the shape {case.grid.shape}, and so must every field."
            ) from None
        target[...] = whole[blocks.where]
    return state


def snapshots(
    case: Case, parameters: Parameters, comm: MPI.Comm | None, rng: np.random.Generator
) -> Iterator[Snapshot]:
    """Yield the snapshots of a case with a right-hand side; also for a `solver` that chooses one. Collective.

    Raises
    ------
    ValueError, DivergenceError : as `simulate`.
    """
    scheme = case.scheme or (SSPRK3 if case.stiff is None else SBDF2)
    blocks = _blocks(case, scheme, comm)
    u = initial_state(case, parameters, blocks, rng)
    _require_finite(case, u, 0.0, blocks)
    f = right_hand_side(case, parameters, blocks, u)
    failed_alone = False
    try:
        yield Snapshot(step=0, time=0.0, values=u, where=blocks.where)
        times = case.times
        for index, state in enumerate(march(case, scheme, f, u), start=1):
            _require_finite(case, state, times[index], blocks)
            yield Snapshot(step=index, time=float(times[index]), values=state, where=blocks.where)
    except Exception as error:
        failed_alone = not isinstance(error, DivergenceError)
        raise
    finally:
        # Freeing communicators is collective: a rank that fails alone must not wait here for the others.
        if not failed_alone:
            f.free()
            blocks.free()


def _blocks(case: Case, scheme: Scheme, comm: MPI.Comm | None) -> Blocks:
    if isinstance(scheme, ExponentialRungeKutta4):
        if not all(case.periodic):
            raise ValueError(f"Case {case.name}: {scheme.name} needs a periodic grid; between walls use SBDF2.")
        return slabs(case.grid.shape, case.periodic, comm)
    # Ghost layers of fourth order at walls are made of four owned ones.
    smallest = 4 if case.accuracy == 4 and not all(case.periodic) else 2
    return Blocks(case.grid.shape, case.periodic, comm, smallest=smallest)


def _own_snapshots(
    case: Case, parameters: Parameters, comm: MPI.Comm | None, rng: np.random.Generator
) -> Iterator[Snapshot]:
    """Yield the snapshots of a case that brings its own solver, checked."""
    for snapshot in case.solver(case, parameters, comm, rng):
        _require_finite(case, snapshot.values, snapshot.time, None, comm)
        yield snapshot


def _require_finite(
    case: Case, u: np.ndarray, t: float, blocks: Blocks | None, comm: MPI.Comm | None = None
) -> None:
    """Raise on every rank where a value of any rank is infinite or not a number. Collective."""
    bad = np.array([float(np.count_nonzero(~np.isfinite(field))) for field in u])
    if blocks is not None:
        bad = blocks.sum(bad)
    elif comm is not None and comm.size > 1:
        bad = np.array(comm.allreduce(bad))
    if bad.any():
        field = int(np.argmax(bad))
        raise DivergenceError(f"{int(bad[field])} values of field {case.fields[field]} are not finite at t = {t:.6g}")


@lru_cache(maxsize=1)
def keep_heap() -> None:
    """Keep freed memory in the process: glibc would give it back after every step and fault it in again.

    Temporaries of a stencil are as large as the block; with the default settings of malloc an explicit step on
    512 x 512 points takes five times as long. Other C libraries have no mallopt, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    mallopt(trim_threshold, 1 << 30)
    mallopt(top_pad, 1 << 26)
    # Some versions of glibc take no more than 32 MiB here, and say so by returning 0.
    if mallopt(mmap_threshold, 1 << 30) != 1:
        mallopt(mmap_threshold, 1 << 25)
