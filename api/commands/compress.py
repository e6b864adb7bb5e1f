"""`moesaic compress`: bits, pruning, atomic pruning and merging of experts, each with its costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from api.output import Output, output_options

if TYPE_CHECKING:
    from planner.compression.experts import ExpertTable
    from planner.search.shrinking import ShrinkAnswer

MODEL = click.option("--model", help="Also state the four costs on this model: a name or a config.")


@click.group()
def command() -> None:
    """Decide what experts give up when memory is short.

    \b
    Example:
        moesaic compress bits --factors factors.csv --budget-bits 20
    """


def _show(output: Output, data: dict[str, Any], table: ExpertTable | None) -> None:
    from planner.compression.costs import costs_of
    from reports.text import text_table

    if table is not None:
        data |= {"costs": costs_of(table).model_dump(mode="json")}
    facts = [[k, f"{v:.8g}"] for k, v in data.items() if isinstance(v, float | int)]
    facts += [[k, f"{v:.6g}"] for k, v in data.get("costs", {}).items()
              if isinstance(v, float | int)]  # fmt: skip
    output.show(data, lambda: text_table(["what", "value"], facts))


def _table_of(model: str | None) -> ExpertTable | None:
    from planner.compression.experts import expert_table
    from planner.model_library import load_model

    return None if model is None else expert_table(load_model(model))


@command.command()
@click.option(
    "--factors",
    type=click.Path(path_type=Path),
    required=True,
    help="CSV: layer, expert, activation_count, routing_weight_sum, quant_loss_<j>bit.",
)
@click.option(
    "--budget-bits",
    type=float,
    required=True,
    help="Bits of one block's experts together (8 experts at 2.5 bits: 20).",
)
@click.option(
    "--scope",
    type=click.Choice(["layer", "model"]),
    default="layer",
    show_default=True,
    help="A budget for each layer, or one for all.",
)
@click.option(
    "--beta",
    type=float,
    default=1.5,
    show_default=True,
    help="Exponent of the share of routing weight.",
)
@MODEL
@output_options
def bits(
    factors: Path, model: str | None, form: str, out: Path | None, overrides: tuple[str, ...],
    quiet: bool, **given: Any,  # noqa: ANN401 - the other options, as click names them
) -> None:  # fmt: skip
    """Give each expert its bits: MC-MoE's integer programme, solved to proven optimality.

    \b
    Example:
        moesaic compress bits --factors factors.csv --budget-bits 20 --scope model -o json
    """
    from hwprofiles.files import apply_overrides
    from planner.compression.transforms import with_bits
    from planner.search.bits import BitsQuestion, choose_bits

    question = BitsQuestion.parse(apply_overrides(given, overrides), what="bit budget")
    answer = choose_bits(read_table(factors), question)
    table = _table_of(model)
    if table is not None:
        grid = _grid(table, [(x.layer, x.expert, x.bits) for x in answer.allocation])
        table = with_bits(table, grid)
    _show(Output(form, out, quiet), answer.model_dump(mode="json"), table)


def read_table(path: Path) -> Any:  # noqa: ANN401 - a polars frame, imported late
    """Read a CSV file as a table of numbers.

    Raises:
        MoesaicError: `invalid` when it cannot be read.
    """
    import polars as pl

    from hwprofiles.errors import MoesaicError

    try:
        return pl.read_csv(path, comment_prefix="#")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise MoesaicError(
            "invalid", f"cannot read {path}: {str(error).splitlines()[0]}"
        ) from error


def _grid(table: ExpertTable, cells: list[tuple[int, int, int]]) -> Any:  # noqa: ANN401 - numpy
    """Values by layer and expert as the model's shape; layers are counted among MoE layers."""
    import numpy as np

    from hwprofiles.errors import MoesaicError

    layers = {layer: i for i, layer in enumerate(sorted({cell[0] for cell in cells}))}
    if (len(layers), len(cells)) != (table.shape[0], table.shape[0] * table.shape[1]):
        raise MoesaicError(
            "invalid",
            f"the file names {len(cells)} experts in {len(layers)} layers, {table.model.name} has "
            f"{table.shape[0]} layers of {table.shape[1]}", "/model",
        )  # fmt: skip
    grid = np.zeros(table.shape)
    for layer, expert, value in cells:
        grid[layers[layer], expert] = value
    return grid


