"""exponax on the common flow: ETDRK4 in JAX, float64, one core. pip install exponax==0.2.0"""

import os
from collections.abc import Callable

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"

import exponax
import jax
import numpy as np
from flow import DURATION, VISCOSITY, initial, race

jax.config.update("jax_enable_x64", True)


def prepare(points: int, steps: int) -> Callable[[], np.ndarray]:
    """Return the solver, compiled as one program for all steps."""
    step = exponax.stepper.NavierStokesVorticity(
        2, 2 * np.pi, points, DURATION / steps, diffusivity=VISCOSITY, order=4,
        vorticity_convection_scale=-1,  # its velocity has the opposite sign
    )  # fmt: skip
    run = jax.jit(exponax.repeat(step, steps))
    state = initial(points)[None]
    return lambda: np.asarray(run(state).block_until_ready())[0]


if __name__ == "__main__":
    race(prepare)
