"""The page that sets a measured network of namespaces beside its prediction.

`python -m hwprofiles.calibration.network.page [FOLDER]` takes a run's folder into the shipped
evidence first, if one is named, and writes `docs/network.md` from the evidence.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hwprofiles.calibration.network.answers import SMALL_BYTES, OrderCheck
from hwprofiles.calibration.network.evidence import SHIPPED, of_run, read_evidence, write_evidence
from hwprofiles.calibration.network.session import DEFAULT, ROUNDS, NetworkReport, compared
from hwprofiles.files import dump, write_text

HEAD = """# A real network without GPUs

Written from `hwprofiles/calibration/evidence/network` by
`python -m hwprofiles.calibration.network.page`; `moesaic calibrate --network` measures anew.

Each rank is a process (torch.distributed, gloo) in a network namespace of its own. A switch in user
space joins them: every packet is due when its link has carried it, at the stated rate and latency,
and a full queue holds the sender back. A layer runs for real in both orders: CDAC sends hidden-wide
tokens, DCCA narrows them before they travel and widens them after (arXiv:2502.16927).

The prediction is the product's own: the all-to-all rule of `moesaic time` with link latencies and
curves fitted to powers of two of bytes; no layer below sends a message of a fitted size. An
operation's cost in software is part of the fit: below 32 KiB it outweighs the bytes.
"""
NOTES = """
## What was learnt

- Gloo's own all-to-all posts its sends before its receives. A rank that comes late puts its data in
  front of the word that it is ready, and both directions of a link then run one after the other:
  the same layer took twice as long as soon as products stood between the exchanges. The exchange
  measured here posts all receives first.
- Packets of one rank to several others have to take turns. In the order of their arrival they meet
  at the same receiver, and an exchange between four ranks took half as long again.
- Delayed acknowledgements (40 ms) show up as single late samples; the routes ask for quick ones.
- An interval is one of its run. A second run of one round (84 rows, torch 2.14.1, the machine busy)
  found the rates within 2 to 7 % and an operation's cost 26 to 42 % smaller. Intervals made in it
  held 81 to 85 % of its exchanges and 77 to 87 % of its layers, each group judged by the others;
  the first run's held half of its exchanges of 32 KiB and more, and none below. Its nine quotients
  were ranked right; without a middle of three rounds one exchange was 27 % off, layers 12 %.
- Four ranks share two cores. The rates are low enough that switch and ranks keep up; products of
  more ranks than cores take turns, and the prediction counts that.
