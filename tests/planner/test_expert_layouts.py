"""Layouts of published deployments: each is asked through `estimate` and costs what it says."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.library import resolve_cluster
from planner.candidates import POINT, number
from planner.engines import load_engine
from planner.estimate import Group, estimate_many, estimate_one
from planner.expert_layout import ExpertLayout
from planner.model_library import load_model, resolve_model
from planner.pipeline import make_plan, parse_scenario
from planner.point import Point
from planner.pricing import overlap_of, price, question_of
from planner.timing.apart import LayerSeconds, apart_pass_s
from planner.work.layouts import EXPERT_SLOTS

PANGU = {
    "model": "pangu-pro-moe", "cluster": "atlas-800i-a2", "backend": "mindie", "precision": "int8",
    "isl": 2048, "osl": 512, "concurrency": 64, "tp": 4, "dp": 2, "moe_tp": 2, "moe_ep": 4,
}  # fmt: skip
H2P = {"exchange": "group_gather", "attention_sum": "split", "shared_tp": 8}
V3 = {"model": "deepseek-v3", "cluster": "cloudmatrix384", "backend": "mindie",
      "precision": "int8", "isl": 4096, "osl": 1024}  # fmt: skip
LAYERS, HIDDEN = 48, 5120


def priced(line, **experts):
    """Passes of a line before any engine layer."""
    point = Point.model_validate({**line, "experts": experts})
    group = Group.of([point], resolve_model)
    return price(group.passes({0: float(point.concurrency)}), group.question, fitted=False)


def rows(found, stage, phase="decode", **where):
    points = found.passes.filter(phase=phase)["point"].to_list()
    return found.timed.filter(pl.col("point").is_in(points), pl.col("stage") == stage,
                              **where).to_dicts()  # fmt: skip


def spent(found, *stages, phase="decode"):
    points = found.passes.filter(phase=phase)["point"].to_list()
    kept = found.timed.filter(pl.col("point").is_in(points), pl.col("stage").is_in(stages))
    return kept.select((pl.col("typical_s") * pl.col("repeat_count")).sum()).item()


def test_h2p_moves_and_holds_what_pangu_says():
    """Attention DP2 TP4, routed TP2 EP4, shared TP8; all-reduce as two halves (arXiv:2505.21411).

    32 sequences a data-parallel rank: the all-reduce of 32 hidden-wide rows becomes a
    reduce-scatter and an all-gather of as many, norms shrink to a quarter, every device takes all
    64 tokens once and gives its sum back, and shared experts are cut in eight.
    """
    plain, found = priced(PANGU), priced(PANGU, **H2P)
    (whole,) = rows(plain, "all_reduce")
    (there,), (back,) = rows(found, "reduce_scatter"), rows(found, "all_gather")
    assert (there["kernel"], back["kernel"]) == ("reduce_scatter", "all_gather")
    assert whole["message_bytes"] == there["message_bytes"] == back["message_bytes"]
    assert there["message_bytes"] == 32 * HIDDEN * 2
    assert there["devices"] == back["devices"] == 4
    norms = [rows(of, "norms")[0]["bytes"] for of in (plain, found)]
    assert norms[1] == norms[0] / 4
    (out,), (home,) = rows(found, "dispatch"), rows(found, "combine")
    assert (out["kernel"], home["kernel"]) == ("all_gather", "reduce_scatter")
    assert out["devices"] == home["devices"] == 8
    assert out["message_bytes"] == 64 * HIDDEN  # int8 on the way out
    assert home["message_bytes"] == 64 * HIDDEN * 2
    up, _ = rows(found, "shared")
    assert (up["m"], up["n"]) == (64, 2 * 4 * 1344 / 8)
    held = [of.passes.filter(phase="decode")["shared_bytes"][0] for of in (plain, found)]
    assert held[0] - held[1] == pytest.approx(3 * HIDDEN * 4 * 1344 * LAYERS * (1 / 4 - 1 / 8))


def test_h2p_decodes_faster_than_the_plain_layout():
    """Pangu's team reports 33 % with all of H2P; the layout alone gives a part of it here."""
    plain, h2p = estimate_many([PANGU, {**PANGU, "experts": H2P}])
    gain = plain.tpot_s.typical / h2p.tpot_s.typical
    assert 1.05 < gain < 1.331


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("deepseek-v3-prefill-ep32", {"tp": 4, "dp": 8, "moe_ep": 32}),
        ("deepseek-r1-decode-ep144", {"tp": 1, "dp": 144, "moe_ep": 144}),
        ("deepseek-v3-decode-ep320", {"tp": 4, "dp": 80, "moe_ep": 320}),
        ("cloudmatrix384-decode-ep320", {"tp": 1, "dp": 320, "moe_ep": 320}),
    ],
)
def test_deepseek_deployments(name, layout):
    """DeepSeek-V3 sections 3.4.1 and 3.4.2, open-infra day 6, CloudMatrix384."""
    slots = EXPERT_SLOTS[name]
    experts, away = slots.layout.model_dump(mode="json"), slots.shared
    line = {**V3, **layout, "concurrency": layout["dp"] * 32}
    assert estimate_one({**line, "experts": experts}).fits
    found = priced(line, **experts)
    (routed,) = rows(found, "experts")
    assert routed["moe_ep"] == slots.routed_ranks
    assert routed["experts"] / routed["moe_ep"] == slots.slots_per_rank
    (out,) = rows(found, "dispatch")
    assert (out["devices"], out["top_k"]) == (slots.ranks, 9 if away else 8)
    weights = found.passes.filter(phase="decode").row(0, named=True)
    expert = 3 * 7168 * 2048 * 58  # one int8 byte a weight
    held = weights["routed_bytes"] + weights["redundant_bytes"]
    assert held == pytest.approx(slots.slots_per_rank * expert, rel=0.05)  # MTP layer besides
    if away:
        shared = rows(found, "shared")[0]
        assert shared["m"] == pytest.approx(layout["dp"] * 32 / away)
        assert spent(found, "shared") < spent(found, "experts")


