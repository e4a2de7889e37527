"""The validator: errors of a model on the held-out simulations, in a process that stays out of the training's way."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from headrace.surrogates import Problem, Surrogate
from headrace.surrogates.metrics import EPSILON

from .checkpoint import checkpoint_folders, read_checkpoint
from .metrics_log import MetricsLog
from .run_directory import RunDirectory

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_NICENESS = 10  # about a tenth of a core where solvers and trainer want all of them
_LAST_WORDS_SECONDS = 60.0
_FIGURES = ("nrmse", "vrmse", "max_error", "median_nrmse", "worst_nrmse")
"""What is kept of each validation."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One simulation that no training window comes from.

    parameters : (parameters,) in the order of the problem.
    times : (steps,). states : (steps, fields, *grid) float32.
    """

    simulation: int
    parameters: np.ndarray
    times: np.ndarray
    states: np.ndarray


def read_held_out(path: str | Path, problem: Problem) -> HeldOut:
    """Return a held-out simulation from its file sim-NUMBER.h5.

    Raises
    ------
    ValueError : the file is not one of this problem; names what differs.
    OSError : it cannot be read.
    """
    from headrace.solvers.hdf5 import read_trajectory

    path = Path(path)
    trajectory = read_trajectory(path)
    states = np.asarray(trajectory.values, dtype=np.float32)
    if states.shape[1:] != (len(problem.fields), *problem.shape) or set(trajectory.parameters) != set(
        problem.parameters
    ):
        raise ValueError(
            f"{path} holds states {states.shape[1:]} with parameters {', '.join(trajectory.parameters)}; the model of "
            f"{problem.case} needs {(len(problem.fields), *problem.shape)} with {', '.join(problem.parameters)}."
        )
    return HeldOut(
        simulation=int(re.sub(r"\D", "", path.stem) or 0), times=np.asarray(trajectory.times, dtype=np.float64),
        parameters=np.array([trajectory.parameters[name] for name in problem.parameters]), states=states,
    )  # fmt: skip


def evaluate(surrogate: Surrogate, trajectories: Iterable[HeldOut]) -> dict[str, Any]:
    """Return the errors of roll-outs from the first `history` states to the end.

    The figures are those of `headrace.surrogates.metrics` (nRMSE, VRMSE with pooled variance, largest error),
    gathered from sums, so that only one trajectory lies in memory beside its prediction.

    Returns
    -------
    {"nrmse", "vrmse", "max_error"} over everything (the largest error over all fields);
    "median_nrmse", "worst_nrmse": of the single simulations;
    "simulations": a list of the same three per simulation, with its number;
    "steps": the same three, each a list over the predicted steps, with their "times".

    Raises
    ------
    ValueError : there is no trajectory.
    """
    numbers, sums, times = [], [], np.empty(0)
    for trajectory in trajectories:
        numbers.append(trajectory.simulation)
        sums.append(_sums(_prediction(surrogate, trajectory), trajectory.states[surrogate.history :]))
        times = trajectory.times[surrogate.history :]
    if not sums:
        raise ValueError("There is no held-out simulation to evaluate on.")
    table = np.stack(sums)  # (simulations, steps, fields, 5)
    per_simulation = [
        {"simulation": number, **_errors(rows.reshape(-1, *rows.shape[1:]))}
        for number, rows in zip(numbers, table, strict=True)
    ]
    per_step = [_errors(table[:, step]) for step in range(table.shape[1])]
    single = [one["nrmse"] for one in per_simulation]
    return {
        **_errors(table.reshape(-1, *table.shape[2:])),
        "median_nrmse": float(np.median(single)),
        "worst_nrmse": float(np.max(single)),
        "simulations": per_simulation,
        "steps": {"times": times.tolist(), **{name: [step[name] for step in per_step] for name in per_step[0]}},
    }


def validate_run(run_dir: str | Path) -> dict[str, float]:
    """Return the errors over all held-out simulations of a run's model, and of the worst one; empty without any."""
    surrogate = RunDirectory(run_dir).load_model(Path(run_dir) / "model")
    trajectories = _HeldOutFolder(Path(run_dir) / "held_out", surrogate.problem).read()
    if not trajectories:
        return {}
    errors = evaluate(surrogate, trajectories)
    return {name: errors[name] for name in _FIGURES}


