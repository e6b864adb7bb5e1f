"""What held an answer back, in sentences that a page and a terminal both show."""

from __future__ import annotations

from planner.search.reasons import Binding, Explained, with_unit

NOTHING_BINDS = "no limit binds: none of them dropped, or 1 % more of any, gives a better answer"


def reason_sentences(answer: Explained, now: float, what: str) -> list[str]:
    """One sentence a limit that binds, and why the runner-up lost.

    Args:
        answer: with its reasons.
        now: the objective reached.
        what: the objective in words.
    """
    said = [_binds(item, now, what) for item in answer.binding] or [NOTHING_BINDS]
    return said + ([f"second: {answer.runner_up}"] if answer.runner_up else [])


def _binds(item: Binding, now: float, what: str) -> str:
    parts = []
    if item.without_objective is not None:
        parts.append(f"without it {_change(item.without_objective, now, what)}")
    if item.one_percent_more_value is not None and item.one_percent_more_objective is not None:
        value = with_unit(item.limit, item.one_percent_more_value)
        parts.append(f"at {value} {_change(item.one_percent_more_objective, now, what)}")
    asked = "" if item.value is None else f" at {with_unit(item.limit, item.value)}"
    return f"{item.limit} binds{asked}" + (f": {'; '.join(parts)}" if parts else "")


def _change(value: float, now: float, what: str) -> str:
    share = value / now - 1 if now else 0.0
    return f"{what} {value:.6g} ({share:+.2%})"
