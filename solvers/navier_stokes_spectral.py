"""Two-dimensional incompressible Navier-Stokes on a torus, pseudo-spectral in vorticity form, on MPI ranks.

    ∂ω/∂t + u·∇ω = ν ∇²ω - μ ω + f,   u = (∂ψ/∂y, -∂ψ/∂x),   ∇²ψ = -ω

Letters in the kernels: w the spectrum of ω, k the wavevector, L = -ν|k|² - μ the linear part, N the rest.
The mean of ω is that of the initial state, and there is no mean flow.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .blocks import Blocks
from .case import Case
from .parameters import Parameters
from .simulate import initial_state
from .sink import Snapshot
from .transforms import Ends, SlabTransform, slabs

if TYPE_CHECKING:
    from mpi4py import MPI


class Torus:
    """The spatial part: spectra on slabs, the advection term, the velocity.

    blocks : from `slabs`, periodic.
    extent : lengths of the torus.
    whole : whether spectra hold all modes along y, or only those that are `kept`.
    """

    def __init__(self, blocks: Blocks, extent: tuple[float, float], *, whole: bool) -> None:
        modes = None if whole else math.ceil(blocks.grid_shape[1] / 3)
        self.transform = SlabTransform(blocks, (Ends.PERIODIC, Ends.PERIODIC), modes)
        self._blocks = blocks
        numbers = self.transform.wavenumbers()
        self.kx, self.ky = (2 * np.pi / length * k for length, k in zip(extent, numbers, strict=True))
        self.squared = self.kx**2 + self.ky**2
        constant = self.squared == 0
        # All factors are real or purely imaginary (see transforms), stored as complex numbers: numpy multiplies those
        # faster than it converts real ones.
        inverse = np.where(constant, 0.0, 1 / np.where(constant, 1.0, self.squared))
        self._to_velocity = np.stack([1j * self.ky * inverse, -1j * self.kx * inverse])
        (nx, ny), (ix, iy) = blocks.grid_shape, (np.abs(k) for k in numbers)
        self.kept = (3 * ix < nx) & (3 * iy < ny)
        """Where the lower two thirds of the wavenumbers lie: products of two such fields have no aliases there."""
        self._kept_of_products = ((ix <= 2 / 3 * (nx // 2)) & (iy <= 2 / 3 * (ny // 2))).astype(complex)
        of_uv_and_difference = np.stack([self.kx**2 - self.ky**2, self.kx * self.ky])
        self._of_products = np.where(self.kept, of_uv_and_difference, 0.0).astype(complex)
        self._spacing = tuple(length / n for length, n in zip(extent, blocks.grid_shape, strict=True))
        self._velocity: np.ndarray | None = None

    @property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """What turns the spectrum of the vorticity into those of u and v."""
        return tuple(self._to_velocity)

    @property
    def product_factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What turns the spectra of u v and v² - u² into that of -u·∇ω; and the modes kept of products."""
        return *self._of_products, self._kept_of_products

    def velocity(self, w: np.ndarray) -> np.ndarray:
        """Return (u, v) in physical space, (2, *slab). Collective."""
        self._velocity = self.transform.inverse(w * self._to_velocity)
        return self._velocity

    def advection(self, w: np.ndarray) -> np.ndarray:
        """Return the spectrum of -u·∇ω without aliases, for w within `kept`. Collective.

        -u·∇ω = -(∂²/∂x² - ∂²/∂y²)(u v) - ∂²/∂x∂y (v² - u²)

        needs four transforms, one less than the other forms (Basdevant 1983).
        """
        u, v = self.velocity(w)
        stack = np.empty((2, *u.shape))
        np.multiply(u, v, out=stack[0])
        np.multiply(v, v, out=stack[1])
        stack[1] -= u * u
        uv, difference = parts = self.transform.forward(stack)
        parts *= self._of_products
        uv += difference
        return uv

    def advection_of_products(self, w: np.ndarray) -> np.ndarray:
        """Return the spectrum of -u·∇ω from products in physical space, its outer third removed. Collective."""
        stack = np.empty((4, *w.shape), dtype=complex)
        for target, factor in zip(stack, (*self._to_velocity, 1j * self.kx, 1j * self.ky), strict=True):
            np.multiply(w, factor, out=target)
        u, v, wx, wy = fields = self.transform.inverse(stack)
        self._velocity = fields[:2]
        return self.transform.forward(-(u * wx + v * wy)) * self._kept_of_products

    def rate(self) -> float:
        """Return max(|u|/Δx + |v|/Δy) of the velocity last computed, over all ranks. Collective."""
        (hx, hy), (u, v) = self._spacing, np.abs(self._velocity)
        return float(self._blocks.max(np.array([(u / hx + v / hy).max()]))[0])


Step = Callable[[Any, Any, Callable], Any]
Convert = Callable[[Any], Any]


