"""U-Nets in a plane fused for an NVIDIA GPU, many with weights of their own in the same kernels, without gradients.

The mathematics is that of `UNetwork`, which stays the reference and the form for everything else. Bias, silu, sums,
joined channels and the continuation around periodic axes are part of the convolutions: a residual block is two kernels,
each of which reads a field once and writes it once, or twice where it is wanted with silu and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from .fused_fourier import has_triton, rounds_to_tf32

FORMS = ("plain", "active")
ENOUGH = 200
"""Tiles that keep a GPU busy, of 132 processors on an H200: where larger ones are fewer, smaller ones are taken."""


def usable(network: torch.nn.Module, x: torch.Tensor) -> bool:
    """Whether `unets` takes these inputs, (parts, b, inputs, *grid), for networks of the form of this `UNetwork`.

    In TF32, without norms and conditions, on NVIDIA GPUs whose tensor cores know it. Not where gradients are wanted,
    within transforms of `torch.func`, whose tensors the kernels do not know, nor in what PyTorch traces or compiles.
    Not where a network has other weights than it was made with, as after `weight_norm`; hooks of its layers are not
    called. The kernels count a field's numbers by 32 bits.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing() or not x.is_cuda:
        return False
    plain = isinstance(network.norm.norm, torch.nn.Identity) and network.conditions == 0
    plane = len(network.first.around) == 2 and x.ndim == 5 and x.shape[2] == network.first.conv.in_channels
    return (
        plain and plane and x.dtype == torch.float32 and rounds_to_tf32(torch.backends.cudnn)
        and not torch.is_autocast_enabled("cuda") and x.numel() // x.shape[2] * network.widest < 2**30
        and has_triton() and torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and network.named == {name for name, _ in network.named_parameters()}
        and not torch._C._are_functorch_transforms_active()
    )  # fmt: skip


