"""Experts one at a time on a small device as a question: queues, token order, energy."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from hwprofiles.device import Device
from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import dtype
from hwprofiles.library import load_device
from planner.simulation.expert_queue import (
    ExpertSeconds,
    OrderResult,
    expert_queues,
    order_slices,
    token_order,
)

MOST_SCORES = 50_000_000
"""Scores of tokens for experts that are drawn at once: 1.2 GB with their order."""
Count = Annotated[int, Field(ge=1, le=1_000_000)]


def _device(data: object) -> object:
    return load_device(data) if isinstance(data, str) else data


class QueueQuestion(Document):
    """One MoE layer on a device that holds one expert at a time and loads the next meanwhile."""

    schema_version: Literal[1] = 1
    kind: Literal["expert_queue"] = "expert_queue"
    name: Annotated[str, Field(max_length=200)] = "expert queue"
    device: Annotated[Device, BeforeValidator(_device)]
    hidden: Count
    width: Count
    """Of one expert."""
    matrices: Annotated[int, Field(ge=2, le=3)] = 2
    """2, or 3 with a gate."""
    precision: str = "fp16"
    tokens: Annotated[int, Field(ge=1, le=100_000)]
    experts: Annotated[int, Field(ge=1, le=4096)]
    top_k: Annotated[int, Field(ge=1, le=64)] = 2
    layers: Annotated[int, Field(ge=1, le=1000)] = 1
    """MoE layers, each with choices of its own."""
    seed: int = 0


class OrderFigures(Document):
    """All layers in one order."""

    seconds_s: float
    stalled_s: float
    loads_count: int
    energy_j: float | None
    """Watts times seconds; none where no source states the device's power."""


class QueueAnswer(Document):
    """Expert queues against token order."""

    schema_version: Literal[1] = 1
    kind: Literal["expert_queue"] = "expert_queue"
    name: str
    load_s: float
    """Weights of one expert from memory."""
    average_compute_s: float
    """Tokens of an average expert; above `load_s` queues hide every load but the first."""
    expert_queues: OrderFigures
    token_order: OrderFigures
    speedup_ratio: float
    assumptions: tuple[str, ...]


def answer_queue(question: QueueQuestion) -> QueueAnswer:
    """Answer a question.

    Raises:
        MoesaicError: `invalid` for more choices than experts or too many scores,
            `outside_evidence` for a precision whose peak no source states.
    """
    if question.top_k > question.experts:
        raise MoesaicError(
            "invalid", f"top_k {question.top_k} of {question.experts} experts", "/top_k"
        )
    scores = question.layers * question.tokens * question.experts
    if scores > MOST_SCORES:
        raise MoesaicError(
            "invalid",
            f"{scores} scores of tokens for experts; at most {MOST_SCORES}: fewer layers or tokens",
            "/tokens",
        )
    costs = expert_seconds(question)
    choices = _drawn(question, question.layers)
    found = {
        name: _figures(question, [order(layer, costs) for layer in choices])
        for name, order in (("expert_queues", expert_queues), ("token_order", token_order))
    }
    queues, tokens = found["expert_queues"], found["token_order"]
    average = question.tokens * question.top_k / question.experts * costs.token_s
    return QueueAnswer(
        name=question.name, load_s=costs.load_s, average_compute_s=average,
        expert_queues=queues, token_order=tokens,
        speedup_ratio=tokens.seconds_s / queues.seconds_s,
        assumptions=(
            "every token chooses evenly among the experts",
            "weights at the memory's full rate, products at the device's full rate",
        ),
    )  # fmt: skip


def queue_slices(question: QueueQuestion) -> pl.DataFrame:
    """The first layer in both orders, columns `SLICE`."""
    return order_slices(_drawn(question, 1)[0], expert_seconds(question))


def _drawn(question: QueueQuestion, layers: int) -> NDArray[np.int64]:
    """Expert ids [layer, token, k] of the first so many layers, every expert as likely."""
    random = np.random.default_rng(question.seed)
    scores = random.random((layers, question.tokens, question.experts))
    return np.argsort(-scores, axis=2)[:, :, : question.top_k]


def expert_seconds(question: QueueQuestion) -> ExpertSeconds:
    """Seconds to load one expert and to compute one token, both at full rate."""
    weights = question.matrices * question.hidden * question.width
    kind = dtype(question.precision)
    return ExpertSeconds(
        load_s=weights * kind.weight_bytes / question.device.bandwidth_bytes_per_s,
        token_s=2 * weights / question.device.peak(kind.compute),
    )


def _figures(question: QueueQuestion, layers: list[OrderResult]) -> OrderFigures:
    seconds = sum(layer.seconds_s for layer in layers)
    power = question.device.power_w
    return OrderFigures(
        seconds_s=seconds,
        stalled_s=sum(layer.stalled_s for layer in layers),
        loads_count=sum(layer.loads_count for layer in layers),
        energy_j=None if power is None else power.value * seconds,
    )
