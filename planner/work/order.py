"""Two orders of the same stages, CDAC and DCCA: what each holds, computes and sends.

CDAC: communicate, descend, ascend, communicate. DCCA: descend, communicate, communicate, ascend, so
narrowed tokens travel (BigMac, arXiv:2502.16927, equations 1 to 4 and Table 3).
"""

from __future__ import annotations

from dataclasses import dataclass

BF16_BYTES = 2
EXCHANGES = 4
"""All-to-alls of a training iteration and layer: dispatch and combine, forward and backward."""


@dataclass(frozen=True)
class FineGrained:
    """BigMac's notation: `tokens` is b·s, `ratio` the narrowing r of an expert."""

    layers: int
    hidden: int
    vocab: int
    experts: int
    top_k: int
    ratio: float
    ep: int
    tokens: int
    sequence: int


@dataclass(frozen=True)
class OrderCost:
    """Stored parameters, FLOP and bytes exchanged of one training iteration, all ranks together."""

    parameters: float
    flops: float
    exchange_bytes: float


def cdac(of: FineGrained) -> OrderCost:
    """Hidden-wide tokens travel (Table 3, fine-grained MoE).

    parameters = (4h² + 8h + (2rh² + 2rh)e)·l + (v + e + 2)h;
    FLOP = 12·b·s·l·h²·(2 + s/h + v/(2lh) + rk); bytes = 8·b·s·l·h·k·(ep − 1)/ep.
    """
    h, depth, r = of.hidden, of.layers, of.ratio
    expert = 2 * r * h * h + 2 * r * h
    blocks = (4 * h * h + 8 * h + expert * of.experts) * depth
    work = 2 + of.sequence / h + of.vocab / (2 * depth * h) + r * of.top_k
    return OrderCost(
        blocks + (of.vocab + of.experts + 2) * h,
        12 * of.tokens * depth * h * h * work,
        EXCHANGES * BF16_BYTES * exchange_elements(of) * depth / 2,
    )


def dcca(of: FineGrained) -> OrderCost:
    """Narrowed tokens travel (Table 3, BigMac): two shared projections more, r of the bytes.

    parameters + 2·r·l·h²; FLOP + 12·r·b·s·l·h²; bytes · r.
    """
    wide, square = cdac(of), of.ratio * of.layers * of.hidden**2
    return OrderCost(
        wide.parameters + 2 * square,
        wide.flops + 12 * of.tokens * square,
        wide.exchange_bytes * of.ratio,
    )


def exchange_elements(of: FineGrained) -> float:
    """Numbers sent in a layer's forward pass: C = 2·k·(ep − 1)/ep·b·s·h (equation 2)."""
    return 2 * of.top_k * (of.ep - 1) / of.ep * of.tokens * of.hidden


def sharded_elements(of: FineGrained, tp: int, *, narrowed: bool) -> float:
    """Numbers that a rank takes in and gives out among tp ranks in a layer's forward pass.

    Sequence parallelism gathers before attention and scatters after it, and does so again for the
    rows of the experts, which tp cuts, too (Megatron-LM, arXiv:2205.05198, section 4.2): 2 + 2k
    hidden-wide copies of the rank's own tokens. DCCA cuts its two projections as well, and narrows
    what the experts gather: 2 + 2 + 2rk copies.

    Args:
        of: the model and its batch; `ep` times `tp` ranks hold its tokens in equal parts.
        tp: ranks that cut attention, projections and experts.
        narrowed: DCCA instead of CDAC.
    """
    own = of.tokens / (of.ep * tp) * of.hidden
    copies = 4 + 2 * of.ratio * of.top_k if narrowed else 2 + 2 * of.top_k
    return own * (tp - 1) * copies
