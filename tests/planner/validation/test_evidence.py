"""Rows of published tables become questions, or say why not."""

import pytest

from hwprofiles.errors import MoesaicError
from planner.validation.evidence import COLUMNS, is_training, read_evidence, read_figure
from planner.validation.layout_text import Layout, read_layout


def row(**fields):
    base = dict.fromkeys(COLUMNS, "") | {
        "id": "sv-test-1", "model": "DeepSeek-R1-0528", "hardware": "H200 SXM 141GB",
        "n_devices": "8", "parallelism": "TP8 EP1 DPA=false", "precision": "FP8",
        "framework": "sglang sglang:v0.5.6-cu129-amd64", "phase": "online closed loop",
        "isl": "1024", "osl": "1024", "batch_or_concurrency": "64", "metric": "median_tpot",
        "value": "33", "unit": "ms", "source": "a table",
    }  # fmt: skip
    return base | fields


def test_a_closed_loop_row():
    figure = read_figure(row())
    assert figure.target == "tpot_s"
    assert figure.value == pytest.approx(0.033)
    assert figure.point["backend"] == "sglang"
    assert figure.point["backend_version"] == "0.5.6"
    assert (figure.point["tp"], figure.point["moe_tp"], figure.point["concurrency"]) == (8, 8, 64)


@pytest.mark.parametrize(
    ("text", "devices", "layout"),
    [
        ("TP4 PP1 DPA1 moeTP2 EP2", 4, Layout(4, 1, 1, 2, 2)),
        ("TP8 EP8 DPA=true", 8, Layout(1, 1, 8, 1, 8)),
        ("EP32 DP32 (4 nodes)", 32, Layout(1, 1, 32, 1, 32)),
        ("DEP4", 4, Layout(1, 1, 4, 1, 4)),
        ("TP2,PP4", 8, Layout(2, 4, 1, 2, 1)),
        ("TP64 PP1 DPA1 moeTP8 EP8", 64, Layout(8, 1, 1, 1, 8)),
    ],
)
def test_layouts(text, devices, layout):
    assert read_layout(text, devices).agg == layout


def test_pools_take_their_devices_from_the_text():
    text = (
        "disagg=True prefill: 5x(TP1 EP1 DPA=true) on 40 GPU; "
        "decode: 1x(TP1 EP1 DPA=true) on 32 GPU"
    )
    reading = read_layout(text, 72)
    assert reading.prefill["dp"] == 8
    assert reading.prefill["workers"] == 5
    assert reading.decode["moe_ep"] == 32


def test_output_of_a_disaggregated_deployment_is_per_device_of_both_pools():
    text = (
        "disagg=True prefill: 1x(TP4 EP4 DPA=true) on 4 GPU; decode: 1x(TP8 EP8 DPA=true) on 8 GPU"
    )
    figure = read_figure(
        row(parallelism=text, n_devices="12", metric="output_tput_per_gpu", unit="tok/s/GPU",
            value="300")
    )  # fmt: skip
    assert figure.value == pytest.approx(200)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"parallelism": ""}, "no layout"),
        ({"parallelism": "P x(TP8 DPA1 moeTP1 EP8) D x(TP8 DPA1 moeTP1 EP8 bs)"}, "workers"),
        ({"metric": "p90_ttft"}, "no serving estimate"),
        ({"isl": ""}, "length"),
        ({"value": "nan"}, "not positive"),
        ({"value": "12 to 15"}, "no number"),
        ({"hardware": "H200 SXM 141GB (or 4xB200, see page)"}, "several machines"),
        ({"model": "unheard-of"}, "not known"),
        ({"unit": "furlongs"}, "unit"),
    ],
)
def test_refusals_say_why(fields, reason):
    with pytest.raises(MoesaicError, match=reason):
        read_figure(row(**fields))


def test_missing_columns_are_named(tmp_path):
    path = tmp_path / "figures.csv"
    path.write_text("id,model\n1,x\n")
    with pytest.raises(MoesaicError, match="hardware"):
        read_evidence([path])


def test_the_split_is_fixed_and_by_whole_names():
    assert is_training("a", "b") == is_training("a", "b")
    share = sum(is_training(str(i), share=0.8) for i in range(2000)) / 2000
    assert 0.76 < share < 0.84


def test_shared_tables_parse(shared):
    evidence = read_evidence([shared / "data/measured/serving.csv"])
    assert evidence.parsed_share > 0.8
    assert all(refusal.reason for refusal in evidence.refused)
