"""The Lagrangian PINN as a surrogate: learns from the equation in the frame of the flow, for all parameters at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from headrace.solvers.case import Case

from .collocation import Sampler
from .least_squares import MOST_WEIGHTS, levenberg_marquardt
from .moving_frame import FRAMES, MovingFrame
from .normaliser import Normaliser
from .places import Points
from .problem import Problem, WindowBatch
from .request import parameter_rows, require_problem, require_setup, time_points
from .stepping import whole
from .surrogate import Surrogate
from .transport_network import TransportNetwork

logger = logging.getLogger(__name__)

_CHUNK = 65_536  # points that a prediction evaluates at once
_REFINING_POINTS, _REFINING_ROWS = 2000, 64
_WATCHED_POINTS = 256  # of each row of parameters, at which labels are looked at


class LPINN(Surrogate):
    """(X, t, parameters) -> state at any place and time, exact at t = 0 and on the boundary.

    Each training window adds two terms: the residual of the case's own `rhs` at collocation points that the model draws
    itself, at parameters it draws itself, and the error against the streamed state at some of its grid points. With
    data_weight=0 it learns from the equation alone, with residual_weight=0 from the stream alone.

    The case must be known beside the weights, `use_case(case)`; a study and `headrace evaluate` see to that.

    Parameters
    ----------
    hidden : widths of the layers of the state's network.
    harmonics : sines and cosines per periodic axis that the networks see.
    frame : "auto", "eulerian" (a PINN), "galilean", "limited", "lagrangian" or "traced", see
        `headrace.surrogates.moving_frame`.
    floor : of the Jacobian in the limited frame.
    open_walls : labels pass walls freely; right where the solution is constant near them.
    points : collocation points of a window, and as many of its grid points.
    residual_weight, data_weight : of the two terms, both dimensionless.
    auxiliary : how often the right-hand side calls d.inverse_laplacian; each is an output with an equation of its own.
    refine : steps of Levenberg-Marquardt on the equation alone, in float64, once the stream has ended; 0 for none.
    """

    history = 0
    window = 1

    def __init__(  # noqa: PLR0913
        self, *, hidden: Sequence[int] = (32, 32, 32), harmonics: int = 2, frame: str = "auto", floor: float = 0.1,
        open_walls: bool = False, points: int = 64, residual_weight: float = 0.1, data_weight: float = 1.0,
        auxiliary: int = 0, refine: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.hidden = tuple(whole(width, "LPINN hidden", least=1) for width in hidden)
        self.harmonics = whole(harmonics, "LPINN harmonics", least=1)
        self.points = whole(points, "LPINN points", least=1)
        self.auxiliary = whole(auxiliary, "LPINN auxiliary", least=0)
        self.refine = whole(refine, "LPINN refine", least=0)
        self.frame, self.floor, self.open_walls = frame, float(floor), bool(open_walls)
        self.residual_weight, self.data_weight = float(residual_weight), float(data_weight)
        if frame not in FRAMES:
            raise ValueError(f"LPINN frame {frame!r} is not one of {', '.join(FRAMES)}.")
        if not 0 < self.floor < 1:
            raise ValueError(f"LPINN floor {floor} of the Jacobian must lie between 0 and 1.")
        if not self.hidden:
            raise ValueError("LPINN hidden () has no layer; give the width of one at least.")
        if min(self.residual_weight, self.data_weight) < 0:
            raise ValueError(
                f"LPINN residual_weight {residual_weight} and data_weight {data_weight} must be at least 0."
            )

    def setup(self, problem: Problem, *, seed: int = 0) -> None:
        """Build the weights."""
        require_problem(problem)
        self.problem = problem
        self.normaliser = Normaliser(problem)
        self.network = TransportNetwork(
            problem, widths=self.hidden, harmonics=self.harmonics, lagrangian=self.frame == "lagrangian", seed=seed,
            auxiliary=self.auxiliary,
        )  # fmt: skip
        size = sum(weight.numel() for weight in self.network.parameters())
        if self.refine and size > MOST_WEIGHTS:
            raise ValueError(
                f"LPINN refine={self.refine} solves dense systems of up to {MOST_WEIGHTS} weights; with hidden "
                f"{self.hidden} there are {size}. Take narrower layers, or refine=0."
            )

    def use_case(self, case: Case) -> None:
        """Take equation, initial state and boundary of a case.

        Raises
        ------
        ValueError : the case has none that a network can hold; says which.
        """
        problem = require_setup(self)
        if Problem.of(case) != problem:
            raise ValueError(f"This LPINN was made for {problem}; the case is {Problem.of(case)}.")
        self.network.use(MovingFrame(case, frame=self.frame, floor=self.floor, open_walls=self.open_walls))

    def architecture(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "hidden": list(self.hidden), "harmonics": self.harmonics, "frame": self.frame, "floor": self.floor,
            "open_walls": self.open_walls, "points": self.points, "residual_weight": self.residual_weight,
            "data_weight": self.data_weight, "auxiliary": self.auxiliary, "refine": self.refine,
        }  # fmt: skip

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Freeze the scale of the fields."""
        require_setup(self)
        self.normaliser.freeze(mean, std)

    def collocation_points(self, rows: torch.Tensor, each: int) -> Points:
        """Return uniformly random labels and times, so many for each row of parameters."""
        grid, count = self._case().grid, len(rows) * each
        corner, extent = rows.new_tensor(grid.origin), rows.new_tensor(grid.extent)
        labels = corner[:, None] + torch.rand(grid.ndim, count, dtype=rows.dtype, device=rows.device) * extent[:, None]
        times = torch.rand(count, dtype=rows.dtype, device=rows.device) * self.problem.duration
        row_of = torch.arange(len(rows), device=rows.device).repeat_interleave(each)
        return Points(labels=labels, times=times, rows=rows, row_of=row_of)

    def parameters_drawn(self, count: int, like: torch.Tensor) -> torch.Tensor:
        """Return random parameters within their bounds, (count, parameters)."""
        distributions = self._case().parameters.values()
        unit = torch.rand(count, len(distributions), dtype=torch.float64)
        values = [[d.from_unit(q) for d, q in zip(distributions, row, strict=True)] for row in unit.tolist()]
        return like.new_tensor(values).reshape(count, len(distributions))

    def _case(self) -> Case:
        require_setup(self)
        if self.network.moving is None:
            raise RuntimeError(f"LPINN of case {self.problem.case} does not know its case: call use_case(case) first.")
        return self.network.moving.case

    def training_loss(self, batch: WindowBatch) -> torch.Tensor:
        """Return residual and data term of each window, in units of the fields' variances, shape (batch,)."""
        case = self._case()
        batch.check(self.problem, self.window)
        like, count = self.network.state.weights[0], len(batch.states)
        total = like.new_zeros(count)
        std = self.normaliser.std.to(like.dtype)
        if self.residual_weight:
            points = self.collocation_points(self.parameters_drawn(count, like), self.points)
            residual = self.network.residual(points) * self.problem.duration
            scales = [std]
            if self.frame == "lagrangian":
                scales.append(like.new_tensor(case.grid.extent))
            # What an inverse Laplacian is taken of is about as large as the fields.
            scales = torch.cat((*scales, (std.max() * self.problem.duration).expand(self.auxiliary)))
            terms = (residual / scales[:, None]).square().mean(0).reshape(count, self.points).mean(1)
            total = total + self.residual_weight * terms
        if self.data_weight:
            total = total + self.data_weight * self._data_term(batch, like, std)
        return total

    def finish(self) -> None:
        """Refine the weights, and say where labels have crossed; weights with residuals that are no numbers go."""
        self._case()
        if self.refine:
            self._refine()
        if self.frame == "lagrangian":  # in the other frames no weight moves a label
            self._look_at_labels()

    @torch.no_grad()
    def _look_at_labels(self) -> None:
        rows = self.parameters_drawn(_REFINING_ROWS, self.network.state.weights[0])
        J, t, label = self.network.min_jacobian(self.collocation_points(rows, _WATCHED_POINTS))
        logger.info("The smallest Jacobian of the labels is %.2g, at t = %.3g, label %s.", J, t, label)
        if J <= 0:
            logger.warning(
                "Labels have crossed: their Jacobian falls to %.2g at t = %.3g, label %s. There is no state there; "
                "take frame=limited, or a shorter duration.", J, t, label,
            )  # fmt: skip

    def _refine(self) -> None:
        kept = {name: weight.clone() for name, weight in self.network.state_dict().items()}
        like = self.network.state.weights[0]
        network = self.network.double()
        sampler = Sampler(network, lambda generator: self.parameters_drawn(_REFINING_ROWS, like.detach().double()),
                          _REFINING_POINTS)  # fmt: skip
        try:
            levenberg_marquardt(network, sampler, steps=self.refine)
        except FloatingPointError as error:
            logger.warning("Not refined: %s", error)
            network.load_state_dict(kept)
        self.network.to(next(iter(kept.values())).dtype)

    def _data_term(self, batch: WindowBatch, like: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        places, count = self._grid_points(like), len(batch.states)
        pick = torch.randint(places.shape[1], (count, self.points), device=like.device)
        rows = parameter_rows(batch.parameters, self.problem, like)
        row_of = torch.arange(count, device=like.device).repeat_interleave(self.points)
        times = batch.times[:, 0].to(like.dtype).repeat_interleave(self.points)
        points = Points(labels=places[:, pick.reshape(-1)], times=times, rows=rows, row_of=row_of)
        known = batch.states[:, 0].to(like.dtype).flatten(2)  # (batch, fields, points)
        known = known.gather(2, pick[:, None].expand(-1, known.shape[1], -1))
        found = self.network.values_at(points).reshape(-1, count, self.points).movedim(0, 1)
        return ((found - known) / std[:, None]).square().flatten(1).mean(1)

    def _grid_points(self, like: torch.Tensor) -> torch.Tensor:
        grid, problem = self._case().grid, self.problem
        axes = [like.new_tensor(grid.points(i, periodic=problem.periodic[i])) for i in range(grid.ndim)]
        return torch.stack([axis.reshape(-1) for axis in torch.meshgrid(*axes, indexing="ij")])

    @torch.no_grad()
    def predict(self, initial: torch.Tensor | None, parameters: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the states at any times on the grid, (batch, time, fields, *grid); initial is not needed."""
        self._case()
        like = self.network.state.weights[0]
        rows, times = parameter_rows(parameters, self.problem, like), time_points(times, like)
        places = self._grid_points(like)
        each, steps, batch = places.shape[1], len(times), len(rows)
        out = like.new_empty(batch * steps, len(self.problem.fields), each)
        at_once = max(1, _CHUNK // each)
        for start in range(0, batch * steps, at_once):
            number = torch.arange(start, min(start + at_once, batch * steps), device=like.device)
            points = Points(
                labels=places.repeat(1, len(number)), times=times[number % steps].repeat_interleave(each),
                rows=rows, row_of=(number // steps).repeat_interleave(each),
            )  # fmt: skip
            out[number] = self.network.values_at(points).reshape(-1, len(number), each).movedim(0, 1)
        return out.reshape(batch, steps, -1, *self.problem.shape)

    def evaluate(self, places: torch.Tensor, times: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return the state anywhere, (fields, points), with gradients.

        places : (ndim, points). times : (points,). parameters : (points, parameters).
        """
        self._case()
        row_of = torch.arange(len(times), device=times.device)
        return self.network.values_at(Points(labels=places, times=times, rows=parameters, row_of=row_of))
