"""What the users of a service send: prompt and answer lengths, and how many at a time."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.units import BytesPerS, Share
from planner.lengths import Lengths, Moments, alike, with_means

Tokens = Annotated[int, Field(ge=1, le=100_000_000)]


class Requests(Document):
    """Requests of one kind: how long they are and what of a prompt is cached."""

    isl: Tokens
    """Input sequence length in tokens."""
    osl: Tokens
    """Output sequence length in tokens."""
    lengths: Lengths | None = None
    """Lengths as a distribution, `isl` and `osl` being its means; none: all requests alike."""
    prefix_tokens: Annotated[int, Field(ge=0)] = 0
    """Prompt tokens whose cache may already be there."""
    prefix_hit_ratio: Share = 1.0
    """Requests that find those tokens cached; the others compute them."""
    prefix_bytes_per_s: BytesPerS | None = None
    """Rate at which a device fetches cached tokens from a pool elsewhere; none: they are local."""

    @model_validator(mode="before")
    @classmethod
    def _means(cls, data: Any) -> Any:  # noqa: ANN401 - plain data of any kind
        return with_means(data)

    @model_validator(mode="after")
    def _prefix_below(self) -> Self:
        if self.prefix_tokens >= self.isl:
            raise ValueError(f"prefix_tokens {self.prefix_tokens} must be below isl {self.isl}")
        return self

    @property
    def moments(self) -> Moments:
        """What the closed form needs of the lengths."""
        return self.lengths.moments() if self.lengths else alike(self.isl, self.osl)

    @property
    def cached_tokens(self) -> float:
        """Prompt tokens found cached, on average."""
        return self.prefix_tokens * self.prefix_hit_ratio


class Workload(Requests):
    """Requests of a service; give `concurrency` or `request_rate`, or neither to ask the most."""

    concurrency: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Requests in flight over the whole cluster."""
    request_rate: Annotated[float, Field(gt=0, le=1e9)] | None = None  # unit: requests per second
    """Requests per second over the whole cluster."""

    @model_validator(mode="after")
    def _one_load(self) -> Self:
        if self.concurrency is not None and self.request_rate is not None:
            raise ValueError("give concurrency or request_rate, not both")
        return self
