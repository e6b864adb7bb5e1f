"""What every runner offers: build the work of a kernel row, run it, and time one cold call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hwprofiles.calibration.environment import Environment
from hwprofiles.errors import MoesaicError

Row = Mapping[str, object]


@dataclass(frozen=True)
class Prepared:
    """One kernel row made ready: buffers are filled, only the timed work is left."""

    run: Callable[[], object]
    before: Callable[[], object] | None = None
    """What has to happen before each call and is not timed (dropping a file from the cache)."""
    close: Callable[[], object] | None = None


class Runner(Protocol):
    """One kind of hardware with one library on it."""

    name: str
    """Backend name in measurements: numpy, torch-cuda, torch-npu, recorded."""
    version: str
    families: frozenset[str]
    """Kernel families it can run."""
    tiers: tuple[str | None, ...]
    """Where its copies come from; none: inside the memory it works in."""

    def environment(self) -> Environment:
        """Fingerprint of the machine and the libraries."""

    def prepare(self, row: Row) -> Prepared:
        """Allocate and fill what a kernel row needs.

        Raises:
            MoesaicError: `outside_evidence` when this runner cannot run the row, with the reason.
        """

    def sample(self, prepared: Prepared) -> float:
        """Seconds of one call that starts with cold caches."""

    def synchronise(self) -> None:
        """Wait until everything started has ended."""


def number(row: Row, column: str, default: float | None = None) -> float:
    """A size of a kernel row.

    Raises:
        MoesaicError: `invalid` when it is missing and has no default.
    """
    value = row.get(column)
    if value is None:
        if default is None:
            raise MoesaicError("invalid", f"{row.get('kernel')} needs {column}", f"/{column}")
        return default
    return float(str(value))


def whole(row: Row, column: str, default: float | None = None) -> int:
    """A size of a kernel row as an integer."""
    return round(number(row, column, default))


def cannot(runner: str, what: str) -> MoesaicError:
    """Say that a runner cannot run something."""
    return MoesaicError("outside_evidence", f"the {runner} runner cannot run {what}")


def token_split(pairs: int, active: int) -> list[int]:
    """Token-expert pairs of each active expert, as even as whole numbers allow.

    >>> token_split(10, 4)
    [3, 3, 2, 2]
    """
    base, rest = divmod(pairs, active)
    return [base + (index < rest) for index in range(active)]


def expert_split(row: Row) -> tuple[int, list[int]]:
    """Experts stored on the rank, and the pairs of each that has any.

    The busiest rank of a balanced or skewed group: `busy_ratio` scales its pairs, `active_experts`
    says how many experts share them; by default as many as there are pairs.
    """
    ranks = number(row, "moe_ep", 1)
    stored = max(1, round(number(row, "experts") / ranks))
    mean = number(row, "tokens") * number(row, "top_k") / ranks
    pairs = max(1, round(mean * number(row, "busy_ratio", 1)))
    active = min(stored, pairs, whole(row, "active_experts", stored))
    return stored, token_split(pairs, max(1, active))
