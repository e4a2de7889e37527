"""Pictures of simulations and of training: truth beside prediction, and curves over time."""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Distinguishable with every common colour vision (Okabe and Ito 2008)."""

STATE_MAP, ERROR_MAP = "viridis", "RdBu_r"
FRACTIONS = (0.03, 0.15, 0.4, 1.0)
"""Which snapshots a row of frames shows, as fractions of the duration: early changes are the fast ones."""

_DPI = 170
_STYLE: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.edgecolor": "#555555",
    "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.5,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG inside the HTML file."""

    data: str
    alt: str

    @classmethod
    def of(cls, png: bytes, alt: str) -> Picture:
        """Return the picture as a data URL."""
        return cls(data="data:image/png;base64," + base64.b64encode(png).decode("ascii"), alt=alt)


def style() -> AbstractContextManager[None]:
    """Return the look of all pictures, as a context."""
    return matplotlib.rc_context(_STYLE)


def png(figure: Figure, *, trim: bool = True) -> bytes:
    """Return a figure as a PNG file.

    trim : cut off what is empty at its edges.
    """
    # `savefig` would lay out and draw everything twice, to know the layout and the edges before it draws.
    canvas, buffer = FigureCanvasAgg(figure), io.BytesIO()
    figure.set(dpi=_DPI, facecolor="white")
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    matplotlib.image.imsave(buffer, _trimmed(pixels) if trim else pixels, format="png", dpi=_DPI)
    return buffer.getvalue()


def _trimmed(pixels: np.ndarray) -> np.ndarray:
    """Return pixels (rows, columns, 4) without white edges, but for a margin."""
    drawn = (pixels[..., :3] != 255).any(axis=2)
    margin, box = round(0.04 * _DPI), []
    for axis in (1, 0):
        where = np.flatnonzero(drawn.any(axis=axis))
        box.append(slice(max(0, where[0] - margin), where[-1] + 1 + margin))
    return pixels[tuple(box)]


def draw_trajectory(file: Path, picture: Path) -> None:
    """Draw a solver file: one row of frames for every field.

    Raises
    ------
    OSError : the file cannot be read or the picture not written.
    """
    from headrace.solvers.hdf5 import read_trajectory

    run = read_trajectory(file)
    rows = {name: run.values[:, index] for index, name in enumerate(run.fields)}
    named = [f"{name}\u00a0=\u00a0{value:.4g}" for name, value in run.parameters.items()]
    rest = f" and {len(named) - 6} more" if len(named) > 6 else ""
    title = f"{run.case}:  {', '.join(named[:6])}{rest}"
    picture.write_bytes(frames(rows, run.times, run.extent, origin=run.origin, title=title))


def comparison(
    truth: np.ndarray, prediction: np.ndarray, times: np.ndarray, *, field: str, extent: Sequence[float]
) -> bytes:
    """Return truth, prediction and their difference as a PNG, on one colour scale.

    truth, prediction : (snapshots, *grid) of one field; one axis gives space-time pictures, two give frames at several
        times, three give frames of the middle slice.
    times : (snapshots,).
    extent : length of the box along each axis.
    """
    rows = {f"{field}, solver": truth, f"{field}, surrogate": prediction, "difference": prediction - truth}
    return frames(rows, times, extent, errors=("difference",))


def frames(
    rows: Mapping[str, np.ndarray], times: np.ndarray, extent: Sequence[float], *,
    errors: Sequence[str] = (), title: str = "", origin: Sequence[float] = (0.0,),
) -> bytes:  # fmt: skip
    """Return a picture with one row of frames for every entry; all rows but the errors share a scale.

    In one dimension the entries stand side by side as space-time pictures.
    rows : name -> (snapshots, *grid).
    errors : names of rows that have a scale of their own, symmetric about zero.
    origin : lower corner of the box; where a line begins.
    """
    states = [values for name, values in rows.items() if name not in errors]
    # Different fields (no error row) have different units, and so a scale each.
    low, high = (min(map(np.min, states)), max(map(np.max, states))) if errors else (None, None)
    ndim = next(iter(rows.values())).ndim - 1
    with style(), matplotlib.rc_context({"axes.grid": False}):
        if ndim == 1:
            line = (origin[0], origin[0] + extent[0])
            figure = _space_time(rows, times, line, errors, (low, high))
        else:
            figure = _snapshots(rows, times, extent, errors, (low, high))
        if title:
            lines = textwrap.wrap(title, int(13 * figure.get_figwidth()))  # as many letters as fit on the picture
            figure.set_figheight(figure.get_figheight() + 0.17 * (len(lines) - 1))
            figure.suptitle("\n".join(lines), fontsize=9, x=0.01, ha="left")
        return png(figure)


