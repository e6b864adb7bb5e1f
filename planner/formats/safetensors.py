"""Count parameters from safetensors headers: names and shapes only, never weights, never pickle.

A file begins with eight bytes, the length of a JSON header that gives each tensor's dtype, shape
and offsets. An index (`model.safetensors.index.json`) names the shards and their total bytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hwprofiles.errors import MoesaicError
from hwprofiles.files import parse_text, read_document

MAX_HEADER_BYTES = 100 * 10**6
PACKED = {"F4": 0.5, "U8": 1.0}
"""Bytes of dtypes that may hold several numbers; counts then need the format."""
SCALES = ("scale", "scale_inv", "weight_scale", "weight_scale_2", "input_scale", "scales", "qzeros")
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1, "F4": 0.5,
}  # fmt: skip


def read_header(path: Path) -> dict[str, Any]:
    """Read one file's header.

    Raises:
        MoesaicError: `invalid` for a truncated file, a header too large, or offsets that lie.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):  # noqa: PLR2004
                raise MoesaicError(
                    "invalid", f"{path}: its header says {length} bytes, the file has {size}"
                )
            text = stream.read(length).decode("utf-8")
    except OSError as error:
        raise MoesaicError("invalid", f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MoesaicError("invalid", f"{path}: its header is no UTF-8 text") from error
    header = parse_text(text, str(path), as_json=True)
    if not isinstance(header, dict):
        raise MoesaicError("invalid", f"{path}: its header is no JSON object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _check_tensor(path, name, entry)
    return header


def _check_tensor(path: Path, name: str, entry: object) -> None:
    if not isinstance(entry, dict):
        raise MoesaicError("invalid", f"{path}: tensor {name[:80]!r} is no object")
    shape, kind, offsets = entry.get("shape"), entry.get("dtype"), entry.get("data_offsets")
    good = (
        isinstance(shape, list) and all(isinstance(n, int) and 0 <= n < 2**48 for n in shape)
        and kind in DTYPE_BYTES
        and isinstance(offsets, list) and len(offsets) == 2  # noqa: PLR2004
    )  # fmt: skip
    if not good:
        raise MoesaicError("invalid", f"{path}: tensor {name[:80]!r} has no known shape and dtype")


def count_tensors(header: dict[str, Any]) -> tuple[int, float]:
    """Numbers stored as weights, and bytes of all tensors; scales are no weights.

    Packed formats (two 4-bit numbers in a U8) are counted as two where their name says so.
    """
    parameters, stored = 0, 0.0
    for name, entry in header.items():
        numbers = math.prod(entry["shape"])
        stored += numbers * DTYPE_BYTES[entry["dtype"]]
        if name.rpartition(".")[2] in SCALES or name.endswith(("_scale_inv", "_scales")):
            continue
        packed = entry["dtype"] == "U8" or name.endswith(("_packed", "_blocks"))
        parameters += numbers * (2 if packed else 1)
    return parameters, stored


def compare_count(path: Path, expected: int) -> list[str]:
    """Say how a checkpoint's tensors compare with a count from its config.

    Args:
        path: a `.safetensors` file, an index, or a folder of shards.
        expected: parameters of the model without towers and multi-token prediction.
    """
    if path.suffix == ".json":
        return [_index_sentence(path)]
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise MoesaicError("invalid", f"{path} holds no .safetensors file", "/weights")
    counts = [count_tensors(read_header(file)) for file in files]
    found = sum(parameters for parameters, _ in counts)
    ratio = found / expected
    return [
        f"{path.name}: {len(files)} safetensors headers hold {found} parameters, "
        f"{ratio:.4f} times the count from the config (towers and MTP are beside it)"
    ]


def _index_sentence(path: Path) -> str:
    data = read_document(path)
    metadata = data.get("metadata") if isinstance(data, dict) else None
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, bool) or not isinstance(total, int | float):
        raise MoesaicError(
            "invalid", f"{path}: the index has no total_size", "/metadata/total_size"
        )
    names = data.get("weight_map")
    if not isinstance(names, dict):
        raise MoesaicError("invalid", f"{path}: the index has no weight_map", "/weight_map")
    return f"{path.name}: {len(names)} tensors with {json.dumps(total)} bytes in all"
