"""The embedded solver: patch tests, closed solutions, restarts, step cutting, refusals, any number of ranks."""

import numpy as np
import pytest

from headrace.rom.communicator import run_threads
from headrace.rom.elastic import CubicElasticity, IsotropicElasticity
from headrace.rom.law import ConstitutiveLaw, ConvergenceError, Table
from headrace.rom.loads import Amplitude, BodyForce, Centrifugal, NodalForce, NodalTemperature, Pressure, Support
from headrace.rom.mesh import Mesh
from headrace.rom.offline import Snapshots, Tolerances, compress
from headrace.rom.online import Query, ReducedSolver
from headrace.rom.partition import partition
from headrace.rom.problem import LocalProblem, Problem
from headrace.rom.solver import NewtonSettings, Solver, solve
from headrace.rom.subdomain import distribute
from headrace.rom.viscoplastic import KinematicHardening, NortonChaboche
from tests.rom.boxes import box

KINDS = ("tet4", "tet10", "hex8", "hex20", "hex20r")
STEEL = IsotropicElasticity(young=200e3, poisson=0.3, expansion=1e-5)
CHABOCHE = NortonChaboche(elasticity=STEEL, yield_stress=10.0, viscosity=300.0, exponent=30.0,
                          kinematic=(KinematicHardening(modulus=100e3, recall=1000.0),))  # fmt: skip
TIGHT = NewtonSettings(tolerance=1e-11)
SYMMETRY = tuple(Support(nodes=f"{d}0", direction=d) for d in "xyz")


@pytest.mark.parametrize("kind", KINDS)
def test_patch_test(kind):
    """A linear field prescribed on the boundary of a distorted patch is found inside, with its exact stress."""
    mesh = box(kind, (2, 2, 2), size=(1.0, 1.2, 0.8), distort=0.2)
    G = 1e-3 * np.array([[1, 0.3, -0.2], [0.1, -0.5, 0.4], [0.2, 0.6, 0.7]])
    supports = [Support(nodes=face, direction=d, value=lambda x, row=G[k]: x @ row)
                for k, d in enumerate("xyz") for face in mesh.face_sets]  # fmt: skip
    cubic = CubicElasticity(c11=250e3, c12=160e3, c44=120e3, axes=((0.6, 0.8, 0), (-0.8, 0.6, 0), (0, 0, 1)))
    series = solve(Problem(mesh=mesh, laws={"all": cubic}, supports=supports), [0, 1], settings=TIGHT)
    np.testing.assert_allclose(series.displacement(1), mesh.points @ G.T, atol=1e-13)
    strain = np.array([G[0, 0], G[1, 1], G[2, 2], G[0, 1] + G[1, 0], G[0, 2] + G[2, 0], G[1, 2] + G[2, 1]])
    stress = cubic.stiffness(np.zeros(1))[0] @ strain
    np.testing.assert_allclose(series.point_field("stress", 1), np.tile(stress, (mesh.num_points, 1)), atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_creep_under_constant_stress(kind):
    """Uniaxial Norton creep: p = t (σ/K)ⁿ exactly, u = L (σ/E + p), lateral strain -ν σ/E - p/2."""
    K, n, sigma = 1000.0, 4.0, 120.0
    law = NortonChaboche(elasticity=STEEL, yield_stress=0.0, viscosity=K, exponent=n)
    mesh = box(kind, (2, 1, 1), size=(2.0, 1.0, 1.0))
    problem = Problem(mesh=mesh, laws={"all": law}, supports=SYMMETRY, loads=(Pressure(faces="x1", value=-sigma),))
    series = solve(problem, [0, 0.5, 2.0, 10.0], settings=TIGHT)
    p = np.array([0, 0.5, 2.0, 10.0]) * (sigma / K) ** n
    for k in (1, 2, 3):
        np.testing.assert_allclose(series.point_field("p", k), p[k], rtol=1e-8)
        u = series.displacement(k)
        np.testing.assert_allclose(u[:, 0], mesh.points[:, 0] * (sigma / 200e3 + p[k]), rtol=1e-8, atol=1e-14)
        np.testing.assert_allclose(
            u[:, 1], mesh.points[:, 1] * (-0.3 * sigma / 200e3 - p[k] / 2), rtol=1e-8, atol=1e-14
        )


def tube(kind, radial, around):
    """A quarter of a thick tube, radii 1 and 2, with the names of the box: x radius, y angle, z length."""
    mesh = box(kind, (radial, around, 1), size=(1.0, 1.0, 0.3))
    r, angle, z = 1 + mesh.points[:, 0], np.pi / 2 * mesh.points[:, 1], mesh.points[:, 2]
    points = np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1)
    return Mesh(points=points, cells=mesh.cells, face_sets=mesh.face_sets), r


