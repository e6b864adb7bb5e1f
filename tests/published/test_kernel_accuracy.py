"""How far off the shipped profiles are on shapes left out of the fit, and on machines never fitted.

Hold-out figures are those the profiles carry (whole shapes left out in folds; message sizes for
NCCL); the page `docs/timing-accuracy.md` shows the same figures.
"""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hwprofiles.library import cluster_for
from hwprofiles.timing import profile, time_kernels
from hwprofiles.timing.profile import BACKENDS, FOLDER

DOCS = Path(__file__).parents[2] / "docs" / "timing-accuracy.md"
CARDS = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
TABLES = [(card, table) for card in CARDS for table in card["tables"]]
TARGETS = {
    "gemm": (0.05, 0.18),
    "attention_prefill": (0.05, 0.18),
    "attention_decode": (0.05, 0.18),
    "mla_prefill": (0.05, 0.18),
    "mla_decode": (0.05, 0.18),
    "grouped_gemm": (0.08, 0.25),
    "moe_dispatch": (0.10, None),
    "moe_combine": (0.10, None),
}
"""Median and 90th percentile wanted of each family's tables, taken by rows."""
FEW_MISS = 0.25
"""Share of a family's rows in tables that miss the 90th percentile; engines that tune kernels shape
by shape (MoE in bf16) jump where nothing in the shape says so."""


def by_rows(values):
    """Median of tables' errors, each counted by its rows."""
    order = sorted(values)
    total = sum(rows for _, rows in order)
    reached = 0
    for value, rows in order:
        reached += rows
        if reached >= total / 2:
            return value
    raise AssertionError


@pytest.mark.parametrize("kernel", TARGETS)
def test_median_error_on_shapes_held_out(kernel):
    wanted, tail = TARGETS[kernel]
    held = [t for _, t in TABLES if t["kernel"] == kernel and t.get("error_shapes")]
    assert by_rows([(t["error_shapes"]["median"], t["rows"]) for t in held]) <= wanted
    if tail is not None:
        assert by_rows([(t["error_shapes"]["p90"], t["rows"]) for t in held]) <= tail


