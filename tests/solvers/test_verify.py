"""verify() accepts what is right and names what is wrong: the function, what it did, what it should do."""

import math
import warnings
from itertools import count

import numpy as np
import pytest

from headrace.solvers import Dirichlet, Grid, Neumann, Periodic, Uniform
from headrace.solvers.scheme import BDF2

from .problems import arithmetic, everything, fisher, gray_scott, make_case, mixed_boundary, regions, run, two_bumps

calls = count()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"duration": 0.0}, "duration 0.0 must be positive and finite"),
        ({"duration": math.inf}, "duration inf must be positive and finite"),
        ({"num_snapshots": 0}, "num_snapshots 0 must be a whole number, at least 1"),
        ({"num_snapshots": 2.5}, "num_snapshots 2.5 must be a whole number"),
        ({"num_snapshots": None}, "num_snapshots None must be a whole number"),
        ({"steps_per_snapshot": -1}, "steps_per_snapshot -1 must be a whole number, at least 1"),
        ({"steps_per_snapshot": 0}, "steps_per_snapshot 0 must be a whole number, at least 1"),
        ({"parameters": {"values": Uniform(0, 1)}}, "parameter values cannot be read as p.values"),
        ({"fields": ("u", "u")}, "one or more different names"),
        ({"fields": ()}, "one or more different names"),
        ({"fields": (1,)}, "must be texts"),
        ({"name": "no name"}, "must start with a letter"),
        ({"solver": fisher}, "give either rhs or solver, not both"),
        ({"accuracy": 4, "grid": Grid(shape=(3, 9), extent=(1, 1)), "boundary": Neumann()}, "4 points between walls"),
    ],
)
def test_a_case_whose_pieces_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        make_case(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": 3}, "name 3 must be a text"),
        ({"fields": "uv"}, r"fields 'uv' must be a tuple of names, \('uv',\)"),
        ({"fields": 3}, "fields 3 must be a tuple of names"),
        ({"fields": None}, "fields None must be a tuple of names"),
        ({"grid": (8, 8)}, r"grid \(8, 8\) must be a Grid"),
        ({"parameters": [Uniform(0, 1)]}, "must be a mapping of names"),
    ],
)
def test_a_case_of_pieces_of_another_kind_is_refused(given, message):
    with pytest.raises(TypeError, match=message):
        make_case(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"shape": (8.5, 8)}, "must be whole numbers"), ({"shape": 8}, "as shape=.64, 64."), ({"extent": 1}, "extent 1"),
     ({"origin": (math.nan, 0.0)}, "must be finite"), ({"shape": (1, 8)}, "at least 2 points")],
)  # fmt: skip
def test_a_grid_of_other_numbers_is_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Grid(**{"shape": (8, 8), "extent": (1.0, 1.0), **given})


def test_a_scheme_by_name_is_refused():
    with pytest.raises(TypeError, match="scheme 'rk4' must be a Scheme, such as"):
        run(make_case(scheme="rk4"))


def test_a_point_with_too_few_coordinates_and_a_complex_state_are_named():
    case = make_case(initial=lambda x, p, rng: x[0] + 1j)
    with pytest.raises(ValueError, match=r"has \d parameters; the point has 9 coordinates"):
        case.draw([0.5] * 9)
    with pytest.raises(ValueError, match="complex numbers for field u; fields are real"):
        case.verify()


def test_an_initial_state_off_its_boundary_values_is_warned_of():
    away = make_case(boundary={"x": (Dirichlet(lambda x, p, t: 3.0 + x[1]), Neumann()), "y": Periodic()})
    with pytest.warns(UserWarning, match=r"field u is up to 3.* lower end of axis 0.*scheme=BDF2"):
        away.verify()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_case(boundary=away.boundary, scheme=BDF2).verify()
        make_case(boundary={"x": (Dirichlet(0.5), Dirichlet(0.5)), "y": Neumann()},
                  initial=lambda x, p, rng: 0.5 + np.sin(np.pi * x[0]) * x[1]).verify()  # fmt: skip


def wrong_dtype(u, d, p, t):
    return type(u)(u.array.astype(np.float64), u.halo, u.ndim, u.components) * p.nu


def torch_function(u, d, p, t):
    torch = pytest.importorskip("torch")
    return torch.sin(u)


def in_place(u, d, p, t):
    u.array[:, 1:-1] *= 0.5
    return u


def in_place_component(u, d, p, t):
    u[0] = 0.0
    return u


def largest(u, d, p, t):
    return u / float(np.max(u.array))


def global_array(u, d, p, t):
    return d.laplacian(u) * np.ones((20, 14))


def branches(u, d, p, t):
    return d.laplacian(u) if u > 0 else u


def divides(u, d, p, t):
    raise ZeroDivisionError("my own mistake")


