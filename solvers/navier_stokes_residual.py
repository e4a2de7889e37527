"""The residual of the spectral Navier-Stokes solver, on arrays and tensors: what its own steps make vanish.

An explicit step has no equation to fulfil but itself, so the residual is (ω' - step(ω)) / dt, with the solver's
integrator and transforms of the whole torus. Gradients flow through both states.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from .case import Case
from .navier_stokes_spectral import ETDRK4, CrankNicolsonEuler, Integrator, Torus
from .transforms import slabs


class SpectralResidual:
    """Takes the residual of a case that `solve_vorticity` solves.

    drag, forcing, integrator : as `solve_vorticity` has them.

    Raises
    ------
    ValueError : the case is not one field on a periodic plane.
    """

    def __init__(
        self, case: Case, *, drag: float = 0.0, forcing: Callable[..., np.ndarray] | None = None,
        integrator: Integrator = ETDRK4,
    ) -> None:  # fmt: skip
        if case.grid.ndim != 2 or not all(case.periodic) or len(case.fields) != 1:
            raise ValueError(f"Case {case.name}: the spectral residual takes one field on two periodic axes.")
        self._shape, self._drag, self._integrator = case.grid.shape, drag, integrator
        self._torus = Torus(slabs(self._shape, case.periodic), case.grid.extent, whole=True)
        self._source = np.zeros(self._torus.squared.shape, dtype=complex)
        if forcing is not None:
            x = np.meshgrid(*(case.grid.points(axis, periodic=True) for axis in (0, 1)), indexing="ij")
            given = np.broadcast_to(np.asarray(forcing(tuple(x)), dtype=float), self._shape)
            self._source = integrator.admitted(self._torus, np.fft.rfft2(given))
        self._planes: dict[tuple[Any, Any], _Plane] = {}

    def __call__(self, old: Any, new: Any, dt: float, *, viscosity: Any, steps: int = 1) -> Any:
        """Return (new - step(old)) / dt, in the shape of the states.

        old, new : (*batch, nx, ny) vorticity, arrays or tensors.
        dt : time between them, taken in `steps` equal steps.
        viscosity : a number, or one per sample, broadcast against (*batch, 1, 1); taken as given, without a gradient.
            With a tensor on the states' device nothing is asked of the host.
        """
        plane = self._plane(old)
        linear = -plane.real(viscosity) * plane.squared - self._drag
        step = self._integrator.stepper(linear, dt / steps, convert=plane.constant)
        products = isinstance(self._integrator, CrankNicolsonEuler)
        advection = plane.advection_of_products if products else plane.advection

        def rest(w: Any) -> Any:
            return advection(w) + plane.source

        w = plane.forward(old)
        if not self._integrator.whole:
            w = w * plane.kept
        for _ in range(steps):
            w = step(w, rest(w), rest)
        return (new - plane.inverse(w)) * (1 / dt)

    def _plane(self, example: Any) -> _Plane:
        # Kept, because an upload in every call costs time and cannot be part of a CUDA graph.
        key = (example.dtype, getattr(example, "device", None))
        if key not in self._planes:
            # A kept tensor that was made in inference mode could never take part in training.
            torch = sys.modules["torch"] if hasattr(example, "new_tensor") else None
            with torch.inference_mode(False) if torch else nullcontext():
                self._planes[key] = _Plane(example, self._torus, self._source, self._shape)
        return self._planes[key]


class _Plane:
    """The terms of `Torus` on all of the plane, by numpy or torch after the kind of an example."""

    def __init__(self, example: Any, torus: Torus, source: np.ndarray, shape: tuple[int, int]) -> None:
        # Of its own: a view would keep the whole of the example and the graph that its gradient goes back through.
        self._example = example.detach().new_empty(0) if hasattr(example, "new_tensor") else None
        self._shape = shape
        self._fft = sys.modules["torch"].fft if hasattr(example, "new_tensor") else np.fft
        velocity, products = torus.factors, torus.product_factors
        self._to_u, self._to_v = map(self.constant, velocity)
        self._of_uv, self._of_difference, self._kept_of_products = map(self.constant, products)
        self._kx, self._ky = self.constant(1j * torus.kx), self.constant(1j * torus.ky)
        self.source, self.kept = self.constant(source), self.constant(torus.kept)
        self.squared = self.real(torus.squared)

    def constant(self, values: Any) -> Any:
        """Return complex factors of the example's kind."""
        if self._example is None:
            return np.asarray(values, dtype=complex)
        torch = sys.modules["torch"]
        kind = torch.complex64 if self._example.dtype == torch.float32 else torch.complex128
        return torch.as_tensor(values, device=self._example.device).to(kind)

    def real(self, values: Any) -> Any:
        """Return real numbers in float64 where the example lies, without a gradient."""
        if self._example is None:
            return np.asarray(values, dtype=float)
        torch = sys.modules["torch"]
        # A Python number without a type given would be rounded to float32 first.
        return torch.as_tensor(values, dtype=torch.float64, device=self._example.device).detach()

    def forward(self, a: Any) -> Any:
        """Return the spectrum."""
        return self._fft.rfft2(a)

    def inverse(self, w: Any) -> Any:
        """Return the field of a spectrum."""
        return self._fft.irfft2(w, self._shape)

    def advection(self, w: Any) -> Any:
        """Return -u·∇ω, as `Torus.advection`."""
        u, v = self.inverse(w * self._to_u), self.inverse(w * self._to_v)
        return self.forward(u * v) * self._of_uv + self.forward(v * v - u * u) * self._of_difference

    def advection_of_products(self, w: Any) -> Any:
        """Return -u·∇ω, as `Torus.advection_of_products`."""
        u, v, wx, wy = (self.inverse(w * factor) for factor in (self._to_u, self._to_v, self._kx, self._ky))
        return self.forward(-(u * wx + v * wy)) * self._kept_of_products
