"""Time of a decode step with low-bit experts: fewer bytes are not as much faster.

A step dequantises what it reads: t / t16 = fixed + slope · bytes / bytes16, both numbers from
published runs (MC-MoE, arXiv:2410.06270). Dividing bytes by bandwidth would promise 5.8 times the
speed where 1.6 to 1.9 was measured. Merging experts changes no work, so no time either, unless the
router loses rows and the loop over experts gets shorter (M-SMoE, arXiv:2310.01334, Table A10).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from hwprofiles.document import Document, parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document
from hwprofiles.sourced import Sourced
from hwprofiles.units import Ratio

FILE = Path(__file__).with_suffix(".yaml")


class DecodeTime(Document):
    """The line that low-bit steps lie on."""

    schema_version: Literal[1] = 1
    fixed_ratio: Sourced[Ratio]
    bytes_ratio: Sourced[Ratio]


@cache
def line() -> DecodeTime:
    """The shipped line."""
    return parse_as(DecodeTime, read_document(FILE), what=FILE.name)


def low_bit_time_ratio(moved_ratio: float) -> float:
    """Seconds of a step with dequantised experts over one in 16 bits, at batch 1.

    >>> round(1 / low_bit_time_ratio(4.53 / 26.31), 2)
    1.63

    Args:
        moved_ratio: bytes read for a token over those in 16 bits.

    Raises:
        MoesaicError: `outside_evidence` for more bytes than half (8 bits run without this cost).
    """
    if not 0 < moved_ratio <= 0.5:  # noqa: PLR2004 - half of 16 bits
        raise MoesaicError(
            "outside_evidence",
            f"low-bit steps were measured at 0.10 to 0.17 of the bytes, asked {moved_ratio:.2f}; "
            "8-bit formats are priced by `moesaic time`",
        )
    return line().fixed_ratio.value + line().bytes_ratio.value * moved_ratio


def expert_loop_s(known: tuple[tuple[int, float], tuple[int, float]], experts: int) -> float:
    """Seconds that a loop over a layer stack's experts adds, from two measured numbers of experts.

    Engines without grouped kernels launch every expert of the router, chosen or not.

    Args:
        known: two pairs of experts in the loop and seconds beyond the dense model.
        experts: router rows of a layer.

    Raises:
        MoesaicError: `invalid` for two equal points.
    """
    (few, first_s), (many, second_s) = sorted(known)
    if few == many:
        raise MoesaicError("invalid", "two runs of equally many experts give no line")
    return first_s + (second_s - first_s) * (experts - few) / (many - few)
