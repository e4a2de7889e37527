"""ETDRK4: the stiff linear part of a periodic semilinear problem exactly in Fourier space, the rest by four stages.

    du/dt = g(u) + N(u, t),   g linear with constant coefficients: multiplication by L(k) in Fourier space

Cox and Matthews 2002, eq. 26-29; coefficients by the mean over a circle, Kassam and Trefethen 2005. Letters follow
them: v the spectrum of u, L the symbol of g, E = exp(dt L), E2 = exp(dt L / 2), Q and f1, f2, f3 the weights.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .blocks import Blocks
from .scheme import ImplicitSolve, RightHandSideFunction, Scheme, SplitFunction
from .transforms import Ends, SlabTransform


class Semilinear(ABC):
    """The stiff part of a case in Fourier space: transforms, symbol, and the weights for a step.

    The symbol comes from the response of `stiff` to an impulse, so that it is that of the same discrete operators.
    """

    symbol: np.ndarray
    """L, (fields, *batch, *modes)."""

    def __init__(self) -> None:
        self._weights: dict[float, tuple[Any, ...]] = {}

    @abstractmethod
    def forward(self, u: Any) -> Any:
        """Return the spectrum of fields. Collective on ranks."""

    @abstractmethod
    def inverse(self, v: Any) -> Any:
        """Return the fields of a spectrum. Collective on ranks."""

    @abstractmethod
    def like_spectrum(self, array: np.ndarray) -> Any:
        """Return weights as the kind of array that multiplies a spectrum."""

    def weights(self, dt: float) -> tuple[Any, ...]:
        """Return E, E2, Q, f1, f2, f3 for a step."""
        if dt not in self._weights:
            if len(self._weights) == 4:
                del self._weights[next(iter(self._weights))]
            self._weights[dt] = tuple(self.like_spectrum(w) for w in exponential_weights(self.symbol, dt))
        return self._weights[dt]


def exponential_weights(L: np.ndarray, dt: float, points: int = 32) -> tuple[np.ndarray, ...]:
    """Return E, E2, Q, f1, f2, f3; the functions have removable singularities, so their mean over a circle is taken."""
    z = dt * L
    Q, f1, f2, f3 = (np.zeros(np.shape(z), dtype=complex) for _ in range(4))
    for point in np.exp(2j * np.pi * (np.arange(points) + 0.5) / points):
        r = z + point
        e = np.exp(r)
        Q += (np.exp(r / 2) - 1) / r
        f1 += (-4 - r + e * (4 - 3 * r + r**2)) / r**3
        f2 += (2 + r + e * (r - 2)) / r**3
        f3 += (-4 - 3 * r - r**2 + e * (4 - r)) / r**3
    means = [dt / points * total for total in (Q, f1, f2, f3)]
    if not np.iscomplexobj(L):
        means = [mean.real for mean in means]
    return np.exp(z), np.exp(z / 2), *means


@dataclass(frozen=True, kw_only=True)
class ExponentialRungeKutta4(Scheme):
    """ETDRK4 for cases with a `stiff` part on a periodic grid; f.semilinear(u) is its form in Fourier space.

    stable_radius : |λ| dt of the rest N that steps chosen by the solver stay below.
    """

    name: str = "ETDRK4"
    order: int = 4
    num_old: int = 1
    implicit: bool = False
    splits: bool = True
    stable_radius: float = 1.5

    def residual(self, old: Sequence[Any], new: Any, f: SplitFunction, t: float, dt: float) -> Any:
        """Return (u_{n+1} - step(u_n)) / dt."""
        return (new - self.step(old, f, t, dt)) * (1 / dt)

    def step(
        self, old: Sequence[Any], f: SplitFunction, t: float, dt: float, solve: ImplicitSolve | None = None
    ) -> Any:
        """Return the state after one step."""
        u = old[-1]
        linear = f.semilinear(u)
        L = linear.like_spectrum(linear.symbol)
        E, E2, Q, f1, f2, f3 = linear.weights(dt)

        def rest(v: Any, u: Any, time: float) -> Any:
            return linear.forward(f(u, time)) - L * v

        v = linear.forward(u)
        n = rest(v, u, t)
        a = E2 * v + Q * n
        n_a = rest(a, linear.inverse(a), t + dt / 2)
        b = E2 * v + Q * n_a
        n_b = rest(b, linear.inverse(b), t + dt / 2)
        c = E2 * a + Q * (2 * n_b - n)
        n_c = rest(c, linear.inverse(c), t + dt)
        return linear.inverse(E * v + f1 * n + 2 * f2 * (n_a + n_b) + f3 * n_c)


ETDRK4 = ExponentialRungeKutta4()


class BlockSemilinear(Semilinear):
    """The stiff part on slabs of a grid.

    stiff : g(u, t) on (fields, *slab).
    """

    def __init__(self, stiff: RightHandSideFunction, blocks: Blocks, fields: int) -> None:
        super().__init__()
        self._transform = SlabTransform(blocks, (Ends.PERIODIC,) * len(blocks.shape))
        impulse = np.zeros((fields, *blocks.shape))
        at_origin = all(place.start == 0 for place in blocks.where)

        def respond(field: int) -> np.ndarray:
            impulse[...] = 0.0
            if at_origin:
                impulse[(field, *[0] * len(blocks.shape))] = 1.0
            return stiff(impulse, 0.0)

        responses = [respond(field) for field in range(fields)]
        leaks = np.array([max(np.abs(np.delete(r, i, axis=0)).max(initial=0.0) for i, r in enumerate(responses))])
        spectra = np.stack([self.forward(response)[field] for field, response in enumerate(responses)])
        largest = blocks.max(np.array([np.abs(spectra).max(), np.abs(spectra.imag).max()]))
        # Even operators have a real symbol; products with real numbers have the same bits on any number of ranks.
        self.symbol = spectra.real.copy() if largest[1] <= 1e-12 * largest[0] else spectra
        _require_diagonal(blocks.max(leaks)[0] > 1e-12 * largest[0])
        # Numbers that depend on the global index alone, the same on any number of ranks.
        grids = np.ix_(*(np.arange(s.start, s.stop) for s in blocks.where))
        index = np.ravel_multi_index(np.broadcast_arrays(*grids), blocks.grid_shape)
        trial = np.stack([np.sin(12.9898 * (index + 7.0 * field + 1.0) ** 1.5) for field in range(fields)])
        wanted = stiff(trial, 0.0)
        error = self.inverse(self.symbol * self.forward(trial)) - wanted
        worst = blocks.max(np.array([np.abs(error).max(), np.abs(wanted).max(), np.abs(stiff(0 * trial, 0.0)).max()]))
        _require_constant(worst[0] > 1e-8 * worst[1] or worst[2] > 0)

    def forward(self, u: np.ndarray) -> np.ndarray:
        """Return the spectrum. Collective."""
        return self._transform.forward(u)

    def inverse(self, v: np.ndarray) -> np.ndarray:
        """Return the fields. Collective."""
        return self._transform.inverse(v)

    def like_spectrum(self, array: np.ndarray) -> np.ndarray:
        """Return the weights as they are."""
        return array


class TensorSemilinear(Semilinear):
    """The stiff part on tensors (fields, batch, *grid) that hold the whole grid; weights carry no gradient.

    stiff : g(u, t) on such tensors.
    """

    def __init__(self, stiff: RightHandSideFunction, u: Any, rows: int) -> None:
        super().__init__()
        self._grid = tuple(u.shape[2:])
        self._axes = tuple(range(-len(self._grid), 0))
        self._like = u.detach()
        # In float64 whatever the state's precision: the weights are small differences.
        double = sys.modules["torch"].float64
        impulse = self._like.new_zeros((u.shape[0], u.shape[0], rows, *self._grid), dtype=double)
        spectra = []
        for field, one in enumerate(impulse):
            one[(field, slice(None), *[0] * len(self._grid))] = 1.0
            spectra.append(self.forward(stiff(one, 0.0).detach())[field])
        symbol = np.stack([spectrum.cpu().numpy() for spectrum in spectra])
        real = np.abs(symbol.imag).max() <= 1e-12 * np.abs(symbol).max()
        self.symbol = symbol.real.copy() if real else symbol

    def forward(self, u: Any) -> Any:
        """Return the spectrum."""
        return sys.modules["torch"].fft.rfftn(u, dim=self._axes)

    def inverse(self, v: Any) -> Any:
        """Return the fields."""
        return sys.modules["torch"].fft.irfftn(v, s=self._grid, dim=self._axes)

    def like_spectrum(self, array: np.ndarray) -> Any:
        """Return a tensor on the state's device, in its precision."""
        torch = sys.modules["torch"]
        single = self._like.dtype == torch.float32
        kinds = (torch.complex64, torch.float32) if single else (torch.complex128, torch.float64)
        return torch.as_tensor(array, device=self._like.device).to(kinds[0] if np.iscomplexobj(array) else kinds[1])


def _require_diagonal(broken: bool) -> None:
    if broken:
        raise ValueError("ETDRK4 needs a stiff part that acts on each field by itself; this one couples fields.")


def _require_constant(broken: bool) -> None:
    if broken:
        raise ValueError(
            "ETDRK4 needs a stiff part that is linear with coefficients constant in space, such as "
            "p.nu * d.laplacian(u); this one is not. Take the varying rest out of `stiff`, or use SBDF2."
        )
