"""Training steps of U-Net and message passing beside plain reference forms with the same weights.

    python benchmarks/networks.py [--quick] [--only unet|messages] [--device cpu|cuda] [--threads N] [--resume]

Parts: `unet`, the modern U-Net of Gupta and Brandstetter (2022) on a torus; its plain form is PyTorch's own convolution
with circular padding. `messages`, the solver of Brandstetter et al. (2022) on a line of 100 points; its plain form is
the published one: what a message needs is gathered and concatenated for every edge, and messages are summed by index.

A step is forward, backward and Adam. On a GPU every form counts eager and recorded as a CUDA graph, in the median of
device events; on a CPU the best of alternating runs counts. Beside each time stands how far the two forms' outputs lie
apart. One JSON line per figure, also in benchmarks/results/networks-DEVICE.json.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lines import Report, flags, processor
from step_times import best_times, device_time, training_step
from torch.nn.functional import silu

from headrace.surrogates import MessagePassing, Problem, Stepping, UNet, WindowBatch
from headrace.surrogates.autoregressive import Autoregressive
from headrace.surrogates.convolution import BoxConv
from headrace.surrogates.message_passing import PUBLISHED, MessageNetwork, MessageRound
from headrace.surrogates.recorded import Recorded


class CircularConv(torch.nn.Module):
    """A `BoxConv` on periodic axes by PyTorch's own padding."""

    def __init__(self, ours: BoxConv) -> None:
        super().__init__()
        conv, reach = ours.conv, ours.around[0]
        self.conv = torch.nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, stride=conv.stride,
                                    padding=reach, padding_mode="circular")  # fmt: skip
        self.conv.load_state_dict(conv.state_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolved channels."""
        return self.conv(x)


class GatheredRound(torch.nn.Module):
    """A `MessageRound` on a line as published: both networks see what is concatenated, messages are edges."""

    def __init__(self, ours: MessageRound, points: int, reach: int) -> None:
        super().__init__()
        hidden, difference = ours.sender.in_features, ours.difference.weight
        receiver = ours.receiver
        # Of h_i, h_j, u_i - u_j, x_i - x_j and the condition.
        self.first = torch.nn.Linear(hidden + hidden + difference.shape[1] + 1 + receiver.in_features - hidden, hidden)
        parts = (receiver.weight[:, :hidden], ours.sender.weight, difference, ours.distance.weight,
                 receiver.weight[:, hidden:])  # fmt: skip
        self.first.weight.data.copy_(torch.cat(parts, dim=1))
        self.first.bias.data.copy_(receiver.bias)
        self.second, self.update = ours.second, ours.update
        near = [offset for offset in range(-reach, reach + 1) if offset]
        here = torch.arange(points).repeat_interleave(len(near))
        offset = torch.tensor(near).repeat(points)
        self.register_buffer("receivers", here)
        self.register_buffer("senders", (here + offset) % points)
        self.register_buffer("separation", -offset[:, None] / points)

    def forward(self, h: torch.Tensor, u: torch.Tensor, theta: torch.Tensor, _: Any) -> torch.Tensor:
        """Return the next features, (b, points, hidden)."""
        i, j = self.receivers, self.senders
        edges = (h.shape[0], len(i), -1)
        seen = (h[:, i], h[:, j], u[:, i] - u[:, j], self.separation.expand(edges), theta.expand(edges))
        message = silu(self.second(silu(self.first(torch.cat(seen, dim=-1)))))
        mean = torch.zeros_like(h).index_add(1, i, message) / (len(i) // h.shape[1])
        h = h + self.update(torch.cat((h, mean, theta.expand(*h.shape[:-1], -1)), dim=-1))
        variance, centre = torch.var_mean(h, dim=1, correction=0, keepdim=True)
        return (h - centre) * torch.rsqrt(variance + 1e-5)


class Gathered(torch.nn.Module):
    """In the place of a `Band`, whose rounds would go through kernels on a GPU: gathered rounds know their edges."""

    def positions(self) -> list[torch.Tensor]:
        """Return none: on a grid the position is among the input channels."""
        return []


def plain(module: torch.nn.Module) -> torch.nn.Module:
    """Put plain forms in place of our convolutions and rounds of messages, in place."""
    for name, child in module.named_children():
        if isinstance(child, BoxConv):
            setattr(module, name, CircularConv(child))
        else:
            plain(child)
    if isinstance(module, MessageNetwork):
        points = 100
        module.rounds = torch.nn.ModuleList(GatheredRound(one, points, module.neighbours.reach)
                                            for one in module.rounds)  # fmt: skip
        module.neighbours = Gathered()
    return module


def unet(quick: bool) -> tuple[str, Autoregressive, Problem, int]:
    """Return label, model, problem and batch."""
    width, n, batch = (16, 32, 4) if quick else (64, 128, 8)
    model = UNet(width=width, stepping=Stepping(history=4, inputs=()))
    return f"B{batch} width {width} {n}x{n}", model, line_or_plane((n, n), ("u", "vx", "vy")), batch


def messages(quick: bool) -> tuple[str, Autoregressive, Problem, int]:
    """Return label, model, problem and batch."""
    batch = 4 if quick else 16
    return f"B{batch} 100 points", MessagePassing(stepping=PUBLISHED), line_or_plane((100,), ("u",)), batch


def line_or_plane(shape: tuple[int, ...], fields: tuple[str, ...]) -> Problem:
    """Return a periodic problem."""
    return Problem(case="benchmark", fields=fields, shape=shape, extent=(1.0,) * len(shape),
                   periodic=(True,) * len(shape), parameters={}, duration=1.0, num_snapshots=250)  # fmt: skip


PARTS = {"unet": unet, "messages": messages}


def measure(part: str, device: torch.device, *, quick: bool) -> Iterator[tuple[str, float, str, Any]]:
    """Yield time, speed-up and distance."""
    label, model, problem, batch = PARTS[part](quick)
    torch.manual_seed(0)
    forms: dict[str, Autoregressive] = {}
    for name in ("ours", "plain"):
        model = PARTS[part](quick)[1]
        model.setup(problem)
        # Training starts from persistence by an output of zeros; here both forms shall say something.
        torch.nn.init.normal_(next(p for n, p in model.network.named_parameters() if n.startswith("output")), std=0.1,
                              generator=torch.Generator().manual_seed(1))  # fmt: skip
        if name == "plain":
            plain(model.network)
        forms[name] = model.to(device)
    window = forms["ours"].window
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(batch, window, len(problem.fields), *problem.shape, generator=draw).to(device)
    times = torch.arange(window, device=device).expand(batch, -1) / 250
    data = WindowBatch(states=states, times=times, parameters=torch.zeros(batch, 0, device=device))
    with torch.no_grad():
        losses = {name: form.eval().training_loss(data) for name, form in forms.items()}
    apart = ((losses["ours"] - losses["plain"]).norm() / losses["plain"].norm()).item()
    for precision in ("fp32", "tf32") if device.type == "cuda" else ("fp32",):
        steps = {name: step_of(form, data, precision) for name, form in forms.items()}
        if device.type == "cuda":
            seconds = 0.3 if quick else 2.0
            found = {name: min(device_time(run, seconds), device_time(Recorded(run), seconds))
                     for name, run in steps.items()}  # fmt: skip
        else:
            found = best_times(steps, device, 3.0 if quick else 30.0)
        named = f"{part} {label}" + (", TF32" if precision == "tf32" else "")
        yield f"{named}: step", found["ours"], "ms", found["plain"]
        yield f"{named}: speed-up over the plain form", found["plain"] / found["ours"], "x", 1.0
    yield f"{part} {label}: relative distance of the losses", apart, "1", None


def step_of(model: Autoregressive, data: WindowBatch, precision: str) -> Callable[[], None]:
    """Return a whole training step; the model stays in evaluation, where the number of free calls is fixed."""
    return training_step(model, lambda: model.training_loss(data).mean(), precision)


def main() -> None:
    """Measure what is asked for and print one JSON line per figure."""
    parser = flags(__doc__, PARTS, devices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch on the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = Report("networks", device=options.device, quick=options.quick, resume=options.resume)
    on_gpu = options.device == "cuda"
    more = {
        "seeds": [0], "cores": options.threads, "device": torch.cuda.get_device_name() if on_gpu else processor(),
        "goal": None, "met": None,
        "setup": f"torch {torch.__version__}, "
        + ("the better of eager and CUDA graph, median of device events" if on_gpu else "best of alternating runs"),
    }  # fmt: skip
    for part in PARTS:
        if options.only in (None, part):
            figures = measure(part, torch.device(options.device), quick=options.quick)
            report.measure(part, ({"name": name, "value": value, "unit": unit, "baseline": baseline, **more,
                                   "precision": "tf32" if "TF32" in name else "fp32"}
                                  for name, value, unit, baseline in figures))  # fmt: skip


if __name__ == "__main__":
    main()
