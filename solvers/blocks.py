"""Cartesian blocks of a grid over MPI ranks: who owns what, halo exchange, global reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI


def choose_dims(shape: Sequence[int], ranks: int, smallest: int = 2) -> tuple[int, ...]:
    """Return the number of blocks along each axis with the least halo; ties split the leading axes.

    smallest : points that every block needs along every axis.

    Raises
    ------
    ValueError : no product of block counts equals the number of ranks.
    """
    best = _best_dims(shape, ranks, smallest)
    if best is None:
        allowed = next((r for r in range(ranks - 1, 0, -1) if _best_dims(shape, r, smallest)), None)
        if allowed is None:
            raise ValueError(f"Grid shape {tuple(shape)} is too small: a block needs {smallest} points on every axis.")
        raise ValueError(
            f"Grid shape {tuple(shape)} cannot be split over {ranks} ranks: every block needs {smallest} points "
            f"along every axis. The largest smaller number of ranks that works is {allowed}; use it, or a larger grid."
        )
    return best


def check_split(shape: Sequence[int], ranks: int) -> None:
    """Raise ValueError where a grid cannot be split over a number of ranks; nothing is communicated."""
    choose_dims(shape, ranks)


def _best_dims(shape: Sequence[int], ranks: int, smallest: int) -> tuple[int, ...] | None:
    def faces(dims: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        cells = math.prod(shape)
        return sum((d - 1) * cells // n for d, n in zip(dims, shape, strict=True)), tuple(-d for d in dims)

    fitting = [
        dims
        for dims in _factorisations(ranks, len(shape))
        if all(n // d >= smallest for n, d in zip(shape, dims, strict=True))
    ]
    return min(fitting, key=faces, default=None)


def _factorisations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (number,)
        return
    for divisor in range(1, number + 1):
        if number % divisor == 0:
            for rest in _factorisations(number // divisor, parts - 1):
                yield (divisor, *rest)


def split(points: int, parts: int, index: int) -> slice:
    """Return part `index` of `points` points in `parts` nearly equal parts, the first ones larger by one."""
    size, extra = divmod(points, parts)
    start = index * size + min(index, extra)
    return slice(start, start + size + (index < extra))


class Blocks:
    """The decomposition of a grid into one block per rank of comm; None is one block without MPI.

    Parameters
    ----------
    shape : points of the grid along each axis.
    periodic : per axis, whether the first and last block are neighbours.
    comm : the ranks; nothing else is communicated with.
    smallest : points that every block needs along every axis.
    dims : number of blocks along each axis; None takes those with the least halo.

    Raises
    ------
    ValueError : the grid cannot be split over the ranks.
    """

    def __init__(
        self, shape: Sequence[int], periodic: Sequence[bool], comm: MPI.Comm | None = None, *, smallest: int = 2,
        dims: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.grid_shape = tuple(shape)
        self.periodic = tuple(periodic)
        self.comm = comm
        self.rank, self.size = (comm.rank, comm.size) if comm is not None else (0, 1)
        self.dims = choose_dims(shape, self.size, smallest) if dims is None else tuple(dims)
        self.coords = tuple(int(i) for i in np.unravel_index(self.rank, self.dims))
        self.where = self.place(self.rank)
        self.shape = tuple(s.stop - s.start for s in self.where)
        self._lines: dict[int, MPI.Comm] = {}

    def place(self, rank: int) -> tuple[slice, ...]:
        """Return the part of the grid that a rank owns."""
        coords = np.unravel_index(rank, self.dims)
        return tuple(split(n, d, int(c)) for n, d, c in zip(self.grid_shape, self.dims, coords, strict=True))

    def neighbour(self, axis: int, direction: int) -> int | None:
        """Return the rank of the next block along an axis, -1 below, +1 above; None at a wall."""
        coords = list(self.coords)
        coords[axis] += direction
        if not 0 <= coords[axis] < self.dims[axis]:
            if not self.periodic[axis]:
                return None
            coords[axis] %= self.dims[axis]
        return int(np.ravel_multi_index(coords, self.dims))

    def at_wall(self, axis: int, direction: int) -> bool:
        """Return whether the block ends at a wall on this side."""
        return self.neighbour(axis, direction) is None

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over ranks of a float64 array, the same bits on every rank. Collective."""
        if self.size == 1:
            return values
        from mpi4py import MPI

        values = np.ascontiguousarray(values)
        result = np.empty_like(values)
        self.comm.Allreduce(values, result, op=MPI.SUM)
        return result

    def max(self, values: np.ndarray) -> np.ndarray:
        """Return the largest values over ranks of a float64 array; NaN counts as infinity. Collective."""
        values = np.where(np.isnan(values), math.inf, values)
        if self.size == 1:
            return values
        from mpi4py import MPI

        result = np.empty_like(values)
        self.comm.Allreduce(values, result, op=MPI.MAX)
        return result

    def dot(self, a: np.ndarray, b: np.ndarray) -> float:
        """Return Σ a·b over all points of all ranks. Collective."""
        return float(self.sum(np.array([np.vdot(a, b)]))[0])

    def gather_line(self, array: np.ndarray, axis: int) -> np.ndarray:
        """Return the array (n, rest) of all blocks along a grid axis, (grid points, rest). Collective.

        array : (owned points along the axis, rest), contiguous; every block of the line has the same rest.
        """
        if self.dims[axis] == 1:
            return array
        if axis not in self._lines:
            others = [c for a, c in enumerate(self.coords) if a != axis]
            dims = [n for a, n in enumerate(self.dims) if a != axis]
            color = int(np.ravel_multi_index(others, dims)) if others else 0
            self._lines[axis] = self.comm.Split(color, self.coords[axis])
        rest = array.size // len(array)
        whole = np.empty((self.grid_shape[axis], rest))
        parts = [split(self.grid_shape[axis], self.dims[axis], i) for i in range(self.dims[axis])]
        counts = [(s.stop - s.start) * rest for s in parts]
        self._lines[axis].Allgatherv(np.ascontiguousarray(array), [whole, counts])
        return whole

    def free(self) -> None:
        """Give back the communicators made here. Collective."""
        for line in self._lines.values():
            line.Free()
        self._lines.clear()


