"""The direct surrogate: a fully connected network from parameters and time to the whole state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from .normaliser import Normaliser
from .problem import Problem, WindowBatch
from .request import parameter_rows, require_problem, require_setup, time_points
from .stepping import whole
from .surrogate import Surrogate

ACTIVATIONS: dict[str, type[torch.nn.Module]] = {
    "relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU, "tanh": torch.nn.Tanh,
}  # fmt: skip
"""The nonlinearities that an architecture may name."""


class MLP(Surrogate):
    """(parameters, t) -> all fields on the whole grid, at any time: the direct surrogate of Meyer et al. (2023).

    Each window is one step. The last layer holds nearly all weights: hidden[-1] x fields x points.
    The published network is MLP(activation="relu", log_time=False). On the built-in heat case, 100 simulations seen
    ten times, its nRMSE is about 4 %; a smooth activation halves it, and log_time halves it again.

    Parameters
    ----------
    hidden : widths of the hidden layers.
    activation : one of `ACTIVATIONS`.
    log_time : whether the network sees the logarithm of time beside time (see `Normaliser.clock`).
    """

    history = 0
    window = 1
    recordable = True

    def __init__(self, *, hidden: Sequence[int] = (256, 256), activation: str = "gelu", log_time: bool = True) -> None:
        super().__init__()
        self.hidden = tuple(whole(width, "MLP hidden", least=1) for width in hidden)
        self.activation = activation
        self.log_time = bool(log_time)
        if not self.hidden:
            raise ValueError(f"MLP hidden {self.hidden} must be one or more positive widths, e.g. (256, 256).")
        if activation not in ACTIVATIONS:
            raise ValueError(f"MLP activation {activation!r} is not one of {', '.join(ACTIVATIONS)}.")

    def setup(self, problem: Problem, *, seed: int = 0) -> None:
        """Build the weights: normal with variance 1 / inputs (2 / inputs for ReLU), biases 0."""
        require_problem(problem)
        self.problem = problem
        self.normaliser = Normaliser(problem)
        generator = torch.Generator().manual_seed(seed)
        points = math.prod(problem.shape)
        inputs = len(problem.parameters) + (2 if self.log_time else 1)
        widths = (inputs, *self.hidden, len(problem.fields) * points)
        layers: list[torch.nn.Module] = []
        for before, after in pairwise(widths):
            # skip_init leaves torch's global generator alone.
            layer = torch.nn.utils.skip_init(torch.nn.Linear, before, after)
            gain = 2.0 if self.activation == "relu" else 1.0
            torch.nn.init.normal_(layer.weight, std=math.sqrt(gain / before), generator=generator)
            torch.nn.init.zeros_(layer.bias)
            layers += [layer, ACTIVATIONS[self.activation]()]
        self.network = torch.nn.Sequential(*layers[:-1])

    def architecture(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"hidden": list(self.hidden), "activation": self.activation, "log_time": self.log_time}

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Freeze the normaliser."""
        require_setup(self)
        self.normaliser.freeze(mean, std)

    def _states(self, parameters: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Normalised states (rows, fields, *grid) from parameters (rows, parameters) and times (rows,)."""
        clock = self.normaliser.clock(times)
        inputs = torch.cat((self.normaliser.scale_parameters(parameters), clock if self.log_time else clock[:, :1]), 1)
        return self.network(inputs).reshape(-1, len(self.problem.fields), *self.problem.shape)

    def states_at(self, parameters: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the states (batch, fields, *grid), in physical units, of each row at its own time, with gradients.

        parameters : (batch, parameters).
        times : (batch,).
        """
        require_setup(self)
        return self.normaliser.denormalise(self._states(parameters, times))

    def training_loss(self, batch: WindowBatch) -> torch.Tensor:
        """Return the mean squared error of each window, in units of the fields' variances, shape (batch,)."""
        problem = require_setup(self)
        batch.check(problem, self.window)
        batch = batch.matching(self.normaliser.mean)
        if tuple(batch.states.shape[3:]) != problem.shape:
            raise ValueError(
                f"MLP of case {problem.case} is bound to the grid {problem.shape}; "
                f"the states have {tuple(batch.states.shape[3:])}. Use FNO for several grids."
            )
        error = self._states(batch.parameters, batch.times[:, 0]) - self.normaliser.normalise(batch.states[:, 0])
        return error.square().flatten(1).mean(1)

    @torch.no_grad()
    def predict(self, initial: torch.Tensor | None, parameters: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the states at any times, (batch, time, fields, *grid); initial is not needed."""
        problem = require_setup(self)
        reference = self.network[0].weight
        rows = parameter_rows(parameters, problem, reference)
        times = time_points(times, reference)
        batch, steps = len(rows), len(times)
        states = self.states_at(rows.repeat_interleave(steps, dim=0), times.repeat(batch))
        return states.reshape(batch, steps, *states.shape[1:])
