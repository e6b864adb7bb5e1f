"""Write docs/placement-growth.md: how placement grows, what it reaches, and how it generalises.

`python -m tests.benchmarks.placement_page LOADS TOKENS` measures all anew. LOADS holds expert
loads (`decode_*.json`, `prefill_*.json`, layers x experts), TOKENS files with `expert_ids`.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path

import numpy as np

from planner.formats.expert_load import read_choices, read_expert_load
from planner.search.placement import PlacementQuestion, place
from planner.search.placement_answer import Placement

PAGE = Path(__file__).parents[2] / "docs" / "placement-growth.md"
GROWTH = {
    "Devices": [(devices, 2 * devices, 1, 0) for devices in (8, 64, 512, 4096)],
    "Experts": [(8, experts, 1, 8) for experts in (8, 64, 256, 1024)],
    "Layers": [(32, 256, layers, 32) for layers in (1, 8, 32, 128)],
}
SIZES = """
## Time and gap by size

Loads are drawn (Dirichlet, 2 an expert, seed 1). Time grows with layers in proportion, and little
faster than slots. The gap is largest where a device holds few slots: there the bound is loose,
since it does not know which copies can share a device. Layers of up to 48 slots times devices are
solved as one programme where the packing leaves a gap; layers of up to 64 slots whose devices can
hold few different contents are counted out, with no gap."""
SHAPES = ((32, 4, 32), (72, 9, 32), (320, 40, 64))
TRAFFIC = ((4, 0, "anywhere"), (8, 0, "anywhere"), (4, 16, "anywhere"), (4, 0, "by sequence"),
           (4, 16, "by sequence"))  # fmt: skip
PICKED = (0, 16)
Matrix = tuple[tuple[float, ...], ...]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loads", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--only", help="The one heading under which the page is renewed.")
    given = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    kept = {part.partition("\n")[0]: ["\n## " + part.rstrip()] for part in old}
    sections = {
        "Time and gap by size": _growth,
        "Measured loads": lambda: _reached(given.loads),
        "Tomorrow's load": lambda: _generalised(given.loads),
        "Traffic between nodes": lambda: _traffic(given.tokens),
    }
    parts = [_head()]
    for name, measure in sections.items():
        parts += kept[name] if given.only not in (None, name) else measure()
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _head() -> str:
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return (
        "# How placement grows and what it reaches\n\n"
        "Written by `python -m tests.benchmarks.placement_page LOADS TOKENS` on two shared cores, "
        f"{today}: seconds are\nthose of a machine with other work beside."
    )


def _asked(**given: object) -> tuple[Placement, float]:
    question = PlacementQuestion.parse(given)
    started = time.perf_counter()
    return place(question), time.perf_counter() - started


def _growth() -> list[str]:
    """Drawn loads, so that each size can be had."""
    parts = [SIZES]
    for name, sizes in GROWTH.items():
        parts.append(f"\n### {name}\n\n| devices | experts | layers | copies | seconds | largest "
                     "gap to the bound |\n|---|---|---|---|---|---|")  # fmt: skip
        for devices, experts, layers, redundant in sizes:
            drawn = np.random.default_rng(1).dirichlet(np.full(experts, 2.0), layers)
            answer, seconds = _asked(loads=[drawn.tolist()], devices=devices, redundant=redundant)
            gap = max(layer.gap_ratio for layer in answer.layers)
            parts.append(
                f"| {devices} | {experts} | {layers} | {redundant} | {seconds:.3g} | {gap:.3%} |"
            )
    return parts


def _reached(folder: Path) -> list[str]:
    """Measured loads against the published balancing."""
    parts = ["\n## Measured loads\n\nDeepSeek-V3, 58 layers of 256 experts, three recorded loads; "
             "greedy is the published balancing.\n\n| devices | nodes | copies | loads | largest "
             "gap | layers worse than greedy | mean placed | mean greedy | most seconds |\n"
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    files = sorted(folder.glob("*.json"))[::4]
    for devices, nodes, redundant in SHAPES:
        answers = [
            _asked(loads=[read_expert_load(file).counts], devices=devices, nodes=nodes,
                   redundant=redundant)
            for file in files
        ]  # fmt: skip
        layers = [
            pair for answer, _ in answers
            for pair in zip(answer.layers, answer.greedy.max_over_mean, strict=True)
        ]  # fmt: skip
        worse = sum(layer.max_over_mean > greedy + 1e-12 for layer, greedy in layers)
        placed = np.mean([layer.max_over_mean for layer, _ in layers])
        greedy = np.mean([greedy for _, greedy in layers])
        gap = max(layer.gap_ratio for layer, _ in layers)
        slowest = max(seconds for _, seconds in answers)
        parts.append(f"| {devices} | {nodes} | {redundant} | {len(files)} | {gap:.3%} | {worse} | "
                     f"{placed:.4f} | {greedy:.4f} | {slowest:.1f} |")  # fmt: skip
    return parts


def _generalised(folder: Path) -> list[str]:
    """Tomorrow's load: each recording left out once."""
    parts = [
        "\n## Tomorrow's load\n\nEach recording is left out once; layouts are made from the "
        "others of its phase and judged on it:\nmean over layers of busiest over mean, and "
        "the worst layer. 32 devices, 32 copies; every sixth of the 58 layers.\n\n"
        "| left out | greedy, one load | placed, one load | greedy, mean load | placed, mean "
        "load | placed, worst load | best possible |\n|---|---|---|---|---|---|---|"
    ]
    rows = []
    for phase in ("decode", "prefill"):
        files = sorted(folder.glob(f"{phase}_*.json"))
        counts = {file.stem: read_expert_load(file).counts[3::6] for file in files}
        for name, score in counts.items():
            rows.append(_left_out(name, score, [c for n, c in counts.items() if n != name]))
            cells = " | ".join(f"{mean:.3f} ({worst:.3f})" for mean, worst in rows[-1][1:])
            parts.append(f"| {rows[-1][0]} | {cells} |")
    means = [np.mean([row[k] for row in rows], axis=0) for k in range(1, 7)]
    cells = " | ".join(f"{mean:.3f} ({worst:.3f})" for mean, worst in means)
    parts.append(f"| mean | {cells} |")
    return parts


