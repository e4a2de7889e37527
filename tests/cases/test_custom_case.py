"""The file that users copy: short, right, and the same wherever it runs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.cases import custom_case
from headrace.cases.models import make_model
from headrace.solvers import MemorySink
from headrace.solvers.case_file import CaseReference
from headrace.solvers.hdf5 import read_trajectory
from headrace.solvers.operators import VOCABULARY
from headrace.solvers.simulate import simulate
from headrace.surrogates import Problem, WindowBatch
from tests.mpi_run import run_mpi

FILE = Path(custom_case.__file__)
PAGE = FILE.parent.parent / "docs" / "custom_case.md"


def solve(**parameters):
    sink = MemorySink()
    simulate(custom_case.case, custom_case.case.accept(parameters), sink)
    return sink.values[:, 0]


def test_it_is_short_and_needs_nothing_but_headrace():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    imported = {line.split()[1].split(".")[0] for line in lines if re.match(r"(from|import) ", line)}
    assert imported == {"numpy", "headrace"}


def test_the_page_quotes_the_file_and_names_every_operator():
    page, source = PAGE.read_text(encoding="utf-8"), FILE.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        if "ExternalProgram" in block or "Autoregressive" in block:
            continue
        for line in block.splitlines():
            assert line in source, line
    for word in VOCABULARY:
        assert f"d.{word}" in page, word


def test_the_model_of_the_page_learns_from_the_file_that_it_is_added_to(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "Autoregressive" in text]
    (tmp_path / "chimney.py").write_text(FILE.read_text(encoding="utf-8") + block, encoding="utf-8")
    (flags,) = re.findall(r"chimney.py train --model Plain((?: --architecture \S+)*)", page)
    model = make_model("Plain", flags.split()[1::2], CaseReference.of(tmp_path / "chimney.py"))
    model.setup(Problem.of(custom_case.case))
    model.set_statistics([0.1], [0.1])
    windows = WindowBatch(
        states=torch.rand(2, model.window, 1, 64, 48), times=torch.rand(2, model.window), parameters=torch.rand(2, 7)
    )
    assert model.stepping.unroll == 2 and model.training_loss(windows).shape == (2,)


def test_pollution_stays_positive_is_proportional_to_its_source_and_goes_with_the_wind():
    once, twice = solve(source=1.0, wind=(0.8, 0.2)), solve(source=2.0, wind=(0.8, 0.2))
    assert once.min() >= 0 and once[-1].max() > 0.05
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-9, atol=1e-12)
    x, y = (custom_case.case.grid.points(axis, periodic=False) for axis in (0, 1))
    moments = [np.tensordot(once[-1].sum(axis=1 - axis), c, 1) / once[-1].sum() for axis, c in enumerate((x, y))]
    assert moments[0] > 0.45 + 0.1 and moments[1] > 0.75 + 0.02, moments


def test_what_comes_in_stays_or_decays():
    """Before the plume reaches a wall: d/dt ∫u = source ∫chimney - λ ∫u."""
    case, p = custom_case.case, custom_case.case.accept({"decay": 0.7, "wind": (0.5, 0.0), "kappa": 1e-3})
    values = solve(**dict(p))[:11]
    x, y = np.meshgrid(*(case.grid.points(axis, periodic=False) for axis in (0, 1)), indexing="ij")
    rate = p.source * np.exp(-((x - p.chimney[0]) ** 2 + (y - p.chimney[1]) ** 2) / 0.01).sum()
    exact = rate / 0.7 * (1 - np.exp(-0.7 * case.times[10]))
    assert values[10].sum() == pytest.approx(exact, rel=2e-3)


@pytest.mark.mpi
def test_a_copy_is_a_program_on_any_number_of_ranks(tmp_path):
    copy = tmp_path / "chimney.py"
    copy.write_bytes(FILE.read_bytes())
    flags = ["solve", "--shape", "24x20", "--set", "source=2", "--plain", "--output"]
    serial = subprocess.run(
        [sys.executable, str(copy), *flags, str(tmp_path / "1.h5")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert serial.returncode == 0, serial.stderr
    done = run_mpi(2, [str(copy), *flags, str(tmp_path / "2.h5")])
    assert done.returncode == 0, done.stderr
    one, two = (read_trajectory(tmp_path / f"{ranks}.h5") for ranks in (1, 2))
    assert one.parameters["source"] == 2 and one.parameters["wind_0"] == 0.75
    np.testing.assert_allclose(two.values, one.values, rtol=1e-12, atol=1e-14)
