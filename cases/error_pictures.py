"""Pictures of the errors of a surrogate: along the roll-out by every metric, and of each held-out simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.surrogates import Problem, metrics

from . import pictures
from .evaluation import Evaluation, ranked

MOST_BYTES = 256 * 2**20
"""Of held-out states that the curves beside the nRMSE take together; of larger sets, as many simulations as fit."""

Drawn = list[tuple[str, bytes, str]]
"""Name, PNG, caption."""


def error_pictures(evaluation: Evaluation) -> Drawn:
    """Return the pictures of an evaluation, those of its baseline in the same axes where there is one."""
    compared = {"surrogate": evaluation.errors}
    if evaluation.baseline_errors is not None:
        compared[evaluation.baseline] = evaluation.baseline_errors
    steps = {name: (errors["steps"]["times"], errors["steps"]["nrmse"]) for name, errors in compared.items()}
    each = {name: [one["nrmse"] for one in reversed(ranked(errors))] for name, errors in compared.items()}
    places = {name: (list(range(1, len(values) + 1)), values) for name, values in each.items()}
    return [
        ("error-over-time", pictures.curves(steps, x="t", y="nRMSE at each recorded time", percent=True),
         "nRMSE over all held-out simulations at each recorded time."),
        *_metric_pictures(evaluation),
        ("error-by-simulation", pictures.curves(places, x="held-out simulations, worst first", y="nRMSE", percent=True),
         "nRMSE of each held-out simulation, worst first."),
    ]  # fmt: skip


def _metric_pictures(evaluation: Evaluation) -> Drawn:
    """Return the other metrics at each recorded time after the states that were given."""
    problem = evaluation.surrogate.problem
    simulations = sorted(evaluation.files)
    first = evaluation.compare(simulations[0])
    simulations = simulations[: max(1, MOST_BYTES // (2 * first[0].states.nbytes))]
    pairs = [first, *(evaluation.compare(number) for number in simulations[1:])]
    given = max(1, evaluation.surrogate.history)
    truth = np.stack([one.states[given:] for one, _ in pairs])
    prediction = np.stack([predicted[given:] for _, predicted in pairs])
    times = first[0].times[given:]
    over = f"over {len(pairs)} held-out simulations at each recorded time"
    return [
        (name, pictures.curves({label: (times, line) for label, line in lines.items()}, x="t", y=title, **options),
         f"{caption} {over}.")
        for name, title, lines, options, caption in _curves(prediction, truth, times, problem)
    ]  # fmt: skip


def _curves(
    prediction: np.ndarray, truth: np.ndarray, times: np.ndarray, problem: Problem
) -> Sequence[tuple[str, str, dict[str, np.ndarray], dict[str, bool], str]]:
    """Return name, title, lines, drawing options and caption of each picture."""
    spacing = [length / points for length, points in zip(problem.extent, problem.shape, strict=True)]
    norms = {
        "VRMSE": metrics.vrmse(prediction, truth, per_step=True),
        "relative H1": metrics.relative_h1(
            prediction, truth, spacing=spacing, periodic=problem.periodic, per_step=True
        ),
    }  # fmt: skip
    largest = metrics.max_error(prediction, truth, per_step=True)
    kept = metrics.conservation_error(prediction, truth, per_step=True)
    bands = metrics.band_errors(prediction, truth, per_step=True)
    correlated = metrics.correlation(prediction, truth)
    until = metrics.correlation_time(prediction, truth, times)
    quantiles = {"median": np.median(correlated, axis=0), "lowest": correlated.min(axis=0)}
    return [
        ("norms-over-time", "VRMSE and H1 error", norms, {}, "VRMSE (1 predicts the mean) and relative error in H1,"),
        ("bands-over-time", "nRMSE by wave number",
         dict(zip(("k < 4", "4 to 12", "12 and more"), bands.T, strict=True)), {"percent": True},
         "Part of the nRMSE in each band of wave numbers (periods per box),"),
        ("largest-over-time", "Largest error", dict(zip(problem.fields, largest.T, strict=True)), {},
         "Largest error anywhere, in the unit of the field,"),
        ("conservation-over-time", "Error of the mean", dict(zip(problem.fields, kept.T, strict=True)),
         {"percent": True}, "How far the mean over space is off, over the size of the field,"),
        ("correlation-over-time", "Correlation with the solver", quantiles, {},
         f"Correlation over space (median time above 0.8: t = {np.median(until):.4g}, to t = {times[-1]:.4g}),"),
    ]  # fmt: skip
