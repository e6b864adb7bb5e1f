"""Parallelism as published tables write it, read as layouts.

Every reading ends in `tp·dp = moe_tp·moe_ep` on the devices of one worker, times `pp`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from hwprofiles.errors import MoesaicError

DEGREE = re.compile(r"\b(moeTP|DPA|TP|PP|EP|DP|DEP|DCP|MTP)(\d+)", re.IGNORECASE)
POOLS = re.compile(r"prefill: (\d+)x\((.*?)\) on (\d+) GPU; decode: (\d+)x\((.*?)\) on (\d+) GPU")
SHORT_POOLS = re.compile(r"P (\d*)x\((.*?)\) D (\d*)x\((.*?)(?: bs(\d*))?\)")


@dataclass(frozen=True)
class Layout:
    """How one worker is cut."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    moe_tp: int = 1
    moe_ep: int = 1

    @property
    def devices(self) -> int:
        """Devices of one worker."""
        return self.tp * self.dp * self.pp

    def fields(self) -> dict[str, int]:
        """Fields of an estimate point."""
        return asdict(self)


@dataclass(frozen=True)
class Reading:
    """One parallelism text: an aggregated layout, or a pool for each phase."""

    agg: Layout | None = None
    prefill: dict[str, int] | None = None
    decode: dict[str, int] | None = None
    mtp_tokens: int = 0
    notes: tuple[str, ...] = ()


def read_layout(text: str, devices: int | None) -> Reading:
    """Read a parallelism text.

    Args:
        text: such as "TP4 PP1 DPA1 moeTP2 EP2", "TP8 EP8 DPA=false", "EP32 DP32", "DEP4", or two
            pools.
        devices: devices of the whole deployment where stated.

    Raises:
        MoesaicError: `invalid`, with the reason.
    """
    if not text or "layout in submitter" in text or text.startswith(("see ", "second ", "wide ")):
        raise MoesaicError("invalid", "no layout stated")
    if " or " in text:
        raise MoesaicError("invalid", f"layout {text!r} names several")
    pools = POOLS.search(text)
    if pools:
        return _pools(text, pools)
    short = SHORT_POOLS.search(text)
    if short:
        return _short_pools(short)
    return _aggregated(text, devices)


def _degrees(text: str) -> dict[str, int]:
    found = {key.lower(): int(value) for key, value in DEGREE.findall(text)}
    if not found.keys() & {"tp", "ep", "dp", "dep"}:
        raise MoesaicError("invalid", f"layout {text!r} names no degree")
    return found


def _aggregated(text: str, devices: int | None) -> Reading:
    found = _degrees(text)
    if found.get("dcp", 1) > 1:
        raise MoesaicError("invalid", "decode context parallelism is not modelled")
    notes: tuple[str, ...] = ()
    layout = _layout(text, found)
    if devices and layout.devices != devices:
        layout, notes = _reconciled(layout, devices)
    return Reading(agg=layout, mtp_tokens=found.get("mtp", 0), notes=notes)


def _layout(text: str, found: dict[str, int]) -> Layout:
    if "dep" in found:
        return Layout(1, found.get("pp", 1), found["dep"], 1, found["dep"])
    spread = "DPA=true" in text or "attention-DP" in text
    tp, dp = found.get("tp", 1), found.get("dpa", found.get("dp", 1))
    if "tp" not in found and dp == 1:
        dp = found.get("ep", 1)
    if spread:
        tp, dp = 1, tp
    return _multiplied(tp, dp, found)


def _multiplied(tp: int, dp: int, found: dict[str, int]) -> Layout:
    """Undo a recorder that multiplied tp (or dp) by ep: 64 = 8 · 8 on one 8-device machine.

    Only where the text states more devices than moe_tp or moe_ep alone, both equal: TP64 moeTP8
    EP8, TP16 moeTP4 EP4. The same runs stand beside it as "tp8_ep8" in their ids.
    """
    ep, pp = found.get("ep", 1), found.get("pp", 1)
    moe_tp = found.get("moetp", max(tp * dp // ep, 1))
    if moe_tp == ep and ep in (4, 8) and tp * dp == ep * ep:
        return Layout(ep if tp > 1 else 1, pp, 1 if tp > 1 else ep, 1, ep)
    if moe_tp * ep != tp * dp:
        raise MoesaicError("invalid", f"tp {tp} · dp {dp} is not moe_tp {moe_tp} · moe_ep {ep}")
    return Layout(tp, pp, dp, moe_tp, ep)


def _reconciled(layout: Layout, devices: int) -> tuple[Layout, tuple[str, ...]]:
    if layout.moe_ep in (4, 8) and devices == layout.moe_ep**2:
        return layout, ("the table multiplies tp by ep",)
    if layout.devices > devices:
        return layout, ()
    if devices % layout.devices == 0:
        return layout, (f"{devices // layout.devices} workers side by side",)
    raise MoesaicError("invalid", f"layout of {layout.devices} on {devices} devices")


def _pools(text: str, found: re.Match[str]) -> Reading:
    count, inner, gpus = found.group(1, 2, 3)
    prefill = _pool(int(count), inner, int(gpus))
    count, inner, gpus = found.group(4, 5, 6)
    decode = _pool(int(count), inner, int(gpus))
    drafts = 0
    notes: tuple[str, ...] = ()
    if "spec=mtp" in text:
        drafts, notes = 1, ("one draft token taken; the table does not say how many",)
    return Reading(prefill=prefill, decode=decode, mtp_tokens=drafts, notes=notes)


def _pool(workers: int, inner: str, gpus: int) -> dict[str, int]:
    """The table writes TP1 EP1 for workers over several devices: the device count decides."""
    if workers < 1 or gpus % workers:
        raise MoesaicError("invalid", f"{gpus} devices for {workers} workers")
    each, spread = gpus // workers, "DPA=true" in inner
    ep = _degrees(inner).get("ep", 1)
    if spread:
        layout = Layout(1, 1, each, 1, each)
    else:
        ep = ep if ep > 1 and each % ep == 0 else 1
        layout = Layout(each, 1, 1, each // ep, ep)
    return {**layout.fields(), "workers": workers}


def _short_pools(found: re.Match[str]) -> Reading:
    pools = []
    for count, inner in (found.group(1, 2), found.group(3, 4)):
        degrees = _degrees(inner)
        tp, dp, ep = (degrees.get(key, 1) for key in ("tp", "dpa", "ep"))
        moe_tp = degrees.get("moetp", tp * dp // ep)
        if not count:
            raise MoesaicError("invalid", "number of prefill and decode workers not stated")
        if moe_tp * ep != tp * dp:
            raise MoesaicError("invalid", f"tp {tp} · dp {dp} is not moe_tp {moe_tp} · moe_ep {ep}")
        pools.append({**Layout(tp, 1, dp, moe_tp, ep).fields(), "workers": int(count)})
    if found.group(5):
        pools[1]["batch"] = int(found.group(5))
    return Reading(prefill=pools[0], decode=pools[1])
