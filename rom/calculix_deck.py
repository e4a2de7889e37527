"""Input decks of CalculiX (and flat ones of Abaqus): read as a mesh with its sets, written from a problem of ours.

A written deck has one step per increment, in which every load is given as the nodal forces of our own discretisation:
both programs then solve the same discrete problem. Laws that CalculiX does not have are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from .elastic import IsotropicElasticity
from .law import Coefficient, ConstitutiveLaw, Table, coefficient_at, coefficient_range
from .mesh import Mesh
from .problem import LocalProblem, Problem
from .subdomain import distribute
from .viscoplastic import NortonChaboche

TYPES = {"C3D4": "tet4", "C3D10": "tet10", "C3D8": "hex8", "C3D20": "hex20", "C3D20R": "hex20r"}
SIDES = tuple(f"S{k}" for k in range(1, 7))
DEEPEST = 20  # files that include one another, and sets that contain one another
LARGEST_P = 1.0  # where the written hardening curves end
MOST_KNOTS = 200  # CalculiX keeps no more points of a hardening curve, and overwrites others of them beyond
MOST_EXPONENT = 5.0  # of counterparts: CalculiX seeks the overstress f in 15 Newton steps on f**n, each at most f / n
CREEP_ERROR = 1e-6  # relative, of the coefficients A between the temperatures that are written
SMALLEST_RATE = 1e-20  # CalculiX raises smaller coefficients A of its Norton law to this, without a word


class DeckError(ValueError):
    """An input deck that cannot be read, or a problem that CalculiX cannot express; names the line or the law."""


def read_deck(path: str | Path) -> Mesh:
    """Return the mesh of an .inp file with node, element and face sets and its labels.

    Read are *NODE, *ELEMENT, *NSET, *ELSET (GENERATE too), *SURFACE (faces of elements, or nodes), *INCLUDE. Set names
    are kept in upper case, as both programs do. Steps, materials and the like are passed over.

    Raises
    ------
    DeckError : elements of types that we do not have (shells, reduced or incompatible ones), sets or elements that
        name what does not exist, parts and instances.
    """
    deck = _Deck(Path(path))
    for keyword, options, lines, where in _cards(Path(path)):
        handler = getattr(deck, f"_{keyword.lower().replace(' ', '_')}", None)
        if handler is not None:
            try:
                handler(options, lines)
            except DeckError:
                raise
            except (ValueError, IndexError) as error:
                raise DeckError(f"{where}: *{keyword} cannot be read: {error}") from error
    return deck.mesh()


def deck_options(path: str | Path, keyword: str) -> list[dict[str, str]]:
    """Return the options of every card with a keyword, such as "NODE PRINT"."""
    return [options for name, options, _, _ in _cards(Path(path)) if name == keyword]


class _Deck:
    """What the cards have said so far; one method per card."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nodes: dict[int, list[float]] = {}
        self.elements: dict[str, dict[int, list[int]]] = {}
        self.node_sets: dict[str, list[int | str]] = {}
        self.element_sets: dict[str, list[int | str]] = {}
        self.surfaces: dict[str, list[tuple[str, str]]] = {}
        self.others: set[str] = set()

    def _node(self, options: dict[str, str], lines: list[list[str]]) -> None:
        for label, *x in lines:
            self.nodes[int(label)] = ([float(v) if v else 0.0 for v in x] + [0.0] * 3)[:3]
        if "NSET" in options:
            self.node_sets.setdefault(options["NSET"], []).extend(int(line[0]) for line in lines)

    def _element(self, options: dict[str, str], lines: list[list[str]]) -> None:
        kind = options.get("TYPE", "")
        if kind not in TYPES:
            self.others.add(kind)
            return
        width = {"tet4": 4, "tet10": 10, "hex8": 8, "hex20": 20, "hex20r": 20}[TYPES[kind]] + 1
        flat = [int(v) for line in lines for v in line if v]
        if len(flat) % width:
            raise DeckError(f"{self.path}: *ELEMENT, TYPE={kind} has {len(flat)} numbers, not a multiple of {width}.")
        rows = np.reshape(flat, (-1, width))
        self.elements.setdefault(TYPES[kind], {}).update(zip(rows[:, 0].tolist(), rows[:, 1:].tolist(), strict=True))
        if "ELSET" in options:
            self.element_sets.setdefault(options["ELSET"], []).extend(rows[:, 0].tolist())

    def _nset(self, options: dict[str, str], lines: list[list[str]]) -> None:
        self.node_sets.setdefault(options.get("NSET", ""), []).extend(_members(options, lines))

    def _elset(self, options: dict[str, str], lines: list[list[str]]) -> None:
        self.element_sets.setdefault(options.get("ELSET", ""), []).extend(_members(options, lines))

    def _surface(self, options: dict[str, str], lines: list[list[str]]) -> None:
        name = options.get("NAME", "")
        if options.get("TYPE", "ELEMENT") == "NODE":
            self.node_sets.setdefault(name, []).extend(_members({}, lines))
        else:
            self.surfaces.setdefault(name, []).extend((line[0].upper(), line[1].upper()) for line in lines)

    def _instance(self, options: dict[str, str], lines: list[list[str]]) -> None:
        raise DeckError(f"{self.path} has *INSTANCE; write a flat deck (Abaqus: *PREPRINT, or model attribute "
                        "'Do not use parts and assemblies in input files').")  # fmt: skip

    def mesh(self) -> Mesh:
        """Return the mesh, nodes and elements in the order of the file; nodes without an element are left out."""
        if not self.elements:
            other = f" It has elements of type {', '.join(sorted(self.others))}." if self.others else ""
            raise DeckError(f"{self.path} has no volume elements of type {', '.join(TYPES)}.{other}")
        if solid := [kind for kind in self.others if kind.startswith("C3D")]:
            raise DeckError(
                f"{self.path} has elements of type {', '.join(sorted(solid))}; read are {', '.join(TYPES)}."
            )
        used = {node for block in self.elements.values() for nodes in block.values() for node in nodes}
        if missing := sorted(used - set(self.nodes)):
            raise DeckError(f"{self.path}: elements name node {missing[0]}, which *NODE does not give.")
        labels = [label for label in self.nodes if label in used]
        number = {label: k for k, label in enumerate(labels)}
        cells = {
            kind: np.array([[number[n] for n in nodes] for nodes in block.values()])
            for kind, block in self.elements.items()
        }
        element_labels = [label for block in self.elements.values() for label in block]
        element = {label: k for k, label in enumerate(element_labels)}
        return Mesh(
            points=np.array([self.nodes[label] for label in labels]),
            cells=cells,
            node_labels=np.array(labels),
            element_labels=np.array(element_labels),
            node_sets={name: [number[n] for n in self._resolve(name, self.node_sets) if n in number]
                       for name in self.node_sets},
            element_sets={name: [element[e] for e in self._resolve(name, self.element_sets) if e in element]
                          for name in self.element_sets},
            face_sets={name: self._faces(pairs, element) for name, pairs in self.surfaces.items()},
        )  # fmt: skip

    def _resolve(self, name: str, sets: dict[str, list[int | str]], depth: int = 0) -> Iterator[int]:
        if name not in sets or depth > DEEPEST:
            raise DeckError(f"{self.path}: there is no set {name}, or it contains itself.")
        for member in sets[name]:
            yield from self._resolve(member, sets, depth + 1) if isinstance(member, str) else (member,)

    def _faces(self, pairs: list[tuple[str, str]], element: dict[int, int]) -> list[tuple[int, int]]:
        found = []
        for who, side in pairs:
            if side not in SIDES:
                raise DeckError(f"{self.path}: *SURFACE has side {side} of {who}; read are {', '.join(SIDES)}.")
            members = [int(who)] if who.isdigit() else self._resolve(who, self.element_sets)
            found += [(element[label], SIDES.index(side)) for label in members if label in element]
        return found


