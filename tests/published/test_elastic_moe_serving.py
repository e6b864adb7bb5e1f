"""ElasticMoE under load (arXiv:2510.02613, Table 2 and Fig 9): DeepSeek-V2-Lite, DP3TP2 -> DP4TP2.

Priced by the planner on CloudMatrix384 dies; boot, warm-up and disk rate as fitted on Table 1. The
paper states no memory share; the one taken leaves the colocated run the published part of the
throughput before scaling (1.338 of 6.002 requests/s), everything else follows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import polars as pl
import pytest

from planner.simulation.question import SimulationQuestion
from planner.simulation.simulate import simulate

AT_S, LONGEST_S, AROUND_S = 20.0, 61.3, 5.0
STRATEGIES = ("colocated", "cold_restart", "elastic")


@cache
def requests(strategy: str, rate: float, count: int) -> pl.DataFrame:
    """Every request of one run that scales from three to four ranks at `AT_S`."""
    lengths = {"isl": 500, "osl": 375, "variation_ratio": 0.19}  # 250 to 500 drawn evenly
    data: dict[str, Any] = {
        "model": "deepseek-v2-lite", "cluster": "cloudmatrix384",
        "layout": {"tp": 2, "dp": 3, "router": "shared_queue"},
        "engine": {"memory_share": 0.2235}, "requests": count, "seeds": 1,
        "load": {"kind": "poisson", "request_rate": rate, "lengths": lengths},
        "scale_rates": {"boot_s": 54.5, "warm_up_s": 2.51, "disk_bytes_per_s": "1.154 GB/s"},
        "events": [{"at_s": AT_S, "dp": 4, "strategy": strategy}],
    }  # fmt: skip
    return simulate(SimulationQuestion.parse(data))[2]


def throughput(table: pl.DataFrame, start_s: float, end_s: float) -> float:
    return table.filter(pl.col("finished_s").is_between(start_s, end_s)).height / (end_s - start_s)


@pytest.fixture(scope="module")
def rates() -> dict[str, tuple[float, float, float]]:
    """Requests/s before, during and after; more is asked than any of them serves."""
    found = {}
    for name in STRATEGIES:
        table, end = requests(name, 400.0, 9000), AT_S + LONGEST_S + AROUND_S
        if name == "elastic":  # answers everything sooner; its new layout is at work at once
            after = throughput(table, AT_S + 10, AT_S + 40)
        else:
            after = throughput(table, end, end + 30)
        during = throughput(table, AT_S - AROUND_S, AT_S + 35)
        found[name] = (throughput(table, AT_S - 10, AT_S), during, after)
    return found


def test_before_only_the_colocated_run_is_slow(rates: dict[str, tuple[float, ...]]) -> None:
    before = {name: values[0] for name, values in rates.items()}
    assert before["elastic"] == before["cold_restart"]
    assert before["colocated"] / before["elastic"] == pytest.approx(1.338 / 6.002, rel=0.15)


def test_during_elastic_serves_most(rates: dict[str, tuple[float, ...]]) -> None:
    during = {name: values[1] for name, values in rates.items()}
    assert during["elastic"] > 1.9 * during["cold_restart"]
    assert during["elastic"] > 2 * during["colocated"]


def test_after_the_new_layout_serves_more(rates: dict[str, tuple[float, ...]]) -> None:
    for name in STRATEGIES:
        before, _, after = rates[name]
        # Published: 7.818 / 6.002 = 1.30; the colocated run 1.70. Reached: 1.34 with the cache that
        # was cut in advance; 1.7 to 3.0, by how much memory is taken to be cut, if the second
        # engine also took what fewer experts a device leave.
        published, within = (1.70, 0.25) if name == "colocated" else (1.30, 0.1)
        assert after / before == pytest.approx(published, rel=within)
    assert rates["colocated"][2] < 0.5 * rates["elastic"][2]


def test_slo_attainment_is_best_with_elastic_scaling() -> None:
    """Fig 9a: TTFT at most 5 s and TPOT at most 1.5 s."""
    met = {}
    for name in STRATEGIES:
        table = requests(name, 40.0, 3000)
        within = (table["ttft_s"] <= 5.0) & (table["tpot_s"] <= 1.5)
        met[name] = float(within.mean())  # type: ignore[arg-type]
    assert met["elastic"] > 0.9 > met["cold_restart"]
    assert met["elastic"] > 0.9 > met["colocated"]
