"""Serving benchmarks as rows in SI: `vllm bench serve`, SGLang, AIPerf, llama-bench."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError

Row = dict[str, Any]
SERVING_MEASUREMENT: dict[str, type[pl.DataType]] = {
    "id": pl.String,
    "device": pl.String,
    "backend": pl.String,
    "backend_version": pl.String,
    "model": pl.String,
    "isl": pl.Float64,
    "osl": pl.Float64,
    "concurrency_count": pl.Float64,
    "request_rate": pl.Float64,  # requests a second; null: closed loop
    "requests_count": pl.Float64,
    "duration_s": pl.Float64,
    "ttft_s": pl.Float64,  # medians where the file has them, else means
    "ttft_s_p99": pl.Float64,
    "tpot_s": pl.Float64,
    "itl_s": pl.Float64,
    "request_throughput_per_s": pl.Float64,
    "output_tokens_per_s": pl.Float64,
    "total_tokens_per_s": pl.Float64,
    "measured_at": pl.String,
    "source": pl.String,
}
"""Columns of the serving measurements table; times and rates are of the whole deployment."""
_MILLI = 1e-3


def serving_id(row: Mapping[str, Any]) -> str:
    """Name a serving row by its content, the moment it was read left out."""
    text = json.dumps({k: v for k, v in row.items() if k != "measured_at"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def serving_table(rows: list[Row]) -> pl.DataFrame:
    """Build a serving measurements table; absent columns become null."""
    return pl.DataFrame(rows, schema=SERVING_MEASUREMENT)


def vllm_rows(data: Any) -> Iterator[Row]:  # noqa: ANN401 - foreign JSON
    """`vllm bench serve --save-result`: one object a run."""
    yield from _each(data, _vllm)


def _vllm(run: Mapping[str, Any]) -> Row:
    return _benchmark(run, "vllm", run.get("model_id"), run.get("vllm_version"))


def sglang_rows(data: Any) -> Iterator[Row]:  # noqa: ANN401 - foreign JSON
    """`sglang.bench_serving --output-file`: a line a run."""
    yield from _each(data, _sglang)


def _sglang(run: Mapping[str, Any]) -> Row:
    info = run.get("server_info") or {}
    model = run.get("model_id") or info.get("model_path")
    row = _benchmark(run, "sglang", model, info.get("version"))
    return row | _given(isl=run.get("random_input_len"), osl=run.get("random_output_len"))


def _each(data: Any, read: Callable[[Mapping[str, Any]], Row]) -> Iterator[Row]:  # noqa: ANN401 - foreign JSON
    """Rows of all runs; one that cannot be read says why and is set apart."""
    for number, run in enumerate(_runs(data), start=1):
        try:
            yield read(run)
        except MoesaicError as error:
            yield {"backend": read.__name__.lstrip("_"), "reason": f"run {number}: {error.message}"}


def _runs(data: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401 - foreign JSON
    return data if isinstance(data, list) else [data]


def _benchmark(run: Mapping[str, Any], backend: str, model: object, version: object) -> Row:
    """The fields that vLLM's and SGLang's benchmarks share."""
    completed = _number(run, "completed")
    if not completed:
        raise MoesaicError("invalid", f"a {backend} run completed no request", "/completed")
    lengths = _given(
        isl=_over(_number(run, "total_input_tokens"), completed),
        osl=_over(_number(run, "total_output_tokens"), completed),
    )
    return lengths | _given(
        backend=backend,
        backend_version=None if version is None else str(version),
        model=None if model is None else str(model),
        concurrency_count=_number(run, "max_concurrency"),
        request_rate=_number(run, "request_rate"),
        requests_count=completed,
        duration_s=_number(run, "duration"),
        ttft_s=_milli(run, "median_ttft_ms", "mean_ttft_ms"),
        ttft_s_p99=_milli(run, "p99_ttft_ms"),
        tpot_s=_milli(run, "median_tpot_ms", "mean_tpot_ms"),
        itl_s=_milli(run, "median_itl_ms", "mean_itl_ms"),
        request_throughput_per_s=_number(run, "request_throughput"),
        output_tokens_per_s=_number(run, "output_throughput"),
        total_tokens_per_s=_number(run, "total_token_throughput", "total_throughput"),
    )


def aiperf_rows(data: Mapping[str, Any]) -> Iterator[Row]:
    """AIPerf's `profile_export_aiperf.json`: each metric an object with unit and statistics.

    Its inter-token latency is (end to end - TTFT) / (tokens - 1): what is called TPOT here.
    """
    config = data.get("input_config") or {}
    models = config.get("models") or config.get("endpoint") or {}
    load = config.get("loadgen") or {}
    latency = _metric(data, "inter_token_latency", "p50")
    yield _given(
        backend="aiperf",
        model=_model_name(models),
        isl=_metric(data, "input_sequence_length", "avg"),
        osl=_metric(data, "output_sequence_length", "avg"),
        concurrency_count=_number(load, "concurrency"),
        request_rate=_number(load, "request_rate"),
        requests_count=_metric(data, "request_count", "avg"),
        duration_s=_metric(data, "benchmark_duration", "avg"),
        ttft_s=_metric(data, "time_to_first_token", "p50"),
        ttft_s_p99=_metric(data, "time_to_first_token", "p99"),
        tpot_s=latency,
        request_throughput_per_s=_metric(data, "request_throughput", "avg"),
        output_tokens_per_s=_metric(data, "output_token_throughput", "avg"),
        total_tokens_per_s=_metric(data, "total_token_throughput", "avg"),
    )


def _model_name(models: Any) -> str | None:  # noqa: ANN401 - foreign JSON
    names = models.get("items") or models.get("model_names") or []
    first = names[0] if names else None
    return str(first.get("name")) if isinstance(first, Mapping) else first


_UNITS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "us": 1e-6, "ns": 1e-9}


def _metric(data: Mapping[str, Any], name: str, statistic: str) -> float | None:
    """One statistic of an AIPerf metric in SI; the mean where the statistic is absent."""
    metric = data.get(name)
    if not isinstance(metric, Mapping):
        return None
    value = _number(metric, statistic, "avg")
    return None if value is None else value * _UNITS.get(str(metric.get("unit", "")).lower(), 1.0)


def llama_rows(data: Any) -> Iterator[Row]:  # noqa: ANN401 - foreign JSON
    """`llama-bench -o json`: a prompt test (n_gen 0) gives TTFT, a generation test TPOT."""
    for run in _runs(data):
        rate = _number(run, "avg_ts")
        prompt, generated = _number(run, "n_prompt") or 0.0, _number(run, "n_gen") or 0.0
        if not rate or (prompt > 0) == (generated > 0):
            continue
        timed = {"ttft_s": prompt / rate} if prompt else {"tpot_s": 1 / rate}
        speed = {"total_tokens_per_s": rate} if prompt else {"output_tokens_per_s": rate}
        yield (
            timed
            | speed
            | _given(
                backend="llama.cpp",
                backend_version=run.get("build_commit"),
                model=run.get("model_type") or run.get("model_filename"),
                isl=prompt or _number(run, "n_depth"),
                osl=generated or None,
                concurrency_count=1.0,
            )
        )


def _given(**fields: object) -> Row:
    return {name: value for name, value in fields.items() if value is not None}


def _over(total: float | None, count: float) -> float | None:
    return None if total is None else total / count


def _number(data: Mapping[str, Any], *names: str) -> float | None:
    """The first of several fields as a finite number; "inf" (a closed loop) is none."""
    for name in names:
        value = data.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            if value < 0:
                raise MoesaicError("invalid", f"{name} is {value}, below zero", f"/{name}")
            return float(value)
    return None


def _milli(data: Mapping[str, Any], *names: str) -> float | None:
    value = _number(data, *names)
    return None if value is None else value * _MILLI
