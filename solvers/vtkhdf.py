"""The companion of a trajectory in VTKHDF: an image with time steps, for ParaView, PyVista and vtk.

Nothing is stored twice: the file links to the datasets of the trajectory beside it. VTK counts axes slowest first while
our axis 0 is x; a direction matrix turns its i, j, k into our axes, so that x is x in the picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import h5py
import numpy as np


def vtkhdf(trajectory: str, *, fields: Sequence[str], points: Sequence[np.ndarray], times: np.ndarray) -> bytes:
    """Return the companion's content.

    trajectory : name of the trajectory's file, in the same folder.
    points : coordinates along each axis, x first.
    times : (snapshots,).
    """
    ndim = len(points)
    # Fastest first: the last of our axes is VTK's i.
    order = list(range(ndim))[::-1]
    direction = np.zeros((3, 3))
    for ours, theirs in zip([*order, *range(ndim, 3)], range(3), strict=True):
        direction[ours, theirs] = 1.0
    if ndim == 2:
        direction[2, 2] = -1.0  # a turn, not a mirror
    extent = [0] * 6
    for theirs, ours in enumerate(order):
        extent[2 * theirs + 1] = len(points[ours]) - 1
    spacing = [float(points[ours][1] - points[ours][0]) for ours in order]
    content = io.BytesIO()  # HDF5 cannot close a file on a full disk
    with h5py.File(content, "w") as file:
        root = file.create_group("VTKHDF")
        root.attrs["Version"] = np.array([2, 0])
        root.attrs.create("Type", np.bytes_("ImageData"), dtype=h5py.string_dtype("ascii", len("ImageData")))
        root.attrs["WholeExtent"] = np.array(extent)
        root.attrs["Origin"] = np.array([float(line[0]) for line in points] + [0.0] * (3 - ndim))
        root.attrs["Spacing"] = np.array(spacing + [1.0] * (3 - ndim))
        root.attrs["Direction"] = direction.ravel()
        data = root.create_group("PointData")
        steps = root.create_group("Steps")
        steps.attrs["NSteps"] = len(times)
        steps["Values"] = np.asarray(times, dtype=float)
        offsets = steps.create_group("PointDataOffsets")
        for name in fields:
            data[name] = h5py.ExternalLink(trajectory, f"/fields/{name}")
            offsets[name] = np.arange(len(times))
    return content.getvalue()
