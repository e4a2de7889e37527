"""The code of the README and of docs/quickstart.md: a case that verifies, and a study that is accepted."""

import re
import sys
from pathlib import Path

import pytest

from headrace.online_training import Study
from headrace.solvers.case_file import CaseReference

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
