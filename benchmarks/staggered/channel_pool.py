"""More states to train from past a block: mirror images, and what a network comes to when it is left alone.

A simulation in a pool lasts some hundred frames of a training, and a roll-out of as many takes a second: what becomes
of a network's errors in the end is made here, beside the training, and graded as every other state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from headrace.surrogates.recorded import Recorded

OWN = 24
"""States that are kept of every roll-out."""


def mirrored(windows: torch.Tensor, axis: int, ndim: int) -> torch.Tensor:
    """Return the mirror images of windows (count, s_t, fields, *grid) across an axis between walls.

    Velocities stand on upper faces, of which the last is the wall: the one across the mirror changes its sign and its
    place by a cell, the others stand at the same height as cells.
    """
    lane = axis - ndim
    images = windows.flip(lane)
    across = images[:, :, axis]
    n = across.shape[lane]
    moved = torch.cat((-across.narrow(lane, 1, n - 1), torch.zeros_like(across.narrow(lane, 0, 1))), lane)
    images[:, :, axis] = moved
    return images


def mirrored_at_random(windows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return windows, each across each of the axes between walls mirrored or not, as likely one as the other."""
    ndim = windows.ndim - 3
    for axis in range(1, ndim):
        chosen = torch.rand(len(windows), generator=generator) < 0.5
        if chosen.any():
            windows = windows.clone()
            windows[chosen] = mirrored(windows[chosen], axis, ndim)
    return windows


@torch.no_grad()
def left_alone(
    network: torch.nn.Module, example: torch.Tensor, *, graph: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the step of a network outside of training, with the weights that it has at each call.

    graph : record it for windows like `example` as a CUDA graph, whose results are valid until the next call.
    """

    def step(window: torch.Tensor) -> torch.Tensor:
        training = network.training
        network.eval()
        new = network(window)
        network.train(training)
        return new

    return Recorded(step, example) if graph else step


@torch.no_grad()
def own_states(
    step: Callable[[torch.Tensor], torch.Tensor], starts: torch.Tensor, frames: int, largest: float
) -> torch.Tensor:
    """Return states of a network's own roll-outs, `OWN` of each, evenly over so many frames, as long as they are flows.

    step : the network, left alone. largest : a value beyond which, or without being finite, a state is none. The starts
    come first.
    """
    kept = [starts]
    every = max(1, frames // OWN)
    window = starts
    for number in range(1, frames + 1):
        window = step(window)
        if number % every == 0:
            kept.append(window.clone())
    windows = torch.cat(kept)
    return windows[windows.flatten(1).abs().amax(1) < largest]
