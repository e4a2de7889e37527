"""The validator: its figures are those of the metrics, and its process follows a run without being in its way."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch

from headrace.online_training.metrics_log import read_metrics
from headrace.online_training.training_loop import train
from headrace.online_training.validator import (
    HeldOut,
    ValidatorProcess,
    evaluate,
    main,
    read_held_out,
    validate_run,
)
from headrace.solvers import Case, Grid, Parameters, Uniform
from headrace.solvers.hdf5 import HDF5Sink
from headrace.solvers.sink import Snapshot
from headrace.surrogates import MLP, Problem, load_surrogate
from headrace.surrogates.metrics import max_error, nrmse, vrmse

from .fake_feed import POINTS, PROBLEM, FakeFeed, make_run, settings_for, solution
from .intake_setup import PATIENCE, wait_until

CASE = Case(
    name="wave", fields=("u",), grid=Grid(shape=(POINTS,), extent=(1.0,)), duration=1.0, num_snapshots=20,
    parameters={"a": Uniform(0.5, 1.5), "b": Uniform(0.0, 1.0)}, initial=lambda x, p, rng: p.a * np.sin(x[0]),
    rhs=lambda u, d, p, t: -p.b * u,
)  # fmt: skip


def write_held_out(run, number, a, b):
    (run / "held_out").mkdir(exist_ok=True)
    sink = HDF5Sink(run / "held_out" / f"sim-{number:06d}.h5")
    sink.open(CASE, Parameters({"b": b, "a": a}), None)
    for step, t in enumerate(CASE.times):
        sink.write(Snapshot(step=step, time=t, values=solution(a, b, t), where=(slice(0, POINTS),)))
    sink.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with two held-out simulations and a trained model."""
    run = make_run(tmp_path_factory.mktemp("trained"))
    write_held_out(run, 50, 0.8, 0.3)
    write_held_out(run, 51, 1.2, 0.6)
    train(settings_for(run, 60), FakeFeed(60))
    return run


class Persistence(MLP):
    """Predicts that the first two states' last one stays: needs a history."""

    history = 2

    def predict(self, initial, parameters, times):
        return initial[:, -1:].expand(-1, len(times), -1, -1)


def random_trajectories(offset):
    rng = np.random.default_rng(1)
    times = np.linspace(0, 1, 21)
    return [
        HeldOut(simulation=n, parameters=np.array([1.0, 0.5]), times=times,
                states=(offset + rng.normal(size=(21, 2, POINTS)) * [[1], [30]]).astype(np.float32))
        for n in (7, 9, 12)
    ]  # fmt: skip


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_errors_are_those_of_the_metrics(offset):
    model = Persistence()
    model.setup(Problem(**{**vars(PROBLEM), "fields": ("u", "v")}))
    trajectories = random_trajectories(offset)
    errors = evaluate(model, trajectories)

    truth = np.stack([one.states[2:] for one in trajectories])
    prediction = np.stack([np.repeat(one.states[1:2], 19, axis=0) for one in trajectories])
    assert errors["nrmse"] == pytest.approx(float(nrmse(prediction, truth)), rel=1e-9)
    assert errors["vrmse"] == pytest.approx(float(vrmse(prediction, truth)), rel=1e-9)
    assert errors["max_error"] == pytest.approx(float(max_error(prediction, truth).max()), rel=1e-9)
    assert errors["steps"]["times"] == pytest.approx(trajectories[0].times[2:])
    assert errors["steps"]["nrmse"] == pytest.approx(nrmse(prediction, truth, per_step=True), rel=1e-9)
    assert errors["steps"]["vrmse"] == pytest.approx(vrmse(prediction, truth, per_step=True), rel=1e-9)
    for row, one, guess in zip(errors["simulations"], truth, prediction, strict=True):
        assert row["nrmse"] == pytest.approx(float(nrmse(guess[None], one[None])), rel=1e-9)
        assert row["vrmse"] == pytest.approx(float(vrmse(guess[None], one[None])), rel=1e-9)
    assert [row["simulation"] for row in errors["simulations"]] == [7, 9, 12]
    single = sorted(row["nrmse"] for row in errors["simulations"])
    assert (errors["median_nrmse"], errors["worst_nrmse"]) == (single[1], single[2])
    trajectories[1].states[1] = np.nan  # from which the model goes on
    assert math.isnan(evaluate(model, trajectories)["worst_nrmse"])


def test_a_perfect_prediction_has_no_error_and_none_to_evaluate_is_refused(trained):
    model = load_surrogate(trained)
    times = torch.tensor(CASE.times, dtype=torch.float32)
    states = model.predict(None, torch.tensor([[1.0, 0.5]]), times)[0].numpy()
    exact = HeldOut(simulation=0, parameters=np.array([1.0, 0.5]), times=CASE.times, states=states)
    errors = evaluate(model, [exact])
    assert errors["nrmse"] == errors["vrmse"] == errors["max_error"] == 0.0
    with pytest.raises(ValueError, match="no held-out simulation"):
        evaluate(model, [])


