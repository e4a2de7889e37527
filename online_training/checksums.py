"""CRC-32 of data put together from parts whose checksums are known, without reading a byte again."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

# Polynomials over GF(2) modulo that of CRC-32, as zlib holds them: bit 31 is the coefficient of x^0.
_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31
_X = 1 << 30


def _multiply(a: int, b: int) -> int:
    product, bit = 0, _ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def _power_of_x(exponent: int) -> int:
    power, square = _ONE, _X
    while exponent:
        if exponent & 1:
            power = _multiply(square, power)
        square = _multiply(square, square)
        exponent >>= 1
    return power


@lru_cache(maxsize=256)
def _append(length: int) -> tuple[list[int], ...]:
    """Return what `length` more bytes make of a checksum, as tables for its four bytes: the map is linear."""
    factor = _power_of_x(8 * length)
    tables = []
    for shift in (0, 8, 16, 24):
        table = [0]
        for bit in range(shift, shift + 8):
            image = _multiply(factor, 1 << bit)
            table += [image ^ entry for entry in table]
        tables.append(table)
    return tuple(tables)


def combine(parts: Iterable[tuple[int, int]]) -> int:
    """Return the CRC-32 of parts put one behind the other, each given as (its CRC-32, its length in bytes)."""
    whole = 0
    for crc, length in parts:
        a, b, c, d = _append(length)
        whole = a[whole & 255] ^ b[whole >> 8 & 255] ^ c[whole >> 16 & 255] ^ d[whole >> 24] ^ crc
    return whole
