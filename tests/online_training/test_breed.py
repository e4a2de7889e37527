"""Breed: proposals follow the losses, stay in the cube, repeat; the plan runs ahead of need and survives a restart."""

from collections import Counter

import numpy as np
import pytest

from headrace.cases.catalogue import find_case
from headrace.online_training.adaptive_plan import AdaptivePlan, first_generation, unplanned
from headrace.online_training.breed import Breed, BreedSettings, LossLog, LossReader, excess_of
from headrace.online_training.design import draw_design
from headrace.online_training.ledger import Ledger, RecordWriter
from headrace.online_training.settings import StudySettings
from headrace.online_training.training_loop import train

from .fake_feed import FakeFeed, make_run, settings_for

ALWAYS = BreedSettings(first_share=1.0, last_share=1.0, spread=0.05)


def bred(settings=None, *, excess, count=400):
    """A sampler that knows of 50 simulations, `excess(point)` their losses, and its further proposals."""
    design = draw_design(2, count, seed=1)
    breed = Breed(design, 50, 7, settings)
    for n in range(50):
        breed.propose(n)
        breed.observe(n, 20 * excess(design[n]), 20)
    return design, np.array([breed.propose(n) for n in range(50, count)])


def test_excess_is_in_standard_deviations_above_the_batch():
    losses = np.array([1.0, 1.0, 1.0, 5.0])
    assert excess_of(losses) == pytest.approx([0, 0, 0, 3 / np.sqrt(3)])
    assert np.array_equal(excess_of(np.full(3, 2.0)), np.zeros(3))
    assert excess_of(100 * losses) == pytest.approx(excess_of(losses))


def test_children_gather_where_losses_are_large():
    _, points = bred(ALWAYS, excess=lambda x: float(x[0] > 0.8))
    assert np.mean(points[:, 0] > 0.7) > 0.95
    assert np.ptp(points[:, 1]) > 0.8  # along the other axis there is nothing to follow
    assert np.all((points >= 0) & (points < 1))


def test_the_share_of_children_rises_to_its_last_value():
    design, points = bred(BreedSettings(first_share=0.1, last_share=0.7), excess=lambda x: 1.0, count=4050)
    child = np.any(points != design[50:], axis=1)
    assert np.mean(child[:400]) == pytest.approx(0.1 + 0.6 * 0.1, abs=0.06)  # of the line through the first half
    assert np.mean(child[2000:]) == pytest.approx(0.7, abs=0.04)


def test_without_losses_the_plain_design_is_kept():
    design, points = bred(ALWAYS, excess=lambda x: 0.0)
    assert np.array_equal(points, design[50:])


def test_proposals_repeat():
    first, second = (bred(excess=lambda x: x[1])[1] for _ in range(2))
    assert np.array_equal(first, second)


def test_a_parent_is_chosen_in_proportion_to_its_fitness():
    design = np.zeros((3000, 1))
    breed = Breed(design, 2, 0, BreedSettings(first_share=1, last_share=1, spread=1e-3))
    breed.add(0, np.array([0.25]))
    breed.add(1, np.array([0.75]))
    breed.observe(0, 1.0, 1)
    breed.observe(1, 9.0, 3)  # a mean of 3
    points = np.array([breed.propose(n) for n in range(2, 3000)])
    assert np.mean(points > 0.5) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("wrong", [{"first_share": 0.9}, {"spread": 0}, {"last_share": 1.5}, {"recent": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="needs 0 <= first_share"):
        BreedSettings(**wrong)


def test_losses_flow_from_the_training_loop_to_the_reader(tmp_path):
    run = make_run(tmp_path)
    train(settings_for(run, 30, report_losses=True, session=2, generation=3), FakeFeed(30))
    assert [path.name for path in (run / "losses").iterdir()] == ["2-3-0.log"]
    reader, feed, uses = LossReader(run), FakeFeed(30), Counter()
    while (draw := feed.next()) is not None:
        uses.update(draw.table["simulation"].tolist())
    found, excess = Counter(), 0.0
    for simulation, one, count in reader.news():
        found[simulation] += count
        excess += one
    assert found == uses
    assert 0 < excess < sum(uses.values())
    assert list(reader.news()) == []


def test_a_half_written_line_is_left_for_later(tmp_path):
    log, reader = LossLog(tmp_path, "1-1-0"), LossReader(tmp_path)
    log.append([(np.array([3, 3, 4]), np.array([1.0, 1.0, 4.0]))])
    log.close()
    path = tmp_path / "losses" / "1-1-0.log"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert list(reader.news()) == []
    path.write_bytes(whole)
    assert [(s, c) for s, _, c in reader.news()] == [(3, 2), (4, 1)]
    path.write_bytes(whole + b"\0" * 40 + b"\n" + whole)  # the machine lost power: a page never reached the disk
    assert [(s, c) for s, _, c in reader.news()] == [(3, 2), (4, 1)]


def test_the_plan_runs_ahead_of_the_jobs_and_goes_on_after_a_restart(tmp_path):
    case = find_case("heat2d", (8, 8)).load()
    settings = StudySettings(simulations=30, held_out=0, jobs=2, sampler="breed", seed=5)
    (tmp_path / "ledger").mkdir()
    assert first_generation(settings) == 6
    with RecordWriter(tmp_path / "ledger" / "study-1.log") as log:
        plan = AdaptivePlan(tmp_path, case, settings, log)
        plan.begin()
        assert unplanned(settings, Ledger(tmp_path / "ledger")) == 24
        new, ended = [], []
        plan.follow({"planned": 6, "queued": 6}, new.extend, lambda: ended.append(1))
        assert not new
        plan.follow({"planned": 6, "queued": 2}, new.extend, lambda: ended.append(1))
        assert [one.simulation for one in new] == list(range(6, 15))  # three, and twice the four that began
    design = draw_design(6, 30, 5)[: len(new) + 6]
    assert [dict(one.parameters) for one in new] == [dict(case.draw(point)) for point in design[6:]]

    losses = LossLog(tmp_path, "1-1-0")
    losses.append([(np.arange(10), np.array([0.0] * 9 + [1.0]))])
    losses.close()
    with RecordWriter(tmp_path / "ledger" / "study-2.log") as log:
        plan = AdaptivePlan(tmp_path, case, settings, log)
        plan.begin()
        new = []
        for _ in range(20):
            plan.follow({"planned": 15 + len(new), "queued": 0}, new.extend, lambda: ended.append(1))
        assert [one.simulation for one in new] == list(range(15, 30)) and plan.complete and ended == [1]
    known = Ledger(tmp_path / "ledger").simulations
    assert len(known) == 30 and unplanned(settings, Ledger(tmp_path / "ledger")) == 0
    plain = draw_design(6, 30, 5)
    moved = [n for n in range(30) if known[n].parameters != dict(case.draw(plain[n]))]
    assert moved and min(moved) >= 15
