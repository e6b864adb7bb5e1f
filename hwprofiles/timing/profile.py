"""Read fitted profiles: measured tables of a device with an engine, and which to fall back on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.files import read_document
from hwprofiles.kernels import COLLECTIVES, EXCHANGES
from hwprofiles.timing.places import FAMILIES
from hwprofiles.timing.rows import Array
from hwprofiles.timing.tables import Bands, Physics, Table

FOLDER = Path(__file__).parents[1] / "profiles"
STEP = 0.006
"""Residuals are stored in steps of 0.6 %, half of which is the worst rounding."""
BACKENDS = ("trtllm", "sglang", "vllm")
SHARED = "nccl"
"""Tables that hold for every engine."""
HCCL = "hccl"
"""Ascend's collectives, likewise; asked for by that library's name."""


@dataclass(frozen=True)
class Profile:
    """Tables of one device and engine; `card` is what `profiles/*.json` says about them."""

    card: dict[str, Any]
    path: Path

    def table(self, number: int) -> Table:
        """Read one table."""
        return _table(self.path, number)


@cache
def load_profile(device: str, backend: str) -> Profile | None:
    """Open a profile by device and engine; none when there is no such file."""
    path = FOLDER / f"{device}.{backend}.json"
    if not path.exists():
        return None
    return Profile(_card(path), path)


@cache
def _card(path: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return card


@cache
def _arrays(path: Path) -> Any:  # noqa: ANN401 - numpy's lazy archive
    return np.load(path.with_suffix(".npz"), allow_pickle=False)


@cache
def _table(path: Path, number: int) -> Table:
    profile = _card(path)
    card = profile["tables"][number]
    local = card["kernel"] == "grouped_gemm" and profile["backend"] in LOCAL_WHEN_BALANCED
    arrays = _arrays(path)
    return Table(
        kernel=card["kernel"],
        keys=card["keys"],
        physics=Physics(**card["physics"]),
        shapes=np.log2(arrays[f"{number}.shapes"].astype(float)),
        outer=np.array(card["outer"], dtype=float),
        inner=np.array(card["inner"], dtype=float),
        residual=unpack(arrays[f"{number}.residual"]),
        bands=Bands(**{name: tuple(values) for name, values in card["bands"].items()}),
        local_when_balanced=local and max(card["outer"]) > 0,
        outlier=card.get("outlier") or np.inf,
        running=card.get("running", 1),
        metric=FAMILIES[card["kernel"]].metric(**card.get("metric", {})),
    )


LOCAL_WHEN_BALANCED = ("sglang", "vllm")
"""Engines whose balanced rows stop falling with more expert ranks: 8,192 tokens on H200 take 5.0 ms
at EP32 under vLLM 0.24 and 4.4 ms under SGLang 0.5.14, 0.38 ms under TensorRT-LLM, where EP1 takes
8 to 10 ms under all three (aiconfigurator 0.12). As asked, such rows are answered as measured."""


def pack(residual: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Steps of `STEP`, each cell as the difference to the one before, low bytes before high ones.

    Small numbers packed so take a third less room in the archive.
    """
    steps = np.round(residual / STEP).astype(np.int32)
    small = np.ascontiguousarray(np.diff(steps, axis=-1, prepend=0).astype("<i2"))
    low_and_high = small.view(np.uint8).reshape(*small.shape, 2)
    return np.ascontiguousarray(np.moveaxis(low_and_high, -1, 0))


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Undo `pack`."""
    small = np.ascontiguousarray(np.moveaxis(packed, 0, -1)).view("<i2")[..., 0]
    whole = np.cumsum(small.astype(np.float32), axis=-1) * np.float32(STEP)
    return whole.astype(np.float32)


@dataclass(frozen=True)
class Found:
    """A table and how far it is from what was asked, in log seconds to widen the interval by."""

    table: Table
    widen: float
    because: tuple[str, ...]
    """Why it is not exactly the table asked for."""


OTHER_ENGINE, OTHER_FORMAT, OTHER_DEVICE = 0.25, 0.3, 0.25
"""Log seconds: the same MoE shape differs between engines by 1.12x (median) to 2.15x (p75), H200
tables of aiconfigurator 0.12; formats and dies of one kind lie in the same range."""
NEAR_FORMATS: dict[str, tuple[str, ...]] = {
    "fp8": ("fp8_block",),
    "fp8_block": ("fp8",),
    "int8": ("fp8", "fp8_block"),
    "nvfp4": ("mxfp4",),
    "mxfp4": ("nvfp4",),
    "w4a8_mxfp4": ("fp8", "fp8_block"),
    "w4a8": ("w4a8_mxfp4", "fp8"),
    "w4a16": ("w4a16_mxfp4", "bf16"),
    "w4a16_mxfp4": ("w4a16", "bf16"),
    "w8a16": ("bf16",),
    "q4_0": ("w4a16", "w4a16_mxfp4"),
    "q8_0": ("w8a16", "bf16"),
}
"""Formats whose kernels are built alike; physics still counts the asked format's own bytes."""


