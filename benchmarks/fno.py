"""Speed and agreement of the Fourier neural operator: our matrix-product form against the usual FFT form.

    python benchmarks/fno.py [--quick] [--only layer|step|fused|training|compiled] [--device cpu|cuda] [--threads N]
                             [--resume]

Parts: `layer`, one spectral layer forward; `step`, a training step (forward, backward, fused Adam) of the whole
network. The rival is the published form (rfftn, complex products of the kept corners, irfftn, convolutions with kernel
size 1) in plain PyTorch, rivals/fourier.py; both run alternately in the same process and the best time of each counts.
Beside each layer stands its relative distance from the same layer in float64.

`fused`: one layer forward, fused, beside the bounds of the memory's speed (CUDA only).

`training`: the same step in every way that each code can run, beside neuraloperator 2.0.0 with and without its channel
network, in its own modes. On a GPU eager and as a CUDA graph, in fp32, tf32 and bf16, medians of events on the device;
on a CPU eager, in fp32, best of alternating runs. neuraloperator runs where it can be
imported, for instance with the folder made by
`python -m pip install --target .rivals/neuraloperator neuraloperator==2.0.0` on PYTHONPATH, PhysicsNeMo's spectral
layers (in the published network) where its wheel is unpacked there; else "not run" is said. "unfused" is our form of
every other device.

`compiled`: the step of every code through PyTorch's compiler: on a GPU in tf32, also as a CUDA graph; on a CPU beside
the eager one. Left out of a quick run unless it is asked for.

One JSON line per figure, also in benchmarks/results/fno-DEVICE.json.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from lines import Report, flags, processor
from rivals.fourier import FFTConv, FFTNetwork, Shape, neuraloperator, physicsnemo
from step_times import allow, best_times, device_time, has_complex, training_step

from headrace.surrogates import FNO, Problem, Stepping, WindowBatch
from headrace.surrogates.fourier_network import FourierLayer
from headrace.surrogates.recorded import Recorded
from headrace.surrogates.spectral import SpectralConv

QUICK = [
    Shape(20, 20, (64, 64), 8),
    Shape(20, 32, (64, 64), 12),
    Shape(8, 32, (61, 67), 12),
    Shape(64, 64, (1024,), 16),
]
FULL = [*QUICK, Shape(16, 64, (256, 256), 16), Shape(64, 64, (64, 64), 16), Shape(2, 16, (64, 64, 64), 8)]


def share_weights(ours: SpectralConv, rival: FFTConv) -> None:
    """Give our layer the rival's weights."""
    m, ndim = rival.modes, rival.ndim
    inputs, outputs = rival.weight.shape[1:3]
    ordered = torch.zeros(inputs, outputs, *ours.kept, dtype=torch.complex64)
    for number, weight in enumerate(rival.weight.detach().cpu()):
        # Ours orders the wave numbers -m .. m-1; the FFT's low corner is 0 .. m-1, its high one -m .. -1.
        chosen = [slice(None, m) if number >> axis & 1 else slice(m, None) for axis in range(ndim - 1)]
        ordered[(slice(None), slice(None), *chosen, slice(None))] = weight
    parts = torch.view_as_real(ordered).flatten(2, -2)  # (i, o, modes, r)
    ours.weight.matrices.data.copy_(parts.permute(2, 0, 3, 1))


def measure_layer(shape: Shape, device: torch.device, seconds: float) -> Iterator[tuple[str, float, str, Any]]:
    """Yield time, speed-up and agreement of one spectral layer forward."""
    torch.manual_seed(0)
    rival = FFTConv(shape.width, shape.width, shape.modes, len(shape.grid))
    ndim = len(shape.grid)
    ours = SpectralConv(shape.width, shape.width, modes=(shape.modes,) * ndim, periods=(1.0,) * ndim)
    share_weights(ours, rival)
    x = torch.randn(shape.batch, shape.width, *shape.grid)
    exact = FFTConv(shape.width, shape.width, shape.modes, ndim)
    exact.weight = torch.nn.Parameter(rival.weight.detach().to(torch.complex128))
    sample = x[:2].double()
    with torch.no_grad():
        reference = exact(sample, strict=True)
        ours, rival, x = ours.to(device), rival.to(device), x.to(device)
        ours_x = x.transpose(0, 1).contiguous()

        def distance(values: torch.Tensor) -> float:
            return ((values.double().cpu() - reference).norm() / reference.norm()).item()

        near = distance(ours(ours_x[:, :2].contiguous()).transpose(0, 1))
        far = distance(rival(x[:2]))
        times = best_times({"ours": lambda: ours(ours_x), "fft": lambda: rival(x)}, device, seconds)
    yield f"layer {shape}: time", times["ours"], "ms", times["fft"]
    yield f"layer {shape}: speed-up over FFT form", times["fft"] / times["ours"], "x", 1.0
    yield f"layer {shape}: relative distance from float64", near, "1", far


