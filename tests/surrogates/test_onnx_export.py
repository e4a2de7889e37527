"""ONNX files give the predictions of the surrogate in a runtime that knows nothing of it."""

import pytest
import torch

from headrace.surrogates import FNO, MLP, ConvNet, MessagePassing, UNet
from headrace.surrogates.graph import Graph
from headrace.surrogates.onnx_export import export_onnx
from tests.surrogates.problems import FROM_DATA, wave_problem, wave_windows

SMALL = {
    MLP: {"hidden": (16,)},
    FNO: {"modes": 3, "width": 4, "layers": 2, "stepping": {"bundle": 2}},
    UNet: {"width": 8, "multipliers": (1, 2), "blocks": 1},
    ConvNet: {"width": 4, "blocks": 1, "stepping": {"conditioning": "film"}},
    MessagePassing: {"hidden": 8, "layers": 1, "radius": 1, "stepping": {"history": 2, "conditioning": "film"}},
}


def made(cls, problem, **changes):
    surrogate = cls(**{**SMALL[cls], **changes})
    surrogate.setup(problem)
    surrogate.set_statistics([5.0, 0.1], [2.0, 0.3])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return surrogate


def runs_as(surrogate, path, batch):
    """Largest difference of the file's result and the surrogate's prediction, over the deviation of the latter."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    window = wave_windows(surrogate.problem, max(surrogate.history, 1), batch=batch, seed=3)
    at = torch.tensor([0.3])
    initial = window.states if surrogate.history else None
    inputs = {"parameters": window.parameters.numpy(), "time": at.expand(batch).numpy()}
    if surrogate.history:
        inputs["initial"] = initial.numpy()
    (states,) = session.run(["states"], inputs)
    expected = surrogate.predict(initial, window.parameters, at)[:, 0]
    found = torch.tensor(states) if initial is None else torch.tensor(states)[:, 0]
    return ((found - expected).abs().max() / expected.std()).item()


def need_onnx():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"ONNX export is tested where {name} is installed")


@pytest.mark.parametrize("cls", FROM_DATA)
def test_the_file_predicts_what_the_surrogate_predicts(cls, tmp_path):
    need_onnx()
    surrogate = made(cls, wave_problem((9, 8)))
    export_onnx(surrogate, tmp_path / "model.onnx")
    assert surrogate.training
    for batch in (2, 5):  # any batch, not the one of the export
        assert runs_as(surrogate, tmp_path / "model.onnx", batch) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_no_fourier_transform_is_in_the_file_of_an_fno(tmp_path):
    need_onnx()
    import onnx

    surrogate = made(FNO, wave_problem((13,), periodic=(False,)), norm="layer", channel_mlp=0.5, rank=2)
    export_onnx(surrogate, tmp_path / "model.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not {name for name in operators if "DFT" in name.upper() or "FFT" in name.upper()}
    assert runs_as(surrogate, tmp_path / "model.onnx", 3) < 1e-4


def test_a_mesh_goes_into_the_file(tmp_path):
    need_onnx()
    graph = Graph.of_mesh([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 2.0]], [[0, 1, 2], [0, 2, 3]])
    stepping = {"inputs": ("parameters", "time"), "conditioning": "film"}
    surrogate = made(MessagePassing, wave_problem((4,), periodic=(False,)), graph=graph, stepping=stepping)
    export_onnx(surrogate, tmp_path / "model.onnx")
    assert runs_as(surrogate, tmp_path / "model.onnx", 3) < 1e-4


def test_a_linear_step_is_refused(tmp_path):
    surrogate = made(FNO, wave_problem(), stepping={"target": "linear"})
    with pytest.raises(TypeError, match="target 'linear' has no form for ONNX"):
        export_onnx(surrogate, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="call setup"):
        export_onnx(MLP(), tmp_path / "model.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install onnx onnxscript"):
        export_onnx(made(MLP, wave_problem()), tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())
