"""LLMServingSim's layer profiles: measured seconds of one model's layers on one device.

Files of a folder `profiler/perf/DEVICE/MODEL/DTYPE/tpN/`: attention.csv (prefill_chunk, kv_prefill,
n_decode, kv_decode), dense.csv (layer, tokens), per_sequence.csv (layer, sequences), moe.csv
(tokens, activated_experts); times in microseconds.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from hwprofiles.errors import MoesaicError

_COLUMNS = {
    "attention": ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"),
    "dense": ("layer", "tokens", "time_us"),
    "per_sequence": ("layer", "sequences", "time_us"),
    "moe": ("tokens", "activated_experts", "time_us"),
}


def read_layer_profile(folder: Path) -> dict[str, pl.DataFrame]:
    """Read the tables of one profile with a `time_s` column in place of `time_us`.

    Returns:
        Tables by name: attention, dense, per_sequence, and moe where the model has experts.

    Raises:
        MoesaicError: `invalid` for a missing file, column or a time that is no positive number.
    """
    tables: dict[str, pl.DataFrame] = {}
    for name, columns in _COLUMNS.items():
        path = folder / f"{name}.csv"
        if name == "moe" and not path.exists():
            continue
        try:
            table = pl.read_csv(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise MoesaicError("invalid", f"cannot read {path}: {error}") from error
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise MoesaicError("invalid", f"{path} line 1 lacks the column {', '.join(missing)}")
        if not (table["time_us"].is_finite() & (table["time_us"] > 0)).all():
            raise MoesaicError("invalid", f"{path} holds a time that is not above zero")
        tables[name] = table.with_columns(time_s=pl.col("time_us") / 1e6).drop("time_us")
    return tables
