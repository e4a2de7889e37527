"""Time of a frame: all parts batched, on streams, one after another, and one part alone, over the plain network."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import torch
from lines import Figure

from headrace.surrogates.low_rank_mixer import LowRankMixer
from headrace.surrogates.stagger import Stagger
from headrace.surrogates.staggered_network import StaggeredNetwork

from .figures import timed, weights
from .training import fourier, unet

Make = Callable[[int], torch.nn.Module]
LEVELS = (1, 2, 2, 4)
GOALS = {"U-Net 36 M": {2: 6.0, 4: 25.0}, "U-Net 36 M, walls": {2: 6.0, 4: 25.0}, "mixer": {2: 8.0, 4: 50.0}}
WAYS = {0: "batched", 1: "one after another"}
FORMATS = {"": torch.contiguous_format, ", channels last": torch.channels_last}


KINDS = {
    "U-Net 36 M": lambda _: unet(32, 2, LEVELS, (True, True)),
    "U-Net 36 M, walls": lambda _: unet(32, 2, LEVELS, (False, False)),
    "U-Net 1 M": lambda _: unet(6, 1, LEVELS, (True, True)), "FNO 1 M": lambda grid: fourier(24, grid),
    "mixer": lambda grid: lambda inputs: LowRankMixer(inputs, 1, shape=(grid, grid), groups=2),
}  # fmt: skip


def multiply_adds(network: torch.nn.Module, x: torch.Tensor) -> float:
    """Return the multiply-adds of products and convolutions of one call, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    # With gradients: of the kernels of networks without them torch knows no products.
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        network(x)
    return counter.get_total_flops() / 2


def memory(run: Callable[[], object], device: str) -> float:
    """Return the most bytes that a call takes beyond what is there before it; NaN on a CPU."""
    if device != "cuda":
        return math.nan
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def fastest(make: Callable[[], torch.nn.Module], run: Callable[[torch.nn.Module], object], device: str,
            repeats: int, formats: dict[str, torch.memory_format]) -> tuple[float, str, torch.nn.Module]:  # fmt: skip
    """Return the least time of a network over memory formats, with its format and the network."""
    found = []
    for words, layout in formats.items():
        with torch.device(device):  # weights by the hundred million are drawn where they stay
            network = make()
        network = network.to(memory_format=layout)
        found.append((timed(lambda: run(network), device, repeats), words, network))  # noqa: B023
    return min(found, key=lambda one: one[0])


@torch.no_grad()
def measure_speed(quick: bool, device: str, kinds: Collection[str] | None = None) -> Iterator[Figure]:
    """Yield times of a frame, and their ratios to the plain network's, itself in its fastest memory format.

    kinds : of networks; None for all, or two of them where it should be quick.
    """
    # TF32 and tuned convolutions for all networks, the plain one as well.
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    points, repeats = (64, 3) if quick else (256, 30)
    for name in kinds or (("U-Net 1 M", "mixer") if quick else KINDS):
        of_grid = KINDS[name]
        formats = FORMATS if "U-Net" in name and device == "cuda" else {"": torch.contiguous_format}
        for batch in (1,) if quick else (1, 16):
            torch.manual_seed(0)
            x = torch.randn(batch, 1, points, points, device=device)
            whole, words, plain = fastest(
                lambda: of_grid(points)(1).to(device), lambda n: n(x), device, repeats, formats  # noqa: B023
            )  # fmt: skip
            small, y = of_grid(16)(1).to(device), x[..., :16, :16].contiguous()
            floor = timed(lambda: small(y), device, repeats)  # noqa: B023
            setup = f"{name} ({weights(plain):,} weights), {points} x {points}, batch {batch}"
            told = (f"{setup}{words}; {multiply_adds(plain, x) / 1e9:.2f} G multiply-adds a frame, "
                    f"{memory(lambda: plain(x), device) / 2**20:.0f} MiB")  # noqa: B023 # fmt: skip
            yield (f"{setup}: plain, a frame", 1e3 * whole, "ms", None, None, told)
            yield (f"{setup}: floor of launches", 1e3 * floor, "ms", None, None, f"{name} on 16 x 16")
            for factor in (2,) if quick else (2, 4):
                yield from staggered_speed(of_grid, x, name, setup, factor, (whole, floor), repeats, formats)


def staggered_speed(
    of_grid: Callable[[int], Make], x: torch.Tensor, kind: str, setup: str, factor: int, plain: tuple[float, float],
    repeats: int, formats: dict[str, torch.memory_format],
) -> Iterator[Figure]:  # fmt: skip
    """Yield ratios for factors (s, s) in space with s in time, and for space alone."""
    device, (whole, floor) = x.device.type, plain
    window = x[:, None].expand(-1, factor, -1, -1, -1).contiguous()
    make = of_grid(x.shape[-1] // factor)

    def together(stagger: Stagger, frames: torch.Tensor, shared: bool) -> tuple[float, str, StaggeredNetwork]:
        best = None
        # On a GPU U-Nets are batched whatever `streams` says, which then only lays out their weights.
        ways = (0,) if shared or device == "cpu" else (1,) if "U-Net" in kind else (0, 1, stagger.parts)
        for streams in ways:
            found = fastest(
                lambda: StaggeredNetwork(make, stagger, shared=shared, embedding=0, streams=streams).to(device),  # noqa: B023
                lambda network: network(frames), device, repeats, formats if shared else {"": formats[""]},
            )  # fmt: skip
            if best is None or found[0] < best[0]:
                how = "batched" if len(ways) == 1 else WAYS.get(streams, "on streams")
                best = (found[0], how + found[1], found[2])
        return best

    stagger, in_space = Stagger((factor, factor), factor), Stagger((factor, factor))
    part = stagger.part(window, 0)[:, 0].contiguous()
    alone, form, single = fastest(lambda: make(1).to(device), lambda one: part + one(part), device, repeats, formats)
    name, fair = f"{setup}, ({factor},{factor},{factor})", whole >= 5 * floor  # else launches are measured
    goal = GOALS.get(kind, {}).get(factor) if fair else None
    note = (f"plain is {whole / floor:.1f} x the floor; one part: {multiply_adds(single, part) / 1e9:.3f} G "
            f"multiply-adds, {1e3 * alone:.3f} ms{form}")  # fmt: skip
    yield (f"{name}: slowest part alone, speed-up", factor * whole / alone, "x", goal, whole, note)
    yield (f"{name}: of it from space", whole / alone, "x", None, whole, note)
    yield (f"{name}: one after another, speed-up", factor * whole / (alone * stagger.parts), "x", None, whole, note)
    for shared in (True, False) if factor == 2 else (True,):  # 64 networks of 36 M weights would be too many
        words = "one network" if shared else "networks of their own"
        all_at_once, how, network = together(stagger, window, shared)
        told = f"{how}; weights {weights(network):,}; {memory(lambda: network(window), device) / 2**20:.0f} MiB"  # noqa: B023
        yield f"{name}: {words}, all on one device, speed-up", factor * whole / all_at_once, "x", 1.0, whole, told
        once, how, _ = together(in_space, window[:, :1], shared)
        yield (f"{setup}, ({factor},{factor},1): {words}, all on one device, speed-up", whole / once, "x", 1.0, whole,
               how)  # fmt: skip