MISTAKES = {
    "too many fields": ({"rhs": lambda u, d, p, t: (u[0], u[0])}, "rhs returned 2 fields"),
    "too few fields": (
        {"fields": ("a", "b"), "initial": two_bumps, "rhs": lambda u, d, p, t: u[0]}, "rhs returned a single field",
    ),
    "all of u for one": (
        {"fields": ("a", "b"), "initial": two_bumps, "rhs": lambda u, d, p, t: (u, u[0])}, "in the place of field a",
    ),
    "nothing returned": ({"rhs": lambda u, d, p, t: None}, "returned NoneType for field u"),
    "an array": ({"rhs": lambda u, d, p, t: np.ones((12, 12))}, "returned ndarray"),
    "branching on values": ({"rhs": branches}, r"rhs \(line \d+: .*u > 0.*np.where"),
    "indexing in space": ({"rhs": lambda u, d, p, t: u[0][1:] - u[0][:-1]}, "use the operators of d"),
    "torch functions": ({"rhs": torch_function}, "np.sin"),
    "math functions": ({"rhs": lambda u, d, p, t: math.sin(u)}, "np.sin, not math.sin"),
    "in-place writes": ({"rhs": in_place}, "writes into u in place"),
    "in-place assignment": ({"rhs": in_place_component}, "never written in place"),
    "a reduction": ({"rhs": lambda u, d, p, t: u / np.max(u)}, "d.mean"),
    "a hidden reduction": ({"rhs": largest}, "another result on two blocks than on one"),
    "a global array": ({"rhs": global_array}, "has no ghost layers"),
    "an unknown parameter": ({"rhs": lambda u, d, p, t: p.mu * u}, "no parameter 'mu'; it has nu, r"),
    "an unknown operator": ({"rhs": lambda u, d, p, t: d.laplace(u)}, "d.laplacian"),
    "a dtype change": ({"rhs": wrong_dtype}, "float32 state into float64"),
    "an exception inside": ({"rhs": divides}, r"ZeroDivisionError: my own mistake"),
    "a result that changes": ({"rhs": lambda u, d, p, t: u * next(calls)}, "two different results"),
    "values that are not finite": ({"rhs": lambda u, d, p, t: np.log(u - 10)}, "not finite"),
    "too many derivatives": (
        {"rhs": lambda u, d, p, t: d.weno((1, 1), d.weno((1, 1), d.laplacian(u)))}, "more than 6 points away",
    ),
    "a grid that is narrower than its stencils": (
        {"grid": Grid(shape=(2, 9), extent=(1, 1)), "boundary": Neumann(), "rhs": lambda u, d, p, t: d.weno((1, 1), u)},
        "more than 2 points away.*a larger grid",
    ),
    "the wrong signature": ({"rhs": lambda u, d: u}, "takes 2 positional arguments"),
    "an initial state of another shape": ({"initial": lambda x, p, rng: np.ones((3, 3))}, r"shape \(3, 3\)"),
    "too few initial fields": ({"fields": ("a", "b"), "rhs": gray_scott}, "initial returned 1 fields"),
    "an initial state with NaN": ({"initial": lambda x, p, rng: np.log(x[0] - 1)}, "not finite"),
    "random numbers of its own": (
        {"initial": lambda x, p, rng: np.random.default_rng().normal(size=x[0].shape)}, "random numbers from the rng",
    ),
    "a boundary value with a mistake": (
        {"boundary": Dirichlet(lambda x, p, t: p.wall)}, "lower end of axis 0.* no parameter 'wall'",
    ),
    "a boundary value of another shape": ({"boundary": Neumann(lambda x, p, t: np.ones(5))}, "return a number"),
    "a boundary value that branches": (
        {"boundary": Dirichlet(lambda x, p, t: 1.0 if x[1] > 0.5 else 0.0)}, "end of axis .*np.where",
    ),
    "a solver with another signature": ({"rhs": None, "solver": lambda case: iter(())}, "too many positional"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.filterwarnings("error")
def test_a_mistake_is_named(name):
    changes, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        make_case(**changes).verify()
    assert str(caught.value).startswith("Case fisher: ")


def test_the_cause_is_kept():
    with pytest.raises(ValueError, match="my own mistake") as caught:
        make_case(rhs=divides).verify()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.filterwarnings("ignore:Case fisher")
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("rhs", [everything, arithmetic, regions], ids=lambda f: f.__name__)
def test_what_is_right_passes_in_any_dimension_and_with_any_walls(ndim, rhs):
    grid = Grid(shape=(40, 17, 9)[:ndim], extent=(1.0, 0.8, 0.7)[:ndim])
    for boundary in (Periodic(), mixed_boundary(ndim)):
        make_case(grid=grid, boundary=boundary, rhs=rhs).verify()


def test_several_fields_pass_as_a_tuple_and_as_one_expression():
    changes = {"fields": ("a", "b"), "initial": two_bumps}
    make_case(**changes, rhs=gray_scott).verify()
    make_case(**changes, rhs=lambda u, d, p, t: d.laplacian(u) - u[0] * u).verify()
    make_case(**changes, rhs=lambda u, d, p, t: (0.0, d.mean(u[0]))).verify()
