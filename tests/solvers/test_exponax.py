"""Cases against exponax, an independent code: they differ by our discretisation error, which falls at its order."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from headrace.cases import burgers, gray_scott, kuramoto_sivashinsky

from . import exponax_lines as reference
from .problems import orders, run

STORED = np.load(Path(__file__).with_name("exponax_lines.npz"))


def stored_points(values, name):
    """Return the points of a grid that exponax's file holds."""
    axes = range(-(STORED[name].ndim - (name == "gray_scott")), 0)
    index = [slice(None, None, values.shape[axis] // STORED[name].shape[axis]) for axis in axes]
    return values[(..., *index)]


def test_burgers():
    errors = []
    for n in (128, 256, 512):
        case = replace(burgers.case.resized((n,)), initial=lambda x, p, rng: reference.burgers_initial(x[0]),
                       duration=reference.BURGERS_DURATION, num_snapshots=1, steps_per_snapshot=400)  # fmt: skip
        found = run(case, {"nu": reference.BURGERS_VISCOSITY}).values[-1, 0]
        errors.append(np.abs(stored_points(found, "burgers") - STORED["burgers"]).max())
    observed = orders(errors)
    assert errors[-1] < 1e-4 and observed[-1] > 3.5, f"errors {errors}, orders {observed}"


def test_kuramoto_sivashinsky():
    errors = []
    for steps in (5, 10):
        case = replace(
            kuramoto_sivashinsky.case.resized((128,)), duration=reference.KS_DURATION, num_snapshots=40,
            steps_per_snapshot=steps, initial=lambda x, p, rng: reference.kuramoto_sivashinsky_initial(x[0]),
        )  # fmt: skip
        found = run(case, {"nu": 1.0}).values[-1, 0]
        errors.append(np.abs(stored_points(found, "kuramoto_sivashinsky") - STORED["kuramoto_sivashinsky"]).max())
    assert errors[1] < 1e-4 and errors[0] / errors[1] > 10, errors


def test_gray_scott():
    errors = []
    for n in (64, 128, 256):
        case = replace(gray_scott.case.resized((n, n)), duration=reference.GRAY_SCOTT_DURATION, num_snapshots=1,
                       steps_per_snapshot=200, initial=lambda x, p, rng: reference.gray_scott_initial(*x))  # fmt: skip
        found = run(case, {"feed": reference.FEED, "kill": reference.KILL}).values[-1]
        errors.append(np.abs(stored_points(found, "gray_scott") - STORED["gray_scott"]).max())
    observed = orders(errors)
    assert errors[-1] < 2e-4 and observed[-1] > 3.5, f"errors {errors}, orders {observed}"