@pytest.mark.parametrize(("kind", "order"), [("hex8", 2), ("hex20", 3.5), ("hex20r", 3.5), ("tet10", 2.5)])
def test_pressurised_tube_converges_to_lame(kind, order):
    """Plane strain: u(r) = p a² (1 + ν) ((1 - 2ν) r + b²/r) / (E (b² - a²))."""
    E, nu, p = 1000.0, 0.3, 1.0
    law = IsotropicElasticity(young=E, poisson=nu)
    errors = []
    for cells in (2, 4):
        mesh, r = tube(kind, cells, 2 * cells)
        supports = [Support(nodes="y0", direction="y"), Support(nodes="y1", direction="x"),
                    Support(nodes="z0", direction="z"), Support(nodes="z1", direction="z")]  # fmt: skip
        problem = Problem(mesh=mesh, laws={"all": law}, supports=supports, loads=(Pressure(faces="x0", value=p),))
        u = np.linalg.norm(solve(problem, [0, 1], settings=TIGHT).displacement(1)[:, :2], axis=1)
        exact = p * (1 + nu) * ((1 - 2 * nu) * r + 4 / r) / (E * 3)
        errors.append(np.abs(u - exact).max() / exact.max())
    assert errors[1] < (1.5e-2 if kind == "hex8" else 2e-3), errors
    assert np.log2(errors[0] / errors[1]) > order - 0.5, errors


def test_spinning_bar_has_exact_nodal_values():
    """With ν = 0 and sides held, u(L) = ρ ω² L³ / 3E at the tip, and ω doubles in time: four times that."""
    law = IsotropicElasticity(young=1000.0, poisson=0.0)
    mesh = box("hex20", (4, 1, 1), size=(2.0, 0.3, 0.3))
    supports = [Support(nodes=face, direction=d) for face, d in (("x0", "x"), ("y0", "y"), ("y1", "y"), ("z0", "z"))]
    spin = Centrifugal(density=3.0, amplitude=Amplitude((0, 1, 2), (0, 0.5, 1.0)))
    series = solve(Problem(mesh=mesh, laws={"all": law}, supports=supports, loads=(spin,)), [0, 1, 2], settings=TIGHT)
    tip = series.displacements[:, mesh.nodes("x1"), 0]
    np.testing.assert_allclose(tip[2], 3.0 * 2.0**3 / 3000, rtol=1e-9)
    np.testing.assert_allclose(tip[1], tip[2] / 4, rtol=1e-9)


def test_cantilever_deflects_as_timoshenko_says():
    """hex20r, shear at the end: w = F L³ / 3EI + F L / (5/6 G A), within 1 %."""
    law = IsotropicElasticity(young=1000.0, poisson=0.0)
    mesh = box("hex20r", (6, 2, 2), size=(6.0, 1.0, 1.0))
    supports = [Support(nodes="x0", direction=d) for d in "xyz"]
    count = len(mesh.nodes("x1"))
    load = NodalForce(nodes="x1", force=(0, 0, 0.01 / count))
    w = solve(Problem(mesh=mesh, laws={"all": law}, supports=supports, loads=(load,)), [0, 1]).displacement(1)[:, 2]
    expected = 0.01 * 6**3 / (3 * 1000 / 12) + 0.01 * 6 / (5 / 6 * 500)
    assert w[mesh.nodes("x1")].mean() == pytest.approx(expected, rel=0.01)


