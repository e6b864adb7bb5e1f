"""Time the rows of several devices and engines at once; rows without an answer say why."""

from __future__ import annotations

import numpy as np
import polars as pl

from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import COLLECTIVES, EXCHANGES
from hwprofiles.library import cluster_for
from hwprofiles.timing.answer import Answers, Asked, fill
from hwprofiles.timing.rows import Array, Codes, Columns

Refused = dict[int, MoesaicError]


def time_mixed(
    frame: pl.DataFrame, *, extrapolate: bool = False
) -> tuple[list[pl.Series], Refused]:
    """The columns of `TIMED`, and the rows that have no answer with the reason.

    Args:
        frame: columns of `KERNEL_ROW`, `skew_alpha`, `device` and perhaps `backend`; a device's
            group sizes choose the cluster it stands in.
        extrapolate: answer far outside the measured sizes, with wider intervals.
    """
    columns, answers = Columns(frame), Answers.of(frame.height)
    refused: Refused = {}
    sizes = _group_sizes(columns)
    devices, of_device = columns.labels("device")
    engines, of_engine = columns.labels("backend")
    both = of_device * len(engines) + of_engine
    for code in dict.fromkeys(both.tolist()):
        device, engine = str(devices[code // len(engines)]), engines[code % len(engines)]
        rows = np.flatnonzero(both == code)
        while len(rows):
            try:
                cluster = cluster_for(device, *(int(size[rows].max()) for size in sizes))
            except MoesaicError as error:
                rows, out = _without_widest(rows, sizes)
                refused.update(dict.fromkeys(out.tolist(), error))
                continue
            fill(answers, columns, Asked(cluster, engine, extrapolate, refused), rows)
            break
    return answers.columns(), refused


def _group_sizes(columns: Columns) -> tuple[Array, Array]:
    """Ranks and nodes of each row's group; one where the kernel has none."""
    kernels, codes = columns.labels("kernel")
    joined = np.array([kernel in COLLECTIVES or kernel in EXCHANGES for kernel in kernels])[codes]
    ranks, nodes = (
        np.where(joined, np.nan_to_num(columns.numbers(name), nan=1.0), 1.0)
        if name in columns.names
        else np.ones(len(codes))
        for name in ("devices", "nodes")
    )
    return ranks, nodes


def _without_widest(rows: Codes, sizes: tuple[Array, Array]) -> tuple[Codes, Codes]:
    """Rows less those of the widest groups, which no cluster holds, and these."""
    ranks, nodes = (size[rows] for size in sizes)
    widest = (ranks == ranks.max()) if ranks.max() > 1 else (nodes == nodes.max())
    return rows[~widest], rows[widest]