def test_parameters_are_put_in_the_order_of_the_problem(trained):
    held_out = read_held_out(trained / "held_out" / "sim-000051.h5", PROBLEM)
    assert held_out.simulation == 51
    assert held_out.parameters.tolist() == [1.2, 0.6]  # the file has b first
    assert held_out.states.shape == (21, 1, POINTS)
    other = Problem(**{**vars(PROBLEM), "parameters": {"a": (0.0, 1.0)}})
    with pytest.raises(ValueError, match=r"sim-000051.h5 holds states .* with parameters b, a; the model"):
        read_held_out(trained / "held_out" / "sim-000051.h5", other)


def test_a_run_is_validated_once(trained, tmp_path, capsys):
    errors = validate_run(trained)
    assert set(errors) == {"nrmse", "vrmse", "max_error", "median_nrmse", "worst_nrmse"}
    assert main([str(trained), "--once"]) == 0
    assert json.loads(capsys.readouterr().out) == errors
    assert main([str(tmp_path), "--once"]) == 2
    assert "No surrogate in" in capsys.readouterr().err


def wait_for(condition):
    # Of low priority: beside busy processes it has some per cent of a core.
    wait_until(condition, 3 * PATIENCE)


def test_the_process_follows_the_checkpoints_and_finishes_with_the_last(tmp_path):
    run = make_run(tmp_path)
    log = run / "validation.jsonl"
    train(settings_for(run, 40), FakeFeed(40, stop=10))
    with ValidatorProcess(run) as validator:
        wait_for(log.exists)
        assert psutil.Process(validator.pid).nice() == min(19, psutil.Process().nice() + 10)
        write_held_out(run, 50, 0.8, 0.3)
        wait_for(lambda: len(read_metrics(log)) == 1)
        train(settings_for(run, 40, generation=2), FakeFeed(40, start=10))
        write_held_out(run, 51, 1.2, 0.6)
    records = read_metrics(log)
    assert (records[0]["batch"], records[0]["simulations"]) == (10, 1)
    assert (records[-1]["batch"], records[-1]["simulations"]) == (40, 2)
    assert records[-1]["nrmse"] == pytest.approx(validate_run(run)["nrmse"])
    assert not psutil.pid_exists(validator.pid)
    assert list((run / "tensorboard" / "validation").iterdir())


def test_sigterm_ends_it_and_the_death_of_its_driver_too(tmp_path):
    run = make_run(tmp_path)
    command = [sys.executable, "-m", "headrace.online_training.validator", str(run)]
    driver = (
        "import subprocess, sys, time; child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE);"
        "print(child.pid, flush=True); time.sleep(99)"
    )
    one = subprocess.Popen(command, stdin=subprocess.PIPE)
    two = subprocess.Popen([sys.executable, "-c", driver, *command], stdout=subprocess.PIPE, text=True)
    orphan = psutil.Process(int(two.stdout.readline()))
    wait_for((run / "validation.jsonl").exists)
    os.kill(two.pid, signal.SIGKILL)
    one.send_signal(signal.SIGTERM)
    assert one.wait(PATIENCE) in (0, -signal.SIGTERM)  # before its handler stands, the signal itself ends it
    two.wait(PATIENCE)
    wait_for(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
    one.stdin.close()
    two.stdout.close()


def test_metrics_survive_a_kill_and_are_continued(tmp_path):
    from headrace.online_training.metrics_log import MetricsLog, last_record

    assert last_record(tmp_path / "metrics.jsonl") is None
    with MetricsLog(tmp_path, "metrics") as log:
        log.append({"batch": 1, "loss": math.nan, "nested": {"x": 1.5}, "why": "text"})
        assert last_record(tmp_path / "metrics.jsonl")["loss"] is None
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"batch": 2, "lo')  # a killed writer
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    with MetricsLog(tmp_path, "metrics") as log:
        log.append({"batch": 3})
    assert [record["batch"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]


def test_a_damaged_line_of_metrics_is_named(tmp_path):
    from headrace.online_training.metrics_log import last_record

    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"batch": 1}\n{"batch": 2, "why": "\xff"}\n')
    for read in (read_metrics, last_record):
        with pytest.raises(ValueError, match=r'metrics.jsonl is damaged: .*line that begins with {"batch": 2'):
            read(path)


def test_tensorboard_reads_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    from headrace.online_training.metrics_log import MetricsLog

    with MetricsLog(tmp_path, "intake") as log:
        log.append({"batch": 4, "loss": 0.25, "rejected": {"crc": 2}, "ok": True, "list": [1]})
    (file,) = (tmp_path / "tensorboard" / "intake").iterdir()
    found = {
        (event.step, value.tag): float(value.tensor.float_val[0])
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    }
    assert found == {(4, "intake/loss"): 0.25, (4, "intake/rejected/crc"): 2.0}


def test_a_full_disk_is_named(tmp_path):
    from headrace.online_training.metrics_log import MetricsLog

    (tmp_path / "metrics.jsonl").touch()
    log = MetricsLog(tmp_path, "metrics")
    log._lines.close()
    log._lines = open("/dev/full", "ab", buffering=0)
    with pytest.raises(OSError, match=r"cannot append metrics .*make room.*metrics\.jsonl"):
        log.append({"batch": 1})
    log.close()
