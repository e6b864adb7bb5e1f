"""Configs of families that no test data holds, against the sizes their authors print."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document
from planner.formats.hf_config import read_config
from planner.parameters import count_parameters, layer_kv_elements

CASES = read_document(Path(__file__).with_name("hf_families.yaml"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["source"][:40])
def test_total_and_active_are_what_the_authors_print(case):
    count = count_parameters(read_config(case["config"], name=case["source"]))
    assert count.total / 1e9 == pytest.approx(case["total_billions"], rel=6e-3)
    if "active_billions" in case:
        assert count.active / 1e9 == pytest.approx(case["active_billions"], rel=2e-2)


def _config_with(field):
    return next(case["config"] for case in CASES if field in case["config"])


def test_layers_that_borrow_a_cache_store_none():
    model = read_config(_config_with("use_cla"), name="x")
    kept = [layer_kv_elements(kind) for kind in model.kinds.values()]
    assert sorted(kept) == [0, 2 * 8 * 80]


def test_a_number_that_differs_by_layer_is_not_averaged():
    config = _config_with("attention_head_dim") | {"moe_topk": [8] * 31 + [4]}
    with pytest.raises(MoesaicError, match="layer to layer"):
        read_config(config, name="x")