def complex_array(values: np.ndarray) -> np.ndarray:
    """Return real coefficients as complex numbers: numpy multiplies those faster than it converts real ones."""
    return values.astype(complex)


class Integrator(ABC):
    """How one step in time is taken. `courant` bounds dt·max(|u|/Δx + |v|/Δy) where the step is free."""

    courant: float
    order: int
    whole: bool
    """Whether it needs all modes of the state, or two thirds of them."""

    @abstractmethod
    def advection(self, torus: Torus, w: np.ndarray) -> np.ndarray:
        """Return the spectrum of -u·∇ω in the form that this integrator takes. Collective."""

    @abstractmethod
    def stepper(self, linear: Any, dt: float, *, convert: Convert = complex_array) -> Step:
        """Return the function (w, N(w), N) -> w after dt, for w' = linear·w + N(w).

        linear : a real array or tensor in float64; what follows from it is computed where it lies.
        convert : turns the real coefficients into complex ones of the states' kind.
        """

    def admitted(self, torus: Torus, w: np.ndarray) -> np.ndarray:
        """Return the part of an initial spectrum that is kept."""
        return w


class CrankNicolsonEuler(Integrator):
    """Crank-Nicolson for the linear part, explicit Euler for the rest: the recipe of the neural operator's data.

    w_{n+1} = ((1 + dt L/2) w_n + dt N(w_n)) / (1 - dt L/2)

    First order. N is dealiased, the state is not, as in the program that made the data sets (Li et al. 2021).
    """

    courant = 0.05
    order = 1
    whole = True

    def advection(self, torus: Torus, w: np.ndarray) -> np.ndarray:
        """Return -u·∇ω from products in physical space."""
        return torus.advection_of_products(w)

    def stepper(self, linear: Any, dt: float, *, convert: Convert = complex_array) -> Step:
        """Return the step."""
        old, new = (1 + 0.5 * dt * linear) / (1 - 0.5 * dt * linear), dt / (1 - 0.5 * dt * linear)
        old, new = convert(old), convert(new)
        return lambda w, n, _: old * w + new * n