def _members(options: dict[str, str], lines: Iterable[list[str]]) -> list[int | str]:
    members: list[int | str] = []
    for line in lines:
        if "GENERATE" in options:
            first, last, *step = (int(v) for v in line if v)
            members += range(first, last + 1, step[0] if step else 1)
        else:
            members += [int(v) if v.lstrip("-").isdigit() else v.upper() for v in line if v]
    return members


def _cards(path: Path, depth: int = 0) -> Iterator[tuple[str, dict[str, str], list[list[str]], str]]:
    """Yield (keyword, options, data lines, place in the file) of every card, those of included files too."""
    if depth > DEEPEST:
        raise DeckError(f"{path} is included by itself, or {DEEPEST} files deep.")
    card: tuple[str, dict[str, str], list[list[str]], str] | None = None
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DeckError(f"{path} cannot be read: {error}") from error
    header = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("**"):
            continue
        if line.startswith("*") or header:
            header += line
            if header.endswith(","):
                continue
            if card is not None:
                yield card
            keyword, *given = (part.strip() for part in header.lstrip("*").split(","))
            header = ""
            name = " ".join(keyword.upper().split())
            pairs = [item.partition("=") for item in given]
            # Names are upper case in both programs; file names are not.
            options = {k.strip().upper(): v.strip() if name == "INCLUDE" else v.strip().upper() for k, _, v in pairs}
            card = (name, options, [], f"{path}, line {number}")
            if card[0] == "INCLUDE":
                if "INPUT" not in options:
                    raise DeckError(f"{card[3]}: *INCLUDE names no file: *INCLUDE, INPUT=FILE.")
                yield from _cards(path.parent / options["INPUT"].strip('"'), depth + 1)
                card = None
        elif card is not None:
            card[2].append([part.strip() for part in line.rstrip(",").split(",")])
    if card is not None:
        yield card


