"""What staggered networks are measured by in the benchmark: truth, rivals, frequencies, and who is faster."""

import math
import re
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.cases.cavity import case as cavity
from headrace.cases.navier_stokes2d import case as navier_stokes2d
from headrace.solvers import MemorySink
from headrace.solvers.scheme import RK4
from headrace.solvers.simulate import simulate


def test_the_truth_on_planes_is_that_of_our_spectral_solver(loaded):
    planes = loaded("staggered.planes")
    plane, sink = planes.PLANES["P1"], MemorySink()
    case = replace(navier_stokes2d, duration=1.0, num_snapshots=1, steps_per_snapshot=25)
    simulate(case, case.accept({"nu": plane.viscosity}), sink, simulation=1)
    first, wanted = (torch.tensor(values) for values in np.asarray(sink.values)[:, 0])
    found = planes.Spectral(plane.forcing(64, "cpu"), plane.viscosity, 0.04).advanced(first, 25)
    assert float((found - wanted).norm()) < 1e-6 * float((wanted - first).norm())


def test_a_flow_along_its_own_vorticity_decays_as_it_must_in_the_box(loaded):
    solver = loaded("staggered.box").BoxSolver(12, 0.1, 0.05, torch.float64, "cpu")
    x, y, z = torch.meshgrid(*[2 * math.pi * torch.arange(12, dtype=torch.float64) / 12] * 3, indexing="ij")
    flow = torch.stack((z.sin() + y.cos(), x.sin() + z.cos(), y.sin() + x.cos()))  # of Arnold, Beltrami and Childress
    torch.testing.assert_close(solver.advanced(flow, 20), math.exp(-0.1) * flow, rtol=0, atol=1e-12)


