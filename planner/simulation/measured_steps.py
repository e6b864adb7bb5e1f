"""Seconds of lockstep iterations from measured layers: attention by rank, experts over all ranks.

Sums measured rows only: per rank the dense layers and attention, the slowest rank waited for; then
all ranks' tokens through the experts between an all-gather and a reduce-scatter (vLLM's exchange
where no DeepEP is installed), and the output layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.simulation.grid import Grid
from planner.simulation.step_seconds import Iteration

_ONCE = ("embedding", "final_layernorm")
_TWICE = ("layernorm",)


@dataclass(frozen=True)
class LayerCounts:
    """What of the model the measured layers leave open."""

    layers: int
    hidden: int
    experts: int = 0
    top_k: int = 0
    activation_bytes: float = 2.0


@dataclass(frozen=True)
class HostCosts:
    """Seconds that no kernel table holds, each from its own measurement."""

    step_s: float = 0.0
    graph_tokens: int = 0
    """Iterations of up to so many tokens run as CUDA graphs, padded over the lockstep ranks."""


class MeasuredSteps:
    """Step seconds from a layer profile.

    Args:
        profile: tables of `read_layer_profile`.
        counts: the model's sizes.
        collectives: seconds by `collective` (all_gather, reduce_scatter) and `message_bytes` (the
            whole gathered buffer) for as many devices as there are ranks; null without exchange.
        host: what the host adds.
    """

    def __init__(
        self,
        profile: dict[str, pl.DataFrame],
        counts: LayerCounts,
        collectives: pl.DataFrame | None = None,
        host: HostCosts | None = None,
    ) -> None:
        self._counts = counts
        self._host = host or HostCosts()
        attention = profile["attention"]
        chunk, decode = pl.col("prefill_chunk"), pl.col("n_decode")
        self._prefill = Grid(
            _complete(attention.filter(decode == 0), ["prefill_chunk", "kv_prefill"]),
            ["prefill_chunk", "kv_prefill"], "time_s",
        )  # fmt: skip
        self._decode = Grid(attention.filter(chunk == 0), ["n_decode", "kv_decode"], "time_s")
        axes = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode"]
        self._mixed = Grid(
            _complete(attention.filter((chunk > 0) & (decode > 0)), axes), axes, "time_s"
        )
        self._dense = {
            str(name): Grid(part, ["tokens"], "time_s")
            for (name,), part in profile["dense"].group_by("layer")
        }
        self._sequences = [
            Grid(part, ["sequences"], "time_s")
            for _, part in profile["per_sequence"].group_by("layer", maintain_order=True)
        ]
        self._moe = _moe_grid(profile.get("moe"))
        self._collectives = [] if collectives is None else [
            Grid(part, ["message_bytes"], "time_s")
            for _, part in collectives.group_by("collective", maintain_order=True)
        ]  # fmt: skip
        self._dense_s = lru_cache(maxsize=65536)(self._dense_seconds)
        self._experts_s = lru_cache(maxsize=65536)(self._expert_seconds)

    def __call__(self, ranks: Sequence[Iteration]) -> float:
        """Return seconds of one lockstep iteration."""
        tokens = [rank.prefill_tokens + rank.decode_sequences for rank in ranks]
        most = max(1, *tokens)
        if most <= self._host.graph_tokens:
            tokens = [most] * len(tokens)
        tokens = [max(number, 1) for number in tokens]
        layer_s = max(
            self._dense_s(number) + self._attention(rank)
            for number, rank in zip(tokens, ranks, strict=True)
        )
        outputs = max(rank.decode_sequences + rank.finishing_prefills for rank in ranks)
        return (
            self._counts.layers * (layer_s + self._experts_s(sum(tokens), most, len(ranks)))
            + self._dense["embedding"](most)
            + self._dense["final_layernorm"](most)
            + sum(grid(max(outputs, 1)) for grid in self._sequences)
            + self._host.step_s
        )

    def _dense_seconds(self, tokens: int) -> float:
        return sum(
            grid(tokens) * (2 if name in _TWICE else 1)
            for name, grid in self._dense.items()
            if name not in _ONCE
        )

    def _attention(self, rank: Iteration) -> float:
        """Prefill chunks of one iteration count as one chunk with their mean past."""
        decode, chunk = rank.decode_sequences, rank.prefill_tokens
        context = rank.decode_context_tokens / decode if decode else 0.0
        if not chunk:
            return self._decode(decode, context) if decode else 0.0
        # Pairs of one chunk are chunk x past + chunk (chunk + 1) / 2; several chunks have fewer.
        sequences = rank.prefill_sequences
        own = chunk * (chunk / sequences + 1) / 2
        past = max(rank.prefill_pairs - own, 0.0) / chunk
        size = chunk / sequences
        if not decode:
            return sequences * self._prefill(size, past)
        alone_s = (sequences - 1) * self._prefill(size, past)
        return self._mixed(size, past, decode, context) + alone_s

    def _expert_seconds(self, tokens: int, most: int, ranks: int) -> float:
        counts = self._counts
        if self._moe is None or not counts.experts:
            return 0.0
        miss = (1 - counts.top_k / counts.experts) ** tokens
        active = counts.experts / ranks * (1 - miss)
        exchanged_s = 0.0
        if ranks > 1:
            # The largest contribution has to cross alone: unequal ranks pay as if all had it.
            size = ranks * most * counts.hidden * counts.activation_bytes
            exchanged_s = sum(grid(size) for grid in self._collectives)
        # A rank computes its share of the token-expert pairs, as if it had that share of tokens.
        return self._moe(max(tokens / ranks, 1.0), active) + exchanged_s


def _complete(table: pl.DataFrame, axes: list[str]) -> pl.DataFrame:
    """Keep the powers of two (and 0) of each axis, which the profiles measure completely."""
    for axis in axes:
        powers = [0, *(2**i for i in range(31))]
        table = table.filter(pl.col(axis).is_in(powers))
    return table


def _moe_grid(table: pl.DataFrame | None) -> Grid | None:
    """Fill rows whose tokens cannot activate so many experts with the nearest measured one."""
    if table is None:
        return None
    tokens = table.select(pl.col("tokens").unique())
    active = table.select(pl.col("activated_experts").unique())
    full = (
        tokens.join(active, how="cross")
        .join(table, on=["tokens", "activated_experts"], how="left")
        .sort("activated_experts", "tokens")
        .with_columns(pl.col("time_s").backward_fill().over("activated_experts"))
    )
    if full["time_s"].null_count():
        raise MoesaicError("invalid", "the expert table lacks rows for its largest token counts")
    return Grid(full, ["tokens", "activated_experts"], "time_s")
