"""A user's own network as a surrogate in a few lines, and how its class is found again, or not."""

import importlib.util
import inspect
import json
import sys

import pytest
import torch

from headrace.solvers.case_file import CaseReference
from headrace.surrogates import MLP, Autoregressive, Stepping, load_surrogate
from headrace.surrogates.files import _digest, surrogate_classes
from tests.surrogates.problems import wave_problem, wave_windows


class Plain(Autoregressive):
    def __init__(self, *, width: int = 32, stepping: Stepping | None = None):
        super().__init__(stepping, width=width)

    def build(self, channels, problem):
        first = torch.nn.Conv2d(channels.inputs, self.width, 3, padding=1)
        return torch.nn.Sequential(first, torch.nn.GELU(), torch.nn.Conv2d(self.width, channels.outputs, 1))


OWN_MODULE = inspect.getsource(Plain).join(
    ("import torch\nfrom headrace.surrogates import MLP, Autoregressive, Stepping\nprint('imported')\n\n\n", "\n")
)


def made(cls, **arguments):
    surrogate = cls(**arguments)
    surrogate.setup(wave_problem())
    surrogate.set_statistics([5.0, 0.0], [1.0, 0.1])
    return surrogate


def module_at(path):
    """A module as a run's case.py is imported: under a name of its own, on no path."""
    spec = importlib.util.spec_from_file_location("case_of_this_run", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ten_lines_are_enough():
    assert len(inspect.getsource(Plain).strip().splitlines()) <= 10


def test_the_documentation_shows_the_same_lines():
    shown = " ".join(inspect.getdoc(Autoregressive).split())
    for line in inspect.getsource(Plain).strip().splitlines():
        assert " ".join(line.split()) in shown


@pytest.mark.parametrize("stepping", [Stepping(), Stepping(history=2, bundle=2, unroll=2, pushforward=1, noise=0.01)])
def test_any_network_trains_rolls_out_and_survives_its_file(stepping, tmp_path):
    surrogate = made(Plain, stepping=stepping)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=3e-3)
    held_out = wave_windows(surrogate.problem, surrogate.window, batch=128, seed=1000)
    before = surrogate(held_out).mean().item()
    for seed in range(60):
        torch.manual_seed(seed)
        loss = surrogate(wave_windows(surrogate.problem, surrogate.window, batch=16, seed=seed)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = surrogate(held_out).mean().item()
    assert after < before / 2, f"the loss went from {before:.2e} to {after:.2e}"
    surrogate.save(tmp_path / "model")
    loaded = load_surrogate(tmp_path / "model", classes=[Plain])
    batch = wave_windows(surrogate.problem, surrogate.history, batch=2)
    times = torch.arange(surrogate.history, 8) * surrogate.problem.interval
    expected = surrogate.predict(batch.states, batch.parameters, times)
    assert torch.equal(loaded.predict(batch.states, batch.parameters, times), expected)


def test_its_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = made(Plain).state_dict()
    torch.manual_seed(2)
    other = made(Plain).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_class_in_the_case_file_of_a_run_is_found_in_its_module(tmp_path):
    (tmp_path / "case.py").write_text(OWN_MODULE)
    module = module_at(tmp_path / "case.py")
    assert surrogate_classes(module) == [module.Plain], "what a module only imports is not its own"
    made(module.Plain).save(tmp_path / "model")
    again = module_at(tmp_path / "case.py")
    assert type(load_surrogate(tmp_path / "model", modules=[again])) is again.Plain


def test_of_a_class_in_the_case_file_no_module_is_named_that_nobody_can_import(tmp_path):
    (tmp_path / "case.py").write_text(OWN_MODULE)
    made(CaseReference.of(tmp_path / "case.py").load_module().Plain).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"'Plain' from the case file of its run.*classes=\[Plain\]\)\.$"):
        load_surrogate(tmp_path / "model")


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    made(importlib.import_module("own_networks").Plain).save(tmp_path / "model")
    del sys.modules["own_networks"]
    yield tmp_path / "model"
    sys.modules.pop("own_networks", None)


def test_a_module_is_imported_only_when_file_and_caller_agree(own_package, capsys):
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"'Plain' from the module 'own_networks'.*modules=\['own_networks'\]"):
        load_surrogate(own_package)
    with pytest.raises(ValueError, match="known are MLP"):
        load_surrogate(own_package, modules=["other_networks"])
    assert "own_networks" not in sys.modules and capsys.readouterr().out == ""
    loaded = load_surrogate(own_package, modules=["own_networks"])
    assert type(loaded).__name__ == "Plain" and capsys.readouterr().out == "imported\n"


def test_a_file_cannot_choose_what_is_imported(tmp_path, own_package, capsys):
    capsys.readouterr()
    made(MLP).save(tmp_path / "mlp")
    path = tmp_path / "mlp" / "config.json"
    content = {**json.loads(path.read_text()), "module": "own_networks", "class": "own_networks.Plain"}
    content.pop("sha256")
    path.write_text(json.dumps({**content, "sha256": _digest(content)}))
    with pytest.raises(ValueError, match="known are MLP"):
        load_surrogate(tmp_path / "mlp")
    assert "own_networks" not in sys.modules and capsys.readouterr().out == ""


def test_a_file_from_before_modules_were_named_still_loads(tmp_path):
    surrogate = made(MLP)
    surrogate.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    content = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("sha256", "module")}
    path.write_text(json.dumps({**content, "sha256": _digest(content)}))
    assert type(load_surrogate(tmp_path / "model")) is MLP
