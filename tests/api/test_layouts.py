"""Placements and compressions through both doors: the same answers, the same refusals."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from api.app import create_app
from api.commands.compress import command as compress
from api.commands.place import command as place
from hwprofiles.errors import MoesaicError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(40, 3, 8))
SALIENCY = RNG.random((3, 8, 16))
SCORES = RNG.random((3, 8))
FACTORS = [
    {"layer": layer, "expert": e, "activation_count": 1 + e, "routing_weight_sum": 1,
     "quant_loss": {"1": 9 - e, "2": 4, "3": 1}}
    for layer in range(2) for e in range(4)
]  # fmt: skip
BODIES = {
    "bits": {"factors": FACTORS, "budget_bits": 8, "uniform": True},
    "prune": {"scores": SCORES.tolist(), "budget_bytes": "12 GB", "expert_bytes": ["1 GB"],
              "top_k": 2},
    "atomic": {"saliency": SALIENCY.tolist(), "cut_ratio": 0.25, "tile": 4},
    "merge": {"logits": LOGITS.tolist(), "groups": 14, "top_k": 2, "by": "loss"},
    "fit": {"model": "mixtral-8x7b", "devices": 1, "device_bytes": "40 GB"},
}  # fmt: skip


@pytest.fixture(scope="module")
def client():
    with TestClient(create_app()) as client:
        yield client


@pytest.fixture
def folder(tmp_path):
    np.savez(tmp_path / "trace.npz", logits=LOGITS)
    np.savez(tmp_path / "saliency.npz", saliency=SALIENCY)
    rows = [f"{i},{e},{x}" for i, row in enumerate(SCORES.tolist()) for e, x in enumerate(row)]
    (tmp_path / "scores.csv").write_text("layer,expert,score\n" + "\n".join(rows))
    head = "layer,expert,activation_count,routing_weight_sum,"
    head += "quant_loss_1bit,quant_loss_2bit,quant_loss_3bit"
    rows = [",".join(map(str, [*list(f.values())[:4], *f["quant_loss"].values()])) for f in FACTORS]
    (tmp_path / "factors.csv").write_text(head + "\n" + "\n".join(rows))
    return tmp_path


ASKED = {
    "bits": ["--factors", "factors.csv", "--budget-bits", "8", "--uniform"],
    "prune": ["--scores", "scores.csv", "--budget", "12 GB", "--expert-bytes", "1 GB",
              "--top-k", "2"],
    "atomic": ["--saliency", "saliency.npz", "--cut-ratio", "0.25", "--tile", "4"],
    "merge": ["--trace", "trace.npz", "--groups", "14", "--top-k", "2", "--by", "loss"],
    "fit": ["--model", "mixtral-8x7b", "--devices", "1", "--device-memory", "40 GB"],
}  # fmt: skip


@pytest.mark.parametrize("method", BODIES)
def test_both_doors_decide_the_same(client, folder, monkeypatch, method):
    monkeypatch.chdir(folder)
    sent = client.post("/v1/compressions", json=BODIES[method] | {"method": method})
    assert sent.status_code == 200, sent.text
    again = client.post("/v1/compressions", json=BODIES[method] | {"method": method})
    assert sent.content == again.content
    told = CliRunner().invoke(compress, [method, *ASKED[method], "-o", "json"])
    assert told.exit_code == 0, told.output
    answer = sent.json()
    assert answer.pop("method") == method
    assert answer == json.loads(told.stdout)
    table = CliRunner().invoke(compress, [method, *ASKED[method]])
    assert table.exit_code == 0
    assert "what" in table.stdout


def test_a_model_adds_the_four_costs(client):
    scores = RNG.random((32, 8)).tolist()
    body = {"method": "prune", "scores": scores, "keep_experts": 128, "top_k": 2, "uniform": True}
    costs = client.post("/v1/compressions", json=body | {"model": "mixtral-8x7b"}).json()["costs"]
    assert costs["stored_bytes"] < 0.6 * 93.4e9
    wrong = client.post("/v1/compressions", json=body | {"model": "deepseek-v3"})
    assert wrong.status_code == 422


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"method": "squeeze"}, "/method", "bits, prune, atomic, merge, fit"),
        ({"method": "prune", "keep_experts": 4}, "/scores", "scores or logits"),
        ({"method": "prune", "scores": [[1, 2], [3]], "keep_experts": 4}, "/scores", "equal"),
        ({"method": "prune", "scores": [[1, 2]]}, "/", "keep_experts or budget_bytes"),
        ({"method": "prune", "scores": [[1, 2]], "budget_bytes": 1}, "/", "needs expert_bytes"),
        (
            {"method": "prune", "scores": [[1, 2]], "keep_experts": 1, "top_k": 2},
            "/keep_experts",
            "contradicts",
        ),
        ({"method": "atomic", "saliency": [[[1, None]]], "cut_ratio": 0.5}, "/saliency", ""),
        ({"method": "atomic", "saliency": [[[1, 2]]], "cut_ratio": 1}, "/cut_ratio", "less than"),
        ({"method": "merge", "logits": [[[1, 2]]], "groups": 9, "top_k": 3}, "/top_k", "top_k"),
        ({"method": "merge", "logits": [[[1, 2]]], "groups": 1, "top_k": 1}, "/groups", "2 to 2"),
        ({"method": "fit", "devices": 1, "device_bytes": 1}, "/model", "needs a model"),
        ({"method": "fit", "devices": 1, "device_bytes": 1, "model": "../etc"}, "/model", ""),
        ({"budget_bits": 8, "factors": [], "zzz": 1}, "/factors", ""),
    ],
)
def test_bad_compressions_are_problems(client, body, pointer, words):
    answer = client.post("/v1/compressions", json=body)
    assert answer.status_code in (404, 409, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]
    assert answer.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer,expert\n0,0\n", "needs columns"),
        ("layer,expert,score\n0,0,1\n0,0,2\n", "twice"),
        ("layer,expert,score\n0,0,1\n1,1,2\n", "every expert of every layer"),
    ],
)
def test_bad_score_files(tmp_path, text, words):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(MoesaicError, match=words):
        CliRunner().invoke(
            compress, ["prune", "--scores", str(tmp_path / "s.csv"), "--keep-experts", "4"],
            catch_exceptions=False,
        )  # fmt: skip


TOKENS = np.stack([np.stack([RNG.permutation(8)[:2] for _ in range(30)]) for _ in range(2)])


def test_traffic_through_both_doors(client, tmp_path):
    np.savez(tmp_path / "t.npz", expert_ids=TOKENS, seq_lens=np.array([10, 20]))
    counts = [np.bincount(layer.ravel(), minlength=8).tolist() for layer in TOKENS]
    body = {"loads": [counts], "devices": 4, "nodes": 2, "tokens": TOKENS.tolist(),
            "token_nodes": [0] * 10 + [1] * 20, "objective": "lexicographic",
            "pins": [{"expert": 3, "device": 1}]}  # fmt: skip
    sent = client.post("/v1/placements", json=body)
    assert sent.status_code == 200, sent.text
    asked = ["--tokens", str(tmp_path / "t.npz"), "--tokens-start", "dealt", "--devices", "4",
             "--nodes", "2", "--objective", "lexicographic", "--pin", "3@device:1"]  # fmt: skip
    told = CliRunner().invoke(place, [*asked, "-o", "json"], catch_exceptions=False)
    answer = json.loads(told.stdout)
    assert answer["physical_to_logical_map"] == sent.json()["physical_to_logical_map"]
    assert answer["traffic"] == sent.json()["traffic"]
    assert sent.json()["traffic_measure"] == "visits"
    table = CliRunner().invoke(place, asked, catch_exceptions=False).stdout
    assert "visits a token" in table
    twice = [{"expert": 3, "device": device} for device in (0, 1)]
    bad = client.post("/v1/placements", json=body | {"pins": twice})
    assert bad.status_code == 409
    assert "pins contradict" in bad.json()["detail"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([], "--load or --tokens"),
        (["--tokens", "t.npz", "--pin", "3:1"], "a pin reads"),
        (["--tokens", "t.npz", "--tokens-start", "dealt"], "no seq_lens"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, asked, words):
    monkeypatch.chdir(tmp_path)
    np.savez("t.npz", expert_ids=TOKENS)
    with pytest.raises(MoesaicError, match=words):
        CliRunner().invoke(place, ["--devices", "4", *asked], catch_exceptions=False)
