"""Linear elasticity, isotropic and cubic, with coefficients that depend on temperature and thermal expansion."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from .law import Coefficient, ConstitutiveLaw, coefficient_at, require_range

# Diagonal of the map from engineering strains to the components of the strain tensor.
TENSOR_FROM_ENGINEERING = np.array([1, 1, 1, 0.5, 0.5, 0.5])
IDENTITY = np.array([1.0, 1, 1, 0, 0, 0])
INDEX_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def thermal_strain(expansion: Coefficient, reference_temperature: float, temperature: np.ndarray) -> np.ndarray:
    """Return α(T) (T - T_ref) on the diagonal, (num_points, 6); α is the secant coefficient from T_ref."""
    stretch = coefficient_at(expansion, temperature) * (temperature - reference_temperature)
    return stretch[:, None] * IDENTITY


@dataclass(frozen=True, kw_only=True)
class LinearElasticity(ConstitutiveLaw):
    """σ = C(T) (ε - ε_th), with ε_th = α(T) (T - T_ref) I, whatever the stiffness C.

    Parameters
    ----------
    expansion : secant coefficient α from the reference temperature.
    reference_temperature : where the thermal strain is zero.
    """

    expansion: Coefficient = 0.0
    reference_temperature: float = 20.0

    @property
    def state_names(self) -> tuple[str, ...]:
        """No internal variables."""
        return ()

    @property
    def symmetric(self) -> bool:
        """The stiffness is symmetric."""
        return True

    @abstractmethod
    def stiffness(self, temperature: np.ndarray) -> np.ndarray:
        """Return the stiffness in the global frame, (num_points, 6, 6)."""

    def elastic_strain(self, temperature: np.ndarray, strain: np.ndarray) -> np.ndarray:
        """Return the strain less the thermal strain, (num_points, 6)."""
        return strain - thermal_strain(self.expansion, self.reference_temperature, temperature)

    def update(
        self,
        temperature0: np.ndarray,
        temperature1: np.ndarray,
        strain0: np.ndarray,
        strain_increment: np.ndarray,
        state: np.ndarray,
        dt: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return stress, the empty state and stiffness at the end of the step; see `ConstitutiveLaw.update`."""
        C = self.stiffness(temperature1)
        stress = np.einsum("pij,pj->pi", C, self.elastic_strain(temperature1, strain0 + strain_increment))
        return stress, state.copy(), C


@dataclass(frozen=True, kw_only=True)
class IsotropicElasticity(LinearElasticity):
    """σ = λ tr(ε - ε_th) I + 2 μ (ε - ε_th), with ε_th = α(T) (T - T_ref) I.

    Parameters
    ----------
    young, poisson : E > 0 and -1 < ν < 0.5; numbers or tables over temperature.
    expansion, reference_temperature : as in `LinearElasticity`.

    Raises
    ------
    ValueError : coefficients out of range.
    """

    young: Coefficient
    poisson: Coefficient

    def __post_init__(self) -> None:
        require_range("IsotropicElasticity", "young", self.young, above=0.0)
        require_range("IsotropicElasticity", "poisson", self.poisson, above=-1.0, below=0.5)

    def moduli(self, temperature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return bulk and shear modulus at temperatures."""
        E, nu = coefficient_at(self.young, temperature), coefficient_at(self.poisson, temperature)
        return E / (3 * (1 - 2 * nu)), E / (2 * (1 + nu))

    def stiffness(self, temperature: np.ndarray) -> np.ndarray:
        """Return the elastic stiffness, (num_points, 6, 6)."""
        bulk, shear = self.moduli(temperature)
        volumetric = np.outer(IDENTITY, IDENTITY)
        deviatoric = np.diag(TENSOR_FROM_ENGINEERING) - volumetric / 3
        return bulk[:, None, None] * volumetric + 2 * shear[:, None, None] * deviatoric


@dataclass(frozen=True, kw_only=True)
class CubicElasticity(LinearElasticity):
    """σ = C(T) (ε - ε_th) with the cubic symmetry of a single crystal: C11, C12, C44 in the crystal's axes.

    Parameters
    ----------
    c11, c12, c44 : stiffnesses, C11 > |C12|, C11 + 2 C12 > 0, C44 > 0 at every temperature; numbers or tables.
    axes : the crystal's axes in the global frame, as rows of a rotation, (3, 3); default: aligned.
    expansion, reference_temperature : as in `LinearElasticity` (expansion of a cubic crystal is isotropic).

    Raises
    ------
    ValueError : stiffnesses that are not positive definite, or axes that are not orthonormal.
    """

    c11: Coefficient
    c12: Coefficient
    c44: Coefficient
    axes: tuple[tuple[float, float, float], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))

    def __post_init__(self) -> None:
        Q = np.array(self.axes, dtype=float)
        if Q.shape != (3, 3) or not np.allclose(Q @ Q.T, np.eye(3), atol=1e-8):
            raise ValueError(f"CubicElasticity: axes {self.axes} must be three orthonormal rows.")
        object.__setattr__(self, "axes", tuple(tuple(float(v) for v in row) for row in Q))
        knots = {t for c in (self.c11, self.c12, self.c44) for t in getattr(c, "temperatures", (0.0,))}
        for T in sorted(knots):
            c11, c12, c44 = (float(coefficient_at(c, np.array(T))) for c in (self.c11, self.c12, self.c44))
            if not (c11 > abs(c12) and c11 + 2 * c12 > 0 and c44 > 0):
                raise ValueError(
                    f"CubicElasticity: C11 {c11:g}, C12 {c12:g}, C44 {c44:g} at temperature {T:g} are not positive "
                    "definite; they need C11 > |C12|, C11 + 2 C12 > 0 and C44 > 0."
                )

    def stiffness(self, temperature: np.ndarray) -> np.ndarray:
        """Return the stiffness in the global frame, (num_points, 6, 6)."""
        c11, c12, c44 = (coefficient_at(c, temperature) for c in (self.c11, self.c12, self.c44))
        C = np.zeros((len(temperature), 6, 6))
        C[:, :3, :3] = c12[:, None, None]
        C[:, range(3), range(3)] = c11[:, None]
        C[:, range(3, 6), range(3, 6)] = c44[:, None]
        M = strain_rotation(np.array(self.axes))
        return M.T @ C @ M


def strain_rotation(axes: np.ndarray) -> np.ndarray:
    """Return the 6 by 6 matrix that takes engineering strains from the global frame to axes given as rows of (3, 3).

    ε' = Q ε Qᵀ; as σ·ε is invariant, stresses return by the transpose of this matrix.
    """
    M = np.empty((6, 6))
    for column, (a, b) in enumerate(INDEX_PAIRS):
        tensor = np.zeros((3, 3))
        tensor[a, b] = tensor[b, a] = 1.0 if a == b else 0.5
        turned = axes @ tensor @ axes.T
        M[:, column] = [turned[i, j] * (1 if i == j else 2) for i, j in INDEX_PAIRS]
    return M
