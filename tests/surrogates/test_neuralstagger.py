"""Staggered networks: exact decompositions, one residual with the solver, batched and single parts, gradients."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from headrace.cases.navier_stokes2d import differences, random_vorticity, stirring
from headrace.solvers import Dirichlet, Grid, MemorySink, Parameters
from headrace.solvers.mac import MAC_MIDPOINT
from headrace.solvers.mac_potential import PotentialResidual
from headrace.solvers.simulate import simulate
from headrace.solvers.vorticity import VORTICITY_SCHEMES
from headrace.solvers.vorticity_residual import VorticityResidual
from headrace.surrogates.autoregressive import Channels
from headrace.surrogates.convolution import BoxConv
from headrace.surrogates.data_free import StatePool, physics_loss, train_without_data
from headrace.surrogates.fourier_network import FourierNetwork
from headrace.surrogates.low_rank_mixer import LowRankMixer
from headrace.surrogates.stagger import Stagger
from headrace.surrogates.staggered_network import StaggeredNetwork
from headrace.surrogates.unet import UNet, UNetwork
from headrace.surrogates.unshuffled_network import UnshuffledNetwork

from ..solvers.mac_cases import box_boundary, cylinder, driven_box, make_case, street

STAGGERS = [
    Stagger((1, 1)), Stagger((2, 2)), Stagger((4, 2)), Stagger((3, 4), 2), Stagger((2, 1, 3), 3), Stagger((5,), 4),
]  # fmt: skip
SIZES = {1: (20,), 2: (12, 24), 3: (6, 4, 9)}
PERIODIC = (True, True)
LEVEL, LID = Dirichlet(0.0), Dirichlet(1.0)


def a_window(stagger, *, frames=1, fields=2, batch=3, dtype=torch.float64, seed=0):
    shape = SIZES[len(stagger.space)]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, stagger.time * frames, fields, *shape, generator=generator).to(dtype)


def convolutions(width=6, *, outputs=1):
    """A small network whose output is not zero at first."""

    def make(inputs):
        return torch.nn.Sequential(
            BoxConv(inputs, width, periodic=PERIODIC), torch.nn.GELU(), BoxConv(width, outputs, periodic=PERIODIC)
        )

    return make


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def networks(stagger, **options):
    return seeded(lambda: StaggeredNetwork(convolutions(), stagger, **options).double())


def vorticity(batch, n=16, *, frames=1, seed=0):
    rng = np.random.default_rng(seed)
    x = np.meshgrid(*[np.arange(n) / n] * 2, indexing="ij")
    fields = np.stack([random_vorticity(x, None, rng) for _ in range(batch * frames)])
    return torch.tensor(fields).reshape(batch, frames, 1, n, n)


def small_case(n=16, scheme=None, **changes):
    return replace(differences, grid=Grid(shape=(n, n), extent=(1.0, 1.0)), scheme=scheme, **changes)


def equation(n=16, **changes):
    return VorticityResidual(small_case(n, **changes), viscosity=1e-3, forcing=stirring)


# 1: the permutation


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("stagger", STAGGERS, ids=str)
def test_joining_the_parts_gives_the_window_back_bit_for_bit(stagger, dtype):
    window = (10 * a_window(stagger, frames=2)).to(dtype)
    parts = stagger.split(window)
    assert parts.shape[0] == math.prod(stagger.space) * stagger.time == stagger.parts
    assert parts.dtype == dtype and torch.equal(stagger.join(parts), window)


@pytest.mark.parametrize("stagger", STAGGERS, ids=str)
def test_parts_are_strided_slices_also_of_views(stagger):
    window = a_window(stagger, frames=2).transpose(3, -1).contiguous().transpose(3, -1)
    for index, (part, (k, *first)) in enumerate(zip(stagger.split(window), stagger.places, strict=True)):
        grid = [slice(i, None, s) for i, s in zip(first, stagger.space, strict=True)]
        assert torch.equal(part, window[(slice(None), slice(k, None, stagger.time), slice(None), *grid)])
        assert torch.equal(part, stagger.part(window, index))


def test_factors_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divide"):
        Stagger((5, 2)).split(a_window(Stagger((2, 2))))
    with pytest.raises(ValueError, match="3 frames"):
        Stagger((2, 2), 2).split(torch.zeros(1, 3, 1, 4, 4))
    with pytest.raises(ValueError, match="joins 4 parts"):
        Stagger((2, 2)).join(torch.zeros(3, 1, 1, 1, 4, 4))
    with pytest.raises(ValueError, match="at least 1"):
        Stagger((2, 0))


# 2: without factors it is the plain network


@pytest.mark.parametrize("reading", ["phase", "offset"])
def test_without_factors_it_is_the_plain_network_with_the_same_gradients(reading):
    staggered = seeded(lambda: StaggeredNetwork(convolutions(), Stagger((1, 1)), reading=reading, scale=0.2))
    plain = seeded(lambda: convolutions()(1))
    window = vorticity(2).float()
    loss = physics_loss(equation(), window[:, -1], staggered(window), 0.1).mean()
    expected = physics_loss(equation(), window[:, -1], window + 0.2 * plain(window[:, 0] / 0.2)[:, None], 0.1).mean()
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for found, wanted in zip(staggered.parameters(), plain.parameters(), strict=True):
        assert float((found.grad - wanted.grad).norm()) <= 1e-6 * float(wanted.grad.norm())


# 3, 4, 5: one discretisation


@pytest.mark.parametrize("stagger", [Stagger((2, 2)), Stagger((4, 2), 3)], ids=str)
def test_the_residual_of_the_joined_window_is_that_of_the_window(stagger):
    window, residual = vorticity(2, frames=4)[:, : 1 + stagger.time], equation()
    joined = stagger.join(stagger.split(window[:, 1:]))
    old = torch.cat((window[:, :1], joined[:, :-1]), 1)
    found, wanted = residual(old, joined, 0.0, 0.1), residual(window[:, :-1], window[:, 1:], 0.0, 0.1)
    assert float((found - wanted).abs().max()) <= 1e-12 * float(wanted.abs().max())


def middle(x):
    inside = True
    for line in x:
        inside = inside & (abs(line - 0.5) < 0.2)
    return inside


def walled(shape):
    """Return the equation between walls, one of which moves, around a block."""
    walls = box_boundary(len(shape), {0: {}, 1: {(0, 1): 1.0}, **({2: {}} if len(shape) == 3 else {})})
    case = make_case(shape, (1.0,) * len(shape), boundary=walls, scheme=MAC_MIDPOINT)
    return PotentialResidual(case, viscosity=0.01, p=Parameters({}), solid=middle)


def through(shape):
    """Return the equation of a stream past a cylinder."""
    case, base = street(shape, scheme=MAC_MIDPOINT), np.zeros((2, *shape))
    base[0] = 1.0
    return PotentialResidual(case, viscosity=0.01, p=case.accept({"reynolds": 100.0}), solid=cylinder, base=base)


@pytest.mark.parametrize(
    ("make", "shape", "stagger"),
    [
        (walled, (8, 12), Stagger((2, 3), 2)), (walled, (8, 6, 4), Stagger((2, 3, 2))),
        (through, (16, 8), Stagger((4, 2))),
    ],
    ids=["walls", "walls in space", "inflow and outflow"],
)
def test_it_is_so_whatever_the_sides(make, shape, stagger):
    residual, components = make(shape), 2 if len(shape) == 2 else 4
    generator = torch.Generator().manual_seed(0)
    window = torch.randn(2, 1 + stagger.time, components, *shape, generator=generator, dtype=torch.float64)
    joined = stagger.join(stagger.split(window[:, 1:]))
    found = residual.correction(torch.cat((window[:, :1], joined[:, :-1]), 1), joined, 0.0, 0.1)
    wanted = residual.correction(window[:, :-1], window[:, 1:], 0.0, 0.1)
    assert float(wanted.abs().max()) > 1
    assert float((found - wanted).abs().max()) <= 1e-12 * float(wanted.abs().max())


def test_a_trajectory_of_the_solver_makes_the_physics_loss_vanish():
    case = small_case(duration=0.4, num_snapshots=4, steps_per_snapshot=1)
    sink = MemorySink()
    simulate(case, case.accept({"nu": 1e-3}), sink, simulation=1)
    states = np.asarray(sink.values)[:, 0]
    residual = equation()
    found = [residual(a, b, 0.0, 0.1) for a, b in pairwise(states)]
    assert np.abs(found).max() <= 1e-8
    window = torch.tensor(states)[None, :, None]
    assert float(physics_loss(residual, window[:, 0], window[:, 1:], 0.1)) <= 1e-16
    spoiled = window.clone()
    spoiled[0, 2, 0, 3, 3] += 1e-3
    assert float(physics_loss(residual, spoiled[:, 0], spoiled[:, 1:], 0.1)) > 1e-10


@pytest.mark.parametrize("scheme", VORTICITY_SCHEMES, ids=lambda s: type(s).__name__)
def test_a_step_on_tensors_makes_the_residual_vanish(scheme):
    residual, old = equation(scheme=scheme), vorticity(2)[:, 0]
    new = residual.step(old, 0.0, 0.05)
    assert float(residual(old, new, 0.0, 0.05).abs().max()) <= 1e-10
    assert float(residual(old, old, 0.0, 0.05).abs().max()) > 1e-2


@pytest.mark.parametrize(("viscosity", "dt"), [(1e-3, 0.01), (0.2, 0.1)])
def test_the_correction_is_the_error_of_a_step_to_first_order(viscosity, dt):
    """Also where diffusion takes most of the state in a step, and all of it from the shortest waves."""
    residual = VorticityResidual(small_case(), viscosity=viscosity, forcing=stirring)
    old = 0.1 * vorticity(1)[:, 0]
    new = residual.step(old, 0.0, dt)
    error = 1e-6 * torch.randn(old.shape, generator=torch.Generator().manual_seed(5), dtype=old.dtype)
    error = error - error.mean()
    found = residual.correction(old, new + error, 0.0, dt)
    assert float((found - error).norm() / error.norm()) < 0.05


# 6, 7, 9: parts alone, together, and in a loop


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("reading", ["phase", "offset"])
@pytest.mark.parametrize("position", [None, (True, False)])
def test_all_parts_in_one_call_equal_a_loop_over_them(reading, shared, position):
    stagger = Stagger((2, 4), 2)
    network = networks(stagger, reading=reading, shared=shared, position=position, scale=0.3)
    window = vorticity(2, frames=2)
    expected = torch.empty_like(window)
    source = window if reading == "phase" else window[:, -1:].expand_as(window)
    for index in range(stagger.parts):
        part = network.alone(index, stagger.part(source, index)[:, 0])
        stagger.part(expected, index)[:, 0] = part
    torch.testing.assert_close(network(window), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [lambda inputs: unet(inputs), lambda inputs: fno(inputs)], ids=["unet", "fno"])
def test_one_after_another_equals_the_batch_with_gradients(make):
    window, found = vorticity(2, frames=2), []
    for streams in (0, 1):
        network = seeded(lambda: StaggeredNetwork(
            make, Stagger((2, 2), 2), position=(True, True), scale=0.2, streams=streams,  # noqa: B023
        ).double())  # fmt: skip
        new = network(window)
        new.square().sum().backward()
        found.append([new.detach(), *(p.grad for p in network.parameters())])
    scale = max(float(one.abs().max()) for one in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12 * scale)


@pytest.mark.parametrize(("make", "some"), [(lambda inputs: unet(inputs), True), (lambda inputs: fno(inputs), False)],
                         ids=["unet", "fno"])  # fmt: skip
def test_weights_of_convolutions_alone_are_laid_out_for_them(make, some):
    """A GPU reads the channels of a convolution side by side; a spectral layer's matrices stay as they are."""
    network = StaggeredNetwork(make, Stagger((2, 2), 2), streams=1)
    # Of one channel, or a kernel of one point, both layouts are the same.
    steps = [values.stride(2) for values in network.stacked if values.ndim == 5 and min(values.shape[2:]) > 1]
    assert steps and all((step == 1) == some for step in steps)