"""


def page(report: NetworkReport) -> str:
    """The whole page as Markdown."""
    known = report.environment
    lines = [
        *HEAD.splitlines(), "", "## Where", "",
        f"{known.processor}, {known.cores_count} cores"
        f"{' of a virtual machine' if known.virtual_machine else ''}, {known.operating_system}, "
        f"governor {known.governor}; torch {known.libraries['torch']}, "
        f"Python {known.python}, scheduler: {known.scheduling}. {known.libraries['network']}. "
        f"Everything was measured in {ROUNDS} rounds minutes apart, the middle one counts.",
        *_line_table(report), *_family_table(report), *_interval_table(report),
        *_summary(report.orders),
        *_order_table(report.orders), *NOTES.splitlines(),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _line_table(report: NetworkReport) -> list[str]:
    head = ["", "## Straight lines", "",
            "Seconds of an all-to-all as alpha + bytes / beta, one line a group of ranks.", "",
            "| ranks | nodes | alpha | beta | R² | sizes fitted | held out | median error | p90 |",
            "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    return head + [
        f"| {line.devices} | {line.nodes} | {line.alpha_s * 1e3:.2f} ms "
        f"| {line.beta_bytes_per_s / 1e6:.1f} MB/s | {line.r_squared_ratio:.4f} "
        f"| {line.fitted_count} | {line.held_out_count} | {line.error_median_ratio:.1%} "
        f"| {line.error_p90_ratio:.1%} |"
        for line in report.lines
    ]


def _family_table(report: NetworkReport) -> list[str]:
    head = ["", "## The profile", "", "One curve a family for all groups, judged on sizes and "
            "shapes left out of its fit.", "",
            "| family | rows | median error | p90 | inside 80 % |",
            "|---|---|---|---|---|"]  # fmt: skip
    return head + [
        f"| {fit.family} | {fit.rows_count} | {fit.error_median_ratio:.1%} "
        f"| {fit.error_p90_ratio:.1%} | {fit.coverage_ratio:.0%} |"
        for fit in report.families
    ]


def _interval_table(report: NetworkReport) -> list[str]:
    head = ["", "## Intervals on what no fit saw", "",
            "80 % intervals of whole times from held-out rows: how many rows of each width, size or"
            , "group of ranks lie inside the interval that all the others give.", "",
            "| what | left out | groups | rows | inside | interval of all |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    return head + [
        f"| {found.what} | {found.left_out} | {found.groups_count} | {found.rows_count} "
        f"| {found.coverage_ratio:.0%} "
        f"| {found.low_ratio - 1:+.1%} to {found.high_ratio - 1:+.1%} |"
        for found in report.intervals
    ]


def off_ratios(orders: Sequence[OrderCheck], part: str = "") -> list[float]:
    """|predicted / measured - 1| of DCCA over CDAC, one a layer."""
    return [abs(told / made - 1) for made, told in (order.quotient(part) for order in orders)]


def ranked_right(orders: Sequence[OrderCheck], part: str = "") -> int:
    """Layers whose faster order was predicted as the faster one."""
    quotients = [order.quotient(part) for order in orders]
    return sum((made < 1) == (told < 1) for made, told in quotients)


def large(orders: Sequence[OrderCheck]) -> list[OrderCheck]:
    """Layers whose smaller message has 32 KiB or more."""
    return [order for order in orders if order.dcca_bytes >= SMALL_BYTES]


def _summary(orders: Sequence[OrderCheck]) -> list[str]:
    big = large(orders)
    rows = ["", "## DCCA over CDAC", "",
            "| what | messages | layers | faster order right | median error of quotient | worst |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    small = [order for order in orders if order not in big]
    for words, chosen in (("32 KiB and more", big), ("smaller", small)):
        for what, part in (("exchange", "exchange_"), ("whole layer", "")):
            off = off_ratios(chosen, part)
            if off:
                rows.append(
                    f"| {what} | {words} | {len(off)} | {ranked_right(chosen, part)} "
                    f"| {np.median(off):.1%} | {max(off):.1%} |"
                )
    return rows


def _order_table(orders: Sequence[OrderCheck]) -> list[str]:
    head = ["", "## Every layer", "",
            "Milliseconds of a whole layer, measured and predicted; quotients are DCCA over CDAC.",
            "",
            "| ranks | nodes | tokens | hidden | latent | DCCA message | CDAC | predicted | DCCA "
            "| predicted | exchange quotient | predicted | layer quotient | predicted |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    return head + [_order_row(order) for order in orders]


def _order_row(order: OrderCheck) -> str:
    sizes = (order.devices, order.nodes, order.tokens, order.hidden, order.latent)
    times = (order.cdac_s, order.cdac_predicted_s, order.dcca_s, order.dcca_predicted_s)
    cells = [
        *(str(size) for size in sizes),
        f"{order.dcca_bytes / 1024:.0f} KiB",
        *(f"{seconds * 1e3:.2f}" for seconds in times),
        *(f"{value:.3f}" for value in (*order.quotient("exchange_"), *order.quotient())),
    ]
    return f"| {' | '.join(cells)} |"


def main(run: str | None) -> None:
    """Take a run in, if one is named, fit it, and write the page."""
    if run is not None:
        write_evidence(of_run(Path(run)), SHIPPED)
    found = compared(read_evidence(), DEFAULT)
    for name, document in (("cluster", found.cluster), ("profile", found.curves)):
        data = document.model_dump(mode="json", exclude_none=True)
        write_text(SHIPPED / f"{name}.json", dump(data, "json"))
    report = found.report
    path = Path(__file__).parents[3] / "docs" / "network.md"
    path.write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
