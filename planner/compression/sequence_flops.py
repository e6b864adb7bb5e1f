"""FLOPs of whole sequences through an encoder-decoder: what M-SMoE's tables count."""

from __future__ import annotations

from planner.moe_model import DenseFfn, GqaAttention, LayerKind, MoeFfn, MoeModel
from planner.parameters import dense_parameters, expert_parameters

MULTIPLY_ADD_FLOPS = 2


def sequence_flops(
    model: MoeModel, input_tokens: int, output_tokens: int, routed_ratio: dict[int, float] | None
) -> float:
    """FLOPs to read `input_tokens` and write `output_tokens`, one sequence.

    Encoder layers see the input; decoder layers see the output and, across, the input's keys and
    values. Every pair of tokens counts in attention, as the published tables do.

    Args:
        model: an encoder-decoder model.
        input_tokens: tokens the encoder reads.
        output_tokens: tokens the decoder writes.
        routed_ratio: work of a routed layer over a whole expert's, by layer index; none: one.
    """
    total = 0.0
    order = [run.kind for run in model.layers for _ in range(run.count)]
    for index, name in enumerate(order):
        kind = model.kinds[name]
        own = input_tokens if kind.encoder else output_tokens
        ratio = (routed_ratio or {}).get(index, 1.0)
        total += own * _ffn(kind, model.hidden, ratio)
        total += _attention(kind, model.hidden, own, own)
        if kind.cross_attention:
            total += _attention(kind, model.hidden, own, input_tokens)
    return total + MULTIPLY_ADD_FLOPS * output_tokens * model.vocab * model.hidden


def _ffn(kind: LayerKind, hidden: int, ratio: float) -> float:
    if isinstance(kind.ffn, MoeFfn):
        return MULTIPLY_ADD_FLOPS * kind.ffn.top_k * expert_parameters(kind.ffn, hidden) * ratio
    if isinstance(kind.ffn, DenseFfn):
        return MULTIPLY_ADD_FLOPS * dense_parameters(kind.ffn, hidden)
    return 0.0


def _attention(kind: LayerKind, hidden: int, queries: int, keys: int) -> float:
    part = kind.attention
    if not isinstance(part, GqaAttention):
        return 0.0
    inner = part.heads * part.head_dim
    cached = part.kv_heads * (part.head_dim + part.value_dim)
    projections = hidden * (queries * 2 * inner + keys * cached)
    scores = queries * keys * 2 * inner
    return MULTIPLY_ADD_FLOPS * float(projections + scores)
