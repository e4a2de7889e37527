"""The linear systems of Newton's method: Krylov iterations with a factor that is kept while it serves.

A factor of an earlier stiffness is a good preconditioner for the present one. It is renewed when the iterations that it
saves no longer pay for its making. On one rank it is a sparse Cholesky factor; on several, balancing domain
decomposition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .balancing import Balancing
from .element_operator import ElementOperator
from .krylov import conjugate_gradients, gmres
from .law import ConvergenceError
from .multifrontal import EliminationTree
from .problem import LocalProblem

MAX_KRYLOV = 400
PATIENCE = 5  # iterations per digit, beyond those of a fresh factor, that cost about as much as a new one


class LinearSolver:
    """Solves K du = r at the free dofs of a local problem, for a sequence of similar K."""

    def __init__(self, local: LocalProblem) -> None:
        """Find the elimination orders. Collective."""
        self.local = local
        self.subdomain = local.subdomain
        self.free = ~local.fixed
        self.balancing = Balancing(self.subdomain, self.free) if self.subdomain.comm.size > 1 else None
        self.tree = None if self.balancing else EliminationTree(self.subdomain.mesh, self.free.ravel())
        self._factor = None
        self._ready = False
        self._fresh = self._last = 0.0  # iterations per digit: of the factor when new, of the last solution
        self.iterations = 0
        self.factorisations = 0

    def solve(
        self, matrices: Sequence[np.ndarray], right: np.ndarray, *, symmetric: bool, tolerance: float
    ) -> np.ndarray:
        """Return du, consistent, for element matrices and a consistent right-hand side. Collective.

        The relative residual is at most tolerance. Unsymmetric systems go to GMRES, preconditioned by the factor of
        the symmetric part.

        Raises
        ------
        ConvergenceError : the stiffness is not positive definite, or too many iterations; on every rank.
        """
        operator = ElementOperator(self.local.kinematics, matrices, self.free)
        if self._ready and self._last <= self._fresh + PATIENCE:
            limit = 20 + int((self._fresh + 3 * PATIENCE) * -np.log10(tolerance))
            try:
                return self._iterate(operator, right, symmetric, tolerance, limit)
            except ConvergenceError:
                pass  # the old factor no longer fits this stiffness; a new one is made below
        self._renew(matrices, operator)
        du = self._iterate(operator, right, symmetric, tolerance, MAX_KRYLOV)
        self._fresh = self._last
        return du

    def _iterate(
        self, operator: ElementOperator, right: np.ndarray, symmetric: bool, tolerance: float, limit: int
    ) -> np.ndarray:
        method = conjugate_gradients if symmetric else gmres
        du, iterations = method(
            lambda u: self.subdomain.assemble(operator(u)),
            self._precondition,
            np.where(self.free, right, 0.0),
            products=self.subdomain.products,
            tolerance=tolerance,
            max_iterations=limit,
        )
        self._last = iterations / -np.log10(tolerance)
        self.iterations += iterations
        return du

    def _precondition(self, residual: np.ndarray) -> np.ndarray:
        if self.balancing:
            return self.balancing.apply(residual)
        return self._factor.solve(residual.ravel()).reshape(-1, 3)

    def _renew(self, matrices: Sequence[np.ndarray], operator: ElementOperator) -> None:
        error: ConvergenceError | None = None
        self._ready = False
        self._factor = None  # frees the memory of the old factor before the new one is made
        try:
            if self.balancing:
                self.balancing.refresh(matrices, operator)
            else:
                self._factor = self.tree.factor(matrices)
        except ConvergenceError as caught:
            error = caught
        self.subdomain.comm.raise_together(error, ConvergenceError)
        if self.balancing:
            self.balancing.prepare_coarse()
        self._ready = True
        self.factorisations += 1