def test_forces_balance():
    """Weight and pressure end in the supports: the internal force at held dofs is minus the load."""
    mesh = box("tet10", (2, 2, 2), distort=0.1)
    loads = (BodyForce(density=(0.5, -2.0, 3.0)), Pressure(faces="y1", value=lambda x: 1 + x[:, 0]))
    problem = Problem(
        mesh=mesh, laws={"all": STEEL}, supports=[Support(nodes="x0", direction=d) for d in "xyz"], loads=loads
    )
    series = solve(problem, [0, 1], settings=TIGHT)
    local = LocalProblem(problem, distribute(mesh))
    reaction = local.kinematics.internal_force(series.point_field("stress", 1))
    np.testing.assert_allclose(reaction[mesh.nodes("x0")].sum(axis=0) + np.array([0.5, -3.5, 3.0]),
                               local.external_force(1.0)[mesh.nodes("x0")].sum(axis=0), atol=1e-9)  # fmt: skip
    np.testing.assert_allclose(local.external_force(1.0).sum(axis=0), [0.5, -3.5, 3.0], atol=1e-12)


def test_free_thermal_expansion_has_no_stress_and_held_expansion_has_the_known_one():
    mesh = box("hex20", (2, 2, 2), distort=0.1)
    hot = NodalTemperature(
        times=[0, 2], values=np.array([np.full(mesh.num_nodes, 20.0), np.full(mesh.num_nodes, 220.0)])
    )
    free = solve(Problem(mesh=mesh, laws={"all": STEEL}, supports=SYMMETRY, temperature=hot), [0, 1, 2], settings=TIGHT)
    np.testing.assert_allclose(free.displacement(2), 200e-5 * mesh.points, atol=1e-12)
    np.testing.assert_allclose(free.displacement(1), 100e-5 * mesh.points, atol=1e-12)
    assert np.abs(free.point_fields["stress"]).max() < 1e-6
    held = [Support(nodes=face, direction=face[0]) for face in mesh.face_sets]
    stress = solve(Problem(mesh=mesh, laws={"all": STEEL}, supports=held, temperature=hot), [0, 2]).point_field(
        "stress", 1
    )
    np.testing.assert_allclose(stress[:, :3], -200e3 * 200e-5 / (1 - 0.6), rtol=1e-7)


def cyclic_problem(kind="hex20r", counts=(3, 3, 3)):
    """A block of two materials under cyclic bending pressure and a moving temperature field."""
    mesh = box(kind, counts, distort=0.15, sets={"foot": lambda x: x[:, 0] < 0.3, "blade": lambda x: x[:, 0] >= 0.3})
    return Problem(
        mesh=mesh,
        laws={"foot": STEEL, "blade": CHABOCHE},
        supports=[Support(nodes="x0", direction=d) for d in "xyz"],
        loads=(Pressure(faces="x1", value=lambda x: -350 * x[:, 1], amplitude=Amplitude((0, 1, 3), (0, 1, -1))),),
        temperature=lambda x, t: 20 + 50 * t * x[:, 2],
    )


def outcome(problem, comm=None, parts=None):
    """Displacement, p and iterations of the run, gathered."""
    solver = Solver(problem, comm, settings=TIGHT, parts=parts)
    increments = list(solver.run(np.linspace(0, 3, 4)))
    gather = solver.subdomain.gather
    p = solver.local.material.field("p", increments[-1].state)
    return gather(increments[-1].displacement), gather(p, at="points"), [i.iterations for i in increments]


