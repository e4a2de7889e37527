"""Preconditioned Krylov methods on distributed nodal fields; the caller gives operator, preconditioner and product."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .law import ConvergenceError

Operator = Callable[[np.ndarray], np.ndarray]
Product = Callable[[np.ndarray, np.ndarray], float]


def conjugate_gradients(
    apply: Operator,
    precondition: Operator,
    right: np.ndarray,
    *,
    dot: Product,
    tolerance: float,
    max_iterations: int,
) -> tuple[np.ndarray, int]:
    """Solve a symmetric positive definite system; return the solution and the number of iterations. Collective.

    The residual's norm falls below tolerance times that of the right-hand side. `dot` sums over all ranks.

    Raises
    ------
    ConvergenceError : not reached within max_iterations, or a direction of negative curvature.
    """
    x = np.zeros_like(right)
    target = tolerance * np.sqrt(dot(right, right))
    r = right.copy()
    z = precondition(r)
    p = z.copy()
    rz = dot(r, z)
    for iteration in range(max_iterations + 1):
        norm = np.sqrt(dot(r, r))
        if norm <= target:
            return x, iteration
        Ap = apply(p)
        curvature = dot(p, Ap)
        if not curvature > 0:
            raise ConvergenceError(f"Conjugate gradients met curvature {curvature:.3g}: the stiffness is not positive.")
        step = rz / curvature
        x += step * p
        r -= step * Ap
        z = precondition(r)
        rz, before = dot(r, z), rz
        p = z + (rz / before) * p
    raise ConvergenceError(
        f"Conjugate gradients left a relative residual of {norm / target * tolerance:.3g} after {max_iterations} "
        f"iterations; {tolerance:.3g} was asked for."
    )


def gmres(
    apply: Operator,
    precondition: Operator,
    right: np.ndarray,
    *,
    dot: Product,
    tolerance: float,
    max_iterations: int,
    restart: int = 50,
) -> tuple[np.ndarray, int]:
    """Solve any regular system, preconditioned from the right (Saad and Schultz 1986). Collective.

    Returns and raises as `conjugate_gradients`; the classical Gram-Schmidt process runs twice, so that few sums of
    vectors of products would be enough, and rounding does not matter.
    """
    x = np.zeros_like(right)
    target = tolerance * np.sqrt(dot(right, right))
    done = 0
    while True:
        r = right - apply(x) if done else right.copy()
        beta = np.sqrt(dot(r, r))
        if beta <= target:
            return x, done
        if done >= max_iterations:
            raise ConvergenceError(
                f"GMRES left a relative residual of {beta / target * tolerance:.3g} after {max_iterations} iterations; "
                f"{tolerance:.3g} was asked for."
            )
        V, Z = [r / beta], []
        H = np.zeros((restart + 1, restart))
        for k in range(min(restart, max_iterations - done)):
            Z.append(precondition(V[k]))
            w = apply(Z[k])
            for _ in range(2):
                for i in range(k + 1):
                    h = dot(V[i], w)
                    H[i, k] += h
                    w = w - h * V[i]
            H[k + 1, k] = np.sqrt(dot(w, w))
            done += 1
            y, *_ = np.linalg.lstsq(H[: k + 2, : k + 1], beta * np.eye(k + 2)[0], rcond=None)
            residual = np.linalg.norm(beta * np.eye(k + 2)[0] - H[: k + 2, : k + 1] @ y)
            if residual <= target or H[k + 1, k] <= 1e-14 * beta:
                break
            V.append(w / H[k + 1, k])
        for weight, z in zip(y, Z, strict=False):
            x = x + weight * z