class Exchange:
    """Fills the ghost layers of one buffer from the neighbouring blocks, with persistent requests.

    buffer : (fields, *block + 2·halo) float64.
    """

    def __init__(self, blocks: Blocks, buffer: np.ndarray, halo: int) -> None:
        self._axes = [_AxisExchange(blocks, buffer, halo, axis) for axis in range(len(blocks.shape))]

    def communicates(self, axis: int) -> bool:
        """Return whether the neighbours along an axis are other ranks."""
        return self._axes[axis].communicates

    def fill(self, axis: int, meanwhile: Callable[[], None] | None = None) -> None:
        """Fill the ghost layers of both sides of an axis, except at walls. Collective.

        meanwhile : work that is done while messages are on their way.

        Slabs span the ghost layers of the other axes, so that filling axis after axis fills corners too.
        """
        self._axes[axis].fill(meanwhile)

    def free(self) -> None:
        """Give back the requests."""
        for axis in self._axes:
            axis.free()


class _AxisExchange:
    def __init__(self, blocks: Blocks, buffer: np.ndarray, halo: int, axis: int) -> None:
        n = blocks.shape[axis]

        def layers(start: int) -> np.ndarray:
            index = [slice(None)] * buffer.ndim
            index[1 + axis] = slice(start, start + halo)
            return buffer[tuple(index)]

        ghosts = {-1: layers(0), 1: layers(halo + n)}
        owned = {-1: layers(halo), 1: layers(n)}
        self._requests: list[MPI.Prequest] = []
        self._copies: list[tuple[np.ndarray, np.ndarray]] = []
        self._before: list[tuple[np.ndarray, np.ndarray]] = []
        self._after: list[tuple[np.ndarray, np.ndarray]] = []
        for side in (-1, 1):
            other = blocks.neighbour(axis, side)
            if other is None:
                continue
            if other == blocks.rank:
                self._copies.append((ghosts[side], owned[-side]))
                continue
            out, into = np.empty_like(owned[side], order="C"), np.empty_like(ghosts[side], order="C")
            self._before.append((out, owned[side]))
            self._after.append((ghosts[side], into))
            # The tag is the direction of travel: with two periodic blocks both neighbours are the same rank.
            going_up, going_down = 2 * axis + 1, 2 * axis
            sent, received = (going_up, going_down) if side == 1 else (going_down, going_up)
            self._requests.append(blocks.comm.Recv_init(into, other, tag=received))
            self._requests.append(blocks.comm.Send_init(out, other, tag=sent))

    @property
    def communicates(self) -> bool:
        return bool(self._requests)

    def fill(self, meanwhile: Callable[[], None] | None = None) -> None:
        for target, source in self._copies:
            target[...] = source
        if self._requests:
            for target, source in self._before:
                target[...] = source
            first = type(self._requests[0])
            first.Startall(self._requests)
            if meanwhile is not None:
                meanwhile()
            first.Waitall(self._requests)
            for target, source in self._after:
                target[...] = source
        elif meanwhile is not None:
            meanwhile()

    def free(self) -> None:
        for request in self._requests:
            request.Free()
        self._requests.clear()
