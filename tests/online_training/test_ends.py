"""Schedules in samples, early stopping, callbacks, and what NaN from a solver does."""

import itertools
import json
import math
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from headrace.cases.command_line import build_app
from headrace.cases.report import write_report
from headrace.online_training.callbacks import find_callbacks
from headrace.online_training.client import STOP, STOPPED, Connection, Word
from headrace.online_training.early_stopping import StopRule, exhausted_patience
from headrace.online_training.metrics_log import MetricsLog, read_metrics
from headrace.online_training.schedule import Schedule
from headrace.online_training.settings import StudySettings
from headrace.online_training.step_limit import Place, StepLimit
from headrace.online_training.study import Study
from headrace.online_training.training_loop import train
from headrace.solvers.case_file import CaseReference
from headrace.surrogates import MLP

from .fake_feed import FakeFeed, make_run, settings_for
from .intake_setup import make_layout, plan, records_of, running_intake, use_environment, wait_until


@pytest.mark.parametrize(("kind", "middle"), [("cosine", 0.15), ("linear", 0.15), ("constant", 0.3)])
def test_learning_rate_rises_to_its_peak_and_falls_as_its_kind_says(kind, middle):
    schedule = Schedule(kind=kind, total=1000, peak=0.3)
    rates = [schedule.rate(n) for n in range(1001)]
    assert max(rates) == pytest.approx(0.3)
    assert rates.index(max(rates)) == 20
    assert rates[510] == pytest.approx(middle)
    last = 0.3 if kind == "constant" else 0.0
    assert rates[-1] == pytest.approx(last) and schedule.rate(2000) == pytest.approx(last)
    assert all(a > b for a, b in itertools.pairwise(rates[20:])) == (kind != "constant")


def test_a_step_schedule_halves_after_so_many_samples():
    schedule = Schedule(kind="step", total=1000, peak=1.0, warm_up=0, halve_every=100)
    assert [schedule.rate(n) for n in (0, 99, 100, 250, 999)] == [1, 1, 0.5, 0.25, 2**-9]
    with pytest.raises(ValueError, match="halve_every is 0 with schedule 'step'"):
        StudySettings(schedule="step")
    with pytest.raises(ValueError, match="halve_every is 10 with schedule 'cosine'"):
        StudySettings(halve_every=10)


