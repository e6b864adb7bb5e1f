"""The `models` verb: the fields others rely on, and exits for bad questions."""

from __future__ import annotations

import json
import struct

import pytest

from api.cli import main
from planner.model_library import entries

FIELDS = [
    "name", "family", "layers", "moe_layers", "hidden", "experts", "top_k", "expert_width",
    "shared_experts", "params_total", "params_active", "params_routed", "params_attention",
    "params_embedding", "kv_bytes_per_token", "weight_bytes", "assumptions", "sources",
]  # fmt: skip


def run(capsys, *words):
    try:
        main(["models", *words])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_show_has_exactly_the_agreed_fields(capsys):
    code, out, _ = run(capsys, "show", "deepseek-v3", "-o", "json")
    facts = json.loads(out)
    assert code == 0
    assert list(facts) == FIELDS
    assert facts["kv_bytes_per_token"]["bf16"] == 70272
    assert facts["weight_bytes"]["total"] == pytest.approx(
        sum(value for key, value in facts["weight_bytes"].items() if key != "total")
    )


def test_list_names_every_entry(capsys):
    code, out, _ = run(capsys, "list", "-o", "json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)["models"]] == list(entries())
    code, out, _ = run(capsys, "list")
    assert "deepseek-v3" in out


def test_a_config_file_is_read_and_a_field_overridden(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(entries()["mixtral-8x7b"].config))
    code, out, _ = run(capsys, "show", str(path), "--set", "hidden=2048", "-o", "json")
    assert code == 0
    assert json.loads(out)["hidden"] == 2048


@pytest.mark.parametrize(
    ("config", "code", "field"),
    [
        ({"model_type": "mixtral", "hidden_size": 0}, 2, "/hidden_size"),
        ({"model_type": "nobody-knows", "hidden_size": 8}, 4, "/model_type"),
        ({"model_type": "jetmoe", "hidden_size": 8}, 4, "/model_type"),
        ([], 2, "config"),
    ],
)
def test_bad_configs_exit_with_the_field(capsys, tmp_path, config, code, field):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    found, _, error = run(capsys, "show", str(path))
    assert (found, field in error, error.count("\n")) == (code, True, 1)


def test_safetensors_headers_are_compared(capsys, tmp_path):
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a.weight": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]},
            "a.weight_scale_inv": {"dtype": "F32", "shape": [1], "data_offsets": [64, 68]},
        }
    ).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 68)
    code, out, _ = run(capsys, "show", "qwen3-0.6b", "--weights", str(path), "-o", "json")
    assert code == 0
    assert any("32 parameters" in note for note in json.loads(out)["assumptions"])
    path.write_bytes(struct.pack("<Q", 2**60) + header)
    code, _, error = run(capsys, "show", "qwen3-0.6b", "--weights", str(path))
    assert code == 2
    assert "header" in error


def test_fit_answers_with_buckets_and_a_verdict(capsys):
    words = ["fit", "mixtral-8x7b", "--device", "h200-sxm", "--set", "kv_dtype=fp8"]
    code, out, _ = run(capsys, *words, "-o", "json")
    answer = json.loads(out)
    assert (code, answer["fits"]) == (0, True)
    assert answer["total_bytes"] == pytest.approx(sum(answer["buckets"].values()))
    code, out, _ = run(capsys, *words)
    assert "largest batch" in out
    code, _, error = run(capsys, "fit", "mixtral-8x7b", "--device", "h200-sxm", "--tp", "0")
    assert (code, "/tp" in error) == (2, True)
    code, _, error = run(capsys, "fit", "mixtral-8x7b", "--device", "h999")
    assert (code, "h999" in error) == (2, True)
