"""torch-cfd on the common flow: its spectral solver with Runge-Kutta and Crank-Nicolson, float64, one core.

pip install torch-cfd==0.2.6
"""

from collections.abc import Callable

import numpy as np
import torch
from flow import DURATION, VISCOSITY, initial, race
from torch_cfd.grids import Grid
from torch_cfd.spectral import NavierStokes2DSpectral, RK4CrankNicolsonStepper

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


def prepare(points: int, steps: int) -> Callable[[], np.ndarray]:
    """Return the solver."""
    grid = Grid((points, points), domain=((0, 2 * torch.pi), (0, 2 * torch.pi)))
    flow = NavierStokes2DSpectral(
        viscosity=VISCOSITY, grid=grid, smooth=True, step_fn=RK4CrankNicolsonStepper()
    ).double()  # fmt: skip
    start = torch.fft.rfft2(torch.from_numpy(initial(points)))
    dt = DURATION / steps

    def solve() -> np.ndarray:
        w = start
        with torch.inference_mode():
            for _ in range(steps):
                w = flow.step_fn(w, dt, flow)
            return torch.fft.irfft2(w, s=(points, points)).numpy()

    return solve


if __name__ == "__main__":
    race(prepare)
