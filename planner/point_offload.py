"""What an answer says of experts that lie outside the device's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.offload import fetch_bytes_per_s
from planner.point import OffloadSummary
from planner.pricing import Question
from planner.work.resident import MISSED, RESIDENT

Row = dict[str, Any]
WAITING = ("fetch", "crossing")
"""Stages that a pass would not have with all experts in the device's memory."""
BOUND_SHARE = 0.5
"""A step that waits longer than this share of its time is bound by storage."""


def offload_summary(row: Row, shares: Sequence[Row], question: Question) -> OffloadSummary | None:
    """Resident and missed experts of one decode pass, and what they cost; none without offload.

    Args:
        row: the priced pass.
        shares: its stages, as plain data of `StageShare`.
        question: what was asked.
    """
    if question.offload is None:
        return None
    storage = question.offload.host is None
    rate = fetch_bytes_per_s(question.offload, question.cluster.device) if storage else None
    return OffloadSummary(
        resident_share=row[RESIDENT], missed_share=row[MISSED], storage_bytes_per_s=rate,
        waiting_share=sum(part["share_ratio"] for part in shares if part["stage"] in WAITING),
    )  # fmt: skip


def offload_notes(summary: OffloadSummary | None, question: Question) -> list[str]:
    """Sentences for the list of assumptions."""
    if summary is None or question.offload is None:
        return []
    where = question.offload.experts_in
    kept = f"{summary.resident_share:.0%} of routed experts are kept in the device's memory"
    if question.offload.host is not None:
        return [f"offload: {kept}; {question.offload.host.name} computes the others"]
    rate = summary.storage_bytes_per_s or 0.0
    notes = [f"offload: {kept}, {summary.missed_share:.0%} of uses fetch from {where} at "
             f"{rate / 1e9:.3g} GB/s"]  # fmt: skip
    if summary.waiting_share > BOUND_SHARE:
        notes.append(
            f"offload: {where} is the bottleneck, a step waits {summary.waiting_share:.0%} of its "
            "time for experts; faster storage or more memory helps, faster arithmetic does not"
        )
    return notes