@pytest.mark.parametrize("kind", ["hex20r", "tet10", "hex8"])
def test_newton_converges_fast_and_subdomains_do_not_change_the_answer(kind):
    problem = cyclic_problem(kind)
    u, p, iterations = outcome(problem)
    assert max(iterations) <= 11 and p.max() > 1e-3
    foot = np.isin(
        np.repeat(np.arange(problem.mesh.num_elements), np.diff(problem.mesh.element_points())),
        problem.mesh.elements("foot"),
    )
    assert not p[foot].any()
    for size in (2, 5) if kind == "hex8" else (3,):
        for v, q, _ in run_threads(size, lambda comm: outcome(problem, comm)):
            assert np.abs(v - u).max() <= 1e-8 * np.abs(u).max()
            assert np.abs(q - p).max() <= 1e-8 * p.max()


def test_parts_of_metis_do_not_change_the_answer():
    pytest.importorskip("pymetis")
    problem = cyclic_problem("tet10")
    u, p, iterations = outcome(problem)
    parts = partition(problem.mesh, 3, method="metis")
    other_u, other_p, other = run_threads(3, lambda comm: outcome(problem, comm, parts))[0]
    np.testing.assert_allclose(other_u, u, atol=1e-8 * np.abs(u).max())
    np.testing.assert_allclose(other_p, p, atol=1e-8 * p.max())
    assert np.abs(np.subtract(iterations, other)).max() <= 1


def test_a_run_can_go_on_from_its_middle():
    problem = cyclic_problem("hex8", (2, 2, 2))
    whole = list(Solver(problem, settings=TIGHT).run([0, 1, 2, 3]))
    first = list(Solver(problem, settings=TIGHT).run([0, 1]))
    rest = list(Solver(problem, settings=TIGHT).run([1, 2, 3], start=first[-1]))
    np.testing.assert_allclose(
        rest[-1].displacement, whole[-1].displacement, atol=1e-11 * np.abs(whole[-1].displacement).max()
    )
    with pytest.raises(ValueError, match="times begin at 2"):
        next(Solver(problem).run([2, 3], start=first[-1]))


class Brittle(ConstitutiveLaw):
    """Elastic, but refuses strain increments above a limit, or always: for step cutting."""

    def __init__(self, limit):
        self.limit = limit

    state_names = ("p",)
    symmetric = True

    def update(self, temperature0, temperature1, strain0, strain_increment, state, dt):
        bad = np.flatnonzero(np.abs(strain_increment).max(axis=1) > self.limit)
        if bad.size:
            raise ConvergenceError("strain increment beyond the limit", bad)
        return (*STEEL.update(temperature0, temperature1, strain0, strain_increment, state, dt)[:1], state + dt,
                STEEL.stiffness(temperature1))  # fmt: skip


def test_steps_are_cut_where_the_law_fails_and_all_increments_are_given():
    mesh = box("hex8", (2, 2, 2))
    pull = Support(nodes="x1", direction="x", value=1e-3, amplitude=Amplitude((0, 1), (0, 1)))
    problem = Problem(mesh=mesh, laws={"all": Brittle(3e-4)}, supports=(*SYMMETRY, pull))
    series = solve(problem, [0, 1])
    assert series.times[-1] == 1.0 and len(series.times) > 4 and np.diff(series.times).max() <= 0.3
    np.testing.assert_allclose(series.displacement(-1)[:, 0], 1e-3 * mesh.points[:, 0], atol=1e-12)
    np.testing.assert_allclose(series.point_field("p", -1), 1.0)  # the state advanced over every increment, once


