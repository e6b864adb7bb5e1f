"""One forward pass as a question: a layer's seconds from the timed sheet, played in micro-batches.

The batch is priced whole, to run in a row, and divided, to run side by side: divided it reads its
weights again, which is what micro-batches cost, and hides its exchange, which is what they give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import polars as pl
from pydantic import Field

from hwprofiles.cluster import Cluster
from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document
from hwprofiles.kernels import COLLECTIVES, EXCHANGES
from hwprofiles.timing.profile import FOLDER
from hwprofiles.units import Share
from planner.candidates import POINT, Layout, number
from planner.pricing import Priced, Question, price
from planner.quantities import Estimate
from planner.simulation.layer_pipeline import Cores, LayerSeconds, PassResult, simulate_pass
from planner.simulation.priced import PricedQuestion, check_layout, spare_experts
from planner.timing.step import weakest_source

SIDES = ("low", "typical", "high")
PARTS = {
    "dispatch": "dispatch", "combine": "combine", "shared": "shared", "experts": "experts",
    "dense": "once", "head": "once", "pipeline": "once",
}  # fmt: skip
"""Stage of the sheet: part of a MoE layer, or what a pass pays once; the rest is attention's."""
Count = Annotated[int, Field(ge=1, le=65_536)]
Tokens = Annotated[float, Field(ge=0, le=1e8)]


class PassLayout(Document):
    """How one worker's devices share the model."""

    tp: Count = 1
    dp: Count = 1
    moe_tp: Count | None = None
    moe_ep: Count | None = None


class PassQuestion(PricedQuestion):
    """One forward pass of a worker, whole and in micro-batches."""

    schema_version: Literal[1] = 1
    kind: Literal["pass"] = "pass"
    name: Annotated[str, Field(max_length=200)] = "pass"
    layout: PassLayout = PassLayout()
    phase: Literal["prefill", "decode"] = "decode"
    batch: Count
    """Sequences of one data-parallel rank."""
    new_tokens: Annotated[float, Field(gt=0, le=1e8)] = 1.0
    """Tokens a sequence adds: its prompt, or 1 and the speculated ones."""
    past_tokens: Tokens = 0.0
    """Tokens a sequence has cached before."""
    micro_batches: Annotated[int, Field(ge=1, le=16)] = 2
    ranks: Annotated[int, Field(ge=1, le=64)] = 2
    """Ranks played: the one with most tokens for its experts, the others with the average."""
    ranks_per_link: Annotated[int, Field(ge=1, le=64)] = 1
    """Ranks that share one way out."""
    attention_cores_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Micro-batches run attention on this share of each device's cores and experts on the rest, at
    once; none: every stage takes the whole device in turn."""
    exchange_cores_ratio: Share = 0.0
    """Share of the cores that an exchange's kernels hold while something else computes."""


class LayerParts(Document):
    """Seconds of one MoE layer on the rank with most tokens."""

    attention_s: float
    dispatch_s: float
    experts_s: float
    combine_s: float
    shared_s: float


class PassAnswer(Document):
    """How long the pass takes whole and in micro-batches."""

    schema_version: Literal[1] = 1
    kind: Literal["pass"] = "pass"
    name: str
    whole_s: Estimate
    micro_batched_s: Estimate
    gain_ratio: float
    """Throughput with micro-batches over throughput without, less one."""
    device_busy_ratio: float
    link_busy_ratio: float
    layer: LayerParts
    """Of the whole batch."""
    micro_layer: LayerParts
    """Of one micro-batch."""
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Played:
    """One priced batch: seconds of a layer, what a pass pays once, and whence they are."""

    layer: LayerSeconds
    once_s: float
    busy_ratio: float
    priced: Priced


def answer_pass(question: PassQuestion) -> tuple[PassAnswer, pl.DataFrame]:
    """Answer a question.

    Returns:
        The answer, and the slices of the typical pass in micro-batches.

    Raises:
        MoesaicError: `invalid` for a layout that the model does not allow or a model without
            experts, `outside_evidence` for parted cores of a device timed by measured tables.
    """
    layers = _layers(question)
    whole, micro = {}, {}
    for side in SIDES:
        whole[side] = _play(question, [price_part(question, side, 1, None)], layers)
        micro[side] = _play(question, _micro_batches(question, side), layers)
    first, divided = whole["typical"], micro["typical"]
    source = weakest_source(first.batches[0].priced.timed)
    seconds = [
        Estimate(source=source, **{side: found[side].seconds_s for side in SIDES})
        for found in (whole, micro)
    ]
    return PassAnswer(
        name=question.name,
        whole_s=seconds[0],
        micro_batched_s=seconds[1],
        gain_ratio=first.seconds_s / divided.seconds_s - 1,
        device_busy_ratio=divided.busy("device"),
        link_busy_ratio=divided.busy("link"),
        layer=LayerParts(**vars(first.batches[0].layer)),
        micro_layer=LayerParts(**vars(divided.batches[0].layer)),
        assumptions=_assumptions(question),
    ), divided.result.slices


@dataclass(frozen=True)
class _Run:
    batches: Sequence[Played]
    result: PassResult
    seconds_s: float

    def busy(self, track: str) -> float:
        """Time in which the first track of a kind works."""
        slices = self.result.slices.filter(pl.col("track") == f"{track} 000")
        spent_s = float((slices["end_s"] - slices["start_s"]).sum())
        return spent_s / self.result.seconds_s


