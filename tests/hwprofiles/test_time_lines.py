"""Lines of `time --batch`: order kept, bad lines in their place, evidence named."""

import json

import pytest

from api.cli import main
from hwprofiles.timing.bulk import answer_block
from hwprofiles.timing.lines import time_lines

GEMM = {"id": "g", "device": "h200-sxm", "backend": "vllm", "kernel": "gemm", "m": 64, "n": 4096,
        "k": 7168, "dtype": "bf16"}  # fmt: skip
MOE = {"id": "m", "device": "h200-sxm", "backend": "vllm", "kernel": "grouped_gemm", "tokens": 512,
       "hidden": 7168, "inter": 2048, "experts": 256, "top_k": 8, "moe_tp": 1, "moe_ep": 8,
       "dtype": "fp8_block"}  # fmt: skip


def answers(*lines, **options):
    return [json.loads(text) for text in time_lines(lines, **options)]


def test_order_is_kept_and_bad_lines_say_why():
    found = answers(
        GEMM, GEMM | {"id": 2, "m": 0}, GEMM | {"id": 3, "zzz": 1}, "text", MOE,
        GEMM | {"id": 5, "device": "h100"}, GEMM | {"id": 6, "dtype": "fp7"},
        {k: v for k, v in GEMM.items() if k != "n"}, GEMM | {"id": 8, "kernel": "gem"},
    )  # fmt: skip
    kinds = [answer["error"] and answer["error"]["kind"] for answer in found]
    assert kinds == [None, "invalid", "invalid", "invalid", None, None, "unknown_name", "invalid",
                     "unknown_name"]  # fmt: skip
    assert [answer["id"] for answer in found] == ["g", 2, 3, None, "m", 5, 6, "g", 8]
    assert "/zzz" in found[2]["error"]["message"]
    assert found[0] == answers(GEMM)[0]


def test_intervals_enclose_and_evidence_is_named():
    measured, between, borrowed, rule = answers(
        GEMM, GEMM | {"n": 5000, "k": 5000}, GEMM | {"device": "h20"},
        GEMM | {"device": "xeon-6980p"},
    )  # fmt: skip
    for answer in (measured, between, borrowed, rule):
        assert 0 < answer["low_s"] <= answer["typical_s"] <= answer["high_s"]
    assert measured["source"] in ("measured", "calibrated")
    assert between["source"] == "calibrated"
    assert borrowed["source"] == "modelled"
    assert rule["source"] == "assumed"


def test_a_skewed_load_takes_longer():
    big = MOE | {"tokens": 8192, "backend": "trtllm"}
    even, skewed = answers(big | {"skew": "balanced"}, big | {"skew": {"power_law": 1.2}})
    assert skewed["typical_s"] > even["typical_s"]


def test_far_outside_is_refused_unless_asked_for():
    far = GEMM | {"m": 1e9, "n": 1e7}
    refused, answered = answers(far)[0], answers(far, extrapolate=True)[0]
    assert refused["error"]["kind"] == "outside_evidence"
    spread = answered["high_s"] / answered["low_s"]
    near = answers(GEMM)[0]
    assert spread > near["high_s"] / near["low_s"]


@pytest.mark.parametrize("skew", ["steep", {"power_law": -1}, {"zipf": 1}, 3])
def test_bad_skew(skew):
    assert "/skew" in answers(MOE | {"skew": skew})[0]["error"]["message"]


def test_the_verb_streams_a_file(tmp_path, capsys):
    batch, out = tmp_path / "rows.jsonl", tmp_path / "seconds.jsonl"
    twice = '{"id": 9, "id": 10, "kernel": "gemm"}'
    batch.write_text("\n".join([json.dumps(GEMM), "", "{bad", twice, json.dumps(MOE)]))
    main(["time", "--batch", str(batch), "--out", str(out), "--quiet"])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [a["error"] is None for a in found] == [True, False, False, True]
    assert "line 3" in found[1]["error"]["message"]
    assert "stands twice" in found[2]["error"]["message"]
    assert capsys.readouterr().out == ""


def test_a_group_larger_than_any_cluster_is_stretched():
    ring = {"id": 1, "device": "h100-sxm", "kernel": "all_reduce", "devices": 1024,
            "message_bytes": 2**20, "dtype": "bf16"}  # fmt: skip
    assert answers(ring)[0]["error"] is None