def test_copies_take_load_from_the_busiest_rank():
    hot = {"kind": "zipf", "alpha": 0.6}
    line = {**V3, "routing": hot, "tp": 1, "dp": 32, "moe_ep": 32, "concurrency": 32 * 64}
    busy = [priced(line, redundant_experts=n).passes["busy_ratio"][1] for n in (0, 32)]
    assert busy[1] < busy[0] / 1.5


def test_experts_apart_take_turns_as_the_closed_form_says():
    """xDeepServe: 480 dies of attention, 288 of experts, 96 sequences a die, two micro-batches."""
    line = {**V3, "tp": 1, "dp": 480, "moe_ep": 288, "concurrency": 480 * 96}
    found = priced(line, apart=True, redundant_experts=32)
    half = {**line, "concurrency": 480 * 48}
    one = priced(half, apart=True, redundant_experts=32, micro_batches=1)
    sums = {s: spent(one, s) / 61 for s in ("dispatch", "experts", "permute", "combine")}
    whole = one.passes.filter(phase="decode").row(0, named=True)
    kernels = (whole["typical_s"] - whole["host_s"]) / 61
    layer = LayerSeconds(
        kernels - sum(sums.values()), sums["dispatch"], sums["experts"] + sums["permute"],
        sums["combine"],
    )  # fmt: skip
    taken = found.passes.filter(phase="decode").row(0, named=True)
    assert taken["typical_s"] - taken["host_s"] == pytest.approx(apart_pass_s(layer, 61, 2))
    (out,) = rows(found, "dispatch")
    assert (out["devices"], out["tokens"]) == (768, pytest.approx(48 * 480 / 288))
    assert taken["devices"] == 768
    lone = estimate_one({**line, "experts": {"apart": True, "redundant_experts": 32}})
    assert lone.fits
    total = sum(part.seconds_s for part in lone.breakdown)
    assert total > 0


def test_experts_apart_free_attention_of_their_weights():
    line = {**V3, "tp": 1, "dp": 32, "moe_ep": 32, "concurrency": 32 * 16}
    beside = priced(line).passes.filter(phase="decode").row(0, named=True)
    apart = priced(line, apart=True).passes.filter(phase="decode").row(0, named=True)
    alone = ("shared_bytes", "attention_bytes", "embedding_bytes", "dense_bytes", "kv_bytes",
             "activation_bytes", "buffer_bytes")  # fmt: skip
    attention = sum(beside[name] for name in alone)
    experts = beside["routed_bytes"] + sum(beside[n] for n in ("activation_bytes", "buffer_bytes"))
    assert apart["total_bytes"] == pytest.approx(max(attention, experts))


EDGE = {"model": "switch-base-32", "cluster": "zcu102-x1", "backend": "vllm",
        "precision": "w16a32", "isl": 128, "osl": 2, "concurrency": 1}  # fmt: skip


