"""Data sets in The Well's layout: the reader's rules on the file, and the reader itself where it is installed."""

import json
import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from headrace.cases.command_line import build_app
from headrace.cases.well_layout import PARTS, split_in_parts, write_well
from headrace.solvers.hdf5 import HDF5Sink, read_trajectory
from headrace.solvers.simulate import simulate
from tests.solvers.problems import make_case

READER = Path(os.environ.get("HEADRACE_WELL_PYTHON", Path(__file__).parents[2] / ".rivals" / "well" / "bin" / "python"))


def generate(*arguments):
    return CliRunner().invoke(build_app(), ["generate", *map(str, arguments), "--plain"], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("well") / "data"
    result = generate("gray_scott", "--shape", "12x10", "--simulations", 4, "--jobs", 2, "--layout", "well",
                      "--output", folder)  # fmt: skip
    assert result.exit_code == 0 and "stats.yaml" in result.output, result.output
    return folder


def test_every_part_holds_its_simulations(folder):
    assert not list(folder.rglob("*.part"))
    for part, numbers in (("train", (0, 1)), ("valid", (2,)), ("test", (3,))):
        with h5py.File(folder / "well" / "data" / part / "gray_scott.hdf5") as file:
            assert file.attrs["n_trajectories"] == len(numbers)
            for row, n in enumerate(numbers):
                run = read_trajectory(folder / f"sim-{n:06d}.h5")
                for index, name in enumerate(run.fields):
                    values = file["t0_fields"][name]
                    assert values.dtype == np.float32 and list(values.attrs["dim_varying"]) == [True, True]
                    np.testing.assert_array_equal(values[row], run.values[:, index].astype(np.float32))
                for name, value in run.parameters.items():
                    assert file["scalars"][name][row] == np.float32(value)
            np.testing.assert_allclose(file["dimensions/time"], run.times, rtol=1e-6)
            assert file["boundary_conditions/x_periodic"].attrs["bc_type"] == "PERIODIC"


def test_statistics_are_those_of_the_training_part(folder):
    found, kind = {}, ""
    for line in (folder / "well" / "stats.yaml").read_text().splitlines():
        name, _, number = line.strip().partition(":")
        if number:
            found[kind, name] = float(number)
        else:
            kind = name
    values = np.concatenate([read_trajectory(folder / f"sim-{n:06d}.h5").values for n in (0, 1)])
    changes = np.concatenate([np.diff(read_trajectory(folder / f"sim-{n:06d}.h5").values, axis=0) for n in (0, 1)])
    first = read_trajectory(folder / "sim-000000.h5").fields[0]
    assert found["mean", first] == pytest.approx(values[:, 0].mean())
    assert found["std", first] == pytest.approx(values[:, 0].std())
    assert found["rms_delta", first] == pytest.approx(np.sqrt(np.mean(changes[:, 0] ** 2)))


def test_a_field_far_from_zero_keeps_the_digits_of_its_deviation(tmp_path):
    case = make_case(initial=lambda x, p, rng: 1e8 + np.sin(2 * np.pi * x[0]), rhs=lambda u, d, p, t: 0 * u)
    simulate(case, case.accept({}), HDF5Sink(tmp_path / "one.h5"))
    write_well(case, {part: [tmp_path / "one.h5"] for part in PARTS}, tmp_path / "well")
    lines = (tmp_path / "well" / "stats.yaml").read_text().splitlines()
    assert float(lines[lines.index("std:") + 1].partition(":")[2]) == pytest.approx(np.sqrt(0.5), rel=1e-6)


def test_too_few_simulations_and_other_layouts_are_named(tmp_path):
    with pytest.raises(ValueError, match="cannot fill train, valid and test"):
        split_in_parts([tmp_path / "a"] * 2, [])
    assert [len(files) for files in split_in_parts([tmp_path / "a"] * 20, []).values()] == [16, 2, 2]
    assert [len(files) for files in split_in_parts([tmp_path / "a"] * 3, [tmp_path / "b"] * 3).values()] == [3, 2, 1]
    result = generate("gray_scott", "--layout", "zarr", "--output", tmp_path / "data")
    assert result.exit_code == 2 and "headrace or well" in result.stderr and not (tmp_path / "data").exists()


@pytest.mark.skipif(
    not READER.exists(), reason="the_well is not installed: python -m venv .rivals/well, pip install the_well there"
)
def test_the_wells_own_reader_opens_it(folder):
    script = Path(__file__).with_name("well_reader.py")
    done = subprocess.run([READER, script, folder / "well"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    run = read_trajectory(folder / "sim-000001.h5")
    assert told["names"] == list(run.fields) and told["scalars"] == list(run.parameters)
    assert told["samples"] == 2 * (len(run.times) - 2) and told["input"] == [1, 12, 10, len(run.fields)]
    np.testing.assert_allclose(np.moveaxis(told["output"], -1, 1), run.values[-2:], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(told["parameters"], list(run.parameters.values()), rtol=1e-6)
    assert told["boundary"] == [[2.0, 2.0], [2.0, 2.0]]  # periodic
    assert np.shape(told["grid"]) == (12, 10, 2) and told["grid"][3][0][0] > told["grid"][0][5][0]
    assert abs(told["scaled"][0]) < 0.2  # zero mean but for the initial states, which are no output
