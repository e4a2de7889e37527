"""Files for ParaView: the fields of a reader as XDMF with HDF5, or as VTKHDF, all increments in one file.

Fields at quadrature points are averaged over their element by volume.
"""

from __future__ import annotations

import os
from pathlib import Path
from xml.sax.saxutils import quoteattr

import h5py
import numpy as np

from .atomic import write_text
from .kinematics import Kinematics
from .mesh import Mesh
from .reader import Reader

XDMF_TYPES = {"tet4": 6, "tet10": 38, "hex8": 9, "hex20": 48, "hex20r": 48}
VTK_TYPES = {"tet4": 10, "tet10": 24, "hex8": 12, "hex20": 25, "hex20r": 25}


def write_xdmf(reader: Reader, path: str | Path, point_fields: tuple[str, ...] = ("p", "stress")) -> None:
    """Write PATH and the numbers beside it in PATH with .h5: displacement, temperature, and element means of fields.

    reader : of a whole mesh; a `Store` opened without a communicator is one. Fields that it lacks are left out.
    """
    path, mesh, weights = Path(path), reader.mesh, Kinematics(reader.mesh).weights
    numbers = path.with_suffix(".h5")
    part = numbers.with_name(f"{numbers.name}.{os.getpid()}.part")
    topology = np.concatenate(
        [np.insert(block, 0, XDMF_TYPES[kind.name], axis=1).ravel() for kind, _, block in mesh.blocks()]
    )
    grids = []
    with h5py.File(part, "w") as file:
        file["points"], file["topology"] = mesh.points, topology
        head = (
            f'<Topology TopologyType="Mixed" NumberOfElements="{mesh.num_elements}">'
            f"{_item(numbers.name, 'topology', topology)}</Topology>"
            f'<Geometry GeometryType="XYZ">{_item(numbers.name, "points", mesh.points)}</Geometry>'
        )
        for k, time in enumerate(reader.times):
            attributes = ""
            for name, (center, values) in _fields(reader, k, point_fields, weights).items():
                file[f"{k:06d}/{name}"] = values
                form = (
                    {1: "Scalar", 2: "Vector"}[values.ndim] if values.shape[-1] != 6 or values.ndim == 1 else "Tensor6"
                )
                attributes += (
                    f'<Attribute Name={quoteattr(name)} Center="{center}" AttributeType="{form}">'
                    f"{_item(numbers.name, f'{k:06d}/{name}', values)}</Attribute>"
                )
            grids.append(f'<Grid Name="increment {k}"><Time Value="{time:.17g}"/>{head}{attributes}</Grid>')
    os.replace(part, numbers)
    text = (
        '<?xml version="1.0"?><Xdmf Version="3.0"><Domain>'
        '<Grid Name="series" GridType="Collection" CollectionType="Temporal">'
        + "\n".join(grids)
        + "</Grid></Domain></Xdmf>\n"
    )
    write_text(path, text)


def write_vtkhdf(reader: Reader, path: str | Path, point_fields: tuple[str, ...] = ("p", "stress")) -> None:
    """Write one file in VTK's own HDF5 form (version 2.2), whose mesh is stored once for all increments."""
    path, mesh, weights = Path(path), reader.mesh, Kinematics(reader.mesh).weights
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    sizes = np.concatenate([np.full(len(block), block.shape[1]) for _, _, block in mesh.blocks()])
    steps = len(reader.times)
    with h5py.File(part, "w") as file:
        root = file.create_group("VTKHDF")
        root.attrs["Version"] = np.array([2, 2])
        root.attrs.create("Type", b"UnstructuredGrid", dtype=h5py.string_dtype("ascii", len("UnstructuredGrid")))
        root["Points"] = mesh.points
        root["Connectivity"] = np.concatenate([block.ravel() for _, _, block in mesh.blocks()])
        root["Offsets"] = np.concatenate([[0], np.cumsum(sizes)])
        root["Types"] = np.concatenate(
            [np.full(len(block), VTK_TYPES[kind.name], dtype=np.uint8) for kind, _, block in mesh.blocks()]
        )
        for name, count in (("Points", mesh.num_nodes), ("Cells", mesh.num_elements), ("ConnectivityIds", sizes.sum())):
            root[f"NumberOf{name}"] = np.array([count])
        group = root.create_group("Steps")
        group.attrs["NSteps"] = steps
        group["Values"] = np.asarray(reader.times, dtype=float)
        group["NumberOfParts"] = np.ones(steps, dtype=int)
        for name in ("PartOffsets", "PointOffsets"):
            group[name] = np.zeros(steps, dtype=int)
        for name in ("CellOffsets", "ConnectivityIdOffsets"):
            group[name] = np.zeros((steps, 1), dtype=int)
        for k in range(steps):
            for name, (center, values) in _fields(reader, k, point_fields, weights).items():
                kind = "PointData" if center == "Node" else "CellData"
                if k == 0:
                    root.require_group(kind).create_dataset(
                        name, shape=(steps * len(values), *values.shape[1:]), dtype=float
                    )
                    offsets = np.arange(steps) * len(values)
                    group.require_group(f"{kind}Offsets")[name] = offsets
                root[kind][name][k * len(values) : (k + 1) * len(values)] = values
    os.replace(part, path)


def _fields(
    reader: Reader, k: int, point_fields: tuple[str, ...], weights: np.ndarray
) -> dict[str, tuple[str, np.ndarray]]:
    """Return name -> (where it lies, values) of one increment."""
    found = {"displacement": ("Node", reader.displacement(k))}
    temperature = reader.temperature(k)
    if temperature is not None:
        found["temperature"] = ("Node", temperature)
    for name in point_fields:
        values = reader.point_field(name, k)
        if values is not None:
            found[name] = ("Cell", element_means(reader.mesh, values, weights))
    return found


def element_means(mesh: Mesh, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the mean over each element, (num_elements, ...), of a field at quadrature points, (num_points, ...).

    weights : of the quadrature points, for callers with many fields; default: found from the mesh.
    """
    weights = Kinematics(mesh).weights if weights is None else weights
    starts = mesh.element_points()[:-1]
    shaped = weights.reshape(-1, *[1] * (values.ndim - 1))
    total = np.add.reduceat(weights, starts).reshape(-1, *[1] * (values.ndim - 1))
    return np.add.reduceat(values * shaped, starts, axis=0) / total


def _item(file: str, name: str, values: np.ndarray) -> str:
    kind = 'NumberType="Int" Precision="8"' if values.dtype.kind == "i" else 'NumberType="Float" Precision="8"'
    size = " ".join(map(str, values.shape))
    return f'<DataItem Dimensions="{size}" {kind} Format="HDF">{file}:/{name}</DataItem>'
