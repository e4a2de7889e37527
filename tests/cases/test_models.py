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
