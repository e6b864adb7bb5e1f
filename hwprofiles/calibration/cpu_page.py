"""The page of the shipped CPU run: what was measured with torch, and what a profile makes of it.

`python -m hwprofiles.calibration.cpu_page [FOLDER]` takes a calibration's folder into the shipped
evidence first, if one is named, and writes `docs/cpu-run.md` from the evidence.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.calibration.environment import Environment
from hwprofiles.calibration.fitting import FamilyFit, fit_curves
from hwprofiles.calibration.local import local_cluster
from hwprofiles.calibration.measured_tables import write_measured
from hwprofiles.calibration.measurement import MEASUREMENT, Journal, measurement_table
from hwprofiles.calibration.quarantine import split
from hwprofiles.calibration.runners.torch_cuda import FORMS
from hwprofiles.document import parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.files import write_text

SHIPPED = Path(__file__).parent / "evidence" / "cpu"
HEAD = """# A CPU measured with torch

Written from `hwprofiles/calibration/evidence/cpu` by `python -m hwprofiles.calibration.cpu_page`;
`moesaic calibrate --device auto` measures the machine it runs on.

Every row starts with cold caches; it was repeated until the median was known within 2 % or its time
was up, and samples beside other load or steal were dropped. The run was killed (`kill -9`) on the
way and went on where it was. Errors are those on whole shapes that took no part in the fit.
"""
NOTES = """
## What it says

- Curves (one roofline a family) carry a handful of constants; the tables of the same rows know each
  shape and are what pricing asks first. Both are judged on shapes left out.
- Weights lie as `torch.nn.Linear` keeps them, the summed side last. Stored the other way round, a
  product in bfloat16 on this processor (no bfloat16 units) walks columns: 0.1 to 1 GFLOP/s by
  the width instead of 3 to 9, and its curve missed by half (55 %; packed weights 63 and 67 %).
- Packed weights (w8a16, w4a16) are unpacked before each product. A roofline takes the longer of
  unpacking and product where both take turns: at 4 bits, where unpacking takes longest, its curve
  stays farther off.
- The router is three operations, absorbed MLA decode three; one launch and one ceiling a family say
  too little of either, and the tables of their rows are what pricing asks.
- Collectives are gloo between processes that share one core: the cost of an operation, not of links
  (`docs/network.md` has those). Ranks take turns, so that each further rank adds its part and fewer
  ranks are each faster; a curve that did not know missed by 29 to 37 %.
- The two largest reads from the disk were disturbed each time and are kept apart.
"""


def read_rows(folder: Path = SHIPPED) -> pl.DataFrame:
    """The shipped rows as a table of measurements."""
    table = pl.read_csv(folder / "rows.csv", schema_overrides=MEASUREMENT)
    return measurement_table(table.to_dicts())


def read_environment_of(folder: Path = SHIPPED) -> Environment:
    """What the shipped rows ran on."""
    text = (folder / "environment.json").read_text(encoding="utf-8")
    return parse_as(Environment, json.loads(text))


def take_in(run: Path, folder: Path = SHIPPED) -> None:
    """Write a calibration's rows and environment as evidence."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = measurement_table(Journal(run / "measurements.jsonl").read())
    used = [name for name in rows.columns if rows[name].null_count() < rows.height]
    short = pl.col("^.*_(s|ratio)$").round_sig_figs(5)
    rows.select(used).with_columns(short).write_csv(folder / "rows.csv")
    for name in ("environment.json", "device.yaml", *(f"profile-{f}.yaml" for f in FORMS["cpu"])):
        (folder / name).write_text((run / name).read_text(encoding="utf-8"), encoding="utf-8")


def fitted() -> tuple[list[FamilyFit], list[dict[str, Any]], int]:
    """Curves of each format, cards of the tables, and how many rows were set apart."""
    rows, environment = read_rows(), read_environment_of()
    machine = local_cluster(environment, rows.to_dicts())
    good, bad = split(rows, machine)
    working = machine.device.memory[0].name
    good = good.filter(pl.col("tier").is_null() | (pl.col("tier") == working))
    fits: list[FamilyFit] = []
    for form in FORMS["cpu"]:
        found = fit_curves(good, machine, form).families
        fits += [fit for fit in found if fit.dtype or form == FORMS["cpu"][0]]
    with tempfile.TemporaryDirectory() as folder:
        card = write_measured(Path(folder), good, machine, "torch-cpu")
        if card is None:
            raise MoesaicError("outside_evidence", "no family has rows enough for a table")
        tables = json.loads(card.read_text(encoding="utf-8"))["tables"]
    return fits, tables, bad.height


def page() -> str:
    """The whole page as Markdown."""
    known, rows = read_environment_of(), read_rows()
    fits, tables, apart = fitted()
    clock = f"{known.clock_hz / 1e9:.2f} GHz" if known.clock_hz else "unknown clock"
    lines = [
        *HEAD.splitlines(), "", "## Where", "",
        f"{known.processor}, {known.cores_count} core{'s' * (known.cores_count > 1)}"
        f"{' of a virtual machine' if known.virtual_machine else ''} at {clock} nominal, governor "
        f"{known.governor}, {', '.join(known.vector_extensions)}; {known.operating_system}, "
        f"{known.image}; Python {known.python}, torch {known.libraries['torch']}, scheduler: "
        f"{known.scheduling}. {rows.height} rows, {apart} set apart.",
        "", "## Curves", "", "| family | format | rows | median error | p90 | inside 80 % |",
        "|---|---|---|---|---|---|",
        *(f"| {fit.family} | {fit.dtype or '-'} | {fit.rows_count} | {fit.error_median_ratio:.1%} "
          f"| {fit.error_p90_ratio:.0%} | {fit.coverage_ratio:.0%} |" for fit in fits),
        "", "## Tables", "",
        "| family | formats | rows | judged on | median error | p90 | inside |",
        "|---|---|---|---|---|---|---|", *(_table_row(table) for table in tables),
        *NOTES.splitlines(),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _table_row(table: dict[str, Any]) -> str:
    shapes = "error_shapes" in table
    error = table["error_shapes" if shapes else "error_sizes"]
    keys = ", ".join(str(value) for value in table["keys"].values() if value)
    return (
        f"| {table['kernel']} | {keys} | {table['rows']} | {'shapes' if shapes else 'sizes'} "
        f"| {error['median']:.1%} | {error['p90']:.0%} | {error['coverage']:.0%} |"
    )


def main(run: str | None) -> None:
    """Take a run in, if one is named, and write the page."""
    if run is not None:
        take_in(Path(run))
    write_text(Path(__file__).parents[2] / "docs" / "cpu-run.md", page())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
