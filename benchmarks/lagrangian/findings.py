"""What a trained network tells beside the solution: unknown parameters from samples, and when a wave breaks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lines import processor

from headrace.cases import transport
from headrace.surrogates import Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.inverse import Samples, identify
from headrace.surrogates.least_squares import levenberg_marquardt
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.places import Points
from headrace.surrogates.transport_network import TransportNetwork


def inverse(noise: float, seed: int) -> dict[str, Any]:
    """Return the errors of c and nu from 200 samples, in units of the truth and of the Cramér-Rao bound."""
    case, (c, nu) = transport.convection_diffusion, (30.0, 0.05)
    network = TransportNetwork(replace(Problem.of(case), parameters={}), widths=(12, 12), seed=seed)
    network.use(MovingFrame(case, frame="galilean"))
    generator = np.random.default_rng(seed)
    x, t = generator.uniform(0, 2 * np.pi, 200), generator.uniform(0, 1, 200)
    clean = np.exp(-nu * t) * np.sin(x - c * t)
    states = torch.tensor(clean + noise * generator.standard_normal(200))[None]
    samples = Samples(places=torch.tensor(x)[None], times=torch.tensor(t), states=states)
    guess = {"c": 29.0, "nu": 0.08}
    found, _ = identify(network, samples, Sampler(network, torch.tensor([list(guess.values())]), 600, seed=seed), guess,
                        steps=150 if noise else 400)  # fmt: skip
    slopes = np.stack([-t * np.exp(-nu * t) * np.cos(x - c * t), -t * clean])
    bound = np.sqrt(np.diag(np.linalg.inv(slopes @ slopes.T))) * max(noise, 1e-300)
    errors = np.array([found["c"] - c, found["nu"] - nu])
    return {"relative": np.abs(errors / [c, nu]).tolist(), "bounds": (errors / bound).tolist(), "bound": bound.tolist()}


def inverse_lines(seeds: int, threads: int) -> list[dict[str, Any]]:
    """Return the two lines of the inverse problem."""
    shared = {"seeds": seeds, "cores": threads, "device": processor(), "precision": "float64",
              "setup": "c = 30 and nu = 0.05 from 200 scattered samples of convection-diffusion"}  # fmt: skip
    clean = [inverse(0.0, seed)["relative"] for seed in range(seeds)]
    noisy = [inverse(0.01, seed) for seed in range(4 * seeds)]
    ratio = float(np.sqrt(np.mean(np.square([one["bounds"] for one in noisy]))))
    worst = float(np.max(clean))
    return [
        {"name": "inverse c, nu clean", "value": float(np.median(np.max(clean, 1))), "unit": "relative error",
         "goal": 1e-4, "met": worst <= 1e-4, "worst": worst, "baseline": None, **shared},
        {"name": "inverse c, nu with 1 % noise", "value": ratio, "unit": "root mean square error / Cramér-Rao bound",
         "goal": 2.0, "met": ratio <= 2, "baseline": noisy[0]["bound"], "baseline_is": "Cramér-Rao bounds of c and nu",
         **shared, "seeds": 4 * seeds},
    ]  # fmt: skip


def breaking_time(threads: int) -> dict[str, Any]:
    """Return the time at which characteristics of inviscid Burgers cross, from the smallest J; it is 1 exactly."""
    case = replace(transport.breaking, duration=0.9)
    network = TransportNetwork(replace(Problem.of(case), parameters={}), widths=(12, 12), lagrangian=True)
    network.use(MovingFrame(case, frame="lagrangian"))
    rows = torch.tensor([[1.0]])
    fit = levenberg_marquardt(network, Sampler(network, rows, 600), steps=40)
    labels = torch.linspace(0, 2 * math.pi, 2001)[None]
    times = np.array([0.5, 0.9])
    smallest = [
        network.min_jacobian(Points(labels=labels, times=torch.full((2001,), t), rows=rows,
                                    row_of=torch.zeros(2001, dtype=torch.long)))[0] for t in times
    ]  # fmt: skip
    found = float(times[0] + smallest[0] * (times[1] - times[0]) / (smallest[0] - smallest[1]))
    return {"name": "breaking time of inviscid Burgers", "value": abs(found - 1), "unit": "error", "goal": 1e-2,
            "met": abs(found - 1) <= 1e-2, "baseline": None, "seeds": 1, "cores": threads, "precision": "float64",
            "device": processor(), "setup": f"min J at t = 0.5, 0.9, extrapolated to 0; {fit.reason}",
            "note": "contains the solution"}  # fmt: skip
