"""The surrogate of a run against its held-out simulations, beside the case's baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headrace.online_training.validator import HeldOut, evaluate, read_held_out
from headrace.surrogates import Problem

from .baseline import baseline_of

if TYPE_CHECKING:
    from headrace.surrogates import Surrogate

    from .run_data import RunData


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Errors on the held-out simulations; the layout of `errors` is that of `headrace.online_training.validator`.

    files : simulation number -> its file.
    errors : of the surrogate.
    baseline : name of the case's baseline, empty where it has none.
    baseline_errors : of the baseline on the same simulations.
    """

    surrogate: Surrogate
    files: dict[int, Path]
    errors: dict[str, Any]
    baseline: str = ""
    baseline_errors: dict[str, Any] | None = None

    def compare(self, simulation: int) -> tuple[HeldOut, np.ndarray]:
        """Return a held-out simulation and its prediction, both with all snapshots.

        The first `history` snapshots of a surrogate that steps are the known states themselves.
        """
        one = read_held_out(self.files[simulation], self.surrogate.problem)
        history = self.surrogate.history
        initial = torch.from_numpy(one.states[None, :history]) if history else None
        parameters = torch.as_tensor(one.parameters, dtype=torch.float32)[None]
        times = torch.as_tensor(one.times[history:], dtype=torch.float32)
        predicted = self.surrogate.predict(initial, parameters, times)[0].numpy()
        return one, np.concatenate([one.states[:history], predicted])

    def baseline_sentence(self) -> str:
        """Return how the surrogate compares with the baseline, for people; empty where there is none."""
        if self.baseline_errors is None:
            return ""
        errors = self.baseline_errors
        return (
            f"For comparison, {self.baseline}: nRMSE {100 * errors['nrmse']:.3g} %, VRMSE {errors['vrmse']:#.4g} "
            "on the same simulations."
        )


def evaluate_held_out(data: RunData) -> Evaluation | None:
    """Return the errors of a run's model, None while there is no model or no held-out simulation.

    Raises
    ------
    ValueError, OSError : the model or a file is damaged; named.
    """
    files = {int(path.stem.rpartition("-")[2]): path for path in sorted(data.directory.held_out.glob("sim-*.h5"))}
    if not files or not (data.directory.model / "config.json").is_file():
        return None
    surrogate = data.directory.load_model(data.directory.model)

    def held_out() -> Iterator[HeldOut]:
        return (read_held_out(path, surrogate.problem) for path in files.values())

    errors = evaluate(surrogate, held_out())
    baseline = baseline_of(data.record.case)
    if baseline is None:
        return Evaluation(surrogate=surrogate, files=files, errors=errors)
    return Evaluation(
        surrogate=surrogate, files=files, errors=errors, baseline=baseline.name,
        baseline_errors=evaluate(baseline, held_out()),
    )  # fmt: skip


def ranked(errors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the errors of single simulations, the largest nRMSE last, those that are no number behind it."""
    return sorted(errors["simulations"], key=lambda one: (math.isnan(one["nrmse"]), one["nrmse"]))


def single_sentence(errors: Mapping[str, Any]) -> str:
    """Return the nRMSE of single simulations for people, from errors as the validator counts them."""
    return f"nRMSE of single simulations: median {errors['median_nrmse']:#.4g}, worst {errors['worst_nrmse']:#.4g}"


def parameters_text(values: np.ndarray, problem: Problem) -> str:
    """Return "nu = 0.1, x0 = 0.5" of parameters (parameters,) in the order of a problem."""
    return ", ".join(f"{name} = {value:.4g}" for name, value in zip(problem.parameters, values, strict=True))
