"""Stored bits a weight of every low-bit format, scales and zero points counted."""

from __future__ import annotations

from hwprofiles.errors import unknown_name
from hwprofiles.kernels import DTYPES

GROUP = 128
SCALE_BITS = 16
BITS_PER_BYTE = 8

GROUPED: dict[str, tuple[int, int]] = {
    f"{method}{bits}": (bits, GROUP) for method in ("hqq", "gptq") for bits in (1, 2, 3, 4, 8)
}
"""Weight bits and group size: a 16-bit scale and a zero point of the weight's own bits a group."""


def stored_bits(name: str) -> float:
    """Bits a weight takes in a format.

    >>> stored_bits("hqq2")
    2.140625
    >>> stored_bits("q4_0")
    4.5

    Args:
        name: `hqq1` … `gptq8` (HQQ and GPTQ with groups of 128), or a key of `DTYPES`.

    Raises:
        MoesaicError: `unknown_name`.
    """
    if name in GROUPED:
        bits, group = GROUPED[name]
        return bits + (SCALE_BITS + bits) / group
    if name not in DTYPES:
        raise unknown_name("format", name, (*GROUPED, *DTYPES))
    return DTYPES[name].weight_bytes * BITS_PER_BYTE
