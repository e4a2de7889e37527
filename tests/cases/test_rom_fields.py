"""Fields of the solvers and of files learnt by data alone: five lines from a data set to a prediction."""

from dataclasses import replace

import h5py
import meshio
import numpy as np
import pytest

from headrace.cases.heat2d import case
from headrace.rom.field_files import read_fields
from headrace.rom.meshio_reader import FormatError
from headrace.rom.regression import OperatorInference, PodRegression
from headrace.solvers.hdf5 import HDF5Sink, read_trajectory
from headrace.solvers.simulate import simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty-five short simulations of heat2d on a coarse grid, of which two parameters differ."""
    folder = tmp_path_factory.mktemp("heat")
    small = replace(case.resized((12, 12)), num_snapshots=20)
    names = list(small.parameters)
    middle = {name: (d.low + d.high) / 2 for name, d in small.parameters.items()}
    for k in range(25):
        values = middle | {
            name: d.low + (d.high - d.low) * share
            for name, d, share in zip(names[:2], list(small.parameters.values())[:2], divmod(k, 5), strict=True)
            for share in [0.1 + 0.2 * share]
        }
        simulate(small, small.accept(values), HDF5Sink(folder / f"sim-{k:06d}.h5"))
    return folder


def test_a_data_set_of_the_solvers_is_learnt_by_its_parameters(folder):
    data = read_fields(folder / "sim-*.h5", case.fields[0])
    model = PodRegression().fit(data.parameters[1:], data.values[1:, -1])
    predicted = model.predict(data.parameters[:1])[0]
    truth = read_trajectory(folder / "sim-000000.h5").values[-1, 0]
    assert data.names == tuple(case.parameters) and data.values.shape == (25, 21, 12, 12)
    assert model.held_out_error < 0.02
    assert np.linalg.norm(predicted - truth) <= 0.03 * np.linalg.norm(truth)


def test_a_series_of_files_is_continued_in_time(folder, tmp_path):
    run = read_trajectory(folder / "sim-000007.h5")
    points = np.stack(np.meshgrid(*[np.arange(12.0)] * 2, [0.0], indexing="ij"), axis=-1).reshape(-1, 3)
    for k, state in enumerate(run.values[:, 0]):
        cells = {"vertex": np.arange(len(points))[:, None]}
        meshio.Mesh(points, cells, {"T": state.ravel()}).write(tmp_path / f"step_{k:03d}.vtu")
    series = read_fields(tmp_path / "step_*.vtu", "T")
    model = OperatorInference("cAH", tolerance=1e-5).fit(series.times[:16], series.values[:16])
    later = model.predict(series.times[16:])
    np.testing.assert_allclose(series.values.reshape(run.values[:, 0].shape), run.values[:, 0], rtol=1e-12)
    assert model.held_out_error < 0.02
    assert np.linalg.norm(later - series.values[16:]) <= 0.02 * np.linalg.norm(series.values[16:])


def test_files_that_do_not_serve_are_named(folder, tmp_path):
    for source, name, message in (
        (folder / "none-*.h5", "T", "No file fits"),
        (folder / "sim-000000.h5", "velocity", "has no field 'velocity'"),
        ([folder / "missing.h5"], "T", "is missing, damaged"),
    ):
        with pytest.raises(FormatError, match=message):
            read_fields(source, name)
    (tmp_path / "a.h5").write_bytes((folder / "sim-000000.h5").read_bytes()[:3000])
    with pytest.raises(FormatError, match=r"a\.h5 is missing, damaged"):
        read_fields(tmp_path / "a.h5", case.fields[0])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.attrs["format"] = "another"
    with pytest.raises(FormatError, match="is no trajectory"):
        read_fields(tmp_path / "b.h5", case.fields[0])
    (tmp_path / "c.h5").write_bytes((folder / "sim-000000.h5").read_bytes())
    with h5py.File(tmp_path / "c.h5", "a") as file:
        file["fields"][case.fields[0]][3, 4, 5] = np.nan
    with pytest.raises(FormatError, match=r"not finite at \(3, 4, 5\)"):
        read_fields(tmp_path / "c.h5", case.fields[0])
