"""Maps of all engines come to the same slots, and say what each device would carry."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.formats.expert_map import ExpertMap, ascend_map, read_expert_map

SLOTS = ((0, 1, 2, 0), (2, 1, 0, 1))
ASCEND = {
    "moe_layer_count": 2,
    "layer_list": [
        {"layer_id": 1, "device_count": 2, "device_list": [
            {"device_id": 1, "device_expert": [0, 1]}, {"device_id": 0, "device_expert": [2, 1]}]},
        {"layer_id": 0, "device_count": 2, "device_list": [
            {"device_id": 0, "device_expert": [0, 1]}, {"device_id": 1, "device_expert": [2, 0]}]},
    ],
}  # fmt: skip


def written(folder, content):
    path = folder / "map.json"
    path.write_text(json.dumps(content))
    return path


def test_both_forms_give_the_same_slots(tmp_path):
    expected = ExpertMap(slots=SLOTS, device_count=2)
    assert read_expert_map(written(tmp_path, ASCEND)) == expected
    ours = {"physical_to_logical_map": SLOTS}
    assert read_expert_map(written(tmp_path, ours), 2) == expected
    assert read_expert_map(written(tmp_path, ascend_map(expected))) == expected


def test_copies_share_an_experts_tokens():
    loads = ExpertMap(slots=SLOTS, device_count=2).device_loads(np.array([[4.0, 1, 2], [3, 8, 1]]))
    assert loads.tolist() == [[3, 4], [5, 7]]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32))
def test_no_load_is_lost(devices, each, seed):
    draws = np.random.default_rng(seed)
    experts = devices * each
    slots = np.stack([draws.permutation(experts) for _ in range(3)])
    counts = draws.integers(0, 100, (3, experts)).astype(float)
    loads = ExpertMap(slots=slots.tolist(), device_count=devices).device_loads(counts)
    assert loads.sum(axis=1) == pytest.approx(counts.sum(axis=1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no layer_list and no physical_to_logical_map"),
        ({"physical_to_logical_map": [[0, 1]]}, "how many devices"),
        ({"physical_to_logical_map": [[0, 1], [0]], "device_count": 1}, "equally many"),
        ({"physical_to_logical_map": [[0, 1, 2]], "device_count": 2}, "2 devices do not divide 3"),
        ({"physical_to_logical_map": [[-1]], "device_count": 1}, "greater than or equal to 0"),
        ({"physical_to_logical_map": [[]], "device_count": 1}, "divide 0 slots"),
        (ASCEND | {"moe_layer_count": 3}, "states 3 layers and holds 2"),
        ({"layer_list": []}, "equally many experts"),
        ({"layer_list": [{"layer_id": 0}]}, "device_list"),
        ({"layer_list": [{"device_list": [{"device_expert": 3}]}]}, "device_expert"),
        ({"layer_list": [{"device_list": [{"device_expert": [0]}, {"device_expert": [1, 2]}]}]},
         "equally many experts"),
        ({"layer_list": {"a": 1}}, "device_expert"),
    ],
)  # fmt: skip
def test_bad_maps_are_refused(tmp_path, content, said):
    with pytest.raises(MoesaicError, match=said):
        read_expert_map(written(tmp_path, content))


def test_maps_and_loads_of_other_models_are_refused():
    layout = ExpertMap(slots=SLOTS, device_count=2)
    for shape, said in (
        ((1, 3), "2 layers, the load 1"),
        ((2, 2), "expert 2"),
        ((2, 4), "no slot"),
    ):
        with pytest.raises(MoesaicError, match=said):
            layout.device_loads(np.ones(shape))
