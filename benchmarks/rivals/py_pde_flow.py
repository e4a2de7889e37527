"""py-pde on the common flow: its second-order differences, RK4, one core. pip install py-pde==0.59.0

py-pde has no periodic Poisson solver that is fast: the stream function comes from an FFT with the symbol of its own
Laplacian, which is what a user who wants speed would write.
"""

from collections.abc import Callable

import numpy as np
from flow import DURATION, VISCOSITY, initial, race
from pde import CartesianGrid, PDEBase, ScalarField


class Vorticity(PDEBase):
    """∂ω/∂t = ν ∇²ω - u·∇ω on a periodic plane."""

    def __init__(self, grid: CartesianGrid) -> None:
        super().__init__()
        n, h = grid.shape[0], 2 * np.pi / grid.shape[0]
        lines = -((2 / h * np.sin(np.pi * np.arange(n) / n)) ** 2)
        symbol = lines[:, None] + lines[None, : n // 2 + 1]
        symbol[0, 0] = 1.0
        self._inverse = -1 / symbol
        self._inverse[0, 0] = 0.0
        self._laplace = grid.make_operator("laplace", bc="periodic")
        self._gradient = grid.make_operator("gradient", bc="periodic")

    def evolution_rate(self, state: ScalarField, t: float = 0.0) -> ScalarField:
        """Return ∂ω/∂t."""
        w = state.data
        psi = np.fft.irfft2(np.fft.rfft2(w) * self._inverse, w.shape)
        wx, wy = self._gradient(w)
        px, py = self._gradient(psi)
        return ScalarField(state.grid, VISCOSITY * self._laplace(w) - (py * wx - px * wy))


def prepare(points: int, steps: int) -> Callable[[], np.ndarray]:
    """Return the solver."""
    grid = CartesianGrid([[0, 2 * np.pi]] * 2, points, periodic=True)
    equation = Vorticity(grid)
    state = ScalarField(grid, initial(points))

    def solve() -> np.ndarray:
        last = equation.solve(
            state, DURATION, dt=DURATION / steps, solver="runge-kutta", backend="numpy", tracker=None, adaptive=False
        )  # fmt: skip
        return last.data

    return solve


if __name__ == "__main__":
    race(prepare)
