"""The names and arguments of surrogates on the command line."""

import inspect

import pytest

import headrace.surrogates
from headrace.cases.models import MODELS, make_model
from headrace.surrogates import ALL_SURROGATES


def test_every_surrogate_has_a_name():
    assert {getattr(headrace.surrogates, name) for name in MODELS.values()} == set(ALL_SURROGATES)


@pytest.mark.parametrize("name", MODELS)
def test_every_name_makes_its_class(name):
    model = make_model(name, [])
    assert type(model).__name__ == MODELS[name] and inspect.signature(type(model))


def test_the_training_form_is_flat_on_the_command_line():
    model = make_model("fno", ["modes=3", "unroll=2", "inputs=time", "noise=0.01"])
    assert model.modes == 3 and model.stepping.unroll == 2
    assert model.stepping.inputs == ("time",) and model.stepping.noise == 0.01


def test_wrong_values_of_the_training_form_are_named():
    with pytest.raises(ValueError, match="unroll 0"):
        make_model("fno", ["unroll=0"])
    with pytest.raises(ValueError, match=r"'unrol'.*unroll"):
        make_model("fno", ["unrol=2"])


@pytest.mark.parametrize(
    ("model", "argument", "message"),
    [
        ("fno", "modes=abc", "'abc' is not a whole number; the default is modes=12"),
        ("fno", "modes=8,1.5", "1.5 is not a whole number"),
        ("fno", "padding=wide", "'wide' is not a number; the default is padding=0.25"),
        ("fno", "width=true", "True is not a whole number"),
        ("unet", "norm=1", "1 is not true or false; the default is norm=True"),
        ("mlp", "hidden=64,x", "'x' is not a whole number; the default is hidden=256,256"),
    ],
)
def test_a_value_of_another_kind_is_named(model, argument, message):
    with pytest.raises(ValueError, match=f"--architecture {argument} is not allowed: {message}"):
        make_model(model, [argument])


def test_a_graph_is_made_in_python():
    with pytest.raises(ValueError, match=r"graph 'abc' is not allowed: .*Graph\.of_mesh"):
        make_model("mp-pde", ["graph=abc"])
