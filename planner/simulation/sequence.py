"""One request inside an engine: how far it is, what it holds, when what happened."""

from __future__ import annotations

from planner.formats.request import Request
from planner.simulation.calendar import DecodePlan


class Sequence:
    """Mutable state of one request; engines move it between waiting, prefill and decode."""

    __slots__ = (
        "arrival_s", "blocks", "cached_tokens", "done_tokens", "emitted_tokens", "epoch",
        "first_token_s", "index", "plan", "preemptions", "prompt_tokens", "queued_s", "rank",
        "replica", "request", "scheduled_s", "units",
    )  # fmt: skip

    def __init__(self, index: int, request: Request, arrival_s: float) -> None:
        self.index = index
        self.request = request
        self.arrival_s = arrival_s
        self.prompt_tokens = request.isl_tokens
        self.done_tokens = 0
        self.emitted_tokens = 0
        self.cached_tokens = 0
        self.queued_s = -1.0
        self.scheduled_s = -1.0
        self.first_token_s = -1.0
        self.blocks = 0
        self.units: list[int] = []
        self.plan: DecodePlan | None = None
        self.preemptions = 0
        self.epoch = 0
        self.replica = 0
        self.rank = 0
