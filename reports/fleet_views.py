"""A fleet's answer turned into exactly what a page or a terminal says."""

from __future__ import annotations

from planner.fleet_plan import FleetPlan, MachineUse
from planner.quantities import Estimate
from reports.reason_views import reason_sentences
from reports.views import ROLE, number

CLASS_HEADERS = ["class", "model", "asked req/s", "served req/s", "served", "TTFT ms", "TPOT ms"]
POOL_HEADERS = ["class", "workers", "machine", "devices", "req/s a worker", "TTFT ms", "TPOT ms"]
MACHINE_HEADERS = ["machine", "devices", "in use", "by"]


def title(plan: FleetPlan) -> str:
    """The question in a line."""
    machines = ", ".join(machine.cluster.name for machine in plan.fleet.machines)
    classes = len(plan.classes)
    return f"{classes} class{'es' * (classes > 1)} of traffic on {machines}"


def headline(plan: FleetPlan) -> str:
    """The answer in one sentence."""
    served = f"{plan.worst_served_ratio:.1%} of every class's demand"
    if plan.worst_served_ratio > 1 - 1e-6:
        served = "every class's whole demand"
    return (
        f"{served} is served on {plan.devices} of {sum(m.devices for m in plan.machines)} devices "
        f"with {plan.configurations} configurations: {number(plan.output_tokens_per_s)} output "
        "tokens/s"
    )


def _ms(estimate: Estimate | None) -> str:
    """Typical value in ms with the far side of its interval."""
    if estimate is None or not estimate.typical:
        return "–"
    return f"{number(estimate.typical * 1e3)} (≤ {number(estimate.high * 1e3)})"


def class_rows(plan: FleetPlan) -> list[list[str]]:
    """One row a class."""
    return [
        [one.name, one.model, number(one.demand_request_rate), number(one.served_request_rate),
         f"{one.served_ratio:.1%}", _ms(one.ttft_s), _ms(one.tpot_s)]
        for one in plan.classes
    ]  # fmt: skip


def pool_rows(plan: FleetPlan) -> list[list[str]]:
    """One row a configuration in use."""
    return [
        [one.name, f"{pool.workers} × {ROLE[pool.role]} {pool.layout.label()} B{pool.batch}",
         pool.machine, str(pool.workers * pool.devices_per_worker),
         number(pool.request_rate.typical), _ms(pool.ttft_s), _ms(pool.tpot_s)]
        for one in plan.classes
        for pool in one.pools
    ]  # fmt: skip


def machine_rows(plan: FleetPlan) -> list[list[str]]:
    """One row a machine."""
    return [
        [use.machine, str(use.devices), str(use.used_devices),
         ", ".join(f"{name} {count}" for name, count in use.used_by.items()) or "nobody"]
        for use in plan.machines
    ]  # fmt: skip


def machine_bar(use: MachineUse) -> tuple[str, list[tuple[str, float, str]]]:
    """Label of a machine's bar, and its classes as label, share and size."""
    parts = [
        (name, count / use.devices, f"{count} device{'s' * (count > 1)}")
        for name, count in use.used_by.items()
    ]
    return f"{use.machine}: {use.used_devices} of {use.devices} devices in use", parts


def cost_sentences(plan: FleetPlan) -> list[str]:
    """Dollars and watts, where known."""
    said = []
    if plan.usd_per_hour is not None and plan.usd_per_million_tokens is not None:
        said.append(f"{number(plan.usd_per_hour)} USD/h, {number(plan.usd_per_million_tokens)} USD "
                    "per million output tokens")  # fmt: skip
    if plan.power_w is not None and plan.energy_j_per_token is not None:
        said.append(f"{number(plan.power_w)} W at stated power, {number(plan.energy_j_per_token)} "
                    "J per output token")  # fmt: skip
    return said


AIM = {"served": "worst served share", "devices": "devices in use", "cost": "USD/h",
       "energy": "watts"}  # fmt: skip


def reason_lines(plan: FleetPlan) -> list[str]:
    """What held the fleet back, what more of it gives, and why the next best lost."""
    return reason_sentences(plan, plan.objective_value, AIM[plan.aim])


def proof_sentence(plan: FleetPlan) -> str:
    """What the solver proves."""
    proof = plan.proof
    part = ""
    if plan.solved_columns_count < proof.columns_count:
        part = f", {plan.solved_columns_count} of least reduced cost in whole numbers"
    flag = "" if proof.status == "optimal" else "; better ones within the gap were not ruled out"
    return (
        f"{proof.status}, gap {proof.gap_ratio:.2%} over {proof.columns_count:,} columns of "
        f"{proof.candidates_count:,} candidates{part}{flag}"
    )