def unets(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return (parts, b, outputs, *grid) for x (parts, b, inputs, *grid) and weights (parts, *shape) of `UNetwork`s.

    network : one of their form, whose weights are not looked at.
    """
    with torch.cuda.device_of(x):  # Triton starts its kernels on the current device
        return _unets(network, _Layers(weights, network.first.around), x)


def _unets(network: torch.nn.Module, layers: _Layers, x: torch.Tensor) -> torch.Tensor:
    now = layers.convolution("first", [_field(x)], of="plain")
    skips = [now]
    for level, blocks in enumerate(network.down):
        for number in range(len(blocks)):
            now = layers.block(f"down.{level}.{number}", [now])
            skips.append(now)
        if level < len(network.coarsen):
            now = layers.convolution(f"coarsen.{level}", [now], of="plain", stride=2)
            skips.append(now)
    for number in range(len(network.middle)):
        now = layers.block(f"middle.{number}", [now])
    for level, blocks in enumerate(network.up):
        last = level == len(network.refine)
        for number in range(len(blocks)):
            wanted = FORMS if number < len(blocks) - 1 else FORMS[1:] if last else FORMS[:1]
            now = layers.block(f"up.{level}.{number}", [now, skips.pop()], wanted=wanted)
        if not last:
            now = layers.convolution(f"refine.{level}", [now], of="plain", finer=skips[-1].plain.shape[2:4])
    result = layers.convolution("output", [now], wanted=("plain",))
    return result.plain[..., : result.channels].movedim(-1, 2)


class _Field(NamedTuple):
    """What a layer gave, (parts, b, *grid, room), and its silu; None where nothing takes it."""

    channels: int
    plain: torch.Tensor | None
    active: torch.Tensor | None


def room(channels: int) -> int:
    """Return how many numbers a point has in memory: four are read at once. Those after `channels` are 0."""
    return -(-channels // 4) * 4


def _field(x: torch.Tensor) -> _Field:
    """Return the field of (parts, b, channels, *grid), not activated."""
    channels = x.shape[2]
    points = x.new_zeros(*x.shape[:2], *x.shape[3:], room(channels))
    points[..., :channels] = x.movedim(2, -1)
    return _Field(channels, points, None)


def _tile(parts: int, pixels: int, outputs: int) -> tuple[int, int, int, int]:
    """Return rows and columns of a tile, warps and stages: those that an H200 was timed with (docs/decisions.md)."""
    columns = min(128, max(16, 1 << (outputs - 1).bit_length()))
    if columns == 16:
        return 128, 16, 4, 3
    if columns == 32:
        return 64, 32, 4, 4
    if parts * -(-pixels // 128) * -(-outputs // columns) < ENOUGH:
        return 64, 64, 4, 4
    return 128, columns, 8 if columns == 128 else 4, 3


class _Layers:
    """Layers of networks with these weights, (parts, *shape) by their names, on a plane with these `BoxConv.around`."""

    def __init__(self, weights: Mapping[str, torch.Tensor], around: Sequence[int]) -> None:
        self.weights, self.around = weights, [width > 0 for width in around]
        # TF32 where torch allows it for convolutions, otherwise three such products with the accuracy of float32.
        self.precision = "tf32" if rounds_to_tf32(torch.backends.cudnn) else "tf32x3"

    def block(self, name: str, fields: Sequence[_Field], *, wanted: Sequence[str] = FORMS) -> _Field:
        """Return a residual block of fields whose channels are joined."""
        inside = self.convolution(f"{name}.first", fields, wanted=("active",))
        return self.convolution(f"{name}.second", [inside], skip=fields, through=f"{name}.skip", wanted=wanted)

    def convolution(
        self, name: str, fields: Sequence[_Field], *, of: str = "active", stride: int = 1,
        finer: Sequence[int] | None = None, skip: Sequence[_Field] = (), through: str = "",
        wanted: Sequence[str] = FORMS,
    ) -> _Field:  # fmt: skip
        """Return the convolution of one or two fields whose channels are joined, plus what skips it.

        of : which form of the fields.
        finer : the grid that a transposed convolution leads to; None for any other.
        skip, through : fields that are added, by way of the pointwise layer of that name if there is one.
        wanted : forms of the result.
        """
        from .convolution_kernels import convolve

        up = finer is not None
        weight, bias = self._weight(name, transposed=up), self.weights[f"{name}.conv.bias"]
        mapped = f"{through}.conv.weight" in self.weights
        pointwise = self._weight(through) if mapped else bias
        shift = self.weights[f"{through}.conv.bias"] if mapped else bias
        one, two = getattr(fields[0], of), getattr(fields[-1], of)
        parts, batch, h, w = one.shape[:4]
        height, width = finer if up else (-(-h // stride), -(-w // stride))
        outputs, taps, phases = bias.shape[1], 2 if up else weight.shape[2], 4 if up else 1
        made = _Field(outputs, *(bias.new_empty(parts, batch, height, width, room(outputs)) if form in wanted else None
                                 for form in FORMS))  # fmt: skip
        pixels = batch * (-(-height // 2) * -(-width // 2) if up else height * width)
        rows, columns, warps, stages = _tile(parts * phases, pixels, outputs)
        depth = 32 if min(field.channels for field in fields) >= 32 else 16
        full = outputs % columns == 0 and not any(
            field.channels % depth for field in (*fields, *(skip if mapped else ()))
        )
        beside = [skip[0], skip[-1]] if skip else [_Field(0, one, None)] * 2
        convolve[(-(-pixels // rows) * -(-outputs // columns), parts, phases)](
            one, two, weight, bias, beside[0].plain, beside[1].plain, pointwise, shift,
            bias if made.plain is None else made.plain, bias if made.active is None else made.active, batch, h, w,
            height, width, outputs, fields[0].channels, fields[-1].channels, beside[0].channels, beside[1].channels,
            taps, stride, up, len(fields) > 1, len(skip) + mapped, made.plain is not None, made.active is not None,
            *self.around, full, of == "plain", rows, columns, depth, self.precision, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        return made

    def _weight(self, name: str, *, transposed: bool = False) -> torch.Tensor:
        """Return the weight as (parts, outputs, *taps, inputs): no copy where each lies with channels last."""
        weight = self.weights[f"{name}.conv.weight"]
        return (weight.permute(0, 2, 3, 4, 1) if transposed else weight.movedim(2, -1)).contiguous()