def loads(found, phase="prefill"):
    """Loads that computation waits for: their bytes and seconds over all layers of one kind."""
    points = found.passes.filter(phase=phase)["point"].to_list()
    kept = found.timed.filter(pl.col("point").is_in(points), kernel="elementwise", stage="experts")
    seconds = kept.select((pl.col("typical_s") * pl.col("repeat_count")).sum()).item()
    return set(kept["bytes"].to_list()), seconds


def test_a_queue_of_experts_waits_for_the_first_alone_and_token_order_for_each():
    """Edge-MoE on its ZCU102: T = load + sum of max(compute, next load), against one load a token.

    A token's expert is another than the one before with 1 - 1/32. With 64 tokens an expert
    computing is the longer; with four, and with one alone, loading is and covers the first.
    """
    many = {**EDGE, "isl": 2048}
    grouped, queue, token = (priced(many, order=o) for o in ("grouped", "queue", "token"))
    one, first_s = loads(queue)
    each, every_s = loads(token)
    assert one == {2 * 768 * 3072 * 2}
    assert each.pop() == pytest.approx(one.pop() * (1 + 2047 * 31 / 32))
    base = spent(grouped, "experts", phase="prefill")
    assert spent(queue, "experts", phase="prefill") == pytest.approx(base + first_s)
    assert spent(token, "experts", phase="prefill") == pytest.approx(base + every_s)
    assert first_s > 0
    for line, phase in ((EDGE, "prefill"), (many, "decode")):
        assert spent(priced(line, order="queue"), "experts", phase=phase) == pytest.approx(
            spent(priced(line), "experts", phase=phase)
        )


SPREAD = {"model": "deepseek-v3", "cluster": "hgx-h800-x4", "backend": "vllm", "precision": "fp8",
          "isl": 4096, "osl": 256, "concurrency": 4096, "tp": 1, "dp": 32,
          "moe_ep": 32}  # fmt: skip


def test_shared_experts_hide_as_much_of_the_exchange_as_they_last():
    none, shared = priced(SPREAD, overlap="none"), priced(SPREAD, overlap="shared")
    for phase in ("prefill", "decode"):
        exchange, beside = (spent(none, *s, phase=phase) for s in (("dispatch", "combine"),
                                                                  ("shared",)))  # fmt: skip
        seen = spent(shared, "dispatch", "combine", phase=phase)
        assert seen == pytest.approx(max(exchange - beside, 0))
        assert spent(shared, "shared", phase=phase) == pytest.approx(beside)


