"""NeuralStagger as a surrogate: networks on interleaved coarse grids that learn from the case's own equation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import gcd, inf
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from headrace.solvers.blocks import Blocks
from headrace.solvers.case import Case

from .autoregressive import Channels
from .data_free import StatePool
from .fourier_network import FourierNetwork
from .low_rank_mixer import LowRankMixer
from .normaliser import Normaliser
from .problem import Problem, WindowBatch
from .request import parameter_rows, require_problem, require_setup, stepping_request
from .stagger import Stagger
from .staggered_network import READINGS, StaggeredNetwork
from .stepping import whole
from .surrogate import Surrogate
from .unet import UNet, UNetwork

if TYPE_CHECKING:
    from headrace.solvers.step_correction import Correction

BACKBONES = ("fno", "unet", "mixer")
_POOL, _LARGEST = 256, 1e3  # states of the model's own; deviations beyond which one counts as diverged


class NeuralStagger(Surrogate):
    """The last states -> the next ones, each interleaved part of them by a network that sees this part only.

    The method of Huang et al. (2023), see `StaggeredNetwork`. Its loss is the error that the case's own discrete
    equation finds in the states that the networks give (`headrace.solvers.step_correction`), in units of the fields'
    variances; no later state of the stream is needed. The networks see the parameters and where their points lie, but
    not the time: the equation must not depend on it.

    To train, the case must be known beside the weights, `use_case(case)`; a study sees to that. Predictions need none.

    Parameters
    ----------
    space : points from one point of a part to the next, one number for all axes or one for each.
    time : frames from one frame of a part to the next; in reading "phase" the first so many come from a solver.
    reading, exchange : see `StaggeredNetwork`.
    shared : one network for all parts, which are told apart by learned numbers and the places of their points, or one
        for each as in the published method. A shared one learns from all parts in every step, and was nearer where the
        two were compared (docs/decisions.md); own ones are for parts that differ by more than their place.
    backbone : the network of a part, of `BACKBONES`. width : its channels. modes : of "fno", at most what a part has.
    unroll : windows that the gradient goes back through. pushforward : windows before those without a gradient, from 0
        to this number, each for an equal share of a batch, drawn anew for every batch, so that the networks learn from
        states of their own making.
    streamed : whether training starts from the states of the stream. Else the stream gives no more than mean and
        deviation: states are drawn as the case's initial ones and stepped by the networks themselves.
    data_weight : of the error against the streamed states of the next window.
    save_memory : compute the windows of `unroll` again on the way back instead of keeping their inner values. Steps are
        then not recorded.
    """

    def __init__(  # noqa: PLR0913
        self, *, space: int | Sequence[int] = 2, time: int = 1, reading: str = "phase", backbone: str = "fno",
        width: int = 24, modes: int = 12, shared: bool = True, exchange: int = 0, unroll: int = 1,
        pushforward: int = 1, streamed: bool = True, data_weight: float = 0.0, save_memory: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        several = space if isinstance(space, Iterable) else [space]
        factors = tuple(whole(one, "NeuralStagger space", least=1) for one in several)
        self.space = factors if isinstance(space, Iterable) else factors[0]
        self.time, self.width, self.modes, self.unroll = (
            whole(value, f"NeuralStagger {name}", least=1)
            for name, value in (("time", time), ("width", width), ("modes", modes), ("unroll", unroll))
        )
        self.pushforward = whole(pushforward, "NeuralStagger pushforward", least=0)
        self.exchange = whole(exchange, "NeuralStagger exchange", least=0)
        self.reading, self.backbone, self.shared, self.streamed = reading, backbone, bool(shared), bool(streamed)
        self.data_weight, self.save_memory = float(data_weight), bool(save_memory)
        if backbone not in BACKBONES:
            raise ValueError(f"NeuralStagger backbone {backbone!r} is not one of {', '.join(BACKBONES)}.")
        if reading not in READINGS:
            raise ValueError(f"NeuralStagger reading {reading!r} is not one of {', '.join(READINGS)}.")
        if not self.data_weight >= 0:
            raise ValueError(f"NeuralStagger data_weight {self.data_weight} must be at least 0.")
        self.history = self.time if reading == "phase" else 1
        if not self.streamed and (self.history > 1 or self.data_weight):
            raise ValueError(
                f"NeuralStagger with streamed=false makes its own states: it cannot have {self.history} known frames "
                f'or a data_weight of {self.data_weight:g}. Use reading="offset" or time=1, and data_weight=0.'
            )
        self.window = self.history + (self.time if self.data_weight else 0)
        self._correction: Correction | None = None
        self._case: Case | None = None
        self._pool: StatePool | None = None

    @property
    def recordable(self) -> bool:
        """Whether every batch takes the same operations: not where states come from a pool that the host keeps, nor
        where windows are computed again.
        """
        return self.streamed and not self.save_memory

    def setup(self, problem: Problem, *, seed: int = 0) -> None:
        """Build the weights.

        Raises
        ------
        ValueError : a factor does not divide its axis, a part is too small for the backbone, or a window is longer
            than a trajectory.
        """
        require_problem(problem)
        if self.window > problem.num_steps:
            raise ValueError(f"NeuralStagger needs windows of {self.window} steps; trajectories of case {problem.case} "
                             f"have {problem.num_steps}.")  # fmt: skip
        ndim = len(problem.shape)
        stagger = Stagger((self.space,) * ndim if isinstance(self.space, int) else self.space, self.time)
        make = self._backbone(stagger.coarse(problem.shape), problem)
        self.problem, self.normaliser, self._seed = problem, Normaliser(problem), seed
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = StaggeredNetwork(
                make, stagger, fields=len(problem.fields), reading=self.reading, shared=self.shared,
                exchange=self.exchange, conditions=len(problem.parameters), position=problem.periodic,
            )  # fmt: skip

    def _backbone(self, part: tuple[int, ...], problem: Problem) -> Callable[[int], torch.nn.Module]:
        fields, periodic, smallest = len(problem.fields), problem.periodic, min(part)
        if smallest < 4:
            raise ValueError(f"NeuralStagger's parts of case {problem.case} have {part} points; they need 4 per axis. "
                             f"Take smaller factors than space={self.space}.")  # fmt: skip
        modes = [min(self.modes, n // 2 - 1) for n in part]
        periods = [1.0 if closed else 1.25 for closed in periodic]
        levels = sum(smallest >= 2**level + 1 for level in range(1, 4))
        form = UNet(width=self.width, multipliers=(1, 2, 2, 4)[: 1 + levels], blocks=1, norm=False)

        def make(inputs: int) -> torch.nn.Module:
            if self.backbone == "mixer":
                return LowRankMixer(inputs, fields, shape=part, width=self.width, groups=gcd(8, self.width))
            if self.backbone == "unet":
                network = UNetwork(Channels(inputs=inputs, states=fields, outputs=fields, conditions=0), form, periodic)
                torch.nn.init.zeros_(network.output.conv.weight)
                return network
            network = FourierNetwork(inputs, fields, self.width, modes=modes, periods=periods)
            torch.nn.init.zeros_(network.output.weight)
            return network

        return make

    def use_case(self, case: Case) -> None:
        """Take the discrete equation of a case, and its initial states.

        Raises
        ------
        ValueError : the case does not say what the defect of a step is.
        """
        # Needs scipy, which a saved surrogate does not.
        from headrace.solvers.step_correction import step_correction

        self._correction, self._case = step_correction(case), case

    def architecture(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        names = ("time", "reading", "backbone", "width", "modes", "shared", "exchange", "unroll", "pushforward",
                 "streamed", "data_weight", "save_memory")  # fmt: skip
        space = self.space if isinstance(self.space, int) else list(self.space)
        return {"space": space} | {name: getattr(self, name) for name in names}

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Freeze the normaliser."""
        require_setup(self)
        self.normaliser.freeze(mean, std)

    def training_loss(self, batch: WindowBatch) -> torch.Tensor:
        """Return the mean squared error of the graded states, as the equation tells it, in the fields' variances."""
        batch.check(require_setup(self), self.window)
        batch = batch.matching(self.normaliser.mean)
        if self._correction is None:
            raise RuntimeError(f"NeuralStagger of case {self.problem.case} does not know its equation: call "
                               "use_case(case) first.")  # fmt: skip
        if not self.streamed:
            return self._loss_of_own_states(len(batch.states), batch.states)
        known, times, rows = batch.states[:, : self.history], batch.times[:, self.history - 1], batch.parameters
        loss = known.new_zeros(len(known))
        if self.data_weight:
            error = (self.stepped(known, rows) - batch.states[:, self.history :]) / self._scale()
            loss = loss + self.data_weight * error.square().flatten(1).mean(1)
        if self.training:
            known, times = self._pushed_forward(known, rows, times)
        return loss + self._rolled_out(known, rows, times)[0]

    def _rolled_out(
        self, known: torch.Tensor, rows: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss of the next `unroll` windows, (batch,), and the last known frames after them."""
        loss = known.new_zeros(len(known))
        for _ in range(self.unroll):
            if self.save_memory:
                new = checkpoint(self.stepped, known, rows, use_reentrant=False)
            else:
                new = self.stepped(known, rows)
            loss = loss + self._graded(known[:, -1], new, times, rows) / self.unroll
            known, times = self._carried(known, new, times)
        return loss, known

    @torch.no_grad()
    def _pushed_forward(
        self, known: torch.Tensor, rows: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Carry each sample on by 0, 1, ... `pushforward` windows of the networks' own, in the batch's order.

        A sample's number does not depend on its place, as batches are sorted by simulation: the one at place j of a
        random order is carried on by floor(shares·(j + u) / samples) windows, with one u of [0, 1) for all. So all
        numbers are equally likely in a batch of any size, the shares as equal as can be, and their bounds known but for
        one sample that u decides on: every batch takes the same operations and asks nothing of the host, as a recording
        needs, which draws anew in every replay.
        """
        count, shares = len(known), self.pushforward + 1
        if shares == 1:
            return known, times
        order, shift = torch.rand(count, device=known.device).argsort(), torch.rand((), device=known.device)
        known, rows, times = known[order], rows[order], times[order]
        for call in range(1, shares):
            stay = count * call // shares
            further, later = self._carried(known[stay:], self.stepped(known[stay:], rows[stay:]), times[stay:])
            if count * call % shares:
                goes = shift >= count * call / shares - stay
                further[0] = torch.where(goes, further[0], known[stay])
                later[0] = torch.where(goes, later[0], times[stay])
            known, times = torch.cat((known[:stay], further)), torch.cat((times[:stay], later))
        back = order.argsort()
        return known[back], times[back]

    def stepped(self, known: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return the next states (batch, time, fields, *grid) of (batch, history, fields, *grid), with gradients."""
        normalised = self.network(self.normaliser.normalise(known), self.normaliser.scale_parameters(parameters))
        return self.normaliser.denormalise(normalised)

    def _carried(
        self, known: torch.Tensor, new: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat((known, new), 1)[:, -self.history :], times + self.time * self.problem.interval

    def _scale(self) -> torch.Tensor:
        return self.normaliser.std.reshape(-1, *(1,) * len(self.problem.shape))

    def _graded(self, last: torch.Tensor, new: torch.Tensor, times: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Error of each sample's new states (batch, frames, fields, *grid) after the last one, at times (batch,)."""
        frames, dt = new.shape[1], self.problem.interval
        old = torch.cat((last[:, None], new[:, :-1]), 1).flatten(0, 1)
        t = (times[:, None] + dt * torch.arange(frames, device=times.device)).flatten()
        error = self._correction(old, new.flatten(0, 1), t, dt, rows.repeat_interleave(frames, 0))
        return (error / self._scale()).square().flatten(1).mean(1).unflatten(0, (-1, frames)).mean(1)

    def _loss_of_own_states(self, count: int, like: torch.Tensor) -> torch.Tensor:
        """Loss of states that the networks made themselves, of which a pool is kept beside the weights."""
        problem = self.problem
        if self._pool is None:
            lifetime = problem.num_snapshots // self.time
            self._rng = np.random.default_rng(self._seed)
            self._pool = StatePool(lambda n: self._fresh(n).to(like), _POOL, lifetime=max(1, lifetime),
                                   largest=inf, seed=self._seed)  # fmt: skip
        fields = len(problem.fields)
        places, window = self._pool.draw(min(count, _POOL))
        # The parameters travel with the states, as fields that are constant in space.
        corner = (slice(None), 0, slice(fields, None), *(0,) * len(problem.shape))
        known, rows = window[:, :, :fields], window[corner]
        loss, known = self._rolled_out(known, rows, known.new_zeros(len(known)))
        if self.training:
            # In deviations: states and parameters may be any size in their own units.
            far = ~(self.normaliser.normalise(known).detach().flatten(1).abs().amax(1) < _LARGEST)
            new = torch.cat((known, window[:, :, fields:]), 2)
            new[far] = torch.nan
            self._pool.write_back(places, new, self.unroll)
        # One for each window of a batch, also where the pool has fewer.
        return loss if len(loss) == count else loss[torch.arange(count, device=loss.device) % len(loss)]

    def _fresh(self, count: int) -> torch.Tensor:
        """Initial states of the case at random parameters, (count, 1, fields + parameters, *grid)."""
        from headrace.solvers.simulate import initial_state

        case, blocks, windows = self._case, Blocks(self.problem.shape, self.problem.periodic), []
        for _ in range(count):
            p = case.draw(self._rng.random(len(case.parameters)))
            state = initial_state(case, p, blocks, self._rng)
            constant = [np.full((1, *self.problem.shape), value) for value in p.values()]
            windows.append(np.concatenate([state, *constant]))
        return torch.tensor(np.stack(windows), dtype=torch.float32)[:, None]

    @torch.no_grad()
    def predict(self, initial: torch.Tensor | None, parameters: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the states at consecutive snapshot times, (batch, time, fields, *grid).

        initial : (batch, history, fields, *grid), the states just before times[0].
        """
        known, rows, times = stepping_request(self, initial, parameters, times)
        states: list[torch.Tensor] = []
        while len(states) < len(times):
            new = self.stepped(known, rows)
            states += new.unbind(1)
            known = torch.cat((known, new), 1)[:, -self.history :]
        return torch.stack(states[: len(times)], 1)

    @torch.no_grad()
    def predict_part(
        self, index: int, initial: torch.Tensor, parameters: torch.Tensor, num_frames: int
    ) -> torch.Tensor:
        """Return the next frames of one part by itself, (batch, num_frames, fields, *coarse): a coarse solver.

        Frames are `time` snapshots apart in reading "phase", in "offset" as many as the part looks ahead.

        index : of the part in `network.stagger.places`, which tell its first frame and point.
        initial : a frame at the part's points, (batch, fields, *coarse).

        Raises
        ------
        ValueError : there is no such part, a shape does not fit, no frame is wanted, or the parts exchange, so that
            none runs alone.
        RuntimeError : the surrogate has no weights yet.
        """
        problem, like = require_setup(self), self.normaliser.mean
        stagger = self.network.stagger
        if num_frames < 1:
            raise ValueError(f"NeuralStagger num_frames {num_frames} must be at least 1.")
        if not 0 <= index < stagger.parts:
            raise ValueError(f"NeuralStagger part {index} must be from 0 to {stagger.parts - 1}.")
        rows, frame = parameter_rows(parameters, problem, like), torch.as_tensor(initial).to(like)
        wanted = (len(rows), len(problem.fields), *stagger.coarse(problem.shape))
        if tuple(frame.shape) != wanted:
            raise ValueError(f"Initial has shape {tuple(frame.shape)}; a part of case {problem.case}, with {len(rows)} "
                             f"rows of parameters, needs {wanted}.")  # fmt: skip
        frame, conditions, frames = self.normaliser.normalise(frame), self.normaliser.scale_parameters(rows), []
        for _ in range(num_frames):
            frame = self.network.alone(index, frame, conditions)
            frames.append(self.normaliser.denormalise(frame))
        return torch.stack(frames, 1)
