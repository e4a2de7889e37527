"""Material models of NEML (the Nuclear Engineering Material model Library, on PyPI) as laws.

NEML integrates one point at a time, so this is an oracle and a way to more models, not a fast path. NEML works with
Mandel vectors xx, yy, zz, √2 yz, √2 xz, √2 xy and with the mechanical strain.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .elastic import thermal_strain
from .law import COMPONENTS, Coefficient, ConstitutiveLaw, ConvergenceError

ROOT2 = np.sqrt(2.0)
ORDER = np.array([0, 1, 2, 5, 4, 3])  # where each Mandel component stands among ours, and the other way round
STRESS_FACTORS = np.array([1, 1, 1, ROOT2, ROOT2, ROOT2])
STRAIN_FACTORS = 1 / STRESS_FACTORS  # from engineering shear: γ/√2 = √2 ε


class NemlLaw(ConstitutiveLaw):
    """A small-strain NEML model behind the contract of a law.

    Parameters
    ----------
    model : an object with NEML's `update_sd` and `init_store`, such as `neml.models.GeneralIntegrator`.
    expansion, reference_temperature : thermal strain, as in `IsotropicElasticity`; NEML leaves it to its caller.
    symmetric : whether the model's tangents are symmetric.
    """

    def __init__(
        self, model: Any, *, expansion: Coefficient = 0.0, reference_temperature: float = 20.0, symmetric: bool = False
    ) -> None:
        self.model = model
        self.expansion, self.reference_temperature = expansion, reference_temperature
        self._symmetric = symmetric
        self._store = np.array(model.init_store(), dtype=float)

    @property
    def state_names(self) -> tuple[str, ...]:
        """NEML's own variables, then the stress at the start of the step, which NEML wants back."""
        return (*(f"neml_{k}" for k in range(len(self._store))), *(f"stress_{c}" for c in COMPONENTS))

    @property
    def symmetric(self) -> bool:
        """As its maker said."""
        return self._symmetric

    def initial_state(self, num_points: int) -> np.ndarray:
        """Return NEML's initial store and zero stress."""
        return np.tile(np.concatenate([self._store, np.zeros(6)]), (num_points, 1))

    def update(
        self,
        temperature0: np.ndarray,
        temperature1: np.ndarray,
        strain0: np.ndarray,
        strain_increment: np.ndarray,
        state: np.ndarray,
        dt: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Integrate every point by NEML; see `ConstitutiveLaw.update`."""
        strains = [
            (strain - thermal_strain(self.expansion, self.reference_temperature, temperature))[:, ORDER]
            * STRAIN_FACTORS
            for strain, temperature in ((strain0, temperature0), (strain0 + strain_increment, temperature1))
        ]
        stress, new = np.empty_like(strain0), state.copy()
        tangent = np.empty((len(strain0), 6, 6))
        size = len(self._store)
        for k in range(len(strain0)):
            before = state[k, size:][ORDER] * STRESS_FACTORS
            try:
                s, store, A, *_ = self.model.update_sd(
                    strains[1][k],
                    strains[0][k],
                    temperature1[k],
                    temperature0[k],
                    dt,
                    0.0,
                    before,
                    state[k, :size],
                    0.0,
                    0.0,
                )
            except RuntimeError as error:
                message = f"NEML did not converge at point {k}, state {state[k, :size]}: {error}"
                raise ConvergenceError(message, np.array([k])) from error
            stress[k] = (s / STRESS_FACTORS)[ORDER]
            new[k] = np.concatenate([store, stress[k]])
            tangent[k] = (A / STRESS_FACTORS[:, None] * STRAIN_FACTORS)[np.ix_(ORDER, ORDER)]
        return stress, new, tangent
