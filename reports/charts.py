"""Inline SVG from plain numbers: stacked bars and a scatter; no script, no outside file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape

PALETTE = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f", "#b83280", "#2c7a7b", "#4a5568",
           "#9b2c2c", "#553c9a", "#718096", "#1a365d", "#744210")  # fmt: skip
WIDTH, BAR_HEIGHT = 720, 30


def stacked_bar(
    parts: Sequence[tuple[str, float, str]], label: str, colours: Sequence[int] | None = None
) -> str:
    """A bar of parts (label, share of the full width, value text) with a legend under it.

    `colours`: numbers in the palette, where parts of several bars are the same things.
    """
    pieces, legend, left = [], [], 0.0
    for i, (name, share, text) in enumerate(parts):
        colour = PALETTE[(i if colours is None else colours[i]) % len(PALETTE)]
        width = min(share, 1 - left) * WIDTH
        pieces.append(
            f'<rect x="{left * WIDTH:.1f}" y="0" width="{max(width, 0):.1f}" '
            f'height="{BAR_HEIGHT}" fill="{colour}"><title>{escape(name)}: {escape(text)} '
            f"({share:.1%})</title></rect>"
        )
        legend.append(
            f'<li><i style="background:{colour}"></i>{escape(name)} '
            f"<b>{escape(text)}</b> <small>{share:.1%}</small></li>"
        )
        left += share
    return (
        f'<figure class="bar"><figcaption>{escape(label)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {BAR_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}"><rect width="{WIDTH}" height="{BAR_HEIGHT}" '
        f'class="track"/>{"".join(pieces)}</svg><ul class="legend">{"".join(legend)}</ul></figure>'
    )


Point = tuple[float, float, str, str]
"""x, y, class, title of one mark."""
PLOT_HEIGHT, LEFT, BOTTOM, TOP = 380, 70, 50, 16


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Marks on linear axes from zero, with a few round grid lines."""
    x_most = max((p[0] for p in points), default=1.0) * 1.05
    y_most = max((p[1] for p in points), default=1.0) * 1.08
    plot_w, plot_h = WIDTH - LEFT - 16, PLOT_HEIGHT - BOTTOM - TOP

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / x_most * plot_w, TOP + plot_h * (1 - y / y_most)

    marks = []
    for x, y, kind, title in points:
        cx, cy = place(x, y)
        radius = 7 if kind == "chosen" else 4
        marks.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{radius}" class="{kind}">'
                     f"<title>{escape(title)}</title></circle>")  # fmt: skip
    grid = []
    for value in ticks(x_most):
        cx, _ = place(value, 0)
        grid.append(
            _line(cx, TOP, cx, TOP + plot_h) + _text(cx, TOP + plot_h + 18, "middle", value)
        )
    for value in ticks(y_most):
        _, cy = place(0, value)
        grid.append(_line(LEFT, cy, LEFT + plot_w, cy) + _text(LEFT - 8, cy + 4, "end", value))
    middle = TOP + plot_h / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {PLOT_HEIGHT}" class="plot" role="img" '
        f'aria-label="{escape(y_label)} against {escape(x_label)}">'
        f'<g class="grid">{"".join(grid)}</g>'
        f'<text x="{LEFT + plot_w / 2}" y="{PLOT_HEIGHT - 8}" text-anchor="middle">'
        f'{escape(x_label)}</text><text x="14" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle})">{escape(y_label)}</text>{"".join(marks)}</svg>'
    )


Slice = tuple[str, str, float, float]
"""Track, name, start and end of one piece of work."""
ROW_HEIGHT, TRACK_LEFT, AXIS_RIGHT = 18, 110, 24
_NEARLY = 1e-9
_TIME_UNITS = (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9))


def gantt(slices: Sequence[Slice], label: str, words: Mapping[str, str] | None = None) -> str:
    """Tracks under one another, each piece of work a rectangle, a time axis below.

    Pieces are coloured by their names without numbers; `words` says what such a name means. On a
    narrow screen the drawing keeps its size and scrolls, so that its words can be read.
    """
    tracks = sorted({track for track, *_ in slices})
    kinds = sorted({_kind(name) for _, name, *_ in slices})
    first = min((start for _, _, start, _ in slices), default=0.0)
    last = max((end for *_, end in slices), default=1.0)
    scale = (WIDTH - TRACK_LEFT - AXIS_RIGHT) / max(last - first, 1e-12)
    bottom = len(tracks) * ROW_HEIGHT
    parts = [
        f'<text x="0" y="{row * ROW_HEIGHT + 13}">{escape(track)}</text>'
        for row, track in enumerate(tracks)
    ]
    parts += _time_axis(first, last, scale, bottom)
    for track, name, start, end in slices:
        colour = PALETTE[kinds.index(_kind(name)) % len(PALETTE)]
        parts.append(
            f'<rect x="{TRACK_LEFT + (start - first) * scale:.2f}" '
            f'y="{tracks.index(track) * ROW_HEIGHT + 2}" width="{(end - start) * scale:.2f}" '
            f'height="{ROW_HEIGHT - 4}" fill="{colour}"><title>{escape(name)}: {start:.6g} s to '
            f"{end:.6g} s</title></rect>"
        )
    legend = "".join(
        f'<li><i style="background:{PALETTE[i % len(PALETTE)]}"></i>'
        f"{escape((words or {}).get(kind, kind))}</li>"
        for i, kind in enumerate(kinds)
    )
    return (
        f"<figure><figcaption>{escape(label)}</figcaption>"
        f'<div class="wide"><svg class="plot" style="height:auto;min-width:40rem" '
        f'viewBox="0 0 {WIDTH} {bottom + BOTTOM // 2}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg></div>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _time_axis(first: float, last: float, scale: float, bottom: float) -> list[str]:
    """Lines and round times under a Gantt chart, in the unit that its span asks for."""
    unit, factor = next((u for u in _TIME_UNITS if (last - first) * u[1] >= 1), _TIME_UNITS[-1])
    marks = ticks((last - first) * factor)
    step = marks[1] if len(marks) > 1 else 1.0
    number, found = math.ceil(first * factor / step - _NEARLY), []
    while number * step <= last * factor * (1 + _NEARLY):
        value = number * step
        x = TRACK_LEFT + (value / factor - first) * scale
        found.append(f'<g class="grid">{_line(x, 0, x, bottom + 4)}</g>')
        found.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value:,.10g} {unit}</text>'
        )
        number += 1
    return found


def _kind(name: str) -> str:
    """What a piece of work is, whichever it is of its kind.

    >>> _kind("attention 3.1"), _kind("F4.0+B0.1"), _kind("p2p")
    ('attention', 'F+B', 'p2p')
    """
    return re.sub(r"(?<![a-z])[\d.]+|[\d.]+(?![a-z])", "", name).strip()


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, anchor: str, value: float) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{value:,g}</text>'


def ticks(most: float) -> list[float]:
    """About five round values from zero up.

    >>> ticks(950)
    [0, 200, 400, 600, 800]
    """
    if most <= 0 or not math.isfinite(most):
        return [0]
    rough = most / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough * 0.999)
    return [i * step for i in range(int(most / step) + 1)]
