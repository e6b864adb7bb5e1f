"""Which rows of a table one measured table, or one rule, answers together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hwprofiles.kernels import COLLECTIVES, EXCHANGES
from hwprofiles.timing.rows import Codes, Columns

LIBRARIES = {
    "deepep_ht": "deepep_normal",
    "deepep_ll": "deepep_low_latency",
    "trtllm_deepep_ht": "deepep_normal",
    "trtllm_deepep_ll": "deepep_low_latency",
    "alltoall": "nvlink_two_sided",
}
"""Other names of exchange libraries."""
LOW_LATENCY_TOKENS = 128
"""DeepEP's default buffer of its low-latency kernels, tokens a rank (README of DeepEP)."""
USUAL = ("custom", "nccl", "deepep_low_latency", "deepep_normal")
"""Libraries of rows that name none: all-reduce, other collectives, small and large exchanges."""
_Named = tuple[list[str | None], Codes]


@dataclass(frozen=True)
class Group:
    """Rows of one kernel, formats and library; `wanted` are the names that choose a table."""

    kernel: str | None
    wanted: Mapping[str, str | None]
    chosen: Codes


def groups_of(columns: Columns, rows: Codes | None = None, width: int = 1) -> Iterator[Group]:
    """Split a table's rows, or some of them, groups in the order of their first rows.

    Args:
        columns: the table.
        rows: numbers of the rows that are meant; none: all.
        width: devices of a node.
    """
    named, whole = columns.kept(("groups", width), lambda: _named(columns, width))
    order = np.argsort(whole if rows is None else whole[rows], kind="stable")
    order = order if rows is None else rows[order]
    edges = np.flatnonzero(np.diff(whole[order])) + 1
    for chosen in sorted(np.split(order, edges), key=lambda part: int(part[0])):
        names = {name: labels[codes[chosen[0]]] for name, (labels, codes) in named.items()}
        yield Group(names.pop("kernel"), names, chosen)


def _named(columns: Columns, width: int) -> tuple[dict[str, _Named], Codes]:
    """Names that choose a table, and a number for each combination of them that rows have."""
    named = {
        "kernel": columns.labels("kernel"),
        "dtype": _format(columns.labels("dtype")),
        "kv_dtype": _format(columns.labels("kv_dtype")),
        "library": _library(columns, width),
    }
    whole = np.zeros(columns.frame.height, dtype=np.intp)
    for labels, codes in named.values():
        whole = whole * len(labels) + codes
    return named, whole


def _format(named: _Named) -> _Named:
    """Half-precision formats are measured as one, and as the one of rows that name none."""
    labels, codes = named
    return _unified(["bf16" if label in {None, "fp16"} else label for label in labels], codes)


def _unified(labels: list[str | None], codes: Codes) -> _Named:
    """Labels that mean the same under one code."""
    known = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    if len(known) == len(labels):
        return labels, codes
    return list(known), np.array([known[label] for label in labels], dtype=np.intp)[codes]


def _library(columns: Columns, width: int) -> _Named:
    labels, codes = columns.labels("library")
    known = [None if label is None else LIBRARIES.get(label, label) for label in labels]
    if None not in known:
        return _unified(known, codes)
    names: list[str | None] = [*known, *USUAL]
    usual = _usual(columns, width) + len(known)
    none = known.index(None)
    return _unified(names, np.where((codes == none) & (usual >= len(known)), usual, codes))


def _usual(columns: Columns, width: int) -> Codes:
    """Place in `USUAL` of each row's library; negative where its kernel needs none.

    One-shot all-reduces write into peers' memory, which ranks of other nodes don't share
    (vLLM and SGLang, custom_all_reduce: one node only): groups wider than a node use NCCL.
    """
    kernels, codes = columns.labels("kernel")
    few = np.zeros(len(codes), dtype=bool)
    if "tokens" in columns.names:
        few = columns.numbers("tokens") <= LOW_LATENCY_TOKENS
    of_kernel = np.array([_usual_of(kernel) for kernel in kernels], dtype=np.intp)[codes]
    wide = np.zeros(len(codes), dtype=bool)
    if "devices" in columns.names:
        wide = columns.numbers("devices") > width
    of_kernel = np.where((of_kernel == USUAL.index("custom")) & wide, of_kernel + 1, of_kernel)
    return np.where((of_kernel == USUAL.index("deepep_normal")) & few, of_kernel - 1, of_kernel)


def _usual_of(kernel: str | None) -> int:
    if kernel == "all_reduce":
        return USUAL.index("custom")
    if kernel in COLLECTIVES:
        return USUAL.index("nccl")
    return USUAL.index("deepep_normal") if kernel in EXCHANGES else -1_000_000