class ValidatorProcess:
    """The driver's side of the validator: a context manager around its process.

    Left in order, the process validates the last checkpoint and ends; left by an exception, it is stopped.
    Where the driver is killed, the end of the process's standard input tells it to finish.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self._run_dir = Path(run_dir)
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> ValidatorProcess:
        logs = self._run_dir / "logs"
        logs.mkdir(exist_ok=True)
        with open(logs / "validator.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "headrace.online_training.validator", str(self._run_dir)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        # From here, so that its imports do not hold up the trainer's either.
        niceness = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS
        os.setpriority(os.PRIO_PROCESS, self._process.pid, min(19, niceness))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        process = self._process
        process.stdin.close()
        try:
            if kind is not None:
                process.terminate()
            code = process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code and kind is None:
            logger.warning("The validator ended with code %d; see %s.", code, self._run_dir / "logs" / "validator.log")

    @property
    def pid(self) -> int:
        """Process number of the validator."""
        return self._process.pid


class _HeldOutFolder:
    """The held-out simulations that are there by now; each file is read once."""

    def __init__(self, folder: Path, problem: Problem) -> None:
        self._folder, self._problem = folder, problem
        self._known: dict[Path, HeldOut] = {}

    def read(self) -> list[HeldOut]:
        for path in sorted(self._folder.glob("sim-*.h5")):
            if path not in self._known:
                self._known[path] = read_held_out(path, self._problem)
        return list(self._known.values())


class _Validator:
    """Follows the checkpoints of a run."""

    def __init__(self, run_dir: Path, log: MetricsLog) -> None:
        self._checkpoints, self._log = run_dir / "checkpoints", log
        self._surrogate = RunDirectory(run_dir).load_model(run_dir / "model-initial")
        self._held_out = _HeldOutFolder(run_dir / "held_out", self._surrogate.problem)
        self._done = (-1, 0)

    def follow(self, *, last: bool) -> None:
        """Evaluate the newest checkpoint if it is new, or, for the last time, if more was held out meanwhile."""
        newest = next(iter(checkpoint_folders(self._checkpoints)), None)
        trajectories = self._held_out.read()
        if newest is None or not trajectories:
            return
        batch = int(newest.name.rpartition("-")[2])
        if batch == self._done[0] and not (last and len(trajectories) > self._done[1]):
            return
        try:
            checkpoint = read_checkpoint(newest, with_optimizer=False)
        except (FileNotFoundError, ValueError) as error:  # removed meanwhile, or damaged: the trainer will say more
            logger.warning("Not validated: %s", error)
            return
        started = time.monotonic()
        self._surrogate.load_state_dict(checkpoint.model)
        errors = evaluate(self._surrogate, trajectories)
        self._log.append(
            {
                "batch": batch, "windows": checkpoint.state.windows, "generation": checkpoint.state.generation,
                **{name: errors[name] for name in _FIGURES},
                "simulations": len(trajectories), "seconds": time.monotonic() - started,
            }
        )  # fmt: skip
        self._done = (batch, len(trajectories))


def main(arguments: Sequence[str] | None = None) -> int:
    """Validate checkpoints as they appear until standard input ends; `--once` prints the errors of model/."""
    parser = argparse.ArgumentParser(prog="python -m headrace.online_training.validator", description=main.__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--once", action="store_true", help="evaluate model/, print the errors as JSON, and end")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    try:
        if given.once:
            sys.stdout.write(json.dumps(validate_run(given.run_dir)) + "\n")
        else:
            _run(given.run_dir)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _run(run_dir: Path) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with MetricsLog(run_dir, "validation") as log:
        validator = _Validator(run_dir, log)
        ended = False
        while not ended:
            readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
            ended = bool(readable) and not os.read(sys.stdin.fileno(), 4096)
            validator.follow(last=ended)


def _prediction(surrogate: Surrogate, trajectory: HeldOut) -> np.ndarray:
    """States (steps - history, fields, *grid) that the surrogate predicts."""
    history = surrogate.history
    initial = torch.from_numpy(trajectory.states[None, :history]) if history else None
    parameters = torch.as_tensor(trajectory.parameters, dtype=torch.float32)[None]
    times = torch.as_tensor(trajectory.times[history:], dtype=torch.float32)
    return surrogate.eval().predict(initial, parameters, times)[0].cpu().numpy()


def _sums(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Per step and field: points, mean u, Σ(u - mean)², Σ(û - u)², max |û - u|; (steps, fields, 5) float64."""
    axes = tuple(range(2, truth.ndim))
    truth = truth.astype(np.float64)
    error = prediction - truth
    mean = truth.mean(axis=axes)
    spread = np.var(truth, axis=axes)
    points = np.full(mean.shape, float(np.prod(truth.shape[2:])))
    return np.stack([points, mean, points * spread, np.sum(error**2, axis=axes), np.abs(error).max(axis=axes)], -1)


def _errors(rows: np.ndarray) -> Mapping[str, float]:
    """Errors over several frames from their sums, (frames, fields, 5)."""
    points, mean, spread, squares, largest = np.moveaxis(rows, -1, 0)
    count = points.sum(0)  # (fields,)
    pooled = (points * mean).sum(0) / count
    # Sums of squares about the pooled mean: no large numbers cancel, whatever the unit of the field.
    variance = (spread + points * (mean - pooled) ** 2).sum(0) / count
    norm = (spread + points * mean**2).sum(0)
    mse = squares.sum(0)
    nrmse = np.sqrt(mse / np.where(norm > 0, norm, np.finfo(np.float64).tiny))
    vrmse = np.sqrt(mse / count / (variance + EPSILON))
    return {"nrmse": float(nrmse.mean()), "vrmse": float(vrmse.mean()), "max_error": float(largest.max())}


if __name__ == "__main__":
    sys.exit(main())
