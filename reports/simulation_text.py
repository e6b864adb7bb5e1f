"""A simulation's figures as plain text for a terminal."""

from __future__ import annotations

from planner.simulation.question import SimulationAnswer
from reports import views
from reports.text import text_table

_MS = 1e3
_PERCENT = 100
_SECONDS = ("duration_s",)


def simulation_text(answer: SimulationAnswer) -> str:
    """Percentiles and rates with their bands, then what was assumed."""
    rows = []
    for name, figure in answer.summary.items():
        label, scale = _label(name)
        cells = [views.number(value * scale) for value in (figure.typical, figure.low, figure.high)]
        rows.append([label, *cells])
    return "\n".join([
        f"{answer.name}: {answer.seeds} seed(s), {answer.kv_blocks} KV blocks a rank",
        "",
        text_table(["figure", "typical", "low", "high"], rows),
        "",
        *(f"Assumed: {text}" for text in answer.assumptions),
    ])  # fmt: skip


def _label(name: str) -> tuple[str, float]:
    """What a figure is called and the factor to its display unit."""
    if name.endswith(("per_s", "per_rank")):
        return name.replace("_per_s", "/s").replace("_per_rank", "/rank").replace("_", " "), 1.0
    if name in _SECONDS:
        return name.removesuffix("_s").replace("_", " ") + " s", 1.0
    if name.endswith("_s"):
        return name.removesuffix("_s").replace("_", " ") + " ms", _MS
    if name.endswith("_ratio"):
        return name.removesuffix("_ratio").replace("_", " ") + " %", _PERCENT
    return name.removesuffix("_count").replace("_", " "), 1.0