@pytest.mark.parametrize("kernel", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_nccl_error_on_sizes_held_out(kernel):
    tables = [t for card, t in TABLES if card["backend"] == "nccl" and t["kernel"] == kernel]
    assert len(tables) == (9 if kernel == "all_to_all" else 10)
    assert max(t["error_sizes"]["median"] for t in tables) <= 0.06


def test_intervals_hold_four_in_five_of_what_was_left_out():
    for card, table in TABLES:
        for figure in ("error_shapes", "error_sizes"):
            covered = table.get(figure, {}).get("coverage", 0.8)
            name = f"{card['device']} {card['backend']} {table['kernel']} {table['keys']} {figure}"
            assert 0.75 <= covered <= 0.88, f"{name}: {covered}"


def test_each_profile_names_its_source():
    packaged = [card for card in CARDS if "aiconfigurator-core 0.12.0" in card["source"]]
    devices = {card["device"] for card in packaged}
    assert len(devices) == 9
    assert {(c["device"], c["backend"]) for c in packaged} == {
        (d, b) for d in devices for b in (*BACKENDS, "nccl")
    }
    for card in packaged:
        assert all(re.search(r"\.parquet", table["data"]) for table in card["tables"])
    others = [card for card in CARDS if card not in packaged]
    assert {card["device"] for card in others} == {
        "h20",
        "h800-sxm",
        "gh200",
        "ascend-a3-die",
        "tpu-v6e",
        "rtx-4090",
    }
    for card in CARDS:
        assert card["date"]
        assert len(card["source"]) > 30
        assert card["rows"] == sum(table["rows"] for table in card["tables"])


def test_known_faults_of_the_package_stay_out():
    """Copies, mislabelled folders, bad times and a single multi-node shape (its own notes)."""
    by_name = {(card["device"], card["backend"]): card for card in CARDS}
    exchange = [t for t in by_name["h200-sxm", "sglang"]["tables"] if t["kernel"] == "moe_dispatch"]
    for table in exchange:  # 0.5.6.post2 under h200_sxm is a copy of H100's
        assert "h200_sxm/comm/sglang/0.5.6.post2" not in table["data"]
        assert "h100_sxm/comm/sglang/0.5.6.post2" in table["data"]
    for (device, backend), card in by_name.items():
        if backend != "nccl" or "aiconfigurator" not in card["source"]:
            continue
        folders = {re.search(r"nccl/([\d.]+)/", table["data"])[1] for table in card["tables"]}
        # Folders named 2.23 to 2.27 of newer machines hold runs of 2.29.2; those two do not.
        assert folders == ({"2.27.3"} if device in ("a100-sxm-80g", "l40s") else {"2.29.2"})
    assert all(card["dropped_rows"] >= 0 for card in CARDS)
    across = {
        "kernel": "moe_dispatch",
        "library": "deepep_normal",
        "devices": 32.0,
        "nodes": 4.0,
        "tokens": 4096.0,
        "hidden": 7168.0,
        "top_k": 8.0,
        "experts": 256.0,
        "dtype": "fp8",
    }
    for device in ("h100-sxm", "h200-sxm"):
        timed = time_kernels(pl.DataFrame([across]), cluster_for(device, 32, 4), "sglang")
        assert timed["source"].item() == "modelled"


def test_collectives_of_another_node_of_a100(shared):
    """simllm's node of four A100 against tables of another machine, four ranks: within 6 %."""
    from hwprofiles.calibration.simllm import read_rows

    path = shared / "data" / "peers" / "simllm" / "collectives.csv"
    rows = read_rows(path, "a100-sxm-80g").filter(pl.col("devices") == 4)
    timed = time_kernels(rows, cluster_for("a100-sxm-80g", 4), "vllm")
    off = timed.with_columns(off=(pl.col("typical_s") / pl.col("seconds") - 1).abs())
    for (kernel,), part in off.group_by("kernel"):
        assert part["off"].median() <= 0.06, kernel


def test_products_of_another_a100(shared):
    """simllm's nineteen products, none of which was fitted: median 3.9 %, p90 14.3 %."""
    path = shared / "data" / "peers" / "simllm" / "gemm.csv"
    table = pl.read_csv(path).filter(pl.col("device").str.contains("A100"))
    rows = table.select(
        pl.lit("gemm").alias("kernel"), pl.lit("bf16").alias("dtype"),
        *(pl.col(c).cast(pl.Float64) for c in "mnk"), (pl.col("time_ms") * 1e-3).alias("seconds"),
    )  # fmt: skip
    timed = time_kernels(rows, cluster_for("a100-sxm-80g"), "vllm", extrapolate=True)
    off = (timed["typical_s"] / timed["seconds"] - 1).abs()
    assert off.median() <= 0.05
    assert off.quantile(0.9) <= 0.18
    inside = (timed["low_s"] <= timed["seconds"]) & (timed["seconds"] <= timed["high_s"])
    assert 0.75 <= inside.mean() <= 0.88


def test_shipped_collectives_of_gh200_come_from_the_published_rows(shared):
    from hwprofiles.calibration.simllm import fit_system

    card, _ = fit_system(shared / "data" / "peers" / "simllm" / "collectives.csv", "gh200")
    assert json.loads(json.dumps(card)) == next(c for c in CARDS if c["device"] == "gh200")


def test_products_of_a_tpu(shared):
    """Four shapes: each from the others 8 % off (median); sizes left out of a shape 0.3 %."""
    from hwprofiles.calibration.tpu_layers import fit_tpu

    folder = shared / "data" / "peers" / "llmservingsim" / "profiler" / "v0" / "perf_models"
    card, _ = fit_tpu(folder / "TPU-v6e-1" / "meta-llama" / "Llama-3.1-8B" / "tp1" / "layers.csv")
    assert json.loads(json.dumps(card)) == next(c for c in CARDS if c["device"] == "tpu-v6e")
    table = card["tables"][0]
    assert table["error_shapes"]["median"] <= 0.10
    assert table["error_sizes"]["median"] <= 0.01


def test_profiles_stay_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 15e6


NAMES = {"H20 96GB": "h20", "H800 SXM 80GB": "h800-sxm"}


def infersim(shared):
    """Kernels of InferSim on H20 and H800."""
    with (shared / "data" / "measured" / "kernels.csv").open(encoding="utf-8") as file:
        lines = [r for r in csv.DictReader(file) if r["id"].startswith("kn-isim")]
    rows = []
    for line in lines:
        kernel, size = line["phase"], line["batch_or_concurrency"]
        sizes = dict(part.split("=") for part in size.split())
        row = {"device": NAMES[line["hardware"]], "phase": kernel,
               "seconds": float(line["value"]) * 1e-6}  # fmt: skip
        if kernel == "gemm":
            row |= {"kernel": "gemm", "dtype": "fp8_block"} | {c: float(sizes[c]) for c in "mnk"}
        elif kernel in ("mha decode", "mla decode"):
            parts = re.search(r"H(?:20|800)-(\d+)-(\d+)-(\d+)-", line["id"]).groups()
            heads, kv_heads, width = map(float, parts)
            row |= {"kernel": "attention_decode", "kv_heads": kv_heads, "head_dim": width}
            if kernel == "mla decode":
                row |= {"kernel": "mla_decode", "kv_heads": None, "head_dim": None}
            row |= {"heads": heads, "batch": float(sizes["batch_size"]), "dtype": sizes["dtype"],
                    "kv_dtype": sizes["kv_dtype"], "seq": float(sizes["kv_len"])}  # fmt: skip
        else:
            continue
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


@pytest.fixture
def without_own_tables(monkeypatch):
    """Machines as if nobody had measured H20 and H800: their relatives' tables answer."""
    whole = profile.load_profile
    monkeypatch.setattr(
        profile, "load_profile", lambda d, b: None if d in NAMES.values() else whole(d, b)
    )
    profile.find.cache_clear()
    yield
    profile.find.cache_clear()


@pytest.mark.usefixtures("without_own_tables")
@pytest.mark.parametrize(
    ("device", "phase", "wanted"),
    [
        ("h20", "gemm", 0.08), ("h800-sxm", "gemm", 0.20),
        ("h20", "mha decode", 0.15), ("h800-sxm", "mha decode", 0.10),
        ("h20", "mla decode", 0.25), ("h800-sxm", "mla decode", 0.10),
    ],
)  # fmt: skip
def test_relatives_answer_for_machines_never_fitted(shared, device, phase, wanted):
    rows = infersim(shared).filter((pl.col("device") == device) & (pl.col("phase") == phase))
    timed = time_kernels(rows, cluster_for(device), "sglang", extrapolate=True)
    off = np.abs(timed["typical_s"] / timed["seconds"] - 1)
    assert np.median(off) <= wanted
    assert set(timed["source"]) == {"modelled"}


INFERSIM = {
    "h20": {"gemm": (0.05, 0.18), "grouped_gemm": (0.08, 0.25), "attention_decode": (0.10, 0.20),
            "attention_prefill": (0.05, 0.18)},
    "h800-sxm": {"grouped_gemm": (0.08, 0.25), "attention_decode": (0.05, 0.18)},
}  # fmt: skip
"""Median and 90th percentile on whole shapes left out; tables of one shape have none to leave out,
and H800's ten GEMM shapes are too far apart for the tail (p90 40 %)."""


@pytest.mark.parametrize("device", INFERSIM)
def test_machines_fitted_to_few_shapes(device):
    card = next(card for card in CARDS if card["device"] == device)
    held = {t["kernel"]: t["error_shapes"] for t in card["tables"] if "error_shapes" in t}
    for kernel, (median, tail) in INFERSIM[device].items():
        assert held[kernel]["median"] <= median, kernel
        assert held[kernel]["p90"] <= tail, kernel
    single = [t["error_sizes"]["median"] for t in card["tables"] if "error_shapes" not in t]
    assert all(error <= 0.05 for error in single)


def test_h800_products_by_a_split_over_shapes():
    card = next(card for card in CARDS if card["device"] == "h800-sxm")
    gemm = next(t for t in card["tables"] if t["kernel"] == "gemm")
    assert gemm["error_shapes"]["median"] <= 0.06
    assert gemm["error_sizes"]["median"] <= 0.05


@pytest.mark.parametrize("system", ["h20", "h800"])
def test_shipped_profiles_come_from_the_published_rows(shared, system):
    from hwprofiles.calibration.infersim import SYSTEMS, fit_system

    root = shared / "data" / "peers" / "infersim" / "bench_data"
    card, _ = fit_system(root, system)
    shipped = next(card for card in CARDS if card["device"] == SYSTEMS[system])
    assert json.loads(json.dumps(card)) == shipped


def test_two_sources_that_differ_on_h800_are_both_known(shared):
    """DeepGEMM's own figures of the same products are faster than InferSim's at few rows."""
    name = re.compile(r"kn-dg-dense-M=(\d+)_N=(\d+)_K=(\d+)-compute$")
    with (shared / "data" / "measured" / "kernels.csv").open(encoding="utf-8") as file:
        lines = [(name.match(r["id"]), float(r["value"])) for r in csv.DictReader(file)
                 if r["id"].startswith("kn-dg-dense") and r["metric"] == "compute"]  # fmt: skip
    rows = pl.DataFrame([
        {"kernel": "gemm", "dtype": "fp8_block", **dict(zip("mnk", map(float, m.groups()),
         strict=True)), "seconds": 2 * math.prod(map(float, m.groups())) / (rate * 1e12)}
        for m, rate in lines
    ])  # fmt: skip
    timed = time_kernels(rows, cluster_for("h800-sxm"), "sglang", extrapolate=True)
    few = timed["m"] <= 128
    ratio = timed["typical_s"] / timed["seconds"]
    assert 1.1 <= ratio.filter(few).median() <= 1.5
    assert 0.7 <= ratio.filter(~few).median() <= 1.0
    card = next(card for card in CARDS if card["device"] == "h800-sxm")
    assert "DeepGEMM" in card["conflicts"]


def test_the_page_shows_the_shipped_figures():
    text = DOCS.read_text(encoding="utf-8")
    from hwprofiles.calibration.accuracy_page import page

    assert text == page(CARDS)


def test_low_latency_exchange_across_nodes_that_were_never_fitted(shared):
    """DeepEP's own figures on H800 at 16 to 64 ranks; the tables are of H100."""
    name = re.compile(r"cc-deepep-v1-ll-(dispatch|combine)-ep(\d+)$")
    with (shared / "data" / "measured" / "collectives.csv").open(encoding="utf-8") as file:
        lines = [(name.match(r["id"]), r) for r in csv.DictReader(file)]
    found = [(m[1], int(m[2]), float(r["value"])) for m, r in lines if m and r["unit"] == "us"]
    rows = pl.DataFrame([
        {"kernel": f"moe_{phase}", "library": "deepep_low_latency", "devices": float(ranks),
         "nodes": ranks / 8, "tokens": 128.0, "hidden": 7168.0, "top_k": 8.0, "experts": 256.0,
         "dtype": "fp8", "seconds": micros * 1e-6}
        for phase, ranks, micros in found if ranks > 8
    ])  # fmt: skip
    assert rows.height == 6
    timed = time_kernels(rows, cluster_for("h800-sxm", 256, 32), "sglang")
    off = (timed["typical_s"] / timed["seconds"] - 1).abs()
    assert off.median() <= 0.2
    assert set(timed["source"]) == {"modelled"}
