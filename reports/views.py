"""A plan turned into exactly what a page or a terminal says: labels, rounding, display units."""

from __future__ import annotations

from dataclasses import dataclass

from planner.plan import BindingLimit, Option, OptionPool, Plan, Pool
from planner.point import Estimated, MemorySummary
from planner.quantities import Estimate

GIB = 2.0**30
ROLE = {"agg": "aggregated", "prefill": "prefill", "decode": "decode"}
STAGE = {
    "attention": "Attention",
    "experts": "Routed experts",
    "shared": "Shared experts",
    "dense": "Dense feed-forward",
    "dispatch": "Dispatch",
    "combine": "Combine",
    "all_reduce": "All-reduce",
    "router": "Router",
    "projection": "DCCA projections",
    "norms": "Norms",
    "head": "Embedding and head",
    "pipeline": "Pipeline hops",
    "host": "Engine host",
}
BUCKET = {
    "routed_bytes": "routed experts",
    "redundant_bytes": "redundant experts",
    "shared_bytes": "shared experts, router, norms",
    "dense_bytes": "dense feed-forward",
    "attention_bytes": "attention",
    "embedding_bytes": "embedding and head",
    "kv_bytes": "KV cache",
    "activation_bytes": "activations",
    "buffer_bytes": "engine and buffers",
}
LIMIT = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "memory": "memory",
    "devices": "devices",
    "power_w": "power",
    "usd_per_hour": "budget",
}


def number(value: float, digits: int = 3) -> str:
    """Round to significant digits and write without an exponent.

    >>> number(1234.5), number(0.012345)
    ('1,230', '0.0123')
    """
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    magnitude = len(str(int(abs(rounded)))) if abs(rounded) >= 1 else 0
    decimals = max(digits - magnitude, 0) if magnitude else _leading_zeros(rounded) + digits
    text = f"{rounded:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _leading_zeros(value: float) -> int:
    fraction = f"{abs(value):.12f}".partition(".")[2]
    return len(fraction) - len(fraction.lstrip("0"))


def milliseconds(estimate: Estimate) -> str:
    """A duration with its interval, in ms."""
    low, high = number(estimate.low * 1e3), number(estimate.high * 1e3)
    return f"{number(estimate.typical * 1e3)} ms ({low} – {high})"


def tokens_rate(estimate: Estimate) -> str:
    """Tokens per second with the interval."""
    low, high = number(estimate.low), number(estimate.high)
    return f"{number(estimate.typical)} ({low} – {high})"


def gib(value: float) -> str:
    """Bytes in GiB.

    >>> gib(80 * 2**30)
    '80 GiB'
    """
    return f"{number(value / GIB)} GiB"


@dataclass(frozen=True)
class OptionRow:
    """One line of the ranking."""

    rank: str
    mode: str
    pools: str
    devices: str
    ttft: str
    tpot: str
    total: str
    per_device: str
    per_user: str

    def cells(self) -> list[str]:
        """The row as cells."""
        return [self.rank, self.mode, self.pools, self.devices, self.ttft, self.tpot, self.total,
                self.per_device, self.per_user]  # fmt: skip


OPTION_HEADERS = ["rank", "mode", "workers", "devices", "TTFT ms", "TPOT ms", "tokens/s",
                  "tokens/s/device", "tokens/s/user"]  # fmt: skip


def option_row(option: Option) -> OptionRow:
    """Say one option; numbers are typical values."""
    return OptionRow(
        rank=str(option.rank),
        mode="disaggregated" if option.mode == "disagg" else "aggregated",
        pools=_pools_text(option.pools),
        devices=str(option.devices),
        ttft=number(option.ttft_s.typical * 1e3),
        tpot=number(option.tpot_s.typical * 1e3),
        total=number(option.output_tokens_per_s.typical),
        per_device=number(option.output_tokens_per_s_per_device.typical),
        per_user=number(option.output_tokens_per_s_per_user.typical),
    )


def _pools_text(pools: tuple[OptionPool, ...]) -> str:
    """Workers of every pool in a line."""
    machines, variants = ({getattr(p, name) for p in pools} for name in ("machine", "variant"))
    text = " + ".join(
        f"{pool.workers} × {ROLE[pool.role]} {pool.layout.label()} B{pool.batch}"
        + f" on {pool.machine}" * (len(machines) > 1)
        + f" ({pool.variant})" * (len(variants) > 1)
        for pool in pools
    )
    shared = pools[0].variant if len(variants) == 1 else ""
    return f"{text} ({shared})" if shared else text


def title(plan: Plan) -> str:
    """The question in a line: model and machines."""
    scenario = plan.scenario
    machines = [scenario.cluster.title, *(machine.cluster.title for machine in scenario.also)]
    return f"{scenario.model.name} on {' and '.join(machines)}"


def headline(plan: Plan) -> str:
    """The answer in one sentence."""
    pools = " and ".join(
        f"{pool.workers} {ROLE[pool.role]} worker{'s' * (pool.workers > 1)} of "
        f"{pool.devices_per_worker} ({pool.layout.label()}, batch {pool.batch} a rank)"
        for pool in plan.pools
    )
    rate = number(plan.output_tokens_per_s_per_device.typical)
    return f"{pools}: {rate} output tokens/s/device on {plan.devices} devices"


