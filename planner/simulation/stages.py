"""Pipeline stages of one engine: batches in flight follow one another through them."""

from __future__ import annotations

from hwprofiles.errors import MoesaicError


class Stages:
    """Equal stages in a row; each holds one batch at a time, in the order they came in.

    A replica with `count` stages keeps as many batches in flight. Each of them is a group of its
    own; together they wait here for the stage that another one still holds.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise MoesaicError("invalid", f"{count} pipeline stages; 1 or more")
        self._free_s = [0.0] * count

    def pass_end_s(self, start_s: float, seconds: float) -> float:
        """When a batch leaves the last stage that is ready at `start_s` and takes `seconds` alone.

        Its seconds, sends between stages included, are split evenly over the stages.
        """
        each_s = seconds / len(self._free_s)
        at_s, waited_s = start_s, 0.0
        for stage, free_s in enumerate(self._free_s):
            begin_s = max(at_s, free_s)
            waited_s += begin_s - at_s
            at_s = self._free_s[stage] = begin_s + each_s
        # A batch that never waited ends when it would have without stages, to the last bit.
        return at_s if waited_s else start_s + seconds
