"""Fourier, sine and cosine transforms of arrays that lie in slabs over MPI ranks.

A slab is a block of the whole grid but for axis 0, which is dealt to the ranks. All axes but the first are
transformed where they lie; one exchange of all ranks with all deals axis 1 in place of axis 0, and the first axis is
transformed. Every line is transformed by one rank in one piece, so the bits do not depend on the number of ranks.

Keep it so when multiplying a spectrum: by real or purely imaginary factors only. A product of two general complex
numbers may round differently in the vectorised and in the scalar loops of numpy.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .blocks import Blocks, split

if TYPE_CHECKING:
    from mpi4py import MPI


MOST_POINTS_OF_NUMPY = 2**14
"""Points of the whole grid up to which numpy does the Fourier transforms: its calls cost a few microseconds less than
scipy's, which are faster along strided axes. Both give the same bits, and the number does not depend on the ranks."""

FIRST_TAG = 1024
"""Tag of the first message of an exchange: halos, whose tags are smaller, may be under way in the same communicator."""


class Ends(enum.Enum):
    """What happens at the two ends of an axis, and with it the transform that diagonalises ∂²/∂x² there.

    With walls the points are cell centres, half a cell away from both walls.
    """

    PERIODIC = "Fourier"
    NEUMANN = "cosine, DCT-II"
    DIRICHLET = "sine, DST-II"
    NEUMANN_DIRICHLET = "cosine, DCT-IV"
    DIRICHLET_NEUMANN = "sine, DST-IV"

    def wavenumbers(self, points: int) -> np.ndarray:
        """Return the integer or half-integer wavenumbers k, shape (points,).

        Modes are exp(2πi k x / L) on a periodic axis, cos or sin(π k x / L) between walls.
        """
        if self is Ends.PERIODIC:
            return np.fft.fftfreq(points, 1 / points)
        first = {Ends.NEUMANN: 0.0, Ends.DIRICHLET: 1.0}.get(self, 0.5)
        return first + np.arange(points)

    def second_difference(self, points: int, spacing: float) -> np.ndarray:
        """Return the eigenvalues of (u_{i+1} - 2 u_i + u_{i-1}) / h² for all wavenumbers, shape (points,)."""
        period = points if self is Ends.PERIODIC else 2 * points
        return -((2 / spacing * np.sin(np.pi * self.wavenumbers(points) / period)) ** 2)


_SINE_COSINE = {
    Ends.NEUMANN: ("dct", "idct", 2),
    Ends.DIRICHLET: ("dst", "idst", 2),
    Ends.NEUMANN_DIRICHLET: ("dct", "idct", 4),
    Ends.DIRICHLET_NEUMANN: ("dst", "idst", 4),
}


