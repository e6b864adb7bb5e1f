"""Seconds of engine iterations from the planner's timed work sheet, priced once on a grid.

Prefill passes are priced over (chunk tokens, cached tokens), decode passes over (sequences, context
tokens). An iteration that does both runs the decoding tokens through the same matrix products as
the chunk, so it costs the prefill pass of all its tokens, plus what the decoding sequences' caches
add to a decode pass over the shortest context on the grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from hwprofiles.errors import MoesaicError
from planner.candidates import POINT, Layout, number, tokens_per_step
from planner.pricing import Question, price
from planner.quantities import Source
from planner.routing import expert_shares
from planner.simulation.drawn_load import DrawnLoadSeconds, busy_factors
from planner.simulation.elastic import WorkerBytes
from planner.simulation.grid import Grid
from planner.simulation.priced import check_layout, spare_experts
from planner.simulation.rank import EngineLimits
from planner.simulation.step_seconds import Iteration, StepSeconds
from planner.timing.step import weakest_source

_NOT_EXPERTS = ("shared_bytes", "dense_bytes", "attention_bytes", "embedding_bytes")
Side = Literal["low", "typical", "high"]
_FIRST_CONTEXT_TOKENS = 128


@dataclass(frozen=True)
class GridAxes:
    """Where passes are priced; between the points straight lines hold."""

    chunk_tokens: tuple[int, ...]
    past_tokens: tuple[int, ...]
    sequences: tuple[int, ...]
    context_tokens: tuple[int, ...]

    @classmethod
    def reaching(cls, limits: EngineLimits, longest_tokens: int) -> GridAxes:
        """Powers of two, with halves between, up to what the engine and the requests allow."""
        contexts = _powers(_FIRST_CONTEXT_TOKENS, max(longest_tokens, 2 * _FIRST_CONTEXT_TOKENS))
        return cls(
            chunk_tokens=_powers(1, limits.max_num_batched_tokens),
            past_tokens=(0, *contexts),
            sequences=_powers(1, limits.max_num_seqs),
            context_tokens=contexts,
        )


def _powers(first: int, last: int) -> tuple[int, ...]:
    """Steps of a factor of about 1.4 from `first` to `last`, both included."""
    points = {first, last}
    value = float(first)
    while value < last:
        points.add(round(value))
        value *= 2**0.5
    return tuple(sorted(points))


class PlannedSteps:
    """Prices a worker's passes and answers for its iterations.

    Args:
        question: model, cluster, engine, routing and formats.
        layout: the worker's layout; its `dp` ranks step together.
        limits: what the engine is started with.
        axes: where to price.
        redundant: expert copies of a layer beyond those that make experts divide.

    Raises:
        MoesaicError: `invalid` for a layout that the model does not allow.
    """

    def __init__(
        self,
        question: Question,
        layout: Layout,
        limits: EngineLimits,
        axes: GridAxes,
        redundant: int = 0,
    ) -> None:
        spare = spare_experts(question.model, layout.moe_ep, redundant)
        check_layout(layout, question, spare, "/layout")
        self._question, self._layout = question, layout
        self._axes = axes
        self.priced = price(_passes(axes, layout, limits, question, spare), question)
        self.source: Source = weakest_source(self.priced.timed)

    def seconds(self, side: Side) -> PlannedRankSeconds:
        """Step seconds from the low, typical or high estimate of every pass.

        The host's part of a pass is what engines were seen to add, whether they plan ahead or not.
        """
        passes = self.priced.passes
        prefill = passes.filter(phase="prefill")
        decode = passes.filter(phase="decode")
        return PlannedRankSeconds(
            Grid(prefill, ["new_tokens", "past_tokens"], f"{side}_s"),
            Grid(decode, ["batch", "past_tokens"], f"{side}_s"),
            self._axes.context_tokens[0],
        )

    def drawn(self, side: Side, seed: int) -> StepSeconds:
        """Step seconds with the experts' load drawn for every batch.

        A model without experts or a worker with one expert rank has nothing to draw.
        """
        planned, moe = self.seconds(side), self._question.model.moe
        ranks = self._layout.moe_ep
        if moe is None or ranks == 1 or moe.experts % ranks:
            return planned
        shares = expert_shares(self._question.routing, moe, len(self._question.model.moe_layers))
        return DrawnLoadSeconds(
            planned, self._experts(side), busy_factors(shares, moe, ranks, seed), seed
        )

    def weighed(self, side: Side, factor: float) -> StepSeconds:
        """Step seconds when the busiest rank's experts take a factor of what was priced."""
        return DrawnLoadSeconds(self.seconds(side), self._experts(side), {1: [factor]}, 0)

    def _experts(self, side: Side) -> tuple[Grid, Grid]:
        """The experts' part of prefill and decode passes."""
        spent = self.priced.timed.filter(kernel="grouped_gemm")
        seconds = (spent[f"{side}_s"] * spent["repeat_count"]).to_numpy()
        passes = self.priced.passes
        by_point = np.bincount(spent["point"].to_numpy(), seconds, passes.height)
        filled = passes.with_columns(pl.Series("experts_s", by_point[passes["point"].to_numpy()]))
        return (
            Grid(filled.filter(phase="prefill"), ["new_tokens", "past_tokens"], "experts_s"),
            Grid(filled.filter(phase="decode"), ["batch", "past_tokens"], "experts_s"),
        )

    def kv_blocks(self, capacity_bytes: float, block_tokens: int) -> int:
        """KV blocks of one rank beside weights, buffers and the largest pass's activations.

        Raises:
            MoesaicError: `infeasible` when they leave no room for one block.
        """
        passes = self.priced.passes
        decode = passes.filter(phase="decode")
        token_bytes = _kv_token_bytes(decode)
        others = passes.select(pl.col("total_bytes") - pl.col("kv_bytes")).to_series()
        room = capacity_bytes - float(others.max())  # type: ignore[arg-type]
        blocks = int(room / (token_bytes * block_tokens)) if token_bytes else 0
        if blocks < 1:
            raise MoesaicError(
                "infeasible",
                f"weights, buffers and activations take {float(others.max()):.4g} B a device, "  # type: ignore[arg-type]
                f"of {capacity_bytes:.4g} B allowed: no KV block is left; more devices, fewer "
                "bits or a smaller max_num_batched_tokens would work",
                "/engine",
            )
        return blocks

    def worker_bytes(self, kv_bytes: float) -> WorkerBytes:
        """What the worker holds, for scaling; `kv_bytes` is the cache of one device."""
        return worker_bytes(self.priced.passes, kv_bytes)

    def kv_token_bytes(self) -> float:
        """KV bytes of one token on one device of a rank."""
        return _kv_token_bytes(self.priced.passes.filter(phase="decode"))


