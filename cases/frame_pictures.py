"""Pictures of what a moving frame does: paths of the labels, rank of the snapshots, landscapes of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure

from headrace.solvers import Case
from headrace.surrogates import LPINN, Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.first_order import Loss
from headrace.surrogates.insight import landscape, modes_needed, singular_values, snapshots, top_directions
from headrace.surrogates.least_squares import levenberg_marquardt
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.transport_network import TransportNetwork

from .error_pictures import Drawn
from .pictures import COLOURS, STATE_MAP, png, style

PER_AXIS = {1: 256, 2: 40, 3: 14}
"""Labels of the snapshots."""

WATCHED = 10_000
"""Labels and times at which the Jacobian is looked at."""

WIDTHS, STEPS, SECONDS, POINTS = (12, 12), 150, 15.0, 400
"""Networks whose landscapes are compared, and their training by Levenberg-Marquardt."""

_SMALLEST = 1e-16


def frame_pictures(surrogate: LPINN, row: np.ndarray) -> Drawn:
    """Return the pictures of a trained Lagrangian PINN at one row of parameters (parameters,).

    The landscapes are those of two small networks, one in the frame of the surrogate and one at rest, trained alike for
    these parameters alone: a landscape of the surrogate itself would have no counterpart to be compared with.
    """
    network, case = surrogate.network, surrogate.network.moving.case
    rows = torch.as_tensor(row, dtype=torch.float64)[None]
    drawn: Drawn = []
    J, t, label = network.min_jacobian(Sampler(network, rows, WATCHED, adaptive=0.0)(0))
    smallest = f"the smallest Jacobian of the labels is {J:.2g}, at t = {t:.3g}, label ({_listed(label)})."
    crossed = ""
    try:
        place, moving, resting = snapshots(network, rows.to(network.state.weights[0]), labels=PER_AXIS[case.grid.ndim])
    except ArithmeticError:  # only the landscapes mean something
        crossed = f"Labels have crossed, so that paths and snapshots say nothing: {smallest} "
    else:
        frame = network.moving.frame
        drawn += [
            ("characteristics", characteristics(place, case.duration),
             f"Paths of the labels, frame {frame}; where they draw together, the network has its points; "
             f"{smallest}"),
            ("singular-values", decay({"at rest": resting, f"in the frame ({frame})": moving}),
             f"Singular values of the snapshots of {case.fields[0]}: {_modes(resting)} at rest, "
             f"{_modes(moving)} in the frame."),
        ]  # fmt: skip
    frames = dict.fromkeys(("eulerian", network.moving.frame))
    surfaces, losses = {}, {}
    for frame in frames:
        surfaces[frame], losses[frame] = _surface(case, rows, frame, surrogate)
    trained = ", ".join(f"{frame} {loss:.2g}" for frame, loss in losses.items())
    drawn.append(
        ("landscape", landscapes(surfaces),
         f"{crossed}Loss along the two directions of largest curvature, on one scale: networks of "
         f"{' x '.join(map(str, WIDTHS))}, {STEPS} steps of Levenberg-Marquardt each, for these parameters alone. At "
         f"the middle: {trained}.")
    )  # fmt: skip
    return drawn


def _listed(label: list[float]) -> str:
    return ", ".join(f"{part:.3g}" for part in label)


def _modes(values: np.ndarray) -> str:
    few, many = modes_needed(values, 1e-2), modes_needed(values, 1e-4)
    return f"{few} and {many} modes leave less than 1e-2 and 1e-4"


def _surface(case: Case, rows: torch.Tensor, frame: str, surrogate: LPINN) -> tuple[np.ndarray, float]:
    """Return the landscape of a small network trained in a frame, and its loss."""
    network = TransportNetwork(
        replace(Problem.of(case), parameters={}), widths=WIDTHS, harmonics=surrogate.harmonics,
        lagrangian=frame == "lagrangian", seed=0,
    )  # fmt: skip
    network.use(MovingFrame(case, frame=frame, floor=surrogate.floor, open_walls=surrogate.open_walls))
    network.double()
    levenberg_marquardt(network, Sampler(network, rows, POINTS, seed=0), steps=STEPS, seconds=SECONDS)
    points, loss = Sampler(network, rows, POINTS, adaptive=0.0, seed=1)(0), Loss(network)
    surface = landscape(loss, points, directions=top_directions(loss, points))
    return surface, float(loss(points).detach())


def characteristics(place: np.ndarray, duration: float) -> bytes:
    """Return the paths x(t) of labels on a line, in more dimensions their projections on the first two axes, as a PNG.

    place : (ndim, times, labels).
    """
    with style():
        figure = Figure(figsize=(4.3, 3.0), layout="constrained")
        axis = figure.subplots()
        every = max(1, place.shape[2] // 24)
        if len(place) == 1:
            axis.plot(place[0, :, ::every], np.linspace(0, duration, place.shape[1]), color=COLOURS[0], linewidth=0.7)
            axis.set(xlabel="x", ylabel="t")
        else:
            axis.plot(place[0, :, ::every], place[1, :, ::every], color=COLOURS[0], linewidth=0.7)
            axis.plot(place[0, -1, ::every], place[1, -1, ::every], ".", color=COLOURS[1], markersize=3)
            axis.set(xlabel="x", ylabel="y", aspect="equal")
        axis.grid(visible=False)
        return png(figure)


def decay(snapshots_of: Mapping[str, np.ndarray]) -> bytes:
    """Return the singular values of named snapshots (times, points), over the largest of each, as a PNG."""
    with style():
        figure = Figure(figsize=(4.3, 3.0), layout="constrained")
        axis = figure.subplots()
        for (name, values), colour in zip(snapshots_of.items(), COLOURS, strict=False):
            fractions = np.maximum(singular_values(values), _SMALLEST)
            axis.semilogy(np.arange(1, len(fractions) + 1), fractions, ".-", color=colour, label=name, markersize=3)
        axis.set(xlabel="mode", ylabel="singular value over the largest")
        axis.legend()
        return png(figure)


def landscapes(surfaces: Mapping[str, np.ndarray], *, reach: float = 1.0) -> bytes:
    """Return named landscapes (α, β) side by side, on one scale of α, β and colour, as a PNG."""
    logs = {name: np.log10(np.maximum(surface, 1e-30)) for name, surface in surfaces.items()}
    low, high = min(map(np.min, logs.values())), max(map(np.max, logs.values()))
    with style():
        figure = Figure(figsize=(3.1 * len(logs) + 0.8, 3.0), layout="constrained")
        axes = figure.subplots(1, len(logs), squeeze=False)[0]
        for axis, (name, log) in zip(axes, logs.items(), strict=True):
            image = axis.imshow(log.T, vmin=low, vmax=high, extent=(-reach, reach) * 2, origin="lower", cmap=STATE_MAP)
            axis.set(title=name, xlabel="α", ylabel="β")
            axis.grid(visible=False)
        figure.colorbar(image, ax=axes, label="log10 of the loss")
        return png(figure)
