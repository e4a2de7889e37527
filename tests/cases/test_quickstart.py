"""The code of the README and of docs/quickstart.md: a case that verifies, a study that is accepted, a prediction."""

import re
import sys
from pathlib import Path

import pytest

from headrace.online_training import Study
from headrace.solvers.case_file import CaseReference
from headrace.solvers.hdf5 import HDF5Sink
from headrace.solvers.simulate import simulate
from headrace.surrogates import FNO, Problem

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_shown_case_is_a_case(page: str, tmp_path: Path) -> None:
    (text,) = (block for block in blocks(page) if block.startswith('"""Fisher-KPP'))
    file = tmp_path / "fisher_kpp.py"
    file.write_text(text, encoding="utf-8")
    case = CaseReference.of(file).load()
    case.verify()
    assert case.name == "fisher_kpp" and list(case.parameters) == ["nu", "r", "x0"]


def test_the_shown_study_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = (block for block in blocks("docs/quickstart.md") if block.startswith('"""Fisher-KPP'))
    (study,) = (block for block in blocks("docs/quickstart.md") if "Study(case" in block)
    (tmp_path / "fisher_kpp.py").write_text(case, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fisher_kpp", raising=False)
    # Everything of `run` that comes before the first process.
    monkeypatch.setattr(Study, "run", lambda self: ran.append(self._prepare(resume=False)))
    ran: list = []
    exec(compile(study, "quickstart", "exec"), {"__name__": "__main__"})
    assert ran[0].settings.simulations == 200 and ran[0].settings.buffer == "512MB"
    assert (tmp_path / "runs" / "fisher" / "study.toml").exists()


def test_the_shown_prediction_of_a_stepping_model_has_the_times_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = (block for block in blocks("docs/quickstart.md") if block.startswith('"""Fisher-KPP'))
    (shown,) = (block for block in blocks("docs/quickstart.md") if "predict(initial" in block)
    (tmp_path / "fisher_kpp.py").write_text(text, encoding="utf-8")
    case = CaseReference.of(tmp_path / "fisher_kpp.py").load()
    surrogate = FNO(modes=2, width=4)
    surrogate.setup(Problem.of(case))
    surrogate.set_statistics([0.1], [0.3])
    surrogate.save(tmp_path / "runs" / "fisher_kpp-fno" / "model")
    simulate(case, case.accept({"nu": 0.005}), HDF5Sink(tmp_path / "one.h5"))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(shown, "quickstart", "exec"), names)
    assert names["states"].shape == (1, 20, 1, 64, 64) and names["parameters"].shape == (1, 3)