def price_sentences(plan: Plan) -> list[str]:
    """What a token costs in dollars and joules, where prices and powers are known."""
    said = []
    if plan.usd_per_million_tokens is not None:
        said.append(f"{tokens_rate(plan.usd_per_million_tokens)} USD per million output tokens")
    if plan.energy_j_per_token is not None:
        said.append(f"{tokens_rate(plan.energy_j_per_token)} J per output token at stated power")
    return said


def binding_sentences(plan: Plan) -> list[str]:
    """What held the answer back, and what it would be without and with 1 % more."""
    return [_binds(plan, item) for item in plan.binding]


def _binds(plan: Plan, item: BindingLimit) -> str:
    parts = []
    if item.without_output_tokens_per_s_per_device is not None:
        rate = number(item.without_output_tokens_per_s_per_device)
        parts.append(f"without it {rate} tokens/s/device")
    if item.one_percent_more_objective is not None and plan.objective_value:
        change = item.one_percent_more_objective / plan.objective_value - 1
        unit = objective_unit(plan)
        more = f"{change:+.2%} {unit}" if abs(change) > SMALL_CHANGE else f"no change in {unit}"
        parts.append(f"1 % more of it gives {more}")
    return f"{LIMIT[item.limit]} binds" + (f": {'; '.join(parts)}" if parts else "")


SMALL_CHANGE = 5e-5
"""A change that would be shown as 0.00 %."""


def objective_unit(plan: Plan) -> str:
    """Unit of a plan's objective value."""
    objective = plan.scenario.objective
    if objective == "latency":
        return "seconds a request"
    if plan.scenario.workload.request_rate is not None:
        return {"cost": "USD/h", "energy": "W"}.get(objective, "devices")
    return {"cost": "USD per million tokens", "energy": "J per token"}.get(
        objective, "output tokens/s"
    )


def pareto_headers(plan: Plan) -> list[str]:
    """Heads of the table of plans found by cuts."""
    return ["workers", "devices", objective_unit(plan), "TPOT ms", "TTFT ms", "tokens/s"]


def pareto_rows(plan: Plan) -> list[list[str]]:
    """One row a plan of the trade between objective and TPOT."""
    return [
        [_pools_text(item.pools), str(item.devices), number(item.objective_value, 4),
         number(item.tpot_s.typical * 1e3), number(item.ttft_s.typical * 1e3),
         number(item.output_tokens_per_s.typical)]
        for item in plan.pareto
    ]  # fmt: skip


def pareto_sentence(plan: Plan) -> str:
    """Whether the table is the whole trade."""
    if plan.pareto_complete:
        return "Every plan of the trade between objective and TPOT, each found by a cut."
    return "The trade goes on: ask for more with pareto."


def proof_sentence(plan: Plan) -> str:
    """What the solver proves."""
    proof = plan.proof
    return (
        f"{proof.status}, gap {proof.gap_ratio:.2%}, over {proof.candidates_count:,} candidates "
        f"({proof.columns_count} undominated columns)"
    )


def memory_rows(pool: Pool) -> list[tuple[str, float, str]]:
    """Bucket label, share of capacity, size; largest first, empty ones left out."""
    use = pool.memory
    rows = [
        (label, getattr(use, field) / use.capacity_bytes, gib(getattr(use, field)))
        for field, label in BUCKET.items()
        if getattr(use, field) > 0
    ]
    return sorted(rows, key=lambda row: -row[1])


def rejected_sentences(plan: Plan) -> list[str]:
    """Which better-looking candidates lost, and why."""
    return [
        f"{ROLE[item.role]} {item.layout.label()} B{item.batch} "
        f"({number(item.output_tokens_per_s_per_device)} tokens/s/device): {item.reason}"
        for item in plan.rejected
    ]


def memory_sentences(plan: Plan) -> list[str]:
    """How full the fullest device of each pool is."""
    return [
        f"{ROLE[pool.role]} {gib(pool.memory.total_bytes)} of {gib(pool.memory.capacity_bytes)}"
        f" ({', '.join(f'{label} {size}' for label, _, size in memory_rows(pool)[:3])})"
        for pool in plan.pools
    ]


QUANTITY = {
    "ttft_s": ("TTFT ms", 1e3),
    "tpot_s": ("TPOT ms", 1e3),
    "itl_s": ("ITL ms", 1e3),
    "output_tokens_per_s_per_device": ("output tokens/s/device", 1.0),
    "total_tokens_per_s_per_device": ("total tokens/s/device", 1.0),
    "energy_j_per_token": ("energy J/output token", 1.0),
    "step_s": ("training step (s)", 1.0),
    "model_flop_per_s_per_device": ("model TFLOP/s/device", 1e-12),
}


def estimate_rows(answer: Estimated) -> list[list[str]]:
    """Label, typical, low, high and source of every quantity an estimate holds."""
    rows = []
    for field, (label, scale) in QUANTITY.items():
        value = getattr(answer, field)
        if value is not None:
            sides = (value.typical, value.low, value.high)
            rows.append([label, *(number(side * scale) for side in sides), value.source])
    return rows


def fit_sentence(memory: MemorySummary) -> str:
    """Whether a configuration fits, and what fills the device."""
    fits = "fits" if memory.total_bytes <= memory.capacity_bytes else "does not fit"
    return (
        f"memory {gib(memory.total_bytes)} of {gib(memory.capacity_bytes)}: {fits} "
        f"(weights {gib(memory.weights_bytes)}, KV cache {gib(memory.kv_bytes)}, activations "
        f"{gib(memory.activation_bytes)}, buffers {gib(memory.buffer_bytes)})"
    )