def measure_step(shape: Shape, device: torch.device, seconds: float) -> Iterator[tuple[str, float, str, Any]]:
    """Yield time and speed-up of a whole training step."""
    torch.manual_seed(0)
    ndim = len(shape.grid)
    problem = Problem(case="benchmark", fields=("u",), shape=shape.grid, extent=(1.0,) * ndim,
                      periodic=(True,) * ndim, parameters={}, duration=1.0, num_snapshots=10)  # fmt: skip
    ours = FNO(modes=shape.modes, width=shape.width, stepping=Stepping(inputs=("position",)))
    ours.setup(problem)
    ours.to(device)
    rival = FFTNetwork(1 + 2 * ndim, shape).to(device)
    states = torch.randn(shape.batch, 2, 1, *shape.grid, device=device)
    none = torch.zeros(shape.batch, 0, device=device)
    batch = WindowBatch(states=states, times=torch.zeros(shape.batch, 2, device=device), parameters=none)
    channels = torch.randn(shape.batch, 1 + 2 * ndim, *shape.grid, device=device)

    def step(network: torch.nn.Module, loss_of: Callable[[], torch.Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=not has_complex(network))

        def run() -> None:
            optimizer.zero_grad()
            loss_of().backward()
            optimizer.step()

        return run

    times = best_times(
        {
            "ours": step(ours, lambda: ours.training_loss(batch).mean()),
            "fft": step(rival, lambda: (rival(channels) - states[:, 1]).square().mean()),
        },
        device,
        seconds,
    )
    yield f"step {shape}: time", times["ours"], "ms", times["fft"]
    yield f"step {shape}: speed-up over FFT form", times["fft"] / times["ours"], "x", 1.0


PRECISIONS = ("fp32", "tf32", "bf16")
ON_CPU = [Shape(20, 32, (64, 64), 12), Shape(8, 64, (64, 64), 16), Shape(2, 64, (256, 256), 16)]
TRAINED = [Shape(20, 32, (64, 64), 12), Shape(64, 64, (64, 64), 16), Shape(16, 64, (256, 256), 16)]


def candidates(
    shape: Shape, precision: str, device: torch.device, *, compiled: bool = False
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (name, maker of a step); a maker that returns None has nothing to run.

    compiled : through PyTorch's compiler.
    """
    ndim = len(shape.grid)
    states = torch.randn(shape.batch, 2, 1, *shape.grid, device=device)
    channels = torch.randn(shape.batch, 1 + 2 * ndim, *shape.grid, device=device)
    batch = WindowBatch(states=states, times=torch.zeros(shape.batch, 2, device=device),
                        parameters=torch.zeros(shape.batch, 0, device=device))  # fmt: skip

    def ours(*, fused: bool = True, compiled: bool = False) -> Callable[[], None]:
        network = FNO(modes=shape.modes, width=shape.width, stepping=Stepping(inputs=("position",)))
        network.setup(Problem(case="benchmark", fields=("u",), shape=shape.grid, extent=(1.0,) * ndim,
                              periodic=(True,) * ndim, parameters={}, duration=1.0, num_snapshots=10))  # fmt: skip
        network.to(device)
        for module in network.modules():
            if isinstance(module, FourierLayer):
                module.fused = fused
        if compiled:
            network.network.compile(dynamic=False)
        return training_step(network, lambda: network.training_loss(batch).mean(), precision)

    def theirs(network: torch.nn.Module | None, *, compiled: bool = False) -> Callable[[], None] | None:
        if network is None:
            return None
        network = network.to(device)
        call = torch.compile(network) if compiled else network
        loss = lambda: (call(channels) - states[:, 1]).square().mean()  # noqa: E731
        # FFTs know fp16 but no bf16: neuraloperator's mixed mode is made for the former.
        return training_step(network, loss, precision, torch.float16)

    makers: dict[str, Callable[..., Callable[[], None] | None]] = {"ours": ours}
    on_gpu = device.type == "cuda"
    if on_gpu:
        makers["unfused"] = partial(ours, fused=False)
    if precision != "bf16":  # FFTs know no bf16; mixed below is the rival's own half precision
        makers["fft"] = lambda **how: theirs(FFTNetwork(1 + 2 * ndim, shape), **how)
        if on_gpu:
            makers["physicsnemo"] = lambda **how: theirs(physicsnemo(shape, 1 + 2 * ndim), **how)
    for mlp, name in ((True, "neuraloperator"), (False, "neuraloperator without channel MLP")):
        network = partial(neuraloperator, shape, 1 + 2 * ndim, channel_mlp=mlp, mixed=precision == "bf16")
        makers[name] = lambda network=network, **how: theirs(network(), **how)
    if compiled and on_gpu:
        del makers["ours"]  # the compiler sees the form of every other device
    for name, make in makers.items():
        yield from modes_of(name, make, compiled=compiled, on_gpu=on_gpu)


def modes_of(name: str, make: Callable[..., Any], *, compiled: bool, on_gpu: bool) -> Iterator[tuple[str, Any]]:
    """Yield the modes of one code."""
    if compiled:
        make = partial(make, compiled=True)
        yield f"{name} compiled", make
    else:
        yield f"{name} eager", make
    if on_gpu:
        yield f"{name}{' compiled' * compiled} graph", partial(recorded, make)


def recorded(make: Callable[[], Callable[[], None] | None]) -> Callable[[], None] | None:
    """Return a step as a CUDA graph."""
    step = make()
    return step and Recorded(step)


def measure_training(shape: Shape, device: torch.device, seconds: float) -> Iterator[tuple[str, float, str, Any]]:
    """Yield the time of a training step in every mode and precision, and our best over each rival's best."""
    if device.type != "cuda":
        yield from measure_on_cpu(f"training on CPU {shape}", candidates(shape, "fp32", device), device, seconds)
        return
    for precision in PRECISIONS:
        label = f"training {shape} {precision}"
        best = yield from measure_modes(label, candidates(shape, precision, device), seconds)
        yield from speed_ups(label, best)
    yield f"training {shape}: time", best.get("ours", math.nan), "ms", None


def speed_ups(label: str, best: Mapping[str, float]) -> Iterator[tuple[str, float, str, Any]]:
    """Yield our best over that of each rival that ran."""
    for who in ("unfused", "fft", "physicsnemo", "neuraloperator", "neuraloperator without channel MLP"):
        if who in best and "ours" in best:
            yield f"{label}: speed-up over the best of {who}", best[who] / best["ours"], "x", best[who]


def measure_modes(
    label: str, modes: Iterator[tuple[str, Callable[[], Any]]], seconds: float
) -> Generator[tuple[str, float, str, Any], None, dict[str, float]]:
    """Yield the time of a step in every mode; return the best of each code."""
    best: dict[str, float] = {}
    for name, make in modes:
        torch.manual_seed(0)
        try:
            run = make()
            if run is None:
                continue
            value = device_time(run, seconds)
        except Exception as error:  # a mode that a code cannot run in is a finding, not the end
            reason = f"{type(error).__name__} {str(error).splitlines()[0][:80] if str(error) else ''}"
            yield f"{label}: {name} fails, {reason}", math.nan, "ms", None
            continue
        who = name.removesuffix(" graph").removesuffix(" eager")
        best[who] = min(value, best.get(who, math.inf))
        yield f"{label}: {name}", value, "ms", None
        del run
        torch.cuda.empty_cache()
    return best


def measure_compiled(shape: Shape, device: torch.device, seconds: float) -> Iterator[tuple[str, float, str, Any]]:
    """Yield the time of a training step through PyTorch's compiler, in tf32; on a CPU in fp32, beside that without."""
    if device.type == "cuda":
        modes = candidates(shape, "tf32", device, compiled=True)
        yield from measure_modes(f"compiled {shape} tf32", modes, seconds)
        return
    both = [mode for compiled in (False, True) for mode in candidates(shape, "fp32", device, compiled=compiled)]
    yield from measure_on_cpu(f"compiled on CPU {shape}", both, device, seconds)


def measure_on_cpu(
    label: str, modes: Iterable[tuple[str, Callable[[], Any]]], device: torch.device, seconds: float
) -> Iterator[tuple[str, float, str, Any]]:
    """Yield the time of a training step in every mode, in float32, and our best over each rival's best."""
    steps: dict[str, Callable[[], Any]] = {}
    for name, make in modes:
        torch.manual_seed(0)
        try:
            run = make()
            if run is not None:
                run()
                steps[name] = run
        except Exception as error:  # no compiler, say
            reason = f"{type(error).__name__} {str(error).splitlines()[0][:80] if str(error) else ''}"
            yield f"{label} fp32: {name} fails, {reason}", math.nan, "ms", None
    best: dict[str, float] = {}
    for name, value in best_times(steps, device, 6 * seconds).items():
        yield f"{label} fp32: {name}", value, "ms", None
        who = name.rsplit(" ", 1)[0]
        best[who] = min(value, best.get(who, math.inf))
    yield from speed_ups(f"{label} fp32", best)
    yield f"{label}: time", best["ours"], "ms", None


BANDWIDTHS = {"H100": 3.35e12, "H200": 4.8e12}
"""Bytes per second of the memory, by the data sheets of the cards with HBM3 (H100 SXM) and HBM3e."""


def bandwidth() -> float:
    """Return that of this GPU; nan of one that is not known."""
    return next((value for name, value in BANDWIDTHS.items() if name in torch.cuda.get_device_name()), math.nan)


def measure_fused(shape: Shape, device: torch.device, seconds: float) -> Iterator[tuple[str, float, str, Any]]:
    """Yield the time of one whole layer forward, recorded, and its share of what the memory's speed allows.

    Compulsory traffic: states in and out and weights; in two passes, states once more and the spectrum out and in.
    """
    if device.type != "cuda":
        return
    modes = (shape.modes,) * len(shape.grid)
    kept = math.prod((*(2 * m for m in modes[:-1]), modes[-1]))
    for precision in PRECISIONS:
        layer = FourierLayer(shape.width, modes=modes, periods=(1.0,) * len(modes), conditions=0, norm="none",
                             hidden=0, rank=None).to(device)  # fmt: skip
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        x = torch.randn(shape.width, shape.batch, *shape.grid, device=device, dtype=kind)

        def forward(layer: FourierLayer = layer, x: torch.Tensor = x, precision: str = precision) -> None:
            with torch.no_grad(), allow(precision, torch.bfloat16):
                layer(x, None, active=True)

        value = device_time(Recorded(forward), seconds)
        states, weights = x.numel() * x.element_size(), 8 * shape.width**2 * kept
        compulsory = 2 * states + weights
        two_pass = 3 * states + 16 * shape.batch * shape.width * kept + weights
        label = f"fused {shape} {precision}"
        yield f"{label}: layer forward", value, "ms", None
        yield f"{label}: achieved", compulsory / value / 1e6, "GB/s", bandwidth() / 1e9
        yield f"{label}: share of the compulsory bound", compulsory / bandwidth() * 1e3 / value, "1", 1.0
        yield f"{label}: share of the two-pass bound", two_pass / bandwidth() * 1e3 / value, "1", 1.0
    yield f"fused {shape}: time", value, "ms", None


PARTS = {"layer": measure_layer, "step": measure_step, "fused": measure_fused, "training": measure_training,
         "compiled": measure_compiled}  # fmt: skip
# The first entry whose words are all in a figure's name holds.
GOALS = {
    ("distance",): 1e-5,
    ("two-pass",): 0.6,
    ("speed-up", "on CPU", "neuraloperator"): 4.0,
    ("speed-up", "bf16", "neuraloperator"): 8.0,
    ("speed-up", "B20", "neuraloperator"): 8.0,
    ("speed-up", "neuraloperator without"): 5.0,
    ("speed-up", "neuraloperator"): 4.0,
    ("speed-up",): 1.0,
}


def record(figure: tuple[str, float, str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the line of one figure."""
    name, value, unit, baseline = figure
    goal = next((goal for words, goal in GOALS.items() if all(word in name for word in words)), None)
    met = None if goal is None or math.isnan(value) else bool(value <= goal if "distance" in name else value >= goal)
    trained = options.device == "cuda" and name.startswith(("training", "fused", "compiled"))
    device = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    mode = "" if name.startswith("compiled") else "eager, "
    return {
        "name": name, "value": value, "unit": unit, "goal": goal, "met": met, "baseline": baseline,
        "seeds": [0], "cores": options.threads, "device": device,
        "precision": next((word for word in PRECISIONS if f" {word}:" in name), "fp32"),
        "setup": f"torch {torch.__version__}, "
        + ("median of device events" if trained else f"{mode}best of alternating runs, baseline: FFT form in PyTorch"),
    }  # fmt: skip


def main() -> None:
    """Measure what is asked for and print one JSON line per figure."""
    parser = flags(__doc__, PARTS, devices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch on the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(options.device)
    report = Report("fno", device=options.device, quick=options.quick, resume=options.resume)
    on_gpu = options.device == "cuda"
    for part, measure in PARTS.items():
        shapes = QUICK if options.quick else FULL
        if part in ("training", "fused", "compiled"):
            shapes = TRAINED if on_gpu else ON_CPU[: 1 if options.quick else None]
        if part == "compiled" and options.quick and options.only is None:
            continue  # compilers take minutes
        for shape in shapes:
            if options.only in (None, part):
                seconds = 0.5 if options.quick else 5.0 if part in ("layer", "step") else 0.4
                figures = measure(shape, device, seconds)
                where = "" if on_gpu or part not in ("training", "compiled") else " on CPU"
                report.measure(f"{part}{where} {shape}", (record(figure, options) for figure in figures))


if __name__ == "__main__":
    main()