def test_a_law_that_never_converges_names_time_element_and_point():
    mesh = box("hex8", (2, 1, 1), sets={"good": lambda x: x[:, 0] < 0.5, "bad": lambda x: x[:, 0] > 0.5})
    pull = Support(nodes="x1", direction="x", value=1e-3, amplitude=Amplitude((0, 1), (0, 1)))
    problem = Problem(mesh=mesh, laws={"good": STEEL, "bad": Brittle(1e-12)}, supports=(*SYMMETRY, pull))
    with pytest.raises(
        ConvergenceError, match=r"No equilibrium at time .* Element 2, quadrature point 0: strain increment"
    ):
        solve(problem, [0, 1], settings=NewtonSettings(max_cuts=2))

    def work(comm):
        with pytest.raises(ConvergenceError, match="Element 2, quadrature point 0"):
            solve(problem, [0, 1], comm, settings=NewtonSettings(max_cuts=1))
        return True

    assert run_threads(2, work) == [True, True]


def test_the_law_that_failed_names_element_point_and_state_through_the_solver():
    softening = NortonChaboche(
        elasticity=IsotropicElasticity(young=1.0, poisson=0.3), yield_stress=1.0, linear_hardening=-50.0
    )
    pull = Support(nodes="x1", direction="x", value=5.0, amplitude=Amplitude((0, 1), (0, 1)))
    problem = Problem(mesh=box("hex8", (2, 1, 1)), laws={"all": softening}, supports=(*SYMMETRY, pull))
    message = r"after 2 cuts of the step\. Element 1, quadrature point 0: .*state p = 0, temperature 20"
    with pytest.raises(ConvergenceError, match=message):
        solve(problem, [0, 1], settings=NewtonSettings(max_cuts=2))


def test_missing_supports_and_wrong_problems_are_named():
    mesh = box("hex8", (2, 2, 2), sets={"half": lambda x: x[:, 0] < 0.5})
    loads = (Pressure(faces="x1", value=1.0),)
    with pytest.raises(ConvergenceError, match="supports leave a rigid motion free"):
        solve(Problem(mesh=mesh, laws={"all": STEEL}, loads=loads), [0, 1])
    with pytest.raises(ValueError, match=r"Element 5 has 0 laws from the sets \['half'\]"):
        Problem(mesh=mesh, laws={"half": STEEL})
    with pytest.raises(ValueError, match="Element 1 has 2 laws"):
        Problem(mesh=mesh, laws={"half": STEEL, "all": STEEL})
    with pytest.raises(ValueError, match="no face set 'top'"):
        Problem(mesh=mesh, laws={"all": STEEL}, loads=(Pressure(faces="top"),))
    with pytest.raises(ValueError, match="7 nodes; the mesh has 27"):
        Problem(mesh=mesh, laws={"all": STEEL}, temperature=NodalTemperature(times=[0], values=np.zeros((1, 7))))
    with pytest.raises(ValueError, match=r"not finite at \(time, node\) \[0 1\]"):
        NodalTemperature(times=[0], values=[[0, np.nan]])
    with pytest.raises(ValueError, match="must be at least two, increasing"):
        next(Solver(Problem(mesh=mesh, laws={"all": STEEL}, supports=SYMMETRY)).run([0]))
    with pytest.raises(ValueError, match="direction 'r'"):
        Support(nodes="x0", direction="r")


def test_temperature_dependent_stiffness_is_taken_at_the_end_of_the_step():
    law = IsotropicElasticity(young=Table((0, 100), (200e3, 100e3)), poisson=0.3)
    mesh = box("hex8", (1, 1, 1))
    problem = Problem(mesh=mesh, laws={"all": law}, supports=SYMMETRY, loads=(Pressure(faces="x1", value=-10.0),),
                      temperature=lambda x, t: np.full(len(x), 50.0 * t))  # fmt: skip
    u = solve(problem, [0, 1, 2], settings=TIGHT).displacements[:, mesh.nodes("x1"), 0].mean(axis=1)
    np.testing.assert_allclose(u, [0, 10 / 150e3, 10 / 100e3], rtol=1e-9)


