"""`moesaic place`: experts onto devices, with copies, balanced and proven."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from api.output import Output, output_options

if TYPE_CHECKING:
    from planner.search.placement import Placement


@click.command()
@click.option(
    "--load",
    "loads",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help='JSON with {"logical_count": [[layers x experts]]}; several are balanced at once.',
)
@click.option("--devices", type=int, required=True, help="Devices that share the experts.")
@click.option("--nodes", type=int, default=1, show_default=True, help="Nodes of the devices.")
@click.option(
    "--redundant",
    type=int,
    default=0,
    show_default=True,
    help="Copies of a layer beyond one an expert.",
)
@click.option("--experts-per-device-max", type=int, help="Slots a device has at most.")
@click.option(
    "--groups",
    type=int,
    default=1,
    show_default=True,
    help="Groups of consecutive experts that stay on one node.",
)
@click.option(
    "--current",
    type=click.Path(path_type=Path),
    help="Today's layout: a map as this command, vllm-ascend or MindIE writes it.",
)
@click.option(
    "--robust",
    type=click.Choice(["worst", "mean"]),
    default="worst",
    show_default=True,
    help="Of several loads: balance the worst, or the mean.",
)
@click.option("--max-moves", type=int, help="Slots that may change against --current.")
@click.option(
    "--score",
    type=click.Path(path_type=Path),
    help="Another load, tomorrow's, on which the layout is judged.",
)
@output_options
def command(
    loads: tuple[Path, ...], form: str, out: Path | None, overrides: tuple[str, ...],
    quiet: bool, **given: Any,  # noqa: ANN401 - the other options, as click names them
) -> None:  # fmt: skip
    """Place the experts of every layer so that the busiest device has as little as can be.

    Says for each layer the busiest device over the mean before and after, the proven bound, and
    what the published greedy balancing reaches on the same load.

    \b
    Example:
        moesaic place --devices 32 --load tests/scenarios/loads/deepseek-v3-decode.json
    """
    from hwprofiles.files import apply_overrides
    from planner.search.placement import PlacementQuestion, place

    current, score = given.pop("current"), given.pop("score")
    data: dict[str, Any] = given | {
        "loads": [_counts(path) for path in loads],
        "current": None if current is None else _map(current),
    }
    if overrides:
        data = apply_overrides(data, overrides)
    question = PlacementQuestion.parse(data, what="placement")
    answer = place(question, None if score is None else _counts(score))
    Output(form, out, quiet).show(
        answer.model_dump(mode="json", exclude_defaults=True), lambda: _table(answer)
    )


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
    return (
        f"{text_table(head, rows)}\n\nbusiest over mean: worst layer {worst:.4f}; leaving the node "
        f"{answer.cross_node_share:.1%}; {answer.moves} moves; {answer.solve_s:.2f} s"
    )
