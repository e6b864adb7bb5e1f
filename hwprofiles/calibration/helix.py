"""Fit matrix products of L4, T4 and V100 from Helix's measured layer times; another model judges.

github Thesys-lab/Helix-ASPLOS25 (Apache-2.0), simulator/model_manager: milliseconds a layer of
Llama-2-70B and Llama-30B by tokens in the batch. A layer is priced as its four products; prompts,
and decode of up to eight sequences, whose caches are small beside the weights.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl

from hwprofiles.calibration.fitting import LIMITS, STEPS, Constants
from hwprofiles.efficiency import Band, Curves, EfficiencyCurve
from hwprofiles.kernels import KERNEL_ROW
from hwprofiles.library import cluster_for
from hwprofiles.timing.rows import Array, Rows, Work
from hwprofiles.timing.rules import COUNTS, timed

SYSTEMS = {"l4": "l4", "t4": "t4", "v100": "v100-sxm"}
"""Folders: our device names."""
LAYERS = {
    "llama2_70b": ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)),
    "llama1_30b": ((19968, 6656), (6656, 6656), (35840, 6656), (6656, 17920)),
}
"""(n, k) of a layer's products: queries, keys, values; output; gate, up; down (config.json)."""
FITTED, JUDGED = "llama2_70b", "llama1_30b"
FEW_SEQUENCES = 8
ORIGIN = (
    "github Thesys-lab/Helix-ASPLOS25 @ 148b7330, simulator/model_manager, layers of Llama-2-70B "
    "in FP16 by hwprofiles/calibration/helix.py"
)
PUBLISHED = datetime.date(2024, 11, 24)


def read_layers(root: Path, system: str, model: str) -> tuple[Array, Array]:
    """Tokens in the batch and seconds of one layer: small decode batches and all prompts."""
    parts = [
        pl.read_csv(
            root / model / system / f"{kind}_bs2time.csv",
            has_header=False,
            new_columns=["tokens", "ms"],
        )
        .cast(pl.Float64)
        .filter(pl.col("tokens").is_between(1, most) & (pl.col("ms") > 0))
        for kind, most in (("decode", FEW_SEQUENCES), ("prompt", np.inf))
    ]
    table = pl.concat(parts).to_numpy()
    return table[:, 0], table[:, 1] * 1e-3


def layer_work(system: str, model: str, tokens: Array) -> Work:
    """Work of the four products of a layer for each number of tokens, one after the other."""
    sides = np.array(LAYERS[model], dtype=float)
    frame = pl.DataFrame(
        {"kernel": "gemm", "dtype": "fp16", "m": np.repeat(tokens, len(sides)),
         "n": np.tile(sides[:, 0], len(tokens)), "k": np.tile(sides[:, 1], len(tokens))}
    )  # fmt: skip
    absent = [pl.lit(None, t).alias(c) for c, t in KERNEL_ROW.items() if c not in frame.columns]
    return COUNTS["gemm"](Rows(frame.with_columns(absent)), cluster_for(SYSTEMS[system]))


def layer_s(work: Work, curve: EfficiencyCurve) -> Array:
    """Seconds of whole layers at a curve's typical shares."""
    summed: Array = timed(work, curve)[0][1].reshape(-1, 4).sum(axis=1)
    return summed


def fit_products(root: Path, system: str) -> Constants:
    """Constants of the product curve with the least mean absolute log error."""
    tokens, measured = read_layers(root, system, FITTED)
    work = layer_work(system, FITTED, tokens)

    def loss(values: dict[str, float]) -> float:
        off = np.log(layer_s(work, Constants(**values).curve()) / measured)
        return float(np.abs(off).mean())

    best = {"compute_ratio": 0.5, "memory_ratio": 0.8, "fixed_s": 2e-5, "half_rows_count": 4.0}
    limits = LIMITS | {"memory_ratio": (1e-4, 0.95)}
    least = loss(best)
    for step in STEPS:
        for name in [*best, *best]:
            for factor in (step, 1 / step):
                low, high = limits[name]
                trial = best | {name: min(high, max(low, best[name] * factor))}
                value = loss(trial)
                if value < least:
                    best, least = trial, value
    return Constants(**{name: float(f"{value:.3g}") for name, value in best.items()})


def judged(root: Path, system: str, constants: Constants) -> Array:
    """Log of predicted over measured on the layers of the other model."""
    tokens, measured = read_layers(root, system, JUDGED)
    predicted = layer_s(layer_work(system, JUDGED, tokens), constants.curve())
    errors: Array = np.log(predicted / measured)
    return errors


def fit_curves(root: Path, system: str) -> tuple[Curves, Array]:
    """Curves of a machine, and the log errors on the model that was not fitted."""
    constants = fit_products(root, system)
    errors = judged(root, system, constants)
    # A time that is predicted too short calls for a lower share, and the other way round.
    low, high = np.quantile(errors, (0.1, 0.9))

    def band(share: float) -> Band:
        return Band(
            low=float(f"{share * np.exp(min(low, 0)):.3g}"), typical=share,
            high=min(float(f"{share * np.exp(max(high, 0)):.3g}"), 1.0),
        )  # fmt: skip

    gemm = EfficiencyCurve(
        compute=band(constants.compute_ratio), memory=band(constants.memory_ratio),
        fixed_s=constants.fixed_s, half_rows=constants.half_rows_count,
    )  # fmt: skip
    off = np.abs(np.expm1(errors))
    told = f"; on {len(off)} layers of Llama-30B {np.median(off):.1%} off (median)"
    curves = Curves(
        name=SYSTEMS[system], source=ORIGIN + told, date=PUBLISHED, certainty="derived",
        base="gpu-default", families={"gemm": gemm},
    )  # fmt: skip
    return curves, errors
