"""The reader's contract: a user's reader in a few lines, and what a series in memory refuses."""

from pathlib import Path

import numpy as np
import pytest

from headrace.rom import Mesh, Reader, TimeSeries
from tests.rom.boxes import box


class MyReader(Reader):
    """The reader that docs/rom.md shows."""

    def __init__(self, folder):
        self.folder = Path(folder)
        points, hexes = np.load(self.folder / "points.npy"), np.load(self.folder / "hexes.npy")
        self._mesh = Mesh(points=points, cells={"hex8": hexes})
        self._times = np.loadtxt(self.folder / "times.txt")

    @property
    def mesh(self):
        return self._mesh

    @property
    def times(self):
        return self._times

    def displacement(self, increment):
        return np.load(self.folder / f"u{increment:04d}.npy")


def test_a_users_reader_needs_a_mesh_times_and_displacements(tmp_path):
    mesh = box("hex8", (1, 1, 2))
    np.save(tmp_path / "points.npy", mesh.points)
    np.save(tmp_path / "hexes.npy", mesh.cells["hex8"])
    np.savetxt(tmp_path / "times.txt", [0, 1])
    for k in range(2):
        np.save(tmp_path / f"u{k:04d}.npy", k * mesh.points)
    reader = MyReader(tmp_path)
    np.testing.assert_array_equal(reader.displacement(1), reader.mesh.points)
    assert reader.temperature(1) is None and reader.point_field("stress", 1) is None
    with pytest.raises(TypeError, match="displacement"):
        type("Half", (Reader,), {"mesh": None, "times": None})()


def test_a_series_refuses_what_does_not_fit():
    mesh = box("hex8", (1, 1, 2))
    u = np.zeros((3, 12, 3))
    good = {"mesh": mesh, "times": [0, 1, 2], "displacements": u}
    series = TimeSeries(**good, point_fields={"p": np.ones((3, 16))}, temperatures=np.ones((3, 12)))
    assert series.point_field("p", 2).shape == (16,) and series.temperature(0).shape == (12,)
    holed = u.copy()
    holed[1, 7, 2] = np.nan
    cases = {
        r"displacements has shape \(2, 12, 3\); mesh and times ask for \(3, 12, 3\)": {"displacements": u[:2]},
        r"displacements has shape \(3, 11, 3\)": {"displacements": u[:, :11]},
        "displacements is not finite at increment 1, node or point 7": {"displacements": holed},
        "times must increase": {"times": [0, 1, 1]},
        "temperatures has shape": {"temperatures": np.zeros((3, 11))},
        "stress has shape": {"point_fields": {"stress": np.zeros((3, 15, 6))}},
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            TimeSeries(**{**good, **change})
