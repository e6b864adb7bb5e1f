"""Layers of few slots a device: equal to brute force, and no gap where the packing left one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.search.contents import counted, state_contents
from planner.search.packing import busiest, doubled, pack
from planner.search.placement import PlacementQuestion, place
from tests.planner.search.test_assignment import GOLDEN
from tests.planner.search.test_constraints import WEIGHT, layouts


@settings(max_examples=120, deadline=None)
@given(st.lists(WEIGHT, min_size=10, max_size=10),
       st.sampled_from([(4, 4, 2), (5, 3, 2), (4, 3, 3), (5, 2, 3)]),
       st.integers(1, 2))  # fmt: skip
def test_counted_contents_equal_brute_force(values, shape, traces):
    experts, devices, width = shape
    rows = np.array(values).reshape(2, 5)[:traces, :experts]
    rows = rows / rows.sum(axis=1, keepdims=True)
    speeds = np.ones(devices)
    best = min(busiest(x, rows, speeds) for x in layouts(experts, devices, width))
    found = counted(pack(rows, devices * width, speeds), rows)
    assert found.max_over_mean == pytest.approx(best, abs=1e-9)
    assert found.bound == pytest.approx(best, abs=1e-9)
    assert not doubled(found.experts)
    assert busiest(found.experts, rows, speeds) == pytest.approx(found.max_over_mean)
    assert set(found.experts.ravel().tolist()) == set(range(experts))


@pytest.mark.parametrize(("devices", "experts", "copies"), [(8, 8, 8), (8, 16, 0), (4, 8, 4)])
def test_tiny_layers_are_proven(devices, experts, copies):
    row = np.random.default_rng(1).dirichlet(np.full(experts, 2.0)).tolist()
    asked = {"loads": [[row]], "devices": devices, "redundant": copies}
    answer = place(PlacementQuestion.parse(asked))
    assert answer.status == "optimal"
    assert answer.layers[0].gap_ratio <= 1e-9


def test_the_programme_reads_as_reviewed(tmp_path):
    contents = [((0, 1), (1, 1)), ((0, 1), (1, 2)), ((1, 2), (2, 1))]
    state_contents(contents, 2, 3)[0].write_lp(tmp_path / "found.lp")
    assert (tmp_path / "found.lp").read_text() == (GOLDEN.parent / "contents.lp").read_text()
