"""A plan as plain text for a terminal, with the labels of `views`."""

from __future__ import annotations

from collections.abc import Sequence

from planner.design_plan import DesignPlan
from planner.fleet_plan import FleetPlan
from planner.plan import Plan
from planner.point import Estimated
from reports import design_views, fleet_views, views


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a plain table; columns of numbers stand to the right.

    >>> print(text_table(["name", "GiB"], [["h100", "80"], ["b200", "180"]]))
    name  GiB
    ----  ---
    h100   80
    b200  180
    """
    table = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(headers))]
    right = [bool(rows) and all(row[i][:1].isdigit() for row in rows) for i in range(len(headers))]
    table.insert(1, ["-" * width for width in widths])
    lines = [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in table
    ]
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """The whole answer as text: headline, ranking, limits, rejections, memory."""
    rows = [views.option_row(option).cells() for option in plan.options]
    parts = [
        views.title(plan),
        views.headline(plan),
        f"TTFT {views.milliseconds(plan.ttft_s)}, TPOT {views.milliseconds(plan.tpot_s)}, "
        f"{views.tokens_rate(plan.output_tokens_per_s_per_device)} output tokens/s/device",
        *views.price_sentences(plan),
        "",
        text_table(views.OPTION_HEADERS, rows),
        "",
        *_pareto(plan),
        *(f"- {sentence}" for sentence in views.binding_sentences(plan)),
        *([f"- second: {plan.runner_up}"] if plan.runner_up else []),
        *(f"- lost: {sentence}" for sentence in views.rejected_sentences(plan)),
        *(f"- memory: {sentence}" for sentence in views.memory_sentences(plan)),
        f"Proof: {views.proof_sentence(plan)}",
        *(f"Assumed: {text}" for text in plan.assumptions),
    ]
    return "\n".join(parts)


def _pareto(plan: Plan) -> list[str]:
    """The trade with TPOT, where it was asked."""
    if plan.pareto_complete is None:
        return []
    rows = text_table(views.pareto_headers(plan), views.pareto_rows(plan))
    return [views.pareto_sentence(plan), rows, ""]


def answer_text(plan: Plan | FleetPlan | DesignPlan) -> str:
    """Any answer of `plan` as text."""
    if isinstance(plan, DesignPlan):
        return design_text(plan)
    return fleet_text(plan) if isinstance(plan, FleetPlan) else plan_text(plan)


def design_text(plan: DesignPlan) -> str:
    """A design question's answer as text: the base beside its rival, the frontier."""
    parts = [
        design_views.title(plan),
        design_views.headline(plan),
        "",
        text_table(design_views.HEADERS, design_views.frontier_rows(plan)),
        "",
        *(f"Assumed: {text}" for text in plan.assumptions),
    ]
    return "\n".join(parts)


def fleet_text(plan: FleetPlan) -> str:
    """A fleet's answer as text: classes, workers, machines, limits, proof."""
    parts = [
        fleet_views.title(plan),
        fleet_views.headline(plan),
        "",
        text_table(fleet_views.CLASS_HEADERS, fleet_views.class_rows(plan)),
        "",
        text_table(fleet_views.POOL_HEADERS, fleet_views.pool_rows(plan)),
        "",
        text_table(fleet_views.MACHINE_HEADERS, fleet_views.machine_rows(plan)),
        "",
        *fleet_views.cost_sentences(plan),
        *(f"- {sentence}" for sentence in fleet_views.reason_lines(plan)),
        f"Proof: {fleet_views.proof_sentence(plan)}",
        *(f"Assumed: {text}" for text in plan.assumptions),
    ]
    return "\n".join(parts)


def estimate_text(answer: Estimated) -> str:
    """One configuration's figures as text."""
    rows = views.estimate_rows(answer)
    parts = [text_table(["quantity", "typical", "low", "high", "source"], rows)]
    if answer.memory is not None:
        parts.append(views.fit_sentence(answer.memory))
    parts += [f"Assumed: {text}" for text in answer.assumptions]
    return "\n".join(parts)
