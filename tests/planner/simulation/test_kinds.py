"""Questions beside serving: each kind from its document to figures that can be checked."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from api.cli import group
from hwprofiles.errors import MoesaicError
from planner.formats.perfetto import check_tracks
from planner.simulation.files import question_of_kind, read_data
from planner.simulation.kinds import KINDS, kind_of
from planner.simulation.offload import build_cache, cache_misses
from planner.simulation.offload_question import OffloadQuestion, answer_offload
from planner.simulation.queue_question import QueueQuestion, answer_queue
from planner.simulation.scaling_question import ScalingQuestion, answer_scaling
from planner.simulation.schedule_question import ScheduleQuestion, answer_schedule

FOLDER = Path(__file__).parents[2] / "scenarios" / "simulate"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if kind_of(read_data(path)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_example_is_answered_with_finite_figures(path: Path) -> None:
    data = read_data(path)
    kind = kind_of(data)
    assert kind is not None
    answer, slices = kind.answer(question_of_kind(kind, data, path.parent))
    json.dumps(answer.model_dump(mode="json"), allow_nan=False)
    if slices is not None:
        check_tracks(slices)
    assert (slices is None) == (data["kind"] == "offload")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_slices_of_a_trace_file_overlap(path: Path, tmp_path: Path) -> None:
    """As a viewer reads them: microseconds from JSON, exact to a nanosecond."""
    trace = tmp_path / "trace.json"
    options = ["--set", "requests=80", "--set", "seeds=1"] if "kind" not in read_data(path) else []
    asked = CliRunner().invoke(group, ["simulate", str(path), *options, "--trace", str(trace)])
    if "offload" in path.stem:
        assert "offload has no timeline" in str(asked.exception)
        return
    assert asked.exit_code == 0, asked.output
    tracks: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event["ph"] == "X":
            start, end = (round(1e3 * t) for t in (event["ts"], event["ts"] + event["dur"]))
            tracks.setdefault((event["pid"], event["tid"]), []).append((start, end))
    assert tracks
    for spans in tracks.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_every_kind_has_an_example() -> None:
    assert {read_data(path)["kind"] for path in FILES} == set(KINDS)


def test_unknown_kinds_list_the_known() -> None:
    with pytest.raises(MoesaicError, match=r"no simulation kind 'magic'.*known: .*offload"):
        kind_of({"kind": "magic"})
    with pytest.raises(MoesaicError, match="kind must be text"):
        kind_of({"kind": 5})
    assert kind_of({}) is None


def schedule(**fields: Any) -> ScheduleQuestion:
    data = {"schedule": "1f1b", "stages": 4, "micro_batches": 16,
            "seconds": {"forward_s": 1, "backward_s": 2}}  # fmt: skip
    return ScheduleQuestion.parse(data | fields)


@pytest.mark.parametrize(
    ("name", "chunks"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("dualpipe", 1)]
)
def test_played_bubbles_are_those_of_the_closed_form(name: str, chunks: int) -> None:
    seconds = {"forward_s": 1, "backward_s": 2, "weight_s": 1, "pair_s": 3}
    answer, _ = answer_schedule(schedule(schedule=name, chunks=chunks, seconds=seconds))
    assert answer.bubble_ratio == pytest.approx(answer.closed_form_ratio, rel=1e-9)


def test_overlap_shortens_the_steady_part_only() -> None:
    plain = answer_schedule(schedule())[0].seconds_s
    seconds = {"forward_s": 1, "backward_s": 2, "pair_s": 2.5}
    assert plain == (16 + 3) * 3
    found = answer_schedule(schedule(seconds=seconds))[0].seconds_s
    assert found == pytest.approx(15 * 2.5 + 4 * 3)


TRAINING = {"phase": "train", "model": "qwen3-30b-a3b", "device": "h100-sxm", "ep": 8, "dp": 8,
            "pp": 2, "global_batch": 128, "seq": 4096}  # fmt: skip


def test_a_training_point_is_priced_and_its_exchange_can_hide() -> None:
    asked = {"seconds": None, "stages": None, "micro_batches": None, "training": TRAINING}
    plain, _ = answer_schedule(schedule(**asked))
    assert (plain.stages, plain.micro_batches) == (2, 16)
    assert plain.bubble_ratio == pytest.approx(1 / 16, rel=1e-9)
    overlapped, _ = answer_schedule(schedule(**asked, overlap_exchange=True))
    held, _ = answer_schedule(schedule(**asked, overlap_exchange=True, exchange_cores_ratio=0.2))
    assert overlapped.seconds_s < held.seconds_s < plain.seconds_s


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seconds": None}, "give seconds, stages"),
        ({"training": TRAINING}, "says seconds, stages"),
        ({"schedule": "dualpipe", "stages": 3}, "even number"),
        ({"schedule": "dualpipe", "chunks": 2}, "one chunk"),
        ({"schedule": "interleaved", "chunks": 2, "micro_batches": 6}, "multiples of 4"),
        ({"seconds": {"forward_s": -1, "backward_s": 2}}, "forward_s"),
        ({"seconds": {"forward_s": 0, "backward_s": 0}}, "take no time"),
    ],
)
def test_impossible_schedules_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MoesaicError, match=message):
        answer_schedule(schedule(**fields))


def offload(**fields: Any) -> OffloadQuestion:
    data = {"model": "deepseek-v2-lite", "device": "rk3588", "backend": "llama-cpp",
            "cached_experts": 400, "tokens": 60}  # fmt: skip
    return OffloadQuestion.parse(data | fields)


def test_a_real_trace_is_played_in_its_order(shared: Path, tmp_path: Path) -> None:
    path = shared / "data/traces/routing_tokens_deepseek_v2_lite/translation.npz"
    answer = answer_offload(offload(choices=path, tokens=500))
    choices = np.load(path)["expert_ids"][:, :500]
    misses = cache_misses(choices, build_cache("lru", 400)).sum()
    assert answer.hit_ratio == 1 - misses / choices.size
    # Tokens in another order meet other experts in the cache; in none they meet fewer.
    shuffled = tmp_path / "shuffled.npz"
    order = np.random.default_rng(0).permutation(500)
    np.savez(shuffled, expert_ids=choices[:, order])
    assert answer_offload(offload(choices=shuffled, tokens=500)).hit_ratio != answer.hit_ratio


def test_slower_storage_stalls_until_it_is_all_there_is() -> None:
    rates = {}
    for speed in (100e9, 3e9, 0.2e9):
        storage = {"bandwidth_bytes_per_s": speed}
        rates[speed] = answer_offload(offload(storage=storage, prefetch=False))
    fast, middle, slow = rates.values()
    assert fast.tokens_per_s > middle.tokens_per_s > slow.tokens_per_s
    assert fast.stalled_ratio < 0.2
    assert slow.stalled_ratio > 0.8
    assert slow.hit_ratio == fast.hit_ratio


def test_everything_cached_is_as_fast_as_memory() -> None:
    answer = answer_offload(offload(cached_experts=26 * 64, tokens=3000))
    assert answer.tokens_per_s == pytest.approx(answer.in_memory_tokens_per_s, rel=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cached_experts": None}, "cached_experts or memory_bytes"),
        ({"memory_bytes": "1 GB"}, "cached_experts or memory_bytes"),
        ({"cluster": "rk3588-x1"}, "cluster or device"),
        ({"storage": "hbm"}, "no storage tier 'hbm'"),
        ({"model": "llama-3.1-8b"}, "no experts to offload"),
        ({"choices": "nothing.npz"}, "holds no expert_ids"),
        ({"cached_experts": None, "memory_bytes": "1 MB"}, "at least one"),
    ],
)
def test_impossible_offloads_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MoesaicError, match=message):
        answer_offload(offload(**fields))


def test_traces_of_other_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, expert_ids=np.zeros((3, 10, 6), dtype=np.uint8))
    with pytest.raises(MoesaicError, match="26 MoE layers"):
        answer_offload(offload(choices=path))


def queue(**fields: Any) -> QueueQuestion:
    data = {"device": "zcu102", "hidden": 192, "width": 384, "tokens": 129, "experts": 16}
    return QueueQuestion.parse(data | fields)


def test_queues_load_each_expert_once_and_energy_is_watts_times_seconds() -> None:
    answer = answer_queue(queue(layers=3))
    assert answer.expert_queues.loads_count == 3 * 16
    assert 200 * 3 < answer.token_order.loads_count <= 258 * 3
    power = answer.expert_queues.energy_j / answer.expert_queues.seconds_s
    assert power == pytest.approx(14.54)
    unknown = answer_queue(queue(device="rk3566", precision="bf16"))
    assert unknown.expert_queues.energy_j is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 17}, "top_k 17 of 16"),
        ({"precision": "fp8"}, "no stated fp8 peak"),
        ({"device": "zcu"}, "no device"),
        ({"tokens": 0}, "greater than or equal"),
    ],
)
def test_impossible_queues_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MoesaicError, match=message):
        answer_queue(queue(**fields))


def scaling(**fields: Any) -> ScalingQuestion:
    return ScalingQuestion.parse(read_data(FOLDER / "scaling-qwen3.yaml") | fields)


def test_strategies_stand_side_by_side_the_quickest_first() -> None:
    found = answer_scaling(scaling()).strategies
    assert found[0].strategy == "elastic"
    assert len(found) == 5
    down = answer_scaling(scaling(layout={"tp": 2, "dp": 4}, dp=3)).strategies
    assert down[-1].strategy == "horizontal"
    assert "whole replicas" in str(down[-1].refused)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dp": 3}, "nothing to do"),
        ({"memory_share": 0.01}, "leave no room"),
        ({"dp": 1000}, "devices"),
    ],
)
def test_impossible_scalings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MoesaicError, match=message):
        answer_scaling(scaling(**fields))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("expert-queue-edge-moe", {"tokens": 100_000, "experts": 4096}, "scores"),
        ("offload-qwen3-board", {"tokens": 1_000_000}, "drawn tokens of this model; at most"),
        ("offload-qwen3-board", {"storage": {"bandwidth_bytes_per_s": 0}}, "greater than 0"),
        ("scaling-qwen3", {"scale_rates": {"boot_s": 1, "warm_up_s": 1, "disk_bytes_per_s": 0}},
         "greater than 0"),
    ],
)  # fmt: skip
def test_what_no_machine_can_hold_or_do_is_refused(
    name: str, fields: dict[str, Any], message: str
) -> None:
    data = read_data(FOLDER / f"{name}.yaml") | fields
    kind = KINDS[data["kind"]]
    with pytest.raises(MoesaicError, match=message):
        kind.answer(question_of_kind(kind, data, FOLDER))
