"""Levenberg-Marquardt for networks of up to some thousand weights: every step solves the linearised residuals.

The derivative of each point's own residual costs one backward pass per equation: a residual depends on its own point
only, so the gradient of their sum with respect to a layer's output holds, point by point, the gradient of each.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from .places import Points
from .recorded import Recorded
from .transport_network import Trace, TransportNetwork

logger = logging.getLogger(__name__)

MOST_WEIGHTS = 5_000

_LEAST_SPACE = 1e-3
"""J that a label counts by at least; where labels cross it may not count at all."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a fit ended: steps taken, root mean square of the residuals, seconds, and why it stopped."""

    steps: int
    residual: float
    seconds: float
    reason: str


def rows_of(equations: torch.Tensor, traces: list[Trace]) -> torch.Tensor:
    """Return the derivatives of equations (equations, points) by the weights, (equations·points, weights)."""
    layers = [layer for trace in traces for layer in trace]
    outputs, count = [out for _, out in layers], equations.shape[1]
    size = sum(out.shape[-1] * (inputs.shape[-1] + 1) for inputs, out in layers)
    rows = equations.new_empty(len(equations) * count, size)
    for equation, block in zip(equations, rows.split(count), strict=True):
        deltas = torch.autograd.grad(equation.sum(), outputs, retain_graph=True, allow_unused=True)
        column = 0
        for (inputs, out), delta in zip(layers, deltas, strict=True):
            wide = out.shape[-1] * inputs.shape[-1]
            products = block[:, column : column + wide].unflatten(1, (out.shape[-1], -1))
            biases = block[:, column + wide : column + wide + out.shape[-1]]
            column += wide + out.shape[-1]
            if delta is None:
                products.zero_()
                biases.zero_()
                continue
            biases.copy_(delta[0])
            values = inputs.detach()
            if not rows.is_cuda:
                products.copy_(torch.einsum("cno,cni->noi", delta, values))
                continue
            # On a GPU a batched matrix product of so few products each is slower than their sum in place.
            torch.mul(delta[0][:, :, None], values[0][:, None, :], out=products)
            for slope, value in zip(delta[1:], values[1:], strict=True):
                products.addcmul_(slope[:, :, None], value[:, None, :])
    return rows


