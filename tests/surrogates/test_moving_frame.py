"""Frames that move: the map and its inverse, the same residual in every frame, and equations solved in them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.cases import transport
from headrace.solvers import Case, Dirichlet, Grid, Neumann, Uniform
from headrace.solvers.parameters import Seed
from headrace.surrogates import LPINN, Problem, WindowBatch, load_surrogate
from headrace.surrogates.case_on_jets import flow_of
from headrace.surrogates.jet import Jet, pairs
from headrace.surrogates.least_squares import levenberg_marquardt, residuals_and_rows
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.places import Place, Points
from headrace.surrogates.transport_network import TransportNetwork
from tests.cases.exact_solutions import cole_hopf

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("double")


def burgers(u, d, p, t):
    """∂u/∂t + u·∇u = ν ∇²u."""
    return p.nu * d.laplacian(u) - d.advect(u, u)


def stretching(u, d, p, t):
    """∂u/∂t + λ x ∂u/∂x = ν ∂²u/∂x²."""
    return p.nu * d.laplacian(u) - d.advect((p.rate * d.x[0],), u)


def shear(u, d, p, t):
    """∂u/∂t + w·∇u = ν ∇²u in a periodic plane."""
    return p.nu * d.laplacian(u) - d.advect((1 + 0.3 * np.sin(d.x[1]), 0.4 * np.cos(d.x[0])), u)


def wave(x, p, rng):
    return -np.sin(np.pi * x[0]) + p.C


LINE = Case(
    name="burgers", fields=("u",), grid=Grid(shape=(64,), extent=(2.0,), origin=(-1.0,)), rhs=burgers, initial=wave,
    parameters={"nu": Uniform(0.003, 0.3), "C": Uniform(-1.0, 60.0)}, duration=0.5, num_snapshots=5,
)  # fmt: skip
PLANE = Case(
    name="plane", fields=("u",), grid=Grid(shape=(16, 16), extent=(2 * np.pi, 2 * np.pi)), rhs=shear,
    initial=lambda x, p, rng: np.sin(x[0]) * np.cos(x[1]), parameters={"nu": Uniform(0.01, 0.1)}, duration=0.5,
    num_snapshots=5,
)  # fmt: skip
OPEN = Case(
    name="stretch", fields=("u",), grid=Grid(shape=(64,), extent=(8.0,), origin=(-4.0,)), rhs=stretching,
    initial=lambda x, p, rng: np.exp(-x[0] ** 2 / 0.5), boundary=Dirichlet(0.0), duration=1.0, num_snapshots=5,
    parameters={"nu": Uniform(0.01, 0.1), "rate": Uniform(-1.0, 1.0)},
)  # fmt: skip


def solved_by(case, frame, *, widths=(12, 12), harmonics=1, floor=0.1, seed=0, perturbed=0.0, open_walls=None):
    lagrangian = frame == "lagrangian"
    net = TransportNetwork(Problem.of(case), widths=widths, harmonics=harmonics, lagrangian=lagrangian, seed=seed)
    open_walls = not any(case.periodic) if open_walls is None else open_walls
    net.use(MovingFrame(case, frame=frame, floor=floor, open_walls=open_walls))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight += perturbed * torch.randn(weight.shape, generator=generator)
    return net


def points_of(case, row, count, seed=0, low=0.0):
    generator = torch.Generator().manual_seed(seed)
    grid = case.grid
    unit = torch.rand(grid.ndim, count, generator=generator)
    labels = torch.tensor(grid.origin)[:, None] + unit * torch.tensor(grid.extent)[:, None]
    times = low + (case.duration - low) * torch.rand(count, generator=generator)
    return Points(
        labels=labels, times=times, rows=torch.tensor([row]), row_of=torch.zeros(count, dtype=torch.long)
    )  # fmt: skip


LINE_AND_PLANE = pytest.mark.parametrize("case,row", [(LINE, [0.05, 3.0]), (PLANE, [0.05])], ids=["line", "plane"])
FRAMES = ("eulerian", "galilean", "limited", "lagrangian")


def frames_of(case):
    return FRAMES if case is LINE else (*FRAMES, "traced")


@pytest.mark.parametrize(
    "case,row,frame",
    [*((LINE, [0.05, 3.0], frame) for frame in FRAMES), *((PLANE, [0.05], frame) for frame in frames_of(PLANE)),
     (OPEN, [0.05, -1.0], "traced")], ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_jacobian_velocity_and_inverse(case, row, frame):
    net = solved_by(case, frame, perturbed=0.05)
    points = points_of(case, row, 60)
    points = Points(labels=points.labels, times=0.4 * points.times, rows=points.rows, row_of=points.row_of)
    place, h = net.place(points), 1e-5

    def at(labels, times):
        moved = Points(labels=labels, times=times, rows=points.rows, row_of=points.row_of)
        return torch.stack([part.value for part in net.place(moved).x])

    for axis in range(case.grid.ndim):
        shift = torch.zeros(case.grid.ndim, 1)
        shift[axis] = h
        difference = (at(points.labels + shift, points.times) - at(points.labels - shift, points.times)) / (2 * h)
        assert (place.matrix()[:, :, axis].T - difference).abs().max() < 1e-7
    rate = (at(points.labels, points.times + h) - at(points.labels, points.times - h)) / (2 * h)
    assert (place.velocity - rate).abs().max() < 1e-7
    if frame != "eulerian":  # elsewhere the identity
        where = points.at(torch.stack([part.value for part in place.x]).detach())
        labels = net.labels_at(where)
        assert (labels - points.labels).abs().max() < 1e-11
        back = torch.stack([part.value for part in net.place(points.at(labels)).x])
        assert (back - where.labels).abs().max() < 1e-12 * (1 + where.labels.abs().max())


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_minors_give_the_inverse_of_a_map(ndim):
    parts = torch.rand(ndim, ndim, 7) + 2 * torch.eye(ndim)[:, :, None]
    place = Place(x=tuple(Jet(row[0], list(row), {}) for row in parts), velocity=parts[0])
    assert torch.allclose(place.inverse() @ place.matrix(), torch.eye(ndim), atol=1e-14)


@LINE_AND_PLANE
def test_the_residual_of_a_state_in_space_is_the_same_in_every_frame(case, row):
    """w(x, t) is given in space; its derivatives in each frame's labels come from the frame, and must cancel there."""
    found = []
    ndim = case.grid.ndim
    for frame in frames_of(case):
        net = solved_by(case, frame, perturbed=0.05)
        fixed = points_of(case, row, 50)
        points = fixed.at(net.labels_at(fixed))
        place = net.place(points)
        t = points.times
        x = [part.value.detach() for part in place.x]
        k = torch.arange(1.0, ndim + 1)
        phase = sum(k[i] * x[i] for i in range(ndim)) - 2 * t
        phase_x = [sum(k[m] * (0.0 if place.x[m].gradient[i] is None else place.x[m].gradient[i])
                       for m in range(ndim)) for i in range(ndim)]  # fmt: skip
        phase_xx = {key: sum(k[m] * (0.0 if place.x[m].hessian[key] is None else place.x[m].hessian[key])
                             for m in range(ndim)) for key in pairs(ndim)}  # fmt: skip
        rate = (torch.cos(phase) * (k @ place.velocity - 2))[None]
        u = Jet(
            torch.sin(phase)[None], [(torch.cos(phase) * g)[None] for g in phase_x],
            {(i, j): (torch.cos(phase) * h - torch.sin(phase) * phase_x[i] * phase_x[j])[None]
             for (i, j), h in phase_xx.items()}, 2, True,
        )  # fmt: skip
        found.append(net.moving.residual(points, u, rate, place)[0].detach())
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-10 * found[0].abs().max()


