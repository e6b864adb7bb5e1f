"""One question through function, shell and REST gives one answer; errors keep one table."""

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.cli import main
from api.problems import STATUS
from planner.pipeline import answer, make_plan, parse_scenario, read_question, read_scenario
from planner.search.placement import PlacementQuestion, place

SCENARIOS = Path(__file__).parents[1] / "scenarios"
FIRST = SCENARIOS / "mixtral-h100.yaml"
POINT = {"id": "p", "model": "mixtral-8x7b", "device": "h100-sxm", "tp": 2, "isl": 100, "osl": 100,
         "concurrency": 4}  # fmt: skip


@pytest.fixture(scope="module")
def client():
    with TestClient(create_app()) as client:
        yield client


def shell(capsys, *arguments):
    """Exit status, standard output, standard error."""
    try:
        main([str(a) for a in arguments])
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_three_doors_one_answer(capsys, client):
    scenario = read_scenario(FIRST)
    by_function = make_plan(scenario).model_dump(mode="json")
    status, out, _ = shell(capsys, "plan", FIRST, "-o", "json")
    answer = client.post("/v1/plans", json=scenario.model_dump(mode="json"))
    assert status == 0
    assert answer.status_code == 200
    assert json.loads(out) == by_function == answer.json()


def test_rest_takes_names_too(client):
    body = {"model": "mixtral-8x7b", "cluster": "dgx-h100", "workload": {"isl": 100, "osl": 10}}
    expected = make_plan(parse_scenario(body)).model_dump(mode="json")
    assert client.post("/v1/plans", json=body).json() == expected


def test_rest_estimate_is_the_shells(capsys, client, tmp_path):
    lines = tmp_path / "points.jsonl"
    lines.write_text(json.dumps(POINT) + "\n\n{bad\n")
    status, out, _ = shell(capsys, "estimate", "--batch", lines)
    first, second = (json.loads(line) for line in out.splitlines())
    assert status == 0
    assert first == client.post("/v1/estimates", json=POINT).json()
    assert "line 3" in second["error"]["message"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"zzz": 1}, "/zzz"),
        ({"model": "mixtrl"}, "/model"),
        ({"workload": {"isl": 1, "osl": 1, "x": 2}}, "/workload/x"),
        ({"routing": {"kind": "measured", "file": "/etc/passwd"}}, "/routing/measured/counts"),
    ],
)
def test_bad_bodies_are_problems_with_a_pointer(client, change, pointer):
    base = {"model": "mixtral-8x7b", "cluster": "dgx-h100", "workload": {"isl": 1, "osl": 1}}
    answer = client.post("/v1/plans", json=base | change)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("body", ["[]", "{", "null", '"text"', '{"model": NaN}'])