def test_a_classical_step_of_every_part_is_corrected_batched_and_alone():
    stagger, window = Stagger((2, 4), 2), vorticity(2, frames=2)
    pace = torch.arange(1.0, 17.0, dtype=torch.float64).reshape(-1, 1, 1, 1, 1)

    def guess(parts, index):
        return parts.roll(1, -1) * (pace if index is None else pace[index])

    network = networks(stagger, guess=guess, gain=0.1, scale=0.3)
    without = networks(stagger, guess=guess, gain=0.0, scale=0.3)
    expected, guessed = torch.empty_like(window), torch.empty_like(window)
    for index in range(stagger.parts):
        frame = stagger.part(window, index)[:, 0]
        stagger.part(expected, index)[:, 0] = network.alone(index, frame)
        stagger.part(guessed, index)[:, 0] = guess(frame[None], index)[0]
    torch.testing.assert_close(network(window), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(without(window), guessed)
    # What is added is a tenth of what the same weights add without the gain.
    full = networks(stagger, guess=guess, scale=0.3)
    torch.testing.assert_close(10 * (network(window) - guessed), full(window) - guessed, rtol=1e-6, atol=1e-9)


def test_a_part_alone_for_100_steps_equals_its_slice_of_the_full_run():
    stagger = Stagger((2, 2))
    network, window = networks(stagger, shared=True, scale=0.05), vorticity(1)
    with torch.no_grad():
        alone = [stagger.part(window, i)[:, 0] for i in range(stagger.parts)]
        for _ in range(100):
            window = network(window)
            alone = [network.alone(i, frame) for i, frame in enumerate(alone)]
    for index, frame in enumerate(alone):
        torch.testing.assert_close(frame, stagger.part(window, index)[:, 0], rtol=1e-9, atol=1e-11)


def test_it_does_so_bit_for_bit_where_parts_run_one_after_another():
    stagger = Stagger((2, 2))
    network, window = networks(stagger, scale=0.05, streams=1), vorticity(1)
    with torch.no_grad():
        alone = [stagger.part(window, i)[:, 0] for i in range(stagger.parts)]
        for _ in range(100):
            window = network(window)
            alone = [network.alone(i, frame) for i, frame in enumerate(alone)]
    assert all(torch.equal(frame, stagger.part(window, i)[:, 0]) for i, frame in enumerate(alone))
    assert bool(window.isfinite().all()) and float(window.abs().max()) > 0


def test_without_exchange_a_part_is_bitwise_blind_to_the_others():
    stagger = Stagger((2, 2))
    network, window = networks(stagger), vorticity(1)
    other = window.clone()
    stagger.part(other, 3)[:] += 1.0
    with torch.no_grad():
        first, second = network(window), network(other)
    assert all(torch.equal(stagger.part(first, i), stagger.part(second, i)) for i in range(3))
    assert not torch.equal(stagger.part(first, 3), stagger.part(second, 3))
    mixing = networks(stagger, exchange=2)
    assert not torch.equal(stagger.part(mixing(window), 0), stagger.part(mixing(other), 0))
    with pytest.raises(ValueError, match="exchange"):
        mixing.alone(0, stagger.part(window, 0)[:, 0])


@pytest.mark.parametrize("cells", [(1, 0), (0, 1), (3, 2)])
def test_with_shared_weights_moving_the_input_moves_the_output(cells):
    stagger = Stagger((2, 4))
    network, window = networks(stagger, shared=True, embedding=0), vorticity(2)
    moved = network(window.roll(cells, (-2, -1)))
    torch.testing.assert_close(moved, network(window).roll(cells, (-2, -1)), rtol=1e-12, atol=1e-13)
    independent = networks(stagger)
    away = independent(window.roll(cells, (-2, -1))) - independent(window).roll(cells, (-2, -1))
    assert float(away.detach().abs().max()) > 1e-4


@pytest.mark.parametrize("stagger", [Stagger((1, 1)), Stagger((2, 4), 2)], ids=str)
def test_the_unshuffled_rival_sees_all_parts_and_is_plain_without_factors(stagger):
    def make(inputs, outputs):
        return convolutions(outputs=outputs)(inputs)

    rival = seeded(lambda: UnshuffledNetwork(make, stagger, position=PERIODIC, scale=0.2).double())
    window = vorticity(2, frames=stagger.time)
    new = rival(window)
    assert new.shape == window.shape
    if stagger.parts == 1:
        plain = seeded(lambda: StaggeredNetwork(convolutions(), stagger, position=PERIODIC, scale=0.2).double())
        torch.testing.assert_close(new, plain(window), rtol=1e-12, atol=1e-13)
    still = UnshuffledNetwork(lambda inputs, outputs: torch.nn.Conv2d(inputs, outputs, 1), stagger).double()
    for values in still.parameters():
        torch.nn.init.constant_(values, 0.0)
    assert torch.equal(still(window), window[:, -1:].expand_as(window)), "it gives changes since the last frame"
    for index in range(stagger.parts):
        other = window.clone()
        stagger.part(other, index)[:] += 1.0
        for seen in stagger.split(rival(other) - new):
            assert float(seen.detach().abs().max()) > 1e-6


# 8: gradients through roll-outs


@pytest.mark.parametrize("horizon", [1, 10, 50])
def test_gradients_through_roll_outs_agree_with_differences(horizon):
    network, window = networks(Stagger((2, 2)), scale=0.02), vorticity(1, n=8)
    start = window.clone().requires_grad_(True)

    def end(state):
        for _ in range(horizon):
            state = network(state)
        return (state * weight).sum()

    weight = vorticity(1, n=8, seed=9)
    (gradient,) = torch.autograd.grad(end(start), start)
    found, wanted = [], []
    with torch.no_grad():
        for seed in range(8):
            direction = vorticity(1, n=8, seed=20 + seed)
            found.append(float((gradient * direction).sum()))
            wanted.append(float(end(window + 1e-5 * direction) - end(window - 1e-5 * direction)) / 2e-5)
    found, wanted = np.array(found), np.array(wanted)
    assert np.linalg.norm(found - wanted) <= 1e-3 * np.linalg.norm(wanted)
    assert found @ wanted >= 0.99 * np.linalg.norm(found) * np.linalg.norm(wanted)


# Backbones


def unet(inputs):
    form = UNet(width=8, multipliers=(1, 2), blocks=1)
    return UNetwork(Channels(inputs=inputs, states=1, outputs=1, conditions=0), form, PERIODIC)


def fno(inputs):
    return FourierNetwork(inputs, 1, 8, modes=(3, 3), periods=(1.0, 1.0), layers=2)


def mixer(inputs):
    network = LowRankMixer(inputs, 1, shape=(8, 8), width=16, blocks=2, groups=4)
    torch.nn.init.normal_(network.output.weight)
    return network


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams_and_recorded_steps_change_no_result():
    stagger = Stagger((2, 2), 2)
    window = vorticity(2, frames=2).float().cuda()
    for make in (unet, fno):
        found = []
        for streams in (0, 1, 8):
            network = seeded(lambda: StaggeredNetwork(make, stagger, scale=0.2, streams=streams)).cuda()  # noqa: B023
            # Without TF32, whose rounding differs with the convolution that is chosen.
            with torch.backends.cudnn.flags(allow_tf32=False):
                new = network(window)
                new.square().sum().backward()
            found.append([new.detach(), *(p.grad for p in network.parameters())])
        largest = max(float(one.abs().max()) for one in found[0])
        for one, *others in zip(*found, strict=True):
            # A slope that a norm makes zero is rounding noise alone.
            tolerance = 1e-3 * max(float(one.abs().max()), 1e-4 * largest)
            for other in others:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=tolerance)
    losses = []
    for graph in (False, True):
        network = seeded(lambda: StaggeredNetwork(fno, stagger, scale=0.2)).cuda()
        pool = StatePool(lambda count: vorticity(count, frames=2).float().cuda(), 8, lifetime=20, largest=100.0)
        rate = torch.tensor(1e-3, device="cuda")
        optimiser = torch.optim.Adam(network.parameters(), lr=rate, capturable=True)
        training = train_without_data(network, equation(), pool, optimiser, dt=0.1, batch=8, graph=graph)
        losses.append([next(training) for _ in range(40)])
    # Recording takes steps of its own, so that the two are not the same training.
    np.testing.assert_allclose(np.mean(losses[0][-5:]), np.mean(losses[1][-5:]), rtol=0.5)