def test_what_moves_in_the_box_moves_at_its_speed_and_keeps_its_energy(loaded):
    box = loaded("staggered.box")
    problem, still = box.Box(points=12), box.BoxSolver(12, 0.0, 0.02, torch.float64, "cpu")
    start = problem.starts(1, 3, "cpu").double()
    start = torch.fft.irfftn(torch.fft.rfftn(start, dim=(-3, -2, -1)) * still.keep, (12, 12, 12), dim=(-3, -2, -1))
    wind = torch.tensor([2 * math.pi, 0.0, 0.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    later, carried = still.advanced(start, 25), still.advanced(start + wind, 25)
    kept, before = (u.square().mean() for u in (later, start))
    assert float((later - start).norm() / start.norm()) > 0.1
    torch.testing.assert_close(kept, before, rtol=1e-6, atol=0)
    # In half a unit of time the whole has moved by six points of twelve.
    assert float((carried - later.roll(6, -3) - wind).norm() / start.norm()) < 1e-2


def test_how_far_the_box_is_from_a_finer_one_falls_with_its_points(loaded):
    box, finer = loaded("staggered.box").Box, loaded("staggered.classical").finer
    errors = [next(finer(box(points=n, end=0.2), "cpu", 1))[1] for n in (8, 16)]
    assert 1e-4 < errors[1] < 0.7 * errors[0] < 0.5, errors


@pytest.mark.parametrize("name", ["cut", "resampled"])
def test_waves_that_both_grids_hold_are_sampled_up_and_down_without_error(name, loaded):
    function = getattr(loaded("staggered.classical" if name == "cut" else "staggered.box"), name)
    ndim = 2 if name == "cut" else 3

    def wave(n):
        axes = torch.meshgrid(*[2 * math.pi * torch.arange(n, dtype=torch.float64) / n] * ndim, indexing="ij")
        return (1 + (2 * axes[0] + 3 * axes[1]).sin() + (axes[0] - 2 * axes[-1]).cos())[None]

    torch.testing.assert_close(function(wave(16), 10), wave(10))
    torch.testing.assert_close(function(wave(10), 16), wave(16))


def test_a_cavity_is_stepped_as_by_our_solver_and_its_root_is_as_large_as_its_velocity(loaded):
    cavities, mac_steps = loaded("staggered.cavity"), loaded("staggered.mac_steps")
    one = replace(cavities.CAVITIES["P4 Re 100, 24 x 24"], points=12)
    sink, count = MemorySink(), 20
    case = replace(cavity.resized((12, 12)), scheme=RK4, duration=0.4, num_snapshots=2, steps_per_snapshot=count // 2)
    simulate(case, case.accept({"reynolds": 100.0}), sink)
    velocity = torch.tensor(np.asarray(sink.values)[:, :2])
    residual = one.circulation().potential.residual
    steps = mac_steps.StaggeredSteps(residual, p=one.parameters, device="cpu", dtype=torch.float64)
    found = steps.advanced(velocity[0][:, None], 0.4 / count, 0.01, count)[:, 0]
    torch.testing.assert_close(found, velocity[2], rtol=0, atol=1e-11)
    assert float(velocity[2].abs().max()) > 0.1
    root = loaded("staggered.potential_root").PotentialRoot(residual.grid)
    potential = mac_steps.potential_of(velocity[2, :1], 1 / 12)
    b = root.root(potential)
    torch.testing.assert_close(root.potential(b), potential)
    torch.testing.assert_close(one.velocity("steps", b), velocity[2], rtol=0, atol=1e-11)
    assert float(b.norm() / velocity[2].norm()) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("n", [4, 6, 8, 10])
def test_a_cavity_is_compared_on_a_coarser_grid_where_its_faces_are(n, loaded):
    def flow(m):
        upper, middle = (np.arange(m) + 1) / m, (np.arange(m) + 0.5) / m
        return np.stack([np.add.outer(upper**2, middle), np.multiply.outer(middle, 1 + upper**2)])[None]

    found = loaded("staggered.cavity").restricted(flow(24), n)
    np.testing.assert_allclose(found, flow(n), atol=1e-12)


def test_coarser_cavities_are_compared_with_the_truth_of_the_same_times(loaded, monkeypatch):
    cavities, known = loaded("staggered.cavity"), Future()
    one = replace(cavities.CAVITIES["P4 Re 100, 24 x 24"], points=8, end=2.0)
    known.set_result({"velocity": one.solved_on("cpu", *next(iter(one.steppings())))})
    monkeypatch.setattr(cavities, "reference", lambda *_: known)
    errors = {rival.name.split(",")[0]: rival.error() for rival in reversed(list(one.rivals("cpu")))}
    assert errors["explicit steps on 8 x 8"] == 0
    assert 0.01 < errors["explicit steps on 7 x 7"] < errors["explicit steps on 4 x 4"] < 1


def test_parts_of_a_plane_are_solved_by_themselves_with_the_forcing_of_their_own_points(loaded):
    plane = replace(loaded("staggered.planes").PLANES["P0"], truth=(64, 0.1))
    whole, halves, quarters = (line[1] for line in loaded("staggered.classical")._part_by_part(plane, "cpu", 1))
    assert whole < 1e-3 and whole < halves < 0.02 < quarters, (whole, halves, quarters)


def test_frequencies_are_found_in_cycles_a_unit_of_time_and_in_bins(loaded):
    t = 0.2 * np.arange(2500)
    signal = 3 + np.sin(2 * np.pi * 0.204 * t)
    assert loaded("staggered.channel_solver").frequency(signal, 0.2) == pytest.approx(0.204, rel=2e-3)
    steps = torch.arange(200, dtype=torch.float64)
    signals = torch.stack([2 + torch.sin(2 * math.pi * bins * steps / 200) for bins in (4.0, 6.5)], dim=1)
    found = loaded("staggered.shedding").mean_bin(signals)
    torch.testing.assert_close(found, torch.tensor([4.0, 6.5]).double(), rtol=0, atol=0.05)


def test_drag_is_the_force_along_the_flow_on_the_block(loaded):
    channel = loaded("staggered.channel").CHANNELS["P5, 60 x 20"]
    x = np.broadcast_to((np.arange(60)[:, None] + 0.5) / 4, (60, 20))
    # A pressure that falls by 1 a unit, between the cells before and behind the block, half a unit long and one high.
    energy, drag, across = channel.signals(np.zeros((2, 60, 20)), -x)
    assert (energy, across) == (0, 0) and drag == pytest.approx(0.75)
    flow = np.stack([np.ones((60, 20)), np.full((60, 20), 0.5)])
    energy, drag, across = channel.signals(flow * channel.potential.residual.grid.free, np.zeros((60, 20)))
    # Shear 2 u / h, h long at either side of the block, where one face has it on both its ends.
    assert across == pytest.approx(0.5) and drag == pytest.approx(2 * 2 / channel.reynolds)
    assert 0.6 < energy < 0.625


class ShedsByInflow:
    """A flow that sheds in bin 8 times its inflow."""

    def __init__(self, *_):
        pass

    def advanced(self, window, steps):
        return window

    def with_inflow(self, window, inflow):
        return inflow[:, None]

    def signal(self, window, steps):
        return torch.sin(2 * math.pi * 8 * window[:, 0] * torch.arange(steps)[:, None] / steps)


def test_the_inflow_is_brought_towards_the_wanted_bin_from_both_sides(loaded, monkeypatch):
    shedding, channel = loaded("staggered.shedding"), loaded("staggered.channel").CHANNELS["P5, 60 x 20"]
    monkeypatch.setattr(shedding, "Flow", ShedsByInflow)
    monkeypatch.setattr(shedding, "_gradients", lambda *_: iter(()))
    lines = list(shedding.measure_shedding("net", torch.nn.Identity(), channel, "cpu", quick=True))
    setup = lines[1][5]
    first, after = ([float(v) for v in re.search(rf"{words} ([\d., ]+)", setup)[1].strip(" ,").split(", ")]
                    for words in ("at first", "Adam"))  # fmt: skip
    assert first[0] < after[0] < 6 < after[1] < first[1]
    assert lines[1][1] == pytest.approx(max(6 - after[0], after[1] - 6), abs=0.01) and lines[0][1] == 0


def test_a_dye_goes_with_the_flow(loaded):
    control, like = loaded("staggered.control"), torch.zeros((), dtype=torch.float64)
    dye = control.Dye(32, 0.25, like)
    x, y = torch.meshgrid(*[2 * math.pi * torch.arange(32, dtype=torch.float64) / 32] * 2, indexing="ij")
    w = (x.sin() + (2 * y).cos())[None]
    u, v = dye.velocity(w)
    slope = [torch.fft.irfft2(k * torch.fft.rfft2(a)) for k, a in ((dye.kx, v), (dye.ky, u))]
    torch.testing.assert_close(slope[0] - slope[1], w)
    # Diffusion alone takes little of it; a shear across the stripes folds it.
    still, sheared = (float(dye.mixed([scale * torch.cos(y)[None]] * 9)) for scale in (0.0, 3.0))
    assert 0.99 < still < 1.0 and sheared < 0.9 * still


def rival(figures, name, error):
    return figures.Rival(name, lambda: error, lambda batch: math.nan), error


def test_a_network_is_compared_with_the_fastest_solver_that_reaches_its_error(loaded):
    compared, figures = loaded("neuralstagger").compared, loaded("staggered.figures")
    solvers = [rival(figures, *one) for one in (("coarse", 0.05), ("even", 0.02), ("fine", 0.01), ("finest", 0.001))]
    times = {"coarse": 0.1, "even": 4.0, "fine": 3.0, "finest": 9.0}
    faster, repaid = compared("net", "alone", (0.02, 1.0), times, solvers, 5.0)
    assert faster[1:5] == (3.0, "x", 1.0, 3.0) and faster[5].startswith("fine:")
    assert repaid[1] == 60 * 5.0 / (3.0 - 1.0)
    slower, never = compared("net", "alone", (0.06, 1.0), times, solvers, 5.0)
    assert slower[1] == pytest.approx(0.1) and slower[5].startswith("coarse:")
    assert never[1] is None and never[5].startswith("never")
    (alone,) = compared("net", "alone", (1e-4, 1.0), times, solvers, 5.0)
    assert "no classical solver" in alone[0] and alone[1] == 1e-4
