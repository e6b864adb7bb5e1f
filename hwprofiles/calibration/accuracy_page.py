"""The page that says how far off the shipped profiles are, written from their cards."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hwprofiles.timing.profile import FOLDER

HEAD = """# How far off timing is

Written from the cards in `hwprofiles/profiles` by `python -m hwprofiles.calibration.accuracy_page`.

Each figure is the error on rows that took no part in the fit: whole shapes left out in five folds
(a GEMM's n and k; heads, width and window; experts, widths, top-k and parallelism; hidden size and
experts of an exchange), or message sizes where a table holds three group sizes only. "Inside" is
the share of those rows within the 80 % interval. "p90" is the error that nine in ten stay below.

A row that was measured itself comes back within 0.3 % (rounding of the stored tables).
"""
LIMITS = """
## What stays hard

- **Autotuned MoE kernels jump.** TensorRT-LLM in bf16 and fp8 on Hopper and SGLang's Triton kernels
  in bf16 are up to five times slower for some shapes than for their neighbours, and nothing in the
  shape says which. Half of the shapes left out are predicted well, the worst tenth is not; the
  interval says so.
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


def _table(cards: Iterable[dict[str, Any]]) -> list[tuple[str, str, str, dict[str, Any], int]]:
    rows = []
    for card in cards:
        for table in card["tables"]:
            error = table.get("error_shapes") or table["error_sizes"]
            keys = ", ".join(str(value) for value in table["keys"].values() if value)
            rows.append((card["device"], card["backend"], f"{table['kernel']} ({keys})", error,
                         table["rows"]))  # fmt: skip
    return rows


def _families(rows: list[tuple[str, str, str, dict[str, Any], int]]) -> list[str]:
    families: dict[str, list[dict[str, Any]]] = {}
    counts: dict[str, int] = {}
    for _, _, name, error, count in rows:
        family = name.split(" ")[0]
        families.setdefault(family, []).append(error)
        counts[family] = counts.get(family, 0) + count
    lines = ["", "## By family, median over tables", "",
             "| family | tables | rows | median error | p90 | inside |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for family, errors in sorted(families.items()):
        middle = {
            name: statistics.median(e[name] for e in errors)
            for name in ("median", "p90", "coverage")
        }
        lines.append(
            f"| {family} | {len(errors)} | {counts[family]:,} | {middle['median']:.1%} "
            f"| {middle['p90']:.0%} | {middle['coverage']:.0%} |"
        )
    return lines


def page(cards: Iterable[dict[str, Any]]) -> str:
    """The whole page as Markdown."""
    rows = _table(cards)
    lines = [*HEAD.splitlines(), *_families(rows), *LIMITS.splitlines(), "", "## Every table", "",
             "| device | engine | kernel (formats) | rows | median error | p90 | inside |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for device, backend, name, error, count in rows:
        lines.append(
            f"| {device} | {backend} | {name} | {count:,} | {error['median']:.1%} "
            f"| {error['p90']:.0%} | {error['coverage']:.0%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    shipped = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(FOLDER.glob("*.json"))]
    (Path(__file__).parents[2] / "docs" / "timing-accuracy.md").write_text(
        page(shipped), encoding="utf-8"
    )
