"""CalculiX as someone else's solver: decks, results, replay from displacements alone, campaigns, bad input."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.cases import rom_blade, rom_cube, rom_plate
from headrace.rom import TimeSeries
from headrace.rom.box import box_mesh
from headrace.rom.calculix_deck import DeckError, counterpart, read_deck, write_deck
from headrace.rom.calculix_reader import CalculixReader, ResultError
from headrace.rom.calculix_solver import CalculixSolver, chosen_solver
from headrace.rom.campaign import run_calculix, run_campaign
from headrace.rom.elastic import IsotropicElasticity
from headrace.rom.law import Table
from headrace.rom.loads import Amplitude, Centrifugal, Pressure, Support
from headrace.rom.problem import Problem
from headrace.rom.replay import Replay
from headrace.rom.solver import NewtonSettings, Solver, solve
from headrace.rom.viscoplastic import KinematicHardening, NortonChaboche, equivalent
from tests.mpi_run import run_mpi

needs_ccx = pytest.mark.skipif(shutil.which("ccx") is None, reason="no ccx: apt-get install -y calculix-ccx")
LAW = NortonChaboche(
    elasticity=IsotropicElasticity(young=200e3, poisson=0.3, expansion=1e-5), yield_stress=10.0, viscosity=300.0,
    exponent=8.0, linear_hardening=20e3,
)  # fmt: skip
KINDS = ("hex8", "hex20r", "tet4", "tet10", "hex20")
TIMES = np.array([0, 0.1, 0.2, 0.35, 0.5, 0.6, 0.75, 1.0])


def heated_problem(kind, counts=(3, 2, 2)):
    up = Amplitude((0, 0.5, 1), (0, 1, -0.5))
    return Problem(
        mesh=box_mesh(kind, counts, (3.0, 2.0, 2.0)), laws={"all": LAW},
        supports=[Support(nodes="x0", direction=d) for d in "xyz"],
        loads=[Pressure(faces="z1", value=lambda x: 20 * x[:, 0], amplitude=up),
               Centrifugal(density=8e-9, amplitude=Amplitude((0, 1), (0, 3000.0)), origin=(-30, 0, 0))],
        temperature=lambda x, t: 20 + 5 * t * x[:, 0] ** 2 * (1 + x[:, 1]), plain_temperature=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Results of five cases, two at a time; name -> (problem, deck)."""
    if shutil.which("ccx") is None:
        pytest.skip("no ccx: apt-get install -y calculix-ccx")
    folder = tmp_path_factory.mktemp("campaign")
    problems = {kind: heated_problem(kind) for kind in KINDS}
    decks = {kind: write_deck(folder / f"{kind}.inp", problem, TIMES) for kind, problem in problems.items()}
    results = run_campaign(decks, at_once=2)
    assert not any(result.error or result.reused for result in results.values()), results
    assert all(result.reused for result in run_campaign(decks, at_once=2).values())
    return {kind: (problems[kind], decks[kind]) for kind in decks}


@pytest.mark.parametrize("kind", KINDS)
def test_replay_of_printed_displacements_gives_calculix_stress_and_p(computed, kind):
    """Pressure, centrifugal force and heat; 7 digits of displacement; the goals of the issue of each quantity."""
    problem, deck = computed[kind]
    reader = CalculixReader(deck)
    np.testing.assert_allclose(reader.times, TIMES, rtol=1e-6)
    replay = Replay(reader, problem, complete=False)
    last = list(replay.run())[-1]
    assert replay.material.field("p", last.state).max() > 1e-4
    worst = replay.report.worst()
    assert worst["stress"] <= 1e-5 and worst["p"] <= 3e-6 and worst["strain"] <= 5e-6, worst
    assert worst["equilibrium of the printed stress"] <= 1e-6 and worst["equilibrium"] <= 5e-5, worst


@pytest.mark.parametrize("kind", KINDS)
def test_equilibrium_completes_the_digits_of_displacements(computed, kind):
    """Stress, p and balance of forces then have the digits of the printed stress; but nothing else is mended."""
    problem, deck = computed[kind]
    replay = Replay(CalculixReader(deck), problem)
    for _ in replay.run():
        pass
    worst = replay.report.worst()
    assert worst["stress"] <= 2e-6 and worst["p"] <= 1e-6 and worst["equilibrium"] <= 1e-6, worst
    assert worst["equilibrium before completion"] > 3 * worst["equilibrium"], worst
    softer = replace(LAW, elasticity=replace(LAW.elasticity, young=199e3))
    other = Replay(CalculixReader(deck), replace(problem, laws={"all": softer}), suspect=None)
    for _ in other.run():
        pass
    assert other.report.worst()["equilibrium"] > 1e-4 and "equilibrium before completion" not in other.report.worst()


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedded_solver_agrees_with_calculix(computed, kind):
    """The temperature is quadratic, so that it matters how an element takes it from its nodes."""
    problem, deck = computed[kind]
    reader = CalculixReader(deck)
    ours = solve(problem, TIMES, settings=NewtonSettings(tolerance=1e-10))
    for k in range(1, len(TIMES)):
        u, p = ours.displacement(k), ours.point_field("p", k)
        assert np.abs(u - reader.displacement(k)).max() <= 1e-6 * np.abs(u).max()
        assert np.abs(p - reader.point_field("p", k)).max() <= 1e-6 * p.max()


