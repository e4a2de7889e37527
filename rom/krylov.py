"""Preconditioned Krylov methods on distributed nodal fields; the caller gives operator, preconditioner and product."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .law import ConvergenceError

Operator = Callable[[np.ndarray], np.ndarray]
Products = Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray]


def conjugate_gradients(
    apply: Operator,
    precondition: Operator,
    right: np.ndarray,
    *,
    products: Products,
    tolerance: float,
    max_iterations: int,
) -> tuple[np.ndarray, int]:
    """Solve a symmetric positive definite system; return the solution and the number of iterations. Collective.

    The residual's norm falls below tolerance times that of the right-hand side. `products` gives the inner products of
    several fields with one, summed over all ranks.

    Raises
    ------
    ConvergenceError : not reached within max_iterations, or a direction of negative curvature.
    """
    x = np.zeros_like(right)
    r = right.copy()
    norm = float(np.sqrt(products([r], r)[0]))
    target = tolerance * norm
    p, rz = np.zeros_like(right), 1.0
    for iteration in range(max_iterations + 1):
        if norm <= target:
            return x, iteration
        z = precondition(r)
        before, rz = rz, float(products([r], z)[0])
        p = z + (rz / before if iteration else 0.0) * p
        Ap = apply(p)
        curvature = float(products([p], Ap)[0])
        if not curvature > 0:
            raise ConvergenceError(f"Conjugate gradients met curvature {curvature:.3g}: the stiffness is not positive.")
        step = rz / curvature
        x += step * p
        r -= step * Ap
        norm = float(np.sqrt(products([r], r)[0]))
    raise ConvergenceError(
        f"Conjugate gradients left a relative residual of {norm / target * tolerance:.3g} after {max_iterations} "
        f"iterations; {tolerance:.3g} was asked for."
    )


def gmres(
    apply: Operator,
    precondition: Operator,
    right: np.ndarray,
    *,
    products: Products,
    tolerance: float,
    max_iterations: int,
    restart: int = 50,
) -> tuple[np.ndarray, int]:
    """Solve any regular system, preconditioned from the right (Saad and Schultz 1986). Collective.

    Returns and raises as `conjugate_gradients`. Gram-Schmidt is the classical one, run twice: two sums over ranks per
    iteration whatever its number, and rounding does not matter.
    """
    x = np.zeros_like(right)
    target = tolerance * float(np.sqrt(products([right], right)[0]))
    done = 0
    while True:
        r = right - apply(x) if done else right.copy()
        beta = float(np.sqrt(products([r], r)[0]))
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
                h = products(V, w)
                H[: k + 1, k] += h
                w = w - sum(c * v for c, v in zip(h, V, strict=True))
            H[k + 1, k] = np.sqrt(products([w], w)[0])
            done += 1
            y, *_ = np.linalg.lstsq(H[: k + 2, : k + 1], beta * np.eye(k + 2)[0], rcond=None)
            residual = np.linalg.norm(beta * np.eye(k + 2)[0] - H[: k + 2, : k + 1] @ y)
            if residual <= target or H[k + 1, k] <= 1e-14 * beta:
                break
            V.append(w / H[k + 1, k])
        for weight, z in zip(y, Z, strict=False):
            x = x + weight * z
