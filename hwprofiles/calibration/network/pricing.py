"""Link latencies from measured exchanges, and what a layer in either order then costs."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import polars as pl

from hwprofiles.calibration.fitting import STEPS
from hwprofiles.calibration.network.lab import Topology
from hwprofiles.calibration.network.orders import order_rows
from hwprofiles.calibration.network.switch import LinkSpec
from hwprofiles.cluster import Cluster
from hwprofiles.device import Device
from hwprofiles.efficiency import Band, Curves, EfficiencyCurve
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import kernel_rows
from hwprofiles.sourced import Sourced
from hwprofiles.tier import LinkTier
from hwprofiles.timing.rows import Array, Rows
from hwprofiles.timing.rules import RULES

FIXED_PARTS, LATENCY_PARTS = (0.2, 0.5, 0.8), (0.1, 0.4)
"""Where the searches for an operation's cost and the latencies begin, as parts of the shortest
time: one search alone stops where both explain the same rows."""


def lab_cluster(device: Device, topology: Topology) -> Cluster:
    """The topology as a cluster of this machine's device, links as the switch was told."""
    tiers = [_tier(topology.near, topology.ranks_per_node), _tier(topology.far, topology.ranks)]
    if topology.nodes == 1 or topology.ranks_per_node == 1:
        tiers = tiers[:1] if topology.nodes == 1 else tiers[1:]
    return Cluster(
        name=f"{device.name}-{topology.nodes}x{topology.ranks_per_node}"[:80],
        title=f"{topology.nodes} nodes of {topology.ranks_per_node} processes in network "
        f"namespaces on {device.title}",
        device=device,
        nodes=topology.nodes,
        devices_per_node=topology.ranks_per_node,
        tiers=tuple(tiers),
    )


def _tier(link: LinkSpec, spans: int) -> LinkTier:
    today = datetime.datetime.now(datetime.UTC).date()

    def told(value: float) -> Sourced[float]:
        return Sourced(
            value=value, source="set in the switch between the namespaces", date=today,
            certainty="datasheet",
        )  # fmt: skip

    return LinkTier(
        name=link.name, kind="ethernet", spans_devices=spans,
        bandwidth_bytes_per_s=told(link.bytes_per_s), latency_s=told(link.latency_s),
    )  # fmt: skip


def with_latencies(cluster: Cluster, table: pl.DataFrame) -> Cluster:
    """Give the tiers the latencies that measured all-to-alls show, software included.

    Mean |log(predicted / measured)| by coordinate search over the cost of an operation, each tier's
    latency and the share of the bandwidth; the predicted seconds are the product's own rule's.

    Args:
        cluster: links as the switch was told.
        table: measured `all_to_all` rows.

    Raises:
        MoesaicError: `outside_evidence` when there are fewer rows than unknowns.
    """
    rows = table.filter(pl.col("kernel") == "all_to_all")
    if rows.height < len(cluster.tiers) + 2:
        raise MoesaicError("outside_evidence", f"{rows.height} all-to-alls fit no two links")
    wanted = np.log(rows["median_s"].to_numpy())

    def loss(values: Sequence[float]) -> float:
        machine = _latent(cluster, values[2:])
        times = RULES["all_to_all"](Rows(rows), machine, _curve(values[0], values[1]))[0][1]
        return float(np.abs(np.log(times) - wanted).mean())

    least = float(rows["median_s"].to_numpy().min())
    starts = [
        [least * fixed, 0.9, *(least * part for _ in cluster.tiers)]
        for fixed, part in product(FIXED_PARTS, LATENCY_PARTS)
    ]
    best = min((_searched(start, loss) for start in starts), key=loss)
    return _latent(cluster, best[2:], "fitted to all-to-alls between the namespaces")


def _curve(fixed_s: float, share: float) -> EfficiencyCurve:
    held = min(share, 1.2)
    one = Band(low=held, typical=held, high=held)
    return EfficiencyCurve(compute=one, memory=one, link=one, fixed_s=fixed_s)


def _latent(
    cluster: Cluster, latencies: Sequence[float], source: str = "a trial of the fit"
) -> Cluster:
    today = datetime.datetime.now(datetime.UTC).date()
    tiers = tuple(
        tier.model_copy(
            update={"latency_s": Sourced(
                value=float(f"{seconds:.4g}"), source=source, date=today, certainty="measured"
            )}
        )
        for tier, seconds in zip(cluster.tiers, latencies, strict=True)
    )  # fmt: skip
    return cluster.model_copy(update={"tiers": tiers})


def _searched(start: list[float], loss: Callable[[Sequence[float]], float]) -> list[float]:
    best, least = list(start), loss(start)
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for index in range(len(best)):
                for factor in (step, 1 / step):
                    trial = [v * factor if i == index else v for i, v in enumerate(best)]
                    value = loss(trial)
                    if value < least * (1 - 1e-6):
                        best, least, improved = trial, value, True
    return best


def rows_seconds(
    rows: Sequence[Mapping[str, Any]], cluster: Cluster, curves: Curves
) -> tuple[Array, Array, Array]:
    """Low, typical and high seconds of kernel rows by the product's rules and fitted curves.

    Raises:
        MoesaicError: `outside_evidence` for a family that was not fitted.
    """
    table = kernel_rows(rows).with_row_index("_row")
    found = np.zeros((3, table.height))
    for (kernel,), part in table.group_by("kernel"):
        if kernel not in curves.families:
            raise MoesaicError("outside_evidence", f"no {kernel} was measured on this network")
        times, _ = RULES[str(kernel)](Rows(part), cluster, curves.families[str(kernel)])
        found[:, part["_row"].to_numpy()] = times
    return found[0], found[1], found[2]


def layer_s(row: Mapping[str, Any], order: str, cluster: Cluster, curves: Curves) -> float:
    """Typical seconds of one layer in an order: its rows one after the other.

    Ranks beyond one a core take turns, so that their products and copies last longer.
    """
    rows = order_rows(row, order)
    seconds = rows_seconds(rows, cluster, curves)[1]
    cores = cluster.device.cores_count
    turns = max(1.0, row["devices"] / cores.value) if cores else 1.0
    local = np.array([r["kernel"] != "all_to_all" for r in rows])
    return float((seconds * np.where(local, turns, 1.0)).sum())


def exchange_s(row: Mapping[str, Any], order: str, cluster: Cluster, curves: Curves) -> float:
    """Typical seconds of dispatch and combine of one layer."""
    rows = [r for r in order_rows(row, order) if r["kernel"] == "all_to_all"]
    return float(rows_seconds(rows, cluster, curves)[1].sum())


def straight_line(sizes: Array, seconds: Array) -> dict[str, float]:
    """Alpha and beta of seconds over bytes by least squares of relative errors, and R².

    >>> line = straight_line(np.array([1e3, 1e4, 1e5]), np.array([2e-3, 1.1e-2, 1.01e-1]))
    >>> [round(line[name], 6) for name in ("alpha_s", "beta_bytes_per_s", "r_squared_ratio")]
    [0.001, 1000000.0, 1.0]
    """
    weight = 1 / seconds
    system = np.stack([weight, sizes * weight], axis=1)
    (alpha, slope), *_ = np.linalg.lstsq(system, np.ones_like(seconds), rcond=None)
    off = seconds - alpha - slope * sizes
    spread = seconds - seconds.mean()
    return {
        "alpha_s": float(alpha),
        "beta_bytes_per_s": float(1 / slope),
        "r_squared_ratio": float(1 - (off @ off) / (spread @ spread)),
    }
