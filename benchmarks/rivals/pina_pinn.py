"""PINA on the common problems: hard conditions, R3 refinement, Adam, then L-BFGS, float64. pina-mathlab==0.3.2

Of its documentation: hard conditions in the model, R3Refinement, SwitchOptimizer from Adam to L-BFGS; 3 x 20 tanh and
10,000 points as for DeepXDE.
"""

import logging
import warnings
from typing import ClassVar

import lightning
import numpy as np
import torch
from pina import Condition, LabelTensor, Trainer
from pina.callback import R3Refinement, SwitchOptimizer
from pina.domain import CartesianDomain
from pina.equation import Equation
from pina.model import FeedForward
from pina.operator import grad
from pina.optim import TorchOptimizer
from pina.problem import SpatialProblem, TimeDependentProblem
from pina.solver import PhysicsInformedSingleModelSolver
from pinn import HALF, VISCOSITY, Course, given

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
PROBLEM, SECONDS, SEED, DEVICE, FILE = given()
torch.set_default_dtype(torch.float64)
lightning.seed_everything(SEED, verbose=False)
NU, L = VISCOSITY[PROBLEM], HALF[PROBLEM]


def equation(x: LabelTensor, u: LabelTensor) -> torch.Tensor:
    """Return the residual."""
    du = grad(u, x, components=["u"], d=["x", "t"])
    bend = grad(du, x, components=["dudx"], d=["x"])
    speed = u.extract(["u"]) if PROBLEM == "burgers" else -x.extract(["x"])
    return du.extract(["dudt"]) + speed * du.extract(["dudx"]) - NU * bend.extract(["ddudxdx"])


class Transport(SpatialProblem, TimeDependentProblem):
    """The equation in its domain; the other conditions are the model's."""

    output_variables: ClassVar = ["u"]
    spatial_domain = CartesianDomain({"x": [-L, L]})
    temporal_domain = CartesianDomain({"t": [0, 1]})
    domains: ClassVar = {"D": CartesianDomain({"x": [-L, L], "t": [0, 1]})}
    conditions: ClassVar = {"D": Condition(domain="D", equation=Equation(equation))}


class Hard(torch.nn.Module):
    """A network with its initial state and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = FeedForward(input_dimensions=2, output_dimensions=1, layers=[20, 20, 20], func=torch.nn.Tanh)

    def forward(self, x: LabelTensor) -> torch.Tensor:
        """Return u."""
        place, t = x.extract(["x"]), x.extract(["t"])
        start = -torch.sin(np.pi * place) if PROBLEM == "burgers" else torch.exp(-2 * place**2)
        return start + t * (1 - (place / L) ** 2) * self.inner(x)


class Watch(lightning.Callback):
    """Ends training when time is up."""

    def __init__(self, course: Course) -> None:
        self.course = course

    def on_train_epoch_end(self, trainer: lightning.Trainer, solver: PhysicsInformedSingleModelSolver) -> None:
        """Judge."""
        if self.course.over(lambda points: predict(solver, points)):
            trainer.should_stop = True


def predict(solver: PhysicsInformedSingleModelSolver, points: np.ndarray) -> np.ndarray:
    """Return u at places and times."""
    inputs = LabelTensor(torch.tensor(points, device=solver.device), ["x", "t"])
    with torch.no_grad():
        return solver(inputs).as_subclass(torch.Tensor).cpu().numpy()


ADAM = 3_000
course = Course(FILE, SECONDS)
problem = Transport()
problem.discretise_domain(n=10_000, mode="random", domains=["D"])
solver = PhysicsInformedSingleModelSolver(problem, Hard(), optimizer=TorchOptimizer(torch.optim.Adam, lr=1e-3))
second = TorchOptimizer(torch.optim.LBFGS, max_iter=20, history_size=100, line_search_fn="strong_wolfe",
                        tolerance_change=0.0, tolerance_grad=0.0)  # fmt: skip
trainer = Trainer(
    solver, max_epochs=10**7, accelerator="gpu" if DEVICE == "cuda" else "cpu", devices=1, precision="64-true",
    enable_model_summary=False, enable_progress_bar=False, logger=False, enable_checkpointing=False, min_epochs=1,
    callbacks=[Watch(course), SwitchOptimizer(second, epoch_switch=ADAM), R3Refinement(sample_every=1000)],
)  # fmt: skip
trainer.train()
course.report(f"3 x 20 tanh, float64, 10000 points, hard conditions, {ADAM} steps of Adam 1e-3 with R3, then L-BFGS")