def test_nodes_of_no_element_are_left_alone():
    """Other codes keep reference nodes in their meshes: they take no part and move nowhere."""
    bare = box("hex8", (2, 1, 1))
    mesh = Mesh(
        points=np.concatenate([[[9.0, 9, 9]], bare.points]),
        cells={"hex8": bare.cells["hex8"] + 1},
        face_sets=bare.face_sets,
    )
    loads = (Pressure(faces="x1", value=-1.0),)
    u = solve(Problem(mesh=mesh, laws={"all": STEEL}, supports=SYMMETRY, loads=loads), [0, 1]).displacement(1)
    v = solve(Problem(mesh=bare, laws={"all": STEEL}, supports=SYMMETRY, loads=loads), [0, 1]).displacement(1)
    np.testing.assert_array_equal(u, np.concatenate([np.zeros((1, 3)), v]))


class Saturating(ConstitutiveLaw):
    """σ = C:ε / √(1 + (|ε| / ε₀)²): so soft at large strains that Newton's method overshoots on the way back."""

    state_names = ()
    symmetric = False

    def __init__(self, size):
        self.C, self.size = IsotropicElasticity(young=1e3, poisson=0.0).stiffness(np.array([20.0]))[0], size

    def update(self, temperature0, temperature1, strain0, strain_increment, state, dt):
        """Return stress, no state, and the tangent."""
        strain = strain0 + strain_increment
        if (bad := np.flatnonzero(np.abs(strain).max(axis=1) > 1e3)).size:
            raise ConvergenceError("strain beyond 1000", bad)
        root = np.sqrt(1 + np.sum(strain**2, axis=1) / self.size**2)[:, None]
        linear = strain @ self.C
        slope = self.C / root[..., None] - linear[:, :, None] * strain[:, None, :] / (root**3 * self.size**2)[..., None]
        return linear / root, state.copy(), slope


def saturating_bar():
    """A bar pulled to 0.8 of the stress at which its law saturates, and let go in one step."""
    pull = Pressure(faces="x1", value=-0.8, amplitude=Amplitude((0, 1, 2), (0, 1, 0)))
    return Problem(mesh=box("hex8", (2, 1, 1)), laws={"all": Saturating(1e-3)}, supports=SYMMETRY, loads=[pull])


def test_the_line_search_converges_where_newtons_method_alone_does_not():
    """As for arctan: the tangent at 4/3 ε₀ leads to -2.4 ε₀, the one there to 13 ε₀, and so on."""
    problem, times = saturating_bar(), [0, 0.5, 1, 2]
    alone, searching = NewtonSettings(max_halvings=0, max_cuts=0), NewtonSettings(max_cuts=0)
    with pytest.raises(ConvergenceError, match="after 0 cuts"):
        solve(problem, times, settings=alone)
    solver = Solver(problem, settings=searching)
    increments = list(solver.run(times))
    assert [i.time for i in increments] == times[1:] and 4 <= increments[-1].iterations <= 12
    # σ = 0.8 E ε₀ at ε = 4/3 ε₀, and nothing remains when it is gone.
    stretch = increments[1].displacement[:, 0].max() / problem.mesh.points[:, 0].max()
    assert stretch == pytest.approx(4 / 3 * 1e-3, rel=1e-6)
    assert np.abs(increments[-1].displacement).max() < 1e-10

    reduction = compress(solver.local, Snapshots.collect(solver.local, increments), Tolerances(mode="all"))
    with pytest.raises(ConvergenceError, match="after 0 cuts"):
        ReducedSolver(reduction.model, settings=alone).run([Query.of(problem)], times)
    answer = ReducedSolver(reduction.model, settings=searching).run([Query.of(problem)], times)
    for k, increment in enumerate(increments, start=1):
        u = reduction.displacement_field(answer.coefficients[0, k], answer.lifting[0, k])
        np.testing.assert_allclose(u, increment.displacement, atol=1e-9)
