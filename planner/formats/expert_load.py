"""Counted expert load: `{"logical_count": [[layers x experts]]}`, as SGLang records it."""

from __future__ import annotations

from pathlib import Path

from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document
from planner.routing import MeasuredRouting


def read_expert_load(path: Path) -> MeasuredRouting:
    """Read a count matrix; rows of zeros are dense layers.

    Raises:
        MoesaicError: `invalid` when the file holds no such matrix or counts are not numbers >= 0.
    """
    data = read_document(path)
    if not isinstance(data, dict) or "logical_count" not in data:
        raise MoesaicError(
            "invalid", f'{path} holds no "logical_count", a matrix of layers x experts', "/routing"
        )
    source = str(data.get("source", data.get("model", path.name)))
    return MeasuredRouting.parse(
        {"kind": "measured", "counts": data["logical_count"], "source": source},
        what=f"expert load {path.name}",
    )
