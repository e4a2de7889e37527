"""The names and arguments of surrogates on the command line."""

import inspect

import pytest

import headrace.surrogates
from headrace.cases.models import MODELS, make_model
from headrace.solvers.case_file import CaseReference
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


OWN_MODEL = """
class Plain(Autoregressive):
    def __init__(self, *, width: int = 8, stepping: Stepping | None = None):
        super().__init__(stepping, width=width)

    def build(self, channels, problem):
        return torch.nn.Conv2d(channels.inputs, channels.outputs, 1)
"""


def test_a_model_of_the_case_file_has_the_name_of_its_class(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\nfrom headrace.cases.heat2d import case\nfrom headrace.surrogates import *\n" + OWN_MODEL
    )
    reference = CaseReference.of(file)
    model = make_model("Plain", ["width=4", "unroll=2"], reference)
    assert type(model).__name__ == "Plain" and model.width == 4 and model.stepping.unroll == 2
    assert type(make_model("fno", [], reference)).__name__ == "FNO"
    with pytest.raises(ValueError, match=r"no model 'plain'\. Did you mean Plain\?"):
        make_model("plain", [], reference)
    with pytest.raises(ValueError, match=r"no argument of Plain named 'depth'.*width"):
        make_model("Plain", ["depth=4"], reference)


def test_a_model_of_the_case_file_goes_before_one_of_the_library(tmp_path):
    file = tmp_path / "own.py"
    text = "import torch\nfrom headrace.cases.heat2d import case\nfrom headrace.surrogates import *\n" + OWN_MODEL
    text = text.replace("class Plain", "class FNO").replace("stepping: Stepping | None = None", "stepping, **others")
    file.write_text(text)
    reference = CaseReference.of(file)
    assert make_model("FNO", ["width=4", "unroll=2"], reference).width == 4
    with pytest.raises(ValueError, match=r"no argument of FNO named 'others'.*width"):
        make_model("FNO", ["others=4"], reference)


def test_a_graph_is_made_in_python():
    with pytest.raises(ValueError, match=r"graph 'abc' is not allowed: .*Graph\.of_mesh"):
        make_model("mp-pde", ["graph=abc"])
