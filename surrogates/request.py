"""What is asked of a surrogate, checked at the door: states, parameters and times of a prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .problem import Problem

if TYPE_CHECKING:
    from .surrogate import Surrogate


def require_setup(surrogate: Surrogate) -> Problem:
    """Return the surrogate's problem.

    Raises
    ------
    RuntimeError : setup was not called yet.
    """
    if surrogate.problem is None:
        name = type(surrogate).__name__
        raise RuntimeError(f"{name} has no weights yet: call setup(problem) first, or load_surrogate(path).")
    return surrogate.problem


def require_problem(problem: Any) -> None:
    """Check what a surrogate is set up for.

    Raises
    ------
    TypeError : it is no problem, as where a case is given.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"setup takes a Problem, not {type(problem).__name__}; of a case it is Problem.of(case).")


def parameter_rows(parameters: torch.Tensor, problem: Problem, like: torch.Tensor) -> torch.Tensor:
    """Return parameters as (batch, parameters) with the dtype and device of another tensor.

    Raises
    ------
    ValueError : another shape.
    """
    rows = torch.as_tensor(parameters, dtype=like.dtype, device=like.device)
    if rows.ndim != 2 or rows.shape[1] != len(problem.parameters):
        raise ValueError(
            f"Parameters have shape {tuple(rows.shape)}; case {problem.case} needs "
            f"(batch, {len(problem.parameters)}): {', '.join(problem.parameters) or 'none'}."
        )
    return rows


def time_points(times: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return times as (time,) with the dtype and device of another tensor.

    Raises
    ------
    ValueError : another shape, or no time at all.
    """
    points = torch.as_tensor(times, dtype=like.dtype, device=like.device)
    if points.ndim != 1 or len(points) == 0:
        raise ValueError(f"Times have shape {tuple(points.shape)}; give one axis with at least one time.")
    return points


def require_consecutive(times: torch.Tensor, problem: Problem) -> None:
    """Check that a model that steps is asked for consecutive snapshots.

    Raises
    ------
    ValueError : two neighbouring times are not one snapshot interval apart.
    """
    steps = torch.diff(times) / problem.interval
    # float32 times k·interval carry a relative error of k·1e-7 in units of the interval.
    if len(steps) and not (steps - 1).abs().max() <= 1e-2:  # nor if one is NaN
        worst = int((steps - 1).abs().argmax())
        raise ValueError(
            f"Times {times[worst]:g} and {times[worst + 1]:g} are not consecutive snapshots of case {problem.case}, "
            f"which lie {problem.interval:g} apart. This model steps; predict all times and pick the ones wanted."
        )


def known_states(initial: torch.Tensor | None, problem: Problem, history: int, like: torch.Tensor) -> torch.Tensor:
    """Return initial as (batch, history, fields, *grid) with the dtype and device of another tensor.

    Raises
    ------
    ValueError : it is missing or has another shape.
    """
    wanted = f"(batch, {history} known states, {len(problem.fields)} fields, {len(problem.shape)} grid axes)"
    if initial is None:
        raise ValueError(f"This model steps from known states: initial must be {wanted}, not None.")
    states = torch.as_tensor(initial, dtype=like.dtype, device=like.device)
    if states.ndim != 3 + len(problem.shape) or tuple(states.shape[1:3]) != (history, len(problem.fields)):
        raise ValueError(f"Initial has shape {tuple(states.shape)}; case {problem.case} needs {wanted}.")
    return states


def stepping_request(
    surrogate: Surrogate, initial: torch.Tensor | None, parameters: torch.Tensor, times: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what is asked of a surrogate that steps: known states, parameters and times, as the functions above.

    Raises
    ------
    ValueError : one of them has a wrong shape, times are not consecutive, or the first two differ in number.
    RuntimeError : the surrogate has no weights yet.
    """
    problem = require_setup(surrogate)
    like = surrogate.normaliser.mean
    known = known_states(initial, problem, surrogate.history, like)
    rows, points = parameter_rows(parameters, problem, like), time_points(times, like)
    require_consecutive(points, problem)
    if len(rows) != len(known):
        raise ValueError(f"Initial holds {len(known)} simulations, parameters {len(rows)}; they must agree.")
    return known, rows, points