def test_rows_of_the_least_squares_are_those_of_autograd():
    net = solved_by(LINE, "lagrangian", widths=(5, 5), perturbed=0.1)
    points = points_of(LINE, [0.05, 1.0], 6)
    value, rows = residuals_and_rows(net, points)
    nets = (net.state, net.displacement)
    weights = [w for one in nets for pair in zip(one.weights, one.biases, strict=True) for w in pair]
    flat = net.residual(points).reshape(-1)
    assert torch.allclose(flat, value)
    for index in range(len(flat)):
        parts = torch.autograd.grad(flat[index], weights, retain_graph=True, allow_unused=True)
        whole = torch.cat([torch.zeros(w.numel()) if g is None else g.reshape(-1)
                           for w, g in zip(weights, parts, strict=True)])  # fmt: skip
        assert (whole - rows[index]).abs().max() < 1e-12 * (1 + whole.abs().max())


def fitted(case, row, frame, *, steps, count=400, **kwargs):
    net = solved_by(case, frame, **kwargs)
    fit = levenberg_marquardt(net, lambda step: points_of(case, row, count, seed=step + 1), steps=steps)
    return net, fit


def error_of(net, case, row, exact, offset=0.0):
    points = points_of(case, row, 500, seed=999)
    with torch.no_grad():
        found = net.values_at(points)[0].numpy()
    truth = exact(points.labels[0].numpy(), points.times.numpy())
    return np.linalg.norm(found - truth) / np.linalg.norm(truth - offset)


