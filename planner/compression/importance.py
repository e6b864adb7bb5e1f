"""Which experts matter, from a trace of router logits: PreMoe's scores, frequency, router weight.

A trace holds the logits of every token in every MoE layer, shape [tokens, layers, experts]. Scores
have shape [layers, experts]; the higher, the more an expert matters.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from hwprofiles.errors import MoesaicError, unknown_name

Floats = npt.NDArray[np.float64]
DIMENSIONS = 3
MAX_TRACE_BYTES = 8 * 2**30


def read_router_logits(path: Path) -> Floats:
    """Read a trace: `.npz` with `logits` [tokens, layers, experts], or parquet.

    Parquet has columns `token`, `layer` and `logits` (a list), or one column an expert named
    `expert_0` … Pickled arrays are refused unread.

    Raises:
        MoesaicError: `invalid` for another format, shape, or numbers that are not finite.
    """
    if path.suffix == ".npz":
        logits = _from_npz(path)
    elif path.suffix == ".parquet":
        logits = _from_parquet(path)
    else:
        raise MoesaicError("invalid", f"{path}: a router trace is .npz or .parquet")
    if logits.ndim != DIMENSIONS or 0 in logits.shape:
        raise MoesaicError(
            "invalid", f"{path}: shape {logits.shape}; known: tokens, layers, experts"
        )
    if not np.isfinite(logits).all():
        raise MoesaicError("invalid", f"{path}: a logit is not finite")
    return logits.astype(np.float64)


def _from_npz(path: Path) -> npt.NDArray[np.floating]:
    try:
        if path.stat().st_size > MAX_TRACE_BYTES:
            raise MoesaicError("invalid", f"{path} has more than {MAX_TRACE_BYTES} bytes")
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            if "logits" not in stored.files:
                raise MoesaicError("invalid", f"{path} has no array 'logits'", "/logits")
            return np.asarray(stored["logits"], dtype=np.float64)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise MoesaicError("invalid", f"{path} is no plain .npz: {error}") from error


def _from_parquet(path: Path) -> npt.NDArray[np.floating]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise MoesaicError("invalid", f"{path} is no parquet file: {str(error)[:120]}") from error
    if not {"token", "layer"} <= set(frame.columns):
        raise MoesaicError("invalid", f"{path} needs columns token, layer and logits")
    frame = frame.sort("token", "layer")
    tokens, layers = frame["token"].n_unique(), frame["layer"].n_unique()
    if frame.height != tokens * layers:
        raise MoesaicError("invalid", f"{path}: {frame.height} rows for {tokens} x {layers}")
    if "logits" in frame.columns:
        rows = np.asarray(frame["logits"].to_list(), dtype=object)
        if rows.ndim != 2:  # noqa: PLR2004
            raise MoesaicError("invalid", f"{path}: rows have different numbers of experts")
        values = rows.astype(np.float64)
    else:
        names = [name for name in frame.columns if name.startswith("expert_")]
        names.sort(key=lambda name: int(name.removeprefix("expert_")))
        values = frame.select(names).to_numpy().astype(np.float64)
    return values.reshape(tokens, layers, -1)


def _pool(logits: Floats, top_k: int) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Which experts a token picks, and its softmax over them; zero elsewhere."""
    experts = logits.shape[-1]
    if not 1 <= top_k <= experts:
        raise MoesaicError("invalid", f"top_k {top_k} of {experts} experts", "/top_k")
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :top_k]
    picked = np.zeros(logits.shape, dtype=bool)
    np.put_along_axis(picked, order, True, axis=-1)  # noqa: FBT003 - numpy's own order
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True)) * picked
    return picked, np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float64)


def tcess(logits: Floats, top_k: int, threshold: float = -1.0) -> Floats:
    """Task-conditioned expected selection score (PreMoe v1, arXiv:2505.17639v1).

    Mean logit of an expert over all tokens, counted where it is in the top-k and its probability
    within them reaches `threshold` (the code's default is off, -1).
    """
    picked, share = _pool(logits, top_k)
    return np.asarray(np.where(picked & (share >= threshold), logits, 0.0).mean(axis=0))


def peu(logits: Floats, top_k: int) -> Floats:
    """Predicted expert utility (PreMoE v3, arXiv:2505.17639v3, eq. 1-4 and 10).

    Selected logits through f(s) = max(s, sigmoid(s)), counted where the probability within the
    top-k reaches the layer's mean of the largest one.
    """
    picked, share = _pool(logits, top_k)
    threshold = share.max(axis=-1).mean(axis=0)
    used = picked & (share >= threshold[None, :, None])
    squashed = np.maximum(logits, 0.5 * (1.0 + np.tanh(0.5 * logits)))
    return np.asarray(np.where(used, squashed, 0.0).mean(axis=0))


def frequency(logits: Floats, top_k: int) -> Floats:
    """Share of tokens that pick each expert."""
    return np.asarray(_pool(logits, top_k)[0].mean(axis=0), dtype=np.float64)


def router_weight(logits: Floats, top_k: int) -> Floats:
    """Mean routing weight of each expert, the softmax taken over the picked ones."""
    return np.asarray(_pool(logits, top_k)[1].mean(axis=0))


SCORES: dict[str, Callable[[Floats, int], Floats]] = {
    "tcess": tcess, "peu": peu, "frequency": frequency, "router_weight": router_weight,
}  # fmt: skip
"""Scores by name."""


def score(name: str, logits: Floats, top_k: int) -> Floats:
    """Score every expert of every layer by one rule.

    Raises:
        MoesaicError: `unknown_name` for a rule that is not known.
    """
    if name not in SCORES:
        raise unknown_name("importance score", name, SCORES)
    return SCORES[name](logits, top_k)


def atomic_saliency(activation_square: Floats, down_curvature: Floats) -> Floats:
    """HEAPr's score of each inner unit: half of mean(a²) times wᵀ G w (arXiv:2509.22299, eq. 9).

    Args:
        activation_square: mean squared inner activation, shape [layers, experts, width].
        down_curvature: quadratic form of the unit's down column, the same shape.
    """
    return np.asarray(0.5 * activation_square * down_curvature)


def widths_from_saliency(saliency: Floats, cut_ratio: float) -> npt.NDArray[np.int64]:
    """Inner units kept by layer and expert when the lowest share of all units is dropped.

    Args:
        saliency: score of each unit, shape [layers, experts, width].
        cut_ratio: share of all units to drop.
    """
    if not 0 <= cut_ratio < 1:
        raise MoesaicError("invalid", f"a cut of {cut_ratio} is out of range", "/cut_ratio")
    dropped = round(cut_ratio * saliency.size)
    keep = np.ones(saliency.size, dtype=bool)
    keep[np.argsort(saliency, axis=None, kind="stable")[:dropped]] = False
    return np.asarray(keep.reshape(saliency.shape).sum(axis=-1), dtype=np.int64)