@cache
def relatives() -> dict[str, tuple[str, ...]]:
    """Devices to borrow tables from, nearest first."""
    data = read_document(FOLDER / "relatives.yaml")
    return {name: tuple(item["like"]) for name, item in data["devices"].items()}


@cache
def find(device: str, backend: str | None, kernel: str, keys: tuple[tuple[str, str | None], ...]
         ) -> Found | None:  # fmt: skip
    """The nearest table: exact, another engine, another format, a relative of the device."""
    wanted = dict(keys)
    engine = backend or BACKENDS[0]
    order = (engine, SHARED, HCCL, *(b for b in BACKENDS if b != engine))
    names = (device, *relatives().get(device, ()))
    for formats in (0, 1):
        for i, name in enumerate(names):
            found = _in_device(name, order, kernel, wanted, formats)
            if found is not None:
                widen = OTHER_DEVICE if i else 0.0
                because = (f"measured on {name}",) if i else ()
                table = _lent(found.table, device) if i else found.table
                return Found(table, found.widen + widen, found.because + because)
    return None


def _lent(table: Table, device: str) -> Table:
    """A table as another device uses it: its own share of peak where that is known.

    Where arithmetic and memory stand in another proportion, the residual of the lender's shapes
    says nothing; physics with the known share is nearer.
    """
    share = read_document(FOLDER / "relatives.yaml")["devices"][device].get("compute_share")
    if share is None or table.kernel in COLLECTIVES or table.kernel in EXCHANGES:
        return table
    physics = replace(table.physics, compute_share=float(share))
    return replace(table, physics=physics, residual=np.zeros_like(table.residual))


def _in_device(
    device: str, order: tuple[str, ...], kernel: str, keys: dict[str, str | None], formats: int
) -> Found | None:
    for choice in _near_keys(keys) if formats else (keys,):
        for backend in order:
            profile = load_profile(device, backend)
            number = None if profile is None else _match(profile, kernel, choice)
            if profile is None or number is None:
                continue
            other = backend not in (order[0], SHARED, HCCL)
            widen = OTHER_ENGINE * other + OTHER_FORMAT * formats
            because = ((f"kernels of {backend}",) if other else ()) + (
                (f"format {choice.get('dtype')}",) if formats else ()
            )
            return Found(profile.table(number), widen, because)
    return None


def _near_keys(keys: dict[str, str | None]) -> list[dict[str, str | None]]:
    chosen: list[dict[str, str | None]] = []
    for name in ("dtype", "kv_dtype"):
        chosen += [{**keys, name: near} for near in NEAR_FORMATS.get(str(keys.get(name)), ())]
    if "kv_dtype" in keys:
        chosen += [{"dtype": d, "kv_dtype": k} for d in ("bf16", "fp8") for k in ("bf16", "fp8")]
    return chosen


def _match(profile: Profile, kernel: str, keys: dict[str, str | None]) -> int | None:
    for number, table in enumerate(profile.card["tables"]):
        if table["kernel"] == kernel and all(
            table["keys"].get(name) in (None, value) for name, value in keys.items()
        ):
            return number
    return None


def columns_of(place_shape: Array) -> NDArray[np.float32]:
    """Sizes as stored: the numbers themselves, not their logarithms."""
    return (2.0**place_shape).astype(np.float32)
