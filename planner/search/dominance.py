"""Which candidates the pool programme needs to see, and which of equals it should have taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Ints = NDArray[np.int64]
ROLES = ("agg", "decode", "prefill")
"""In the order of the alphabet, which candidates are sorted in."""


def undominated(
    table: pl.DataFrame, concurrency: int | None, seconds: pl.Expr | None = None
) -> pl.DataFrame:
    """Keep, for each role and device count, the candidates no other beats in rate and inflight.

    Exact: limits are checked before, and the programme sees only devices, rate and inflight. With a
    given concurrency a smaller inflight can serve faster, so every inflight keeps its best. Where
    the programme sees `seconds` too, a slower candidate of shorter requests is kept.
    """
    keys = ["machine", "model_variant", "role", "devices"] + ["inflight"] * (
        concurrency is not None
    )
    if seconds is None:
        places = [_roles(table) if key == "role" else table[key].to_numpy() for key in keys]
        rate, row = table["request_rate_typical"].to_numpy(), table["row"].to_numpy()
        order = np.lexsort((row, -rate, *reversed(places)))
        ordered = np.array([place[order] for place in places])
        first = np.ones(len(order), dtype=bool)
        first[1:] = (np.diff(ordered, axis=1) != 0).any(axis=0)
        kept: pl.DataFrame = table[order[first]]
        return kept
    timed = table.with_columns(seconds.alias("seconds"))
    best_first = timed.sort(*keys, "request_rate_typical", "seconds", "row",
                            descending=[False] * len(keys) + [True, False, False])  # fmt: skip
    before = pl.col("seconds").cum_min().shift(1).over(keys)
    return best_first.filter(before.is_null() | (pl.col("seconds") < before)).drop("seconds")


def _roles(table: pl.DataFrame) -> Ints:
    """Place of each candidate's role in `ROLES`."""
    places = np.zeros(table.height, dtype=np.int64)
    for number, role in enumerate(ROLES[1:], start=1):
        places[(table["role"] == role).to_numpy()] = number
    return places


class Equals:
    """Candidates that could stand in for one another, column by column."""

    def __init__(self, allowed: pl.DataFrame) -> None:
        self._held = {name: allowed[name].to_numpy() for name in SWAPPED}
        self._roles = _roles(allowed)

    def quickest(self, row: dict[str, Any], rate: float) -> int:
        """The candidate of least latency that serves as much in a row's place on its devices.

        Args:
            row: a candidate of the serving table.
            rate: requests per second that a worker must serve at least.
        """
        held, prefill = self._held, row["role"] == "prefill"
        equal = (self._roles == ROLES.index(row["role"])) & (held["request_rate_typical"] >= rate)
        for name in ("machine", "model_variant", "devices"):
            equal &= held[name] == row[name]
        if not prefill:
            equal &= held["inflight"] >= row["inflight"]
        latency = held["ttft_s_typical" if prefill else "tpot_s_typical"]
        found = np.flatnonzero(equal)
        best = found[np.lexsort((held["row"][found], latency[found]))[0]]
        return int(held["row"][best])


SWAPPED = (
    "row", "machine", "model_variant", "devices", "inflight",
    "request_rate_typical", "ttft_s_typical", "tpot_s_typical",
)  # fmt: skip
"""What an exchange of equals looks at, beside the role."""
