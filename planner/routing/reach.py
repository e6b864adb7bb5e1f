"""How many ranks or nodes one token's experts lie on: what an exchange must send it to."""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np

from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeFfn
from planner.routing.draws import Shares, chances, drawn_choices
from planner.routing.load import Array

DRAWN = 64
"""Tokens of each drawn batch; a layer sees at least 64 of them, 58 layers 3,712."""


def parts_reached(shares: Array, moe: MoeFfn, parts: Array, *, uneven: bool = False) -> Array:
    """Expected distinct parts (ranks or nodes) that hold a token's experts, mean over layers.

    Experts lie in order, equally many a part. Equal shares with free top-k are exact
    (hypergeometric); skewed shares and groups are drawn, to about 0.3 % of the value.

    Args:
        shares: [layers, experts], rows sum to one.
        moe: the expert block; `group_limited` keeps a token to its best groups.
        parts: ranks or nodes over which experts spread, [candidates].
        uneven: some parts may hold one expert more (copies fill them up).

    Returns:
        [candidates], between 1 and min(parts, top_k).

    Raises:
        MoesaicError: `invalid` when a number of parts does not divide the experts.
    """
    wanted, where = np.unique(np.asarray(parts, dtype=int), return_inverse=True)
    table = Shares.of(shares)
    found = np.array([_reached(table, moe, int(count), uneven) for count in wanted], dtype=float)
    return found[where.reshape(-1)]


@lru_cache(maxsize=1024)
def _reached(table: Shares, moe: MoeFfn, parts: int, uneven: bool) -> float:  # noqa: FBT001
    divides = moe.experts % max(parts, 1) == 0
    if parts < 1 or not (divides or uneven):
        raise MoesaicError(
            "invalid", f"{parts} ranks or nodes do not divide {moe.experts} experts", "/moe_ep"
        )
    shares = table.array()
    if divides and moe.router == "top_k" and np.ptp(shares) == 0:
        missed = comb(moe.experts - moe.experts // parts, moe.top_k) / comb(moe.experts, moe.top_k)
        return parts * (1 - missed)
    chosen = drawn_choices(table, moe, DRAWN, limited=moe.router == "group_limited")
    parts = min(parts, moe.experts)  # more parts hold one expert each or none
    starts = -(
        -np.arange(parts) * moe.experts // parts
    )  # of part i: the first e with e·parts // experts = i
    reached = np.logical_or.reduceat(chosen, starts, axis=-1)
    return float(reached.sum(axis=-1).mean())


def experts_touched(shares: Array, moe: MoeFfn, tokens: Array) -> Array:
    """Expected experts of a layer that a batch touches at all, mean over layers, [batches].

    Each expert is missed by all tokens with (1 - chance) to the power of their number.
    """
    chance = np.minimum(chances(Shares.of(shares), moe), 1.0)
    missed = (1 - chance)[None] ** np.asarray(tokens, dtype=float)[:, None, None]
    return np.asarray((1 - missed).sum(axis=2).mean(axis=1))