def write_deck(
    path: str | Path, problem: Problem, times: Sequence[float], *, large_strain: bool = False, tight: bool = True
) -> Path:
    """Write a problem as an input deck that prints U, S, E and PEEQ of every increment, and NT if it is heated.

    times : of all increments, the start included. large_strain : adds NLGEOM, without which CalculiX 2.20 treats
    kinematic hardening wrongly. tight : asks for equilibrium to 1e-9 instead of CalculiX's 5e-3.

    Raises
    ------
    DeckError : a law or a temperature that CalculiX does not have, or coefficients that it would change.
    """
    path, times = Path(path), np.asarray(times, dtype=float)
    mesh = problem.mesh
    local = LocalProblem(problem, distribute(mesh))
    start = local.nodal_temperature(times[0])
    lines = [*_mesh_cards(mesh, problem), *_material_cards(problem, start, large_strain=large_strain)]
    heated = any(np.ptp(local.nodal_temperature(t) - start) or local.nodal_temperature(t)[0] != start[0] for t in times)
    lines += ["*INITIAL CONDITIONS, TYPE=TEMPERATURE", *_rows(mesh.node_labels, start)]
    fixed = [(mesh.node_labels[n], d + 1, n) for n, d in np.argwhere(local.fixed)]
    lines += ["*BOUNDARY", *(f"{label}, {d}, {d}, 0." for label, d, _ in fixed)]
    last = np.zeros((mesh.num_nodes, 3))
    for before, time in pairwise(times):
        force, moved = local.external_force(time), local.prescribed(time)
        lines += [f"*STEP, INC=1{', NLGEOM' if large_strain else ''}"]
        if tight and before == times[0]:
            lines += ["*CONTROLS, PARAMETERS=FIELD", "1e-9, 1e-8"]
        lines += ["*VISCO, CETOL=1., DIRECT", f"{time - before:.12e}, {time - before:.12e}"]
        if heated:
            lines += ["*TEMPERATURE", *_rows(mesh.node_labels, local.nodal_temperature(time))]
        if np.any(moved) or np.any(local.prescribed(before)):
            lines += ["*BOUNDARY", *(f"{label}, {d}, {d}, {moved[n, d - 1]:.12e}" for label, d, n in fixed)]
        loaded = np.argwhere((force != 0) | (last != 0))
        if len(loaded):
            lines += ["*CLOAD", *(f"{mesh.node_labels[n]}, {d + 1}, {force[n, d]:.12e}" for n, d in loaded)]
        last = force
        lines += ["*NODE PRINT, NSET=NALL", "U, NT" if heated else "U", "*EL PRINT, ELSET=EALL", "S, E, PEEQ"]
        lines += ["*END STEP"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _rows(labels: np.ndarray, values: np.ndarray) -> list[str]:
    return [f"{label}, {value:.12e}" for label, value in zip(labels, values, strict=True)]


def _mesh_cards(mesh: Mesh, problem: Problem) -> list[str]:
    codes = {ours: theirs for theirs, ours in TYPES.items()}
    lines = ["*NODE, NSET=NALL"]
    for label, x in zip(mesh.node_labels, mesh.points, strict=True):
        lines += [f"{label}, " + ", ".join(f"{v:.12e}" for v in x)]
    for kind, first, block in mesh.blocks():
        lines += [f"*ELEMENT, TYPE={codes[kind.name]}, ELSET=EALL"]
        for label, nodes in zip(mesh.element_labels[first : first + len(block)], mesh.node_labels[block], strict=True):
            numbers = [str(v) for v in (label, *nodes)]
            lines += [", ".join(numbers[:11]) + ("," if len(numbers) > 11 else "")]
            lines += [", ".join(numbers[11:])] if len(numbers) > 11 else []
    for k, name in enumerate(problem.laws):
        lines += [f"*ELSET, ELSET=LAW{k}", *(f"{label}," for label in mesh.element_labels[mesh.elements(name)])]
    for name, nodes in mesh.node_sets.items():
        lines += [f"*NSET, NSET={name}", *(f"{label}," for label in mesh.node_labels[nodes])] if len(nodes) else []
    for name, pairs in mesh.face_sets.items():
        lines += [f"*SURFACE, NAME={name}", *(f"{mesh.element_labels[e]}, S{face + 1}" for e, face in pairs)]
    return lines


def _material_cards(problem: Problem, start: np.ndarray, *, large_strain: bool) -> list[str]:
    lines = []
    for k, (name, law) in enumerate(problem.laws.items()):
        lines += [f"*MATERIAL, NAME=LAW{k}", *_law_cards(name, law, start, large_strain=large_strain)]
        lines += [f"*SOLID SECTION, ELSET=LAW{k}, MATERIAL=LAW{k}"]
    return lines


def _law_cards(name: str, law: ConstitutiveLaw, start: np.ndarray, *, large_strain: bool) -> list[str]:
    flows = isinstance(law, NortonChaboche)
    elastic = law.elasticity if flows else law
    if not isinstance(elastic, IsotropicElasticity):
        raise DeckError(f"The law of {name!r} is a {type(law).__name__}; decks are written of isotropic elasticity and "
                        "of NortonChaboche.")  # fmt: skip
    stiffness = [elastic.young, elastic.poisson]
    # CalculiX interpolates creep data at the temperatures of the elastic ones, so those must be as fine.
    temperatures = _temperatures([*stiffness, *(_flow_coefficients(law) if flows else [])])
    if flows and coefficient_range(law.viscosity)[0] > 0:
        temperatures = _refined(temperatures, law)
    lines = ["*ELASTIC", *_table(stiffness, temperatures)]
    if elastic.expansion != 0.0:
        zero = elastic.reference_temperature
        if np.any(start != zero):
            raise DeckError(f"The law of {name!r} expands from {zero:g}, but the body starts at {start[0]:g}; CalculiX "
                            "starts without thermal strain. Give equal temperatures.")  # fmt: skip
        lines += [f"*EXPANSION, ZERO={zero:.10g}", *_table([elastic.expansion], _temperatures([elastic.expansion]))]
    return lines + (_flow_cards(name, law, temperatures, large_strain=large_strain) if flows else [])


def _flow_coefficients(law: NortonChaboche) -> list[Coefficient]:
    coefficients = [law.yield_stress, law.viscosity, law.exponent, law.linear_hardening]
    coefficients += [c for term in law.isotropic for c in (term.saturation, term.rate)]
    return coefficients + [term.modulus for term in law.kinematic]


def _flow_cards(name: str, law: NortonChaboche, temperatures: np.ndarray, *, large_strain: bool) -> list[str]:
    kinematic = bool(law.kinematic)
    if any(term.recall != 0.0 for term in law.kinematic) or (kinematic and (law.isotropic or law.curve)):
        raise DeckError(f"The law of {name!r} has back-stresses with recall, or both kinds of hardening; CalculiX has "
                        "linear kinematic or isotropic hardening. `counterpart` gives a similar one.")  # fmt: skip
    if kinematic and not large_strain:
        raise DeckError(f"The law of {name!r} hardens kinematically, which CalculiX 2.20 gets wrong without NLGEOM "
                        "(errors of 20 % and more); pass large_strain=True.")  # fmt: skip
    knots = {0.0, LARGEST_P, *(p for p, _ in law.curve)}
    if law.isotropic:
        knots |= set(np.geomspace(1e-6, LARGEST_P, max(MOST_KNOTS + 1 - len(knots), 2)))
    if len(knots) > MOST_KNOTS:
        raise DeckError(f"The hardening of {name!r} has {len(knots)} points; CalculiX keeps {MOST_KNOTS}. Give fewer.")
    lines = [f"*PLASTIC, HARDENING={'KINEMATIC' if kinematic else 'ISOTROPIC'}"]
    viscous = ["*CREEP, LAW=NORTON"]
    for T in temperatures:
        at = np.array([T])
        for p in sorted(knots):
            back = sum(coefficient_at(term.modulus, at)[0] for term in law.kinematic)
            radius = law.hardening(at)(np.array([p]))[0][0] + p * back
            lines += [f"{radius:.10e}, {p:.10e}, {T:.10e}"]
        K, n = coefficient_at(law.viscosity, at)[0], coefficient_at(law.exponent, at)[0]
        if K <= 0:
            raise DeckError(f"The law of {name!r} has no viscosity; decks are written of viscoplastic laws.")
        if K**-n < SMALLEST_RATE:
            raise DeckError(
                f"The law of {name!r} has viscosity {K:g} and exponent {n:g}, hence A = K**-n = {K**-n:.3g}; "
                f"CalculiX takes {SMALLEST_RATE:g} instead of any smaller A. `counterpart` gives one with a lower n."
            )
        viscous += [f"{K**-n:.10e}, {n:.10g}, 0., {T:.10e}"]
    return lines + viscous


def counterpart(problem: Problem) -> Problem:
    """Return a problem like the given one that CalculiX solves, too; equal to it where nothing stands in the way.

    Back-stresses become isotropic hardening with the same curve under pulling in one direction, in 31 straight pieces.
    Exponents fall to 5, or to what keeps A = K**-n: CalculiX 2.20 does not solve the flow of larger ones in steps that
    double the overstress or more, and ends with "solution seems to diverge". Temperatures are `plain_temperature`.

    Raises
    ------
    DeckError : a back-stress without recall or with coefficients that depend on temperature, or beside other hardening.
    """
    laws = {k: _counterpart(k, v) if isinstance(v, NortonChaboche) else v for k, v in problem.laws.items()}
    return replace(problem, laws=laws, plain_temperature=True)


def _counterpart(name: str, law: NortonChaboche) -> NortonChaboche:
    largest = coefficient_range(law.viscosity)[1]
    limit = min(MOST_EXPONENT, -np.log10(SMALLEST_RATE) / np.log10(largest) if largest > 1 else MOST_EXPONENT)
    if coefficient_range(law.exponent)[1] > limit:
        law = replace(law, exponent=limit)
    if not law.kinematic:
        return law
    tables = any(isinstance(c, Table) for term in law.kinematic for c in (term.modulus, term.recall))
    if tables or law.isotropic or law.curve or any(term.recall == 0 for term in law.kinematic):
        raise DeckError(f"The law of {name!r} has no counterpart; one needs back-stresses with recall, coefficients "
                        "that do not depend on temperature, and no other curve of hardening.")  # fmt: skip
    fastest, slowest = (f(term.recall for term in law.kinematic) for f in (max, min))
    p = np.append(0.0, np.geomspace(0.02 / fastest, 10 / slowest, 31))
    stress = sum(term.modulus / term.recall * -np.expm1(-term.recall * p) for term in law.kinematic)
    return replace(law, kinematic=(), curve=tuple(zip(p, stress, strict=True)))


def _temperatures(coefficients: Sequence[Coefficient]) -> np.ndarray:
    """Return the knots of all tables."""
    return np.unique([t for c in coefficients if isinstance(c, Table) for t in c.temperatures] or [20.0])


def _refined(knots: np.ndarray, law: NortonChaboche) -> np.ndarray:
    """Return knots between which A = K⁻ⁿ, which CalculiX interpolates instead of K, is right to `CREEP_ERROR`."""

    def logarithm(T: np.ndarray) -> np.ndarray:
        return -coefficient_at(law.exponent, T) * np.log(np.maximum(coefficient_at(law.viscosity, T), 1e-300))

    while True:
        middle = (knots[:-1] + knots[1:]) / 2
        left, right = (logarithm(T) - logarithm(middle) for T in (knots[:-1], knots[1:]))
        off = np.abs((np.exp(left) + np.exp(right)) / 2 - 1) > CREEP_ERROR
        if not off.any():
            return knots
        knots = np.sort(np.concatenate([knots, middle[off]]))


def _table(coefficients: Sequence[Coefficient], temperatures: np.ndarray) -> list[str]:
    lines = []
    for T in temperatures:
        values = [coefficient_at(c, np.array([T]))[0] for c in coefficients]
        lines += [", ".join(f"{v:.10e}" for v in (*values, T))]
    return lines
