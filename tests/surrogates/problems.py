"""Small problems and analytic windows that the surrogates' tests share."""

import math

import torch

from headrace.surrogates import ALL_SURROGATES, LPINN, NeuralStagger, Problem, WindowBatch

FROM_DATA = [cls for cls in ALL_SURROGATES if cls not in (LPINN, NeuralStagger)]
"""Those that need no case beside their problem; the others have files of their own."""


def wave_problem(shape=(16, 12), *, periodic=None, fields=("u", "v"), num_snapshots=10):
    """Two parameters: an amplitude, and a decay rate that is drawn logarithmically."""
    ndim = len(shape)
    return Problem(
        case="waves", fields=fields, shape=shape, extent=(1.0,) * ndim, periodic=periodic or (True,) * ndim,
        parameters={"amplitude": (1.0, 3.0), "decay": (0.1, 10.0)}, duration=1.0, num_snapshots=num_snapshots,
        logarithmic=("decay",),
    )  # fmt: skip


def wave_states(problem, parameters, times):
    """Exact states: the first field decays, the second is a tenth of it, shifted; (batch, time, fields, *grid)."""
    axes = [torch.arange(n) / n for n in problem.shape]
    phase = sum(torch.meshgrid(*axes, indexing="ij"))
    amplitude, decay = parameters[:, :1], parameters[:, 1:2]
    size = (amplitude * torch.exp(-decay * times))[(..., *(None,) * len(problem.shape))]
    u = 5 + size * torch.sin(2 * math.pi * phase)
    v = 0.1 * size * torch.cos(2 * math.pi * phase)
    return torch.stack([u, v], dim=2)


def wave_windows(problem, window, *, batch=8, seed=0):
    """Random windows of the exact states."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(batch, 2, generator=generator)
    parameters = torch.stack([1 + 2 * draws[:, 0], 0.1 * 100 ** draws[:, 1]], dim=1)
    last = problem.num_steps - window + 1
    starts = torch.randint(last, (batch, 1), generator=generator)
    times = (starts + torch.arange(window)) * problem.interval
    return WindowBatch(states=wave_states(problem, parameters, times), times=times, parameters=parameters)
