"""A case whose file brings two surrogates that learn from its equation alone: one from states, one from points."""

import numpy as np
import torch

from headrace.solvers import Case, Grid, Periodic, Uniform
from headrace.surrogates import Surrogate


def decay(u, d, p, t):
    """∂u/∂t = -rate u."""
    return -p.rate * u


def wave(x, p, rng):
    """a sin 2πx."""
    return p.a * np.sin(2 * np.pi * x[0])


case = Case(
    name="decay", fields=("u",), grid=Grid(shape=(16,), extent=(1.0,)), boundary=Periodic(), initial=wave, rhs=decay,
    parameters={"a": Uniform(0.5, 1.5), "rate": Uniform(0.0, 1.0)}, duration=1.0, num_snapshots=10,
)  # fmt: skip


class _Physics(Surrogate):
    window = 1

    def setup(self, problem, *, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            sizes = (self.inputs, 64), (64, 64)
            hidden = [layer for size in sizes for layer in (torch.nn.Linear(*size), torch.nn.Tanh())]
            self.network = torch.nn.Sequential(*hidden, torch.nn.Linear(64, 1))
        self.problem = problem

    def architecture(self):
        return {}

    def set_statistics(self, mean, std):
        pass


class Stagger(_Physics):
    """u(t + Δt) from u(t), point by point; the loss, a residual of the trapezoidal rule, needs no later state."""

    history, inputs = 1, 2

    def step(self, u, parameters):
        rate = parameters[:, 1].reshape(-1, *[1] * (u.ndim - 1)).expand_as(u)
        return u + self.problem.interval * self.network(torch.stack((u, rate), dim=-1))[..., 0]

    def training_loss(self, batch):
        u = batch.states[:, -1]
        new, rate = self.step(u, batch.parameters), batch.parameters[:, 1].reshape(-1, 1, 1)
        residual = (new - u) / self.problem.interval + rate * (new + u) / 2
        return residual.square().flatten(1).mean(1)

    @torch.no_grad()
    def predict(self, initial, parameters, times):
        u, found = initial[:, -1], []
        for _ in times:
            u = self.step(u, parameters.float())
            found.append(u)
        return torch.stack(found, dim=1)


class Points(_Physics):
    """u(x, t; parameters); the loss, residuals at random points and the initial wave, needs no state at all."""

    history, inputs = 0, 5

    def value(self, x, t, parameters):
        angle = 2 * torch.pi * x
        seen = torch.stack((angle.sin(), angle.cos(), t, *parameters.unbind(-1)), dim=-1)
        return self.network(seen)[..., 0]

    def training_loss(self, batch):
        count = 16
        parameters = batch.parameters[:, None].expand(-1, count, -1)
        x, t = torch.rand(len(parameters), count), torch.rand(len(parameters), count).requires_grad_()
        u = self.value(x, t, parameters)
        u_t = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        start = self.value(x, torch.zeros_like(x), parameters)
        wave = parameters[..., 0] * torch.sin(2 * torch.pi * x)
        return ((u_t + parameters[..., 1] * u).square() + 10 * (start - wave).square()).mean(1)

    @torch.no_grad()
    def predict(self, initial, parameters, times):
        x = torch.arange(16.0) / 16
        shape = (len(parameters), len(times), 1, 16)
        t = times.float().reshape(1, -1, 1, 1).expand(shape)
        return self.value(x.expand(shape), t, parameters.float()[:, None, None, None].expand(*shape, -1))
