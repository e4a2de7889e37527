"""Reduced models of any fields by data alone: POD with regression on parameters, and operator inference in time.

Both take fields as rows, (samples or times, values), of any physics and from any reader or solver:

    model = PodRegression(tolerance=1e-4).fit(parameters, fields)
    fields = model.predict(new_parameters)        # model.held_out_error: on samples that the fit did not see
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp
from scipy.interpolate import RBFInterpolator

from .pod import InnerProduct, PointProduct, pod


class PodRegression:
    """POD of the fields, and one regression from parameters to all coefficients.

    Parameters
    ----------
    regressor : "rbf" (scipy, cubic or thin plate), "gp" (Gaussian process of scikit-learn, which must be installed), or
        any object with scikit-learn's fit(X, Y) and predict(X).
    tolerance : of the POD.
    held_out : part of the samples that the error is measured on before the model is fitted to all; 0 measures nothing.
    seed : of the choice of these samples.

    Attributes
    ----------
    held_out_error : relative L2 error over the held-out samples, nan where none were.
    projection_error : its part that no regression could avoid.
    num_modes : of the final model.

    Raises
    ------
    ValueError : unknown regressors, settings out of range.
    """

    def __init__(
        self, regressor: str | Any = "rbf", *, tolerance: float = 1e-4, held_out: float = 0.2, seed: int = 0
    ) -> None:
        if isinstance(regressor, str) and regressor not in ("rbf", "gp"):
            raise ValueError(
                f"Regressor {regressor!r} is not known; use 'rbf', 'gp', or an object with fit and predict."
            )
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out {held_out} must be in [0, 1).")
        self.regressor, self.tolerance, self.held_out, self.seed = regressor, tolerance, held_out, seed
        self.held_out_error = self.projection_error = float("nan")
        self._model: _Regression | None = None

    def fit(self, parameters: np.ndarray, fields: np.ndarray, product: InnerProduct | None = None) -> PodRegression:
        """Learn fields (samples, ...) from parameters (samples, number); returns itself.

        product : inner product of fields, such as `MassProduct`; default the Euclidean one.

        Raises
        ------
        ValueError : shapes that do not fit, numbers that are not finite, fewer than three samples.
        """
        X, Y, self._shape = _samples(parameters, fields)
        product = product or PointProduct(np.ones(Y.shape[1]))
        rng = np.random.default_rng(self.seed)
        number = min(int(np.ceil(self.held_out * len(X))), len(X) - 2)
        out = np.zeros(len(X), dtype=bool)
        out[rng.permutation(len(X))[:number]] = True
        if number:
            trial = _Regression(self.regressor, X[~out], Y[~out], product, self.tolerance)
            size = _norm(product, Y[out])
            self.held_out_error = _norm(product, trial.predict(X[out]) - Y[out]) / size
            self.projection_error = _norm(product, trial.project(Y[out]) - Y[out]) / size
        self._model = _Regression(self.regressor, X, Y, product, self.tolerance)
        return self

    @property
    def num_modes(self) -> int:
        """Number of modes."""
        return self._fitted().modes.shape[1]

    def predict(self, parameters: np.ndarray) -> np.ndarray:
        """Return fields (samples, ...) at parameters (samples, number); one sample, or one parameter, may be a row.

        Raises
        ------
        RuntimeError : before `fit`. ValueError : another number of parameters, or numbers that are not finite.
        """
        model = self._fitted()
        X, number = np.asarray(parameters, dtype=float), len(model.low)
        X = X.reshape(-1, number) if X.ndim < 2 and (number == 1 or X.size == number) else X
        if X.ndim != 2 or X.shape[1] != number or not np.all(np.isfinite(X)):
            raise ValueError(f"Parameters {X.shape} must be (samples, {number}) finite numbers, as those of the fit.")
        return model.predict(X).reshape(len(X), *self._shape)

    def _fitted(self) -> _Regression:
        if self._model is None:
            raise RuntimeError("PodRegression must be fitted before it is used.")
        return self._model


class _Regression:
    """One fit: mean, modes, coefficients scaled to unit variance, and the regressor."""

    def __init__(self, regressor: Any, X: np.ndarray, Y: np.ndarray, product: InnerProduct, tolerance: float) -> None:
        self.product, self.mean = product, Y.mean(axis=0)
        basis = pod((Y - self.mean).T, product, tolerance=tolerance)
        self.modes = basis.modes
        coefficients = self._coefficients(Y)
        self.low, width = X.min(axis=0), np.ptp(X, axis=0)
        # What does not vary teaches nothing, and would make the regression singular.
        self.varied = width > 1e-12 * np.abs(X).max(axis=0)
        if not self.varied.any() and self.modes.shape[1]:
            raise ValueError("All samples have the same parameters, but their fields differ.")
        self.width = width[self.varied]
        self.size = np.maximum(coefficients.std(axis=0), 1e-300)
        self._predict = _regressor(regressor, self._scaled(X), coefficients / self.size)

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        return (X - self.low)[:, self.varied] / self.width

    def _coefficients(self, Y: np.ndarray) -> np.ndarray:
        return self.product.gram((Y - self.mean).T, self.modes)

    def predict(self, X: np.ndarray) -> np.ndarray:
        if not self.modes.shape[1]:
            return np.tile(self.mean, (len(X), 1))
        return self.mean + (self._predict(self._scaled(X)) * self.size) @ self.modes.T

    def project(self, Y: np.ndarray) -> np.ndarray:
        return self.mean + self._coefficients(Y) @ self.modes.T


def _regressor(kind: Any, X: np.ndarray, C: np.ndarray) -> Any:
    """Return the function (samples, parameters) -> (samples, modes)."""
    if not C.shape[1]:
        return lambda x: np.zeros((len(x), 0))
    if isinstance(kind, str) and kind == "rbf":
        # A cubic kernel needs a linear tail, which enough samples in general position determine.
        spanned = np.linalg.matrix_rank(np.column_stack([np.ones(len(X)), X])) == X.shape[1] + 1
        degree = 1 if spanned and len(X) > X.shape[1] + 1 else 0
        return RBFInterpolator(X, C, kernel="cubic" if degree else "linear", degree=degree)
    if isinstance(kind, str):
        try:
            from sklearn.gaussian_process import GaussianProcessRegressor
            from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
        except ImportError as error:
            raise ImportError("regressor='gp' needs scikit-learn: pip install 'headrace[regression]'.") from error
        kernel = ConstantKernel(1.0, (1e-3, 1e5)) * RBF(np.full(X.shape[1], 0.5), (1e-2, 1e3))
        kernel += WhiteKernel(1e-6, (1e-10, 1e-1))  # what the truncated modes and the optimiser leave
        models = [GaussianProcessRegressor(kernel).fit(X, c) for c in C.T]
        return lambda x: np.stack([model.predict(x) for model in models], axis=1)
    from copy import deepcopy

    model = deepcopy(kind)
    model.fit(X, C)
    return lambda x: np.reshape(model.predict(x), (len(x), -1))


class OperatorInference:
    """Dynamics of the POD coefficients, da/dt = c + A a + H (a ⊗ a) + B u(t), fitted to snapshots in time.

    After B. Peherstorfer and K. Willcox, Comput. Methods Appl. Mech. Engrg. 306 (2016) 196: time derivatives by finite
    differences of the coefficients, then least squares with Tikhonov regularisation; its strength is chosen by how well
    the model, integrated from the start, follows the snapshots.

    Parameters
    ----------
    terms : which of "c", "A", "H", "B" the model has; "B" needs inputs.
    tolerance : of the POD. regularisation : candidates for the strength; several are compared.
    held_out : last part of the times that the fit does not see, and on which the error is measured.

    Attributes
    ----------
    held_out_error : relative error over the held-out times of the integrated model, nan where none were.
    """

    def __init__(
        self, terms: str = "cAH", *, tolerance: float = 1e-4,
        regularisation: Sequence[float] = tuple(10.0 ** np.arange(-10, 3)), held_out: float = 0.2,
    ) -> None:  # fmt: skip
        if not terms or set(terms) - set("cAHB") or len(set(terms)) < len(terms) or not 0 <= held_out < 1:
            raise ValueError(f"terms {terms!r} must be some of c, A, H, B; held_out {held_out} in [0, 1).")
        self.terms, self.tolerance, self.held_out = terms, tolerance, held_out
        self.regularisation = tuple(regularisation)
        self.held_out_error = float("nan")
        self._operator: np.ndarray | None = None

    def fit(
        self,
        times: np.ndarray,
        fields: np.ndarray,
        inputs: np.ndarray | None = None,
        product: InnerProduct | None = None,
    ) -> OperatorInference:
        """Learn from fields (times, ...) at increasing times, and inputs (times, number) for "B"; returns itself.

        Raises
        ------
        ValueError : shapes that do not fit, numbers that are not finite, fewer than five times before the
            held-out ones, and where every candidate for the regularisation gives a model that blows up.
        """
        t, Y, self._shape = _samples(np.asarray(times, dtype=float)[:, None], fields)
        t = t[:, 0]
        if np.any(np.diff(t) <= 0) or ("B" in self.terms) != (inputs is not None):
            raise ValueError("times must increase, and inputs be given exactly where terms has 'B'.")
        u = np.zeros((len(t), 0)) if inputs is None else np.reshape(np.asarray(inputs, dtype=float), (len(t), -1))
        known = len(t) - int(self.held_out * len(t))
        if known < 5:
            raise ValueError(f"{known} times are left to learn from; operator inference needs five.")
        product = product or PointProduct(np.ones(Y.shape[1]))
        self._input = (t, u)
        self._product, self._mean = product, Y[:known].mean(axis=0)
        self._modes = pod((Y[:known] - self._mean).T, product, tolerance=self.tolerance).modes
        a = product.gram((Y - self._mean).T, self._modes)
        # Coefficients of order one, so that one strength suits all columns.
        self._size = max(float(np.abs(a[:known]).max(initial=0.0)), 1e-300)
        a = a / self._size
        D = np.stack([self._features(row, v) for row, v in zip(a[:known], u[:known], strict=True)])
        rate = np.gradient(a[:known], t[:known], axis=0, edge_order=2)
        best = np.inf
        for strength in self.regularisation:
            # Columns of features: ridge by augmented rows keeps the conditioning of D, not of its square.
            extended = np.concatenate([D, strength * np.eye(D.shape[1])])
            right = np.concatenate([rate, np.zeros((D.shape[1], a.shape[1]))])
            operator = np.linalg.lstsq(extended, right, rcond=None)[0].T
            path = self._integrate(operator, a[0], t[:known])
            error = np.inf if path is None else float(np.linalg.norm(path - a[:known]))
            if error < best:
                best, self._operator = error, operator
        if self._operator is None:
            raise ValueError("Every model blew up; give stronger regularisation, fewer terms, or denser times.")
        self._start = (float(t[0]), a[0])
        if known < len(t):
            difference = self.predict(t[known:]).reshape(len(t) - known, -1) - Y[known:]
            self.held_out_error = _norm(product, difference) / _norm(product, Y[known:])
        return self

    @property
    def num_modes(self) -> int:
        """Number of modes."""
        return self._modes.shape[1]

    def predict(self, times: np.ndarray, initial: np.ndarray | None = None) -> np.ndarray:
        """Return fields (times, ...), integrated from the first training field at its time, or from another.

        Raises
        ------
        RuntimeError : before `fit`. ValueError : times before the start; a model that blows up.
        """
        if self._operator is None:
            raise RuntimeError("OperatorInference must be fitted before it is used.")
        times = np.atleast_1d(np.asarray(times, dtype=float))
        start, a0 = self._start
        if initial is not None:
            a0 = self._product.gram((np.reshape(initial, (1, -1)) - self._mean).T, self._modes)[0] / self._size
        if times[0] < start or np.any(np.diff(times) <= 0):
            raise ValueError(f"times must increase from {start:g} or later; they are {times}.")
        path = self._integrate(self._operator, a0, np.concatenate([[start], times[times > start]]))
        if path is None:
            raise ValueError("The model blows up from this state; it is outside of what it was fitted to.")
        path = path[len(path) - len(times) :]
        return (self._mean + self._size * path @ self._modes.T).reshape(len(times), *self._shape)

    def _features(self, a: np.ndarray, u: np.ndarray) -> np.ndarray:
        upper = np.triu_indices(len(a))
        parts = {"c": np.ones(1), "A": a, "H": a[upper[0]] * a[upper[1]], "B": u}
        return np.concatenate([parts[term] for term in self.terms])

    def _integrate(self, operator: np.ndarray, a0: np.ndarray, times: np.ndarray) -> np.ndarray | None:
        t, u = self._input

        def rate(time: float, a: np.ndarray) -> np.ndarray:
            return operator @ self._features(a, np.array([np.interp(time, t, column) for column in u.T]))

        def far(time: float, a: np.ndarray) -> float:
            return 1e3 - float(np.abs(a).max(initial=0.0))

        far.terminal = True
        if len(times) == 1:
            return a0[None]
        with np.errstate(all="ignore"):
            done = solve_ivp(rate, (times[0], times[-1]), a0, t_eval=times, rtol=1e-6, atol=1e-8, events=far,
                             method="LSODA")  # fmt: skip
        good = done.status == 0 and done.y.shape[1] == len(times) and np.all(np.isfinite(done.y))
        return done.y.T if good else None


def _samples(parameters: np.ndarray, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return parameters and fields as matrices, and the shape of one field."""
    X, Y = np.asarray(parameters, dtype=float), np.asarray(fields, dtype=float)
    X = X[:, None] if X.ndim == 1 else X
    if X.ndim != 2 or len(X) != len(Y) or len(X) < 3 or Y.ndim < 2:
        raise ValueError(f"Parameters {X.shape} and fields {Y.shape} must have one row per sample, at least three.")
    for name, values in (("parameters", X), ("fields", Y)):
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{name} are not finite in sample {np.argwhere(~np.isfinite(values))[0, 0]}.")
    return X, Y.reshape(len(Y), -1), Y.shape[1:]


def _norm(product: InnerProduct, rows: np.ndarray) -> float:
    return float(np.sqrt(sum(np.sum(block**2) for block in product.rows(rows.T))))
