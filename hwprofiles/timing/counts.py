"""How much each kernel family has to compute and move, in seconds at the device's peaks."""

from __future__ import annotations

import numpy as np

from hwprofiles.cluster import Cluster
from hwprofiles.device import Device
from hwprofiles.errors import MoesaicError
from hwprofiles.timing.rows import Array, Rows, Work

MLA_RANK, MLA_ROPE, MLA_HEAD, MLA_VALUE = 512.0, 64.0, 192.0, 128.0
"""DeepSeek-V2/V3 latent and head widths, taken where a row leaves them out (config.json)."""
SCORE_PASSES, SCORE_BYTES = 4.0, 4.0
"""Scores are written, read and written by the softmax, read by the choice; in fp32."""


def _work(rows: Rows, cluster: Cluster, flops: Array, moved: Array, left: Array | None) -> Work:
    bandwidth = cluster.device.bandwidth_bytes_per_s
    return Work(flops / rows.peaks(cluster), moved / bandwidth, rows_count=left)


def gemm(rows: Rows, cluster: Cluster) -> Work:
    """One dense product: 2·m·n·k FLOP, both operands and the result moved once."""
    m, n, k = rows.get("m"), rows.get("n"), rows.get("k")
    moved = m * k * rows.activation() + n * k * rows.weight() + 2 * m * n
    return _work(rows, cluster, 2 * m * n * k, moved, m)


def grouped_gemm(rows: Rows, cluster: Cluster) -> Work:
    """All expert matrices of one layer on the busiest rank: touched weights once, all rows."""
    get = rows.get
    hidden, inter, matrices = get("hidden"), get("inter") / get("moe_tp", 1), get("matrices", 3)
    pairs = get("tokens") * get("top_k") / get("moe_ep", 1) * get("busy_ratio", 1)
    local = np.maximum(get("experts") / get("moe_ep", 1), 1)
    spread = local * (1 - (1 - 1 / local) ** pairs)
    stated = get("active_experts", np.nan)
    active = np.maximum(np.where(np.isnan(stated), spread, stated), 1e-3)
    flops = 2 * pairs * matrices * hidden * inter
    weights = active * matrices * hidden * inter * rows.weight()
    moved = weights + pairs * (2 * hidden + 2 * inter) * rows.activation()
    return _work(rows, cluster, flops, moved, pairs / np.maximum(active, 1))


def router(rows: Rows, cluster: Cluster) -> Work:
    """Scores of all experts, their softmax and the top k: one product, four passes over scores."""
    get = rows.get
    tokens, hidden, experts = get("tokens"), get("hidden"), get("experts")
    scores = SCORE_PASSES * SCORE_BYTES * tokens * experts
    moved = tokens * hidden * rows.activation() + hidden * experts * rows.weight() + scores
    return _work(rows, cluster, 2 * tokens * hidden * experts, moved, tokens)


def visible_pairs(rows: Rows) -> Array:
    """Query-key pairs of a sequence: causal over new tokens, all of the past, cut by window."""
    seq, past, window = rows.get("seq"), rows.get("past", 0), rows.get("window", np.inf)
    full = seq * past + seq * (seq + 1) / 2
    early = np.clip(window - past, 0, seq)  # queries that still see everything before them
    late = np.where(np.isfinite(window), (seq - early) * np.minimum(window, 1e15), 0)
    return np.minimum(full, early * past + early * (early + 1) / 2 + late)


FULL_QUERY_ROWS = 8192.0
"""Query rows (tokens times heads) below which a GPU is not full: each block of 64 rows walks
through the whole cache, so a shorter chunk takes as long. Time over a long cache is flat up to 256
tokens of 32 heads and 128 of 64, on RTX PRO 6000 and RTX 4090 alike (casys-kaist/LLMServingSim @
5daddb21, profiler/perf/*/attention.csv, 2026-08-21)."""


def past_pairs(rows: Rows) -> Array:
    """Pairs of new queries with the past that a full GPU would do in the same time."""
    get = rows.get
    seq, past = get("seq"), np.minimum(get("past", 0), get("window", np.inf))
    full = FULL_QUERY_ROWS / (get("batch") * get("heads"))
    pairs: Array = np.maximum(seq, full) * past
    return pairs


def attention_prefill(rows: Rows, cluster: Cluster) -> Work:
    """Scores and values over the visible pairs; keys, values and queries moved once."""
    get = rows.get
    key, value = get("head_dim", MLA_HEAD), value_dim(rows, MLA_VALUE)
    pairs = visible_pairs(rows)
    if cluster.device.kind == "gpu":
        pairs = np.maximum(pairs, past_pairs(rows))
    flops = 2 * get("batch") * get("heads") * (key + value) * pairs
    tokens = get("batch") * (get("seq") + get("past", 0))
    caches = tokens * get("kv_heads", 1) * (key + value) * rows.activation("kv_dtype")
    moved = caches + get("batch") * get("seq") * get("heads") * (key + value) * 2
    return _work(rows, cluster, flops, moved, None)


def value_dim(rows: Rows, default: float) -> Array:
    """Width of the values: stated, else that of the keys."""
    value = rows.get("v_head_dim", np.nan)
    return np.where(np.isnan(value), rows.get("head_dim", default), value)


def _cached(rows: Rows) -> Array:
    return rows.get("batch") * np.minimum(rows.get("seq"), rows.get("window", np.inf))


def attention_decode(rows: Rows, cluster: Cluster) -> Work:
    """Each sequence's cache read once; every query head attends it."""
    get = rows.get
    width = get("head_dim") + value_dim(rows, 0)
    flops = 2 * _cached(rows) * get("queries", 1) * get("heads") * width
    moved = _cached(rows) * get("kv_heads") * width * rows.activation("kv_dtype")
    return _work(rows, cluster, flops, moved, None)


def mla_decode(rows: Rows, cluster: Cluster) -> Work:
    """Absorbed form: every head attends the shared latent (DeepSeek-V2, appendix C)."""
    get = rows.get
    rank, rope = get("kv_rank", MLA_RANK), get("rope_dim", MLA_ROPE)
    flops = 2 * _cached(rows) * get("queries", 1) * get("heads") * (2 * rank + rope)
    moved = _cached(rows) * (rank + rope) * rows.activation("kv_dtype")
    return _work(rows, cluster, flops, moved, None)


def moved_bytes(rows: Rows, cluster: Cluster) -> Work:
    """Elementwise kernels: bytes over the working memory's bandwidth."""
    moved = rows.get("bytes")
    return Work(np.zeros_like(moved), moved / cluster.device.bandwidth_bytes_per_s)


def copy(rows: Rows, cluster: Cluster) -> Work:
    """Copies: bytes over the bandwidth of the tier they come from."""
    moved, device = rows.get("bytes"), cluster.device
    rate = rows.by_dtype("tier", lambda name: tier_bytes_per_s(device, name), device.memory[0].name)
    return Work(np.zeros_like(moved), moved / rate)


def tier_bytes_per_s(device: Device, tier: str) -> float:
    """Bandwidth of a memory tier as the device reaches it; the host's over their link.

    Raises:
        MoesaicError: `outside_evidence` when the device states none.
    """
    found = {level.name: level.bandwidth_bytes_per_s.value for level in device.memory}
    if device.host_link_bytes_per_s is not None:
        found.setdefault("dram", device.host_link_bytes_per_s.value)
    if tier not in found:
        raise MoesaicError(
            "outside_evidence",
            f"{device.name} states no bandwidth of {tier}; known: {', '.join(found)}",
            "/tier",
        )
    return found[tier]
