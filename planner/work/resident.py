"""Which experts a device keeps and how often a chosen one is not there, pass by pass."""

from __future__ import annotations

import numpy as np
import polars as pl

from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeModel
from planner.offload import Offload, offload_fit
from planner.routing.cached import miss_ratio, use_probability
from planner.work.memory import MEMORY

RESIDENT, MISSED = "resident_share", "missed_share"
"""Routed experts that the device keeps; uses of experts that it does not keep."""
WORKER = ("line", "tp", "dp", "pp", "moe_tp", "moe_ep")
"""What passes of one worker have in common: its device holds the widest of them."""
GIB = 2.0**30


def keep_experts(
    sized: pl.DataFrame, model: MoeModel, offload: Offload, limit_bytes: float
) -> pl.DataFrame:
    """Leave of the routed experts what the device keeps, and say how often a use misses it.

    Args:
        sized: columns `POINT`, `LOAD` and `MEMORY`, everything counted as resident.
        model: the model.
        offload: where experts lie.
        limit_bytes: memory that weights, cache and buffers may fill.

    Returns:
        `sized` with `RESIDENT`, `MISSED`, `routed_bytes` and `total_bytes` of what stays.

    Raises:
        MoesaicError: `infeasible` where not even the rest fits; `invalid` for a dense model.
    """
    if model.moe is None:
        raise MoesaicError("invalid", f"{model.name} has no experts to offload", "/offload")
    routed = sized["routed_bytes"].to_numpy()
    widest = pl.col("activation_bytes").max().over([c for c in WORKER if c in sized.columns])
    grown = sized.select(widest - pl.col("activation_bytes")).to_series().to_numpy()
    rest = sized["total_bytes"].to_numpy() - routed + grown
    if rest.min() > limit_bytes:
        raise MoesaicError(
            "infeasible",
            f"without its experts the model needs {rest.min() / GIB:.2f} GiB of memory; "
            f"{limit_bytes / GIB:.2f} GiB may be used", "/offload/memory_bytes",
        )  # fmt: skip
    stated = offload.resident_share
    if stated is None and offload.host is not None:
        stated = 0.0
    _check_host(offload, float(routed.max()))
    fitting = np.clip((limit_bytes - rest) / routed, 0.0, 1.0)
    share = fitting if stated is None else np.full_like(fitting, stated)
    kept = sized.with_columns(
        pl.Series(RESIDENT, share), pl.Series("routed_bytes", routed * share),
        pl.Series(MISSED, _missed(sized, model, offload, share)),
    )  # fmt: skip
    return kept.with_columns(pl.sum_horizontal(MEMORY).alias("total_bytes"))


def _check_host(offload: Offload, routed_bytes: float) -> None:
    if offload.host is None:
        return
    room = offload.host.device_count * offload.host.device.capacity_bytes
    if routed_bytes > room:
        raise MoesaicError(
            "infeasible",
            f"the experts need {routed_bytes / GIB:.0f} GiB; the memory of host "
            f"{offload.host.name} is {room / GIB:.0f} GiB", "/offload/host",
        )  # fmt: skip


def _missed(
    sized: pl.DataFrame, model: MoeModel, offload: Offload, share: np.ndarray
) -> np.ndarray:
    moe = model.moe
    if offload.miss_ratio is not None or moe is None:
        return np.where(share < 1, offload.miss_ratio or 0.0, 0.0)
    exponent = offload_fit().popularity_exponent
    local = np.maximum(moe.experts / sized["moe_ep"].to_numpy(), 1).round()
    keys = np.stack([local, sized["active_experts"].to_numpy(), share], axis=1)
    distinct, back = np.unique(keys.round(6), axis=0, return_inverse=True)
    found = [
        miss_ratio(use_probability(int(count), chosen, exponent), kept)
        for count, chosen, kept in distinct
    ]
    return np.array(found)[back.ravel()]
