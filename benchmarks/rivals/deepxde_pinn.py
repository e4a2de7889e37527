"""DeepXDE on the common problems: PyTorch backend, float64, hard conditions, Adam, then L-BFGS. deepxde==1.15.0

Of its documentation: 3 x 20 tanh, Adam 1e-3 for 15,000 steps and L-BFGS (Burgers demo), points drawn anew in Adam
(PDEPointResampler), conditions by an output transform, float64 against an early end of L-BFGS; 10,000 points.
"""

import os

os.environ["DDE_BACKEND"] = "pytorch"

import deepxde as dde
import numpy as np
import torch
from pinn import HALF, VISCOSITY, Course, given

PROBLEM, SECONDS, SEED, DEVICE, FILE = given()
torch.set_default_device(DEVICE)
dde.config.set_default_float("float64")
dde.config.set_random_seed(SEED)
NU, L = VISCOSITY[PROBLEM], HALF[PROBLEM]


def equation(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return the residual."""
    slope = dde.grad.jacobian(u, x, i=0, j=0)
    speed = u if PROBLEM == "burgers" else -x[:, 0:1]
    return dde.grad.jacobian(u, x, i=0, j=1) + speed * slope - NU * dde.grad.hessian(u, x, i=0, j=0)


def conditions(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return the output with its initial state and ends."""
    place = x[:, 0:1]
    start = -torch.sin(np.pi * place) if PROBLEM == "burgers" else torch.exp(-2 * place**2)
    return start + x[:, 1:2] * (1 - (place / L) ** 2) * u


class Watch(dde.callbacks.Callback):
    """Ends training when time is up."""

    def __init__(self, course: Course, share: float) -> None:
        super().__init__()
        self.course, self.least = course, (1 - share) * SECONDS

    def on_epoch_end(self) -> None:
        """Judge."""
        if self.course.over(self.model.predict) or self.course.left() < self.least:
            self.model.stop_training = True


domain = dde.geometry.GeometryXTime(dde.geometry.Interval(-L, L), dde.geometry.TimeDomain(0, 1))
data = dde.data.TimePDE(domain, equation, [], num_domain=10_000)
net = dde.nn.FNN([2, 20, 20, 20, 1], "tanh", "Glorot normal")
net.apply_output_transform(conditions)
model = dde.Model(data, net)
model.compile("adam", lr=1e-3)
course = Course(FILE, SECONDS)
resampler = dde.callbacks.PDEPointResampler(period=100)
model.train(iterations=15_000, callbacks=[resampler, Watch(course, 1 / 3)], display_every=10**9, verbose=0)
if course.left() > 0:
    dde.optimizers.config.set_LBFGS_options(maxiter=10**7)
    dde.optimizers.config.LBFGS_options["iter_per_step"] = 50  # so that the clock is read now and then
    model.compile("L-BFGS")
    model.train(callbacks=[Watch(course, 1.0)], display_every=10**9, verbose=0)
course.over(model.predict)
course.report("3 x 20 tanh, float64, 10000 points, hard conditions, Adam 1e-3 then L-BFGS")
