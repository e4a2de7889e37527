"""The stagger: a window of states split into interleaved coarser ones, in space and time, and put together again.

Spatial-temporal decomposition of Huang et al. (2023), NeuralStagger: part (k, i, j, ...) holds the points
u[i::s_x, j::s_y, ...] of the frames k, k + s_t, ... It is a permutation: nothing is averaged, nothing is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch


@dataclass(frozen=True)
class Stagger:
    """Factors of a decomposition of windows (batch, time, fields, *grid) into (parts, batch, time', fields, *grid').

    space : points along each axis of the grid from one point of a part to the next.
    time : frames from one frame of a part to the next.
    """

    space: tuple[int, ...]
    time: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", tuple(int(s) for s in self.space))
        if not self.space or min(*self.space, self.time) < 1:
            raise ValueError(f"Stagger factors {self.space} in space and {self.time} in time must be at least 1.")

    @property
    def places(self) -> list[tuple[int, ...]]:
        """First frame and first point of each part, (k, i, j, ...), in the order of the parts."""
        return list(product(range(self.time), *(range(s) for s in self.space)))

    @property
    def parts(self) -> int:
        """Number of parts."""
        return len(self.places)

    @property
    def parts_in_space(self) -> int:
        """Number of parts that one frame has."""
        return self.parts // self.time

    def coarse(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the grid of a part.

        Raises
        ------
        ValueError : the grid has other axes, or one that the factor does not divide.
        """
        if len(shape) != len(self.space) or any(n % s for n, s in zip(shape, self.space, strict=True)):
            raise ValueError(f"A grid of {tuple(shape)} points cannot be staggered by {self.space}: each factor must "
                             "divide its axis.")  # fmt: skip
        return tuple(n // s for n, s in zip(shape, self.space, strict=True))

    def split(self, window: torch.Tensor) -> torch.Tensor:
        """Return the parts of a window, (parts, batch, time / s_t, fields, *coarse).

        Raises
        ------
        ValueError : a factor does not divide its axis.
        """
        batch, frames, fields = window.shape[:3]
        coarse, ndim = self.coarse(window.shape[3:]), len(self.space)
        if frames % self.time:
            raise ValueError(f"A window of {frames} frames cannot be staggered by {self.time} in time.")
        interleaved = [size for pair in zip(coarse, self.space, strict=True) for size in pair]
        apart = window.reshape(batch, frames // self.time, self.time, fields, *interleaved)
        order = (2, *(5 + 2 * a for a in range(ndim)), 0, 1, 3, *(4 + 2 * a for a in range(ndim)))
        return apart.permute(order).reshape(self.parts, batch, frames // self.time, fields, *coarse)

    def join(self, parts: torch.Tensor) -> torch.Tensor:
        """Return the window of these parts: the inverse of `split`, bit for bit.

        Raises
        ------
        ValueError : not as many parts as the factors say.
        """
        ndim = len(self.space)
        if len(parts) != self.parts or parts.ndim != 4 + ndim:
            raise ValueError(f"Stagger {self.space} in space and {self.time} in time joins {self.parts} parts of "
                             f"{ndim} grid axes, not {tuple(parts.shape)}.")  # fmt: skip
        batch, steps, fields, *coarse = parts.shape[1:]
        apart = parts.reshape(self.time, *self.space, batch, steps, fields, *coarse)
        first = 1 + ndim
        axes = [axis for a in range(ndim) for axis in (first + 3 + a, 1 + a)]
        fine = [n * s for n, s in zip(coarse, self.space, strict=True)]
        return apart.permute(first, first + 1, 0, first + 2, *axes).reshape(batch, steps * self.time, fields, *fine)

    def part(self, window: torch.Tensor, index: int) -> torch.Tensor:
        """Return one part alone, (batch, time / s_t, fields, *coarse), without making the others."""
        frame, *first = self.places[index]
        grid = tuple(slice(i, None, s) for i, s in zip(first, self.space, strict=True))
        return window[(slice(None), slice(frame, None, self.time), slice(None), *grid)]
