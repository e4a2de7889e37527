"""Surrogates that step: the last states -> the next ones, by any network, rolled out as far as asked."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .linear_step import LinearStep
from .normaliser import Normaliser
from .problem import Problem, WindowBatch
from .request import require_problem, require_setup, stepping_request
from .spectral import keep
from .stepping import Stepping
from .surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class Channels:
    """What a network is given and must give: (batch, inputs, *grid) -> (batch, outputs, *grid).

    inputs : channels; the first `states` of them are the known states, oldest first, or rates of change to the
        last one, then the linear step if any.
    outputs : channels, bundle x fields, all fields of the first wanted state first.
    conditions : entries of the second argument of the network, (batch, conditions); 0 where it takes one argument.
    """

    inputs: int
    states: int
    outputs: int
    conditions: int


class Autoregressive(Surrogate):
    """A surrogate that makes a trajectory step by step with a network of any kind.

    A class of your own gives its arguments to `__init__` here and any network in `build`; training, roll-out,
    normalisation and files are done:

        class Plain(Autoregressive):
            def __init__(self, *, width: int = 32, stepping: Stepping | None = None):
                super().__init__(stepping, width=width)

            def build(self, channels, problem):
                first = torch.nn.Conv2d(channels.inputs, self.width, 3, padding=1)
                return torch.nn.Sequential(first, torch.nn.GELU(), torch.nn.Conv2d(self.width, channels.outputs, 1))

    Parameters
    ----------
    stepping : the training form, also as the dictionary of `Stepping.to_dict`; None is one step from one known state.
    arguments : all other arguments of the class, plain data; they become attributes and go into config.json.
    """

    def __init__(self, stepping: Stepping | Mapping[str, Any] | None, **arguments: Any) -> None:
        super().__init__()
        self.stepping = Stepping.of(stepping)
        self._arguments = arguments
        for name, value in arguments.items():
            setattr(self, name, value)
        self.history, self.window = self.stepping.history, self.stepping.window

    @abstractmethod
    def build(self, channels: Channels, problem: Problem) -> torch.nn.Module:
        """Return the network. Torch's generator is seeded before and put back after.

        Raises
        ------
        ValueError : the architecture does not fit, e.g. more modes than the grid has.
        """

    def setup(self, problem: Problem, *, seed: int = 0) -> None:
        """Build the weights.

        Raises
        ------
        ValueError : the network does not fit the problem, or a window is longer than a trajectory.
        """
        require_problem(problem)
        if self.window > problem.num_steps:
            s = self.stepping
            raise ValueError(
                f"{type(self).__name__} with history {s.history}, bundle {s.bundle}, pushforward {s.pushforward} and "
                f"unroll {s.unroll} needs windows of {self.window} steps; trajectories of case {problem.case} have "
                f"{problem.num_steps}."
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = self.build(self.channels(problem), problem)
        self.problem = problem
        self.normaliser = Normaliser(problem)
        self.linear_step = LinearStep(problem) if self.stepping.linear else None
        # Read from the step once: asking a GPU at every batch would make it wait, and cannot be recorded.
        self._linear_known = False
        self.network = network

    @property
    def recordable(self) -> bool:
        """Whether every batch takes the same calls of the network: not where each draws its number of free ones."""
        return not self.stepping.pushforward

    def channels(self, problem: Problem) -> Channels:
        """Return the channels of the network for a problem."""
        s, fields = self.stepping, len(problem.fields)
        sizes = {
            "parameters": len(problem.parameters), "time": 1, "position": len(problem.shape) + sum(problem.periodic),
        }  # fmt: skip
        film = [name for name in s.inputs if name != "position"] if s.conditioning == "film" else []
        states = (s.history + s.linear) * fields
        return Channels(
            inputs=states + sum(sizes[name] for name in s.inputs if name not in film), states=states,
            outputs=s.bundle * fields, conditions=sum(sizes[name] for name in film),
        )  # fmt: skip

    def architecture(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in self._arguments.items()}
        return {**plain, "stepping": self.stepping.to_dict()}

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Freeze the normaliser."""
        require_setup(self)
        self.normaliser.freeze(mean, std)

    def fit_linear_step(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Fit the linear step of target "linear" to states (pairs, fields, *grid) and those one interval later.

        Call it after `set_statistics` and before training: the network learns what the linear step leaves. Where it was
        not called, the first batch in training fits it. Collective where torch.distributed runs.

        Raises
        ------
        ValueError : the target is another one, or it gives more than one state at a time.
        """
        require_setup(self)
        if self.linear_step is None:
            raise ValueError(f"Stepping target {self.stepping.target!r} has no linear step; take target 'linear'.")
        self.linear_step.fit(self.normaliser.normalise(before), self.normaliser.normalise(after))

    def training_loss(self, batch: WindowBatch) -> torch.Tensor:
        """Return each window's mean squared error over the unrolled steps, in units of the fields' variances.

        Target "linear": in those of what the linear step leaves.
        """
        problem = require_setup(self)
        batch.check(problem, self.window)
        batch = batch.matching(self.normaliser.mean)
        s = self.stepping
        states, times = self.normaliser.normalise(batch.states), batch.times
        if self.training and self.linear_step is not None and not self._linear_known:
            if not self.linear_step.fitted.item():
                self.linear_step.fit(states[:, :-1].flatten(0, 1), states[:, 1:].flatten(0, 1))
            self._linear_known = True
        graded = self.window - s.unroll * s.bundle
        # The trainer seeds torch's own generator for every batch, so that a resumed training draws the same.
        draw = self.training and s.pushforward
        free = int(torch.randint(s.pushforward + 1, ())) if draw else s.pushforward
        first = graded - free * s.bundle
        known = states[:, first - s.history : first]
        if self.training and s.noise:
            known = known + s.noise * torch.randn_like(known)
        if free:
            with torch.no_grad():
                own = self._roll_out(known, batch.parameters, times[:, first:graded])
            known = torch.cat((known, own), dim=1)[:, -s.history :]
        steps = self._roll_out(known, batch.parameters, times[:, graded:])
        error = torch.nn.functional.mse_loss(steps, states[:, graded:], reduction="none")
        if self.linear_step is not None:
            # In units of what the linear step leaves, else Adam would take the small gradients for rounding.
            error = error / self.linear_step.rest.square().reshape(-1, *(1,) * (error.ndim - 3))
        return error.flatten(1).mean(1)

    @torch.no_grad()
    def predict(self, initial: torch.Tensor | None, parameters: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the states at consecutive snapshot times, (batch, time, fields, *grid), on the grid of initial.

        initial : (batch, history, fields, *grid), the states just before times[0].
        """
        known, rows, times = stepping_request(self, initial, parameters, times)
        steps = self._roll_out(self.normaliser.normalise(known), rows, times.expand(len(rows), -1))
        return self.normaliser.denormalise(steps)

    def step(self, known: torch.Tensor, parameters: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Return the next states (batch, bundle, fields, *grid), in physical units, by one call of the network.

        known : (batch, history, fields, *grid).
        parameters : (batch, parameters).
        time : (batch,), that of the first wanted state.
        """
        require_setup(self)
        return self.normaliser.denormalise(self._bundle(self.normaliser.normalise(known), parameters, time))

    def _roll_out(self, known: torch.Tensor, parameters: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Normalised states at times (batch, steps) from normalised known ones, (batch, steps, fields, *grid)."""
        count, bundle = times.shape[1], self.stepping.bundle
        steps: list[torch.Tensor] = []
        for first in range(0, count, bundle):
            if steps:
                known = torch.cat((known, steps[-1]), dim=1)[:, -self.history :]
            steps.append(self._bundle(known, parameters, times[:, first]))
        return (torch.cat(steps, dim=1) if steps[1:] else steps[0])[:, :count]

    def _bundle(self, known: torch.Tensor, parameters: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """One call of the network on normalised states: (batch, history, ..) -> (batch, bundle, ..)."""
        s, grid = self.stepping, tuple(known.shape[3:])
        # Not the logarithm of time too: it lowers the loss of one step, but roll-outs came out worse with it.
        values = {}  # (batch, numbers) each
        if "parameters" in s.inputs:
            values["parameters"] = self.normaliser.scale_parameters(parameters)
        if "time" in s.inputs:
            values["time"] = self.normaliser.clock(time)[..., :1]
        seen, condition = [(rates_of_change(known) if s.rates else known).flatten(1, 2)], []
        linear = self.linear_step(known[:, -1]) if self.linear_step is not None else None
        if linear is not None:
            seen.append(linear)
        for name in s.inputs:
            if name == "position":
                position = box_position(grid, self.problem.periodic, known)
                # Not len(known), which would bind an exported graph to one size of batch.
                seen.append(position.expand(known.shape[0], *position.shape[1:]))
            elif s.conditioning == "film":
                condition.append(values[name])
            else:
                seen.append(values[name][(..., *(None,) * len(grid))].expand(-1, -1, *grid))
        x = torch.cat(seen, dim=1)
        new = self.network(x, torch.cat(condition, dim=1)) if condition else self.network(x)
        new = new.unflatten(1, (s.bundle, -1))
        if s.target == "direct":
            return new
        if linear is not None:
            return linear[:, None] + self.linear_step.rest.reshape(-1, *(1,) * len(grid)) * new
        if s.bundle > 1:
            # Changes grow with the time they took; the last one of a bundle has weight 1.
            share = torch.arange(1, s.bundle + 1, dtype=new.dtype, device=new.device) / s.bundle
            new = new * share.reshape(-1, *(1,) * (1 + len(grid)))
        return known[:, -1:] + new


def rates_of_change(known: torch.Tensor) -> torch.Tensor:
    """Return known states (batch, history, ..) with each but the last as its mean rate of change to that one.

    The unit of time is the whole history, so that rates have about the size of states.
    """
    history, last = known.shape[1], known[:, -1:]
    steps = torch.arange(history - 1, 0, -1, dtype=known.dtype, device=known.device)
    weights = (history / steps).reshape(-1, *(1,) * (known.ndim - 2))
    return torch.cat(((last - known[:, :-1]) * weights, last), dim=1)


def box_position(grid: tuple[int, ...], periodic: Sequence[bool], like: torch.Tensor) -> torch.Tensor:
    """Position in the box as channels, (1, channels, *grid): a line from wall to wall, a circle if periodic."""
    return _box_position(tuple(grid), tuple(periodic), like.dtype, like.device)


@keep
def _box_position(
    grid: tuple[int, ...], periodic: tuple[bool, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return `box_position`, some fifteen small operations, which a step would make every time."""
    channels: list[torch.Tensor] = []
    for axis, (n, closed) in enumerate(zip(grid, periodic, strict=True)):
        x = (torch.arange(n, dtype=dtype, device=device) + (0.0 if closed else 0.5)) / n
        view = [n if other == axis else 1 for other in range(len(grid))]
        along = [torch.sin(2 * math.pi * x), torch.cos(2 * math.pi * x)] if closed else [2 * x - 1]
        channels += [c.reshape(view).expand(grid) for c in along]
    return torch.stack(channels)[None]
