"""Measured beside predicted: straight lines of seconds over bytes, and both orders of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from hwprofiles.calibration.network.orders import ORDERS, message_bytes
from hwprofiles.calibration.network.pricing import exchange_s, layer_s, straight_line
from hwprofiles.cluster import Cluster
from hwprofiles.document import Document
from hwprofiles.efficiency import Curves
from hwprofiles.units import Bytes, BytesPerS, Ratio, Seconds

SMALL_BYTES = 32 * 1024
"""Below this size an operation's cost in software outweighs its bytes."""
Record = Mapping[str, Any]


class LineFit(Document):
    """Seconds of one group's all-to-alls as alpha + bytes / beta."""

    devices: int
    nodes: int
    alpha_s: Seconds
    beta_bytes_per_s: BytesPerS
    r_squared_ratio: Ratio
    fitted_count: int
    held_out_count: int
    error_median_ratio: Ratio
    """Median of |line / measured - 1| over sizes that were not fitted."""
    error_p90_ratio: Ratio


class OrderCheck(Document):
    """One layer in both orders: seconds measured and predicted, and their quotient."""

    tokens: int
    hidden: int
    latent: int
    top_k: int
    devices: int
    nodes: int
    cdac_bytes: Bytes
    dcca_bytes: Bytes
    cdac_s: Seconds
    dcca_s: Seconds
    cdac_predicted_s: Seconds
    dcca_predicted_s: Seconds
    cdac_exchange_s: Seconds | None = None
    """Dispatch and combine alone: twice the all-to-all measured apart."""
    dcca_exchange_s: Seconds | None = None
    cdac_exchange_predicted_s: Seconds
    dcca_exchange_predicted_s: Seconds

    def quotient(self, part: str = "") -> tuple[float, float]:
        """DCCA over CDAC, measured and predicted; `part` is "" (layer) or "exchange_"."""
        made, told = f"{part}s", f"{part}predicted_s"
        return (
            getattr(self, f"dcca_{made}") / getattr(self, f"cdac_{made}"),
            getattr(self, f"dcca_{told}") / getattr(self, f"cdac_{told}"),
        )


def line_fits(table: pl.DataFrame, held_out: pl.DataFrame) -> tuple[LineFit, ...]:
    """A line for each group, judged on sizes that were not fitted."""
    found = []
    exchanges = table.filter(pl.col("kernel") == "all_to_all")
    for (devices, nodes), part in exchanges.group_by("devices", "nodes", maintain_order=True):
        sizes, seconds = part["message_bytes"].to_numpy(), part["median_s"].to_numpy()
        if len(sizes) < 3:  # noqa: PLR2004 - a line with something left over
            continue
        line = straight_line(sizes, seconds)
        apart = held_out.filter((pl.col("devices") == devices) & (pl.col("nodes") == nodes))
        told = line["alpha_s"] + apart["message_bytes"].to_numpy() / line["beta_bytes_per_s"]
        off = np.abs(told / apart["median_s"].to_numpy() - 1)
        found.append(
            LineFit(
                devices=_whole(devices), nodes=_whole(nodes), **line,
                fitted_count=len(sizes), held_out_count=len(off),
                error_median_ratio=float(np.median(off)) if len(off) else 0.0,
                error_p90_ratio=float(np.quantile(off, 0.9)) if len(off) else 0.0,
            )
        )  # fmt: skip
    return tuple(found)


def _whole(value: object) -> int:
    return round(float(str(value)))


def checked_orders(
    layers: Sequence[Record], exchanges: Sequence[Record], cluster: Cluster, curves: Curves
) -> tuple[OrderCheck, ...]:
    """Set each layer that was measured in both orders beside its prediction.

    Args:
        layers: records of `gloo-cdac` and `gloo-dcca`.
        exchanges: all-to-alls measured on their own, in no fit.
        cluster: links with their fitted latencies.
        curves: fitted to other sizes.
    """
    by_layer: dict[tuple[int, ...], dict[str, Record]] = {}
    for record in layers:
        order = str(record["backend"]).removeprefix("gloo-")
        by_layer.setdefault(_key(record), {})[order] = record
    alone = {
        (r["devices"], r["nodes"], float(r["message_bytes"])): 2 * r["median_s"] for r in exchanges
    }
    return tuple(
        _check(orders, alone, cluster, curves)
        for orders in by_layer.values()
        if set(orders) == set(ORDERS)
    )


def _key(record: Record) -> tuple[int, ...]:
    names = ("devices", "nodes", "hidden", "inter", "tokens", "top_k")
    return tuple(int(record[name]) for name in names)


def _check(
    orders: Mapping[str, Record], alone: Mapping[tuple[int, int, float], float], cluster: Cluster,
    curves: Curves,
) -> OrderCheck:  # fmt: skip
    row = orders["cdac"]
    facts: dict[str, Any] = {}
    for order in ORDERS:
        size = message_bytes(row, order)
        facts |= {
            f"{order}_bytes": size,
            f"{order}_s": orders[order]["median_s"],
            f"{order}_predicted_s": layer_s(row, order, cluster, curves),
            f"{order}_exchange_s": alone.get((row["devices"], row["nodes"], size)),
            f"{order}_exchange_predicted_s": exchange_s(row, order, cluster, curves),
        }
    return OrderCheck(
        tokens=row["tokens"], hidden=row["hidden"], latent=row["inter"], top_k=row["top_k"],
        devices=row["devices"], nodes=row["nodes"], **facts,
    )  # fmt: skip
