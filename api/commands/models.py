"""The verb that shows what is known of models: structure, parameters, bytes, sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from api.output import Output, output_options
from hwprofiles.errors import MoesaicError
from reports.text import text_table

BILLION = 1e9
GIB = 2.0**30


@click.group()
def command() -> None:
    """Show known models, or read a checkpoint's config.json, exactly and with every assumption.

    \b
    moesaic models list
    moesaic models show deepseek-v3
    moesaic models show Qwen3-30B-A3B -o json
    moesaic models fit mixtral-8x7b --device h200-sxm
    moesaic models routing deepseek-v3 --devices 32
    """


@command.command("list")
@output_options
def list_command(*, form: str, out: Path | None, overrides: tuple[str, ...], quiet: bool) -> None:
    """Name every model of the catalogue with its size.

    \b
    moesaic models list -o json
    """
    if overrides:
        raise MoesaicError("invalid", "a list has no fields to set; --set works with `show`")
    data = {"models": overview()}
    Output(form, out, quiet).show(data, lambda: _overview_table(data["models"]))


@command.command("show")
@click.argument("name")
@click.option(
    "--assume",
    is_flag=True,
    help="Read an unknown model_type by its field names and list what was assumed.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="A safetensors file, folder or index to compare with; only headers are read.",
)
@output_options
def show_command(
    name: str, *, assume: bool, weights: Path | None, form: str, out: Path | None,
    overrides: tuple[str, ...], quiet: bool,
) -> None:  # fmt: skip
    """Show one model: a name, a config.json, or a folder that holds one.

    \b
    moesaic models show mixtral-8x7b
    moesaic models show openai/gpt-oss-120b -o json
    moesaic models show kimi-k2 --set weights.routed=w4a16
    """
    from planner.model_facts import model_facts

    facts = model_facts(read(name, overrides, assume=assume))
    output = Output(form, out, quiet)
    if weights is not None:
        from planner.formats.safetensors import compare_count

        facts["assumptions"] += compare_count(weights, facts["params_total"])
    output.show(facts, lambda: _facts_table(facts))


@command.command("fit")
@click.argument("name")
@click.option("--device", required=True, help="A device of the catalogue: h200-sxm.")
@click.option("--tp", type=int, default=1, show_default=True, help="Tensor parallelism.")
@click.option("--pp", type=int, default=1, show_default=True, help="Pipeline stages.")
@click.option("--dp", type=int, default=1, show_default=True, help="Data-parallel attention ranks.")
@click.option("--moe-tp", type=int, default=1, show_default=True, help="Cut of each expert.")
@click.option("--moe-ep", type=int, default=1, show_default=True, help="Expert-parallel ranks.")
@click.option("--batch", type=int, default=1, show_default=True, help="Sequences of one rank.")
@click.option(
    "--context",
    "context_tokens",
    type=int,
    default=8192,
    show_default=True,
    help="Tokens a sequence may grow to.",
)
@click.option("--assume", is_flag=True, help="Read an unknown model_type by its field names.")
@output_options
def fit_command(
    name: str, *, device: str, assume: bool, form: str, out: Path | None,
    overrides: tuple[str, ...], quiet: bool, **layout: Any,  # noqa: ANN401 - degrees by name
) -> None:  # fmt: skip
    """Say whether a model fits a device, bucket by bucket, and how far it could grow.

    `--set` reaches the rest of the layout: precision, kv_dtype, redundant_experts, prefill_tokens,
    low_latency_tokens, lora_rank, lora_count, context_bytes, memory_share.

    \b
    moesaic models fit mixtral-8x7b --device h200-sxm
    moesaic models fit deepseek-v3 --device h200-sxm --dp 16 --moe-ep 16 --batch 32 -o json
    moesaic models fit qwen3-30b-a3b --device h100-sxm --set kv_dtype=fp8
    """
    from hwprofiles.files import apply_overrides
    from hwprofiles.library import load_device
    from planner.work.fit import Layout, fit

    asked = Layout.parse(apply_overrides(layout, overrides), what="layout")
    answer = fit(read(name, assume=assume), load_device(device).capacity_bytes, asked)
    data = answer.model_dump(mode="json")
    Output(form, out, quiet).show(data, lambda: _fit_table(data))


def _fit_table(data: dict[str, Any]) -> str:
    rows = [[bucket.removesuffix("_bytes"), f"{value / GIB:.3f}"]
            for bucket, value in data["buckets"].items()]  # fmt: skip
    rows += [["total", f"{data['total_bytes'] / GIB:.3f}"],
             ["may be filled", f"{data['capacity_bytes'] / GIB:.3f}"],
             ["headroom", f"{data['headroom_bytes'] / GIB:.3f}"]]  # fmt: skip
    verdict = "fits" if data["fits"] else "does not fit"
    return (
        f"{text_table(['bucket', 'GiB'], rows)}\n{verdict}; largest batch {data['largest_batch']}, "
        f"largest context {data['largest_context_tokens']} tokens; largest bucket "
        f"{data['shrink']}: {data['hint']}"
    )


def read(name: str, overrides: tuple[str, ...] = (), *, assume: bool = False) -> Any:  # noqa: ANN401 - a MoeModel, imported late
    """Load a model by name or from a file, with `--set` applied to its document.

    Raises:
        MoesaicError: `unknown_name`, `invalid` or `outside_evidence`.
    """
    from hwprofiles.files import apply_overrides
    from planner.model_library import load_model
    from planner.moe_model import MoeModel

    model = load_model(name, assume=assume)
    if not overrides:
        return model
    return MoeModel.parse(apply_overrides(model.model_dump(mode="json"), overrides), what="model")


def overview() -> list[dict[str, Any]]:
    """Every model of the catalogue in a few fields, as plain data."""
    from planner.model_library import entries, load_named
    from planner.parameters import count_parameters

    rows = []
    for name, entry in entries().items():
        model = load_named(name)
        count = count_parameters(model)
        rows.append(
            {
                "name": name,
                "title": entry.title,
                "family": model.family,
                "layers": model.layer_count,
                "moe_layers": len(model.moe_layers),
                "experts": model.moe.experts if model.moe else 0,
                "top_k": model.moe.top_k if model.moe else 0,
                "params_total": count.total,
                "params_active": count.active,
                "aliases": list(entry.aliases),
                "source": entry.source,
            }
        )
    return rows


@command.command("routing")
@click.argument("name")
@click.option("--devices", type=int, default=1, show_default=True, help="Expert-parallel ranks.")
@click.option("--tokens", type=int, default=1024, show_default=True, help="Of the whole batch.")
@click.option("--load", type=click.Path(path_type=Path), help="Counted load: JSON, CSV, NumPy.")
@output_options
def routing_command(
    name: str, *, devices: int, tokens: int, load: Path | None, form: str, out: Path | None,
    overrides: tuple[str, ...], quiet: bool,
) -> None:  # fmt: skip
    """Say who gets which tokens of a batch: experts, devices, the busiest, and what it costs.

    `--set` reaches routing (a distribution) and policy (how experts are chosen).

    \b
    moesaic models routing pangu-pro-moe --devices 8 --tokens 456
    moesaic models routing mixtral-8x7b --devices 8 --set "policy={kind: skip, skipped_share: 0.3}"
    moesaic models routing deepseek-v3 --devices 32 --set "routing={kind: zipf, alpha: 0.8}" -o json
    """
    from hwprofiles.files import apply_overrides
    from planner.formats.expert_load import read_expert_load
    from planner.routing.outlook import RoutingQuestion, answer_routing

    asked: dict[str, Any] = {"devices": devices, "tokens": tokens}
    model = read(name)
    if load is not None:
        width = model.moe.experts if model.moe is not None else None
        asked["routing"] = read_expert_load(load, width).model_dump(mode="json")
    question = RoutingQuestion.parse(apply_overrides(asked, overrides), what="question")
    data = answer_routing(question, model)
    Output(form, out, quiet).show(data, lambda: _routing_table(data))


def _routing_table(data: dict[str, Any]) -> str:
    """One line a fact; loads as least, mean and most over experts or devices of all layers."""
    lines = []
    for key, value in data.items():
        if key in ("tokens_per_expert", "pairs_per_device"):
            held = [number for row in value for number in row]
            mean = sum(held) / len(held)
            shown = f"{min(held):.1f} to {max(held):.1f}, mean {mean:.1f}"
        elif key == "experts_per_token":
            shown = ", ".join(f"{count}: {chance:.1%}" for count, chance in value)
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append([key.replace("_", " "), shown])
    return text_table(["of a batch", "value"], lines)


def _overview_table(rows: list[dict[str, Any]]) -> str:
    return text_table(
        ["name", "total (B)", "active (B)", "layers", "experts", "top-k", "family"],
        [
            [
                row["name"], f"{row['params_total'] / BILLION:.2f}",
                f"{row['params_active'] / BILLION:.2f}", str(row["layers"]), str(row["experts"]),
                str(row["top_k"]), row["family"],
            ]
            for row in rows
        ],
    )  # fmt: skip


def _facts_table(facts: dict[str, Any]) -> str:
    lines = []
    for key, value in facts.items():
        if isinstance(value, list):
            lines += [[key, text] for text in value]
        elif isinstance(value, dict):
            lines += [[f"{key}.{name}", _shown(key, number)] for name, number in value.items()]
        else:
            lines.append([key, _shown(key, value)])
    return text_table(["fact", "value"], lines)


def _shown(key: str, value: object) -> str:
    """Numbers as people read them: billions, GiB, bytes."""
    if key.startswith("params_") and isinstance(value, int):
        return f"{value / BILLION:.3f} B"
    if key == "weight_bytes" and isinstance(value, int | float):
        return f"{value / GIB:.3f} GiB"
    if key == "kv_bytes_per_token" and isinstance(value, int | float):
        return f"{value:.0f} B"
    return str(value)
