"""Statistics of the fields over all simulations of a stream: one pass, exact, and never a simulation on disk.

Mean, variance, least and largest value of every field at every step and point, and first-order Sobol indices of every
parameter: which part of the variance goes when the parameter is known.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

FORMAT, VERSION = "headrace-statistics", 1
BINS = 8


class FieldStatistics:
    """Takes the steps of simulations in any order, each once.

    Sobol indices come from the simulations as they are, whatever their design: the unit interval of each parameter is
    cut into bins of equal probability, and the variance between the bins' means is compared with the whole one,
    less what bins would differ by chance (the estimator ε² of analysis of variance, Kelley 1935). Pick-freeze estimates
    (Saltelli 2010, Baudin et al. 2016) need groups of p + 2 simulations of a design made for them, which are held until
    a group is complete; these need neither, and the training's own design serves. The bins smear: an index is that of
    the parameter rounded to a bin.

    Parameters
    ----------
    num_steps : of a simulation. step_shape : (fields, *grid). parameters : their names.
    bins : of each parameter; memory is (4 + parameters x bins) fields of float64 per step. 0: no Sobol indices.
    """

    def __init__(
        self, num_steps: int, step_shape: Sequence[int], parameters: Sequence[str], *, bins: int = BINS
    ) -> None:
        self.parameters, self.bins = tuple(parameters), bins
        shape = (num_steps, *step_shape)
        self.count = np.zeros(num_steps, np.int64)
        self.mean, self._m2 = np.zeros(shape), np.zeros(shape)
        self.least, self.largest = np.full(shape, np.inf), np.full(shape, -np.inf)
        self._bin_counts = np.zeros((num_steps, len(self.parameters), bins), np.int64)
        self._bin_means = np.zeros((num_steps, len(self.parameters), bins, *step_shape))
        self._seen: dict[int, np.ndarray] = {}

    def has(self, simulation: int, step: int) -> bool:
        """Whether a step was taken already, in this attempt or an earlier one."""
        return simulation in self._seen and bool(self._seen[simulation][step])

    def add(self, simulation: int, step: int, point: np.ndarray, values: np.ndarray) -> bool:
        """Take one step, values (fields, *grid); False where it was taken before.

        point : of the simulation in the unit cube, (parameters,).
        """
        if self.has(simulation, step):
            return False
        self._seen.setdefault(simulation, np.zeros(len(self.count), bool))[step] = True
        values = values.astype(np.float64)
        self.count[step] += 1
        # Welford (1962): no large sums cancel.
        delta = values - self.mean[step]
        self.mean[step] += delta / self.count[step]
        self._m2[step] += delta * (values - self.mean[step])
        np.minimum(self.least[step], values, out=self.least[step])
        np.maximum(self.largest[step], values, out=self.largest[step])
        if self.bins:
            for axis, place in enumerate(np.clip((np.asarray(point) * self.bins).astype(int), 0, self.bins - 1)):
                self._bin_counts[step, axis, place] += 1
                mean = self._bin_means[step, axis, place]
                mean += (values - mean) / self._bin_counts[step, axis, place]
        return True

    @property
    def variance(self) -> np.ndarray:
        """Unbiased variance over the simulations, (steps, fields, *grid); NaN where fewer than two were seen."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._m2 / _beside(self.count - 1, self._m2, positive=True)

    def sobol(self) -> np.ndarray:
        """Return first-order Sobol indices, (parameters, steps, fields, *grid).

        NaN where the field does not vary, where a parameter has only one filled bin, and where no bin has two values.
        Chance can make an index a little less than 0.
        """
        result = np.full((len(self.parameters), *self.mean.shape), np.nan)
        for axis in range(len(self.parameters) if self.bins else 0):
            counts = self._bin_counts[:, axis]  # (steps, bins)
            weights = counts.reshape(*counts.shape, *[1] * (self.mean.ndim - 1))
            spread = self._bin_means[:, axis] - self.mean[:, None]
            between = (weights * spread**2).sum(1)
            filled = (counts > 0).sum(1)
            within = self._m2 - between
            left = _beside(self.count - filled, between, positive=True)
            with np.errstate(invalid="ignore", divide="ignore"):
                chance = _beside(filled - 1, between) * within / left
                index = (between - chance) / self._m2
            known = _beside((filled > 1) & (self.count > filled), between).astype(bool) & (self._m2 > 0)
            result[axis] = np.where(known, index, np.nan)
        return result

    # -- files ---------------------------------------------------------------------------------------------------

    def write(self, path: str | Path, *, fields: Sequence[str]) -> None:
        """Write everything into an HDF5 file, atomically: what a person wants, and what `read` goes on from.

        Raises
        ------
        OSError : the disk is full or gone.
        """
        path = Path(path)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        arrays = {
            "mean": self.mean, "variance": self.variance, "least": self.least, "largest": self.largest,
            "count": self.count, "state/m2": self._m2, "state/bin_counts": self._bin_counts,
            "state/bin_means": self._bin_means, "state/simulations": np.array(list(self._seen), dtype=np.int64),
            "state/seen": np.array(list(self._seen.values()), dtype=bool).reshape(len(self._seen), len(self.count)),
        }  # fmt: skip
        try:
            with h5py.File(part, "w") as file:
                file.attrs.update({"format": FORMAT, "version": VERSION, "fields": list(fields)})
                file.attrs["parameters"] = list(self.parameters)
                for name, values in arrays.items():
                    file[name] = values
                for name, values in zip(self.parameters, self.sobol(), strict=True):
                    file[f"sobol/{name}"] = values
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | Path) -> FieldStatistics:
        """Return what `write` left, to look at or to go on with.

        Raises
        ------
        OSError : the file is missing, damaged, or something else.
        """
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT or file.attrs.get("version") != VERSION:
                raise OSError(f"{path} is no file of {FORMAT!r}, version {VERSION}.")
            mean = file["mean"][...]
            counts = file["state/bin_counts"][...]
            names = [str(name) for name in file.attrs["parameters"]]
            one = cls(len(mean), mean.shape[1:], names, bins=counts.shape[-1])
            one.mean, one._m2, one.count = mean, file["state/m2"][...], file["count"][...]
            one.least, one.largest = file["least"][...], file["largest"][...]
            one._bin_counts, one._bin_means = counts, file["state/bin_means"][...]
            seen = zip(file["state/simulations"][...].tolist(), file["state/seen"][...], strict=True)
            one._seen = {number: steps.copy() for number, steps in seen}
        return one


def _beside(per_step: np.ndarray, like: np.ndarray, *, positive: bool = False) -> np.ndarray:
    """Numbers of the steps, to be combined with (steps, fields, *grid); where positive, those below 1 become NaN."""
    values = np.where(per_step > 0, per_step, np.nan) if positive else per_step
    return np.asarray(values).reshape(-1, *[1] * (like.ndim - 1))
