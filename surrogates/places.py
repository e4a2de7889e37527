"""Labels with their times and parameters, and the places where a moving frame has them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .jet import Jet, pairs


@dataclass(frozen=True, kw_only=True)
class Points:
    """Labels and times, each with a row of parameters.

    labels : (ndim, points). times : (points,). rows : (rows, parameters). row_of : (points,), whole numbers.
    values : (points, parameters), the parameters in the equation where they differ from those of the frame, as where
        they are sought; None takes those of the rows.
    place : where the labels are, (numbers, points), as `MovingFrame.prepared` found it.
    """

    labels: torch.Tensor
    times: torch.Tensor
    rows: torch.Tensor
    row_of: torch.Tensor
    values: torch.Tensor | None = None
    place: torch.Tensor | None = None

    def at(self, labels: torch.Tensor) -> Points:
        """Return the same times and parameters at other labels."""
        return replace(self, labels=labels, place=None)

    def part(self, which: torch.Tensor) -> Points:
        """Return some of the points, by number or by truth."""
        chosen = {name: tensor if tensor is None else tensor[..., which]
                  for name, tensor in (("labels", self.labels), ("times", self.times), ("row_of", self.row_of),
                                       ("place", self.place))}  # fmt: skip
        return replace(self, **chosen, values=None if self.values is None else self.values[which])

    def of_rows(self) -> Points:
        """Return the same points with the parameters of the rows."""
        return replace(self, values=None)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where labels are: x as one jet per axis, in the label; velocity ∂x/∂t (ndim, points)."""

    x: tuple[Jet, ...]
    velocity: torch.Tensor

    def matrix(self) -> torch.Tensor:
        """Return F = ∂x/∂X, (points, ndim, ndim), row = component of x."""
        zero = torch.zeros_like(self.x[0].value)
        return torch.stack(
            [torch.stack([zero + (0.0 if g is None else g) for g in part.gradient]) for part in self.x]
        ).movedim(2, 0)

    def jacobian(self) -> torch.Tensor:
        """Return J = det F, (points,)."""
        return torch.linalg.det(self.matrix())

    def inverse(self) -> torch.Tensor:
        """Return F^-1, (points, ndim, ndim): by minors in up to three dimensions, which a CUDA graph can hold."""
        F, ndim = self.matrix(), len(self.x)
        if ndim == 1:
            return 1 / F
        if ndim == 2:
            (a, b), (c, d) = F[:, 0].unbind(1), F[:, 1].unbind(1)
            minors = torch.stack((d, -b, -c, a), 1).unflatten(1, (2, 2))
            return minors / (a * d - b * c)[:, None, None]
        if ndim == 3:
            first, second, third = F.unbind(2)
            minors = torch.stack((torch.linalg.cross(second, third), torch.linalg.cross(third, first),
                                  torch.linalg.cross(first, second)), 1)  # fmt: skip
            return minors / (first * minors[:, 0]).sum(1)[:, None, None]
        return torch.linalg.inv(F)

    def numbers(self) -> torch.Tensor:
        """Return all of it as one tensor, (numbers, points)."""
        parts = [part for jet in self.x for part in (jet.value, *jet.gradient, *jet.hessian.values())]
        return torch.cat((torch.stack([self.x[0]._full(part) for part in parts]), self.velocity))

    @classmethod
    def of_numbers(cls, numbers: torch.Tensor, ndim: int) -> Place:
        """Return the place that `numbers` was made from."""
        keys = pairs(ndim)
        *axes, velocity = numbers.split([1 + ndim + len(keys)] * ndim + [ndim])
        x = (Jet(part[0], list(part[1 : 1 + ndim]), dict(zip(keys, part[1 + ndim :], strict=True))) for part in axes)
        return cls(x=tuple(x), velocity=velocity)