def _left_out(name: str, score: Matrix, others: list[Matrix]) -> tuple:  # type: ignore[type-arg]
    """Busiest over mean on the recording left out: mean over layers and worst."""
    asked = {"devices": 32, "redundant": 32}
    one = place(PlacementQuestion.parse(asked | {"loads": others[:1]}), score)
    mean = place(PlacementQuestion.parse(asked | {"loads": others, "robust": "mean"}), score)
    worst = place(PlacementQuestion.parse(asked | {"loads": others}), score)
    best = place(PlacementQuestion.parse(asked | {"loads": [score]}))
    found = [one.scored_greedy.max_over_mean, [x.max_over_mean for x in one.scored],
             mean.scored_greedy.max_over_mean, [x.max_over_mean for x in mean.scored],
             [x.max_over_mean for x in worst.scored],
             [x.max_over_mean for x in best.layers]]  # fmt: skip
    return (name, *((float(np.mean(x)), float(np.max(x))) for x in found))


def _traffic(folder: Path) -> list[str]:
    """Tokens between nodes, layer by layer."""
    parts = ["\n## Traffic between nodes\n\nDeepSeek-V2-Lite's recorded tokens, 64 experts, 4 "
             f"devices a node, layers {', '.join(map(str, PICKED))}; the busiest device may\nbe 2 "
             "% above the best found. Pairs: share of token-expert pairs that leave their node; "
             "visits: nodes beside\nits own that a token crosses to, each once. The greedy looks "
             "at no load.\n\n| tokens | nodes | copies | start | measure | balanced | greedy | its "
             "fullest node | placed | bound | gap | seconds a layer |\n"
             "|---|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for file in sorted(folder.glob("*.npz"))[1:2]:
        ids = read_choices(file)[list(PICKED)]
        counts = [np.bincount(layer.ravel(), minlength=64).tolist() for layer in ids]
        lengths = np.load(file)["seq_lens"]
        for nodes, redundant, start in TRAFFIC:
            where = np.repeat(np.arange(len(lengths)), lengths) % nodes
            base = {"loads": [counts], "devices": 4 * nodes, "nodes": nodes,
                    "redundant": redundant, "objective": "lexicographic"}  # fmt: skip
            measured = {"visits": {"tokens": ids.tolist()}}
            if start == "by sequence":
                sources = np.zeros((len(ids), nodes, 64))
                for layer, chosen in enumerate(ids):
                    np.add.at(sources[layer], (where[:, None], chosen), 1.0)
                measured["visits"]["token_nodes"] = where.tolist()
                measured["pairs"] = {"sources": sources.tolist()}
            elif redundant:
                measured["pairs"] = {}
            for measure, data in measured.items():
                answer, seconds = _asked(**base, **data)
                parts.append(_traffic_row((file.stem, nodes, redundant, start, measure), answer,
                                          seconds))  # fmt: skip
    return parts


def _traffic_row(names: tuple[object, ...], answer: Placement, seconds: float) -> str:
    means = [
        float(np.mean([getattr(layer, name) for layer in answer.traffic]))
        for name in ("crossing_before", "greedy", "greedy_max_over_mean", "crossing", "bound",
                     "gap_ratio")
    ]  # fmt: skip
    *cells, gap = means
    text = " | ".join([*map(str, names), *(f"{cell:.3f}" for cell in cells)])
    return f"| {text} | {gap:.1%} | {seconds / len(answer.traffic):.2f} |"


if __name__ == "__main__":
    main()
