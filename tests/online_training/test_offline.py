"""Training from disk: every window once an epoch, the bytes of the files, and the same training as from a stream."""

import json
import shutil
import threading

import h5py
import numpy as np
import pytest

from headrace.cases.catalogue import find_case
from headrace.cases.generate_command import generate_data_set
from headrace.online_training import Study
from headrace.online_training.audit import audit
from headrace.online_training.layout import StreamLayout
from headrace.online_training.metrics_log import last_record
from headrace.online_training.offline_data import PACKED, OfflineData
from headrace.online_training.offline_feed import OfflineFeed, batches_of
from headrace.online_training.run_directory import StudyError
from headrace.solvers.hdf5 import read_trajectory
from headrace.surrogates import FNO, MLP, Stepping

CASE = find_case("heat2d", (8, 8))
STEPS = 101


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline") / "data"
    made = generate_data_set(
        CASE, simulations=6, held_out=2, folder=folder, seed=3, sampler="sobol", jobs=1, plain=True
    )  # fmt: skip
    assert made == 0
    return folder


def layout_of(window):
    return StreamLayout.of(CASE.load(), window)


def test_every_epoch_is_a_new_permutation_and_batches_are_full():
    batches = list(batches_of(10, 3.5, 4, seed=1))
    assert [len(batch) for batch in batches] == [4] * 8 + [3]
    uses = np.concatenate(batches)
    epochs = [uses[:10], uses[10:20], uses[20:30]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert not any(np.array_equal(a, b) for a in epochs for b in epochs if a is not b)
    assert len(set(uses[30:])) == 5
    resumed = list(batches_of(10, 3.5, 4, seed=1, first=5))
    assert all(np.array_equal(a, b) for a, b in zip(resumed, batches[5:], strict=True))


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("processes", [0, 2])
def test_windows_hold_the_states_of_the_files(folder, mapped, processes):
    data = OfflineData(folder, layout_of(3), limit=4, mapped=mapped)
    assert len(data) == 4 * (STEPS - 2)
    feed = OfflineFeed(data, batch_size=64, views=1, processes=processes)
    files = [read_trajectory(folder / f"sim-{n:06d}.h5") for n in range(4)]
    seen = set()
    while (draw := feed.next()) is not None:
        for row, record in enumerate(draw.table):
            file, start = files[record["simulation"]], int(record["start"])
            seen.add((int(record["simulation"]), start))
            np.testing.assert_array_equal(draw.states[row], file.values[start : start + 3].astype(np.float32))
            np.testing.assert_array_equal(draw.times[row], file.times[start : start + 3])
            assert draw.parameters[row].tolist() == [file.parameters[name] for name in data.layout.parameters]
    feed.close()
    assert len(seen) == len(data)
    values = np.concatenate([file.values.astype(np.float32) for file in files]).astype(np.float64)
    statistics = feed.statistics()
    assert statistics["mean"][0] == pytest.approx(values.mean())
    assert statistics["std"][0] == pytest.approx(values.std())


def test_two_workers_share_each_batch(folder):
    data = OfflineData(folder, layout_of(1), limit=2)
    feeds = [OfflineFeed(data, batch_size=10, views=1, rank=rank, num_ranks=2) for rank in range(2)]
    whole = OfflineFeed(data, batch_size=10, views=1)
    while (draw := whole.next()) is not None:
        halves = [feed.next().table for feed in feeds]
        assert len(halves[0]) == len(halves[1])
        np.testing.assert_array_equal(np.concatenate(halves)[["simulation", "start"]][: len(draw.table)],
                                      draw.table[["simulation", "start"]])  # fmt: skip
    for feed in (*feeds, whole):
        feed.close()


def test_the_packed_file_is_made_once_and_anew_when_a_file_changes(folder):
    OfflineData(folder, layout_of(1), limit=3)
    before = (folder / PACKED).stat().st_mtime_ns
    OfflineData(folder, layout_of(2), limit=3)
    assert (folder / PACKED).stat().st_mtime_ns == before
    path = folder / "sim-000002.h5"
    original = path.read_bytes()
    try:
        with h5py.File(path, "r+") as file:
            file[f"fields/{CASE.load().fields[0]}"][5] = 7.0
        data = OfflineData(folder, layout_of(1), limit=3)
        assert np.all(data.gather([2 * STEPS + 5])["states"] == 7.0)
    finally:
        path.write_bytes(original)


def test_a_set_of_another_case_is_refused_before_anything_is_written(folder, tmp_path):
    with pytest.raises(ValueError, match=r"sim-000000.h5 holds T on \(8, 8\).*needs T on \(16, 8\)"):
        Study(find_case("heat2d", (16, 8)), MLP(), run_dir=tmp_path / "run", offline=str(folder)).run()
    with pytest.raises(ValueError, match="holds no simulations"):
        Study(CASE, MLP(), run_dir=tmp_path / "run", offline=str(tmp_path)).run()
    assert not (tmp_path / "run").exists()


def study(folder, run_dir, **settings):
    return Study(
        CASE, MLP(hidden=(64, 64)), run_dir=run_dir,
        **{"offline": str(folder), "learning_rate": 1e-2, "views": 8, "seed": 1, **settings},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The run directory of a study that nobody disturbed, its result, and what it said meanwhile."""
    run, said = tmp_path_factory.mktemp("offline") / "whole", []
    return run, study(folder, run).run(progress=said.append), said


def test_an_offline_study_learns_validates_and_is_kept_when_run_again(folder, whole):
    run, result, said = whole
    assert result.status == "finished" and said
    assert 0 < result.validation["nrmse"] < 0.15  # the mean state gives about 0.4
    last = last_record(run / "metrics.jsonl")
    assert last["windows"] == last["total_windows"] == 6 * STEPS * 8
    assert sorted(p.name for p in (run / "held_out").iterdir()) == ["sim-000006.h5", "sim-000007.h5"]
    with pytest.raises(StudyError, match="no stream to audit"):
        audit(run)
    again = study(folder, run).run(resume=True)
    assert again.validation == result.validation
    with pytest.raises(StudyError, match="was started with seed"):
        study(folder, run, seed=2).run(resume=True)


def test_a_stopped_training_goes_on_to_the_bits_of_one_that_was_not(folder, whole, tmp_path, monkeypatch):
    batches, plain = [], OfflineFeed.next

    def stopping(feed):
        if len(batches) == 40:
            feed.on_stop()
        batches.append(feed)
        return plain(feed)

    from headrace.online_training import offline_study

    def remember(stop):
        OfflineFeed.on_stop = staticmethod(stop)
        return threading.Lock()  # a context manager that does nothing here

    with monkeypatch.context() as patched:
        patched.setattr(OfflineFeed, "next", stopping)
        patched.setattr("headrace.online_training.study.orderly_stop", remember)
        assert study(folder, tmp_path / "cut", held_out=0).run().status == "stopped"
    assert last_record(tmp_path / "cut" / "metrics.jsonl")["batch"] == 40
    assert study(folder, tmp_path / "cut", held_out=0).run(resume=True).status == "finished"
    assert offline_study.Ledger(tmp_path / "cut" / "ledger").finished
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole[0], tmp_path / "cut")]
    assert weights[0] == weights[1]


def test_without_held_out_files_the_last_simulations_are_kept_out(folder, tmp_path, validated_at_the_end):
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in folder.glob("sim-*.h5"):
        (plain / path.name).hardlink_to(path)
    study(plain, tmp_path / "run", held_out=2, views=1, loader="hdf5").run()
    assert sorted(p.name for p in (tmp_path / "run" / "held_out").iterdir()) == ["sim-000004.h5", "sim-000005.h5"]
    assert last_record(tmp_path / "run" / "metrics.jsonl")["windows"] == 4 * STEPS
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_whose_values_are_damaged_is_named(mapped, folder, tmp_path):
    """What describes it is read first and may be sound."""
    shutil.copytree(folder, tmp_path / "set", ignore=shutil.ignore_patterns("packed*"))
    damaged = tmp_path / "set" / "sim-000001.h5"
    with h5py.File(damaged, "a") as file:
        del file["fields/T"]
    with pytest.raises(OSError, match=f"{damaged} is no sound simulation of a data set"):
        OfflineData(tmp_path / "set", layout_of(1), limit=2, mapped=mapped).statistics()


def test_a_time_limit_ends_the_stream(folder):
    feed = OfflineFeed(OfflineData(folder, layout_of(1), limit=2), batch_size=1, views=1e6, seconds=0.3)
    while feed.next() is not None:  # of 200 million batches
        pass
    feed.close()


@pytest.mark.parametrize(("pushforward", "said"), [(0, False), (1, True)])
def test_a_study_says_that_steps_that_differ_are_not_recorded(pushforward, said, tmp_path, caplog):
    model = FNO(modes=2, width=4, stepping=Stepping(pushforward=pushforward))
    study = Study(CASE, model, run_dir=tmp_path / "run", record_steps=True, offline=str(tmp_path / "none"))
    with pytest.raises((ValueError, OSError), match="holds no simulations"):
        study.run()
    assert ("record_steps is left out: the batches of this FNO" in caplog.text) == said
