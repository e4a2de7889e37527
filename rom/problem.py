"""A quasi-static problem: mesh, laws, loads, supports, temperature; and its restriction to a subdomain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .kinematics import Kinematics
from .law import ConstitutiveLaw
from .loads import DIRECTIONS, Load, NodalTemperature, Pressure, Support, Temperature, profile_at, temperature_at
from .material import Material
from .mesh import Mesh
from .subdomain import Subdomain


@dataclass(frozen=True, kw_only=True)
class Problem:
    """div σ + f = 0 with σ from the laws, over time, under loads, supports and a temperature field.

    Parameters
    ----------
    mesh : the whole mesh.
    laws : element set -> law, disjoint sets that cover the mesh; "all" is every element.
    loads, supports : see `loads`.
    temperature : a number, `NodalTemperature`, or a function (points, t) -> temperatures.
    plain_temperature : whether quadrature points take temperatures as CalculiX does (`ElementType.plain_values`), by
        which thermal strains of hex8 and hex20 do not vary faster than strains; else the shape functions say.

    Raises
    ------
    ValueError : unknown sets, elements without a law, temperatures of another mesh.
    """

    mesh: Mesh
    laws: Mapping[str, ConstitutiveLaw]
    loads: tuple[Load, ...] = ()
    supports: tuple[Support, ...] = ()
    temperature: Temperature = field(default=20.0)
    plain_temperature: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "loads", tuple(self.loads))
        object.__setattr__(self, "supports", tuple(self.supports))
        Material(self.mesh, self.laws)
        for support in self.supports:
            self.mesh.nodes(support.nodes)
        for load in self.loads:
            if isinstance(load, Pressure):
                self.mesh.faces(load.faces)
            elif hasattr(load, "nodes"):
                self.mesh.nodes(load.nodes)
        if isinstance(self.temperature, NodalTemperature):
            shape = self.temperature.values.shape
            if shape[1] != self.mesh.num_nodes:
                raise ValueError(f"Temperatures are given for {shape[1]} nodes; the mesh has {self.mesh.num_nodes}.")


class LocalProblem:
    """A problem on one subdomain: everything that depends on mesh and loads is computed once here.

    Attributes
    ----------
    subdomain, kinematics, material : of the own elements.
    load_vectors : nodal forces of each load for factor 1, split, (num_local_nodes, 3) each.
    fixed : which dofs are prescribed, (num_local_nodes, 3).
    """

    def __init__(self, problem: Problem, subdomain: Subdomain) -> None:
        self.problem, self.subdomain = problem, subdomain
        self.kinematics = Kinematics(subdomain.mesh)
        self.material = Material(subdomain.mesh, problem.laws)
        self.load_vectors = [load.vector(subdomain, self.kinematics) for load in problem.loads]
        self.fixed = np.zeros((subdomain.mesh.num_nodes, 3), dtype=bool)
        self._supports = []
        for support in problem.supports:
            nodes = subdomain.mesh.nodes(support.nodes)
            d = DIRECTIONS.index(support.direction)
            self.fixed[nodes, d] = True
            self._supports.append(
                (nodes, d, profile_at(support.value, subdomain.mesh.points[nodes]), support.amplitude)
            )

    def external_force(self, time: float) -> np.ndarray:
        """Return the nodal forces of all loads, split, (num_local_nodes, 3)."""
        total = np.zeros((self.subdomain.mesh.num_nodes, 3))
        for load, vector in zip(self.problem.loads, self.load_vectors, strict=True):
            total += load.factor(time) * vector
        return total

    def lifting(self) -> list[np.ndarray]:
        """Return for each support the displacements that it prescribes at amplitude 1, (num_local_nodes, 3) each.

        Zero elsewhere, also where a later support prescribes the same dof, so that their sum is `prescribed`.
        """
        fields = []
        for nodes, d, value, _ in self._supports:
            for earlier in fields:
                earlier[nodes, d] = 0.0
            fields.append(np.zeros((self.subdomain.mesh.num_nodes, 3)))
            fields[-1][nodes, d] = value
        return fields

    def prescribed(self, time: float) -> np.ndarray:
        """Return prescribed displacements, (num_local_nodes, 3), zero where free; the last support of a dof wins."""
        values = np.zeros((self.subdomain.mesh.num_nodes, 3))
        for nodes, d, value, amplitude in self._supports:
            values[nodes, d] = float(amplitude(time)) * value
        return values

    def temperature(self, time: float) -> np.ndarray:
        """Return the temperature at the quadrature points, (num_local_points,)."""
        return self.kinematics.interpolate(self.nodal_temperature(time), plain=self.problem.plain_temperature)

    def nodal_temperature(self, time: float) -> np.ndarray:
        """Return the temperature of the local nodes, (num_local_nodes,)."""
        return temperature_at(self.problem.temperature, self.subdomain.mesh.points, self.subdomain.nodes, time)
