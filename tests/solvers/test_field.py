"""Fields behave as numbers in formulas, and refuse what would be wrong on a block."""

import math

import numpy as np
import pytest

from headrace.solvers.field import Field, uniform


@pytest.fixture
def u():
    return Field(np.random.default_rng(0).uniform(1, 2, (2, 6, 7)), 1, 2, components=True)


def test_formulas_equal_the_same_formulas_on_arrays(u):
    a, b = u
    x, y = u.array

    def formula(a, b):
        return np.where(a > b, 2.0**a, -abs(a - b) / 3) + np.exp(b) * (1 - a) ** 2 + np.maximum(a, np.clip(b, 1.2, 1.4))

    result, expected = formula(a, b), formula(x, y)
    np.testing.assert_array_equal(result.array, expected)
    assert result.halo == 1 and not result.components


def test_a_field_of_all_unknowns_broadcasts_against_one(u):
    np.testing.assert_array_equal((u * u[1]).array, u.array * u.array[1])
    assert (u * u[1]).components and (u[1] * u).components


def test_operands_are_cropped_to_the_smaller_halo(u):
    a = u[0]
    inner = a.cropped(0)
    for result in (a + inner, inner + a, np.add(a, inner)):
        assert result.halo == 0
        np.testing.assert_array_equal(result.array, 2 * a.array[1:-1, 1:-1])


def test_coordinates_stay_open_when_cropped():
    x = Field(np.arange(8.0).reshape(8, 1), 2, 2)
    assert x.cropped(1).array.shape == (6, 1)


def test_values_uniform_in_space_take_no_ghost_layers(u):
    result = uniform(np.full((1, 1), 3.0), 2) * u
    assert result.halo == 1
    np.testing.assert_array_equal(result.array, 3 * u.array)


@pytest.mark.parametrize("number", [np.float64(2), np.array(2.0), np.int64(2), 2, 2.0])
@pytest.mark.parametrize("operation", ["n * u", "u * n", "n + u", "n / u", "u ** n", "np.maximum(n, u)"])
def test_numbers_of_any_kind_keep_float32(number, operation):
    single = Field(np.ones((3, 3), dtype=np.float32), 1, 2)
    assert eval(operation, {"n": number, "u": single, "np": np}).array.dtype == np.float32


@pytest.mark.parametrize(
    ("expression", "advice"),
    [
        ("1 if u[0] > 0 else 0", "np.where"), ("u[0][1:]", "d.x"), ("u[..., 1:]", "d.x"), ("u[0][0]", "d.x"),
        ("np.max(u)", "d.mean"), ("np.mean(u)", "d.mean"), ("u.max()", "d.mean"), ("np.add.reduce(u)", "d.mean"),
        ("np.linalg.norm(u)", "d.mean"), ("math.sin(u[0])", "np.sin"), ("u[0] * np.ones((6, 7))", "d.x"),
        ("np.asarray(u)", "formulas"), ("np.roll(u, 1)", "np.where"), ("np.exp(u, out=u)", "new field"),
        ("u.shape", "arithmetic"), ("u.__setitem__(0, 1.0)", "in place"), ("len(u[0])", "components"),
    ],
)  # fmt: skip
def test_what_would_be_wrong_is_refused_with_the_way_out(u, expression, advice):
    with pytest.raises((TypeError, AttributeError), match=advice):
        eval(expression, {"u": u, "np": np, "math": math})


def test_an_unknown_component_is_named(u):
    with pytest.raises(IndexError, match=r"u\[2\].*2 fields"):
        u[2]
