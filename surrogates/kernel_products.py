"""Products within Triton kernels: how float32 is multiplied on tensor cores.

Every product accumulates in float32; PRECISION says how a float32 product is made: "tf32", or "tf32x3", three of
these, which has the accuracy of float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def near(x: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """Return x rounded to the ten bits after the point that TF32 keeps: tensor cores only cut the others off.

    What is no number stays none: a GPU's own NaN, all ones, would be carried over into a zero.
    """
    if PRECISION == "tf32" and x.dtype == tl.float32:
        x = tl.where(x == x, (x.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True), x)
    return x


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, total: tl.tensor | None, PRECISION: tl.constexpr) -> tl.tensor:
    """Return total + a b."""
    return tl.dot(near(a, PRECISION), near(b, PRECISION), total, input_precision=PRECISION)


@triton.jit
def outer(a: tl.tensor, b: tl.tensor, total: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """Return total + a^T b, a sum over rows.

    Tensor cores of an H100 take TF32 only with neighbours along the sum, and rows would have to be written one number
    at a time. Two numbers of 16 bits, which together keep 16 bits after the point to TF32's ten, they take as they lie.
    """
    if PRECISION == "tf32" and b.shape[1] >= 64:
        a_high, b_high = a.to(tl.bfloat16), b.to(tl.bfloat16)
        a_low, b_low = (a - a_high.to(tl.float32)).to(tl.bfloat16), (b - b_high.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(tl.trans(a_high), b_high, total)
        total = tl.dot(tl.trans(a_low), b_high, total)
        total = tl.dot(tl.trans(a_high), b_low, total)
    else:
        total = dot(tl.trans(a), b, total, PRECISION)
    return total