def slabs(shape: Sequence[int], periodic: Sequence[bool], comm: MPI.Comm | None = None) -> Blocks:
    """Return the decomposition of a grid into slabs: axis 0 dealt to the ranks, the other axes whole.

    Raises
    ------
    ValueError : there are more ranks than the first two axes have points for.
    """
    ranks = 1 if comm is None else comm.size
    # The spectrum is dealt along axis 1, of which a real Fourier transform may keep a third: see `SlabTransform`.
    third = len(shape) > 1 and periodic[1] and not any(periodic[2:])
    most = max(1, min([shape[0] // 2, *(-(-n // 3) if third else n for n in shape[1:2])]))
    if ranks > most:
        raise ValueError(
            f"Grid shape {tuple(shape)} cannot be cut into slabs for {ranks} ranks: each needs 2 points along x"
            f"{' and 3 along y' if third else ''}. Use at most {most} ranks, or a larger grid."
        )
    return Blocks(shape, periodic, comm, dims=(ranks, *[1] * (len(shape) - 1)))


class SlabTransform:
    """Transforms real fields on slabs along every axis, and back.

    On periodic axes the spectrum is complex and, on the last periodic axis, halved: index k = 0 ... n // 2.

    Parameters
    ----------
    blocks : from `slabs`.
    ends : per axis; decides the transform.
    modes : how many modes to keep of the halved axis, which must be the last one, k = 0 ... modes - 1; the others
        are neither computed nor sent. None keeps all.
    """

    def __init__(self, blocks: Blocks, ends: Sequence[Ends], modes: int | None = None) -> None:
        import scipy.fft  # takes as long to load as all the rest of a solver, and most solvers transform nothing

        self._fft = scipy.fft
        self.ends = tuple(ends)
        self._shape = blocks.grid_shape
        self._comm = blocks.comm
        self._size = blocks.size
        self._where = blocks.where
        self._small = math.prod(self._shape) <= MOST_POINTS_OF_NUMPY
        ndim = len(self._shape)
        self.halved = max((axis for axis in range(ndim) if ends[axis] is Ends.PERIODIC), default=None)
        """The axis whose spectrum is halved; None without periodic axes."""
        counts = [n // 2 + 1 if axis == self.halved else n for axis, n in enumerate(self._shape)]
        self._kept = counts[-1]
        if modes is not None:
            if self.halved != ndim - 1 or not 0 < modes <= counts[-1]:
                raise ValueError(f"modes = {modes}: from 1 to {counts[-1]}, and only where the last axis is periodic.")
            self._kept = counts[-1] = modes
        self._rows = [split(self._shape[0], self._size, rank) for rank in range(self._size)]
        # One axis cannot be transposed: every rank then holds the whole spectrum.
        self._columns = [split(counts[1], self._size, rank) if ndim > 1 else slice(0, 1) for rank in range(self._size)]
        self.where = tuple(slice(0, m) for m in counts)
        """Place of this rank's part of the spectrum, one slice per axis."""
        if ndim > 1:
            self.where = (self.where[0], self._columns[blocks.rank], *self.where[2:])
        self.shape = tuple(s.stop - s.start for s in self.where)
        """Shape of this rank's part of the spectrum."""

    def wavenumbers(self) -> tuple[np.ndarray, ...]:
        """Return the wavenumbers of this rank's modes, one open-mesh array per axis; see `Ends.wavenumbers`."""
        lines = [ends.wavenumbers(n)[place] for ends, n, place in zip(self.ends, self._shape, self.where, strict=True)]
        if self.halved is not None:
            lines[self.halved] = np.abs(lines[self.halved])
        return tuple(np.ix_(*lines))

    def second_differences(self, spacing: Sequence[float]) -> np.ndarray:
        """Return the eigenvalues of the compact Laplacian for this rank's modes, shape `shape`."""
        lines = [
            ends.second_difference(n, h)[place]
            for ends, n, h, place in zip(self.ends, self._shape, spacing, self.where, strict=True)
        ]
        return sum(np.ix_(*lines)[1:], np.ix_(*lines)[0])

    def forward(self, fields: np.ndarray) -> np.ndarray:
        """Return the spectrum of real fields, (*lead, *slab) -> (*lead, *shape). Collective."""
        ndim = len(self._shape)
        if ndim == 1:
            return self._along(self._gathered(fields), 0)
        for axis in range(ndim - 1, 0, -1):
            fields = self._along(fields, axis)
        return self._along(self._to_columns(fields), 0)

    def inverse(self, spectrum: np.ndarray) -> np.ndarray:
        """Return the real fields of a spectrum, (*lead, *shape) -> (*lead, *slab); divides by n. Collective."""
        ndim = len(self._shape)
        fields = self._back(spectrum, 0)
        if ndim == 1:
            return fields[..., self._where[0]]
        fields = self._to_rows(fields)
        for axis in range(1, ndim):
            fields = self._back(fields, axis)
        return fields

    def _along(self, a: np.ndarray, axis: int) -> np.ndarray:
        ends, lane = self.ends[axis], axis - len(self._shape)
        if axis == self.halved:
            a = _fourier(np.fft.rfft, a, lane, a.shape[lane] // 2 + 1) if self._small else self._fft.rfft(a, axis=lane)
            return a[..., : self._kept] if axis == len(self._shape) - 1 else a
        if ends is Ends.PERIODIC:
            if self._small:
                return _fourier(np.fft.fft, a, lane, a.shape[lane])
            return self._fft.fft(a, axis=lane, overwrite_x=a.flags.c_contiguous)
        transform, _, kind = _SINE_COSINE[ends]
        return getattr(self._fft, transform)(a, type=kind, axis=lane)

    def _back(self, a: np.ndarray, axis: int) -> np.ndarray:
        ends, lane, n = self.ends[axis], axis - len(self._shape), self._shape[axis]
        if axis == self.halved:
            # Modes that are not kept are zero: irfft appends them.
            if self._small:
                return _fourier(np.fft.irfft, a, lane, n, float, n=n)
            return self._fft.irfft(a, n=n, axis=lane)
        if ends is Ends.PERIODIC:
            return _fourier(np.fft.ifft, a, lane, n) if self._small else self._fft.ifft(a, axis=lane)
        _, transform, kind = _SINE_COSINE[ends]
        return getattr(self._fft, transform)(a, type=kind, axis=lane)

    def _gathered(self, fields: np.ndarray) -> np.ndarray:
        """Return whole lines of a one-dimensional grid on every rank."""
        if self._size == 1:
            return fields
        parts = self._comm.allgather(fields)
        return np.concatenate(parts, axis=-1)

    def _to_columns(self, a: np.ndarray) -> np.ndarray:
        """Exchange (*lead, part of n0, m1, *rest) for (*lead, n0, part of m1, *rest)."""
        if self._size == 1:
            return a
        lead, rest = self._lead_and_rest(a)
        result = np.empty((*lead, self._shape[0], self.shape[1], *rest), dtype=a.dtype)
        self._exchange(self._by_column(a, len(lead)), self._by_row(result, len(lead)))
        return result

    def _to_rows(self, a: np.ndarray) -> np.ndarray:
        """Undo `_to_columns`."""
        if self._size == 1:
            return a
        lead, rest = self._lead_and_rest(a)
        rows = self._where[0].stop - self._where[0].start
        result = np.empty((*lead, rows, self._columns[-1].stop, *rest), dtype=a.dtype)
        self._exchange(self._by_row(a, len(lead)), self._by_column(result, len(lead)))
        return result

    def _by_row(self, a: np.ndarray, lane: int) -> list[np.ndarray]:
        return [a[(*[slice(None)] * lane, row)] for row in self._rows]

    def _by_column(self, a: np.ndarray, lane: int) -> list[np.ndarray]:
        return [a[(*[slice(None)] * (lane + 1), column)] for column in self._columns]

    def _lead_and_rest(self, a: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
        first = a.ndim - len(self._shape)
        return a.shape[:first], a.shape[first + 2 :]

    def _exchange(self, parts: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """Send parts[r] to rank r, and fill targets[r] with what rank r sent.

        One message for each index of the leading axes: rows then lie together in memory and are sent and received
        where they are, and only columns are copied.
        """
        own, others = self._comm.rank, [r for r in range(self._size) if r != self._comm.rank]
        leads = list(np.ndindex(*parts[own].shape[: parts[own].ndim - len(self._shape)]))
        requests, copied = [], []
        for r in others:
            for tag, lead in enumerate(leads, FIRST_TAG):
                target = targets[r][lead]
                into = target if target.flags.c_contiguous else np.empty_like(target, order="C")
                requests.append(self._comm.Irecv(into, r, tag))
                if into is not target:
                    copied.append((target, into))
        for r in others:
            for tag, lead in enumerate(leads, FIRST_TAG):
                requests.append(self._comm.Isend(np.ascontiguousarray(parts[r][lead]), r, tag))
        targets[own][...] = parts[own]  # what stays here does not pass through MPI
        requests[0].Waitall(requests)
        for target, into in copied:
            target[...] = into


def _fourier(
    transform: Callable[..., np.ndarray], a: np.ndarray, lane: int, length: int, dtype: type = complex, **given: int
) -> np.ndarray:
    """Return a transform by numpy along one axis, which gets `length`; numpy is quicker with an array to write to."""
    shape = list(a.shape)
    shape[lane] = length
    return transform(a, axis=lane, out=np.empty(shape, dtype), **given)


class PoissonSolver:
    """Solves the compact second-order difference equation ∇²u = f on slabs, directly.

    Homogeneous conditions as `ends` says; where no axis fixes the constant, f is taken without its mean and
    the mean of u is zero.
    """

    def __init__(self, blocks: Blocks, ends: Sequence[Ends], spacing: Sequence[float]) -> None:
        self._transform = SlabTransform(blocks, ends)
        eigenvalues = self._transform.second_differences(spacing)
        constant = eigenvalues == 0
        self._factor = np.where(constant, 0.0, 1 / np.where(constant, 1.0, eigenvalues))

    def solve(self, f: np.ndarray) -> np.ndarray:
        """Return u, (*lead, *slab). Collective."""
        spectrum = self._transform.forward(f)
        spectrum *= self._factor
        return self._transform.inverse(spectrum)
