"""Unknown parameters of a case from scattered samples of its state: weights and parameters are found together.

The unknowns are the network's weights and the parameters; the residuals are those of the equation, weighed so that they
hold almost exactly, and the distances from the samples. Then the parameters are those of maximum likelihood under
Gaussian noise, up to the network's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from .least_squares import Equations, Fit, levenberg_marquardt, rows_of
from .places import Points
from .transport_network import Trace, TransportNetwork


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Measured states: places (ndim, samples), times (samples,), states (fields, samples)."""

    places: torch.Tensor
    times: torch.Tensor
    states: torch.Tensor


class _Identification(Equations):
    """Equation and samples as functions of weights and parameters; parameters in units of their first guess's scale."""

    recordable = False

    def __init__(
        self, network: TransportNetwork, samples: Samples, start: torch.Tensor, scale: torch.Tensor, weight: float
    ) -> None:
        super().__init__(network)
        self._samples, self._scale, self._weight = samples, scale, weight
        self.parameters = start.clone()

    @property
    def unknowns(self) -> torch.Tensor:
        """Weights, then parameters."""
        return torch.cat((super().unknowns, self.parameters / self._scale))

    def put(self, flat: torch.Tensor) -> None:
        """Set both."""
        count = len(self._scale)
        super().put(flat[:-count])
        self.parameters = flat[-count:] * self._scale

    def weights(self, points: Points) -> None:
        """Return None: samples and equation are weighed already."""

    def values(self, points: Points) -> torch.Tensor:
        """Return both kinds of residuals."""
        with torch.no_grad():
            return torch.cat([part.reshape(-1) * weight for part, weight, _, _ in self._parts(points)])

    def _parts(self, points: Points) -> list[tuple[torch.Tensor, float, list[Trace], torch.Tensor]]:
        result = []
        fixed = self._measured(points)
        for kind, where in enumerate((points, fixed)):
            values = self.parameters.expand(len(where.times), -1).clone().requires_grad_()
            here, traces = replace(where, values=values), []
            if kind == 0:
                found, weight = self.network.residual(here, traces), self._weight
            else:
                found, weight = self.network.unknowns(here, traces)[0].value - self._samples.states, 1.0
            result.append((found, weight * (len(points.times) + len(fixed.times)) ** 0.5 / len(where.times) ** 0.5,
                           traces, values))  # fmt: skip
        return result

    def _measured(self, points: Points) -> Points:
        row_of = torch.zeros(len(self._samples.times), dtype=torch.long, device=points.rows.device)
        places = Points(labels=self._samples.places, times=self._samples.times, rows=points.rows, row_of=row_of)
        return places.at(self.network.labels_at(places))

    def linearised(self, points: Points) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residuals and their derivatives by weights and parameters."""
        residuals, blocks = [], []
        for found, weight, traces, values in self._parts(points):
            rows = rows_of(found, traces)
            columns = []
            for equation in found:
                slope = torch.autograd.grad(equation.sum(), values, retain_graph=True, allow_unused=True)[0]
                columns.append(torch.zeros_like(values) if slope is None else slope * self._scale)
            blocks.append(torch.cat((rows, torch.cat(columns)), 1) * weight)
            residuals.append(found.detach().reshape(-1) * weight)
        return torch.cat(residuals), torch.cat(blocks)


def identify(
    network: TransportNetwork, samples: Samples, sample: Callable[[int], Points], start: Mapping[str, float], *,
    steps: int = 100, weight: float = 10.0, seconds: float = float("inf"),
) -> tuple[dict[str, float], Fit]:  # fmt: skip
    """Return the parameters that explain the samples best, and how the fit ended; the network is trained on the way.

    The network must be in a frame that needs no network of its own (eulerian, galilean, limited), made from the first
    guess; it holds for any parameters, only its smoothness depends on them.

    sample : step -> collocation points with the first guess as their one row.
    start : first guess of every parameter of the case.
    weight : of the equation against the samples; more makes it hold more exactly.

    Raises
    ------
    ValueError : the frame has a network of its own, or a parameter is missing.
    """
    if network.displacement is not None:
        raise ValueError("Parameters are identified in a frame without a network of its own: limited or galilean.")
    names = list(network.moving.case.parameters)
    if set(start) != set(names):
        raise ValueError(f"The first guess names {sorted(start)}; the case has {', '.join(names)}.")
    like = network.state.weights[0].detach()
    guess = like.new_tensor([start[name] for name in names])
    scale = torch.where(guess.abs() > 0, guess.abs(), torch.ones_like(guess))
    equations = _Identification(network, samples, guess, scale, weight)
    fit = levenberg_marquardt(equations, sample, steps=steps, seconds=seconds)
    return dict(zip(names, equations.parameters.tolist(), strict=True)), fit