def _play(question: PassQuestion, batches: Sequence[Played], layers: int) -> _Run:
    busiest = [played.layer for played in batches]
    average = [_average(played) for played in batches]
    ranks = [busiest] + [average] * (question.ranks - 1)
    links = [rank // question.ranks_per_link for rank in range(question.ranks)]
    apart = question.attention_cores_ratio is not None and len(batches) > 1
    result = simulate_pass(ranks, layers, links, Cores(apart, question.exchange_cores_ratio))
    once = sum(played.once_s for played in batches)
    return _Run(batches, result, result.seconds_s + once)


def _average(played: Played) -> LayerSeconds:
    """A rank with the average load: its experts' and exchanges' rows are fewer."""
    layer, busy = played.layer, played.busy_ratio
    return LayerSeconds(
        layer.attention_s, layer.dispatch_s / busy, layer.experts_s / busy, layer.combine_s / busy,
        layer.shared_s,
    )  # fmt: skip


def _micro_batches(question: PassQuestion, side: str) -> list[Played]:
    parts, share = question.micro_batches, question.attention_cores_ratio
    if share is None or parts == 1:
        return [price_part(question, side, parts, None)] * parts
    attention = price_part(question, side, parts, share)
    experts = price_part(question, side, parts, 1 - share)
    layer = LayerSeconds(
        attention.layer.attention_s, experts.layer.dispatch_s, experts.layer.experts_s,
        experts.layer.combine_s, experts.layer.shared_s,
    )  # fmt: skip
    return [Played(layer, attention.once_s, experts.busy_ratio, attention.priced)] * parts


def price_part(question: PassQuestion, side: str, parts: int, cores: float | None) -> Played:
    """Price one of so many equal parts of the batch, on all cores or on a share of them."""
    cluster = question.cluster if cores is None else _with_cores(question.cluster, cores)
    asked = question.shared(cluster)
    priced = price(_point(question, asked, parts), asked, fitted=False)
    seconds = dict.fromkeys(("attention", "dispatch", "combine", "experts", "shared", "once"), 0.0)
    stages = priced.timed.select(
        "stage", (pl.col(f"{side}_s") * pl.col("repeat_count")).alias("spent_s")
    )
    for stage, spent in stages.iter_rows():
        seconds[PARTS.get(stage, "attention")] += spent
    row = priced.passes.row(0, named=True)
    # Dense layers attend, too: their part is paid once, like their feed-forward networks.
    moe, every = len(question.model.moe_layers), question.model.layer_count
    once = seconds.pop("once") + row["host_s"] / parts + seconds["attention"] * (1 - moe / every)
    seconds["attention"] *= moe / every
    layer = LayerSeconds(**{f"{name}_s": spent / moe for name, spent in seconds.items()})
    return Played(layer, once, max(row["busy_ratio"], 1.0), priced)


def _point(question: PassQuestion, asked: Question, parts: int) -> pl.DataFrame:
    layout = _layout(question)
    spare = spare_experts(question.model, layout.moe_ep)
    check_layout(layout, asked, spare, "/layout")
    row = {
        **vars(layout), "devices": layout.devices, "phase": question.phase,
        "batch": question.batch / parts, "new_tokens": question.new_tokens,
        "past_tokens": question.past_tokens, "osl": 1.0, "step_tokens": 1.0,
        "context_tokens": question.past_tokens + question.new_tokens,
        "redundant_experts": spare, "node_devices": question.cluster.devices_per_node,
    }  # fmt: skip
    schema = {name: kind for name, kind in POINT.items() if name != "point"}
    return number(pl.DataFrame([row], schema=schema, strict=False))


def _layout(question: PassQuestion) -> Layout:
    asked = question.layout
    ranks = asked.tp * asked.dp
    moe_ep = asked.moe_ep or (ranks // asked.moe_tp if asked.moe_tp else ranks)
    return Layout(asked.tp, asked.dp, 1, asked.moe_tp or max(ranks // moe_ep, 1), moe_ep)


def _layers(question: PassQuestion) -> int:
    layers = len(question.model.moe_layers)
    if not layers:
        raise MoesaicError(
            "invalid", f"{question.model.name} has no experts, so nothing is exchanged that "
            "micro-batches could hide; use estimate", "/model",
        )  # fmt: skip
    return layers


def _arithmetic_is_measured(device: str) -> bool:
    """Whether tables of this device time anything but links."""
    cards = (read_document(path) for path in FOLDER.glob(f"{device}.*.json"))
    links = {*COLLECTIVES, *EXCHANGES}
    return any(table["kernel"] not in links for card in cards for table in card["tables"])


def _with_cores(cluster: Cluster, share: float) -> Cluster:
    """The cluster with a share of each device's compute; its memory and links stay whole."""
    device = cluster.device
    if _arithmetic_is_measured(device.name):
        raise MoesaicError(
            "outside_evidence",
            f"{device.name} is timed by measured tables of whole devices: what a share of its "
            "cores does is not known; leave attention_cores_ratio out", "/attention_cores_ratio",
        )  # fmt: skip
    peaks = {
        name: peak.model_copy(update={"value": peak.value * share})
        for name, peak in device.peak_flop_per_s.items()
    }
    return cluster.model_copy(
        update={"device": device.model_copy(update={"peak_flop_per_s": peaks})}
    )


def _assumptions(question: PassQuestion) -> tuple[str, ...]:
    said = [
        f"{question.ranks} ranks: one with the busiest rank's tokens, the others with the average",
        f"{question.ranks_per_link} rank(s) a link; an exchange ends when the slowest has sent",
    ]
    if question.attention_cores_ratio is not None:
        said.append("parted cores: matrix products slow down with their share, memory does not")
    if question.exchange_cores_ratio:
        said.append(f"an exchange holds {question.exchange_cores_ratio:.0%} of the cores")
    return tuple(said)
