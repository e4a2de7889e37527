"""torch-cfd's spectral solver for the same planes: RK4 with Crank-Nicolson, 2/3 rule.

pip install torch-cfd==0.2.6, or put its wheel and that of einops on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .planes import Plane


class Source:
    """The forcing as torch-cfd asks for it."""

    vorticity = True

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def __call__(self, grid: object, w: torch.Tensor, t: float) -> torch.Tensor:
        """Return the source of vorticity."""
        return self._values


def step_of(plane: Plane, n: int, dt: float, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return one step of spectra (batch, n, n // 2 + 1)."""
    from torch_cfd.grids import Grid
    from torch_cfd.spectral import NavierStokes2DSpectral, RK4CrankNicolsonStepper

    grid = Grid((n, n), domain=((0, 1.0), (0, 1.0)), device=torch.device(device))
    flow = NavierStokes2DSpectral(
        viscosity=plane.viscosity, grid=grid, smooth=True, step_fn=RK4CrankNicolsonStepper(),
        forcing_fn=Source(plane.forcing(n, device)),
    )  # fmt: skip
    flow = flow.double().to(device)
    return lambda w: flow.step_fn(w, dt, flow)
