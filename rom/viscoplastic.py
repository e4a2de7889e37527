"""Norton viscoplasticity with isotropic and nonlinear kinematic (Chaboche) hardening, integrated by backward Euler.

The law (J. L. Chaboche, Int. J. Plasticity 24 (2008) 1642): with s the stress deviator, X = Σ X_i the back-stress,
J(a) = √(3/2 a:a), <a> = max(a, 0),

    f = J(s - X) - R(p),  ṗ = <f / K>ⁿ,  ε̇_vp = 3/2 ṗ (s - X) / J(s - X),
    X_i = 2/3 C_i α_i,    α̇_i = ε̇_vp - D_i α_i ṗ,    σ = C_el (ε - ε_th - ε_vp).

One backward Euler step reduces to one scalar equation for Δp. With θ_i = 1 / (1 + D_i Δp), trial deviator s_tr and
Z(Δp) = s_tr - Σ 2/3 C_i θ_i α_i0, the direction of flow is that of Z and

    F(Δp) = Δp (3G + Σ C_i θ_i) + R(p0 + Δp) + K (Δp / Δt)^(1/n) - J(Z) = 0.

F increases with Δp as long as hardening does and |α_i| <= 1 / D_i, which the step preserves. It is solved in y = ln Δp,
where the terms are close to exponentials and Newton converges from the right without limit on the exponent n.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .elastic import IDENTITY, TENSOR_FROM_ENGINEERING, IsotropicElasticity
from .law import COMPONENTS, Coefficient, ConstitutiveLaw, ConvergenceError, Table, coefficient_at, require_range
from .viscoplastic_kernel import COEFFICIENTS, machine_code

CONTRACTION = 1 / TENSOR_FROM_ENGINEERING  # a:b = Σ CONTRACTION a b for tensors stored by components
DEVIATORIC = np.diag(TENSOR_FROM_ENGINEERING) - np.outer(IDENTITY, IDENTITY) / 3  # of engineering strains
MAX_ITERATIONS = 60
SMALLEST_LOG = -600.0  # a trial step whose Δp is below exp(-600) is elastic in double precision


@dataclass(frozen=True, kw_only=True)
class KinematicHardening:
    """One back-stress X = 2/3 C α, α̇ = ε̇_vp - D α ṗ; it saturates at J(X) = C / D."""

    modulus: Coefficient
    recall: Coefficient = 0.0


@dataclass(frozen=True, kw_only=True)
class VoceHardening:
    """One term Q (1 - exp(-b p)) of isotropic hardening; Q < 0 softens."""

    saturation: Coefficient
    rate: Coefficient


@dataclass(frozen=True, kw_only=True)
class NortonChaboche(ConstitutiveLaw):
    """Elastoviscoplasticity of metals: Norton flow over a yield stress with isotropic and kinematic hardening.

    Parameters
    ----------
    elasticity : the isotropic elastic part, with thermal expansion.
    yield_stress : R at p = 0; at least 0.
    viscosity, exponent : K and n of ṗ = <f / K>ⁿ, n >= 1; K = 0 is rate-independent plasticity. CalculiX's A is K⁻ⁿ.
    kinematic : back-stresses; several add up.
    isotropic : terms Q (1 - exp(-b p)) added to the yield stress.
    linear_hardening : modulus H of a term H p.
    curve : points (p, stress) of a further, piecewise linear term, from (0, 0), constant beyond the last.
    compiled : whether machine code of numba (`headrace[fast]`) integrates it, the same to 1e-10 and many times as fast
        at few points; it takes some seconds to make, once on a machine.

    All coefficients but the curve may be tables over temperature; the step uses those at its end.

    Raises
    ------
    ValueError : coefficients out of range. ImportError : compiled without numba.
    """

    elasticity: IsotropicElasticity
    yield_stress: Coefficient
    viscosity: Coefficient = 0.0
    exponent: Coefficient = 1.0
    kinematic: tuple[KinematicHardening, ...] = ()
    isotropic: tuple[VoceHardening, ...] = ()
    linear_hardening: Coefficient = 0.0
    curve: tuple[tuple[float, float], ...] = ()
    compiled: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinematic", tuple(self.kinematic))
        object.__setattr__(self, "isotropic", tuple(self.isotropic))
        object.__setattr__(self, "curve", tuple((float(p), float(r)) for p, r in self.curve))
        at_least = {"yield_stress": 0.0, "viscosity": 0.0, "exponent": 1.0}
        for name, low in at_least.items():
            require_range("NortonChaboche", name, getattr(self, name), above=low, closed=True)
        for k, term in enumerate(self.kinematic):
            require_range("NortonChaboche", f"kinematic[{k}].modulus", term.modulus, above=0.0, closed=True)
            require_range("NortonChaboche", f"kinematic[{k}].recall", term.recall, above=0.0, closed=True)
        for k, voce in enumerate(self.isotropic):
            require_range("NortonChaboche", f"isotropic[{k}].rate", voce.rate, above=0.0, closed=True)
        if self.compiled and importlib.util.find_spec("numba") is None:
            raise ImportError("NortonChaboche: compiled=True needs numba: pip install headrace[fast], or leave it out.")
        if self.curve and (self.curve[0] != (0.0, 0.0) or np.any(np.diff([p for p, _ in self.curve]) <= 0)):
            raise ValueError(f"NortonChaboche: curve must start at (0, 0) and p must increase; it is {self.curve}.")

    @property
    def state_names(self) -> tuple[str, ...]:
        """Viscoplastic strain (engineering shear), p, then α of each back-stress (engineering shear)."""
        back = (f"alpha{k + 1}_{c}" for k in range(len(self.kinematic)) for c in COMPONENTS)
        return (*(f"viscoplastic_{c}" for c in COMPONENTS), "p", *back)

    @property
    def symmetric(self) -> bool:
        """Dynamic recovery of a back-stress makes the tangent unsymmetric."""
        return all(term.recall == 0.0 for term in self.kinematic)

    def hardening(self, temperature: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Return the function of p that gives the yield radius R(p) and its slope dR/dp at these temperatures."""
        start = coefficient_at(self.yield_stress, temperature)
        linear = coefficient_at(self.linear_hardening, temperature)
        terms = [
            (coefficient_at(term.saturation, temperature), coefficient_at(term.rate, temperature))
            for term in self.isotropic
        ]
        knots, stresses = np.array(self.curve or [(0.0, 0.0)]).T
        slopes = np.append(np.diff(stresses) / np.diff(knots), 0.0)

        def radius_and_slope(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            radius, slope = start + linear * p, linear
            for Q, b in terms:
                left = np.exp(-b * p)
                radius, slope = radius + Q * (1 - left), slope + Q * b * left
            if self.curve:
                radius = radius + np.interp(p, knots, stresses)
                slope = slope + slopes[np.searchsorted(knots, p, side="right") - 1]
            return radius, slope

        return radius_and_slope

    def update(
        self,
        temperature0: np.ndarray,
        temperature1: np.ndarray,
        strain0: np.ndarray,
        strain_increment: np.ndarray,
        state: np.ndarray,
        dt: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Integrate one backward Euler step; see `ConstitutiveLaw.update`."""
        strain = strain0 + strain_increment
        if self.compiled:
            done = self._by_machine_code(temperature1, strain, state, dt)
            if done is not None:
                return done
        elastic = self.elasticity.elastic_strain(temperature1, strain) - state[:, :6]
        tangent = self.elasticity.stiffness(temperature1)
        stress = (tangent @ elastic[..., None])[..., 0]
        finite = np.isfinite(stress).all(axis=1)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            raise ConvergenceError(f"NortonChaboche: strain or temperature is not finite at point {bad[0]}: "
                                   f"strain {strain[bad[0]]}, temperature {temperature1[bad[0]]}.", bad)  # fmt: skip
        deviator = stress - stress[:, :3].mean(axis=1, keepdims=True) * IDENTITY
        new = state.copy()
        C = self._kinematic_at(temperature1)[0]
        alpha = state[:, 7:].reshape(len(state), len(self.kinematic), 6) * TENSOR_FROM_ENGINEERING
        trial = deviator - ((2 / 3 * C)[:, None] @ alpha)[:, 0]
        radius, _ = self.hardening(temperature1)(state[:, 6])
        flows = np.flatnonzero((equivalent(trial) > radius) & ((dt > 0) | (self._viscosity(temperature1) == 0)))
        if flows.size:
            step = _Flow(self, temperature1[flows], deviator[flows], alpha[flows], state[flows, 6], dt, flows)
            dp = step.solve()
            step.correct(dp, stress, new, tangent)
        return stress, new, tangent

    def _by_machine_code(
        self, temperature: np.ndarray, strain: np.ndarray, state: np.ndarray, dt: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return the end of the step, None where a point failed: then the arrays say why."""
        elastic = self.elasticity
        given = (elastic.young, elastic.poisson, elastic.expansion, self.yield_stress, self.linear_hardening,
                 self.viscosity, self.exponent,
                 *(k.modulus for k in self.kinematic), *(k.recall for k in self.kinematic),
                 *(v.saturation for v in self.isotropic), *(v.rate for v in self.isotropic))  # fmt: skip
        table = np.empty((len(given), len(temperature)))
        for row, value in zip(table, given, strict=True):
            row[:] = np.interp(temperature, value.temperatures, value.values) if isinstance(value, Table) else value
        table[COEFFICIENTS.index("stretch")] *= temperature - elastic.reference_temperature
        end = np.empty(strain.shape), np.empty(state.shape), np.empty((len(strain), 6, 6))
        curve = np.ascontiguousarray(np.array(self.curve or [(0.0, 0.0)]).T)
        arrays = np.ascontiguousarray(strain), np.ascontiguousarray(state)
        failed = machine_code()(
            table, len(self.kinematic), curve, *arrays, float(dt), (SMALLEST_LOG, MAX_ITERATIONS), end
        )
        return None if failed else end

    def _viscosity(self, temperature: np.ndarray) -> np.ndarray:
        return coefficient_at(self.viscosity, temperature)

    def _kinematic_at(self, temperature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return C and D of all back-stresses, each (num_points, back-stresses)."""
        shape = (len(temperature), len(self.kinematic))
        C = np.reshape([coefficient_at(k.modulus, temperature) for k in self.kinematic], shape[::-1]).T
        D = np.reshape([coefficient_at(k.recall, temperature) for k in self.kinematic], shape[::-1]).T
        return C, D


def contract(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a:b of symmetric tensors stored by their six components, (...,)."""
    return (a * b) @ CONTRACTION


def equivalent(deviator: np.ndarray) -> np.ndarray:
    """Return J(a) = √(3/2 a:a), (...,)."""
    return np.sqrt(1.5 * contract(deviator, deviator))


class _Flow:
    """The points of one step that flow: the scalar equation for Δp, and what follows from its solution.

    Z is a combination of s_tr and the α_k0, so that J(Z) needs only their inner products, which are computed once.
    """

    def __init__(
        self,
        law: NortonChaboche,
        temperature: np.ndarray,
        deviator: np.ndarray,
        alpha: np.ndarray,
        p0: np.ndarray,
        dt: float,
        where: np.ndarray,
    ) -> None:
        self.law, self.temperature, self.deviator, self.alpha, self.p0 = law, temperature, deviator, alpha, p0
        self.dt, self.where = dt, where
        self.G = law.elasticity.moduli(temperature)[1]
        self.C, self.D = law._kinematic_at(temperature)
        self.K, self.n = law._viscosity(temperature), coefficient_at(law.exponent, temperature)
        self.hardening = law.hardening(temperature)
        self.parts = np.concatenate([deviator[:, None], alpha], axis=1)
        self.products = 1.5 * (self.parts * CONTRACTION) @ np.swapaxes(self.parts, 1, 2)

    def terms(self, dp: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return F, dF/dΔp, J(Z), the coefficients of Z in s_tr and the α_k0, and their derivatives by Δp."""
        theta = 1 / (1 + self.D * dp[:, None])
        modulus = self.C * theta
        c, dc = np.ones((2, len(dp), self.C.shape[1] + 1))
        np.multiply(modulus, -2 / 3, out=c[:, 1:])
        dc[:, 0] = 0
        np.multiply(2 / 3 * modulus, theta * self.D, out=dc[:, 1:])
        along = (self.products @ c[..., None])[..., 0]
        J = np.sqrt((c * along).sum(axis=1))
        radius, slope = self.hardening(self.p0 + dp)
        viscous = self.K * (dp / (self.dt or 1.0)) ** (1 / self.n)
        F = dp * (3 * self.G + modulus.sum(axis=1)) + radius + viscous - J
        slope = 3 * self.G + (modulus * theta).sum(axis=1) + slope + viscous / (self.n * dp)
        return F, slope - (dc * along).sum(axis=1) / J, J, c, dc

    def solve(self) -> np.ndarray:
        """Return Δp of every point; 0 where it underflows."""
        overstress = -self.terms(np.full(len(self.p0), np.exp(SMALLEST_LOG)))[0]
        elastic = overstress <= 0
        positive = np.where(elastic, 1.0, overstress)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Both are upper bounds of Δp: all overstress relaxed elastically, or kept for the whole step.
            y = np.log(positive / (3 * self.G))
            y = np.where(self.K > 0, np.minimum(y, np.log(self.dt) + self.n * np.log(positive / self.K)), y)
        elastic |= y < SMALLEST_LOG
        y = np.where(elastic, 0.0, y)
        # Viscous stress hardly depends on Δp where n is large, so what it leaves of the overstress is a closer start.
        left = positive - self.K * np.exp((y - np.log(self.dt or 1.0)) / self.n)
        closer = np.log(np.maximum(left, 0.05 * positive) / (3 * self.G + self.C.sum(axis=1)))
        y = np.where(elastic, 0.0, np.minimum(y, closer))
        low, high = np.full(len(y), -np.inf), np.full(len(y), np.inf)
        done = elastic.copy()
        for _ in range(MAX_ITERATIONS):
            dp = np.exp(y)
            F, slope, *_ = self.terms(dp)
            low, high = np.where(F < 0, y, low), np.where(F > 0, y, high)
            with np.errstate(divide="ignore", invalid="ignore"):
                newton = y - F / (dp * slope)
            good = (newton >= low) & (newton <= high) & (slope > 0) & np.isfinite(newton)
            y_new = newton
            if not (good | done).all():
                # Softening and moving recall coefficients may break monotony: then bisect, or look further right.
                with np.errstate(invalid="ignore"):
                    middle = (low + high) / 2
                fallback = np.where(np.isfinite(middle), middle, np.where(np.isfinite(high), y - 5, y + 1))
                y_new = np.where(good, newton, fallback)
            y_new = np.where(done, y, y_new)
            # Newton's method squares the error, so after a step of 1e-6 nothing is left to do.
            done |= np.abs(y_new - y) <= np.where(good, 1e-6, 1e-10)
            y = y_new
            if done.all():
                return np.where(elastic, 0.0, np.exp(y))
        bad = np.flatnonzero(~done)
        k = bad[0]
        raise ConvergenceError(
            f"NortonChaboche did not converge at {bad.size} points in {MAX_ITERATIONS} iterations, first at point "
            f"{self.where[k]}: Δp = {np.exp(y[k]):.3g}, state p = {self.p0[k]:.6g}, temperature "
            f"{self.temperature[k]:.6g}, trial deviator {self.deviator[k]}. Shorten the step, or check the "
            "coefficients for softening.",
            self.where[bad],
        )

    def correct(self, dp: np.ndarray, stress: np.ndarray, state: np.ndarray, tangent: np.ndarray) -> None:
        """Return the stress to the flow surface, advance the state and make the tangent consistent, in place.

        With m = 3/2 Z/J, H = dF/dΔp and dZ = Z_p dΔp + 2G dev dε: dΔp = 2G m:dε / H, and
        dΔε_vp = m dΔp + Δp 3/(2J) (dZ - 2/3 m (m:dZ)).
        """
        moving = dp > 0
        where, dp = self.where[moving], dp[moving]
        flow = self if moving.all() else self._restrict(moving)
        _, H, J, c, dc = flow.terms(dp)
        Z, Zp = ((a[:, None] @ flow.parts)[:, 0] for a in (c, dc))
        m = 1.5 * Z / J[:, None]
        twoG = 2 * flow.G
        stress[where] -= (twoG * dp)[:, None] * m
        strain = dp[:, None] * m
        theta = 1 / (1 + flow.D * dp[:, None])
        state[where, :6] += strain * CONTRACTION
        state[where, 6] += dp
        state[where, 7:] = (theta[..., None] * (flow.alpha + strain[:, None]) * CONTRACTION).reshape(len(where), -1)
        w = (twoG / H)[:, None] * m  # dΔp = w·dε with engineering strains
        turn = (1.5 * dp / J)[:, None, None]
        along = twoG[:, None] * m + ((m * Zp) @ CONTRACTION)[:, None] * w
        dZ = twoG[:, None, None] * DEVIATORIC + Zp[:, :, None] * w[:, None, :]
        spin = dZ - 2 / 3 * m[:, :, None] * along[:, None, :]
        tangent[where] -= twoG[:, None, None] * (m[:, :, None] * w[:, None, :] + turn * spin)

    def _restrict(self, chosen: np.ndarray) -> _Flow:
        pieces = (array[chosen] for array in (self.temperature, self.deviator, self.alpha, self.p0))
        return _Flow(self.law, *pieces, self.dt, self.where[chosen])
