"""Levenberg-Marquardt for networks of up to some thousand weights: every step solves the linearised residuals.

The derivative of each point's own residual costs one backward pass per equation: a residual depends on its own point
only, so the gradient of their sum with respect to a layer's output holds, point by point, the gradient of each.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .moving_frame import Points
from .transport_network import Trace, TransportNetwork

logger = logging.getLogger(__name__)

MOST_WEIGHTS = 5_000


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
    outputs, blocks = [out for _, out in layers], []
    for equation in equations:
        deltas = torch.autograd.grad(equation.sum(), outputs, retain_graph=True, allow_unused=True)
        parts = []
        for (inputs, out), delta in zip(layers, deltas, strict=True):
            if delta is None:
                delta = torch.zeros_like(out)
            rows = torch.einsum("cno,cni->noi", delta, inputs.detach())
            parts.append((rows.flatten(1), delta[0]))
        blocks.append(torch.cat([piece for part in parts for piece in part], 1))
    return torch.cat(blocks)


def residuals_and_rows(network: TransportNetwork, points: Points) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residuals (equations·points,) and their derivatives by the weights (equations·points, weights)."""
    traces: list[Trace] = []
    residual = network.residual(points, traces)
    return residual.detach().reshape(-1), rows_of(residual, traces)


class Equations:
    """What is made small: the residuals of a network at collocation points, as functions of its weights."""

    def __init__(self, network: TransportNetwork) -> None:
        self.network = network
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
    """Minimise the mean square of the residuals of a network, or of `Equations` that add to them.

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
    damping, reason, value = 1e-3, f"{steps} steps", math.inf
    points = sample(0)
    started, step, failures = time.monotonic(), 0, 0
    residual, rows = equations.linearised(points)
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
        normal, slope = rows.T @ rows / count, rows.T @ residual / count
        for _ in range(12):
            shifted = normal + damping * torch.eye(size, dtype=normal.dtype, device=normal.device)
            factor, failed = torch.linalg.cholesky_ex(shifted)
            if not int(failed):
                move = torch.cholesky_solve(slope[:, None], factor)[:, 0]
                equations.put(flat - move)
                tried = equations.values(points)
                gain = float(residual.square().mean() - tried.square().mean())
                expected = float(2 * move @ slope - move @ normal @ move)
                if gain > 0 and math.isfinite(gain):
                    ratio = gain / max(expected, 1e-300)
                    damping = max(damping * (1 / 5 if ratio > 0.5 else 1.0 if ratio > 0.1 else 3.0), 1e-16)
                    flat, failures = flat - move, 0
                    break
            damping *= 4
        else:
            equations.put(flat)
            failures, damping = failures + 1, 1e-6
            if failures == 3:
                reason = "no step reduces the residual"
                break
        if failures or step % resample_every == 0:
            points = sample(step)
        residual, rows = equations.linearised(points)
    equations.put(flat)
    fit = Fit(steps=step, residual=value, seconds=time.monotonic() - started, reason=reason)
    logger.info("Levenberg-Marquardt: %s after %d steps, residual %.3g.", fit.reason, fit.steps, fit.residual)
    return fit