def test_the_mesh_comes_back_from_the_deck(computed):
    problem, deck = computed["tet10"]
    mesh = read_deck(deck)
    np.testing.assert_allclose(mesh.points, problem.mesh.points, atol=1e-11)
    np.testing.assert_array_equal(mesh.cells["tet10"], problem.mesh.cells["tet10"])
    for name in problem.mesh.face_sets:
        np.testing.assert_array_equal(mesh.nodes(name.upper()), problem.mesh.nodes(name))


def edited(deck, folder, change, name="bad"):
    """A copy of a run whose .dat is changed by a function of its text."""
    for suffix in (".inp", ".dat", ".sta"):
        shutil.copy(deck.with_suffix(suffix), folder / f"{name}{suffix}")
    dat = folder / f"{name}.dat"
    dat.write_text(change(dat.read_text()))
    return folder / f"{name}.inp"


def without_increment(text, which=3):
    head = " displacements"
    pieces = text.split(head)
    return head.join(pieces[:which] + pieces[which + 1 :])


def test_damaged_results_are_named(computed, tmp_path):
    _, deck = computed["hex8"]
    cases = {
        "lacks 1 of the 7 increments that CalculiX made, the first at time 0.35": without_increment,
        "not a number at node 1": lambda t: t.replace(
            "\n         1  0.000000E+00", "\n         1           NaN", 1),
        "does not follow": lambda t: t + t,
        "what should be numbers is not": lambda t: t.replace("E-0", "X-0", 40),
        r"node 1 \(1 in all\) is not in the results": lambda t: t.replace(
            "\n         1  0.000000E+00  0.000000E+00  0.000000E+00", "", 1),
        "has no displacements": lambda t: t.replace(" displacements", " velocities"),
    }  # fmt: skip
    for number, (message, change) in enumerate(cases.items()):
        with pytest.raises(ResultError, match=message):
            reader = CalculixReader(edited(deck, tmp_path, change, f"bad{number}"), results="dat")
            for k in range(len(reader.times)):
                reader.displacement(k)


def test_results_of_another_mesh_are_named(computed, tmp_path):
    deck = edited(computed["hex8"][1], tmp_path, lambda t: t)
    write_deck(deck, heated_problem("hex8", (4, 2, 2)), TIMES)
    with pytest.raises(ResultError, match="Are they those of another mesh"):
        CalculixReader(deck).displacement(1)


@needs_ccx
def test_the_frd_file_serves_with_six_digits(tmp_path):
    """One digit less is ten times the error, unless equilibrium completes it."""
    problem = heated_problem("hex20r", (2, 2, 2))
    deck = write_deck(tmp_path / "frd.inp", problem, TIMES)
    text = deck.read_text()
    deck.write_text(text.replace("*END STEP", "*NODE FILE\nU\n*END STEP"))
    run_calculix(deck)
    replays = {}
    for name, results, complete in (("dat", "dat", False), ("frd", "frd", False), ("completed", "frd", True)):
        replay = Replay(CalculixReader(deck, results=results), problem, complete=complete)
        for _ in replay.run():
            pass
        replays[name] = replay.report.worst()
    ratio = replays["frd"]["stress"] / replays["dat"]["stress"]
    assert 3 < ratio < 50 and replays["frd"]["stress"] < 2e-3, replays
    assert replays["completed"]["stress"] <= 1e-5 and replays["completed"]["p"] <= 3e-6, replays


@needs_ccx
@pytest.mark.parametrize(
    ("case", "problem", "times"),
    [("cube", counterpart(rom_cube.rom_cube()), rom_cube.times()[:5]),
     ("plate", counterpart(rom_plate.rom_plate(counts=(4, 6, 1))), rom_plate.times(1)[::2]),
     ("blade", counterpart(rom_blade.rom_blade(counts=(4, 1, 6))), rom_blade.times()[:11])],
)  # fmt: skip
def test_the_cases_are_solved_alike_by_calculix(case, problem, times, tmp_path):
    theirs, ours = CalculixSolver(problem, tmp_path / case), Solver(problem)
    increments = list(theirs.run(times))
    assert theirs.seconds > 0 and theirs.report.worst()["equilibrium of the printed stress"] < 5e-6
    for a, b in zip(increments, ours.run(times), strict=True):
        p, q = (ours.local.material.field("p", i.state) for i in (a, b))
        assert np.abs(a.displacement - b.displacement).max() <= 2e-6 * np.abs(b.displacement).max()
        assert np.abs(p - q).max() <= 1e-4 * q.max()
    assert q.max() > 1e-4
    with pytest.raises(ValueError, match="begins at time 0"):
        next(theirs.run(times[1:]))


