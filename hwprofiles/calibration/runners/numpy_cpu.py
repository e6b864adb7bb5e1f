"""Runs kernel rows on this CPU with NumPy and its BLAS, caches flushed before each call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.calibration.environment import (
    Environment,
    last_level_cache_bytes,
    read_environment,
    usable_cores,
)
from hwprofiles.calibration.runners.base import (
    Prepared,
    Row,
    cannot,
    expert_split,
    number,
    whole,
)
from hwprofiles.calibration.runners.disk import disk_read

Floats = NDArray[np.float32]
_BLOCK = 32  # weights that share one scale in Q4_0 and Q8_0 (ggml)
_LATENT, _ROTARY = 512, 64  # DeepSeek-V2/V3 latent and rotary widths (config.json)


class NumpyCpu:
    """NumPy on the cores this process may use; arithmetic is float32."""

    name = "numpy"
    version = np.__version__
    tiers: tuple[str | None, ...] = ("dram",)
    families = frozenset(
        {"gemm", "grouped_gemm", "router", "attention_prefill", "attention_decode", "mla_decode",
         "elementwise", "copy"}
    )  # fmt: skip

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.random = np.random.default_rng(0)
        self.trash = np.zeros(int(2 * last_level_cache_bytes()) // 4, np.float32)

    def environment(self) -> Environment:
        """Fingerprint with the BLAS that NumPy was built against."""
        config: Any = np.show_config(mode="dicts")
        blas = config.get("Build Dependencies", {}).get("blas", {})
        libraries = {"numpy": np.__version__, "blas": f"{blas.get('name')} {blas.get('version')}"}
        threads = int(os.environ.get("OPENBLAS_NUM_THREADS") or len(usable_cores()))
        return read_environment(libraries, threads_count=threads)

    def prepare(self, row: Row) -> Prepared:
        """Build the arrays of one row."""
        kernel = str(row.get("kernel"))
        if kernel not in BUILDERS:
            raise cannot("numpy", kernel)
        return BUILDERS[kernel](self, row)

    def sample(self, prepared: Prepared) -> float:
        """Seconds of one call, after overwriting twice the last-level cache."""
        if prepared.before is not None:
            prepared.before()
        self.trash += 1
        start = time.perf_counter_ns()
        prepared.run()
        return (time.perf_counter_ns() - start) * 1e-9

    def synchronise(self) -> None:
        """Nothing runs on its own here."""

    def floats(self, *shape: int) -> Floats:
        """Random float32 numbers; zeros would be shared pages and subnormals slow."""
        return self.random.random(shape, np.float32) + np.float32(0.5)

    def weights(self, form: str, rows: int, columns: int) -> Callable[[], Floats]:
        """A stored matrix (rows, columns) and how it becomes float32 numbers.

        Raises:
            MoesaicError: `outside_evidence` for a format NumPy has no arithmetic for.
        """
        if form == "fp32":
            plain = self.floats(rows, columns)
            return lambda: plain
        if form not in {"q8_0", "q4_0"}:
            raise cannot("numpy", f"{form}; it runs fp32, q8_0 and q4_0")
        blocks = rows * columns // _BLOCK
        scales = self.floats(blocks, 1).astype(np.float16)
        if form == "q8_0":
            codes = self.random.integers(-127, 127, (blocks, _BLOCK), np.int8)
            return lambda: _scaled(codes, scales).reshape(rows, columns)
        packed = self.random.integers(0, 255, (blocks, _BLOCK // 2), np.uint8)
        return lambda: _scaled(_nibbles(packed), scales).reshape(rows, columns)


def _scaled(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> Floats:
    return codes.astype(np.float32) * scales.astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Two 4-bit codes a byte, stored with an offset of 8 (ggml Q4_0)."""
    codes = np.empty((packed.shape[0], _BLOCK), np.int8)
    codes[:, : _BLOCK // 2] = (packed & 15).view(np.int8) - 8
    codes[:, _BLOCK // 2 :] = (packed >> 4).view(np.int8) - 8
    return codes


def _gemm(runner: NumpyCpu, row: Row) -> Prepared:
    m, n, k = whole(row, "m"), whole(row, "n"), whole(row, "k")
    left, right = runner.floats(m, k), runner.weights(str(row.get("dtype")), k, n)
    out = np.empty((m, n), np.float32)
    return Prepared(lambda: np.matmul(left, right(), out=out))


def _grouped_gemm(runner: NumpyCpu, row: Row) -> Prepared:
    """Gate, up and down (or up and down) of every expert with tokens, one after the other."""
    stored, split = expert_split(row)
    hidden, inter = whole(row, "hidden"), round(number(row, "inter") / number(row, "moe_tp", 1))
    ups = whole(row, "matrices", 3) - 1
    form = str(row.get("dtype"))
    into = [[runner.weights(form, hidden, inter) for _ in range(ups)] for _ in range(stored)]
    out = [runner.weights(form, inter, hidden) for _ in range(stored)]
    tokens = [runner.floats(count, hidden) for count in split]

    def run() -> None:
        for index, block in enumerate(tokens):
            inner = block @ into[index][0]()
            for up in into[index][1:]:
                inner *= block @ up()
            _ = inner @ out[index]()

    return Prepared(run)


def _router(runner: NumpyCpu, row: Row) -> Prepared:
    """Scores, their softmax, the top k and their sum made one."""
    tokens = runner.floats(whole(row, "tokens"), whole(row, "hidden"))
    weight = runner.weights(str(row.get("dtype")), whole(row, "hidden"), whole(row, "experts"))
    top_k = whole(row, "top_k")

    def run() -> Floats:
        scores = _softmax(tokens @ weight())
        index = np.argpartition(-scores, top_k - 1, axis=1)[:, :top_k]
        chosen: Floats = np.take_along_axis(scores, index, axis=1)
        chosen /= chosen.sum(axis=1, keepdims=True)
        return chosen

    return Prepared(run)


def _softmax(scores: Floats) -> Floats:
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _attention_prefill(runner: NumpyCpu, row: Row) -> Prepared:
    """Causal attention, one key-value head of one sequence at a time."""
    batch, seq, past = whole(row, "batch"), whole(row, "seq"), whole(row, "past", 0)
    kv_heads, width = whole(row, "kv_heads"), whole(row, "head_dim")
    group = whole(row, "heads") // kv_heads
    query = runner.floats(batch, kv_heads, group * seq, width)
    key = runner.floats(batch, kv_heads, past + seq, width)
    value = runner.floats(batch, kv_heads, past + seq, width)
    visible = np.tril(np.ones((seq, past + seq), bool), past)
    mask = np.where(np.tile(visible, (group, 1)), 0, -np.inf).astype(np.float32)

    def run() -> None:
        for b in range(batch):
            for h in range(kv_heads):
                scores = query[b, h] @ key[b, h].T
                scores += mask
                _ = _softmax(scores) @ value[b, h]

    return Prepared(run)


def _attention_decode(runner: NumpyCpu, row: Row) -> Prepared:
    batch, seq = whole(row, "batch"), whole(row, "seq")
    kv_heads, width = whole(row, "kv_heads"), whole(row, "head_dim")
    rows = whole(row, "heads") // kv_heads * whole(row, "queries", 1)
    query = runner.floats(batch, kv_heads, rows, width)
    key = runner.floats(batch, kv_heads, seq, width)
    value = runner.floats(batch, kv_heads, seq, width)
    return Prepared(lambda: _softmax(query @ key.transpose(0, 1, 3, 2)) @ value)


def _mla_decode(runner: NumpyCpu, row: Row) -> Prepared:
    """Absorbed form: all heads read one latent and rotary key (DeepSeek-V2, section 2.1.3)."""
    batch, seq = whole(row, "batch"), whole(row, "seq")
    rank, rotary = whole(row, "kv_rank", _LATENT), whole(row, "rope_dim", _ROTARY)
    rows = whole(row, "heads") * whole(row, "queries", 1)
    query = runner.floats(batch, rows, rank + rotary)
    cache = runner.floats(batch, seq, rank + rotary)
    return Prepared(lambda: _softmax(query @ cache.transpose(0, 2, 1)) @ cache[..., :rank])


def _elementwise(runner: NumpyCpu, row: Row) -> Prepared:
    """Half of the bytes are read, half are written."""
    given = runner.floats(max(1, whole(row, "bytes") // 8))
    out = np.empty_like(given)
    return Prepared(lambda: np.multiply(given, np.float32(1.5), out=out))


def _copy(runner: NumpyCpu, row: Row) -> Prepared:
    tier = str(row.get("tier") or "dram")
    if tier == "ssd":
        return disk_read(runner.name, whole(row, "bytes"), runner.folder)
    if tier != "dram":
        raise cannot("numpy", f"a copy from {tier}; it knows dram and ssd")
    given = runner.floats(max(1, whole(row, "bytes") // 8))
    out = np.empty_like(given)
    return Prepared(lambda: np.copyto(out, given))


BUILDERS: dict[str, Callable[[NumpyCpu, Row], Prepared]] = {
    "gemm": _gemm,
    "grouped_gemm": _grouped_gemm,
    "router": _router,
    "attention_prefill": _attention_prefill,
    "attention_decode": _attention_decode,
    "mla_decode": _mla_decode,
    "elementwise": _elementwise,
    "copy": _copy,
}
"""Kernel family: what builds it."""
