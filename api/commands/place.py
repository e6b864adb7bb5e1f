"""`moesaic place`: experts onto devices, with copies, balanced and proven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from api.output import Output, output_options

if TYPE_CHECKING:
    from planner.search.placement_answer import Placement

FILE = click.Path(path_type=Path)
OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option("--load", "loads", multiple=True, type=FILE,
                 help='JSON with {"logical_count": [[layers x experts]]}; several are balanced at '
                 "once. May be left out with --tokens."),
    click.option("--devices", type=int, required=True, help="Devices that share the experts."),
    click.option("--nodes", type=int, default=1, show_default=True, help="Nodes of the devices."),
    click.option("--redundant", type=int, default=0, show_default=True,
                 help="Copies of a layer beyond one an expert."),
    click.option("--copies", type=click.Choice(["given", "uniform", "by_layer"]), default="given",
                 show_default=True,
                 help="Take --redundant, or decide: one number for all layers, or one a layer."),
    click.option("--experts-per-device-max", type=int, help="Slots a device has at most."),
    click.option("--device-memory", "device_bytes",
                 help='Memory of a device for experts of all layers: "40 GB"; needs '
                 "--expert-bytes."),
    click.option("--expert-bytes", help='Bytes of one expert: "44 MB".'),
    click.option("--groups", type=int, default=1, show_default=True,
                 help="Groups of consecutive experts that stay together."),
    click.option("--groups-on", type=click.Choice(["node", "device"]), default="node",
                 show_default=True, help="Where a group stays together."),
    click.option("--form-groups", is_flag=True,
                 help="Decide which experts form a group, so that groups carry equal load."),
    click.option("--pin", "pins", multiple=True, metavar="EXPERT@device:D",
                 help="A copy of an expert stands on a device, or anywhere on a node "
                 "(EXPERT@node:N); LAYER/EXPERT@device:D names one layer."),
    click.option("--current", type=FILE,
                 help="Today's layout: a map as this command, vllm-ascend or MindIE writes it."),
    click.option("--robust", type=click.Choice(["worst", "mean"]), default="worst",
                 show_default=True, help="Of several loads: balance the worst, or the mean."),
    click.option("--max-moves", type=int, help="Slots that may change against --current."),
    click.option("--max-move-bytes", help='Bytes that may move against --current: "20 GB".'),
    click.option("--objective", type=click.Choice(["balance", "lexicographic", "weighted"]),
                 default="balance", show_default=True,
                 help="The busiest device alone; least traffic between nodes within "
                 "--balance-slack of it; or both, weighed by --traffic-weight."),
    click.option("--balance-slack", type=float, default=0.02, show_default=True,
                 help="How far the busiest device may exceed the best found, as a share."),
    click.option("--traffic-weight", type=float, default=1.0, show_default=True,
                 help="Worth of one crossing a token, in busiest over mean."),
    click.option("--tokens", type=FILE,
                 help="NPZ with `expert_ids` [layers, tokens, top_k]: a token then crosses to a "
                 "node once."),
    click.option("--tokens-start", type=click.Choice(["anywhere", "dealt"]), default="anywhere",
                 show_default=True,
                 help="Tokens start on any node, or sequence i of `seq_lens` on node i mod nodes."),
    click.option("--score", type=FILE,
                 help="Another load, tomorrow's, on which the layout is judged."),
)  # fmt: skip


def _with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command()
@_with_options
@output_options
def command(
    loads: tuple[Path, ...], form: str, out: Path | None, overrides: tuple[str, ...],
    quiet: bool, **given: Any,  # noqa: ANN401 - the other options, as click names them
) -> None:  # fmt: skip
    """Place the experts of every layer so that the busiest device has as little as can be.

    Says for each layer the busiest device over the mean before and after, the proven bound, and
    what the published greedy balancing reaches on the same load. With --objective, traffic between
    nodes falls within a limit on the busiest device, again with a bound. Says which limits bind,
    what 1 % more of each would give, and why the runner-up lost; of limits that contradict each
    other, the fewest that do and the cheapest way out.

    \b
    Example:
        moesaic place --devices 32 --load tests/scenarios/loads/deepseek-v3-decode.json
        moesaic place --devices 16 --nodes 4 --tokens trace.npz --objective lexicographic
    """
    import os

    # Small matrices gain nothing from threads, and sums must not depend on how many there are.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from hwprofiles.files import apply_overrides
    from planner.search.placement import PlacementQuestion
    from planner.search.placement_reasons import place_explained

    score = given.pop("score")
    data = _question(loads, given)
    if overrides:
        data = apply_overrides(data, overrides)
    question = PlacementQuestion.parse(data, what="placement")
    answer = place_explained(question, None if score is None else _counts(score))
    Output(form, out, quiet).show(
        answer.model_dump(mode="json", exclude_defaults=True), lambda: _table(answer)
    )


def _question(loads: tuple[Path, ...], given: dict[str, Any]) -> dict[str, Any]:
    """The document that the options state."""
    from api.output import require

    current, tokens, start = (given.pop(k) for k in ("current", "tokens", "tokens_start"))
    require(loads or tokens, "give --load or --tokens", "/loads")
    size = given.pop("expert_bytes")
    data = given | {
        "loads": [_counts(path) for path in loads or (tokens,)],
        "current": None if current is None else _map(current),
        "expert_bytes": None if size is None else [size],
        "pins": [_pin(text) for text in given["pins"]],
    }
    if tokens is not None:
        data |= _tokens(tokens, start, given["nodes"])
    return data


def _pin(text: str) -> dict[str, Any]:
    """Read LAYER/EXPERT@device:D."""
    import re

    from api.output import require

    found = re.fullmatch(r"(?:(\d+)/)?(\d+)@(device|node):(\d+)", text)
    require(found, f"a pin reads 3@device:0 or 7/3@node:1, not {text!r}", "/pins")
    assert found is not None  # noqa: S101 - just required
    layer, expert, kind, place = found.groups()
    pin = {"expert": int(expert), kind: int(place)}
    return pin if layer is None else pin | {"layer": int(layer)}


def _tokens(path: Path, start: str, nodes: int) -> dict[str, Any]:
    """Experts of each token, and the node where each is."""
    from api.output import require
    from planner.formats.expert_load import read_choices, read_sequences

    data: dict[str, Any] = {"tokens": read_choices(path).tolist()}
    if start == "dealt":
        sequences = read_sequences(path)
        require(sequences is not None, f"{path} has no seq_lens to deal to nodes", "/token_nodes")
        assert sequences is not None  # noqa: S101 - just required
        data["token_nodes"] = (sequences % nodes).tolist()
    return data


def _counts(path: Path) -> Any:  # noqa: ANN401 - checked by the document
    from planner.formats.expert_load import read_expert_load

    return read_expert_load(path).counts


def _map(path: Path) -> Any:  # noqa: ANN401 - checked by the document
    from planner.formats.expert_map import read_expert_map

    return read_expert_map(path, 1).slots


def _table(answer: Placement) -> str:
    from reports.text import text_table

    rows = [
        [str(layer.layer), f"{layer.max_over_mean_before:.3f}", f"{greedy:.4f}",
         f"{layer.max_over_mean:.4f}", f"{layer.bound:.4f}", f"{layer.gap_ratio:.3%}"]
        for layer, greedy in zip(answer.layers, answer.greedy.max_over_mean, strict=True)
    ]  # fmt: skip
    head = ["layer", "before", "greedy", "placed", "bound", "gap"]
    worst = max(layer.max_over_mean for layer in answer.layers)
    said = (
        f"{text_table(head, rows)}\n\nbusiest over mean: worst layer {worst:.4f}; leaving the node "
        f"{answer.cross_node_share:.1%}; {answer.moves} moves; {answer.solve_s:.2f} s"
    )
    return "\n".join([said, *_more(answer)])


def _more(answer: Placement) -> list[str]:
    """What only some questions ask for, and the reasons."""
    from reports.reason_views import reason_sentences
    from reports.text import text_table

    lines = []
    if answer.traffic:
        what = "pairs that leave" if answer.traffic_measure == "pairs" else "visits a token"
        rows = [
            [str(t.layer), f"{t.greedy:.4f}", f"{t.greedy_max_over_mean:.3f}",
             f"{t.crossing_before:.4f}", f"{t.crossing:.4f}", f"{t.bound:.4f}",
             f"{t.gap_ratio:.2%}"]
            for t in answer.traffic
        ]  # fmt: skip
        head = ["layer", "greedy", "its fullest node", "balanced", what, "bound", "gap"]
        lines += ["", text_table(head, rows)]
    if answer.move_budget is not None:
        budget = answer.move_budget
        lines.append(
            f"busiest over mean, summed over layers {budget.max_over_mean_sum:.4f}; with these "
            f"moves at least {budget.bound:.4f}"
        )
    if answer.redundant:
        lines.append(f"copies by layer: {' '.join(map(str, answer.redundant))}")
    if answer.time_limit_reached:
        lines.append("the time limit was reached: this is the best found, not the best there is")
        return lines
    what = {"visits": "visits a token", "pairs": "pairs that leave"}.get(
        answer.traffic_measure, "busiest over mean"
    )
    return [*lines, "", *reason_sentences(answer, answer.objective_value, what)]