class ExponentialRungeKutta4(Integrator):
    """ETDRK4: the linear part exactly, the rest by four stages (Cox and Matthews 2002, eq. 26-29). Fourth order.

    The state is kept within 2/3 of the wavenumbers, so that nothing is aliased.
    """

    courant = 0.5
    order = 4
    whole = False

    def advection(self, torus: Torus, w: np.ndarray) -> np.ndarray:
        """Return -u·∇ω from the products of the velocity."""
        return torus.advection(w)

    def admitted(self, torus: Torus, w: np.ndarray) -> np.ndarray:
        """Return the spectrum within 2/3 of the wavenumbers."""
        return np.where(torus.kept, w, 0.0)

    def stepper(self, linear: Any, dt: float, *, convert: Convert = complex_array) -> Step:
        """Return the step."""
        z = dt * linear
        phi1, phi2, phi3 = phi_functions(z)
        exp = _library(z).exp
        real = (
            exp(z / 2), exp(z), 0.5 * dt * first_phi_function(z / 2),
            dt * (phi1 - 3 * phi2 + 4 * phi3), dt * (2 * phi2 - 4 * phi3), dt * (4 * phi3 - phi2),
        )  # fmt: skip
        half, whole, q, f1, f2, f3 = map(convert, real)

        def step(w: np.ndarray, n: np.ndarray, rest: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            half_w = half * w
            a = q * n
            a += half_w  # e^(z/2) w + q N(w)
            n_a = rest(a)
            half_w += q * n_a  # e^(z/2) w + q N(a)
            n_b = rest(half_w)
            a *= half
            a += q * (n_b + (n_b - n))  # e^(z/2) a + q (2 N(b) - N(w))
            n_c = rest(a)
            n_a += n_b
            n_a *= f2
            n_c *= f3
            n_c += n_a
            n_c += f1 * n
            n_c += whole * w
            return n_c

        return step


CRANK_NICOLSON_EULER = CrankNicolsonEuler()
ETDRK4 = ExponentialRungeKutta4()
ALL_INTEGRATORS: tuple[Integrator, ...] = (CRANK_NICOLSON_EULER, ETDRK4)


def phi_functions(z: Any) -> tuple[Any, Any, Any]:
    """Return φ1 = (e^z - 1)/z, φ2 = (φ1 - 1)/z, φ3 = (φ2 - 1/2)/z for real z, without loss of digits at z = 0."""
    where = _library(z).where
    small = abs(z) < 1
    large, near = where(small, 1.0, z), where(small, z, 0.0)
    phi1 = first_phi_function(z)
    phi2 = (phi1 - 1) / large
    phi3 = (phi2 - 0.5) / large
    # φ3 = Σ z^j / (j + 3)!; 18 terms reach the last digit for |z| < 1, and recurrences upwards lose none.
    series = 0 * near
    for j in range(18, -1, -1):
        series = series * near + 1 / math.factorial(j + 3)
    phi3 = where(small, series, phi3)
    phi2 = where(small, 0.5 + near * phi3, phi2)
    return phi1, phi2, phi3


def first_phi_function(z: Any) -> Any:
    """Return φ1 = (e^z - 1)/z for real z, 1 at z = 0."""
    library = _library(z)
    nonzero = library.where(z == 0, 1.0, z)
    return library.where(z == 0, 1.0, library.expm1(nonzero) / nonzero)


def _library(a: Any) -> Any:
    return sys.modules["torch"] if hasattr(a, "new_tensor") else np


def solve_vorticity(
    case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator, *,
    viscosity: float, drag: float = 0.0, forcing: Callable[..., np.ndarray] | None = None,
    integrator: Integrator = ETDRK4,
) -> Iterator[Snapshot]:  # fmt: skip
    """Yield the vorticity at the times of a case with one field on a periodic plane. Collective.

    Without `case.steps_per_snapshot` the step is the interval between snapshots divided by a power of two, chosen
    anew for every step from the velocity.

    Parameters
    ----------
    viscosity, drag : ν and μ.
    forcing : function (x) -> f on the coordinates of a block, steady.

    Raises
    ------
    ValueError : the case has other fields, axes or boundaries, or too few points for the ranks.
    """
    if case.grid.ndim != 2 or not all(case.periodic) or len(case.fields) != 1:
        raise ValueError(
            f"Case {case.name}: the spectral vorticity solver takes one field on two periodic axes; it has fields "
            f"{case.fields} on {case.grid.ndim} axes, periodic: {case.periodic}."
        )
    blocks = slabs(case.grid.shape, case.periodic, comm)
    torus = Torus(blocks, case.grid.extent, whole=integrator.whole)
    state = initial_state(case, p, blocks, rng)
    yield Snapshot(step=0, time=0.0, values=state, where=blocks.where)
    source = None
    if forcing is not None:
        axes = [case.grid.points(axis, periodic=True)[place] for axis, place in enumerate(blocks.where)]
        given = np.asarray(forcing(tuple(np.ix_(*axes))), dtype=float)
        source = integrator.admitted(torus, torus.transform.forward(np.broadcast_to(given, blocks.shape)))
    march = _March(torus, integrator, -viscosity * torus.squared - drag, source)
    interval = case.duration / case.num_snapshots
    w = integrator.admitted(torus, torus.transform.forward(state[0]))
    for index, time in enumerate(case.times[1:], start=1):
        w = march.advance(w, interval, case.steps_per_snapshot)
        yield Snapshot(step=index, time=float(time), values=torus.transform.inverse(w)[None], where=blocks.where)


class _March:
    """Takes steps of chosen length; keeps the coefficients of the last few lengths."""

    def __init__(
        self, torus: Torus, integrator: Integrator, linear: np.ndarray, source: np.ndarray | None
    ) -> None:  # fmt: skip
        self._torus, self._integrator, self._linear, self._source = torus, integrator, linear, source
        self._steppers: dict[float, Callable] = {}
        self._acceleration = 0.0
        if source is not None:
            torus.velocity(source)
            self._acceleration = torus.rate()

    def _rest(self, w: np.ndarray) -> np.ndarray:
        n = self._integrator.advection(self._torus, w)
        if self._source is not None:
            n += self._source
        return n

    def _stepper(self, dt: float) -> Callable:
        if dt not in self._steppers:
            if len(self._steppers) == 3:
                del self._steppers[next(iter(self._steppers))]
            self._steppers[dt] = self._integrator.stepper(self._linear, dt)
        return self._steppers[dt]

    def advance(self, w: np.ndarray, interval: float, steps: int | None) -> np.ndarray:
        """Return w after an interval, in a fixed number of steps or in as many as the velocity asks for. Collective."""
        if steps is not None:
            for _ in range(steps):
                w = self._stepper(interval / steps)(w, self._rest(w), self._rest)
            return w
        # Positions are counted in units of interval / 2^level: whole numbers, the same on every rank.
        position, level = 0, 0
        while position < 2**level:
            n = self._rest(w)
            wanted = self._level(interval)
            while wanted < level and position % 2 == 0:
                position, level = position // 2, level - 1
            if wanted > level:
                position, level = position << (wanted - level), wanted
            w = self._stepper(interval / 2**level)(w, n, self._rest)
            position += 1
        return w

    def _level(self, interval: float) -> int:
        """Return the halvings of the interval that the Courant number asks for, after an evaluation of the rest."""
        courant = self._integrator.courant
        # A flow at rest is moved by its forcing within the step: a dt²/Δx <= courant.
        rate = max(self._torus.rate(), math.sqrt(courant * self._acceleration))
        if not math.isfinite(rate):
            return 0
        return max(0, math.ceil(math.log2(max(1.0, rate * interval / courant))))