MIXED = [
    GEMM, MOE | {"skew": {"power_law": 1.2}}, MOE | {"skew": "balanced", "id": "b"},
    GEMM | {"device": "h20", "backend": "sglang", "id": "c"}, MOE | {"busy_ratio": 1.5, "id": "e"},
    {"id": "d", "device": "gb200", "kernel": "moe_dispatch", "library": "deepep_normal",
     "devices": 32, "nodes": 8, "tokens": 512, "hidden": 7168, "top_k": 8, "experts": 256,
     "dtype": "fp8"},
]  # fmt: skip


def test_blocks_answer_as_single_lines_do():
    block = answer_block("\n".join(json.dumps(line) for line in MIXED).encode())
    assert block is not None
    for text, wanted in zip(block.splitlines(), answers(*MIXED), strict=True):
        found = json.loads(text)
        for name in ("low_s", "typical_s", "high_s"):
            assert found.pop(name) == pytest.approx(wanted.pop(name))
        assert found == wanted


@pytest.mark.parametrize(
    "bad",
    [
        json.dumps(GEMM | {"m": 0}), json.dumps(GEMM | {"m": "64"}), json.dumps(GEMM | {"m": True}),
        json.dumps(GEMM | {"zzz": 1}), json.dumps(GEMM | {"dtype": "fp7"}), "[1]", '"text"', "{",
        json.dumps(GEMM)[:-1] + ', "m": 65}', json.dumps(GEMM | {"m": float("nan")}),
        json.dumps(GEMM | {"id": 7}), json.dumps(GEMM | {"skew": "wild"}),
        json.dumps({"id": "x", "kernel": "gemm"}),
        json.dumps({k: v for k, v in GEMM.items() if k != "id"}), json.dumps(GEMM) * 2,
    ],
)  # fmt: skip
def test_blocks_leave_anything_unusual_to_the_careful_reader(bad):
    assert answer_block(f"{json.dumps(GEMM)}\n{bad}".encode()) is None


RING = {"id": "r", "device": "l4", "kernel": "all_reduce", "devices": 4, "message_bytes": 1e6}
A100 = {"device": "a100-sxm-80g", "backend": "trtllm"}
UNANSWERED = [
    GEMM | A100 | {"dtype": "fp8"}, GEMM | {"m": 1e9, "n": 1e7}, GEMM | {"device": "h101"},
    {k: v for k, v in GEMM.items() if k != "n"}, MOE | A100, RING | {"device": "rk3588"},
    {"id": "z", "device": "zcu102", "kernel": "gemm", "m": 1, "n": 8, "k": 1e6, "dtype": "int8"},
    {"id": "t", "device": "h100-sxm", "kernel": "copy", "bytes": 1e6, "tier": "tape"},
]  # fmt: skip


def test_rows_without_an_answer_leave_their_company_alone():
    lines = [line for pair in zip(UNANSWERED, MIXED * 2, strict=False) for line in pair] * 3
    block = answer_block("\n".join(json.dumps(line) for line in lines).encode())
    assert block is not None
    together = answers(*lines)
    for line, text, careful in zip(lines, block.splitlines(), together, strict=True):
        (alone,), found = answers(line), json.loads(text)
        assert (alone["error"] is None) == (line in MIXED)
        for answer in (found, careful):
            assert answer["error"] == alone["error"]
            assert answer.get("typical_s") == pytest.approx(alone.get("typical_s"))


def test_the_verb_keeps_order_around_a_bad_line(tmp_path, capsys):
    lines = [json.dumps(GEMM | {"id": str(i)}) for i in range(600)]
    lines[3] = "{"
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    main(["time", "--batch", str(tmp_path / "rows.jsonl")])
    found = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert len(found) == 600
    assert found[3]["error"]["kind"] == "invalid"
    assert found[599]["id"] == "599"
    assert "line 4" in found[3]["error"]["message"]


def test_far_outside_exits_with_four(tmp_path, capsys):
    batch = tmp_path / "rows.jsonl"
    batch.write_text(json.dumps(GEMM | {"m": 1e9, "n": 1e7}) + "\n")
    with pytest.raises(SystemExit) as ended:
        main(["time", "--batch", str(batch)])
    assert ended.value.code == 4
    told = capsys.readouterr()
    assert json.loads(told.out)["error"]["kind"] == "outside_evidence"
    assert "--extrapolate" in told.err
    main(["time", "--batch", str(batch), "--extrapolate"])
    batch.write_text(batch.read_text() + json.dumps(GEMM) + "\n")
    main(["time", "--batch", str(batch)])
    assert "null" in capsys.readouterr().out
