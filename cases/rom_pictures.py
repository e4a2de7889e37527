"""Pictures of reduced models: fields on the surface of a mesh, and where the cubature points lie.

PyVista draws where it is installed and can open a window off screen; matplotlib draws the same surfaces otherwise.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from headrace.rom.kinematics import Kinematics
from headrace.rom.mesh import Mesh
from headrace.rom.viewer_files import element_means

from .pictures import ERROR_MAP, STATE_MAP, png, style

SIZE = (1000, 1000)
"""Pixels of one picture of PyVista."""

VIEW = (0.5, -0.87, 0.58)
"""Where one looks from: the same place as matplotlib's."""

PROBE = "import pyvista as p; q = p.Plotter(off_screen=True); q.add_mesh(p.Sphere()); q.screenshot(return_img=True)"


@functools.cache
def can_draw_off_screen() -> bool:
    """Return whether PyVista is installed and draws here; tried in another process, which VTK may bring down."""
    try:
        done = subprocess.run([sys.executable, "-P", "-c", PROBE], capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def fields_on_mesh(mesh: Mesh, fields: Mapping[str, np.ndarray], *, errors: tuple[str, ...] = ()) -> bytes:
    """Return element means of fields at quadrature points, side by side on the mesh, as a PNG.

    fields : title -> (num_points,); all but the errors share a scale.
    errors : titles with a scale of their own, symmetric about zero.
    """
    means = {title: element_means(mesh, values) for title, values in fields.items()}
    shared = [values for title, values in means.items() if title not in errors]
    low, high = min(map(np.min, shared)), max(map(np.max, shared))
    tiles = []
    for title, values in means.items():
        largest = float(np.abs(values).max()) or 1.0
        limits = (-largest, largest) if title in errors else (float(low), float(high if high > low else low + 1))
        tiles.append((title, values, limits, ERROR_MAP if title in errors else STATE_MAP))
    return _tiles(mesh, tiles)


def points_on_mesh(mesh: Mesh, points: np.ndarray, weights: np.ndarray) -> bytes:
    """Return the mesh with the quadrature points of a cubature as a PNG: points with weight, and those without.

    points, weights : global numbers and weights, (d,); points without weight serve gappy POD alone.
    """
    where = Kinematics(mesh).interpolate(mesh.points)[points]
    groups = {"cubature": where[weights > 0], "gappy POD only": where[weights <= 0]}
    if can_draw_off_screen():
        return _points_by_pyvista(mesh, groups)
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axis = figure.add_subplot(projection="3d")
    for corners, _ in _faces(mesh):
        axis.add_collection3d(Poly3DCollection(mesh.points[corners], facecolor=(0.8, 0.82, 0.85, 0.15),
                                               edgecolor=(0.5, 0.5, 0.5, 0.25), linewidth=0.3))  # fmt: skip
    for (name, x), colour in zip(groups.items(), ("#D55E00", "#0072B2"), strict=True):
        if len(x):
            axis.scatter(*x.T, s=10, color=colour, label=f"{name}: {len(x)}", depthshade=False)
    axis.legend(loc="upper left", frameon=False, fontsize=8)
    _frame(axis, mesh)
    return png(figure)


def _tiles(mesh: Mesh, tiles: list[tuple[str, np.ndarray, tuple[float, float], str]]) -> bytes:
    """Return one picture with a tile per (title, element values, limits, colours)."""
    images = None
    if can_draw_off_screen():
        images = [_surface_by_pyvista(mesh, values, limits, colours) for _, values, limits, colours in tiles]
    with style(), matplotlib.rc_context({"axes.grid": False}):
        figure = Figure(figsize=(3.1 * len(tiles), 2.9), layout="constrained")
        for k, (title, values, limits, colours) in enumerate(tiles):
            scale = matplotlib.cm.ScalarMappable(Normalize(*limits), colours)
            if images is not None:
                axis = figure.add_subplot(1, len(tiles), k + 1)
                axis.imshow(images[k])
                axis.set_axis_off()
            else:
                axis = figure.add_subplot(1, len(tiles), k + 1, projection="3d")
                for corners, elements in _faces(mesh):
                    colour = scale.to_rgba(values[elements])
                    axis.add_collection3d(Poly3DCollection(mesh.points[corners], facecolor=colour, edgecolor=colour))
                _frame(axis, mesh)
            axis.set_title(title, loc="left")
            bar = figure.colorbar(scale, ax=axis, orientation="horizontal", shrink=0.75, aspect=25, pad=0.02)
            bar.formatter.set_powerlimits((-2, 3))
        return png(figure)


def _surface(mesh: Mesh) -> object:
    """Return the boundary faces as PyVista's surface."""
    import pyvista

    faces = [np.insert(corners, 0, corners.shape[1], axis=1).ravel() for corners, _ in _faces(mesh)]
    return pyvista.PolyData(mesh.points, np.concatenate(faces))


def _plotter() -> object:
    import pyvista
    import vtk

    # Off screen there is no display to find, and VTK need not say so.
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    return pyvista.Plotter(off_screen=True, window_size=SIZE, lighting="light_kit")


def _shot(plotter: object) -> np.ndarray:
    plotter.set_background("white")
    plotter.view_vector(VIEW, viewup=(0, 0, 1))
    plotter.enable_parallel_projection()
    image = plotter.screenshot(return_img=True)
    plotter.close()
    rows, columns = (np.flatnonzero((image < 250).any(axis=2).any(axis=k)) for k in (1, 0))
    return image[max(rows[0] - 8, 0) : rows[-1] + 8, max(columns[0] - 8, 0) : columns[-1] + 8]


def _surface_by_pyvista(
    mesh: Mesh, values: np.ndarray, limits: tuple[float, float], colours: str
) -> np.ndarray:  # fmt: skip
    surface, plotter = _surface(mesh), _plotter()
    surface.cell_data["field"] = values[np.concatenate([elements for _, elements in _faces(mesh)])]
    plotter.add_mesh(surface, scalars="field", clim=limits, cmap=colours, show_scalar_bar=False, show_edges=True,
                     edge_color="#555555", edge_opacity=0.25, line_width=1, lighting=False)  # fmt: skip
    return _shot(plotter)


def _points_by_pyvista(mesh: Mesh, groups: Mapping[str, np.ndarray]) -> bytes:
    import pyvista

    plotter = _plotter()
    plotter.add_mesh(_surface(mesh), color="#8899aa", opacity=0.12, lighting=False)
    plotter.add_mesh(_surface(mesh), color="#8899aa", opacity=0.35, style="wireframe", line_width=1, lighting=False)
    size = 0.012 * np.linalg.norm(np.ptp(mesh.points, axis=0))
    names = []
    for (name, x), colour in zip(groups.items(), ("#D55E00", "#0072B2"), strict=True):
        if len(x):
            balls = pyvista.PolyData(x).glyph(geom=pyvista.Sphere(radius=size / 2), scale=False, orient=False)
            plotter.add_mesh(balls, color=colour)
            names.append((f"{name}: {len(x)} points", colour))
    image = _shot(plotter)
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.imshow(image)
    axis.set_axis_off()
    for k, (name, colour) in enumerate(names):
        figure.text(0.01, 0.99 - 0.05 * k, name, color=colour, va="top", fontsize=9)
    return png(figure)


def _faces(mesh: Mesh) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the corners of the boundary faces, and their elements; edges are straight, as curved ones cost much."""
    pairs, found = mesh.boundary_faces(), []
    for _, first, block in mesh.blocks():
        inside = pairs[(pairs[:, 0] >= first) & (pairs[:, 0] < first + len(block))]
        for face, nodes in mesh.face_nodes(inside):
            if len(nodes):
                found.append((nodes[:, : 3 if face.name.startswith("tri") else 4], inside[:, 0]))
    return found


def _frame(axis: object, mesh: Mesh) -> None:
    low, high = mesh.points.min(axis=0), mesh.points.max(axis=0)
    for name, a, b in zip("xyz", low, high, strict=True):
        getattr(axis, f"set_{name}lim")(a, b)
    axis.set_box_aspect(high - low)
    axis.set_axis_off()
