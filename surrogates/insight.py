"""Why a frame helps, in figures: the landscape of the loss, the rank of the snapshots, the paths of the labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .first_order import Loss
from .places import Points
from .transport_network import TransportNetwork


def singular_values(snapshots: np.ndarray) -> np.ndarray:
    """Return the singular values of snapshots (times, points), as fractions of the largest, descending."""
    values = np.linalg.svd(np.asarray(snapshots, dtype=np.float64), compute_uv=False)
    return values / values[0]


def modes_needed(snapshots: np.ndarray, tolerance: float) -> int:
    """Return how many modes leave a relative error below the tolerance in the Frobenius norm."""
    energy = np.cumsum(singular_values(snapshots)[::-1] ** 2)[::-1]
    error = np.sqrt(np.append(energy[1:], 0.0) / energy[0])
    return int(np.argmax(error < tolerance)) + 1


@torch.no_grad()
def snapshots(
    network: TransportNetwork, row: torch.Tensor, *, times: int = 50, labels: int = 256
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return places of labels (ndim, times, labels), their states, and states on the grid at rest, (times, labels).

    The second and third, of the first field, are the snapshots in the moving and in the resting frame: `modes_needed`
    of both says what the frame is worth. Labels of a Gaussian or a shock tell something; those of a sine have two modes
    in any frame.

    row : (1, parameters). labels : per axis.

    Raises
    ------
    ArithmeticError : labels have crossed, so that there is no state on the grid.
    """
    case = network.moving.case
    axes = [
        torch.arange(labels).to(row) * (length / labels) + corner
        for length, corner in zip(case.grid.extent, case.grid.origin, strict=True)
    ]
    X = torch.stack([axis.reshape(-1) for axis in torch.meshgrid(*axes, indexing="ij")])
    each = X.shape[1]
    t = torch.linspace(0, case.duration, times).to(row)
    points = Points(
        labels=X.repeat(1, times), times=t.repeat_interleave(each), rows=row,
        row_of=torch.zeros(times * each, dtype=torch.long, device=row.device),
    )  # fmt: skip
    place = torch.stack([part.value for part in network.place(points).x]).reshape(-1, times, each)
    moving = network.unknowns(points)[0].value[0].reshape(times, each)
    resting = network.values_at(points)[0].reshape(times, each)
    return tuple(a.double().cpu().numpy() for a in (place, moving, resting))


def top_directions(loss: Loss, points: Points, *, count: int = 2, steps: int = 40, seed: int = 0) -> list[torch.Tensor]:
    """Return the Hessian's leading eigenvectors, flat: orthogonal iteration on differences of gradients."""
    weights = list(loss.network.parameters())
    sizes = [w.numel() for w in weights]
    base = torch.cat([w.detach().reshape(-1) for w in weights])
    step = torch.finfo(base.dtype).eps ** (1 / 3) * max(1.0, float(base.norm()))

    def gradient(flat: torch.Tensor) -> torch.Tensor:
        _put(weights, flat, sizes)
        parts = torch.autograd.grad(loss(points), weights, allow_unused=True)
        return torch.cat([torch.zeros_like(w).reshape(-1) if p is None else p.reshape(-1)
                          for w, p in zip(weights, parts, strict=True)])  # fmt: skip

    generator = torch.Generator(base.device).manual_seed(seed)
    basis = torch.randn(len(base), count, generator=generator, dtype=base.dtype, device=base.device)
    try:
        for _ in range(steps):
            basis = torch.linalg.qr(basis).Q
            columns = [(gradient(base + step * v) - gradient(base - step * v)) / (2 * step) for v in basis.T]
            basis = torch.stack(columns, 1)
    finally:
        _put(weights, base, sizes)
    return list(torch.linalg.qr(basis).Q.T)


def landscape(
    loss: Loss, points: Points, *, size: int = 21, reach: float = 1.0, directions: list[torch.Tensor] | None = None
) -> np.ndarray:
    """Return the loss at weights + α a + β b, (size, size), α and β in [-reach, reach], a and b the top directions.

    Two methods compare on one scale of α, β and colour; the weights are as before afterwards.
    """
    weights = list(loss.network.parameters())
    sizes = [w.numel() for w in weights]
    a, b = directions if directions is not None else top_directions(loss, points)
    base = torch.cat([w.detach().reshape(-1) for w in weights])
    steps = np.linspace(-reach, reach, size)
    values = np.empty((size, size))
    try:
        with torch.no_grad():
            for i, alpha in enumerate(steps):
                for j, beta in enumerate(steps):
                    _put(weights, base + alpha * a + beta * b, sizes)
                    values[i, j] = float(loss(points))
    finally:
        _put(weights, base, sizes)
    return values


@torch.no_grad()
def _put(weights: list[torch.Tensor], flat: torch.Tensor, sizes: list[int]) -> None:
    for weight, part in zip(weights, flat.split(sizes), strict=True):
        weight.copy_(part.reshape(weight.shape))


def crossing(
    network: TransportNetwork, points: Points, *, until: float, steps: int = 200
) -> tuple[float, float] | None:
    """Return the first time up to `until` at which J of some label is not positive, and the smallest J then; or None.

    points : labels to watch; their times do not count.
    """
    for t in torch.linspace(0, until, steps + 1).tolist()[1:]:
        J, _, _ = network.min_jacobian(replace(points, times=torch.full_like(points.times, t)))
        if J <= 0:
            return t, J
    return None
