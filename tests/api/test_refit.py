"""`moesaic calibrate --from`: tables of others become profiles, or a sentence that helps."""

import json

import polars as pl
import pytest

from api.cli import main
from api.output import Output
from hwprofiles.errors import MoesaicError


@pytest.fixture
def tables(tmp_path):
    rows = [
        {"gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": 0.004 + m * n * k * 3e-12}
        for m in (1, 64, 4096) for n in (1024, 2048, 4096) for k in (1024, 2048, 4096)
    ]  # fmt: skip
    root = tmp_path / "data"
    for engine in ("trtllm", "sglang", "vllm"):
        path = root / "h200_sxm" / "gemm" / engine / "1.0" / "gemm_perf.parquet"
        path.parent.mkdir(parents=True)
        pl.DataFrame(rows).write_parquet(path)
    sizes = [
        {"op_name": "all_reduce", "nccl_dtype": "half", "num_gpus": devices,
         "message_size": 2**size, "latency": 0.01 + 2**size * 1e-9}
        for devices in (2, 4, 8) for size in range(8, 29)
    ]  # fmt: skip
    path = root / "h200_sxm" / "comm" / "nccl" / "2.29.2" / "nccl_perf.parquet"
    path.parent.mkdir(parents=True)
    pl.DataFrame(sizes).write_parquet(path)
    return root


def test_profiles_are_written_with_their_error(tables, tmp_path, capsys):
    out = tmp_path / "profiles"
    main(["calibrate", "--from", "aiconfigurator", "--system", "h200_sxm", "--tables", str(tables),
          "--out", str(out), "-o", "json"])  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    assert [card["backend"] for card in report] == ["nccl", "trtllm", "sglang", "vllm"]
    assert all(table["rows"] in (27, 63) for card in report for table in card["tables"])
    assert sorted(path.name for path in out.glob("*.json")) == [
        f"h200-sxm.{engine}.json" for engine in ("nccl", "sglang", "trtllm", "vllm")
    ]


def test_the_report_reads_as_a_table(tables, tmp_path, capsys):
    main(["calibrate", "--from", "aiconfigurator", "--system", "h200_sxm", "--tables", str(tables),
          "--out", str(tmp_path / "p"), "--quiet"])  # fmt: skip
    text = capsys.readouterr().out
    assert "median error" in text
    assert "all_reduce" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from", "aiconfigurator"], "needs --system"),
        (["--from", "aiconfigurator", "--system", "h200"], "did you mean h200_sxm"),
        (["--from", "elsewhere", "--system", "h200_sxm"], "no source of measurements"),
    ],
)
def test_wrong_questions_say_what_would_work(options, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", *options, "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_the_engine_layer_needs_tables(tmp_path):
    from api.refit import refit

    with pytest.raises(MoesaicError, match="needs --tables"):
        refit("serving", None, tmp_path, Output("json", None, quiet=True))


def test_a_handful_of_figures_is_too_little_to_fit_on(tmp_path):
    from api.refit import refit
    from planner.validation.accuracy import shipped

    lines = shipped()[0].read_text().splitlines()[:12]
    (tmp_path / "serving.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(MoesaicError, match="too few"):
        refit("serving", None, tmp_path / "out", Output("json", None, quiet=True), tmp_path)
