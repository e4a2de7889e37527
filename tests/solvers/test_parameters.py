"""Distributions map the unit interval onto their values; vectors and seeds become what a design can draw."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.solvers import LogUniform, Parameters, Uniform
from headrace.solvers.parameters import Choice, Integers, Seed, Vector

from .problems import make_case

ALL = [Uniform(-1.0, 3.0), LogUniform(1e-4, 10.0), Integers(1, 3), Choice((8.0, 1.0, 2.0))]
DISCRETE = [Integers(1, 3), Choice((8.0, 1.0, 2.0))]


@pytest.mark.parametrize("distribution", ALL, ids=str)
def test_quantiles_are_ordered_and_invertible_and_lie_inside(distribution):
    q = np.linspace(0, 1, 101)
    values = [distribution.from_unit(float(one)) for one in q]
    assert values == sorted(values) and all(distribution.contains(value) for value in values)
    assert all(distribution.from_unit(distribution.to_unit(value)) == pytest.approx(value) for value in values)
    assert all(0 <= distribution.to_unit(value) <= 1 for value in values)
    assert not distribution.contains(values[-1] + 1) and not distribution.contains(values[0] - 1)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.floats(0, 1))
@example(0.1, 0.7, 1.0)
def test_rounding_leads_to_no_value_outside(one, other, q):
    for kind in (Uniform, LogUniform):
        if one != other:
            distribution = kind(min(one, other), max(one, other))
            assert all(distribution.contains(distribution.from_unit(each)) for each in (0.0, q, 1.0))


@pytest.mark.parametrize("distribution", DISCRETE, ids=str)
def test_discrete_values_are_equally_likely(distribution):
    values = [distribution.from_unit((n + 0.5) / 300) for n in range(300)]
    assert [values.count(value) for value in sorted(set(values))] == [100, 100, 100]
    assert not distribution.contains(1.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Integers(3, 3), "low < high"),
        (lambda: Integers(0.5, 2), "whole numbers"),
        (lambda: Choice((1.0,)), "two or more different"),
        (lambda: Choice((1.0, 1.0)), "two or more different"),
        (lambda: Vector((Uniform(0, 1),)), "two or more distributions"),
        (lambda: Vector((1.0, 2.0)), "two or more distributions"),
    ],
)
def test_what_is_no_distribution_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def windy(**more):
    wind = Vector((Uniform(-1.0, 1.0), Uniform(0.0, 2.0)))
    return make_case(parameters={"nu": Uniform(1e-3, 1e-1), "wind": wind, "n": Integers(1, 3), **more})


def test_a_vector_is_several_coordinates_of_a_design_under_one_name():
    case = windy()
    assert list(case.parameters) == ["nu", "wind_0", "wind_1", "n"]
    p = case.draw([0.5, 0.5, 0.25, 0.9])
    assert p.wind == (0.0, 0.5) == (p.wind_0, p.wind_1) and p.n == 3
    assert copy.deepcopy(p).wind == p.wind
    assert dict(case.accept({"wind": (0.1, 0.2)})) == dict(case.accept({"wind_0": 0.1, "wind_1": 0.2}))
    assert list(replace(case, duration=2.0).parameters) == list(case.parameters)


def test_a_seed_takes_no_coordinate_and_survives_copies():
    case = windy(noise=Seed())
    assert list(case.parameters) == list(windy().parameters) and case.seeds == ("noise",)
    assert replace(case, duration=2.0).seeds == ("noise",)


def test_verify_asks_that_a_seed_is_used():
    with pytest.raises(ValueError, match="declares the seed noise, but initial draws nothing"):
        make_case(parameters={"nu": Uniform(0.1, 1), "r": Uniform(0.1, 1), "noise": Seed()}).verify()
    random = make_case(
        parameters={"nu": Uniform(0.1, 1), "r": Uniform(0.1, 1), "noise": Seed()},
        initial=lambda x, p, rng: rng.normal(size=x[0].shape),
    )
    random.verify()


def test_misuse_of_names_is_refused():
    with pytest.raises(ValueError, match="wind_0 is declared twice"):
        windy(wind_0=Uniform(0, 1))
    with pytest.raises(TypeError, match="Case fisher: parameter nu is 3"):
        make_case(parameters={"nu": 3})
    with pytest.raises(ValueError, match="no parameter 'wind_2'"):
        windy().accept({"wind": (0.1, 0.2, 0.3)})
    with pytest.raises(ValueError, match="must lie a whole number in"):
        windy().accept({"n": 1.5})
    with pytest.raises(AttributeError, match="no parameter 'speed'"):
        Parameters({"wind_0": 1.0}).speed  # noqa: B018
