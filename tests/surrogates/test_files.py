"""A surrogate's folder: bitwise the same predictions, damage named, nothing half-written, no MPI and no Ray."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch

from headrace.surrogates import FNO, MLP, Surrogate, load_surrogate
from headrace.surrogates.files import ALL_SURROGATES, _digest, save_surrogate
from tests.surrogates.problems import FROM_DATA, wave_problem, wave_states

ARCHITECTURES = {
    "MLP": {"hidden": (8, 16), "activation": "tanh"},
    "FNO": {"modes": (3, 4), "width": 4, "stepping": {"history": 2}},
    "UNet": {"width": 8, "multipliers": (1, 2), "stepping": {"conditioning": "film"}},
    "ConvNet": {"width": 8, "blocks": 1, "dilations": (1, 2, 1), "norm": True},
    "MessagePassing": {"hidden": 8, "layers": 1, "radius": 1.5, "stepping": {"history": 2, "bundle": 3}},
}


class Mine(MLP):
    """A user's own surrogate."""


def made(cls, seed=0):
    surrogate = cls(**ARCHITECTURES.get(cls.__name__, {}))
    surrogate.setup(wave_problem(), seed=seed)
    surrogate.set_statistics([5.0, 0.1], [2.0, 0.3])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return surrogate


def request(surrogate):
    """Initial states, parameters and the times after them."""
    problem = surrogate.problem
    parameters = torch.tensor([[1.5, 0.2], [2.5, 3.0], [1.0, 10.0]])
    times = torch.arange(problem.num_steps) * problem.interval
    states = wave_states(problem, parameters, times)
    return states[:, : surrogate.history] if surrogate.history else None, parameters, times[surrogate.history :]


@pytest.fixture
def folder(tmp_path):
    made(MLP).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("cls", FROM_DATA)
def test_a_loaded_surrogate_predicts_bitwise_the_same(cls, tmp_path):
    surrogate = made(cls)
    surrogate.save(tmp_path / "model")
    loaded = load_surrogate(tmp_path / "model")
    assert type(loaded) is cls
    assert loaded.architecture() == surrogate.architecture()
    assert loaded.problem == surrogate.problem
    assert torch.equal(loaded.predict(*request(loaded)), surrogate.predict(*request(surrogate)))


def test_a_run_directory_gives_its_model(tmp_path):
    made(MLP).save(tmp_path / "model")
    (tmp_path / "study.toml").write_text("")
    assert isinstance(load_surrogate(str(tmp_path)), MLP)


def test_the_files_say_what_they_are(tmp_path):
    surrogate = made(FNO)
    surrogate.save(tmp_path / "model", metrics={"validation nRMSE": 0.0123})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert config["weights"] == {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    assert config["num_weights"] == sum(p.numel() for p in surrogate.parameters())
    card = (tmp_path / "model" / "README.md").read_text()
    for words in ("waves", "amplitude | 1 to 3 ", "0.1 to 10, logarithmic", f"{config['num_weights']:,}", "0.0123"):
        assert words in card


def test_loading_needs_neither_mpi_nor_ray(folder):
    program = (
        "import sys; from headrace.surrogates import load_surrogate; load_surrogate(sys.argv[1]); "
        "print([name for name in ('mpi4py', 'ray', 'scipy', 'h5py') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_older_model_is_replaced_and_nothing_else_stays(folder):
    newer = made(MLP, seed=1)
    newer.save(folder)
    loaded = load_surrogate(folder)
    assert torch.equal(loaded.predict(*request(loaded)), newer.predict(*request(newer)))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_full_disk_leaves_the_old_model_alone(folder, monkeypatch, fail_at):
    before = load_surrogate(folder).state_dict()
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == fail_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        made(MLP, seed=1).save(folder)
    monkeypatch.undo()
    after = load_surrogate(folder).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_other_peoples_folders_are_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="left alone"):
        made(MLP).save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_every_flipped_byte_of_the_weights_is_noticed(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), len(whole) // 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its checksum"):
            load_surrogate(folder)


@pytest.mark.parametrize("length", [0, 10, -1])
def test_truncated_weights_are_noticed(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: it has \d+ bytes"):
        load_surrogate(folder)


def test_a_damaged_config_is_noticed(folder):
    path = folder / "config.json"
    whole = path.read_text()
    path.write_text(whole[:-10])
    with pytest.raises(ValueError, match=r"config\.json is damaged: not valid JSON"):
        load_surrogate(folder)
    path.write_text(whole.replace('"duration": 1.0', '"duration": 2.0'))
    with pytest.raises(ValueError, match=r"config\.json is damaged or was edited"):
        load_surrogate(folder)
    path.write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="does not describe"):
        load_surrogate(folder)


def test_missing_pieces_are_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors is missing"):
        load_surrogate(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_surrogate(tmp_path / "nowhere")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_surrogate(run)
    (run / "study.toml").write_text("")
    with pytest.raises(FileNotFoundError, match="when training ends"):
        load_surrogate(run)


def edit(folder, **changes):
    """Change config.json as a program would that keeps its checksum right."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    content.pop("sha256", None)
    path.write_text(json.dumps({**content, "sha256": _digest(content)}))


def test_a_newer_format_asks_for_an_update(folder):
    edit(folder, version=2)
    with pytest.raises(ValueError, match=r"format version 2; .* up to 1\. Update headrace"):
        load_surrogate(folder)


def test_what_only_a_newer_version_knows_is_named(folder):
    edit(folder, architecture={"hidden": [8, 16], "activation": "tanh", "gated": True})
    with pytest.raises(ValueError, match=r"config\.json describes .* class MLP .*'gated'.*update headrace"):
        load_surrogate(folder)
    edit(folder, architecture={}, problem={"case": "waves"})
    with pytest.raises(ValueError, match=r"config\.json describes .* class MLP .*'fields'.*update headrace"):
        load_surrogate(folder)


def test_a_config_without_its_parts_is_named(folder):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: content[name] for name in ("format", "version", "problem")}))
    edit(folder)
    with pytest.raises(ValueError, match=r"config\.json is incomplete: it does not say class, architecture, weights"):
        load_surrogate(folder)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is damaged: not valid JSON"):
        load_surrogate(folder)


@pytest.mark.parametrize("weights", [b"", (2**62).to_bytes(8, "little"), (8).to_bytes(8, "little") + b"\xff" * 8])
def test_weights_that_are_no_safetensors_are_named(folder, weights):
    (folder / "model.safetensors").write_bytes(weights)
    edit(folder, weights={"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()})
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit the class MLP"):
        load_surrogate(folder)


def test_weights_of_another_architecture_are_named(folder):
    edit(folder, architecture={"hidden": [8, 17], "activation": "tanh"})
    with pytest.raises(ValueError, match="does not fit the class MLP"):
        load_surrogate(folder)


def test_a_users_class_is_loaded_only_when_given(tmp_path):
    made(Mine).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"'Mine' from .*; known are MLP, FNO, .*classes=\[Mine\]"):
        load_surrogate(tmp_path / "model")
    assert type(load_surrogate(tmp_path / "model", classes=[Mine])) is Mine


def test_a_surrogate_without_weights_cannot_be_saved(tmp_path):
    with pytest.raises(RuntimeError, match="call setup"):
        save_surrogate(MLP(), tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_all_surrogates_are_surrogates():
    assert all(issubclass(cls, Surrogate) for cls in ALL_SURROGATES)