def test_the_schedule_counts_samples_whatever_the_batch(tmp_path):
    last = []
    for batch in (8, 16):
        run = make_run(tmp_path / str(batch))
        settings = settings_for(run, 1, batch_size=batch, total_windows=640, schedule="linear")
        train(settings, FakeFeed(1000, batch_size=batch, stop=320 // batch))
        last.append(read_metrics(run / "metrics.jsonl")[-1])
    assert last[0]["windows"] == last[1]["windows"] == 320
    # The rate of a batch is that of its middle: half a batch apart.
    assert last[0]["learning_rate"] == pytest.approx(last[1]["learning_rate"], rel=0.02)


@pytest.mark.parametrize(
    ("errors", "patience", "least", "ends"),
    [
        ([3.0, 2.0, 1.0], 2, 0.0, False), ([1.0, 2.0, 3.0], 2, 0.0, True), ([1.0, 2.0, 0.9, 1.1], 2, 0.0, False),
        ([1.0, 0.99, 0.98], 2, 0.05, True), ([1.0, None, None], 2, 0.0, True), ([1.0, 1.0], 2, 0.0, False),
    ],
)  # fmt: skip
def test_patience_ends_after_checkpoints_without_improvement(errors, patience, least, ends):
    assert exhausted_patience(errors, patience, least) == ends


def test_the_rule_reads_the_runs_own_logs(tmp_path):
    rule = StopRule(tmp_path, patience=2, least=0.0)
    assert rule.reason() is None
    with MetricsLog(tmp_path, "validation") as log:
        for error in (0.5, 0.4, 0.6):
            log.append({"nrmse": error})
            assert rule.reason() is None
        log.append({"nrmse": 0.7})
    assert rule.reason() == "validation did not improve on nRMSE 0.4 in 2 checkpoints"
    (tmp_path / "lost").mkdir()
    with MetricsLog(tmp_path / "lost", "validation") as log:
        for error in (math.nan, math.inf):
            log.append({"nrmse": error})
    lost = StopRule(tmp_path / "lost", patience=2, least=0.0)
    assert lost.reason() == "predictions are not finite in any of 2 validations"
    never = StopRule(tmp_path, patience=0, least=0.0)
    assert never.reason() is None
    with MetricsLog(tmp_path, "metrics") as log:
        log.append({"batch": 3, "stop": "enough: good"})
    assert never.reason() == "enough: good"


CASE_FILE = """
import json
import time

from headrace.cases.heat2d import case as heat

case = heat.resized((8, 8))


def note(event):
    with open(event.run_dir / "events.jsonl", "a") as file:
        file.write(json.dumps([event.kind, event.batch, event.windows, event.metrics.get("loss"),
                               type(event.surrogate).__name__]) + "\\n")


def pause(event):
    time.sleep(0.5)


def broken(event):
    raise RuntimeError("no")


def enough(event):
    if event.windows >= 2000:
        return "2000 windows"
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    path = tmp_path_factory.mktemp("case") / "my_case.py"
    path.write_text(CASE_FILE)
    return CaseReference.of(path)


@pytest.fixture(scope="module")
def data(case, tmp_path_factory):
    from headrace.cases.generate_command import generate_data_set

    folder = tmp_path_factory.mktemp("ends") / "data"
    assert generate_data_set(case, simulations=4, held_out=1, folder=folder, seed=0, sampler="sobol", jobs=1,
                             plain=True) == 0  # fmt: skip
    return folder


def test_callbacks_are_told_and_one_that_fails_is_left_out(case, data, tmp_path, caplog):
    result = Study(case, MLP(hidden=(8,)), run_dir=tmp_path / "run", offline=str(data), views=2, held_out=0,
                   callbacks="note, broken").run()  # fmt: skip
    assert result.status == "finished"
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    kinds = [kind for kind, *_ in events]
    assert kinds[-1] == "end" and {"report", "checkpoint"} <= set(kinds)
    assert events[-1][1:3] == [-(-4 * 101 * 2 // 32), 4 * 101 * 2]
    assert all(np.isfinite(loss) and name == "MLP" for *_, loss, name in events)
    assert caplog.text.count("Callback broken failed") == 1


def test_a_callback_ends_a_training_early_and_the_study_is_finished(case, data, tmp_path, caplog):
    result = Study(case, MLP(hidden=(8,)), run_dir=tmp_path / "run", offline=str(data), views=1e5,
                   held_out=0, callbacks="enough").run()  # fmt: skip
    assert result.status == "finished"
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["stop"] == "enough: 2000 windows" and 2000 <= last["windows"] < last["total_windows"]
    assert caplog.text.count("The training ends early: enough: 2000 windows.") == 1
    shown = CliRunner().invoke(build_app(), ["status", str(tmp_path / "run")], env={"COLUMNS": "160"}).output
    assert "finished early: enough: 2000 windows" in shown
    # Of a data set, what concerns solvers and their simulations is left out.
    assert "data set" in shown and not re.search("solvers|quarantined|lost", shown)
    report = (write_report(tmp_path / "run")).read_text(encoding="utf-8")
    assert "This study finished early: enough: 2000 windows." in report
    assert "simulations of a data set" in report and not re.search("planned|<h2>Stream|Solvers are blocked", report)


def test_patience_ends_an_offline_training(case, data, tmp_path):
    result = Study(case, MLP(hidden=(8,)), run_dir=tmp_path / "run", offline=str(data), views=1e5, learning_rate=1e-9,
                   checkpoint_every=0.5, patience=2, least_improvement=0.5, callbacks="pause").run()  # fmt: skip
    assert result.status == "finished"
    assert 3 <= len(read_metrics(tmp_path / "run" / "validation.jsonl"))


def test_a_callback_that_is_not_there_is_named_before_anything_starts(case, data, tmp_path):
    with pytest.raises(ValueError, match=r"callbacks 'absent'.*no function absent\(event\)"):
        Study(case, MLP(), run_dir=tmp_path / "run", offline=str(data), callbacks="absent").run()
    assert find_callbacks("", None) == [] and not (tmp_path / "run").exists()


def test_a_simulation_that_stands_still_is_told_of_or_given_up_unless_it_waits():
    here, further = Place(4, 1, 7), Place(4, 1, 8)
    plain, limited = StepLimit(0.0), StepLimit(60.0)
    for limit in (plain, limited):
        assert limit.look({"a": (here, False)}, 0.0) == limit.look({"a": (here, False)}, 59.0) == ([], {})
    late, overdue = limited.look({"a": (here, False), "b": (Place(5, 1, 0), False)}, 60.0)
    assert late == [] and list(overdue) == ["a"] and overdue["a"][0] == here
    assert "simulation 4 in job a has sent 7 steps, and none for 60 s" in overdue["a"][1]
    assert limited.look({"a": (here, False)}, 100.0) == ([], {}), "it is not ended twice at once"
    assert plain.look({"a": (here, False)}, 599.0) == ([], {})
    (late,), overdue = plain.look({"a": (here, False)}, 601.0)
    assert "none for 601 s" in late and "resume it with --step-limit SECONDS" in late and not overdue
    ordered = StepLimit(0.0, allowed=False)
    ordered.look({"a": (here, False)}, 0.0)
    (late,), _ = ordered.look({"a": (here, False)}, 601.0)
    assert "a study without --deterministic" in late and "resume" not in late
    assert plain.look({"a": (further, False)}, 900.0) == plain.look({"a": (further, False)}, 1600.0) == ([], {}), "once"
    assert plain.look({"a": (Place(5, 1, 0), False)}, 1700.0) == ([], {})
    assert len(plain.look({"a": (Place(5, 1, 0), False)}, 2400.0)[0]) == 1, "of another one too"
    for seconds in range(0, 600, 50):  # it moves on, waits for the study, or another one runs in its job
        assert limited.look({"c": (here if seconds < 250 else further, seconds % 100 == 0)}, seconds) == ([], {})
    assert limited.look({"c": (Place(6, 1, 8), False)}, 601.0) == ([], {})
    assert limited.look({}, 700.0) == limited.look({"c": (Place(6, 1, 8), False)}, 1000.0) == ([], {})


@pytest.mark.parametrize("policy", ["quarantine", "stop"])
def test_what_is_given_up_is_not_run_again_and_what_has_moved_on_is_left_alone(policy, tmp_path, monkeypatch):
    with running_intake(tmp_path, make_layout(), nan_policy=policy) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 2)
        with Connection({"u": (7, 5)}) as connection:
            simulations = connection.simulations()
            stream = next(simulations)
            stream.send(step=0, time=0.0, values=np.ones((1, 7, 5), np.float32))
            ((place, waits),) = wait_until(
                lambda: (now := list(intake.status()["running_in"].values())) and now[0][0].received and now
            )
            assert place == Place(0, 1, 1) and not waits
            assert not intake.give_up(Place(0, 1, 0), "it has moved on")
            assert not intake.give_up(Place(1, 1, 0), "it does not run")
            assert intake.give_up(place, "none for 60 s")
            assert intake.job_ended("1-0001", 1) == [], "it is not run again"
        status = intake.status()
        assert [one["reason"] for one in status["quarantined"]] == ["none for 60 s"] and status["queued"] == 1
        assert status["lost"] == 0, "what is given up does not count as lost and run again"
        assert ("none for 60 s" in status["fatal"]) == (policy == "stop") and not status["running_in"]


@pytest.mark.parametrize("policy", ["quarantine", "stop"])
def test_what_was_told_to_stop_and_hangs_keeps_its_steps_when_it_is_given_up(policy, tmp_path, monkeypatch):
    with running_intake(tmp_path, make_layout(), nan_policy=policy) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 1)
        with Connection({"u": (7, 5)}) as connection:
            stream = next(connection.simulations())
            for step in range(2):
                stream.send(step=step, time=0.1 * step, values=np.ones((1, 7, 5), np.float32))
            wait_until(lambda: intake.status()["steps_accepted"] == 2)
            with intake._lock:
                intake._table.steer(0, Word.STOP, "it has taught enough")
            assert intake.give_up(Place(0, 1, 2), "none for 60 s"), "its job is ended all the same"
            assert intake.job_ended("1-0001", 143) == [], "it is not run again"
        status = intake.status()
        assert (status["done"], status["windows_accepted"], status["lost"]) == (1, 1, 0)
        assert status["quarantined"] == [] and status["fatal"] == "" and not status["running_in"]
    assert [(one["status"], one["steps"]) for one in records_of(tmp_path, "ended")] == [(STOPPED, 2)]
    assert records_of(tmp_path, "lost") == []


def test_a_job_whose_simulation_was_given_up_gets_no_other_that_would_be_lost_with_it(tmp_path, monkeypatch):
    with running_intake(tmp_path, make_layout()) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 2)
        with Connection({"u": (7, 5)}) as connection:
            with next(connection.simulations()) as stream:
                assert intake.give_up(Place(0, 1, 0), "none for 60 s")
                stream.send(step=0, time=0.0, values=np.ones((1, 7, 5), np.float32))  # it comes late, and ends
            wait_until(lambda: not intake.status()["running_in"])
            with intake._lock:
                assert intake._table.admit("1-0001") is None
                assert intake._table.admit("1-0002").number == 1


@pytest.mark.parametrize("policy", ["quarantine", "stop", "keep"])
def test_nan_from_a_solver_does_what_the_policy_says(policy, tmp_path, monkeypatch):
    with running_intake(tmp_path, make_layout(), nan_policy=policy) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 1)
        words = []
        with Connection({"u": (7, 5)}) as connection:
            for stream in connection.simulations():
                with stream:
                    for step in range(6):
                        values = np.full((1, 7, 5), np.nan if step == 1 else 1.0, np.float32)
                        words.append(stream.send(step=step, time=0.1 * step, values=values))
        status = wait_until(lambda: (s := intake.status())["running"] == 0 and s["queued"] == 0 and s)
    assert (STOP in words) == (policy != "keep")
    assert bool(status["quarantined"]) == (policy != "keep")
    assert (status["steps_accepted"] == 6) == (policy == "keep")
    assert ("nan_policy is 'stop'" in status["fatal"]) == (policy == "stop")
    with pytest.raises(ValueError, match="nan_policy is 'ignore'"):
        running_intake(tmp_path, make_layout(), nan_policy="ignore").__enter__()
