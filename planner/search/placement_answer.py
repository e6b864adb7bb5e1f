"""What a placement answers: the layout, how good it is, and how good any could be."""

from __future__ import annotations

from typing import Literal

from hwprofiles.document import Document
from planner.search.reasons import Explained, Status, status_of


class LayerPlacement(Document):
    """How one layer is balanced: on the worst trace, or on the mean load where that was asked."""

    layer: int
    max_over_mean_before: float  # unit: ratio
    max_over_mean: float  # unit: ratio
    bound: float  # unit: ratio
    gap_ratio: float


class LayerTraffic(Document):
    """What crosses between nodes in one layer."""

    layer: int
    crossing: float
    """Nodes beside its own that a token visits; or the share of pairs that leave their node."""
    crossing_before: float
    """The same of the layout that is only balanced."""
    bound: float
    """No layout within the limit on the busiest device crosses less."""
    gap_ratio: float
    """Share of the crossings that the bound does not prove necessary."""
    greedy: float
    """Experts largest first onto the node where they save most, load not looked at."""
    greedy_max_over_mean: float  # unit: ratio
    """The fullest node of that greedy, over what its devices should carry."""


class Greedy(Document):
    """The published balancing on the same question, for comparison."""

    max_over_mean: tuple[float, ...]


class Moves(Document):
    """Layers joined by one budget of moves: the sum of their busiest over mean, and its bound."""

    max_over_mean_sum: float  # unit: ratio
    bound: float  # unit: ratio
    gap_ratio: float
    moved_bytes: float


class Placement(Explained):
    """The layout and how good it can be at best."""

    status: Status
    """Optimal: every gap is proven to be nothing."""
    objective_value: float  # unit: busiest over mean; visits or share of pairs; their weighted sum
    """Mean over layers of busiest over mean; of what crosses where traffic is minimised; or their
    weighted sum. Reasons are given in it."""

    physical_to_logical_map: tuple[tuple[int, ...], ...]
    """Layers x slots; device d has slots d·width … (d + 1)·width - 1. Dense layers are in order."""
    layers: tuple[LayerPlacement, ...]
    cross_node_share: float
    """Token-expert pairs that leave their node when a copy in the node is preferred."""
    moves: int
    """Slots whose expert is not yet on that device, against `current` or experts in order."""
    solve_s: float
    greedy: Greedy
    scored: tuple[LayerPlacement, ...] = ()
    """The same layout on another load, beside `scored_greedy`."""
    scored_greedy: Greedy | None = None
    traffic: tuple[LayerTraffic, ...] = ()
    traffic_measure: Literal["", "pairs", "visits"] = ""
    groups: tuple[tuple[int, ...], ...] = ()
    """Group of each expert by layer, where it was asked which experts form a group."""
    redundant: tuple[int, ...] = ()
    """Copies of each layer beyond one an expert, where that was decided."""
    move_budget: Moves | None = None
    time_limit_reached: bool = False
    """The layout is the best found in time; gaps say how far from the bound it is."""


def proof_of(
    objective: str, weight: float, layers: tuple[LayerPlacement, ...],
    traffic: tuple[LayerTraffic, ...], moves: Moves | None,
) -> dict[str, object]:  # fmt: skip
    """Status and value of the objective, from what is known of the layers.

    Args:
        objective: as the question names it.
        weight: of traffic in a weighted sum.
        layers: balance of each.
        traffic: of each, where it was asked.
        moves: what joins the layers, where it was asked.
    """
    balance = sum(layer.max_over_mean for layer in layers) / len(layers)
    crossing = sum(layer.crossing for layer in traffic) / max(len(traffic), 1)
    value = {"lexicographic": crossing, "weighted": balance + weight * crossing}
    gaps = [layer.gap_ratio for layer in layers] if objective != "lexicographic" else []
    gaps += [layer.gap_ratio for layer in traffic]
    if moves is not None:
        gaps = [moves.gap_ratio]
    return {
        "status": status_of(max(gaps, default=1.0)),
        "objective_value": value.get(objective, balance) if traffic else balance,
    }