def lower_gram(rows: torch.Tensor) -> torch.Tensor:
    """Return rows^T rows below its diagonal, by blocks of columns; what lies above the blocks is 0.

    A general product computes both halves of a symmetric matrix; four blocks leave 63 % of the work.
    """
    size = rows.shape[1]
    result = rows.new_zeros(size, size)
    width = max(128, -(-size // 4))
    for start in range(0, size, width):
        stop = min(start + width, size)
        torch.mm(rows[:, start:].T, rows[:, start:stop], out=result[start:, start:stop])
    return result


def residuals_and_rows(network: TransportNetwork, points: Points) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residuals (equations·points,) and their derivatives by the weights (equations·points, weights)."""
    traces: list[Trace] = []
    residual = network.residual(points, traces)
    return residual.detach().reshape(-1), rows_of(residual, traces)


class Equations:
    """What is made small: the residuals of a network at collocation points, as functions of its weights.

    recordable : nothing in them depends on values on the host, so that a GPU may replay them as a CUDA graph.
    """

    recordable = True

    def __init__(self, network: TransportNetwork) -> None:
        self.network = network
        self.recordable = self.recordable and network.moving.recordable
        nets = [network.state] + ([network.displacement] if network.displacement is not None else [])
        self._weights = [w for net in nets for pair in zip(net.weights, net.biases, strict=True) for w in pair]

    @property
    def unknowns(self) -> torch.Tensor:
        """All weights in one vector."""
        return torch.cat([w.detach().reshape(-1) for w in self._weights])

    @torch.no_grad()
    def put(self, flat: torch.Tensor) -> None:
        """Set the weights."""
        for weight, part in zip(self._weights, flat.split([w.numel() for w in self._weights]), strict=True):
            weight.copy_(part.reshape(weight.shape))

    @torch.no_grad()
    def weights(self, points: Points) -> torch.Tensor | None:
        """Return what the residuals of each point count, (points,), or None where all count alike.

        √J makes the mean square over labels one over space, the same norm in every frame.
        """
        if self.network.moving.frame in ("eulerian", "galilean"):
            return None
        return self.network.place(points).jacobian().clamp(min=_LEAST_SPACE).sqrt()

    def prepared(self, points: Points) -> Points:
        """Return the points with all that costs much and does not depend on the unknowns."""
        return self.network.moving.prepared(points)

    def values(self, points: Points) -> torch.Tensor:
        """Return the residuals, one vector."""
        with torch.no_grad():
            return self.network.residual(points).reshape(-1)

    def linearised(self, points: Points) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residuals and their derivatives by the unknowns."""
        return residuals_and_rows(self.network, points)


def levenberg_marquardt(
    network: TransportNetwork | Equations, sample: Callable[[int], Points], *, steps: int, seconds: float = math.inf,
    resample_every: int = 10, tolerance: float = 0.0, watch: Callable[[int, float], bool] | None = None,
) -> Fit:  # fmt: skip
    """Minimise the mean square in space of the residuals of a network, or of `Equations` that add to them.

    The damping follows Nielsen (IMM report 5, Technical University of Denmark, 1999).

    sample : step -> collocation points; asked again every `resample_every` steps, and after a step that fails.
    tolerance : root mean square of the residuals at which to stop; 0 goes on to the last step.
    watch : called with step and residual; True stops.

    Raises
    ------
    ValueError : the network is too large for dense linear algebra, or the tolerance lies below machine precision.
    """
    equations = network if isinstance(network, Equations) else Equations(network)
    flat = equations.unknowns
    size = len(flat)
    if size > MOST_WEIGHTS:
        raise ValueError(f"Levenberg-Marquardt solves dense systems; {size} weights are more than {MOST_WEIGHTS}.")
    precision = torch.finfo(flat.dtype).eps
    if 0 < tolerance < precision:
        raise ValueError(f"Tolerance {tolerance:g} lies below the machine's precision {precision:.1e}.")
    damping, growth, reason, value = 1e-3, 2.0, f"{steps} steps", math.inf
    points = equations.prepared(sample(0))
    linearised, values = equations.linearised, equations.values
    if equations.recordable and flat.is_cuda:
        linearised, values = _recorded(linearised, points), _recorded(values, points)
    unit = torch.eye(size, dtype=flat.dtype, device=flat.device)
    started, step, failures, tries = time.monotonic(), 0, 0, 0
    weights = equations.weights(points)
    residual, rows = _weighed(linearised(points), weights)
    for step in range(1, steps + 1):
        count = len(residual)
        value = math.sqrt(float(residual.square().mean()))
        if not math.isfinite(value):
            raise FloatingPointError(f"The residual of step {step} is not finite.")
        if value <= tolerance:
            reason = f"residual {value:.2g} reached the tolerance"
            break
        if time.monotonic() - started > seconds or (watch is not None and watch(step, value)):
            reason = "time is up" if watch is None or time.monotonic() - started > seconds else "stopped by the watcher"
            break
        normal, slope = lower_gram(rows).div_(count), rows.T @ residual / count
        for _ in range(12):
            tries += 1
            factor, failed = torch.linalg.cholesky_ex(torch.add(normal, unit, alpha=damping))
            move = torch.cholesky_solve(slope[:, None], factor)[:, 0]
            equations.put(flat - move)
            squares = _weighed((values(points),), weights)[0].square().mean()
            expected = move @ (slope + damping * move)  # the fall of the linearised mean square
            numbers = torch.stack((failed.to(squares), squares, expected)).tolist()
            gain = value**2 - numbers[1]
            if not numbers[0] and gain > 0 and math.isfinite(gain):
                ratio = min(gain / max(numbers[2], 1e-300), 2.0)  # at round-off the model's gain may be nothing
                damping, growth = max(damping * max(1 / 3, 1 - (2 * ratio - 1) ** 3), 1e-16), 2.0
                flat, failures = flat - move, 0
                break
            damping, growth = damping * growth, 2 * growth
        else:
            equations.put(flat)
            failures, damping, growth = failures + 1, 1e-6, 2.0
            if failures == 3:
                reason = "no step reduces the residual"
                break
        logger.debug("step %d: residual %.3g, damping %.2g, tries %d", step, value, damping, tries)
        if failures or step % resample_every == 0:
            points = equations.prepared(sample(step))
            weights = equations.weights(points)
        residual, rows = _weighed(linearised(points), weights)
    equations.put(flat)
    fit = Fit(steps=step, residual=value, seconds=time.monotonic() - started, reason=reason)
    logger.info("Levenberg-Marquardt: %s after %d steps, residual %.3g.", fit.reason, fit.steps, fit.residual)
    return fit


def _weighed(tensors: tuple[torch.Tensor, ...], weights: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Multiply tensors (equations·points, ...) by weights (points,), in place."""
    if weights is not None:
        for tensor in tensors:
            tensor.unflatten(0, (-1, len(weights))).mul_(weights.reshape(-1, *(1,) * (tensor.ndim - 1)))
    return tensors


def _recorded(function: Callable[[Points], Any], points: Points) -> Callable[[Points], Any]:
    """Return a function of points as a CUDA graph for as many of them, or as it is where that cannot be had."""
    names = [field.name for field in fields(points) if getattr(points, field.name) is not None]
    shapes = [getattr(points, name).shape for name in names]
    try:
        graph = Recorded(lambda *tensors: function(Points(**dict(zip(names, tensors, strict=True)))),
                         *(getattr(points, name) for name in names))  # fmt: skip
    except RuntimeError as error:
        logger.info("Steps are not recorded: %s", error)
        return function

    def replayed(points: Points) -> Any:
        tensors = [getattr(points, name) for name in names]
        return graph(*tensors) if [tensor.shape for tensor in tensors] == shapes else function(points)

    return replayed
