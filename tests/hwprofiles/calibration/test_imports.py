"""Files of other tools become measurements with provenance; what they do not say is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwprofiles.calibration.imports import Facts, import_files
from hwprofiles.calibration.measurement import Journal
from hwprofiles.calibration.serving_files import serving_table
from hwprofiles.errors import MoesaicError

NCCL = """# nccl-tests version 2.17.6 nccl-headers=22808 nccl-library=22808
# Collective test starting: all_reduce_perf
# nThread 1 nGpus 8 minBytes 8 maxBytes 1073741824 step: 2(factor) warmup iters: 1 iters: 20
#
# Using devices
#  Rank  0 Group  0 Pid  52 on  node1 device  0 [0000:18:00] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid  52 on  node1 device  1 [0000:2a:00] NVIDIA H100 80GB HBM3
#  Rank  2 Group  0 Pid  52 on  node2 device  0 [0000:3a:00] NVIDIA H100 80GB HBM3
#  Rank  3 Group  0 Pid  52 on  node2 device  1 [0000:5d:00] NVIDIA H100 80GB HBM3
#
#  size  count  type  redop  root  time  algbw  busbw #wrong  time  algbw  busbw #wrong
#  (B)  (elements)  (us)  (GB/s)  (GB/s)  (us)  (GB/s)  (GB/s)
  1024  512  half  sum  -1  12.10  0.08  0.13  0  11.90  0.09  0.13  0
  1073741824  536870912  half  sum  -1  21000.0  51.13  76.70  0  20900.0  51.38  77.06  0
  2048  1024  half  sum  -1  12.10  0.08  0.13  7  11.90  0.09  0.13  0
  4096  2048  half  sum  -1  0.00  0.08  0.13  0  0.00  0.09  0.13  0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 20.1
"""
HCCL = """the minbytes is 8192, maxbytes is 16384, iters is 20, warmup_iters is 5
data_size(Bytes): | aveg_time(us): | alg_bandwidth(GB/s): | check_result:
8192              | 84.35          | 0.09711              | success
16384             | 90.00          | 0.18204              | failed
"""
VLLM = {
    "backend": "vllm", "model_id": "Qwen/Qwen3-30B-A3B", "request_rate": "inf",
    "max_concurrency": 32, "completed": 100, "total_input_tokens": 102400,
    "total_output_tokens": 12800,
    "duration": 20.0,
    "request_throughput": 5.0, "output_throughput": 640.0, "total_token_throughput": 5760.0,
    "mean_ttft_ms": 210.0, "median_ttft_ms": 180.0, "p99_ttft_ms": 900.0,
    "mean_tpot_ms": 12.0, "median_tpot_ms": 11.0, "median_itl_ms": 10.5,
}  # fmt: skip
SGLANG = {k: v for k, v in VLLM.items() if k != "model_id"} | {
    "backend": "sglang", "random_input_len": 1024, "random_output_len": 128,
}  # fmt: skip
AIPERF = {
    "request_throughput": {"unit": "requests/sec", "avg": 5.0},
    "time_to_first_token": {"unit": "ms", "avg": 210.0, "p50": 180.0, "p99": 900.0},
    "inter_token_latency": {"unit": "ms", "avg": 12.0, "p50": 11.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 640.0},
    "input_sequence_length": {"unit": "tokens", "avg": 1024.0},
    "output_sequence_length": {"unit": "tokens", "avg": 128.0},
    "input_config": {"models": {"items": [{"name": "Qwen/Qwen3-30B-A3B"}]},
                     "loadgen": {"concurrency": 32}},
}  # fmt: skip
LLAMA = [
    {"build_commit": "4df29be", "model_type": "qwen3moe 30B Q4_0", "n_prompt": 512, "n_gen": 0,
     "n_depth": 0, "avg_ts": 1024.0, "stddev_ts": 1.0},
    {"build_commit": "4df29be", "model_type": "qwen3moe 30B Q4_0", "n_prompt": 0, "n_gen": 128,
     "n_depth": 512, "avg_ts": 40.0, "stddev_ts": 1.0},
]  # fmt: skip


def write(folder: Path, name: str, data: object) -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_nccl_text(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (answer,) = import_files([write(tmp_path, "ar.txt", NCCL)], Facts("h100-sxm"), out)
    assert answer["format"] == "nccl-tests"
    assert (answer["kernel_rows"], answer["set_apart"]) == (2, 2)
    small, large = Journal(out / "measurements.jsonl").read()
    assert small["kernel"] == "all_reduce"
    assert (small["devices"], small["nodes"], small["dtype"]) == (4, 2, "fp16")
    assert small["median_s"] == pytest.approx(12.1e-6)
    assert small["min_s"] == pytest.approx(11.9e-6)
    assert large["message_bytes"] == 2**30
    assert "sha256" in small["source"]
    assert "ar.txt" in small["source"]
    assert small["backend_version"] == "22808"
    wrong, zero = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    assert wrong["reason"] == "the tool found 7 wrong values"
    assert "zero or negative" in zero["reason"]


OLD = """    # nThread 1 nGpus 2 minBytes 8 maxBytes 134217728 step: 2(factor) iters: 20
    # Using devices
    #   Rank  0 Pid  21284 on node1 device  0 [0xa4] NVIDIA H100 80GB HBM3
    #   Rank  1 Pid  21284 on node1 device  1 [0xa9] NVIDIA H100 80GB HBM3
    # all_reduce_perf
    node1:880:888 [1] NCCL INFO comm 0x55 rank 1 nranks 2 cudaDev 1 busId a9000 - Init COMPLETE
    #                                                     out-of-place                in-place
    #       size    count    type   redop     time   algbw   busbw  error     time   algbw   busbw
    134217728  33554432  float  sum  -1  857.6  156.51  156.51  4e-07  819.6  163.76  163.76  4e-07
    268435456  67108864  float  sum  -1  1.5e+03  185.74  185.74  3e+00  1441.9  186.1  186.1  4e-07
    536870912  134217728  float  sum  -1  2789.9  192.43  192.43  N/A  2793.6  192.18  192.18  N/A
    # Out of bounds values : 0 OK
