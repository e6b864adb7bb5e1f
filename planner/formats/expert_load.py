"""Counted expert load from other programs' files: layers x experts.

Read are SGLang's recorder (JSON `logical_count`, by step or summed; its CSV of layer, expert and
count), DeepSeek EPLB's input (JSON `weight`, or the bare matrix), `counts` and `values` matrices,
and NumPy files (counts, or `expert_ids` of tokens in order) without pickle.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from hwprofiles.files import MAX_BYTES, read_document, read_text
from planner.routing import MeasuredRouting

Array = NDArray[np.float64]
MATRICES = ("logical_count", "weight", "counts", "values")
"""Names under which files keep a matrix of layers x experts."""
CSV_HEAD = ["layer_id", "expert_id", "count"]
TOKENS_AXES = 3
"""Axes of `expert_ids`, and of counts recorded by step."""
LOAD_AXES = 2
MAX_UNPACKED_BYTES = 2**30
MOST_EXPERTS = 65_536


def read_expert_load(path: Path, experts: int | None = None) -> MeasuredRouting:
    """Read a count matrix; rows of zeros are dense layers.

    Args:
        path: a `.json`, `.yaml`, `.csv`, `.npz` or `.npy` file.
        experts: experts of a layer, where a file names only those that were chosen.

    Raises:
        MoesaicError: `invalid` when the file holds no such matrix or counts are not numbers >= 0.
    """
    if experts is not None and not 1 <= experts <= MOST_EXPERTS:
        raise MoesaicError(
            "invalid", f"experts {experts} lie not in 1 to {MOST_EXPERTS}", "/routing"
        )
    counts, source = _read(path, experts)
    matrix = _matrix(counts, path)
    if experts is not None and matrix.shape[1] < experts:
        matrix = np.pad(matrix, ((0, 0), (0, experts - matrix.shape[1])))
    data = {"kind": "measured", "counts": matrix.tolist(), "source": source or path.name}
    return MeasuredRouting.parse(data, what=f"expert load {path.name}")


def read_choices(path: Path) -> NDArray[np.int64]:
    """Experts of each token in order, [layers, tokens, top_k], from an `.npz` with `expert_ids`.

    Raises:
        MoesaicError: `invalid` when the file holds no such array.
    """
    held = _numpy(path)
    ids = held.get("expert_ids")
    if ids is None or ids.ndim != TOKENS_AXES or not np.issubdtype(ids.dtype, np.integer):
        raise MoesaicError(
            "invalid", f"{path} holds no whole numbers expert_ids of layers x tokens x top_k"
        )
    if ids.size == 0 or ids.min() < 0 or ids.max() >= MOST_EXPERTS:
        raise MoesaicError("invalid", f"{path}: expert ids lie in 0 to {MOST_EXPERTS - 1}")
    return np.asarray(ids, dtype=np.int64)


def read_sequences(path: Path) -> NDArray[np.int64] | None:
    """Sequence of each token in order, from `seq_lens` of an `.npz`; none: the file says nothing.

    Raises:
        MoesaicError: `invalid` when lengths are not whole numbers of 1 or more.
    """
    held = _numpy(path).get("seq_lens")
    if held is None:
        return None
    if held.ndim != 1 or not np.issubdtype(held.dtype, np.integer) or (held < 1).any():
        raise MoesaicError("invalid", f"{path}: seq_lens are whole numbers of 1 or more")
    return np.repeat(np.arange(len(held)), held)


def _read(path: Path, experts: int | None) -> tuple[Any, str]:
    """Counts of any shape, and what the file says of itself."""
    suffix = path.suffix.lower()
    if suffix in {".pt", ".pth", ".pkl", ".pickle"}:
        raise MoesaicError(
            "invalid", f"{path} is a pickle, which can run code; write it as .npz or .json",
            "/routing",
        )  # fmt: skip
    if suffix == ".csv":
        return _recorded(read_text(path), path), path.name
    if suffix in {".npz", ".npy"}:
        return _arrays(path, experts), path.name
    data = read_document(path)
    if isinstance(data, list):
        return data, path.name
    if isinstance(data, dict):
        for name in MATRICES:
            if name in data:
                return data[name], str(data.get("source", data.get("model", path.name)))
    raise MoesaicError(
        "invalid", f"{path} holds none of {', '.join(MATRICES)}: a matrix of layers x experts",
        "/routing",
    )  # fmt: skip


def _matrix(counts: object, path: Path) -> Array:
    """Layers x experts; a leading axis of recorded steps is summed."""
    try:
        values = np.asarray(counts, dtype=float)
    except (TypeError, ValueError) as error:
        raise MoesaicError(
            "invalid", f"{path}: counts are rows of numbers, equally many a layer", "/routing"
        ) from error
    if values.ndim == TOKENS_AXES:
        values = values.sum(axis=0)
    if values.ndim != LOAD_AXES or 0 in values.shape:
        raise MoesaicError(
            "invalid", f"{path}: counts of shape {values.shape}, not layers x experts", "/routing"
        )
    if not np.isfinite(values).all() or (values < 0).any():
        row, column = np.argwhere(~(np.isfinite(values) & (values >= 0)))[0]
        raise MoesaicError(
            "invalid",
            f"{path}: layer {row}, expert {column} counts {values[row, column]}; counts are finite "
            "numbers of 0 or more",
            "/routing",
        )
    return values


def _recorded(text: str, path: Path) -> Array:
    """SGLang's CSV: only chosen experts are listed; ranks' files may follow one another."""
    rows = csv.reader(io.StringIO(text))
    if next(rows, None) != CSV_HEAD:
        raise MoesaicError("invalid", f"{path} does not begin with {','.join(CSV_HEAD)}")
    found: dict[tuple[int, int], float] = {}
    for line, row in enumerate(rows, start=2):
        if row and row != CSV_HEAD:
            layer, expert, count = _line(row, line, path)
            found[layer, expert] = found.get((layer, expert), 0.0) + count
    if not found:
        raise MoesaicError("invalid", f"{path} counts no expert")
    counts = np.zeros((max(k[0] for k in found) + 1, max(k[1] for k in found) + 1))
    for (layer, expert), count in found.items():
        counts[layer, expert] = count
    return counts


def _line(row: list[str], line: int, path: Path) -> tuple[int, int, float]:
    try:
        layer, expert, count = int(row[0]), int(row[1]), float(row[2])
    except (ValueError, IndexError) as error:
        raise MoesaicError("invalid", f"{path}, line {line}: {','.join(row)[:80]!r}") from error
    if len(row) != len(CSV_HEAD) or not (0 <= layer < MOST_EXPERTS and 0 <= expert < MOST_EXPERTS):
        raise MoesaicError("invalid", f"{path}, line {line}: no layer {layer} or expert {expert}")
    return layer, expert, count


def _arrays(path: Path, experts: int | None) -> Array:
    """A matrix by one of the known names, the only array, or counts of `expert_ids`."""
    held = _numpy(path)
    for name in MATRICES:
        if name in held:
            return held[name].astype(float)
    if "expert_ids" in held:
        ids = read_choices(path)
        width = max(experts or 0, int(ids.max()) + 1)
        return np.stack([np.bincount(layer.ravel(), minlength=width) for layer in ids]).astype(
            float
        )
    if len(held) == 1:
        return next(iter(held.values())).astype(float)
    raise MoesaicError("invalid", f"{path} holds {sorted(held)}; known: {', '.join(MATRICES)}")


def _numpy(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a NumPy file; pickled objects and absurd sizes are refused."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise MoesaicError("invalid", f"{path} is larger than {MAX_BYTES} bytes")
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as packed:
                size = sum(item.file_size for item in packed.infolist())
            if size > MAX_UNPACKED_BYTES:
                raise MoesaicError("invalid", f"{path} unpacks to {size} bytes")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MoesaicError("invalid", f"cannot read {path} without pickle: {error}") from error
