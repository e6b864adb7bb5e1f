"""One pass when attention and experts have devices of their own: micro-batches alternate."""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles.errors import MoesaicError


@dataclass(frozen=True)
class LayerSeconds:
    """One micro-batch in one layer: attention, the way there, experts, the way back."""

    attention_s: float
    out_s: float
    experts_s: float
    back_s: float

    @property
    def round_s(self) -> float:
        """From a micro-batch's attention to its next layer's."""
        return self.attention_s + self.out_s + self.experts_s + self.back_s


def apart_pass_s(
    layer: LayerSeconds, layers: int, micro_batches: int, fixed_s: float = 0.0
) -> float:
    """Seconds of a pass: the busier side works without pause, or a round trip is waited for.

    A layer's period is the greatest of m attentions, m expert runs and one round trip; the last
    micro-batch's way to the experts and back is seen once (xDeepServe, arXiv:2508.02520).

    >>> layer = LayerSeconds(0.7e-3, 0.172e-3, 0.12e-3, 0.193e-3)
    >>> round(apart_pass_s(layer, layers=61, micro_batches=2, fixed_s=7e-3) * 1e3, 1)
    92.9

    Args:
        layer: seconds of one micro-batch.
        layers: MoE layers.
        micro_batches: how many share the devices.
        fixed_s: head, sampling and what else a pass costs once.

    Raises:
        MoesaicError: `invalid` for no layers or micro-batches.
    """
    if layers < 1 or micro_batches < 1:
        raise MoesaicError("invalid", f"{layers} layers, {micro_batches} micro-batches: at least 1")
    busiest = micro_batches * max(layer.attention_s, layer.experts_s)
    period = max(busiest, layer.round_s)
    tail = 0.0 if period == layer.round_s else layer.round_s - layer.attention_s
    return fixed_s + layers * period + tail