"""


def test_old_nccl_text_between_logs(tmp_path: Path) -> None:
    """Before the count of wrong values stood the largest difference, which rounding makes."""
    out = tmp_path / "out"
    (answer,) = import_files([write(tmp_path, "ar.txt", OLD)], Facts("h100-sxm"), out)
    assert (answer["kernel_rows"], answer["set_apart"]) == (2, 1)
    rows = list(Journal(out / "measurements.jsonl").read())
    assert [row["median_s"] for row in rows] == pytest.approx([857.6e-6, 2789.9e-6])
    assert {(row["devices"], row["nodes"]) for row in rows} == {(2, 1)}
    assert "values off by 3" in json.loads((out / "quarantine.jsonl").read_text())["reason"]


def test_one_bad_run_of_many_is_set_apart(tmp_path: Path) -> None:
    runs = [SGLANG, SGLANG | {"completed": 0}, SGLANG | {"mean_ttft_ms": 1, "median_ttft_ms": -1}]
    text = "\n".join(json.dumps(run) for run in runs)
    (answer,) = import_files([write(tmp_path, "s.jsonl", text)], Facts("h100-sxm"), tmp_path)
    assert (answer["serving_rows"], answer["set_apart"]) == (1, 2)
    apart = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert ["run 2" in apart[0]["reason"], "run 3" in apart[1]["reason"]] == [True, True]
    assert "below zero" in apart[1]["reason"]


def test_nccl_json(tmp_path: Path) -> None:
    data = {
        "nccl_version": 22808,
        "config": {"ngpus": 8, "nthreads": 1, "devices": [{"rank": i} for i in range(8)]},
        "results": [{
            "size": 2**28, "count": 2**26, "type": "float",
            "out_of_place": {"time": 1100.0, "alg_bw": 1, "bus_bw": 1, "nwrong": 0},
            "in_place": {"time": 1090.0, "alg_bw": 1, "bus_bw": 1, "nwrong": 0},
        }],
    }  # fmt: skip
    path = write(tmp_path, "ag.json", data)
    with pytest.raises(MoesaicError, match="give --kernel"):
        import_files([path], Facts("h100-sxm"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (answer,) = import_files([path], Facts("h100-sxm", "all_gather"), tmp_path / "out")
    assert answer["kernel_rows"] == 1
    (row,) = Journal(tmp_path / "out" / "measurements.jsonl").read()
    assert (row["devices"], row["dtype"]) == (8, "fp32")


def test_hccl_needs_to_be_told(tmp_path: Path) -> None:
    path = write(tmp_path, "hccl.txt", HCCL)
    with pytest.raises(MoesaicError, match="give --kernel"):
        import_files([path], Facts("ascend-a2-376t"), tmp_path)
    with pytest.raises(MoesaicError, match="give --devices"):
        import_files([path], Facts("ascend-a2-376t", "all_reduce"), tmp_path)
    facts = Facts("ascend-a2-376t", "all_reduce", 8, 1)
    (answer,) = import_files([path], facts, tmp_path)
    assert answer["kernel_rows"] == 1
    assert answer["set_apart"] == 1
    assert "check said failed" in (tmp_path / "quarantine.jsonl").read_text()
    (row,) = Journal(tmp_path / "measurements.jsonl").read()
    assert (row["library"], row["median_s"]) == ("hccl", pytest.approx(84.35e-6))


@pytest.mark.parametrize(
    ("form", "data"),
    [("vllm", VLLM), ("sglang", json.dumps(SGLANG) + "\n" + json.dumps(SGLANG | {"completed": 99})),
     ("aiperf", AIPERF)],
)  # fmt: skip
def test_serving_benchmarks(tmp_path: Path, form: str, data: Any) -> None:
    (answer,) = import_files([write(tmp_path, "b.json", data)], Facts("h100-sxm"), tmp_path)
    assert answer["format"] == form
    rows = Journal(tmp_path / "serving.jsonl").read()
    assert len(rows) == answer["serving_rows"] == (2 if form == "sglang" else 1)
    row = serving_table(rows).to_dicts()[0]
    assert row["ttft_s"] == pytest.approx(0.18)
    assert row["ttft_s_p99"] == pytest.approx(0.9)
    assert row["tpot_s"] == pytest.approx(0.011)
    assert (row["isl"], row["osl"], row["concurrency_count"]) == (1024, 128, 32)
    assert row["output_tokens_per_s"] == 640
    assert row["request_rate"] is None


def test_llama_bench(tmp_path: Path) -> None:
    import_files([write(tmp_path, "l.json", LLAMA)], Facts("rk3588"), tmp_path)
    prompt, generation = Journal(tmp_path / "serving.jsonl").read()
    assert prompt["ttft_s"] == 0.5
    assert generation["tpot_s"] == 0.025
    assert generation["isl"] == 512


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("hello", "no known format|no value|invalid|Expecting"),
        ({"a": 1}, "no known format"),
        ([], "no known format"),
        (VLLM | {"median_ttft_ms": -1.0}, "below zero"),
        (VLLM | {"completed": 0}, "completed no request"),
        (NCCL.replace("half", "half oops"), "holds no result"),
        (NCCL.replace("all_reduce_perf", "hypercube_perf"), "no collective 'hypercube'"),
    ],
)
def test_bad_files_write_nothing(tmp_path: Path, data: Any, says: str) -> None:
    good = write(tmp_path, "good.txt", NCCL)
    out = tmp_path / "out"
    with pytest.raises(MoesaicError, match=says):
        import_files([good, write(tmp_path, "bad.json", data)], Facts("h100-sxm"), out)
    assert not out.exists()


def test_an_unknown_device_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(MoesaicError, match="did you mean h100-sxm"):
        import_files([write(tmp_path, "a.txt", NCCL)], Facts("h1000"), tmp_path)