def test_bodies_that_are_no_object(client, body):
    answer = client.post("/v1/plans", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:moesaic:problem:invalid"


def test_infeasible_is_a_conflict(client):
    body = {"model": "mixtral-8x7b", "cluster": "dgx-h100", "workload": {"isl": 100, "osl": 10},
            "limits": {"tpot_s": "1 us"}}  # fmt: skip
    answer = client.post("/v1/plans", json=body)
    assert answer.status_code == STATUS["infeasible"][0]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("plan", "no-such-file.yaml"), 2, "cannot read"),
        (("plan", FIRST, "--set", "limits.tpot_s=1 us"), 3, "TPOT"),
        (("plan", FIRST, "--set", "model=mixtral-9x9b"), 2, "did you mean mixtral-8x7b"),
        (("plan", FIRST, "--set", "nonsense"), 2, "workload.isl=4096"),
        (("estimate",), 2, "FILE or --batch"),
        (("estimate", "--batch", "no-such-file.jsonl"), 2, "cannot read"),
        (("report", "no-such-folder", "--out", "x.html"), 2, "cannot read"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_errors_are_said_and_nothing_is_written(
    capsys, arguments, status, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found, out, err = shell(capsys, *arguments)
    assert (found, out) == (status, "")
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_plan_writes_a_page_and_a_file(capsys, tmp_path):
    page, answer = tmp_path / "plan.html", tmp_path / "plan.json"
    status, out, err = shell(capsys, "plan", FIRST, "--html", page, "-o", "json", "--out", answer)
    assert (status, out) == (0, "")
    assert "wrote" in err
    assert page.read_text().startswith("<!doctype html>")
    assert json.loads(answer.read_text())["scenario"]["name"] == "mixtral-h100"


def test_report_a_folder(capsys, tmp_path):
    status, _, err = shell(capsys, "report", SCENARIOS, "--out", tmp_path / "pages")
    assert status == 0
    assert (tmp_path / "pages" / "mixtral-h100.html").exists()
    assert "index.html" in err


def test_doctor_is_content(capsys):
    status, out, _ = shell(capsys, "doctor", "-o", "json")
    assert status == 0
    assert "HiGHS" in json.loads(out)["solver"]


def test_openapi_shows_the_scenarios(client):
    schema = client.get("/openapi.json").json()
    examples = schema["paths"]["/v1/plans"]["post"]["requestBody"]["content"]["application/json"][
        "examples"
    ]
    assert set(examples) == {path.stem for path in SCENARIOS.glob("*.yaml")}
    for name, example in examples.items():
        assert client.post("/v1/plans", json=example["value"]).status_code == 200, name


def test_hardware_over_rest(client):
    assert "h100-sxm" in client.get("/v1/hardware").json()["devices"]
    assert client.get("/v1/hardware/h100-sxm").json()["name"] == "h100-sxm"
    assert client.get("/v1/hardware/h9000").status_code == 422


def test_health(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}


def test_placement_over_rest_is_the_functions(client):
    body = {"loads": [[[9, 4, 3, 2, 1, 1, 1, 1]]], "devices": 2, "redundant": 2}
    answer = client.post("/v1/placements", json=body | {"score": [[1, 1, 1, 1, 1, 1, 1, 9]]}).json()
    again = place(PlacementQuestion.model_validate(body)).model_dump(mode="json")
    assert answer["physical_to_logical_map"] == again["physical_to_logical_map"]
    assert answer["scored"][0]["max_over_mean"] >= answer["layers"][0]["max_over_mean"]
    bad = client.post("/v1/placements", json=body | {"devices": 3})
    assert bad.status_code == 422
    assert "do not share equally" in bad.json()["detail"]


def test_bits_over_rest(client):
    row = {"layer": 0, "activation_count": 1, "routing_weight_sum": 1}
    factors = [row | {"expert": i, "quant_loss": {"1": 9 - i, "2": 4, "3": 1}} for i in range(4)]
    answer = client.post("/v1/compressions", json={"budget_bits": 8, "factors": factors}).json()
    assert sum(cell["bits"] for cell in answer["allocation"]) <= 8
    uneven = [*factors[:3], row | {"expert": 3, "quant_loss": {"1": 1}}]
    bad = client.post("/v1/compressions", json={"budget_bits": 8, "factors": uneven})
    assert "same widths" in bad.json()["detail"]


def test_models_over_rest(client):
    assert "deepseek-v3" in client.get("/v1/models").json()["models"]
    shown = client.get("/v1/models/deepseek-v3").json()
    assert abs(shown["params_total"] / 671.0e9 - 1) < 0.002
    assert client.get("/v1/models/..%2f..%2fetc").status_code in (404, 422)


def test_a_fleet_goes_through_the_same_doors(capsys, client, tmp_path):
    path, page = SCENARIOS / "shared-fleet.yaml", tmp_path / "fleet.html"
    status, out, _ = shell(capsys, "plan", path, "-o", "json", "--html", page)
    fleet = read_question(path)
    posted = client.post("/v1/plans", json=fleet.model_dump(mode="json"))
    assert (status, posted.status_code) == (0, 200)
    assert json.loads(out) == posted.json() == answer(fleet).model_dump(mode="json")
    assert "every class&#39;s whole demand" in page.read_text()
    status, out, _ = shell(capsys, "plan", path, "--set", "classes.1.workload.request_rate=900")
    assert status == 0
    assert "worst served share" in out
    assert shell(capsys, "plan", path, "--set", "classes.7.name=x")[0] == 2


def test_a_design_goes_through_the_same_doors(capsys, client, tmp_path):
    path, page = SCENARIOS / "design-pangu-800i.yaml", tmp_path / "design.html"
    few = ("design.hidden=[5120]", "design.experts=[64]", "design.total_parameters=[72000000000]")
    arguments = [text for change in few for text in ("--set", change)]
    status, out, _ = shell(capsys, "plan", path, *arguments, "-o", "json", "--html", page)
    question = read_question(path, few)
    posted = client.post("/v1/plans", json=question.model_dump(mode="json"))
    assert (status, posted.status_code) == (0, 200)
    assert json.loads(out) == posted.json()
    assert "Speed over active parameters" in page.read_text()
