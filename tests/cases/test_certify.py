"""`headrace certify` on a case, on a program for a case, and on a program alone."""

import shlex
import sys
from pathlib import Path

import pytest

from headrace.cases.certify_command import certify
from tests.mpi_run import mpirun, open_mpi_flags

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(300)]

SOLVER = Path(__file__).parents[1] / "online_training" / "foreign" / "bad_solver.py"


def command(mistake: str) -> str:
    return shlex.join([mpirun(), *open_mpi_flags(), "-n", "{ranks}", sys.executable, str(SOLVER), mistake, "12", "6"])


def test_a_program_alone_says_itself_which_fields_it_has(capsys: pytest.CaptureFixture) -> None:
    code = certify(command("none"), steps=6, parameters=["nu=0.1:0.9"], ranks="2,1")
    said = capsys.readouterr().out
    assert code == 0 and said.endswith("the solver conforms\n"), said
    assert "1, 2 ranks give the same samples" in said


def test_what_is_wrong_is_said_and_is_the_exit_code(capsys: pytest.CaptureFixture) -> None:
    code = certify(command("gap"), steps=6, parameters=["nu=0.1:0.9"], ranks="2")
    said = capsys.readouterr().out
    assert code == 1 and "wrong" in said and "uncovered" in said and "8 of 8 checks failed or were not run" in said


def test_our_own_solver_conforms(capsys: pytest.CaptureFixture) -> None:
    code = certify("fisher_kpp", shape="16x16", ranks="1,2")
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subject": "./heat 64"}, "needs --steps"),
        ({"subject": "./heat 64", "steps": 5, "parameters": ["nu=1"]}, "must be NAME=LOW:HIGH"),
        ({"subject": "./heat '64", "steps": 5}, "is not allowed: No closing quotation"),
        *(({"subject": "heat2d", "ranks": ranks}, "must be numbers of ranks") for ranks in ("0", "", "2,a", "2,,1")),
    ],
)
def test_wrong_flags_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certify(**arguments)
