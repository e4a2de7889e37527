"""One file with one PDE, unseen by the framework: solver, tensors, jets, and three kinds of surrogate come from it."""

import re

import numpy as np
import pytest
import torch

from headrace.cases.command_line import main
from headrace.cases.generate_command import generate_data_set
from headrace.cases.models import make_model
from headrace.online_training import Study
from headrace.online_training.audit import audit
from headrace.online_training.run_directory import RunDirectory
from headrace.solvers.blocks import Blocks
from headrace.solvers.case_file import CaseReference
from headrace.solvers.right_hand_side import TensorRightHandSide, right_hand_side
from headrace.surrogates.case_on_jets import as_fields, coordinates, flow_of
from headrace.surrogates.jet_operators import JetOperators

from .intake_setup import wait_until

pytestmark = pytest.mark.timeout(1200)

FILE = '''
"""Two pollutants in a shear flow; the second is made from the first."""

import numpy as np

from headrace.solvers import Case, Grid, Uniform


def smog(u, d, p, t):
    """∂a/∂t + w·∇a = ν ∇²a - k a²,  ∂b/∂t + w·∇b = ν ∇²b + k a²."""
    a, b = u
    wind = (1 + 0.3 * np.sin(d.x[1]), 0.2 * np.cos(d.x[0]))
    made = p.k * a**2
    return p.nu * d.laplacian(a) - d.advect(wind, a) - made, d.diffuse(p.nu, b) - d.advect(wind, b) + made


def cloud(x, p, rng):
    """a = a0 + cos x sin y / 2,  b = sin x / 5."""
    return p.a0 + 0.5 * np.cos(x[0]) * np.sin(x[1]), 0.2 * np.sin(x[0])


case = Case(
    name="smog", fields=("a", "b"), grid=Grid(shape=(24, 24), extent=(2 * np.pi, 2 * np.pi)), initial=cloud, rhs=smog,
    parameters={"nu": Uniform(0.05, 0.1), "k": Uniform(0.1, 0.5), "a0": Uniform(0.8, 1.2)}, duration=0.5,
    num_snapshots=5, accuracy=4,
)
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "smog.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_grids_tensors_and_jets_agree_on_the_file(file):
    errors = []
    for n in (16, 32):
        case = CaseReference.of(file, shape=(n, n)).load()
        p = case.accept({"nu": 0.07, "k": 0.3, "a0": 1.1})
        axes = np.meshgrid(*[case.grid.points(i, periodic=True) for i in range(2)], indexing="ij")
        state = np.stack(case.initial(axes, p, None))
        numeric = right_hand_side(case, p, Blocks(case.grid.shape, case.periodic), state)(state, 0.0)
        rows = torch.tensor([list(p.values())], dtype=torch.float64)
        tensors = TensorRightHandSide(case, rows)(torch.tensor(state)[:, None], 0.0)[:, 0].numpy()
        assert np.abs(tensors - numeric).max() < 1e-12
        x = coordinates(torch.tensor(np.stack([axis.ravel() for axis in axes])))
        u = as_fields(case.initial(x, p, None), x[0])
        exact = as_fields(case.rhs(u, JetOperators(x), p, 0.0), u).value.numpy()
        errors.append(np.abs(numeric.reshape(2, -1) - exact).max())
    assert np.log2(errors[0] / errors[1]) > 3.5, errors
    assert flow_of(case)[1], "the velocity in d.advect is found"


NUMBERS = {"simulations": 12, "held_out": 2, "ranks": 2, "batch_size": 8, "views": 10}
# Architecture, learning rate, and a bound on the error of which a training leaves a fifth or less.
MODELS = {
    "fno": (["modes=4", "width=8", "layers=2"], 1e-2, 0.4),
    "lpinn": (["hidden=16,16", "points=16", "refine=20"], 1e-3, 0.03),
    "neuralstagger": (["modes=3", "width=8"], 1e-2, 0.2),
}


def require_trained(run_dir, error, bound):
    """The error is small and the ledgers are clean; gives the trained surrogate."""
    assert error < bound
    report = audit(run_dir)
    assert report.ok, report.lines
    return RunDirectory(run_dir).load_model(run_dir / "model")


def actors(ray):
    """What Ray knows by name."""
    return {(one["namespace"], one["name"]) for one in ray.util.list_named_actors(all_namespaces=True)}


@pytest.mark.ray
@pytest.mark.mpi
def test_the_file_trains_an_operator_by_the_command_line_on_two_ranks(file, tmp_path, ray_here, capsys):
    architecture, rate, bound = MODELS["fno"]
    before = actors(ray_here)
    words = [word for one in architecture for word in ("--architecture", one)]
    settings = {**NUMBERS, "learning_rate": rate}
    numbers = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(file), "--model", "fno", *words, "--run-dir", str(tmp_path / "run"), *numbers])
    said = capsys.readouterr()
    assert ended.value.code == 0, said
    (error,) = re.findall(r"^validation nRMSE (\S+)$", said.out, re.MULTILINE)
    require_trained(tmp_path / "run", float(error), bound)
    wait_until(lambda: actors(ray_here) <= before, what="all to be gone: a trainer starts nothing that stays")


@pytest.mark.ray
@pytest.mark.mpi
def test_the_file_trains_a_lagrangian_network_in_python(file, tmp_path, ray_here, validated_at_the_end):
    architecture, rate, bound = MODELS["lpinn"]
    surrogate = make_model("lpinn", architecture)
    study = Study(CaseReference.of(file), surrogate, run_dir=tmp_path / "run", learning_rate=rate, **NUMBERS)
    surrogate = require_trained(tmp_path / "run", study.run().validation["nrmse"], bound)
    # It needs no state to start from.
    states = surrogate.predict(None, torch.tensor([[0.07, 0.3, 1.0]]), torch.tensor([0.25]))
    assert states.shape == (1, 1, 2, 24, 24)


def test_the_file_trains_staggered_networks_on_states_of_its_own_solver(file, tmp_path, validated_at_the_end):
    architecture, rate, bound = MODELS["neuralstagger"]
    assert generate_data_set(CaseReference.of(file), simulations=14, held_out=2, folder=tmp_path / "data", seed=0,
                             sampler="sobol", jobs=1, plain=True) == 0  # fmt: skip
    study = Study(
        CaseReference.of(file), make_model("neuralstagger", architecture), run_dir=tmp_path / "run",
        offline=str(tmp_path / "data"), learning_rate=rate, batch_size=8, views=10,
    )  # fmt: skip
    assert study.run().validation["nrmse"] < bound
