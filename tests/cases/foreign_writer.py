"""A program that knows nothing of headrace: reads run.cfg and writes one file for each snapshot, slowly and in halves.

python foreign_writer.py vtu|cells|hdf5|foam|foam2: u = a (1 + x + 2 y + t), v = (u, -u) at random points of a square,
at their triangles' centres, on a grid with x fastest, or in OpenFOAM's syntax (written here after its user guide), as
one process or two would leave it.
"""

import sys
import time
from pathlib import Path

import h5py
import meshio
import numpy as np
from scipy.spatial import Delaunay

settings = dict(line.split(" = ") for line in Path("run.cfg").read_text().splitlines())
a, interval, steps = float(settings["a"]), float(settings["interval"]), int(settings["steps"])
kind = sys.argv[1]
corners = [[0, 0], [0, 1], [1, 0], [1, 1]]
points = np.vstack([corners, np.random.default_rng(3).random((200, 2))])


def write_in_halves(path: Path, content: bytes) -> None:
    """Whoever reads the file too early finds half of it."""
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(0.03)
        file.write(content[len(content) // 2 :])


def linear(x, y, t):
    return a * (1 + x + 2 * y + t)


def write_fields(folder: Path, u: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    head = "FoamFile {{ version 2.0; format ascii; class vol{0}Field; object {1}; }} // after the user guide\n"
    scalars = "\n".join(f"{value:.12g}" for value in u)
    write_in_halves(
        folder / "T",
        f"{head.format('Scalar', 'T')}/* internalField uniform 0; */\ninternalField nonuniform List<scalar>\n"
        f"{u.size}\n(\n{scalars}\n)\n;\nboundaryField {{ w {{ type zeroGradient; }} }}\n".encode(),
    )
    vectors = " ".join(f"({value:.12g} {-value:.12g} 0)" for value in u)
    write_in_halves(
        folder / "U",
        f"{head.format('Vector', 'U')}internalField nonuniform List<vector> {u.size}({vectors});\n".encode(),
    )


odd = np.arange(1, 24, 2)[::-1]
for step in range(steps + 1):
    t = step * interval
    if kind in ("vtu", "cells"):
        triangles = Delaunay(points).simplices
        flat = np.column_stack([points, np.zeros(len(points))])
        at = points if kind == "vtu" else points[triangles].mean(axis=1)
        u = linear(at[:, 0], at[:, 1], t)
        data = {"temperature": u, "velocity": np.stack([u, -u, 0 * u], axis=1)}
        content = {"point_data": data} if kind == "vtu" else {"cell_data": {k: [v] for k, v in data.items()}}
        meshio.Mesh(flat, [("triangle", triangles)], **content).write("whole.vtu")
        write_in_halves(Path(f"out_{step:04d}.vtu"), Path("whole.vtu").read_bytes())
    elif kind == "hdf5":
        x, y = np.meshgrid(np.arange(6) / 6, np.arange(4) / 4)  # (ny, nx): x is the last axis
        with h5py.File("whole.h5", "w") as file:
            file["state/T"] = linear(x, y, t)
        write_in_halves(Path(f"out_{step:04d}.h5"), Path("whole.h5").read_bytes())
    else:
        y, x = np.meshgrid((np.arange(4) + 0.5) / 4, (np.arange(6) + 0.5) / 6, indexing="ij")
        u = linear(x, y, t).ravel()
        shares = {"": np.arange(24)} if kind == "foam" else {"processor0": np.arange(0, 24, 2), "processor1": odd}
        for processor, cells in shares.items():
            write_fields(Path(processor, f"{t:g}"), u[cells])
            if processor and step == 0:
                listing = Path(processor, "constant", "polyMesh", "cellProcAddressing")
                listing.parent.mkdir(parents=True)
                numbers = "\n".join(map(str, cells))
                listing.write_text(f"FoamFile {{ class labelList; }}\n{len(cells)}\n(\n{numbers}\n)\n")
        if step == 0:
            centres = " ".join(f"({i:.12g} {j:.12g} 0.05)" for i, j in zip(x.ravel(), y.ravel(), strict=True))
            Path("0").mkdir(exist_ok=True)
            Path("0", "C").write_text(f"internalField nonuniform List<vector> {u.size}({centres});\n")
