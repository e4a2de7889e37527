"""Control through staggered networks: gradients are those that differences find, a lost flow begins again."""

from dataclasses import replace

import pytest
import torch

from headrace.surrogates.fourier_network import FourierNetwork
from headrace.surrogates.stagger import Stagger
from headrace.surrogates.staggered_network import StaggeredNetwork


@pytest.fixture(scope="module")
def modules(loaded):
    """Return modules of the benchmark."""
    return tuple(loaded(f"staggered.{name}") for name in ("channel", "control", "planes", "shedding", "training"))


def stirred(network, size):
    """Give weights that are zero at first some values, so that every part of the network counts."""
    generator = torch.Generator().manual_seed(0)
    for values in network.parameters():
        values.data += size * torch.randn(values.shape, generator=generator, dtype=values.dtype)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("horizon", [1, 10, 50])
def test_of_the_shedding_with_respect_to_the_inflow(modules, horizon):
    channel, control, _, shedding, training = modules
    scene = channel.CHANNELS["P5, 60 x 20"]
    row = training.Row(scene.name, 2, "projected", "steps", shared=True)
    network = stirred(training.network_of(row, scene, 0, "cpu").double(), 0.02)
    window = scene.start_windows("", 1, 1, "cpu", 3, torch.ones(1)).double()
    flow = shedding.Flow(scene, network, window)

    def objective(inflow):
        return flow.signal(flow.with_inflow(window, inflow[0]), horizon).square().mean()[None]

    distance, cosine = control.gradient_check(objective, window.new_full((1, 1), 0.8), directions=1)
    assert distance <= 1e-3 and cosine >= 0.99, (distance, cosine)


@pytest.mark.parametrize("horizon", [1, 10, 50])
def test_of_the_mixing_with_respect_to_the_first_vorticity(modules, horizon):
    _, control, planes, *_ = modules
    plane, like = replace(planes.PLANES["P0"], points=16), torch.zeros((), dtype=torch.float64)

    def make(inputs):
        return FourierNetwork(inputs, 1, 8, modes=(3, 3), periods=(1.0, 1.0), layers=2)

    torch.manual_seed(0)
    network = stirred(StaggeredNetwork(make, Stagger((2, 2), 2), shared=True, scale=0.1).double(), 0.02)
    solver = control.classical(plane, like)
    dye, modes = control.Dye(plane.points, plane.frame, like), control.waves(plane.points, like)
    roll_out = control.by_network(network, solver, 2)

    def objective(at):
        return dye.mixed(roll_out(control.vorticity_of(at, modes), horizon))

    generator = torch.Generator().manual_seed(1)
    at = torch.randn(1, len(modes), generator=generator).double()
    distance, cosine = control.gradient_check(objective, at, directions=3)
    assert distance <= 1e-3 and cosine >= 0.99, (distance, cosine)


@pytest.mark.parametrize("lost_at", [3, 20])
def test_a_flow_out_of_all_bounds_begins_again_at_the_inflow_of_then(modules, lost_at):
    channel, _, _, shedding, training = modules
    scene = channel.CHANNELS["P5, 60 x 20"]
    row = training.Row(scene.name, 2, "projected", "steps", shared=True)

    class Lost(torch.nn.Module):
        """Loses the second flow once, where it warms up or where its signal is seen."""

        def __init__(self):
            super().__init__()
            self.inner = stirred(training.network_of(row, scene, 0, "cpu"), 0.02)
            self.calls = 0

        def forward(self, window):
            new = self.inner(window)
            self.calls += len(window) > 1
            if self.calls == lost_at:
                new = new.index_fill(0, torch.tensor([1]), float("nan"))
            return new

    lines = {line[0]: line for line in shedding.measure_shedding("a flow", Lost(), scene, "cpu", quick=True)}
    line = lines["a flow: starts of 2 that are near the wanted bin"]
    after = line[5].split("of Adam ")[1].split(";")[0].split(", ")
    assert "begun again out of bounds 0, 1 times" in line[5]
    assert len(after) == 2 and "nan" not in after, line[5]