@settings(max_examples=10, deadline=None)
@given(batch=st.sampled_from([2, 8, 64, 256]), ranks=st.sampled_from([8, 16, 32]))
def test_two_halves_lie_between_the_longer_side_and_one_after_the_other(batch, ranks):
    line = {**SPREAD, "dp": ranks, "moe_ep": ranks, "concurrency": ranks * batch}
    half = {**line, "concurrency": ranks * batch // 2}
    apart, both = priced(half, overlap="none"), priced(line, overlap="micro_batch")
    exchange = 2 * spent(apart, "dispatch", "combine")
    kernels = apart.passes.filter(phase="decode").row(0, named=True)
    computed = 2 * (kernels["typical_s"] - kernels["host_s"]) - exchange
    taken = both.passes.filter(phase="decode").row(0, named=True)
    found = taken["typical_s"] - taken["host_s"]
    ends = min(exchange, computed) / 122
    assert found == pytest.approx(max(exchange, computed) + ends)
    assert found <= exchange + computed


def test_one_sequence_has_no_second_half():
    line = {**SPREAD, "concurrency": 32}
    one, two = (priced(line, overlap=o).passes["typical_s"] for o in ("none", "micro_batch"))
    assert one.to_list() == pytest.approx(two.to_list())


def test_an_exchange_inside_the_product_hides_behind_it():
    flat, fused = (priced(SPREAD, exchange=e) for e in ("flat_pairwise", "fused"))
    exchange, product = spent(flat, "dispatch", "combine"), spent(flat, "experts")
    assert spent(fused, "dispatch", "combine") == pytest.approx(max(exchange - product, 0))


def test_engines_that_overlap_do_so_where_no_fit_holds_it_already():
    def question(backend, cluster, **changes):
        point = Point.model_validate({**SPREAD, "backend": backend, "cluster": cluster, **changes})
        return Group.of([point], resolve_model).question

    assert load_engine("sglang").shared_expert_overlap
    assert overlap_of(question("sglang", "hgx-h800-x4")) == "none"  # the fit holds it
    assert overlap_of(question("trtllm", "cloudmatrix384", precision="int8")) in ("none", "shared")
    assert overlap_of(question("vllm", "hgx-h800-x4")) == "none"
    asked = {"experts": {"overlap": "shared"}}
    assert overlap_of(question("vllm", "hgx-h800-x4", **asked)) == "shared"
    told = estimate_one({**SPREAD, "experts": {"overlap": "micro_batch"}}).assumptions
    assert any("micro_batch: not known of vllm" in text for text in told)
    told = estimate_one({**SPREAD, "backend": "sglang", **asked}).assumptions
    assert any("sglang was fitted on runs that have it" in text for text in told)


def test_a_plan_may_choose_split_sums_and_overlap():
    data = {
        "model": "pangu-pro-moe", "cluster": "atlas-800i-a2",
        "workload": {"isl": 1000, "osl": 100, "concurrency": 32},
        "choices": {"backend": "mindie", "precision": "int8", "tp": [4], "pp": [1], "moe_tp": [2],
                    "moe_ep": [4], "exchange": "group_gather", "attention_sum": "split",
                    "shared_tp": 8, "modes": ["agg"]},
    }  # fmt: skip
    scenario = parse_scenario(data)
    assert question_of(scenario).formats.layout.shared_tp == 8
    plan = make_plan(scenario)
    assert {stage.stage for stage in plan.pools[0].breakdown["decode"]} >= {
        "reduce_scatter", "all_gather", "dispatch",
    }  # fmt: skip
    assert parse_scenario(scenario.model_dump(mode="json")) == scenario


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"experts": {"shared_tp": 3}}, "shared_tp 3 must be a multiple of tp 4"),
        ({"experts": {"shared_tp": 16}}, "divide tp·dp 8"),
        ({"experts": {"shared_ranks": 4}}, "shared_ranks 4 leave none of moe_ep 4"),
        ({"experts": {"shared_ranks": 1, "redundant_experts": 1}},
         "moe_ep 4 less 1 shared_ranks does not divide 65 experts"),
        ({"experts": {"redundant_experts": 3}}, "moe_ep 4 does not divide 67 experts"),
        ({"experts": {"apart": True}}, "needs 16 devices; atlas-800i-a2 has 8"),
        ({"experts": {"apart": True, "overlap": "shared"}}, "take turns already"),
        ({"experts": {"shared_ranks": 1, "shared_tp": 8}}, "give no shared_tp"),
        ({"experts": {"exchange": "pigeon"}}, "group_gather"),
        ({"experts": {"exchange": "group_gather", "overlap": "micro_batch"}},
         "group_gather does not run beside micro_batch; it runs beside nothing"),
        ({"experts": {"micro_batches": 0}}, "micro_batches"),
        ({"experts": {"redundant_experts": -1}}, "redundant_experts"),
        ({"model": "mixtral-8x7b", "experts": {"shared_tp": 8}}, "has no shared experts"),
        ({"model": "mixtral-8x7b", "moe_ep": 8, "moe_tp": 1, "experts": {"shared_ranks": 1}},
         "has no shared experts"),
    ],
)  # fmt: skip
def test_layouts_that_cannot_be_are_refused(changes, says):
    (answer,) = estimate_many([{**PANGU, **changes}])
    assert answer.error is not None
    assert says in answer.error.message


def test_copies_that_were_not_asked_for_are_told():
    line = {"model": "mixtral-8x7b", "device": "h100-sxm", "isl": 100, "osl": 10, "concurrency": 3,
            "dp": 3, "moe_ep": 3}  # fmt: skip
    assert any("expert copies: 1 in each layer" in text for text in estimate_one(line).assumptions)
    (refused,) = estimate_many([{**line, "experts": {"redundant_experts": 0}}])
    assert "moe_ep 3 does not divide 8 experts" in refused.error.message


def test_a_cut_of_shared_experts_gathers_tokens_unless_every_rank_has_them():
    more, whole = priced(PANGU, shared_tp=8), priced(PANGU, **H2P)
    assert [row["kernel"] for row in rows(more, "shared")][2:] == ["all_gather", "reduce_scatter"]
    assert {row["kernel"] for row in rows(whole, "shared")} == {"gemm"}
    assert np.isfinite(more.passes["typical_s"].to_numpy()).all()


def test_points_and_clusters_of_this_file_are_what_they_say():
    assert resolve_cluster("zcu102-x1").device.kind == "fpga"
    assert load_model("switch-base-32").moe.top_k == 1
    assert ExpertLayout() == Point.model_validate(PANGU).experts
    assert number(pl.DataFrame(schema=POINT)).is_empty()
