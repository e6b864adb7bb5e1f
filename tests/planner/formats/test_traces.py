"""Request traces: the real ones are read whole, the bad ones end with their line number."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path

import pytest

from hwprofiles.errors import MoesaicError
from planner.formats.lengths import read_vidur_lengths
from planner.formats.request import MAX_LINE_BYTES
from planner.formats.traces import read_trace

MOONCAKE = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
SERVINGSIM = {"input_toks": 10, "output_toks": 5, "arrival_time_ns": 1_000_000_000}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mooncake/conversation_trace.jsonl", 12_031),
        ("mooncake/synthetic_trace.jsonl", 3_993),
        ("azure_llm/AzureLLMInferenceTrace_code.csv", 8_819),
        ("azure_llm/AzureLLMInferenceTrace_conv.csv", 19_366),
        ("sharegpt_lengths/sharegpt-qwen3-30b-a3b-300-sps10.lengths.jsonl", 300),
    ],
)
def test_real_traces_are_read_whole(shared: Path, name: str, count: int) -> None:
    assert sum(1 for _ in read_trace(shared / "data" / "traces" / name)) == count


def test_units_become_seconds(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({**MOONCAKE, "timestamp": 1500}) + "\n")
    assert next(read_trace(path)).arrival_s == 1.5
    path.write_text(json.dumps(SERVINGSIM))
    assert next(read_trace(path)).arrival_s == 1.0
    path.write_text(AZURE + "2023-11-16 18:17:03.9799600,7,1\n2023-11-16 18:17:04.4799600,8,2\n")
    assert [r.arrival_s for r in read_trace(path)] == [0.0, 0.5]


def lines(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


BAD = {
    "unsorted": (lines({**MOONCAKE, "timestamp": 9}, MOONCAKE), "line 2 arrives at"),
    "negative": (lines({**MOONCAKE, "timestamp": -1}), "line 1 arrives at -0.001 s, before"),
    "no column": (lines(MOONCAKE, {"timestamp": 1, "input_length": 3}), "line 2 lacks output"),
    "zero": (lines(MOONCAKE, {**MOONCAKE, "input_length": 0}), "line 2 has input_length 0"),
    "no output": (lines({**MOONCAKE, "output_length": 0}), "line 1 has output_length 0"),
    "half": (lines({**MOONCAKE, "output_length": 2.5}), "line 1 has output_length 2.5"),
    "text": (lines({**MOONCAKE, "input_length": "many"}), "line 1 has input_length 'many'"),
    "true": (lines({**MOONCAKE, "input_length": True}), "line 1 has input_length True"),
    "too many ids": (lines({**MOONCAKE, "hash_ids": [1, 2, 3]}), "line 1 has 3 hash_ids"),
    "bad ids": (lines({**MOONCAKE, "hash_ids": ["a"]}), "line 1 has hash_ids"),
    "no json": (lines(MOONCAKE) + "{input_length", "line 2 is no JSON"),
    "list": (lines(MOONCAKE) + "[1]\n", "line 2 is no JSON object"),
    "not a number": ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', "line 1"),
    "endless": ('{"timestamp": 1e999, "input_length": 1, "output_length": 1}', "line 1"),
    "no time": (lines({**MOONCAKE, "timestamp": "noon"}), "line 1 has timestamp 'noon'"),
    "huge": (lines({**MOONCAKE, "input_length": 1e400}), "line 1"),
    "servingsim time": (lines({**SERVINGSIM, "arrival_time_ns": None}), "line 1 has arrival"),
    "servingsim column": (lines(SERVINGSIM, {"input_toks": 3}), "line 2 lacks"),
    "azure column": ("TIMESTAMP,ContextTokens\n1,2\n", "line 1 lacks the column GeneratedTokens"),
    "azure time": (AZURE + "yesterday,1,2\n", "line 2 has TIMESTAMP 'yesterday'"),
    "azure cells": (AZURE + "2023-11-16 18:17:03,1\n", "line 2 has 2 cells"),
    "azure zero": (AZURE + "2023-11-16 18:17:03,0,4\n", "line 2 has ContextTokens 0"),
    "unknown": ("a,b,c\n1,2,3\n", "line 1 fits no known trace"),
    "empty": ("", "holds no request"),
    "back in time": (
        AZURE + "2023-11-16 18:17:03,1,2\r\n2023-11-16 18:17:02,1,2\r\n",
        "line 3 .* sort the trace",
    ),
    "binary": ("input_length\x00\xff", "line 1 is no JSON"),
    "long": ('{"input_length": ' + "1" * MAX_LINE_BYTES, "line 1 is longer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines_are_named(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    path = tmp_path / "trace"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MoesaicError, match=message) as caught:
        list(read_trace(path))
    assert caught.value.kind == "invalid"


def test_empty_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(MoesaicError, match="cannot read"):
        list(read_trace(tmp_path / "none.csv"))
    path = tmp_path / "only.csv"
    path.write_text(AZURE)
    with pytest.raises(MoesaicError, match="holds no request"):
        list(read_trace(path))
    path.write_bytes(AZURE.encode() + b"\xff\xfe\n")
    with pytest.raises(MoesaicError, match="line 2 is not UTF-8"):
        list(read_trace(path))
    with pytest.raises(MoesaicError, match="no trace format 'burst'"):
        read_trace(path, "burst")


def test_a_long_trace_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    row = json.dumps(MOONCAKE) + "\n"
    with path.open("w") as stream:
        for _ in range(40):
            stream.write(row * 5_000)
    tracemalloc.start()
    assert sum(1 for _ in read_trace(path)) == 200_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 10 * peak


def test_only_what_is_asked_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(lines(MOONCAKE, MOONCAKE) + "garbage")
    assert len(list(itertools.islice(read_trace(path), 2))) == 2


def test_vidur_lengths(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "traces" / "vidur"
    pairs = read_vidur_lengths(next(folder.glob("*.csv")))
    assert len(pairs) == 28_257
    assert pairs[0] == (3772, 54)
    bad = tmp_path / "v.csv"
    bad.write_text("num_prefill_tokens,num_decode_tokens\n4,5\n0,1\n")
    with pytest.raises(MoesaicError, match="line 3 has num_prefill_tokens 0"):
        read_vidur_lengths(bad)
    bad.write_text("num_prefill_tokens\n4\n")
    with pytest.raises(MoesaicError, match="line 1 lacks"):
        read_vidur_lengths(bad)
