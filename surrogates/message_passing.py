"""The message-passing neural PDE solver of Brandstetter, Worrall and Welling (2022), on grids and on meshes.

A message from point j to point i is φ(h_i, h_j, u_i - u_j, x_i - x_j, θ) with a network φ of two layers. Before its
nonlinearity the first layer is linear in all of these, so it is computed per point, not per edge:
a(i) + b(j) + w·(x_i - x_j) with a = W_i h + W_u u + W_θ θ and b = W_j h - W_u u. On a grid the neighbours lie at
the same offsets from all points, each of which is one shifted slice: no indices and no scattered sums are needed.

Letters: h hidden features, u known states (normalised), x positions over the box, θ parameters and time.
Inside, features come last: (batch, points or *grid, features).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import silu

from . import fused_messages
from .autoregressive import Autoregressive, Channels
from .graph import Graph, offsets_within
from .problem import Problem
from .stepping import Stepping, whole

PUBLISHED = Stepping(history=25, bundle=25, pushforward=1, conditioning="film")
"""The published training form: 25 known states, 25 new ones, and at most one call before the graded one."""

DECODERS = {20: ((15, 4), 10), 25: ((16, 3), 14), 50: ((12, 2), 10)}
"""Bundle: (kernel and stride) of the first, kernel of the second convolution over the 128 features, as published."""

TOGETHER = 8
"""Offsets whose messages are computed at once: few large operations suit a GPU, and memory stays bounded."""


class MessagePassing(Autoregressive):
    """The last states -> the next ones by messages between neighbouring points.

    The defaults are the published network and training form, which need trajectories of 75 steps or more; shorter
    ones take a smaller stepping. Conditioning "film" means here that parameters and time enter every message and every
    update, as published. On meshes, states are (.., fields, points), and `stepping.inputs` leaves out "position",
    which comes from the graph.

    Parameters
    ----------
    hidden : features of a point.
    layers : rounds of messages.
    radius : on grids, points no further away than this, in grid steps, are neighbours: 3 makes 6 on a line.
    graph : of a mesh, instead of a grid.
    stepping : what the network sees and gives, and how it is trained.
    """

    def __init__(
        self, *, hidden: int = 128, layers: int = 6, radius: float = 3.0,
        graph: Graph | Mapping[str, int] | None = None, stepping: Stepping = PUBLISHED,
    ) -> None:  # fmt: skip
        super().__init__(
            stepping, hidden=whole(hidden, "MessagePassing hidden", least=1),
            layers=whole(layers, "MessagePassing layers", least=1), radius=float(radius),
        )  # fmt: skip
        self._graph = Graph.of(graph)
        if not radius >= 1:
            raise ValueError(f"MessagePassing radius {radius} leaves no neighbours: at least 1 grid step is needed.")
        if self._graph is not None and "position" in self.stepping.inputs:
            raise ValueError(
                "MessagePassing on a graph takes positions from it: leave position out of the stepping's inputs, "
                'e.g. Stepping(inputs=("parameters", "time")).'
            )

    def architecture(self) -> dict[str, Any]:
        """Return the constructor's arguments; of a graph its sizes only, as it lies among the weights."""
        return {**super().architecture(), "graph": None if self._graph is None else self._graph.sizes()}

    def build(self, channels: Channels, problem: Problem) -> torch.nn.Module:
        """Return the network.

        Raises
        ------
        ValueError : the graph has not as many points as a state, or the neighbours reach around the whole box.
        """
        if self._graph is None:
            neighbours: torch.nn.Module = Band(problem.periodic, problem.extent, self.radius)
        else:
            neighbours = Edges(self._graph)
        neighbours.check(problem.shape)
        network = MessageNetwork(channels, self, neighbours, fields=len(problem.fields))
        if self.stepping.target != "direct":
            # Training starts from persistence, the natural guess for a small step.
            torch.nn.init.zeros_(network.output.weight)
            torch.nn.init.zeros_(network.output.bias)
        return network