@pytest.mark.parametrize("make", [unet, fno, mixer])
def test_backbones_run_batched_and_alone_alike(make):
    stagger = Stagger((2, 2))
    network = seeded(lambda: StaggeredNetwork(make, stagger, scale=0.2)).float()
    window = vorticity(2).float()
    new = network(window)
    for index in range(4):
        alone = network.alone(index, stagger.part(window, index)[:, 0])
        torch.testing.assert_close(stagger.part(new, index)[:, 0], alone, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # some take other ways without gradients
        torch.testing.assert_close(network(window), new, rtol=1e-5, atol=1e-5)
    new.square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in network.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in network.parameters())


def test_the_mixer_reaches_the_whole_grid_and_refuses_another():
    network = seeded(lambda: mixer(1))
    x = torch.zeros(1, 1, 8, 8)
    other = x.clone()
    other[0, 0, 0, 0] = 1.0
    assert bool(((network(x) - network(other)).abs() > 0).all())
    with pytest.raises(ValueError, match="grids of"):
        network(torch.zeros(1, 1, 8, 12))
    with pytest.raises(ValueError, match="multiple"):
        LowRankMixer(1, 1, shape=(8, 8), width=6, groups=4)


# Training without data


def test_the_pool_writes_back_restarts_and_counts_divergence():
    pool = StatePool(lambda count: torch.zeros(count, 1, 1, 4), 6, lifetime=3, largest=10.0)
    places, windows = pool.draw(6)
    assert sorted(places.tolist()) == list(range(6))
    windows = windows + 1
    windows[0], windows[1] = math.nan, 11.0
    pool.write_back(places, windows)
    assert pool.diverged == 2 and bool((pool.states[places[:2]] == 0).all())
    assert set(pool.states.unique().tolist()) <= {0.0, 1.0}
    for _ in range(3):
        places, windows = pool.draw(6)
        pool.write_back(places, windows + 1)
    assert float(pool.states.max()) <= 3 and pool.restarted >= 6 and pool.diverged == 2
    pool.feed(torch.full((2, 1, 1, 4), 7.0))
    assert int((pool.states[:, 0, 0, 0] == 7).sum()) == 2


