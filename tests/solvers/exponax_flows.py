"""Makes exponax_flows.npz: two flows solved by exponax, an independent spectral code in JAX.

    python -m venv .rivals/exponax && .rivals/exponax/bin/pip install exponax==0.2.0
    .rivals/exponax/bin/python tests/solvers/exponax_flows.py

exponax takes the velocity from ω with the opposite sign; a convection scale of -1 gives our convention.
Both start from `initial` on 128 x 128 points of a torus of length 2π; 32 x 32 of them are stored.
"""

from pathlib import Path

import numpy as np

POINTS, DURATION, VISCOSITY = 128, 1.0, 0.05


def initial(x, y):
    """Vortices of three sizes."""
    return 2 * np.cos(x) * np.sin(2 * y) + np.sin(2 * x + y) + 0.5 * np.cos(3 * y - x)


def main():
    import exponax
    import jax

    jax.config.update("jax_enable_x64", True)
    x = 2 * np.pi * np.arange(POINTS) / POINTS
    state = initial(x[:, None], x[None, :])[None]
    steps = 400
    where, common = (2, 2 * np.pi, POINTS, DURATION / steps), dict(diffusivity=VISCOSITY, order=4)
    flows = {
        "decaying": exponax.stepper.NavierStokesVorticity(*where, vorticity_convection_scale=-1, **common),
        "kolmogorov": exponax.stepper.KolmogorovFlowVorticity(*where, convection_scale=-1, **common),
    }
    stride = POINTS // 32
    found = {
        name: np.asarray(exponax.repeat(step, steps)(state))[0, ::stride, ::stride] for name, step in flows.items()
    }
    np.savez(Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
    main()
