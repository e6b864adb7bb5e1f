"""How uneven counted or chosen load is across devices: busiest over mean, Imbalance Score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeFfn
from planner.routing.draws import DRAWS, Shares, chances, drawn_counts
from planner.routing.load import Array

DRAWN_NUMBERS = 30_000_000
"""Random numbers of all drawn batches together at most."""


def device_counts(counts: Array, devices: int) -> Array:
    """Loads of devices that hold equally many experts each, in order, [..., devices].

    Raises:
        MoesaicError: `invalid` for negative or non-finite loads, or devices that do not divide.
    """
    values = np.asarray(counts, dtype=float)
    if not np.isfinite(values).all() or (values < 0).any():
        raise MoesaicError("invalid", "loads are finite numbers of 0 or more", "/counts")
    if devices < 1 or values.shape[-1] % devices:
        raise MoesaicError(
            "invalid", f"{devices} devices do not divide {values.shape[-1]} experts", "/devices"
        )
    summed: Array = values.reshape(*values.shape[:-1], devices, -1).sum(axis=-1)
    return summed


def max_over_mean(counts: Array, devices: int) -> Array:
    """Busiest device's load over the mean, one value a layer; layers without load give 1.

    Args:
        counts: [layers, experts].
        devices: devices that hold equally many experts each, in order.
    """
    loads = device_counts(counts, devices)
    mean = loads.mean(axis=-1)
    return np.where(mean > 0, loads.max(axis=-1) / np.where(mean > 0, mean, 1.0), 1.0)


def imbalance_score(loads: Array, tokens: float) -> Array:
    """Imbalance Score: (max - min of device loads) / tokens (Pangu Pro MoE, arXiv:2505.21411).

    Args:
        loads: token-expert pairs of each device, [..., devices].
        tokens: tokens of the batch.
    """
    return np.asarray((loads.max(axis=-1) - loads.min(axis=-1)) / tokens)


def expected_imbalance_score(
    shares: Array, moe: MoeFfn, devices: int, tokens: int
) -> tuple[float, float]:
    """Mean Imbalance Score of drawn batches, and its standard error.

    Batches too large to draw scale the deviations of smaller ones by the square root of the size.

    Args:
        shares: [layers, experts]; more layers mean more drawn batches.
        moe: the expert block.
        devices: devices that hold equally many experts each, in order.
        tokens: tokens of a batch.
    """
    table = Shares.of(shares)
    drawn = min(tokens, max(DRAWN_NUMBERS // (max(len(shares), DRAWS) * moe.experts), 1))
    counts = drawn_counts(table, moe, drawn)
    if drawn < tokens:
        expected = chances(table, moe)[:, None, :]
        counts = tokens * expected + (counts - drawn * expected) * np.sqrt(tokens / drawn)
        counts = np.maximum(counts, 0.0)
    scores = imbalance_score(device_counts(counts, devices), tokens)
    return float(scores.mean()), float(scores.std() / np.sqrt(scores.size))


def chosen_max_over_mean(
    choices: NDArray[np.integer], experts: int, devices: int, tokens: int
) -> Array:
    """Truth from per-token choices: busiest over mean of each batch of tokens in order.

    Args:
        choices: experts of each token, [layers, tokens, top_k].
        experts: experts of a layer.
        devices: devices that hold equally many experts each, in order.
        tokens: tokens of a batch; the rest that fills no batch is left out.

    Returns:
        [layers, batches].
    """
    layers, held, top_k = choices.shape
    batches = held // tokens
    if batches < 1:
        raise MoesaicError("invalid", f"{held} tokens hold no batch of {tokens}", "/tokens")
    used = choices[:, : batches * tokens].astype(np.int64).reshape(layers, batches, -1)
    offset = np.arange(layers * batches).reshape(layers, batches, 1) * experts
    flat = np.bincount((used + offset).ravel(), minlength=layers * batches * experts)
    loads = device_counts(flat.reshape(layers, batches, experts).astype(float), devices)
    return np.asarray(loads.max(axis=-1) * devices / (tokens * top_k))
