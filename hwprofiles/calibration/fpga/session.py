"""From Verilog to profile: simulate, synthesise, place, fit and write; or fit what was recorded."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hwprofiles.calibration.fpga import place, simulate
from hwprofiles.calibration.fpga.profile import ArrayFit, Fitted, fit_array
from hwprofiles.calibration.fpga.tools import require
from hwprofiles.document import Document
from hwprofiles.files import dump, make_folder, write_text

RECORDED = Path(__file__).parent / "recorded"
SIZES = (2, 4, 8)
SEEDS = (1, 2, 3)


class FpgaReport(Document):
    """What a run found, and with which programs."""

    tools: dict[str, str]
    date: datetime.date
    arrays: tuple[ArrayFit, ...]
    profiles: tuple[str, ...] = ()
    """Files written: curves and device of each size."""


def calibrate_fpga(
    folder: Path, *, quick: bool = False, progress: Callable[[str], None] = lambda _: None
) -> FpgaReport:
    """Run everything into a folder; rows found there from before are not made again.

    Args:
        folder: made where it is missing.
        quick: the smallest array, one placement and a few calls.
        progress: told what starts.

    Raises:
        MoesaicError: `invalid` where a program is missing, `internal` where the kernel computes
            another number than the reference.
    """
    require()
    make_folder(folder)
    calls, placements = folder / "calls.jsonl", folder / "placements.jsonl"
    for size in SIZES[:1] if quick else SIZES:
        _simulate(size, folder, calls, quick=quick, progress=progress)
        _place(size, folder, placements, SEEDS[:1] if quick else SEEDS, progress)
    about = {"tools": place.versions(), "date": _today()}
    write_text(folder / "run.json", dump(about, "json"))
    return write_profiles(folder, folder)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _simulate(
    size: int, folder: Path, path: Path, *, quick: bool, progress: Callable[[str], None]
) -> None:
    done = {_call(row) for row in read(path)}
    wanted = [c for c in simulate.calls(size, quick=quick) if _call(vars(c)) not in done]
    if not wanted:
        return
    progress(f"simulating {len(wanted)} calls of the {size} x {size} array")
    kernel = simulate.Simulation(size, folder)
    for seed, call in enumerate(wanted):
        _append(path, kernel.checked(call, seed))


def _place(
    size: int, folder: Path, path: Path, seeds: Iterable[int], progress: Callable[[str], None]
) -> None:
    done = {(row["size"], row["seed"]) for row in read(path)}
    wanted = [seed for seed in seeds if (size, seed) not in done]
    if not wanted:
        return
    progress(f"synthesising the {size} x {size} array")
    place.synthesise(size, folder)
    for seed in wanted:
        progress(f"placing the {size} x {size} array, seed {seed}")
        _append(path, place.place(size, folder, seed))


def _call(row: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(row[name]) for name in ("size", "depth", "left_tiles", "right_tiles"))


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def fit_recorded(folder: Path = RECORDED) -> list[Fitted]:
    """Fit every size of which a folder holds calls and placements."""
    calls, placements = read(folder / "calls.jsonl"), read(folder / "placements.jsonl")
    on = datetime.date.fromisoformat(_about(folder)["date"])
    sizes = sorted({row["size"] for row in calls} & {row["size"] for row in placements})
    return [
        fit_array(
            [row for row in calls if row["size"] == size],
            [row for row in placements if row["size"] == size],
            on,
        )
        for size in sizes
    ]


def _about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return about


def write_profiles(source: Path, folder: Path) -> FpgaReport:
    """Fit what `source` holds and write `curves-NAME.yaml`, `device-NAME.yaml` and the report."""
    about = _about(source)
    written = []
    fits = fit_recorded(source)
    for fitted in fits:
        for kind, document in (("curves", fitted.curves), ("device", fitted.device)):
            name = f"{kind}-{fitted.device.name}.yaml"
            plain = document.model_dump(mode="json", exclude_defaults=True)
            text = dump({"schema_version": document.schema_version, **plain}, "yaml")
            write_text(folder / name, text)
            written.append(name)
    report = FpgaReport(
        tools=about["tools"],
        date=datetime.date.fromisoformat(about["date"]),
        arrays=tuple(fitted.fit for fitted in fits),
        profiles=tuple(written),
    )
    write_text(folder / "report.json", dump(report.model_dump(mode="json"), "json"))
    return report
