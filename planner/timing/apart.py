"""One pass when attention and experts have devices of their own: micro-batches alternate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError

Array = NDArray[np.float64]


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
    """Seconds of one pass, by `turns_s`.

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
    attention, experts, whole = (
        np.array([side]) for side in (layer.attention_s, layer.experts_s, layer.round_s)
    )
    return fixed_s + float(turns_s(attention, experts, whole, micro_batches, layers)[0])


def turns_s(
    attention_s: Array, experts_s: Array, round_s: Array, micro_batches: int, layers: int
) -> Array:
    """Seconds of passes: the busier side works without pause, or a round trip is waited for.

    A layer's period is the greatest of m attentions, m expert runs and one round trip; the last
    micro-batch's way to the experts and back is seen once (xDeepServe, arXiv:2508.02520).

    Args:
        attention_s: one micro-batch in one layer, [passes].
        experts_s: likewise.
        round_s: attention, the way there, experts, the way back.
        micro_batches: how many share the devices.
        layers: layers of a pass.
    """
    busiest = micro_batches * np.maximum(attention_s, experts_s)
    tail = np.where(busiest > round_s, round_s - attention_s, 0.0)
    return np.asarray(layers * np.maximum(busiest, round_s) + tail)