@command.command()
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    required=True,
    help="CSV: layer, expert, score; or a router trace (.npz, .parquet) with --score.",
)
@click.option(
    "--score",
    default="peu",
    show_default=True,
    help="Importance from a router trace: tcess, peu, frequency, router_weight.",
)
@click.option("--top-k", type=int, default=8, show_default=True, help="Experts a token runs.")
@click.option("--keep-experts", type=int, required=True, help="Experts kept, all layers together.")
@click.option(
    "--coverage",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of each layer's scores that must stay.",
)
@click.option("--uniform", is_flag=True, help="The same count in every layer.")
@MODEL
@output_options
def prune(
    scores: Path, score: str, top_k: int, model: str | None, form: str, out: Path | None,
    overrides: tuple[str, ...], quiet: bool, **given: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    """Keep whole experts (PreMoe): the highest scores under a count, with coverage by layer.

    \b
    Example:
        moesaic compress prune --scores scores.csv --keep-experts 7424 --model deepseek-v3
    """
    import numpy as np

    from hwprofiles.files import apply_overrides
    from planner.compression.transforms import masked
    from planner.search.pruning import PruneQuestion, choose_experts

    data = apply_overrides({**given, "least_per_layer": top_k}, overrides)
    values = _scores(scores, score, top_k)
    answer = choose_experts(values, PruneQuestion.parse(data, what="pruning question"))
    table = _table_of(model)
    if table is not None:
        kept = np.zeros(values.shape, dtype=bool)
        for layer, experts in enumerate(answer.keep):
            kept[layer, list(experts)] = True
        table = masked(table, kept, refill=True)
    _show(Output(form, out, quiet), answer.model_dump(mode="json"), table)


def _scores(path: Path, score: str, top_k: int) -> Any:  # noqa: ANN401 - numpy, imported late
    from planner.compression import importance

    if path.suffix != ".csv":
        return importance.score(score, importance.read_router_logits(path), top_k)
    frame = read_table(path)
    wide = frame.pivot(on="expert", index="layer", values="score").sort("layer").drop("layer")
    return wide.select(sorted(wide.columns, key=int)).to_numpy().astype(float)


@command.command()
@click.option(
    "--saliency",
    type=click.Path(path_type=Path),
    required=True,
    help="NPZ with `saliency` [layers, experts, units] (HEAPr's scores).",
)
@click.option(
    "--cut-ratio",
    type=click.FloatRange(0, 1, max_open=True),
    required=True,
    help="Share of all inner units that goes.",
)
@click.option(
    "--tile",
    type=int,
    default=1,
    show_default=True,
    help="Units stay in such multiples, as kernels need.",
)
@MODEL
@output_options
def atomic(
    saliency: Path, cut_ratio: float, tile: int, model: str | None, form: str, out: Path | None,
    overrides: tuple[str, ...], quiet: bool,
) -> None:  # fmt: skip
    """Cut inner units of experts (HEAPr): the lowest saliency goes, in tiles.

    \b
    Example:
        moesaic compress atomic --saliency saliency.npz --cut-ratio 0.25 --tile 64
    """
    from api.output import require
    from planner.compression.transforms import narrowed
    from planner.search.pruning import choose_units

    require(not overrides, "atomic has no document to --set", "/set")
    values = _saliency(saliency)
    keep = round(values.size * (1 - cut_ratio))
    kept, lost = choose_units(values, keep, tile)
    table = _table_of(model)
    if table is not None:
        table = narrowed(table, kept, tile=tile)
    data = {"keep": kept.tolist(), "lost_saliency": lost, "kept_units": int(kept.sum())}
    _show(Output(form, out, quiet), data, table)


def _saliency(path: Path) -> Any:  # noqa: ANN401 - numpy, imported late
    import zipfile

    import numpy as np

    from hwprofiles.errors import MoesaicError

    try:
        with np.load(path, allow_pickle=False) as stored:
            return np.asarray(stored["saliency"], dtype=float)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise MoesaicError("invalid", f"{path} is no .npz with `saliency`: {error}") from error


@command.command()
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    required=True,
    help="Router trace: .npz with `logits` [tokens, layers, experts], or parquet.",
)
@click.option(
    "--groups",
    type=int,
    required=True,
    help="Experts that stay, all layers together; the first layer keeps its own.",
)
@click.option("--top-k", type=int, default=8, show_default=True, help="Experts a token runs.")
@click.option("--router-pruned", is_flag=True, help="Merged experts lose their router row.")
@MODEL
@output_options
def merge(
    trace: Path, groups: int, top_k: int, model: str | None, form: str, out: Path | None,
    overrides: tuple[str, ...], quiet: bool, router_pruned: bool,
) -> None:  # fmt: skip
    """Merge experts into the dominant ones they resemble (M-SMoE).

    Merging alone saves memory, not time: the router keeps its rows unless --router-pruned.

    \b
    Example:
        moesaic compress merge --trace trace.npz --groups 96 --top-k 2
    """
    from api.output import require
    from planner.compression import importance
    from planner.compression.transforms import merged
    from planner.search.merging import choose_owners

    require(not overrides, "merge has no document to --set", "/set")
    logits = importance.read_router_logits(trace)
    owners = choose_owners(importance.frequency(logits, top_k), logits, groups)
    table = _table_of(model)
    if table is not None:
        table = merged(table, owners, router_pruned=router_pruned)
    stay = sum(len(set(row)) for row in owners.tolist())
    _show(Output(form, out, quiet), {"owner": owners.tolist(), "groups": stay}, table)


