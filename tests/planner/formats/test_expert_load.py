"""Every known form of a load gives the same counts; bad files are refused by name and place."""

import json

import numpy as np
import pytest

from hwprofiles.errors import MoesaicError
from planner.formats.expert_load import read_choices, read_expert_load
from planner.pipeline import parse_scenario
from planner.scenario import inline_files

COUNTS = [[0, 0, 0, 0], [1, 2, 3, 4], [4, 0, 0, 4]]
CSV = "layer_id,expert_id,count\n1,0,1\n1,1,2\n1,2,3\n1,3,4\n2,0,4\n2,3,3\n\n2,3,1\n"


def written(folder, name, content):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def saved(folder, name, **arrays):
    path = folder / name
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "content",
    [{"logical_count": COUNTS}, {"weight": COUNTS, "source": "mine"}, COUNTS,
     {"counts": COUNTS, "model": "x"}, {"values": COUNTS},
     {"logical_count": [[COUNTS[0], [0, 2, 3, 4], [4, 0, 0, 4]],
                        [COUNTS[0], [1, 0, 0, 0], [0, 0, 0, 0]]]}],
)  # fmt: skip
def test_every_json_form(tmp_path, content):
    load = read_expert_load(written(tmp_path, "load.json", content))
    assert np.array_equal(load.counts, COUNTS)
    assert load.source


def test_recorder_csv_of_several_ranks(tmp_path):
    path = written(tmp_path, "expert_distribution.csv", CSV)
    assert np.array_equal(read_expert_load(path).counts, COUNTS)
    assert np.array(read_expert_load(path, 8).counts).shape == (3, 8)


def test_numpy_files(tmp_path):
    ids = np.array([[[0, 1], [1, 2]], [[3, 0], [3, 1]]], dtype=np.uint8)
    tokens = saved(tmp_path, "tokens.npz", expert_ids=ids)
    assert np.array_equal(read_expert_load(tokens).counts, [[1, 2, 1, 0], [1, 1, 0, 2]])
    assert np.array_equal(read_choices(tokens), ids)
    assert np.array_equal(read_expert_load(saved(tmp_path, "c.npz", counts=COUNTS)).counts, COUNTS)
    np.save(tmp_path / "plain.npy", np.array(COUNTS))
    assert np.array_equal(read_expert_load(tmp_path / "plain.npy").counts, COUNTS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", {"logical_count": [[1, -2]]}, "layer 0, expert 1 counts -2"),
        ("a.json", '{"logical_count": [[1, NaN]]}', "NaN is no number"),
        ("a.json", '{"logical_count": [[1, 1e999]]}', "inf"),
        ("a.json", {"logical_count": [[1], [1, 2]]}, "equally many"),
        ("a.json", {"logical_count": [["x"]]}, "rows of numbers"),
        ("a.json", {"logical_count": []}, "not layers x experts"),
        ("a.json", {"logical_count": [[0, 0]]}, "no layer has any token"),
        ("a.json", {"logical_count": 7}, "not layers x experts"),
        ("a.json", {"logical_count": {"0": [1]}}, "rows of numbers"),
        ("a.json", {"logical": [[1]]}, "holds none of logical_count, weight"),
        ("a.json", "{", "a.json"),
        ("a.csv", "layer,expert\n", "does not begin with layer_id,expert_id,count"),
        ("a.csv", "layer_id,expert_id,count\n", "counts no expert"),
        ("a.csv", "layer_id,expert_id,count\n1,two,3\n", "line 2"),
        ("a.csv", "layer_id,expert_id,count\n1,2\n", "line 2"),
        ("a.csv", "layer_id,expert_id,count\n1,99999999999,3\n", "line 2"),
        ("a.csv", "layer_id,expert_id,count\n0,0,nan\n", "finite"),
        ("a.pt", b"\x80\x04", "pickle"),
        ("a.npz", b"PK\x03\x04rubbish", "cannot read"),
        ("a.npy", b"", "cannot read"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, said):
    with pytest.raises(MoesaicError, match=said) as caught:
        read_expert_load(written(tmp_path, name, content))
    assert len(str(caught.value)) < 400


def test_pickled_arrays_and_missing_files_are_refused(tmp_path):
    path = saved(tmp_path, "objects.npz", counts=np.array([{"a": 1}], dtype=object))
    with pytest.raises(MoesaicError, match="without pickle"):
        read_expert_load(path)
    with pytest.raises(MoesaicError, match=r"no\.npz"):
        read_expert_load(tmp_path / "no.npz")
    with pytest.raises(MoesaicError, match="expert_ids"):
        read_choices(saved(tmp_path, "f.npz", expert_ids=np.ones((1, 1, 1))))


def test_a_question_takes_a_csv_and_the_models_experts(tmp_path):
    written(tmp_path, "load.csv", "layer_id,expert_id,count\n0,0,3\n0,5,1\n")
    data = {
        "model": "mixtral-8x7b", "cluster": "dgx-h100",
        "workload": {"isl": 100, "osl": 10, "concurrency": 1},
        "routing": {"kind": "measured", "file": "load.csv", "experts": 8},
    }  # fmt: skip
    scenario = parse_scenario(inline_files(data, tmp_path))
    assert scenario.routing.counts == ((3.0, 0, 0, 0, 0, 1.0, 0, 0),)


@pytest.mark.parametrize(
    ("file", "shape"),
    [("expert_load_deepseek_v3/prefill_in512.json", (61, 256)),
     ("expert_load_mixtral_mcmoe/experts_act_frequency.json", (32, 8)),
     ("expert_load_olmoe_mixtral/olmoe__expert_counts__c4.json", (3, 64)),
     ("routing_tokens_deepseek_v2_lite/summary_counts.json", (26, 64)),
     ("routing_tokens_deepseek_v2_lite/summary.npz", (26, 64))],
)  # fmt: skip
def test_real_traces(shared, file, shape):
    assert np.array(read_expert_load(shared / "data" / "traces" / file).counts).shape == shape
