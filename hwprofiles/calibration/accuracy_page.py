"""The page that says how far off the shipped profiles are, written from their cards."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprofiles.timing.profile import FOLDER

HEAD = """# How far off timing is

Written from the cards in `hwprofiles/profiles` by `python -m hwprofiles.calibration.accuracy_page`.

Each figure is the error on rows that took no part in the fit: whole shapes left out in five folds
(a GEMM's n and k; heads, width and window; experts, widths, top-k and parallelism; hidden size and
experts of an exchange), or message sizes where a table holds three group sizes only. How far apart
shapes are was chosen on other folds. "Inside" is the share of those rows within the 80 % interval.
"p90" is the error that nine in ten stay below.

A row that was measured itself comes back within 0.3 % (rounding of the stored tables).
"""
LIMITS = """
## What stays hard

- **Autotuned MoE kernels jump.** TensorRT-LLM in bf16 and fp8 on Hopper takes a tactic four times
  slower than the rest in one cell of fourteen, for runs of token counts of single layouts; H100 and
  H200 do so in the same cells (5.3 % of cells slow on both, 0.5 % by chance), yet neither widths,
  tokens an expert nor the kernel's name tell which. Half of the shapes left out are predicted well,
  the worst tenth is not; the interval says so.
- **A model nobody measured.** Layouts of a model are predicted from its other layouts. With all
  layouts of a model left out, the median error of fused MoE grows (table above): engines choose
  kernels and tiles model by model. The interval widens with the distance.
- **Rows with spikes.** One row in ten of SGLang's GEMM on B200, B300 and GB200 is 20 to 60 % slower
  than the same product with one token more; a running median keeps such rows from others' answers,
  but left out themselves they count as error. DeepEP's kernels at few tokens under vLLM repeat no
  better (the `deepep_v2` tables scatter by a factor of two).
- **Kernels by number of heads.** MLA decode has a kernel of its own for 32 and for 128 heads; with
  that number left out the others say nothing of it. All powers of two from 1 to 128 are measured.
- **Exchanges with few shapes.** TensorRT-LLM and vLLM tables of dispatch and combine hold four to
  six shapes; leaving one out leaves little.
- **Several nodes.** Measured for one shape on H100 (2, 4 and 8 nodes) and, over NVLink, GB200;
  everything else is scaled from it and marked `modelled`.
- **H20 and H800** are fitted to one public benchmark each (InferSim). Ten GEMM shapes of H800 lie
  far apart, so a tenth of those left out is off by 40 %; DeepGEMM's own figures of the same
  products differ from InferSim's by up to a third, one with and one without the launch.
- **Custom all-reduce beyond one node.** Measured on GB300 for 8 and 16 devices only.
- **Other releases.** The same kernel moved by 4 % (median), and by a factor of 0.7 to 3 at the
  extremes, between two releases three months apart; an interval holds for the release measured.
"""


@dataclass(frozen=True)
class _Row:
    """One table's line on the page."""

    device: str
    backend: str
    name: str
    error: dict[str, float]
    models: dict[str, float]
    count: int

    @property
    def family(self) -> str:
        return self.name.split(" ")[0]


def _table(cards: Iterable[dict[str, Any]]) -> list[_Row]:
    rows = []
    for card in cards:
        for table in card["tables"]:
            error = table.get("error_shapes") or table["error_sizes"]
            keys = ", ".join(str(value) for value in table["keys"].values() if value)
            rows.append(_Row(card["device"], card["backend"], f"{table['kernel']} ({keys})", error,
                             table.get("error_models", {}), table["rows"]))  # fmt: skip
    return rows


def by_rows(values: Iterable[tuple[float, int]]) -> float:
    """Median of tables' figures, each counted by its rows."""
    order = sorted(values)
    total, reached = sum(rows for _, rows in order), 0
    for value, rows in order:
        reached += rows
        if 2 * reached >= total:
            return value
    return float("nan")


def _families(rows: list[_Row]) -> list[str]:
    families: dict[str, list[_Row]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row)
    lines = ["", "## By family", "",
             "Each table once, and each by its rows (the table in the middle of all rows).", "",
             "| family | tables | rows | median | p90 | inside | median by rows | p90 by rows |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for family, tables in sorted(families.items()):
        once = [_middle(tables, name) for name in ("median", "p90", "coverage")]
        weighed = [by_rows((t.error[name], t.count) for t in tables) for name in ("median", "p90")]
        count = sum(table.count for table in tables)
        lines.append(
            f"| {family} | {len(tables)} | {count:,} | {once[0]:.1%} | {once[1]:.0%} "
            f"| {once[2]:.0%} | {weighed[0]:.1%} | {weighed[1]:.0%} |"
        )
    return lines + _models(families.get("grouped_gemm", []))


def _middle(tables: list[_Row], name: str) -> float:
    return statistics.median(table.error[name] for table in tables)


def _models(tables: list[_Row]) -> list[str]:
    """Errors with whole models left out, by engine and format."""
    groups: dict[tuple[str, str], list[_Row]] = {}
    for table in tables:
        if table.models:
            groups.setdefault((table.backend, table.name.split("(")[1][:-1]), []).append(table)
    lines = ["", "### Fused MoE: layouts left out, and whole models", "",
             "| engine | format | tables | layouts: median | p90 | models: median | p90 |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for (backend, dtype), group in sorted(groups.items()):
        own = [statistics.median(t.error[name] for t in group) for name in ("median", "p90")]
        whole = [statistics.median(t.models[name] for t in group) for name in ("median", "p90")]
        lines.append(
            f"| {backend} | {dtype} | {len(group)} | {own[0]:.1%} | {own[1]:.0%} "
            f"| {whole[0]:.1%} | {whole[1]:.0%} |"
        )
    return lines


def page(cards: Iterable[dict[str, Any]]) -> str:
    """The whole page as Markdown."""
    rows = _table(cards)
    lines = [*HEAD.splitlines(), *_families(rows), *LIMITS.splitlines(), "", "## Every table", "",
             "| device | engine | kernel (formats) | rows | median error | p90 | inside |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {row.device} | {row.backend} | {row.name} | {row.count:,} "
        f"| {row.error['median']:.1%} | {row.error['p90']:.0%} | {row.error['coverage']:.0%} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    shipped = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(FOLDER.glob("*.json"))]
    (Path(__file__).parents[2] / "docs" / "timing-accuracy.md").write_text(
        page(shipped), encoding="utf-8"
    )
