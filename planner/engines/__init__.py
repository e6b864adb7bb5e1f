"""Serving engines as data: what the host adds to a pass, how requests are scheduled, what is kept.

One YAML file an engine in this folder, every number with source and date; a known version changes
only the fields that it names.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from hwprofiles.document import Document, parse_as
from hwprofiles.errors import unknown_name
from hwprofiles.files import read_document
from hwprofiles.sourced import Sourced
from hwprofiles.units import Bytes, Seconds, Share

FOLDER = Path(__file__).parent
Phase = Literal["prefill", "decode"]
Tokens = Annotated[int, Field(ge=1)]


class StepOverhead(Document):
    """Host time of one pass that the device does not hide: base, by layer, by sequence."""

    base_s: Sourced[Seconds]
    per_layer_s: Sourced[Seconds]
    """Launches that no captured graph replays."""
    per_sequence_s: Sourced[Seconds]
    """Sampling, detokenising and scheduling of each running sequence."""

    def seconds(self, layers: float = 0.0, sequences: float = 0.0) -> float:
        """Seconds of one pass through `layers` layers with `sequences` running sequences."""
        return (
            self.base_s.value
            + layers * self.per_layer_s.value
            + sequences * self.per_sequence_s.value
        )


class Poll(Document):
    """How rarely a scheduler looks for new requests, as deployments of an engine set it."""

    needs: Literal["fp8", "fp4"]
    """The format that a device must compute in."""
    callers: Tokens
    """Fewest requests in flight from which this holds."""
    passes: Tokens
    """Passes from one look to the next."""
    source: Annotated[str, Field(min_length=8)]


class Scheduler(Document):
    """How prompts and running sequences share passes."""

    policy: Literal["mixed", "prefill_first"]
    """`mixed`: chunks of prompts ride in the same pass as decoding sequences;
    `prefill_first`: waiting prompts get passes of their own, decoding pauses."""
    chunk_tokens: Sourced[Tokens]
    """Most new tokens in one pass."""
    sequences: Sourced[Tokens]
    """Most sequences running at once on one data-parallel rank."""
    polls: tuple[Poll, ...] = ()
    """From the fewest callers on; none: every pass looks for new requests."""


class Exchange(Document):
    """Libraries that move tokens to experts, by phase; names as in kernel rows' `library`."""

    prefill: str
    decode: str
    source: Annotated[str, Field(min_length=8)]


class NarrowCache(Document):
    """When deployments in 8 or 4 bits keep their cache in 8 bits."""

    needs: Literal["fp8", "fp4"] = "fp8"
    """The format that a device must compute in."""
    source: Annotated[str, Field(min_length=8)] = "TensorRT-LLM documentation, Performance Overview"


class Engine(Document):
    """One serving engine as planning needs it."""

    schema_version: Literal[1] = 1
    name: str
    title: str
    aliases: tuple[str, ...] = ()
    version: str = ""
    """The version described; empty: what the file says without a version."""
    assumptions: tuple[str, ...] = ()
    """What was taken for granted when this engine was loaded."""
    cuda_graph: bool
    """Decode passes replay a captured graph: launches by layer cost nothing."""
    overhead: dict[Phase, StepOverhead]
    scheduler: Scheduler
    exchange: Exchange
    attention_backend: str
    narrow_cache: NarrowCache = NarrowCache()
    kv_block_tokens: Sourced[Tokens]
    memory_fraction: Sourced[Share]
    """Share of device memory that weights, cache and activations may take."""
    context_bytes: Sourced[Bytes]
    """Driver context, captured graphs and communication buffers on each device."""
    host_formats: dict[str, str] = Field(default_factory=dict)
    """Formats that experts on the host's processors are computed in, where they differ."""
    separate_moe_kernels: bool = False
    """Sorting, both products and the sum of an expert block are kernels of their own."""
    draft_passes: bool = False
    """Multi-token prediction's own layer and head count beside the pass that checks drafts."""
    shared_expert_overlap: bool = False
    two_batch_overlap: bool = False
    measured_versions: tuple[str, ...] = ()
    """Versions of which published measurements were read."""
    runtime_versions: tuple[str, ...] = ()
    """Of these, the ones that number a runtime around the engine: near to no version of its own."""

    def step_overhead_s(self, phase: Phase, layers: float = 0.0, sequences: float = 0.0) -> float:
        """Host seconds that one pass of a phase adds."""
        return self.overhead[phase].seconds(layers, sequences)

    @property
    def buffer_bytes(self) -> float:
        """Bytes a device loses to context, graphs and communication."""
        return self.context_bytes.value


def engine_names() -> tuple[str, ...]:
    """Names of the engines that have a file."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def _files() -> dict[str, Any]:
    return {name: read_document(FOLDER / f"{name}.yaml") for name in engine_names()}


@cache
def _aliases() -> dict[str, str]:
    found = {name: name for name in engine_names()}
    for name, data in _files().items():
        found |= {_canonical(alias): name for alias in data.get("aliases", ())}
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[\s_./]+", "-", name.strip().lower())


@cache
def load_engine(name: str, version: str | None = None) -> Engine:
    """Load an engine by name or alias, at a version.

    A version of which nothing was measured is taken as the nearest that was, and the engine says so
    under `assumptions`.

    >>> load_engine("TensorRT-LLM").name
    'trtllm'

    Raises:
        MoesaicError: `unknown_name`, with the nearest known names.
    """
    wanted = _aliases().get(_canonical(name))
    if wanted is None:
        raise unknown_name("engine", name, engine_names(), "/backend")
    data = dict(_files()[wanted])
    known = tuple(str(item) for item in data.get("measured_versions", ()))
    told = version or ""
    notes: tuple[str, ...] = ()
    if told and told not in known:
        own = set(known) - set(data.get("runtime_versions", ()))
        near = nearest_version(told, tuple(own))
        notes = (f"{wanted} {told} was not measured; taken as {near or 'the engine in general'}",)
    return parse_as(
        Engine, {**data, "version": told, "assumptions": notes, "measured_versions": known},
        what=f"engine {wanted}",
    )  # fmt: skip


def version_key(version: str) -> tuple[int, ...]:
    """Numbers of a version in order; words such as `post1` and `rc2` count as their numbers.

    >>> version_key("0.5.10.post1") > version_key("0.5.9")
    True
    """
    return tuple(int(part) for part in re.findall(r"\d+", version)[:5])


def nearest_version(version: str, known: tuple[str, ...]) -> str | None:
    """The newest known version that is not newer than `version`, else the oldest known.

    Versions of the same major number come first.

    >>> nearest_version("0.14", ("0.9.0", "0.11.2", "0.15.1"))
    '0.11.2'
    >>> nearest_version("1.0", ("0.9.0", "1.1.0", "1.2.0"))
    '1.1.0'
    """
    alike = [other for other in known if version_key(other)[:1] == version_key(version)[:1]]
    ordered = sorted((other for other in alike or known if version_key(other)), key=version_key)
    if not ordered or not version_key(version):
        return None
    before = [other for other in ordered if version_key(other) <= version_key(version)]
    return before[-1] if before else ordered[0]
