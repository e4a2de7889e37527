"""Products within Triton kernels: how float32 is multiplied on tensor cores.

Every product accumulates in float32; PRECISION says how a float32 product is made: "tf32", or "tf32x3", three of
these, which has the accuracy of float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def near(x: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """Return x rounded to the ten bits after the point that TF32 keeps: tensor cores only cut the others off."""
    if PRECISION == "tf32" and x.dtype == tl.float32:
        x = (x.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)
    return x


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, total: tl.tensor | None, PRECISION: tl.constexpr) -> tl.tensor:
    """Return total + a b."""
    return tl.dot(near(a, PRECISION), near(b, PRECISION), total, input_precision=PRECISION)
