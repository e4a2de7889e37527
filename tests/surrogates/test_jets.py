"""Jets are the derivatives that nested autograd gives, and a right-hand side means the same on them as on grids."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from headrace.solvers import Case, Grid, Uniform
from headrace.solvers.blocks import Blocks
from headrace.solvers.right_hand_side import TensorRightHandSide, right_hand_side
from headrace.surrogates.jet import FUNCTIONS, DerivativesExhausted, Jet, constant, pairs
from headrace.surrogates.jet_network import JetNetwork
from headrace.surrogates.jet_operators import JetOperators
from tests.solvers.problems import make_case, regions

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("double")


def network(widths, seed=0):
    return JetNetwork(widths, torch.Generator().manual_seed(seed), last=1.0)


def nested(function, points, second):
    """Values, first and wanted second derivatives by nested autograd, in the layout of a jet."""
    points = points.clone().requires_grad_()
    values = function(points)
    rows = [values]
    columns = []
    for out in values.unbind(1):
        first = torch.autograd.grad(out.sum(), points, create_graph=True)[0]
        seconds = [torch.autograd.grad(first[:, i].sum(), points, create_graph=True)[0][:, j] for i, j in second]
        columns.append([*first.unbind(1), *seconds])
    return torch.stack(rows + [torch.stack(parts, 1) for parts in zip(*columns, strict=True)])


@pytest.mark.parametrize("directions,second", [(2, ((0, 0),)), (3, ((0, 0), (0, 1), (1, 1))), (1, ())])
def test_network_jets_and_their_weight_gradients_equal_nested_autograd(directions, second):
    net = network((directions, 17, 17, 3))
    points = torch.rand(23, directions)
    seed = torch.zeros(1 + directions + len(second), 23, directions)
    seed[0] = points
    for i in range(directions):
        seed[1 + i, :, i] = 1

    def plain(x):
        for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            x = x @ weight.T + bias
            x = torch.tanh(x) if layer < 2 else x
        return x

    mine, theirs = net(seed, directions, second), nested(plain, points, second)
    assert (mine - theirs).abs().max() <= 1e-12 * theirs.abs().max()
    weight = torch.rand(mine.shape)
    grads = [torch.autograd.grad((out * weight).square().sum(), list(net.parameters())) for out in (mine, theirs)]
    for a, b in zip(*grads, strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1.0, b.abs().max().item())


def test_network_jets_compile_as_one_graph_with_their_backward_pass():
    net, jet, second = network((3, 9, 9, 2)), torch.rand(6, 7, 3), ((0, 0), (0, 1))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    mine, theirs = (torch.autograd.grad(f(jet, 3, second).square().sum(), list(net.parameters()))
                    for f in (compiled, net))  # fmt: skip
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1.0, b.abs().max().item())


def coordinate_jets(points):
    ndim = len(points)
    return tuple(
        Jet(points[i], [1.0 if j == i else None for j in range(ndim)], dict.fromkeys(pairs(ndim))) for i in range(ndim)
    )


WITHOUT_SLOPE = {
    "sign", "zeros_like", "ones_like", "full_like", "logical_and", "logical_or", "logical_xor",
    "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor", "invert", "greater", "greater_equal", "less",
    "less_equal", "equal", "not_equal",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - WITHOUT_SLOPE))
def test_every_function_carries_the_derivatives_of_autograd(name):
    points = torch.rand(2, 40) * 0.8 + 0.3

    def formula(x, y):
        u = x * x * y + x
        v = y * 0.7 + x * y
        special = {"where": (u > v, u, v), "clip": (u, 0.5, 1.0), "power": (u, v), "float_power": (u, 3)}
        binary = ("add", "subtract", "multiply", "divide", "true_divide", "maximum", "minimum")
        return special.get(name) or ((u, v) if name in binary else (u,))

    jet = FUNCTIONS[name](*formula(*coordinate_jets(points)))
    torch_names = {"true_divide": "divide", "absolute": "abs", "power": "pow", "float_power": "pow"}
    torch_function = torch.clamp if name == "clip" else getattr(torch, torch_names.get(name, name), None)
    expected = nested(lambda p: torch_function(*formula(p[:, 0], p[:, 1]))[:, None], points.T, pairs(2))[..., 0]
    parts = [jet.value, *jet.gradient, *(jet.hessian[key] for key in pairs(2))]
    for mine, theirs in zip(parts, expected, strict=True):
        assert ((0 if mine is None else mine) - theirs).abs().max() < 1e-12


def compositions(u, d, p, t):
    """Nested and composed operators in a plane, two fields."""
    a, b = u
    k = 1 + 0.5 * a**2
    wind = (np.sin(d.x[1]) + b, p.nu * np.cos(d.x[0]))
    first = d.laplacian(a**2) + d.diffuse(k, b) - d.advect(wind, a) + np.where(a > 0.2, a, a * b)
    return first, d.div(d.grad(b)) - d.curl((a * b, b)) + np.exp(-a) * p.nu + 2.0**b + t


def smooth(x, t):
    return np.sin(x[0]) * np.cos(x[1]) + 0.3 * t, 0.5 * np.cos(x[0] + 2 * x[1]) + 0.1 * np.sin(x[1])


def plane(n):
    return Case(
        name="plane", fields=("a", "b"), grid=Grid(shape=(n, n), extent=(2 * np.pi, 2 * np.pi)), rhs=compositions,
        initial=lambda x, p, rng: smooth(x, 0.0), duration=1.0, num_snapshots=2, accuracy=4,
        parameters={"nu": Uniform(0.1, 1.0)},
    )  # fmt: skip


def test_numpy_torch_and_jets_agree_on_a_manufactured_field():
    """On grids to the order of the stencils, torch against numpy to round-off: the jets are the exact ones."""
    errors = []
    for n in (32, 64):
        case = plane(n)
        p = case.accept({"nu": 0.4})
        axes = np.meshgrid(*[case.grid.points(i, periodic=True) for i in range(2)], indexing="ij")
        state = np.stack(smooth(axes, 0.5))
        numeric = right_hand_side(case, p, Blocks(case.grid.shape, case.periodic), state)(state, 0.5)
        tensor = TensorRightHandSide(case, torch.tensor([[0.4]]))(torch.tensor(state)[:, None], 0.5)
        assert np.abs(tensor[:, 0].numpy() - numeric).max() < 1e-12 * np.abs(numeric).max()
        x = coordinate_jets(torch.tensor(np.stack([axis.ravel() for axis in axes])))
        from headrace.surrogates.jet import stacked

        exact = stacked(compositions(stacked(smooth(x, 0.5)), JetOperators(x), p, 0.5)).value
        errors.append(np.abs(numeric.reshape(2, -1) - exact.numpy()).max() / np.abs(numeric).max())
    assert errors[1] < 1e-3 and np.log2(errors[0] / errors[1]) > 3.5, errors


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_conditions_mean_the_same_to_blocks_tensors_and_jets_in_any_precision(kind):
    case, grid = make_case(rhs=regions), (20, 14)
    u = torch.rand(grid, generator=torch.Generator().manual_seed(0), dtype=kind)
    expected = right_hand_side(case, case.accept({}), Blocks(grid, case.periodic), u[None].numpy())
    expected = torch.tensor(expected(u[None].numpy(), 0.2)[0]).to(kind)
    tensor = TensorRightHandSide(case, torch.tensor([[0.1, 1.0]], dtype=kind))(u[None, None], 0.2)[0, 0]
    axes = [torch.tensor(case.grid.points(i, periodic=True), dtype=kind) for i in range(2)]
    x = coordinate_jets(torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]))
    jet = regions(constant(u.flatten(), 2), JetOperators(x), case.accept({}), 0.2).value.reshape(grid)
    for found in (tensor, jet):
        assert found.dtype == kind and torch.allclose(found, expected, rtol=4 * torch.finfo(kind).eps, atol=0)


CONDITIONS = {
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "logical_xor of what is no condition": lambda a, b: np.logical_xor(a * 0.3, 2 * b),
    "invert": lambda a, b: 2 * np.invert(a) + b,
    "logical_not": lambda a, b: 2 * np.logical_not(a) + b,
    "operators": lambda a, b: 4 * (a & b) + 2 * (a | b) + (a ^ b) + 8 * ~a,
    "numbers on the left": lambda a, b: 4 * (1 & a) + 2 * (0 | b) + (True ^ a),
    "numbers on the right": lambda a, b: 4 * (a & 1) + 2 * (b | 0) + (a ^ True),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_are_joined_the_same_by_blocks_machine_code_tensors_and_jets(name):
    def rhs(u, d, p, t):
        return CONDITIONS[name](u > 0.5, u * u - u > -0.2) * (1 + u)

    case, grid = make_case(rhs=rhs), (20, 14)
    u = torch.rand(grid, generator=torch.Generator().manual_seed(0))
    state, p = u[None].numpy(), case.accept({})
    # What the formula gives on numpy's own truth values.
    expected = rhs(state[0], None, p, 0.2)
    found = {
        "blocks": right_hand_side(case, p, Blocks(grid, case.periodic), state)(state, 0.2)[0],
        "tensors": TensorRightHandSide(case, torch.tensor([[0.1, 1.0]]))(u[None, None], 0.2)[0, 0],
        "jets": rhs(constant(u.flatten(), 2), None, p, 0.2).value.reshape(grid),
    }
    if find_spec("numba"):
        compiled = right_hand_side(replace(case, compiled=True), p, Blocks(grid, case.periodic), state)
        assert compiled.compiled
        found["machine code"] = compiled(state, 0.2)[0]
    for kind, values in found.items():
        np.testing.assert_array_equal(np.asarray(values), expected, err_msg=kind)


def test_advection_is_relative_to_the_frame():
    x = coordinate_jets(torch.rand(1, 9))
    u = np.sin(x[0])
    w = torch.full((9,), 0.7)
    moving, resting = JetOperators(x, [w]).advect((u,), u), JetOperators(x).advect((u,), u)
    assert torch.allclose(moving.value, resting.value - w * u.gradient[0], atol=1e-15)


def test_misuse_is_named():
    x = coordinate_jets(torch.rand(2, 5))
    d, u = JetOperators(x), x[0] * x[1]
    with pytest.raises(DerivativesExhausted, match="2 more derivatives"):
        d.laplacian(d.laplacian(u))
    with pytest.raises(AttributeError, match=r"d\.mean does not exist"):
        d.mean(u)
    with pytest.raises(ValueError, match="needs an auxiliary output"):
        d.inverse_laplacian(u)
    with pytest.raises(TypeError, match=r"np\.where"):
        bool(u > 0)
    with pytest.raises(TypeError, match="indexed by number"):
        u[1:]
    with pytest.raises(TypeError, match=r"np\.mean"):
        np.mean(u)
    with pytest.raises(TypeError, match="of your own"):
        u * np.ones(5)
    assert (torch.rand(()) * constant(torch.ones(5), 2)).value.shape == (5,)
