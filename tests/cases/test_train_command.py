"""What `headrace train` passes on, shows and prints; the study itself is replaced by a finished run directory."""

import io
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from headrace.cases import train_command
from headrace.cases.catalogue import find_case
from headrace.cases.command_line import build_app
from headrace.cases.run_data import figures_of
from headrace.cases.study_progress import StudyProgress, plain_line
from headrace.online_training.settings import StudySettings
from headrace.online_training.study import Study, StudyResult
from headrace.surrogates import FNO
from tests.cases.synthetic_run import make_run

STATE = {
    "elapsed": 12.0,
    "intake": {
        "done": 3, "planned": 7, "steps_accepted": 300, "quarantined": [{"simulation": 2}], "lost": 0,
        "population": 50, "capacity": 200, "blocked_seconds": 1.0, "solver_seconds": 4.0,
    },
    "trainer": {
        "windows": 640, "total_windows": 4040, "loss": 0.0123, "samples_per_second": 1234.5, "starved": 0.1,
    },
    "validation": {"nrmse": 0.0321},
}  # fmt: skip
EARLY = {"elapsed": 0.1, "intake": {"planned": 7}, "trainer": None, "validation": None}


class FinishedStudy(Study):
    """Takes everything a study takes and leaves a run directory, without processes."""

    made = None
    status = "finished"

    def run(self, *, resume=False, progress=None):
        type(self).made = (self, resume)
        progress(EARLY)
        progress(STATE)
        if self.status == "finished" and not self.directory.exists:
            make_run(self.directory.path, epochs=1, simulations=2, held_out=1)
        validation = {"nrmse": 0.0123456, "vrmse": 0.07, "median_nrmse": 0.012, "worst_nrmse": 0.015}
        return StudyResult(run_dir=self.directory.path, status=self.status, validation=validation)


@pytest.fixture
def study(monkeypatch, tmp_path):
    class OneStudy(FinishedStudy):
        pass

    monkeypatch.setattr(train_command, "Study", OneStudy)
    monkeypatch.chdir(tmp_path)
    return OneStudy


def train(*arguments):
    return CliRunner().invoke(build_app(), ["train", *arguments], env={"COLUMNS": "160", "TERM": "dumb"})


def test_the_last_lines_are_the_errors_and_the_report(study, tmp_path):
    result = train("heat2d", "--run-dir", "run")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-4:] == [
        "nRMSE of single simulations: median 0.01200, worst 0.01500",
        "validation nRMSE 0.01235",
        "validation VRMSE 0.07000",
        f"report {tmp_path / 'run' / 'report.html'}",
    ]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_flags_reach_the_study(study):
    study.status = "stopped"
    train("heat2d", "--model", "fno", "--architecture", "modes=3", "--shape", "8x6", "--simulations", "7", "--strict",
          "--watermark", "0.5")  # fmt: skip
    made, resume = study.made
    assert isinstance(made.surrogate, FNO) and made.case.shape == (8, 6) and not resume
    assert made.settings == StudySettings(simulations=7, strict=True, watermark=0.5)
    assert made.directory.path.parts[-2:] == ("runs", "heat2d-fno")


def test_a_stopped_study_says_how_to_go_on(study):
    study.status = "stopped"
    result = train("heat2d", "--run-dir", "run")
    assert result.exit_code == train_command.STOPPED
    assert "--resume" in result.stderr and "validation" not in result.stdout


def test_a_resumed_study_keeps_the_settings_that_are_not_given(study, tmp_path):
    make_run(tmp_path / "run", epochs=1, simulations=2, held_out=1)
    study.status = "stopped"
    train("heat2d", "--shape", "8x8", "--run-dir", "run", "--resume", "--ranks", "1")
    made, resume = study.made
    assert resume
    assert made.settings == StudySettings(simulations=2, held_out=1, ranks=1)
    wrong = train("heat2d", "--shape", "8x8", "--run-dir", "run", "--resume", "--model", "fno")
    assert wrong.exit_code == 2 and "trains a MLP" in wrong.stderr


def show(*, terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, highlight=False)
    with StudyProgress(find_case("heat2d").load(), StudySettings(), console, plain=False) as progress:
        progress.show(EARLY)
        progress.show(STATE)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_what_is_known_on_a_terminal_and_in_a_log(terminal):
    text = show(terminal=terminal)
    for words in ("3/7", "0.0123", "1,234", "0.0321", "25%", "10%", "quarantined"):
        assert words in text, (words, text)
    if not terminal:
        assert len(text.splitlines()) == 2, "one line for each state that came five seconds or more apart"


def test_a_line_about_a_data_set_counts_no_simulations():
    trainer = {"windows": 640, "total_windows": 4040, "loss": 0.0123}
    assert plain_line(figures_of({"trainer": trainer})) == "windows 640/4040, loss 0.0123"


def test_an_interrupt_before_the_study_listens_is_told(study, monkeypatch):
    def interrupted(self, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run", interrupted)
    result = train("heat2d", "--run-dir", "run")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("interrupted") and "--resume" in result.stderr
