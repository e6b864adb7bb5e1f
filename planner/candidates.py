"""Every combination the rules allow, one row each: layouts, and layouts at a batch and phase."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import polars as pl

from hwprofiles.cluster import Cluster
from planner.expert_layout import USUAL_LAYOUT, ExpertLayout
from planner.moe_model import GqaAttention, MlaAttention, MoeModel
from planner.scenario import Choices, Scenario

LAYOUT: dict[str, type[pl.DataType]] = {
    "tp": pl.Float64,  # attention tensor parallel ranks
    "dp": pl.Float64,  # attention data parallel ranks
    "pp": pl.Float64,  # pipeline stages
    "moe_tp": pl.Float64,
    "moe_ep": pl.Float64,
    "devices": pl.Float64,  # of one worker: tp · dp · pp, and those of experts apart
}
POINT: dict[str, type[pl.DataType]] = LAYOUT | {
    "point": pl.UInt32,  # row number, the key of the work sheet
    "phase": pl.String,  # prefill | decode
    "batch": pl.Float64,  # sequences of one data-parallel rank in one forward pass
    "new_tokens": pl.Float64,  # tokens a sequence adds in one pass
    "past_tokens": pl.Float64,  # tokens a sequence has cached before the pass
    "context_tokens": pl.Float64,  # tokens a sequence may grow to while this worker holds it
    "osl": pl.Float64,  # tokens a request answers with
    "step_tokens": pl.Float64,  # tokens a decode step yields, accepted drafts counted
    "redundant_experts": pl.Float64,  # extra expert copies of a layer
    "node_devices": pl.Float64,  # devices of one node, where groups of ranks begin to cross
}
"""One forward pass to be priced. Prefill and decode are two values of `phase`."""
PASS = ("phase", "batch", "new_tokens", "past_tokens", "context_tokens")
"""The columns of a point that no layout decides."""
FP8_BLOCK = 128
"""Width of a weight scale block; moe_tp may not cut through one (DeepSeek-V3 config.json)."""
DECODE_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
PREFILL_TOKENS = 16_384
"""Prompt tokens one rank takes in one pass at most; more do not raise throughput."""


@dataclass(frozen=True)
class Layout:
    """How one worker's devices share the model."""

    tp: int
    dp: int
    pp: int
    moe_tp: int
    moe_ep: int
    away: int = 0
    """Devices that hold experts alone."""

    @property
    def devices(self) -> int:
        """Devices of one worker."""
        return self.tp * self.dp * self.pp + self.away


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, smallest first."""
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def broken_rule(
    layout: Layout, model: MoeModel, precision: str, redundant: int = 0,
    experts: ExpertLayout = USUAL_LAYOUT,
) -> str | None:  # fmt: skip
    """Name the rule that a layout breaks for this model, or none.

    >>> from planner.model_library import load_model
    >>> broken_rule(Layout(3, 1, 1, 1, 3), load_model("mixtral-8x7b"), "bf16")
    'tp 3 does not divide 32 query heads'
    """
    if layout.tp * layout.dp != layout.moe_tp * layout.moe_ep and not experts.apart:
        return (
            f"tp·dp = {layout.tp * layout.dp} is not moe_tp·moe_ep = "
            f"{layout.moe_tp * layout.moe_ep}"
        )
    if layout.pp > model.layer_count:
        return f"pp {layout.pp} is more than {model.layer_count} layers"
    return (
        _heads_rule(layout, model)
        or _shared_rule(layout, model, experts)
        or _experts_rule(layout, model, precision, (redundant, experts.shared_ranks))
    )


def _shared_rule(layout: Layout, model: MoeModel, experts: ExpertLayout) -> str | None:
    """Whether shared experts can lie where the expert layout puts them."""
    cut, away = experts.shared_tp, experts.shared_ranks
    if cut is None and not away:
        return None
    width = model.moe.shared_width if model.moe is not None else 0
    if not width:
        return f"{model.name} has no shared experts to put on ranks of their own"
    if away:
        fits = away < layout.moe_ep
        return None if fits else f"shared_ranks {away} leave none of moe_ep {layout.moe_ep}"
    ranks = layout.tp * layout.dp
    if cut and (cut % layout.tp or ranks % cut or width % cut):
        return (
            f"shared_tp {cut} must be a multiple of tp {layout.tp} and divide tp·dp {ranks} and "
            f"the shared width {width}"
        )
    return None


def _heads_rule(layout: Layout, model: MoeModel) -> str | None:
    for kind in model.kinds.values():
        part = kind.attention
        if isinstance(part, GqaAttention | MlaAttention) and part.heads % layout.tp:
            return f"tp {layout.tp} does not divide {part.heads} query heads"
        if isinstance(part, GqaAttention) and max(part.kv_heads, layout.tp) % min(
            part.kv_heads, layout.tp
        ):
            return f"tp {layout.tp} and {part.kv_heads} kv heads do not divide one another"
    return None


def _experts_rule(
    layout: Layout, model: MoeModel, precision: str, beside: tuple[int, int]
) -> str | None:
    """`beside`: expert copies, and expert-parallel ranks that hold shared experts instead."""
    moe, (redundant, away) = model.moe, beside
    if moe is None:
        if layout.moe_ep > 1:
            return "moe_ep is above 1 but the model has no experts"
        return None
    if (moe.experts + redundant) % (layout.moe_ep - away):
        named = f"moe_ep {layout.moe_ep}" + (f" less {away} shared_ranks" if away else "")
        return f"{named} does not divide {moe.experts + redundant} experts"
    if moe.width % layout.moe_tp:
        return f"moe_tp {layout.moe_tp} does not divide the expert width {moe.width}"
    if precision == "fp8_block" and layout.moe_tp > 1 and moe.width // layout.moe_tp % FP8_BLOCK:
        return f"moe_tp {layout.moe_tp} cuts the expert width {moe.width} inside an fp8 block"
    return None


def enumerate_layouts(scenario: Scenario) -> list[Layout]:
    """Every legal layout of one worker, tensor parallelism kept inside a node."""
    model, choices = scenario.model, scenario.choices
    precision = choices.precision or model.weights.routed
    copies, experts = scenario.variants()[0].redundant_experts, choices.layout
    layouts = _layouts_apart if experts.apart else _layouts_of
    return [
        layout
        for size in worker_sizes(scenario.cluster, scenario.limits.devices)
        for layout in layouts(size, scenario.cluster, choices, model.moe is not None)
        if broken_rule(layout, model, precision, copies, experts) is None
    ]


SPLITS = 8
"""Parts of a worker that go to attention or to experts, where those are apart."""


def _layouts_apart(size: int, cluster: Cluster, choices: Choices, moe: bool) -> list[Layout]:  # noqa: FBT001
    """Attention on some eighths of the devices, experts on the others."""
    part = max(size // SPLITS, 1)
    found = []
    for ranks in range(part, size, part) if moe else ():
        away = size - ranks
        tps = [t for t in divisors(ranks) if _allowed(t, choices.tp)]
        eps = [e for e in divisors(away) if _allowed(e, choices.moe_ep)]
        for tp, ep in itertools.product(tps, eps):
            if tp <= cluster.devices_per_node and _allowed(away // ep, choices.moe_tp):
                found.append(Layout(tp, ranks // tp, 1, away // ep, ep, away))
    return found


def worker_sizes(cluster: Cluster, limit: int | None) -> list[int]:
    """Devices a worker may have: a divisor of a node, or whole nodes."""
    most = min(cluster.device_count, limit or cluster.device_count)
    inside = divisors(cluster.devices_per_node)
    nodes = [n * cluster.devices_per_node for n in divisors(cluster.nodes)]
    return sorted({size for size in (*inside, *nodes) if size <= most})


def _layouts_of(size: int, cluster: Cluster, choices: Choices, moe: bool) -> list[Layout]:  # noqa: FBT001
    found = []
    for pp in (p for p in divisors(size) if _allowed(p, choices.pp)):
        ranks = size // pp
        tps = [t for t in divisors(ranks) if _allowed(t, choices.tp)]
        eps = [e for e in divisors(ranks) if _allowed(e, choices.moe_ep)] if moe else [1]
        for tp, ep in itertools.product(tps, eps):
            moe_tp = ranks // ep
            if tp <= cluster.devices_per_node and _allowed(moe_tp, choices.moe_tp):
                found.append(Layout(tp, ranks // tp, pp, moe_tp, ep))
    return found


def _allowed(value: int, choice: tuple[int, ...] | None) -> bool:
    return choice is None or value in choice


def layout_frame(layouts: list[Layout]) -> pl.DataFrame:
    """Layouts as a table with the columns of `LAYOUT`."""
    columns = {name: [float(getattr(layout, name)) for layout in layouts] for name in LAYOUT}
    return pl.DataFrame(columns, schema=LAYOUT)


def phase_points(layouts: pl.DataFrame, scenario: Scenario) -> pl.DataFrame:
    """Every pass worth pricing: each layout at each prefill and decode batch, columns `POINT`."""
    work, choices = scenario.workload, scenario.choices
    fresh, long = work.isl - work.cached_tokens, work.moments
    prefill = [b for b in (1, 2, 4, 8, 16) if b == 1 or b * fresh <= PREFILL_TOKENS]
    decode = choices.batch or DECODE_BATCHES
    passes = pl.DataFrame(
        [("prefill", b, fresh, work.cached_tokens, work.isl) for b in prefill]
        + [("decode", b, 1 + choices.mtp_tokens, long.past, long.grown) for b in decode],
        schema={name: POINT[name] for name in PASS},
        orient="row",
    )
    shared = {
        "osl": work.osl,
        "step_tokens": tokens_per_step(choices.mtp_tokens, choices.mtp_acceptance),
        "redundant_experts": scenario.variants()[0].redundant_experts,
        "node_devices": scenario.cluster.devices_per_node,
    }
    columns = [pl.lit(float(value)).alias(name) for name, value in shared.items()]
    if work.lengths is not None:
        columns.append(pl.lit(fresh * long.long_isl / long.isl).alias("prompt_tokens"))
    return number(layouts.join(passes, how="cross").with_columns(columns))


def tokens_per_step(drafts: int, acceptance: float) -> float:
    """Tokens a decode step yields: one, and each draft that is accepted with all before it.

    >>> tokens_per_step(1, 0.9)
    1.9
    """
    return sum(acceptance**i for i in range(drafts + 1))


def number(points: pl.DataFrame) -> pl.DataFrame:
    """Give every point its key and the column order of `POINT`."""
    keyed = points.drop("point", strict=False).with_row_index("point")
    return keyed.select(*POINT, *(c for c in keyed.columns if c not in POINT))