@pytest.mark.parametrize("rate", [1.0, -1.0])
def test_diffusion_in_a_frame_that_stretches(rate):
    """Without the Jacobian the error is 15 to 36 per cent."""
    nu, variance0 = 0.05, 0.25

    def exact(x, t):
        back = np.exp(-rate * t)
        variance = variance0 + nu * (1 - np.exp(-2 * rate * t)) / rate
        return np.sqrt(variance0 / variance) * np.exp(-((x * back) ** 2) / (2 * variance))

    net, _ = fitted(OPEN, [nu, rate], "lagrangian", steps=60, widths=(16, 16))
    assert error_of(net, OPEN, [nu, rate], exact) < 1e-3


def test_viscous_burgers_is_solved_alike_at_every_bulk_speed():
    errors = []
    for C in (0.0, 50.0):
        def exact(x, t, C=C):
            place = (x - C * t + 1) % 2 - 1
            return np.array([cole_hopf(np.array([a]), b, 0.05, lambda y: np.cos(np.pi * y) / np.pi, 2.0)[0] + C
                             for a, b in zip(place, t, strict=True)])  # fmt: skip

        net, fit = fitted(LINE, [0.05, C], "limited", steps=40)
        points = points_of(LINE, [0.05, C], 120, seed=7, low=0.05)
        with torch.no_grad():
            found = net.values_at(points)[0].numpy()
        truth = exact(points.labels[0].numpy(), points.times.numpy())
        errors.append(np.linalg.norm(found - truth) / np.linalg.norm(truth - C))
        assert fit.residual < 0.05
        x = torch.linspace(-1, 1, 257)[:-1]
        late = Points(labels=x[None], times=torch.full((256,), 0.4), rows=points.rows,
                      row_of=torch.zeros(256, dtype=torch.long))  # fmt: skip
        with torch.no_grad():
            assert abs(net.values_at(late).mean() - C) < 1e-3  # mass is kept
    assert max(errors) < 2e-3 and max(errors) < 3 * min(errors), errors


def test_the_evaluation_of_an_exact_network_is_exact():
    """Without diffusion an untrained lagrangian network holds the solution before the shock."""
    case = with_rhs(burgers, duration=0.25)
    net = solved_by(case, "lagrangian")
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
    points = points_of(case, [0.05, 4.0], 300)
    points = Points(labels=points.labels, times=points.times, rows=points.rows, row_of=points.row_of)
    u = net.values_at(points)[0]
    implied = -torch.sin(math.pi * (points.labels[0] - u * points.times)) + 4.0
    assert (u - implied).abs().max() < 1e-12
    assert net.min_jacobian(points)[0] > 0


def test_a_solid_that_turns_once_along_traced_paths_is_held_by_an_untrained_network():
    net = solved_by(transport.rotation, "traced")
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
    points = points_of(transport.rotation, [2 * math.pi, 0.0], 300)
    p = transport.rotation.accept({"omega": 2 * math.pi, "nu": 0.0})
    truth = transport.exact("transport_rotation", tuple(points.labels.numpy()), points.times.numpy(), p)
    assert np.abs(net.values_at(points)[0].detach().numpy() - truth).max() < 1e-5
    residual = net.residual(points)
    assert residual.abs().max() < 1e-4  # ∂x/∂t is that of the numerical path, not quite v
    prepared = net.moving.prepared(points)  # for a CUDA graph, which traces no paths
    assert net.moving.recordable and torch.allclose(net.residual(prepared), residual, rtol=0, atol=1e-12)
    assert prepared.at(points.labels).place is None


def test_traced_paths_stay_between_walls_and_refuse_a_velocity_they_do_not_know():
    case = replace(OPEN, duration=2.0)
    net = TransportNetwork(Problem.of(case))
    net.use(MovingFrame(case, frame="traced"))
    place = net.place(points_of(case, [0.05, 1.0], 100))
    assert place.x[0].value.abs().max() < 4.0 and place.jacobian().min() > 0
    by_operators = with_rhs(flux_form, frame_velocity=lambda u, d, p, t: (d.derivative(d.x[0] ** 2, 0),))
    for refused in (LINE, by_operators):
        with pytest.raises(ValueError, match=r"d\.x, p and t alone"):
            MovingFrame(refused, frame="traced")


@pytest.mark.parametrize("frame", FRAMES)
def test_labels_on_walls_stay_there(frame):
    net = solved_by(OPEN, frame, perturbed=0.3, open_walls=False)
    points = points_of(OPEN, [0.05, -1.0], 40)
    ends = torch.where(points.labels < 0, -4.0, 4.0)
    place = net.place(points.at(ends))
    assert torch.equal(place.x[0].value, ends[0]) and not place.velocity.any()
    assert net.place(points).velocity.any() or frame in ("eulerian", "galilean")