def _scale(values: np.ndarray, error: bool, limits: tuple[Any, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a colour scale."""
    if error:
        largest = float(np.abs(values).max()) or 1.0
        return {"cmap": ERROR_MAP, "vmin": -largest, "vmax": largest}
    low, high = limits if limits[0] is not None else (values.min(), values.max())
    room = 0.0 if high > low else 0.5  # a state that is the same everywhere, at all times
    return {"cmap": STATE_MAP, "vmin": float(low) - room, "vmax": float(high) + room}


def _space_time(
    rows: Mapping[str, np.ndarray], times: np.ndarray, line: tuple[float, float], errors: Sequence[str], limits: tuple
) -> Figure:
    figure = Figure(figsize=(2.9 * len(rows), 2.6), layout="constrained")
    axes = figure.subplots(1, len(rows), squeeze=False)[0]
    for axis, (name, values) in zip(axes, rows.items(), strict=True):
        box = (*line, float(times[0]), float(times[-1]))
        scale = _scale(values, name in errors, limits)
        image = axis.imshow(values, origin="lower", aspect="auto", extent=box, interpolation="nearest", **scale)
        axis.set_title(name, loc="left")
        axis.set_xlabel("x")
        axis.set_ylabel("time")
        figure.colorbar(image, ax=axis, shrink=0.9, aspect=25)
    return figure


def _snapshots(
    rows: Mapping[str, np.ndarray], times: np.ndarray, extent: Sequence[float], errors: Sequence[str], limits: tuple
) -> Figure:
    chosen = sorted({max(1, round(fraction * (len(times) - 1))) for fraction in FRACTIONS})
    ratio = min(max(extent[1] / extent[0], 0.35), 1.6)
    figure = Figure(figsize=(1.75 * len(chosen) + 1.0, (1.7 * ratio + 0.12) * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(chosen), squeeze=False)
    for row, (name, values) in zip(axes, rows.items(), strict=True):
        planes = values if values.ndim == 3 else values[..., values.shape[-1] // 2]
        scale = _scale(planes[chosen], name in errors, limits)
        for axis, k in zip(row, chosen, strict=True):
            # Axis 0 is x: transposed, it runs to the right and y upwards.
            image = axis.imshow(
                planes[k].T, origin="lower", extent=(0, extent[0], 0, extent[1]), interpolation="nearest", **scale
            )
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        row[0].set_ylabel(name if values.ndim == 3 else f"{name}\nmiddle slice")
        figure.colorbar(image, ax=list(row), shrink=0.92, aspect=18, pad=0.015)
    for axis, k in zip(axes[0], chosen, strict=True):
        axis.set_title(f"t = {times[k]:.4g}")
    return figure


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, logarithmic: bool = False,
    percent: bool = False,
) -> bytes:  # fmt: skip
    """Return named curves (x values, y values) as a PNG.

    percent : y values are fractions, shown as percentages.
    """
    with style():
        figure = Figure(figsize=(4.3, 2.5), dpi=_DPI)
        axis = figure.add_axes((0.1, 0.19, 0.87, 0.70))  # below and above it, lines of text of known height
        axis.margins(x=0.02)
        for (name, (xs, ys)), colour in zip(lines.items(), COLOURS, strict=False):
            marker = "o" if len(xs) < 25 else None
            axis.plot(xs, ys, color=colour, label=name, marker=marker, markersize=3)
        values = [value for xs, _ in lines.values() for value in xs]
        if all(isinstance(value, int) for value in values):
            axis.xaxis.get_major_locator().set_params(integer=True)
        elif min(values) >= 0:
            axis.set_xlim(left=0.0)
        _finish(axis, x, y, logarithmic=logarithmic, percent=percent)
        if len(lines) > 1:
            axis.legend()
        _make_room_for_labels(axis)
        return png(figure, trim=False)  # one pair of axes fills its figure


def _make_room_for_labels(axis: Axes) -> None:
    """Begin the axes right of their tick labels; the constrained layout would measure everything, and twice."""
    renderer = FigureCanvasAgg(axis.figure).get_renderer()
    labels, box = axis.yaxis.get_tightbbox(renderer), axis.get_position()
    left = (axis.bbox.x0 - labels.x0) / axis.figure.bbox.width + 0.015
    factor = 0.06 if axis.yaxis.get_offset_text().get_text() else 0.0  # a power of ten below the title
    axis.set_position((left, box.y0, box.x1 - left, box.height - factor))


def _is_round(value: float) -> bool:
    return f"{value:e}"[0] in "235"


def _finish(axis: Axes, x: str, y: str, *, logarithmic: bool, percent: bool) -> None:
    axis.set_xlabel(x)
    axis.set_title(y, loc="left")
    if logarithmic:
        axis.set_yscale("log")
        # Plain numbers; also between the decades where fewer than two of those are in sight.
        low, high = axis.get_ylim()
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        few = math.floor(math.log10(high)) - math.ceil(math.log10(low)) < 1
        # Round ones where there are two of them in sight, else all.
        round_ones = [value for value in axis.yaxis.get_minorticklocs() if low <= value <= high and _is_round(value)]
        every = few and len(round_ones) < 2
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if every or (few and _is_round(value)) else "")
    else:
        axis.set_ylim(bottom=0.0)
    if percent:
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