@command.command()
@click.option("--model", required=True, help="A name, a config.json or its folder.")
@click.option("--devices", type=int, required=True, help="Devices to fit on.")
@click.option("--device-memory", required=True, help='Memory of a device, such as "64 GB".')
@click.option("--memory-share", type=float, default=0.9, show_default=True,
              help="Share of it that weights may fill.")  # fmt: skip
@click.option("--stored-as", help="Format the devices hold untouched weights in: bf16, fp8, ...")
@click.option("--scores", type=click.Path(path_type=Path),
              help="CSV: layer, expert, score; or a router trace.")  # fmt: skip
@click.option("--uniform", is_flag=True, help="One expert count and one width in every layer.")
@click.option("--replicated", is_flag=True, help="Each device holds attention and the rest whole.")
@output_options
def fit(
    model: str, scores: Path | None, device_memory: str, form: str, out: Path | None,
    overrides: tuple[str, ...], quiet: bool, **given: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    """Say what to drop and what to quantise so that a model fits, with proof and costs.

    \b
    Example:
        moesaic compress fit --model deepseek-r1 --devices 16 --device-memory "64 GB" \
            --stored-as bf16
    """
    from hwprofiles.files import apply_overrides
    from planner.compression.experts import expert_table
    from planner.model_library import load_model
    from planner.search.shrinking import ShrinkQuestion, shrink

    data = apply_overrides({**given, "device_bytes": device_memory}, overrides)
    question = ShrinkQuestion.parse(data, what="question of fit")
    known = load_model(model)
    plain = expert_table(known)
    if scores is not None:
        plain = expert_table(known, _scores(scores, "tcess", plain.block.top_k))
    answer = shrink(plain, question)
    Output(form, out, quiet).show(answer.model_dump(mode="json"), lambda: _fit_text(answer))


def _fit_text(answer: ShrinkAnswer) -> str:
    from collections import Counter

    from reports.text import text_table

    counts: Counter[str] = Counter()
    for layer in answer.layers:
        counts.update(layer.experts_by_bits)
    facts = [[f"experts {name}", str(count)] for name, count in counts.items()]
    facts += [
        ["lost share of tokens", f"{answer.lost_share:.4%} (at least {answer.bound_share:.4%})"],
        ["weights a device", f"{answer.needed_bytes / 2**30:.2f} GiB"],
    ]
    for name in ("stored_bytes", "moved_bytes_per_token", "flops_per_token"):
        before, after = getattr(answer.before, name), getattr(answer.costs, name)
        facts.append([name, f"{after:.4g} (was {before:.4g})"])
    facts += [[q.metric, f"{q.value:.4g} {q.unit} ({'; '.join(q.sources)})"]
              for q in answer.quality]  # fmt: skip
    notes = "\n".join(f"- {note}" for note in answer.notes)
    return f"{text_table(['what', 'value'], facts)}\n\n{notes}"