def test_crossing_is_named_with_time_and_label():
    case = with_rhs(burgers, duration=0.25)
    net = solved_by(case, "lagrangian")
    late = Points(
        labels=torch.linspace(-1, 1, 41)[None], times=torch.full((41,), 0.45), rows=torch.tensor([[0.05, 0.0]]),
        row_of=torch.zeros(41, dtype=torch.long),
    )  # fmt: skip
    J, t, label = net.min_jacobian(late)
    assert J < 0 and t == pytest.approx(0.45) and abs(label[0]) < 1e-12  # breaks at t = 1/π, at 0
    limited = solved_by(case, "limited")
    assert limited.min_jacobian(late)[0] > 0.1


def test_a_study_s_end_says_that_labels_have_crossed(caplog):
    model = LPINN(hidden=(4,), frame="lagrangian")
    model.setup(Problem.of(LINE))
    model.use_case(LINE)
    torch.manual_seed(0)
    with torch.no_grad():
        model.network.displacement.weights[-1].fill_(50.0)  # far from any flow
    model.finish()
    words = next(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "Labels have crossed: their Jacobian falls to -" in words and "label [" in words


def flux_form(u, d, p, t):
    """The same as `burgers`, written as ∂(u²/2)/∂x."""
    return p.nu * d.laplacian(u) - d.derivative(u * u / 2, 0)


def skew(u, d, p, t):
    """Advection split in halves, which d.advect alone does not carry."""
    return -0.5 * d.advect(u, u) - 0.5 * d.derivative(u * u / 2, 0)


def with_rhs(rhs, **changes):
    return replace(LINE, rhs=rhs, **changes)


def test_the_frame_is_found_checked_or_declared():
    assert flow_of(LINE)[1] and flow_of(LINE)[0] is not None
    assert flow_of(with_rhs(flux_form)) == (None, False) and flow_of(with_rhs(skew)) == (None, False)
    declared = MovingFrame(with_rhs(flux_form, frame_velocity=lambda u, d, p, t: (u[0],)))
    assert declared.frame == "limited"
    with pytest.raises(ValueError, match="declare frame_velocity"):
        MovingFrame(with_rhs(flux_form), frame="lagrangian")
    with pytest.raises(ValueError, match="random states"):
        MovingFrame(with_rhs(burgers, parameters={**LINE.parameters, "s": Seed()}))
    with pytest.raises(ValueError, match="cannot be made exact"):
        MovingFrame(with_rhs(burgers, boundary=Neumann(0.0)))


def test_the_surrogate_learns_from_the_equation_and_survives_its_file(tmp_path):
    case = replace(LINE, parameters={"nu": Uniform(0.05, 0.3), "C": Uniform(0.0, 2.0)})
    torch.set_default_dtype(torch.float32)
    model = LPINN(hidden=(16, 16), points=32, refine=16)
    model.setup(Problem.of(case), seed=1)
    with pytest.raises(RuntimeError, match="use_case"):
        model.predict(None, torch.tensor([[0.1, 1.0]]), torch.tensor([0.1]))
    model.use_case(case)
    model.set_statistics([1.0], [0.7])
    times, row = torch.tensor(case.times[1:], dtype=torch.float32), [0.1, 1.0]
    x = case.grid.points(0, periodic=True)
    truth = np.stack([cole_hopf(x - t.item(), t.item(), 0.1, lambda y: np.cos(np.pi * y) / np.pi, 2.0) + 1.0
                      for t in times])  # fmt: skip
    batch = WindowBatch(
        states=torch.tensor(truth, dtype=torch.float32)[:, None, None], times=times[:, None],
        parameters=torch.tensor([row] * 5),
    )  # fmt: skip
    losses = model(batch)
    assert losses.shape == (5,)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def error():
        return np.abs(model.predict(None, torch.tensor([row]), times)[0, :, 0].numpy() - truth).max()

    before = error()
    torch.manual_seed(0)
    for _ in range(100):
        optimizer.zero_grad()
        model(batch).mean().backward()
        optimizer.step()
    by_gradients = error()
    assert by_gradients < before / 4
    model.finish()  # in float64, from the equation alone
    assert error() < by_gradients / 4 and model.network.state.weights[0].dtype == torch.float32
    start = model.predict(None, torch.tensor([row]), torch.tensor([0.0]))[0, 0, 0].numpy()
    assert np.abs(start - wave((x,), case.accept({"C": 1.0}), None)).max() < 1e-5
    with pytest.raises(ValueError, match=r"hidden \(99, 99\) there are \d+. Take narrower layers"):
        LPINN(hidden=(99, 99), refine=1).setup(Problem.of(case))
    model.save(tmp_path / "model")
    again = load_surrogate(tmp_path / "model")
    again.use_case(case)
    assert torch.equal(again.predict(None, torch.tensor([row]), times), model.predict(None, torch.tensor([row]), times))
