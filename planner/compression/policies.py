"""Routing policies that run fewer experts a token: null experts, a skipped second, vectors."""

from __future__ import annotations

from dataclasses import replace

from hwprofiles.errors import MoesaicError
from planner.compression.experts import ExpertTable


def null_expert_load(experts: int, null_experts: int, top_k: int) -> float:
    """Expected true experts a token when all outputs are used alike (AdaMoE, arXiv:2406.13233).

    >>> round(null_expert_load(8, 8, 3), 3)
    1.5
    """
    if experts < 1 or null_experts < 0 or not 1 <= top_k <= experts + null_experts:
        raise MoesaicError("invalid", "top_k lies in 1 to experts plus null experts", "/top_k")
    return top_k * experts / (experts + null_experts)


def with_load(table: ExpertTable, load: float, *, null_experts: int = 0) -> ExpertTable:
    """Run `load` experts a token on average, with router rows for null experts.

    Stored bytes do not change. At batch one, moved bytes and FLOPs fall with the load; in a large
    batch nearly every expert is still read.

    Raises:
        MoesaicError: `invalid` for a load that is not positive.
    """
    if not 0 < load <= table.block.experts:
        raise MoesaicError("invalid", f"a load of {load} experts a token is out of range", "/load")
    return replace(
        table, experts_per_token=load, router_rows=table.router_rows + null_experts
    ).noted("experts a token vary: the mean drives FLOPs, the spread drives imbalance")


def skipped_share(
    below_ratio: float, protected_ratio: float, pruned_layers: int, layers: int
) -> float:
    """Share of expert runs that online pruning drops at top-2 (MC-MoE, arXiv:2410.06270, 3.3).

    The second expert is dropped where the ratio of the two routing weights is below the layer's
    threshold and the token is not protected.

    Args:
        below_ratio: share of tokens with the ratio below the threshold.
        protected_ratio: share of tokens never pruned.
        pruned_layers: layers that prune.
        layers: layers with experts.
    """
    if not (0 <= below_ratio <= 1 and 0 <= protected_ratio <= 1):
        raise MoesaicError("invalid", "shares lie between 0 and 1")
    if not 0 <= pruned_layers <= layers or layers < 1:
        raise MoesaicError("invalid", f"{pruned_layers} of {layers} layers cannot prune")
    return 0.5 * below_ratio * (1 - protected_ratio) * pruned_layers / layers


def latency_linear_in_k(
    known: tuple[tuple[float, float], tuple[float, float]], k: float, overhead_ratio: float = 0.0
) -> float:
    """Seconds at k experts from two measured points, with the vectors' overhead on top.

    Args:
        known: two pairs of experts a token and seconds.
        k: experts a token, within the two.
        overhead_ratio: what auxiliary vectors add, measured.

    Raises:
        MoesaicError: `outside_evidence` beyond the two points.
    """
    (k1, t1), (k2, t2) = sorted(known)
    if k1 == k2:
        raise MoesaicError("invalid", "two points at the same k give no line")
    if not k1 <= k <= k2:
        raise MoesaicError("outside_evidence", f"measured from k={k1:g} to {k2:g}, asked {k:g}")
    return (t1 + (t2 - t1) * (k - k1) / (k2 - k1)) * (1 + overhead_ratio)
