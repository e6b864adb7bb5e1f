"""`moesaic compress`: bits, pruning, atomic pruning and merging of experts, each with its costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from api.output import Output, output_options

if TYPE_CHECKING:
    from planner.search.compressing import Compressed
    from planner.search.shrinking import ShrinkAnswer

FILE = click.Path(path_type=Path)
UNIFORM = click.option("--uniform", is_flag=True, help="The same in every layer, as engines need.")
TOP_K = click.option("--top-k", type=int, default=8, show_default=True,
                     help="Experts a token runs.")  # fmt: skip
MODEL = click.option("--model", help="Also state the four costs on this model: a name or a config.")
Options = tuple[Callable[..., Any], ...]


@click.group()
def command() -> None:
    """Decide what experts give up when memory is short.

    \b
    Example:
        moesaic compress bits --factors factors.csv --budget-bits 20
    """


def _verb(*options: Callable[..., Any]) -> Callable[[Callable[..., Any]], click.Command]:
    """A verb of the group with its own options, a model, and those of every answer."""

    def decorated(function: Callable[..., Any]) -> click.Command:
        for option in (*reversed(options), output_options):
            function = option(function)
        return command.command()(function)

    return decorated


def _answered(given: dict[str, Any], method: str, **tables: Any) -> None:  # noqa: ANN401
    """Parse, decide and show; `given` is what the options say, `tables` what files hold."""
    from hwprofiles.files import apply_overrides
    from planner.model_library import load_model
    from planner.search.compressing import parse_body
    from planner.search.compressing_reasons import compress_explained

    output = Output(given.pop("form"), given.pop("out"), given.pop("quiet"))
    overrides, name = given.pop("overrides"), given.pop("model")
    data = {k: v for k, v in given.items() if v is not None}
    data = apply_overrides(data | {"method": method}, overrides)
    model = None if name is None else load_model(name)
    found = compress_explained(parse_body(data | tables), model)
    _show(output, found)


def _show(output: Output, found: Compressed) -> None:
    from reports.text import text_table

    data = found.answer.model_dump(mode="json")
    if found.method == "fit":
        output.show(data, lambda: f"{_fit_text(found.answer)}\n\n{_reasons(found)}")  # type: ignore[arg-type] # of fit
        return
    if found.costs is not None:
        data["costs"] = found.costs.model_dump(mode="json")
    facts = [[k, f"{v:.8g}"] for k, v in data.items() if isinstance(v, float | int)]
    facts += [[k, f"{v:.6g}"] for k, v in data.get("costs", {}).items()
              if isinstance(v, float | int)]  # fmt: skip
    table = text_table(["what", "value"], facts)
    output.show(data, lambda: f"{table}\n\n{_reasons(found)}")


def _reasons(found: Compressed) -> str:
    from planner.search.compressing_reasons import OBJECTIVE, WHAT
    from reports.reason_views import reason_sentences

    now = float(getattr(found.answer, OBJECTIVE[found.method]))
    return "\n".join(reason_sentences(found.answer, now, WHAT[found.method]))


@_verb(
    click.option("--factors", type=FILE, required=True,
                 help="CSV: layer, expert, activation_count, routing_weight_sum, "
                 "quant_loss_<j>bit."),
    click.option("--budget-bits", type=float, required=True,
                 help="Bits of one block's experts together (8 experts at 2.5 bits: 20)."),
    click.option("--scope", type=click.Choice(["layer", "model"]), default="layer",
                 show_default=True, help="A budget for each layer, or one for all."),
    click.option("--beta", type=float, default=1.5, show_default=True,
                 help="Exponent of the share of routing weight."),
    UNIFORM, MODEL,
)  # fmt: skip
def bits(factors: Path, **given: Any) -> None:  # noqa: ANN401 - the options, as click names them
    """Give each expert its bits: MC-MoE's integer programme, solved to proven optimality.

    \b
    Example:
        moesaic compress bits --factors factors.csv --budget-bits 20 --scope model -o json
    """
    _answered(given, "bits", factors=_factors(factors))


@_verb(
    click.option("--scores", type=FILE, required=True,
                 help="CSV: layer, expert, score; or a router trace (.npz, .parquet) with "
                 "--score."),
    click.option("--score", default="peu", show_default=True,
                 help="Importance from a router trace: tcess, peu, frequency, router_weight."),
    TOP_K,
    click.option("--keep-experts", type=int, help="Experts kept, all layers together."),
    click.option("--budget", "budget_bytes",
                 help='Or memory for them, all layers together: "390 GB"; needs --expert-bytes.'),
    click.option("--expert-bytes", help='Bytes of one expert: "88 MB".'),
    click.option("--coverage", type=float, default=0.0, show_default=True,
                 help="Share of each layer's scores that must stay."),
    UNIFORM, MODEL,
)  # fmt: skip
def prune(scores: Path, score: str, expert_bytes: str | None, **given: Any) -> None:  # noqa: ANN401
    """Keep whole experts (PreMoe): the highest scores under a count or memory, with coverage.

    \b
    Example:
        moesaic compress prune --scores scores.csv --keep-experts 7424 --model deepseek-v3
    """
    size = None if expert_bytes is None else [expert_bytes]
    values = _scores(scores, score, given["top_k"])
    _answered(given | {"expert_bytes": size}, "prune", scores=values)


@_verb(
    click.option("--saliency", type=FILE, required=True,
                 help="NPZ with `saliency` [layers, experts, units] (HEAPr's scores)."),
    click.option("--cut-ratio", type=click.FloatRange(0, 1, max_open=True), required=True,
                 help="Share of all inner units that goes."),
    click.option("--tile", type=int, default=1, show_default=True,
                 help="Units stay in such multiples, as kernels need."),
    UNIFORM, MODEL,
)  # fmt: skip
def atomic(saliency: Path, **given: Any) -> None:  # noqa: ANN401
    """Cut inner units of experts (HEAPr): the lowest saliency goes, in tiles.

    \b
    Example:
        moesaic compress atomic --saliency saliency.npz --cut-ratio 0.25 --tile 64
    """
    _answered(given, "atomic", saliency=_saliency(saliency))


@_verb(
    click.option("--trace", type=FILE, required=True,
                 help="Router trace: .npz with `logits` [tokens, layers, experts], or parquet."),
    click.option("--groups", type=int, required=True,
                 help="Experts that stay, all layers together; the first layer keeps its own."),
    TOP_K,
    click.option("--by", type=click.Choice(["use", "loss"]), default="use", show_default=True,
                 help="The most used stay; or those that lose least, by an integer programme."),
    click.option("--router-pruned", is_flag=True, help="Merged experts lose their router row."),
    UNIFORM, MODEL,
)  # fmt: skip
def merge(trace: Path, **given: Any) -> None:  # noqa: ANN401
    """Merge experts into the ones they resemble (M-SMoE), or so that least is lost.

    Merging alone saves memory, not time: the router keeps its rows unless --router-pruned.

    \b
    Example:
        moesaic compress merge --trace trace.npz --groups 96 --top-k 2
    """
    from planner.compression.importance import read_router_logits

    _answered(given, "merge", logits=read_router_logits(trace))


@_verb(
    click.option("--model", required=True, help="A name, a config.json or its folder."),
    click.option("--devices", type=int, required=True, help="Devices to fit on."),
    click.option("--device-memory", "device_bytes", required=True,
                 help='Memory of a device, such as "64 GB".'),
    click.option("--memory-share", type=float, default=0.9, show_default=True,
                 help="Share of it that weights may fill."),
    click.option("--stored-as",
                 help="Format the devices hold untouched weights in: bf16, fp8, ..."),
    click.option("--scores", type=FILE, help="CSV: layer, expert, score; or a router trace."),
    UNIFORM,
    click.option("--replicated", is_flag=True,
                 help="Each device holds attention and the rest whole."),
)  # fmt: skip
def fit(scores: Path | None, **given: Any) -> None:  # noqa: ANN401
    """Say what to drop and what to quantise so that a model fits, with proof and costs.

    \b
    Example:
        moesaic compress fit --model deepseek-r1 --devices 16 --device-memory "64 GB" \
            --stored-as bf16
    """
    values = None if scores is None else _scores(scores, "tcess", _top_k(given["model"]))
    _answered(given, "fit", scores=values)


def _top_k(model: str) -> int:
    from planner.compression.experts import expert_table
    from planner.model_library import load_model

    return expert_table(load_model(model)).block.top_k


def _factors(path: Path) -> list[dict[str, Any]]:
    """Rows of the CSV, losses by width."""
    from hwprofiles.errors import MoesaicError
    from planner.search.bits import LOSS

    rows = []
    for row in read_table(path).iter_rows(named=True):
        losses = {k.removeprefix(LOSS).removesuffix("bit"): v for k, v in row.items()
                  if k.startswith(LOSS)}  # fmt: skip
        names = ("layer", "expert", "activation_count", "routing_weight_sum")
        if missing := [name for name in names if name not in row]:
            raise MoesaicError("invalid", f"{path} lacks columns {missing}", "/factors")
        rows.append({name: row[name] for name in names} | {"quant_loss": losses})
    return rows


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


def _scores(path: Path, score: str, top_k: int) -> Any:  # noqa: ANN401 - rows or an array
    """Layers x experts from a table, or from a router trace."""
    from api.output import require
    from planner.compression import importance

    if path.suffix != ".csv":
        return importance.score(score, importance.read_router_logits(path), top_k)
    frame = read_table(path)
    columns = {"layer", "expert", "score"}
    require(columns <= set(frame.columns), f"{path} needs columns {sorted(columns)}", "/scores")
    once = not frame.select("layer", "expert").is_duplicated().any()
    require(once, f"{path} names an expert twice", "/scores")
    wide = frame.pivot(on="expert", index="layer", values="score").sort("layer").drop("layer")
    require(not wide.null_count().sum_horizontal().item(),
            f"{path} must score every expert of every layer", "/scores")  # fmt: skip
    return [list(row) for row in wide.select(sorted(wide.columns, key=int)).iter_rows()]


def _saliency(path: Path) -> Any:  # noqa: ANN401 - numpy, imported late
    import zipfile

    import numpy as np

    from hwprofiles.errors import MoesaicError

    try:
        with np.load(path, allow_pickle=False) as stored:
            return np.asarray(stored["saliency"], dtype=float)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise MoesaicError("invalid", f"{path} is no .npz with `saliency`: {error}") from error


def _fit_text(answer: ShrinkAnswer) -> str:
    from collections import Counter

    from reports.text import text_table

    counts: Counter[str] = Counter()
    for layer in answer.layers:
        counts.update(layer.experts_by_bits)
    facts = [[f"experts {name}", str(count)] for name, count in counts.items()]
    facts += [
        ["lost share of tokens", f"{answer.lost_share:.4%} (at least {answer.bound_share:.4%})"],
        ["with 1 % more memory", f"at least {answer.eased_bound_share:.4%} lost"],
        ["weights a device", f"{answer.needed_bytes / 2**30:.2f} GiB"],
    ]
    for name in ("stored_bytes", "moved_bytes_per_token", "flops_per_token"):
        before, after = getattr(answer.before, name), getattr(answer.costs, name)
        facts.append([name, f"{after:.4g} (was {before:.4g})"])
    facts += [[q.metric, f"{q.value:.4g} {q.unit} ({'; '.join(q.sources)})"]
              for q in answer.quality]  # fmt: skip
    notes = "\n".join(f"- {note}" for note in answer.notes)
    return f"{text_table(['what', 'value'], facts)}\n\n{notes}"
