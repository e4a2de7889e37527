"""Parameters from scattered samples: exact ones are found, noisy ones as well as any unbiased estimate could."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.cases import transport
from headrace.surrogates import Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.inverse import Samples, identify
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.transport_network import TransportNetwork

torch.set_num_threads(1)
TRUTH = {"c": 3.0, "nu": 0.05}

pytestmark = pytest.mark.usefixtures("double")


def found(noise, seed=0, count=200):
    """Errors of c and nu, and their Cramér-Rao bounds."""
    case = transport.convection_diffusion
    network = TransportNetwork(replace(Problem.of(case), parameters={}), widths=(12, 12), seed=seed)
    network.use(MovingFrame(case, frame="galilean"))
    generator = np.random.default_rng(seed)
    x, t = generator.uniform(0, 2 * np.pi, count), generator.uniform(0, 1, count)
    c, nu = TRUTH.values()
    clean = np.exp(-nu * t) * np.sin(x - c * t)
    states = torch.tensor(clean + noise * generator.standard_normal(count))[None]
    samples = Samples(places=torch.tensor(x)[None], times=torch.tensor(t), states=states)
    guess = {"c": 2.5, "nu": 0.08}
    sampler = Sampler(network, torch.tensor([list(guess.values())]), 400, seed=seed)
    values, _ = identify(network, samples, sampler, guess, steps=30)
    slopes = np.stack([-t * np.exp(-nu * t) * np.cos(x - c * t), -t * clean])
    bound = np.sqrt(np.diag(np.linalg.inv(slopes @ slopes.T))) * noise
    return np.array([values[name] - TRUTH[name] for name in TRUTH]), bound


def test_clean_samples_give_the_parameters():
    errors, _ = found(0.0)
    assert (np.abs(errors) < 1e-4 * np.array(list(TRUTH.values()))).all(), errors


def test_noisy_samples_give_them_about_as_well_as_is_possible():
    draws = [found(0.01, seed) for seed in range(4)]
    scaled = np.stack([errors / bound for errors, bound in draws])
    spread = np.sqrt((scaled**2).mean())
    assert 0.3 < spread < 2.0, scaled