class MessageNetwork(torch.nn.Module):
    """Encoder, rounds of messages, decoder: (b, inputs, *grid) -> (b, outputs, *grid)."""

    def __init__(
        self, channels: Channels, form: MessagePassing, neighbours: torch.nn.Module, *, fields: int
    ) -> None:
        super().__init__()
        self.states, self.fields, hidden = channels.states, fields, form.hidden
        self.neighbours = neighbours
        self.encoder = perceptron(
            channels.inputs + channels.conditions + neighbours.position_features, hidden, hidden
        )
        self.rounds = torch.nn.ModuleList(
            MessageRound(hidden, self.states, neighbours.dimension, channels.conditions) for _ in range(form.layers)
        )
        bundle = channels.outputs // fields
        self.published = hidden == 128 and bundle in DECODERS
        if self.published:
            (kernel, stride), last = DECODERS[bundle]
            self.first: torch.nn.Module = torch.nn.Conv1d(1, 8, kernel, stride=stride)
            self.output: torch.nn.Module = torch.nn.Conv1d(8, fields, last)
        else:
            self.first = torch.nn.Linear(hidden, hidden)
            self.output = torch.nn.Linear(hidden, channels.outputs)

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return the output channels; condition (b, conditions)."""
        x = x.movedim(1, -1)  # (b, *grid, inputs)
        grid = x.shape[1:-1]
        self.neighbours.check(grid)
        u, known = x[..., : self.states], [x]
        if condition is None:
            condition = x.new_zeros(x.shape[0], 0)
        theta = condition[(slice(None), *(None,) * len(grid))]  # (b, 1, .., conditions)
        known.append(theta.expand(-1, *grid, -1))
        known.extend(p.expand(x.shape[0], -1, -1) for p in self.neighbours.positions())
        h = self.encoder(torch.cat(known, dim=-1))
        band = self.neighbours
        if isinstance(band, Band) and fused_messages.usable(h, len(band.offsets), len(self.rounds)):
            h = fused_messages.message_rounds(h, u, condition, band, self.rounds)
        else:
            for messages in self.rounds:
                h = messages(h, u, theta, self.neighbours)
        return self.decode(h)

    def decode(self, h: torch.Tensor) -> torch.Tensor:
        """Return the output channels of features (b, *grid, hidden)."""
        if not self.published:
            return self.output(silu(self.first(h))).movedim(-1, 1)
        d = convolved(self.output, silu(convolved(self.first, h[..., None, :])))  # (b, *grid, fields, bundle)
        return d.transpose(-1, -2).flatten(-2).movedim(-1, 1)


def convolved(convolution: torch.nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    """Return a convolution of the last axis, (.., channels, n) -> (.., outputs, m), as one product with its matrix.

    Thousands of points with a few hundred numbers each suit products: forward and backward of the published decoder
    took 34 ms instead of 90 ms for 1,600 points on one core.
    """
    (kernel,), (stride,), n = convolution.kernel_size, convolution.stride, x.shape[-1]
    m = (n - kernel) // stride + 1
    lag = torch.arange(n, device=x.device)[:, None] - stride * torch.arange(m, device=x.device)  # (n, m)
    taps = (lag == torch.arange(kernel, device=x.device)[:, None, None]).to(x.dtype)  # (kernel, n, m)
    weight = convolution.weight  # (outputs, channels, kernel)
    matrix = (weight.flatten(0, 1) @ taps.flatten(1)).unflatten(0, weight.shape[:2]).unflatten(-1, (n, m))
    matrix = matrix.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)  # (channels n, outputs m)
    y = (x.flatten(-2) @ matrix).unflatten(-1, (-1, m))
    return y + convolution.bias[:, None]


class MessageRound(torch.nn.Module):
    """h + ψ(h, mean of the messages, θ), then mean 0 and deviation 1 of each feature over the points."""

    def __init__(self, hidden: int, states: int, dimension: int, conditions: int) -> None:
        super().__init__()
        self.receiver = torch.nn.Linear(hidden + conditions, hidden)
        self.sender = torch.nn.Linear(hidden, hidden, bias=False)
        self.difference = torch.nn.Linear(states, hidden, bias=False)
        self.distance = torch.nn.Linear(dimension, hidden, bias=False)
        self.second = torch.nn.Linear(hidden, hidden)
        self.update = perceptron(2 * hidden + conditions, hidden, hidden)

    def forward(
        self, h: torch.Tensor, u: torch.Tensor, theta: torch.Tensor, neighbours: torch.nn.Module
    ) -> torch.Tensor:
        """Return the next features, (b, *grid, hidden)."""
        theta = theta.expand(*h.shape[:-1], -1)
        difference = self.difference(u)
        a = self.receiver(torch.cat((h, theta), dim=-1)) + difference
        b = self.sender(h) - difference
        mean = neighbours(a, b, self.distance, lambda first: silu(self.second(silu(first))))
        h = h + self.update(torch.cat((h, mean, theta), dim=-1))
        variance, centre = torch.var_mean(h, dim=tuple(range(1, h.ndim - 1)), correction=0, keepdim=True)
        return (h - centre) * torch.rsqrt(variance + 1e-5)


class Band(torch.nn.Module):
    """The neighbours on a uniform grid: those at a few offsets, each of which is one shifted slice."""

    def __init__(self, periodic: Sequence[bool], extent: Sequence[float], radius: float) -> None:
        super().__init__()
        self.periodic, self.dimension, self.reach = tuple(periodic), len(periodic), int(radius)
        self.offsets = offsets_within(radius, self.dimension)
        # On the network's device from the start: a step that is being recorded may not copy to it.
        aspect = torch.tensor([length / max(extent) for length in extent])
        self.register_buffer("_separations", -torch.tensor(self.offsets) * aspect, persistent=False)
        self.position_features = 0

    def check(self, grid: Sequence[int]) -> None:
        """Raise ValueError where neighbours reach around the whole box."""
        if min(grid) <= 2 * self.reach:
            raise ValueError(
                f"Messages from neighbours up to {self.reach} grid steps away need more than {2 * self.reach} points "
                f"per axis; the grid is {tuple(grid)}. Give a smaller radius or a finer grid."
            )

    def positions(self) -> list[torch.Tensor]:
        """Return none: on a grid the position is among the input channels."""
        return []

    def forward(self, a: torch.Tensor, b: torch.Tensor, distance: Any, message: Any) -> torch.Tensor:
        """Return the mean over its neighbours j of message(a_i + b_j + distance(x_i - x_j)), (b, *grid, features)."""
        grid = a.shape[1:-1]
        beyond = [self.reach] * self.dimension
        shifted = self._continued(b, beyond)
        separations = distance(self.separations(grid))
        walls = not all(self.periodic)
        inside = self._continued(b.new_ones(1, *grid, 1), beyond) if walls else None  # 0 beyond walls
        total, count = 0.0, 0.0 if walls else len(self.offsets)
        for first in range(0, len(self.offsets), TOGETHER):
            group = slice(first, first + TOGETHER)
            places = [self._place(offset, grid) for offset in self.offsets[group]]
            apart = separations[group].reshape(len(places), *(1,) * (1 + len(grid)), -1)
            messages = message(a + torch.stack([shifted[place] for place in places]) + apart)
            if walls:
                exists = torch.stack([inside[place] for place in places])
                messages, count = exists * messages, count + exists.sum(0)
            total = total + messages.sum(0)
        return total / count

    def separations(self, grid: Sequence[int]) -> torch.Tensor:
        """Return x_i - x_j for each offset, (offsets, dimension)."""
        columns = [column / n for column, n in zip(self._separations.unbind(1), grid, strict=True)]
        return torch.stack(columns, dim=1)

    def _place(self, offset: Sequence[int], grid: Sequence[int]) -> tuple[slice, ...]:
        """Return where the neighbours at an offset lie in the continued features."""
        return (slice(None), *(slice(self.reach + o, self.reach + o + n) for o, n in zip(offset, grid, strict=True)))

    def _continued(self, x: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        """Continue (b, *grid, features) around periodic axes, and by zeros beyond walls."""
        for axis, (width, closed) in enumerate(zip(widths, self.periodic, strict=True), start=1):
            n = x.shape[axis]
            low, high = x.narrow(axis, n - width, width), x.narrow(axis, 0, width)
            if not closed:
                low, high = torch.zeros_like(low), torch.zeros_like(high)
            x = torch.cat((low, x, high), dim=axis)
        return x


class Edges(torch.nn.Module):
    """The neighbours in a graph, by indices and sums over each receiver's edges."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.dimension = self.position_features = graph.positions.shape[1]
        # Among the weights, so that a file holds the mesh that its model was trained on.
        self.register_buffer("points", graph.positions.clone())
        self.register_buffer("edges", graph.edges.clone())

    def check(self, grid: Sequence[int]) -> None:
        """Raise ValueError where a state is not one axis of the graph's points."""
        if tuple(grid) != (len(self.points),):
            raise ValueError(
                f"The graph has {len(self.points)} points; the states have the shape {tuple(grid)} and must be one "
                "axis of as many points."
            )

    def positions(self) -> list[torch.Tensor]:
        """Return the positions in [0, 1], (1, points, dimension)."""
        low, high = self.points.amin(0), self.points.amax(0)
        length = (high - low).max().clamp(min=torch.finfo(low.dtype).tiny)  # points may all lie in one place
        return [((self.points - low) / length)[None]]

    def forward(self, a: torch.Tensor, b: torch.Tensor, distance: Any, message: Any) -> torch.Tensor:
        """Return the mean over its senders j of message(a_i + b_j + distance(x_i - x_j)), (b, points, features)."""
        (x,) = self.positions()
        senders, receivers = self.edges
        separation = distance(x[:, receivers] - x[:, senders])
        values = message(a[:, receivers] + b[:, senders] + separation)
        total = torch.zeros_like(a).index_add(1, receivers, values)
        count = a.new_zeros(a.shape[1]).index_add(0, receivers, a.new_ones(len(receivers)))
        # A point without neighbours hears nothing.
        return total / count.clamp(min=1)[:, None]


def perceptron(*widths: int) -> torch.nn.Sequential:
    """Return linear layers with silu after each."""
    layers = [(torch.nn.Linear(before, after), torch.nn.SiLU()) for before, after in pairwise(widths)]
    return torch.nn.Sequential(*(part for layer in layers for part in layer))