@needs_ccx
@pytest.mark.mpi
def test_a_case_runs_by_calculix_on_two_ranks(tmp_path):
    script = Path(__file__).resolve().parents[2] / "cases" / "rom_cube.py"
    done = run_mpi(2, [str(script), "--calculix", "cube"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("t = ") == 10 and (tmp_path / "cube" / "calculix.dat").exists()
    with pytest.raises(ValueError, match="Arguments are none, or --calculix FOLDER"):
        chosen_solver(rom_plate.rom_plate(counts=(2, 2, 1)), ["--code_aster"])


def test_the_counterpart_of_a_law_hardens_alike_when_pulled_one_way():
    problem = rom_plate.rom_plate(counts=(2, 2, 1))
    law, similar = problem.laws["all"], counterpart(problem).laws["all"]
    assert law.kinematic and not similar.kinematic and similar.exponent == 5.0
    ends = np.array([[1e-3], [3e-3], [1e-2]]) * np.array([1.0, -0.3, -0.3, 0, 0, 0])
    T, sizes = np.full(3, 20.0), []
    for which in (law, similar):
        which = replace(which, viscosity=0.0)
        state = which.initial_state(3)
        for k in range(50):
            stress, state, _ = which.update(T, T, ends * k / 50, ends / 50, state, 1.0)
        sizes.append(equivalent(stress - stress[:, :3].mean(axis=1, keepdims=True) * [1, 1, 1, 0, 0, 0]))
    np.testing.assert_allclose(*sizes, rtol=1e-2)
    linear = replace(law, kinematic=(KinematicHardening(modulus=1e5),))
    with pytest.raises(DeckError, match="has no counterpart"):
        counterpart(replace(problem, laws={"all": linear}))


@needs_ccx
def test_a_failing_case_is_named_and_does_not_stop_the_others(tmp_path):
    good = write_deck(tmp_path / "good.inp", heated_problem("hex8", (1, 1, 1)), TIMES[:3])
    bad = tmp_path / "bad.inp"
    bad.write_text(good.read_text().replace("MATERIAL=LAW0", "MATERIAL=STEEL"))
    results = run_campaign({"bad": bad, "good": good, "absent": tmp_path / "absent.inp"}, at_once=2)
    assert not results["good"].error and results["good"].seconds > 0
    assert "bad.inp failed" in results["bad"].error and "absent.inp" in results["absent"].error
    with pytest.raises(FileNotFoundError, match="apt-get install calculix-ccx"):
        run_calculix(good, program="no-such-ccx")


def test_temperature_tables_reach_calculix_as_tables(tmp_path):
    elastic = IsotropicElasticity(young=Table((20, 600), (200e3, 150e3)), poisson=0.3)
    law = replace(LAW, elasticity=elastic, viscosity=Table((20, 600), (300, 200)))
    text = write_deck(
        tmp_path / "t.inp", replace(heated_problem("hex8"), laws={"all": law}), TIMES[:2]
    ).read_text().splitlines()  # fmt: skip
    tables = {}
    for name in ("*ELASTIC", "*CREEP, LAW=NORTON"):
        rows = text[text.index(name) + 1 :]
        tables[name] = [
            [float(v) for v in row.split(",")] for row in rows[: [r.startswith("*") for r in rows].index(True)]
        ]
    young, creep = np.array(tables["*ELASTIC"]), np.array(tables["*CREEP, LAW=NORTON"])
    np.testing.assert_array_equal(young[:, 2], creep[:, 3])  # CalculiX takes creep at the temperatures of the first
    np.testing.assert_allclose(young[[0, -1], 0], [200e3, 150e3])
    np.testing.assert_allclose(creep[[0, -1], 0], [300.0**-8, 200.0**-8], rtol=1e-9)
    middle = creep[:-1, 0] / 2 + creep[1:, 0] / 2
    exact = np.interp(creep[:-1, 3] / 2 + creep[1:, 3] / 2, (20, 600), (300, 200)) ** -8.0
    assert np.abs(middle / exact - 1).max() <= 1.001e-6 and len(creep) < 4000


def test_what_calculix_does_not_have_is_refused(tmp_path):
    problem = heated_problem("hex8")
    recall = replace(LAW, linear_hardening=0.0, kinematic=(KinematicHardening(modulus=1e5, recall=100.0),))
    linear = replace(LAW, linear_hardening=0.0, kinematic=(KinematicHardening(modulus=1e5),))
    for law, message in ((recall, "back-stresses with recall"), (linear, "gets wrong without NLGEOM"),
                         (replace(LAW, exponent=9.0), "takes 1e-20 instead of any smaller A"),
                         (replace(LAW, curve=[(p, p) for p in np.arange(250) / 250]), "has 251 points"),
                         (replace(LAW, viscosity=0.0), "no viscosity")):  # fmt: skip
        with pytest.raises(DeckError, match=message):
            write_deck(tmp_path / "x.inp", replace(problem, laws={"all": law}), TIMES)
    assert not (tmp_path / "x.inp").exists()
    with pytest.raises(DeckError, match="starts without thermal strain"):
        write_deck(tmp_path / "x.inp", replace(problem, temperature=50.0), TIMES)


ABAQUS = """*HEADING
a flat deck of Abaqus
*NODE, NSET=Everything
10, 0., 0., 0.
20, 1., 0., 0.
30, 1., 1., 0.
40, 0., 1., 0.
50, 0., 0., 1.
60, 1., 0., 1.
70, 1., 1., 1.
80, 0., 1., 1.
*Element, type=C3D8,
 elset=Solid
7, 10, 20, 30, 40, 50, 60, 70, 80
*NSET, NSET=bottom, GENERATE
10, 40, 10
*NSET, NSET=both
bottom, 80
*SURFACE, NAME=lid, TYPE=ELEMENT
Solid, S2
*STEP
*STATIC
*END STEP
"""


def test_a_flat_abaqus_deck_is_read(tmp_path):
    path = tmp_path / "job.inp"
    path.write_text(ABAQUS)
    mesh = read_deck(path)
    assert mesh.node_labels.tolist() == list(range(10, 90, 10)) and mesh.element_labels.tolist() == [7]
    assert mesh.nodes("BOTH").tolist() == [0, 1, 2, 3, 7] and mesh.nodes("LID").tolist() == [4, 5, 6, 7]
    cases = {
        "no volume elements.*S4": ABAQUS.replace("C3D8", "S4"),
        "no volume elements.*C3D8I": ABAQUS.replace("C3D8", "C3D8I"),
        "node 80, which": ABAQUS.replace("80, 0., 1., 1.\n", ""),
        "no set MISSING": ABAQUS.replace("bottom, 80", "missing, 80"),
        "not a multiple of 9": ABAQUS.replace(", 70, 80", ", 70"),
        r"line 3: \*NODE cannot be read": ABAQUS.replace("1., 0., 1.", "1., zero, 1."),
        "flat deck": ABAQUS.replace("*STEP\n", "*INSTANCE, NAME=a, PART=b\n*STEP\n"),
        "names no file": ABAQUS.replace("*STEP\n", "*INCLUDE\n*STEP\n"),
        "included by itself": ABAQUS.replace("*STEP\n", "*INCLUDE, INPUT=job.inp\n*STEP\n"),
        "side SPOS of SOLID": ABAQUS.replace("Solid, S2", "Solid, SPOS"),
        "degenerate or inside out": ABAQUS.replace("7, 10, 20, 30, 40", "7, 10, 40, 30, 20"),
    }
    for message, text in cases.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_deck(path)
    with pytest.raises(DeckError, match="cannot be read"):
        read_deck(Path(tmp_path / "none.inp"))


def test_wrong_orders_and_gaps_are_detected_without_any_stress():
    """From displacements alone: permuted nodes, a missing increment, another law; and NaN with its node."""
    problem = heated_problem("hex8", (4, 3, 3))
    series = solve(problem, TIMES)
    u = series.displacements

    def replayed(displacements, times=TIMES, laws=problem):
        reader = TimeSeries(mesh=problem.mesh, times=times, displacements=displacements)
        replay = Replay(reader, laws)
        for _ in replay.run():
            pass
        return replay.report.worst()

    assert replayed(u)["equilibrium"] < 1e-7
    order = np.random.default_rng(0).permutation(problem.mesh.num_nodes)
    with pytest.raises(ValueError, match=r"Increment 1 .*nodes in another order"):
        replayed(u[:, order])
    keep = [0, 1, 2, 3, 7]
    with pytest.raises(ValueError, match="increments missing between 3 and 4"):
        replayed(u[keep], TIMES[keep])
    with pytest.raises(ValueError, match="it must be the virgin state"):
        replayed(u[2:], TIMES[2:])
    with pytest.raises(ValueError, match="has 36 nodes, that of the results"):
        replayed(u, laws=heated_problem("hex8", (3, 2, 2)))