def test_simulations_of_a_pool_are_of_all_ages_and_start_again_once_a_lifetime():
    pool = StatePool(lambda count: torch.zeros(count, 1), 6000, lifetime=4, largest=10.0)
    pool.write_back(*pool.draw(6000))
    assert abs(pool.restarted - 1500) < 4 * math.sqrt(6000 * 3 / 16)
    for _ in range(7):
        pool.write_back(*pool.draw(6000))
    assert pool.restarted == 12000
    for _ in range(2):
        pool.write_back(*pool.draw(6000), 2)
    assert pool.restarted == 18000


class Blows:
    """An equation in which nothing changes, whose error is no number where the old state is beyond 1."""

    def correction(self, old, new, t, dt):
        return new - torch.where(old.abs().amax((-2, -1), keepdim=True) > 1, torch.nan, old)

    def size(self, fields):
        return fields


def test_a_flow_that_blows_up_teaches_nothing_and_starts_again():
    network = torch.nn.Conv3d(1, 1, 1).double()
    pool = StatePool(lambda count: torch.full((count, 1, 1, 4, 4), 0.5).double(), 2, lifetime=9, largest=10.0)
    pool.states[1] = 2.0
    good = pool.states[:1].clone()
    wanted = copy.deepcopy(network)
    (0.5 * (wanted(good) - good).square().mean() / good.square().mean()).backward()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
    next(train_without_data(network, Blows(), pool, optimiser, dt=1.0, batch=2, clip=1e9))
    for one, other in zip(network.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert pool.diverged == 1
    assert (pool.states.abs() < 1).sum() >= 16


class Grows(torch.nn.Module):
    """A network that overflows for large states, whatever its weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, window):
        return self.weight * window.exp()


def test_a_network_that_gives_no_number_keeps_its_weights_and_learns_on():
    pool = StatePool(lambda count: torch.full((count, 1, 1, 4, 4), 0.5), 2, lifetime=9, largest=1e30)
    pool.states[1] = 1e4
    network = Grows()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    training = train_without_data(network, Blows(), pool, optimiser, dt=1.0, batch=2)
    next(training)
    assert network.weight.item() == pytest.approx(0.7)
    assert pool.diverged == 1
    assert math.isfinite(next(training))
    assert network.weight.item() < 0.7


class Identity:
    """The error of a step is the new state."""

    def correction(self, old, new, t, dt):
        return new

    def size(self, fields):
        return torch.ones_like(fields)


def test_what_a_flow_is_lost_by_counts_by_its_logarithm():
    network = torch.nn.Conv3d(1, 1, 1, bias=False).double()
    torch.nn.init.constant_(network.weight, 1.0)
    pool = StatePool(lambda count: torch.ones(count, 1, 1, 2, 2).double(), 2, lifetime=9, largest=1e9)
    pool.states[1] = 300.0
    training = train_without_data(
        network, Identity(), pool, torch.optim.SGD(network.parameters(), lr=0.0), dt=1.0, batch=2, clip=1e9, lost=4.0
    )
    assert next(training) == pytest.approx(0.5 * (1 + 4 * (1 + math.log(9e4 / 4))))
    # Of w² the slope is 2, and of 4 log(9e4 w²) it is 8: the lost flow does not outweigh the other.
    assert float(network.weight.grad) == pytest.approx(0.5 * (2 + 8))
    assert pool.diverged == 1


class OfTheLast(Identity):
    """The same in units of the last state."""

    def size(self, fields):
        return fields


def test_a_step_grades_every_window_of_a_roll_out_and_its_gradient_goes_back_through_all():
    network = torch.nn.Conv3d(1, 1, 1, bias=False).double()
    torch.nn.init.constant_(network.weight, 1.1)
    pool = StatePool(lambda count: torch.ones(count, 1, 1, 2, 2).double(), 2, lifetime=4, largest=1e9)
    pool.feed(pool.states.clone())  # of one age

    def training(**options):
        return train_without_data(
            network, OfTheLast(), pool, torch.optim.SGD(network.parameters(), lr=0.0), dt=1.0, batch=2, unroll=2,
            data_term=lambda network: 3 * network.weight.sum(), **options,
        )  # fmt: skip

    # (w²/1² + w⁴/w²) / 2 + 3 w, where the units w² of the second window are given.
    assert next(training(clip=1e9)) == pytest.approx(1.1**2 + 3 * 1.1)
    assert float(network.weight.grad) == pytest.approx((2 * 1.1 + 4 * 1.1) / 2 + 3)
    torch.testing.assert_close(pool.states, torch.full_like(pool.states, 1.1**2))
    next(training(clip=0.1))
    assert float(network.weight.grad) == pytest.approx(0.1)
    assert pool.restarted == 2, "a step of two windows is two of a lifetime"


def test_lifetimes_in_octaves_are_as_often_one_window_as_any_other_octave():
    pool = StatePool(lambda count: torch.zeros(count, 1), 6000, lifetime=64, largest=10.0, octaves=True)
    pool.feed(torch.zeros(6000, 1))
    pool.write_back(*pool.draw(6000))
    assert abs(pool.restarted - 1000) < 4 * math.sqrt(6000 * 5 / 36)


def test_saving_memory_computes_windows_again_and_changes_no_loss():
    losses, calls = [], []
    for saving in (False, True):
        network, called = networks(Stagger((2, 2)), scale=0.2), []
        network.register_forward_pre_hook(lambda *_, called=called: called.append(1))
        pool = StatePool(lambda count: vorticity(count), 8, lifetime=20, largest=100.0)
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
        training = train_without_data(
            network, equation(), pool, optimiser, dt=0.1, batch=4, unroll=2, save_memory=saving
        )
        losses.append([next(training) for _ in range(4)])
        calls.append(len(called))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-10)
    assert calls == [8, 16]


@pytest.mark.parametrize(("stagger", "reading"), [(Stagger((2, 2)), "phase"), (Stagger((2, 1), 2), "offset")], ids=str)
def test_training_without_data_comes_nearer_to_the_solver(stagger, reading):
    residual, dt = equation(), 0.2

    def make(inputs):
        return FourierNetwork(inputs, 1, 16, modes=(3, 3), periods=(1.0, 1.0), layers=2)

    network = seeded(lambda: StaggeredNetwork(make, stagger, reading=reading, position=PERIODIC, scale=0.2))
    seeds = iter(range(100, 10_000))

    def fresh(count):
        return vorticity(count, seed=next(seeds)).float().expand(-1, stagger.time, -1, -1, -1).clone()

    pool = StatePool(fresh, 64, lifetime=10, largest=100.0)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    training = train_without_data(network, residual, pool, optimiser, dt=dt, batch=16)
    for _ in range(200):
        next(training)
    held_out = vorticity(4, seed=1)
    truth = [held_out[:, 0]]
    for _ in range(4):
        truth.append(residual.step(truth[-1], 0.0, dt))
    window = held_out.float().expand(-1, stagger.time, -1, -1, -1)
    with torch.no_grad():
        for _ in range(4 // stagger.time):
            window = network(window)
    error = float((window[:, -1] - truth[-1]).norm() / truth[-1].norm())
    persistence = float((truth[0] - truth[-1]).norm() / truth[-1].norm())
    assert error < 0.5 * persistence, (error, persistence)


def test_a_lid_sets_a_box_in_motion_without_data():
    case = driven_box(shape=(8, 8), scheme=MAC_MIDPOINT, num_snapshots=8, steps_per_snapshot=1, duration=0.8)
    steady = replace(case, boundary={**case.boundary, "u": {"x": case.boundary["u"]["x"], "y": (LEVEL, LID)}})
    equation = PotentialResidual(steady, viscosity=0.01, p=Parameters({}))

    def make(inputs):
        return UNetwork(
            Channels(inputs=inputs, states=2, outputs=2, conditions=0), UNet(width=8, multipliers=(1, 2), blocks=1),
            (False, False),
        )  # fmt: skip

    network = seeded(
        lambda: StaggeredNetwork(make, Stagger((2, 2)), fields=2, position=(False, False), exchange=2, scale=0.02)
    ).double()
    pool = StatePool(lambda count: 1e-3 * torch.randn(count, 1, 2, 8, 8).double(), 16, lifetime=8, largest=10.0)
    training = train_without_data(
        network, equation, pool, torch.optim.Adam(network.parameters(), lr=3e-3), dt=0.1, batch=8
    )
    losses = [next(training) for _ in range(60)]
    assert np.isfinite(losses).all() and pool.restarted > 0
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])
