"""KV blocks of one rank: taken, given back, kept as a prefix cache until somebody needs them."""

from __future__ import annotations

from hwprofiles.errors import MoesaicError


class KvPool:
    """Blocks of `block_tokens` tokens; with `keep_prefixes`, finished prefixes stay until evicted.

    A prefix unit is one hash block of the trace (512 tokens in Mooncake's), so it spans several KV
    blocks. Units in use are pinned; idle ones are evicted, least recently used first and the tail
    of a prompt before its head, as vLLM's block pool does.

    Args:
        blocks: blocks that the rank has.
        block_tokens: tokens in a block.
        keep_prefixes: whether the prefix cache is on.
    """

    def __init__(self, blocks: int, block_tokens: int, *, keep_prefixes: bool = False) -> None:
        if blocks < 1 or block_tokens < 1:
            raise MoesaicError(
                "invalid", f"{blocks} KV blocks of {block_tokens} tokens; both must be 1 or more"
            )
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.keep_prefixes = keep_prefixes
        self._free = blocks
        self._unit_blocks = 0
        self._pins: dict[int, int] = {}
        self._idle: dict[int, None] = {}

    @property
    def available(self) -> int:
        """Blocks that can be taken now, idle prefixes included."""
        return self._free + len(self._idle) * self._unit_blocks

    @property
    def used(self) -> int:
        """Blocks that running sequences hold."""
        return self.blocks - self.available

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_tokens)

    def take(self, blocks: int) -> None:
        """Take blocks, evicting idle prefixes when the free ones do not reach.

        Raises:
            MoesaicError: `internal` when the caller did not check `available`.
        """
        while self._free < blocks:
            if not self._idle:
                raise MoesaicError("internal", f"{blocks} KV blocks asked, {self._free} free")
            unit = next(iter(self._idle))
            del self._idle[unit], self._pins[unit]
            self._free += self._unit_blocks
        self._free -= blocks

    def give(self, blocks: int) -> None:
        """Give blocks back."""
        self._free += blocks

    def match(self, prefix_ids: tuple[int, ...], unit_tokens: int) -> list[int]:
        """Find and pin the leading units that are cached."""
        self._set_unit(unit_tokens)
        found: list[int] = []
        for unit in prefix_ids:
            if unit not in self._pins:
                break
            found.append(unit)
        for unit in found:
            self._pins[unit] += 1
            self._idle.pop(unit, None)
        return found

    def keep(self, prefix_ids: tuple[int, ...]) -> list[int]:
        """Turn a computed prompt's private blocks into pinned units, those not cached already."""
        new = [unit for unit in prefix_ids if unit not in self._pins]
        for unit in new:
            self._pins[unit] = 1
        return new

    def release(self, units: list[int]) -> None:
        """Unpin units; those that nobody uses become idle, the tail first in line to go."""
        for unit in reversed(units):
            self._pins[unit] -= 1
            if not self._pins[unit]:
                self._idle[unit] = None

    def unit_blocks(self) -> int:
        """KV blocks of one prefix unit."""
        return self._unit_blocks

    def _set_unit(self, unit_tokens: int) -> None:
        if unit_tokens % self.block_tokens:
            raise MoesaicError(
                "invalid",
                f"prefix blocks of {unit_tokens} tokens do not divide into KV blocks of "
                f"{self.block_tokens}; choose block_tokens that divides {unit_tokens}",
            )
        self._unit_blocks = unit_tokens // self.block_tokens
