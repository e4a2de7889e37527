"""The contract of every surrogate: learn from windows of trajectories, predict trajectories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .problem import Problem, WindowBatch

if TYPE_CHECKING:
    from headrace.solvers import Case


class Surrogate(torch.nn.Module, ABC):
    """A neural network that stands in for a solver.

    It is made with its architecture only, `FNO(modes=12)`; `setup(problem)` builds the weights for one
    PDE case. States and parameters go in and out in physical units; normalisation is inside.
    """

    history: int = 0
    """Known states that a prediction starts from; 0 for models that need only parameters and time."""

    window: int = 1
    """Consecutive steps of one training window, history and targets together."""

    problem: Problem | None = None

    recordable: bool = False
    """Whether `training_loss` does the same tensor operations for all batches of one shape, whatever their values and
    however often it was called, so that a trainer may record them once and replay them (CUDA graphs)."""

    @abstractmethod
    def setup(self, problem: Problem, *, seed: int = 0) -> None:
        """Build the weights for a problem, deterministically in the seed. Called once.

        Raises
        ------
        ValueError : the architecture does not fit, e.g. more modes than the grid has.
        """

    def use_case(self, case: Case) -> None:  # most models need nothing from it
        """Take what a model needs of its case beyond `Problem`, such as the equation; after setup and after loading.

        Raises
        ------
        ValueError : the model cannot work with this case; says why.
        """

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data."""

    @abstractmethod
    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Freeze the normaliser: mean and standard deviation of each field over the stream.

        The first call counts: weights belong to the statistics they were trained with. A later one
        changes nothing and logs how far the stream has drifted.
        """

    @abstractmethod
    def training_loss(self, batch: WindowBatch) -> torch.Tensor:
        """Return the loss of every window, shape (batch,), dimensionless; the trainer takes the mean."""

    @abstractmethod
    def predict(self, initial: torch.Tensor | None, parameters: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the states at the given times, (batch, time, fields, *grid), without gradients.

        initial : (batch, history, fields, *grid), the states just before times[0]; None where history is 0.
        parameters : (batch, parameters).
        times : (time,), snapshot times; consecutive ones for models that step.
        """

    def finish(self) -> None:  # most models are ready then
        """Do what is left to do when the stream has ended, on one worker, before the model is saved."""

    def forward(self, batch: WindowBatch) -> torch.Tensor:
        """Return `training_loss(batch)`: what DistributedDataParallel and torch.compile call."""
        return self.training_loss(batch)

    def save(self, folder: str | Path, *, metrics: Mapping[str, float] | None = None) -> None:
        """Write config.json, model.safetensors and a model card; atomic, with checksums, no pickle."""
        from .files import save_surrogate

        save_surrogate(self, folder, metrics=metrics)