def worker_bytes(passes: pl.DataFrame, kv_bytes: float) -> WorkerBytes:
    """What a worker holds by its priced passes; `kv_bytes` is the cache of one device."""
    row = passes.row(0, named=True)
    devices = int(row["devices"])
    experts = (row["routed_bytes"] + row["redundant_bytes"]) * devices
    others = sum(row[name] for name in _NOT_EXPERTS)
    return WorkerBytes(devices, others, experts, kv_bytes)


def _kv_token_bytes(decode: pl.DataFrame) -> float:
    longest = decode.filter(pl.col("batch") == 1).sort("past_tokens").row(-1, named=True)
    return float(longest["kv_bytes"] / longest["context_tokens"])


class PlannedRankSeconds:
    """Seconds of lockstep ranks: each priced as if all were as full, the slowest awaited."""

    def __init__(self, prefill: Grid, decode: Grid, first_context_tokens: int) -> None:
        self._prefill = prefill
        self._decode = decode
        self._first = float(first_context_tokens)

    def __call__(self, ranks: Sequence[Iteration]) -> float:
        """Return seconds of the slowest rank's iteration."""
        if len(ranks) == 1:
            return self._rank(ranks[0])
        return max(map(self._rank, ranks))

    def _rank(self, work: Iteration) -> float:
        sequences, chunk = work.decode_sequences, work.prefill_tokens
        if not chunk:
            if not sequences:
                return 0.0
            return self._decode(sequences, work.decode_context_tokens / sequences)
        own = chunk * (chunk / work.prefill_sequences + 1) / 2
        past = max(work.prefill_pairs - own, 0.0) / chunk
        both_s = self._prefill(chunk + sequences, past)
        if not sequences:
            return both_s
        context = work.decode_context_tokens / sequences
        cache_s = self._decode(sequences, context) - self._decode(sequences, self._first)
        return both_s + max(cache_s, 0.0)


def _passes(
    axes: GridAxes, layout: Layout, limits: EngineLimits, question: Question, spare: int = 0
) -> pl.DataFrame:
    shared: dict[str, object] = {
        "tp": layout.tp, "dp": layout.dp, "pp": layout.pp, "moe_tp": layout.moe_tp,
        "moe_ep": layout.moe_ep, "devices": layout.devices, "osl": 1.0,
        "redundant_experts": spare,
        "step_tokens": tokens_per_step(limits.mtp_tokens, limits.mtp_acceptance_ratio),
        "node_devices": question.cluster.devices_per_node,
    }  # fmt: skip
    rows = [
        {**shared, "phase": "prefill", "batch": 1, "new_tokens": chunk, "past_tokens": past,
         "context_tokens": chunk + past}
        for chunk, past in itertools.product(axes.chunk_tokens, axes.past_tokens)
    ] + [
        {**shared, "phase": "decode", "batch": batch, "new_tokens": 1 + limits.mtp_tokens,
         "past_tokens": context, "context_tokens": context}
        for batch, context in itertools.product(axes.sequences, axes.context_tokens)
    ]  # fmt: skip
    schema = {name: kind for name, kind in POINT.items() if name != "point"}
    return number(pl.DataFrame(rows, schema=schema, strict=False))
