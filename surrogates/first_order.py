"""Adam, L-BFGS and self-scaled Broyden on the residuals of a network.

They are for networks too large for Levenberg-Marquardt, and for fair comparison with what physics-informed networks
are usually trained by.

`Loss` is the mean square of the residuals; with causal weights (Wang, Sankaran, Perdikaris, CMAME 421, 2024) later
times count only as far as earlier ones are solved:

    w_i = exp(-ε Σ_{k<i} L_k),   L_k the mean square over the k-th slice of time

Where a case has several equations (fields, or the path of the labels), their weights may follow the norms of their
gradients (Wang, Teng, Perdikaris, SIAM J. Sci. Comput. 43, 2021, in the form with norms). A penalty λ/2 |∇R|² on the
gradient of the residual in label and time keeps it small between the points too (gradient-enhanced networks: Yu, Lu,
Meng, Karniadakis, CMAME 393, 2022).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from .least_squares import Fit
from .places import Points
from .transport_network import TransportNetwork

logger = logging.getLogger(__name__)

Sample = Callable[[int], Points]

_BALANCE_EVERY = 100
"""Steps of Adam between two weighings of the equations; the others weigh them whenever they draw points."""


class Loss:
    """Mean square of the residuals.

    causal : ε of the causal weights; 0 leaves them out. slices : of time.
    penalty : λ of the residual-gradient penalty, in units of length² (and time²); 0 leaves it out.
    balance : weigh the equations, so that none of them rules the gradient; does nothing where there is only one.
    """

    def __init__(
        self, network: TransportNetwork, *, causal: float = 0.0, slices: int = 16, penalty: float = 0.0,
        balance: bool = False,
    ) -> None:  # fmt: skip
        if causal < 0 or slices < 1:
            raise ValueError(f"Causal ε {causal} must not be negative, and slices {slices} at least 1.")
        if penalty < 0:
            raise ValueError(f"The penalty {penalty} of the residual's gradient must not be negative.")
        self.network, self.causal, self._slices = network, causal, slices
        self._penalty, self._balance = penalty, balance
        self.weights: torch.Tensor | None = None
        self.least_weight = torch.ones(())
        """Of a slice of time in the last loss: near 1 all times count, and ε may grow."""

    def __call__(self, points: Points) -> torch.Tensor:
        """Return the loss, one number with gradients."""
        squares = self._squares(points)
        squares = (squares if self.weights is None else squares * self.weights[:, None]).mean(0)
        if not self.causal:
            return squares.mean()
        number = (self.network.moving.elapsed(points) * self._slices).long().clamp(0, self._slices - 1)
        zero = squares.new_zeros(self._slices)
        count = zero.index_add(0, number, torch.ones_like(squares)).clamp(min=1)
        levels = zero.index_add(0, number, squares) / count
        earlier = torch.cumsum(levels, 0) - levels
        weights = torch.exp(-self.causal * earlier).detach()
        self.least_weight = weights.min()
        return (weights * levels).mean()

    def rebalance(self, points: Points) -> None:
        """Take new weights of the equations: λ_i = mean_k ‖∇L_k‖ / ‖∇L_i‖, nine parts old and one part new."""
        if not self._balance:
            return
        losses = self._squares(points).mean(1)
        if len(losses) == 1:
            return
        parameters = list(self.network.parameters())
        sizes = []
        for loss in losses:
            gradient = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            sizes.append(torch.cat([part.reshape(-1) for part in gradient if part is not None]).norm())
        norms = torch.stack(sizes)
        # An equation that already holds has no gradient to be brought to the size of the others.
        holds = norms <= torch.finfo(norms.dtype).eps * norms.max()
        new = torch.where(holds, torch.ones_like(norms), norms.mean() / norms)
        self.weights = new if self.weights is None else 0.9 * self.weights + 0.1 * new

    def _squares(self, points: Points) -> torch.Tensor:
        """Return the squared residual, and λ/2 |∇R|² with it, (equations, points)."""
        if not self._penalty:
            return self.network.residual(points).square()
        labels, times, count = points.labels, points.times, len(points.times)
        case = self.network.moving.case
        # Central differences: a derivative by the inputs would need networks that are differentiated twice on the way
        # back. Error h²; with h of the third root of the precision, two thirds of the digits stay.
        relative = torch.finfo(times.dtype).eps ** (1 / 3)
        steps = [relative * length for length in (*case.grid.extent, case.duration)]
        moved_labels, moved_times = [labels], [times]
        for axis, h in enumerate(steps):
            for sign in (h, -h):
                shift = torch.zeros_like(labels)
                if axis < len(labels):
                    shift[axis] = sign
                moved_labels.append(labels + shift)
                moved_times.append(times + (sign if axis == len(labels) else 0.0))
        copies = len(moved_times)
        values = None if points.values is None else points.values.repeat(copies, 1)
        there = Points(labels=torch.cat(moved_labels, 1), times=torch.cat(moved_times), rows=points.rows,
                       row_of=points.row_of.repeat(copies), values=values)  # fmt: skip
        here, *others = self.network.residual(there).split(count, 1)
        squares = here.square()
        for axis, h in enumerate(steps):
            squares = squares + self._penalty / 2 * ((others[2 * axis] - others[2 * axis + 1]) / (2 * h)).square()
        return squares


def _finish(name: str, started: float, steps: int, loss: float, reason: str) -> Fit:
    fit = Fit(steps=steps, residual=math.sqrt(loss), seconds=time.monotonic() - started, reason=reason)
    logger.info("%s: %s after %d steps, residual %.3g.", name, reason, steps, fit.residual)
    return fit


def adam(loss: Loss, sample: Sample, *, steps: int, learning_rate: float = 1e-3, seconds: float = math.inf) -> Fit:
    """Minimise by Adam with new points every step and a cosine of the learning rate to zero.

    Raises
    ------
    FloatingPointError : the loss is not finite; names the step.
    """
    optimizer = torch.optim.Adam(loss.network.parameters(), lr=learning_rate)
    started, value, reason, step = time.monotonic(), math.inf, f"{steps} steps", 0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        points = sample(step)
        if step % _BALANCE_EVERY == 1:
            loss.rebalance(points)
        optimizer.zero_grad()
        current = loss(points)
        current.backward()
        optimizer.step()
        over = time.monotonic() - started > seconds
        if step % 50 == 0 or step == steps or over:
            value = float(current.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"The loss of step {step} of Adam is not finite; lower the learning rate.")
        if over:
            reason = "time is up"
            break
    return _finish("Adam", started, step, value, reason)


def lbfgs(
    loss: Loss, sample: Sample, *, steps: int, tolerance: float = 0.0, history: int = 50, resample_every: int = 0,
    seconds: float = math.inf,
) -> Fit:  # fmt: skip
    """Minimise by L-BFGS with strong Wolfe line searches; keeps the weights of the smallest loss on the last points.

    tolerance : relative decrease of the loss over 20 steps below which it stops; 0 goes on.
    resample_every : steps after which new points are drawn and the history is dropped; 0 keeps the first ones.

    Raises
    ------
    ValueError : the tolerance lies below the precision of the weights, so that it would stop by chance.
    """
    weights = list(loss.network.parameters())
    precision = torch.finfo(weights[0].dtype).eps
    if 0 < tolerance < precision:
        raise ValueError(f"Tolerance {tolerance:g} lies below the precision {precision:.1e} of the weights.")
    points, started = sample(0), time.monotonic()
    loss.rebalance(points)
    best, last, reason, done = math.inf, math.inf, f"{steps} steps", 0
    kept = [w.detach().clone() for w in weights]
    optimizer = _new_lbfgs(weights, history)

    def closure() -> torch.Tensor:
        nonlocal best, kept
        if time.monotonic() - started > seconds:
            raise _TimeIsUp
        optimizer.zero_grad()
        value = loss(points)
        value.backward()
        if float(value.detach()) < best:
            best, kept = float(value.detach()), [w.detach().clone() for w in weights]
        return value

    while done < steps:
        try:
            optimizer.step(closure)
        except _TimeIsUp:
            reason = "time is up"
            break
        done += 20
        value = float(loss(points).detach())
        if not math.isfinite(value):
            reason = "the loss became not finite; the last good weights are kept"
            break
        if tolerance and last - value <= tolerance * last:
            reason = f"the loss fell by less than {tolerance:g} of itself"
            break
        if value == last:
            reason = "no step lowers the loss"
            break
        last = value
        if resample_every and done % resample_every < 20:
            points, last, best = sample(done), math.inf, math.inf
            loss.rebalance(points)
            optimizer = _new_lbfgs(weights, history)
    with torch.no_grad():
        for weight, good in zip(weights, kept, strict=True):
            weight.copy_(good)
    return _finish("L-BFGS", started, done, best, reason)


class _TimeIsUp(Exception):
    """Ends a step of an optimiser that looks at no clock."""


def _new_lbfgs(weights: list[torch.Tensor], history: int) -> torch.optim.LBFGS:
    return torch.optim.LBFGS(
        weights, max_iter=20, history_size=history, tolerance_grad=0.0, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip


def broyden_step(H: np.ndarray, s: np.ndarray, y: np.ndarray, g: np.ndarray, alpha: float) -> np.ndarray:
    """Return the next inverse Hessian of self-scaled Broyden, from step s = -α H g and change of gradient y.

    Al-Baali, Comput. Optim. Appl. 9 (1998); for physics-informed networks Urban, Stefanou, Pons, JCP 523 (2025).
    """
    n, sy, Hy = len(s), s @ y, H @ y
    h, b = (y @ Hy) / sy, -alpha * (s @ g) / sy
    a = max(h * b - 1, 1e-14)
    rho = min(1.0, h * (1 - math.sqrt(a / (a + 1))))
    theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
    sigma, phi = 1 + theta * a, (1 - theta) / (1 + theta * a)
    tau = min(1.0, 1 / b)
    power = sigma ** (-1 / max(n - 1, 1))
    tau = tau * min(power, 1 / theta) if theta > 0 else min(tau * power, sigma)
    v = math.sqrt(y @ Hy) * (s / sy - Hy / (y @ Hy))
    return (H - np.outer(Hy, Hy) / (y @ Hy) + phi * np.outer(v, v)) / tau + np.outer(s, s) / sy


def self_scaled_broyden(
    loss: Loss, sample: Sample, *, steps: int, resample_every: int = 0, seconds: float = math.inf
) -> Fit:
    """Minimise by self-scaled Broyden with a dense inverse Hessian and strong Wolfe line searches.

    Raises
    ------
    ValueError : more weights than a dense matrix is for.
    """
    from scipy.optimize import line_search

    from .least_squares import MOST_WEIGHTS

    weights = list(loss.network.parameters())
    like = weights[0]
    size = sum(w.numel() for w in weights)
    if size > MOST_WEIGHTS:
        raise ValueError(f"Self-scaled Broyden keeps a dense matrix; {size} weights are more than {MOST_WEIGHTS}.")
    points = sample(0)
    loss.rebalance(points)

    def put(flat: np.ndarray) -> None:
        with torch.no_grad():
            for weight, part in zip(weights, torch.tensor(flat).split([w.numel() for w in weights]), strict=True):
                weight.copy_(part.reshape(weight.shape).to(like))

    memory: dict[bytes, tuple[float, np.ndarray]] = {}

    def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
        key = flat.tobytes()
        if key not in memory:
            put(flat)
            value = loss(points)
            parts = torch.autograd.grad(value, weights)
            gradient = torch.cat([p.reshape(-1) for p in parts]).double().cpu().numpy()
            memory.clear()
            memory[key] = (float(value.detach()), gradient)
        return memory[key]

    x = torch.cat([w.detach().reshape(-1) for w in weights]).double().cpu().numpy()
    H = np.eye(size)
    value, g = both(x)
    started, reason, step, fresh = time.monotonic(), f"{steps} steps", 0, True
    for step in range(1, steps + 1):
        direction = -H @ g
        alpha = line_search(lambda z: both(z)[0], lambda z: both(z)[1], x, direction, g, value, maxiter=25)[0]
        if alpha is None or not math.isfinite(alpha):
            if fresh:
                reason = "no step lowers the loss"
                break
            H, fresh = np.eye(size), True
            continue
        s = alpha * direction
        new_value, new_g = both(x + s)
        y = new_g - g
        if not math.isfinite(new_value):
            reason = "the loss became not finite; the last good weights are kept"
            break
        if s @ y > 0:
            if fresh:
                # The identity has no scale of its own: it takes that of the first step, then the update of DFP.
                H, fresh = H * (s @ y) / (y @ y), False
                H = H - np.outer(H @ y, H @ y) / (y @ H @ y) + np.outer(s, s) / (s @ y)
            else:
                H = broyden_step(H, s, y, g, alpha)
        x, value, g = x + s, new_value, new_g
        if time.monotonic() - started > seconds:
            reason = "time is up"
            break
        if resample_every and step % resample_every == 0:
            put(x)
            points = sample(step)
            loss.rebalance(points)
            memory.clear()
            value, g = both(x)
    put(x)
    return _finish("Self-scaled Broyden", started, step, value, reason)


def to_double(network: TransportNetwork) -> TransportNetwork:
    """Return the network with weights in float64: what came cheaply in float32 is refined from there."""
    return network.double()
