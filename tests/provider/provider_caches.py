"""Prompt caches: what was asked before, by blocks of 128 tokens (OpenAI) or by breakpoints (Anthropic)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from provider_answers import TOKEN, Block

BLOCK = 128
"""Tokens."""

FULL = 500_000
"""So many prefixes are kept; then all are forgotten, so that a long run needs no more memory."""


@dataclass
class Caches:
    prefixes: set[int] = field(default_factory=set[int])

    def leading(self, model: str, text: str) -> int:
        """Tokens of the leading blocks that were seen before; from now on all of these are."""
        found, leading, chain = 0, True, hash(model)
        for start in range(0, len(text) - BLOCK * TOKEN + 1, BLOCK * TOKEN):
            chain = hash((chain, text[start : start + BLOCK * TOKEN]))
            leading = leading and chain in self.prefixes
            found += leading
            if not leading:
                self._keep(chain)
        return found * BLOCK

    def marked(self, model: str, text: str, blocks: Sequence[Block], minimum: int) -> tuple[int, int, str]:
        """Tokens that were read from the cache, tokens that are written to it, and for how long."""
        places = [at for at, block in enumerate(blocks) if block.ttl and block.tokens >= minimum]
        if not places:
            return 0, 0, "5m"
        keys = [hash((model, text[: block.end])) for block in blocks[: places[-1] + 1]]
        read = max((block.tokens for block, key in zip(blocks, keys, strict=False) if key in self.prefixes), default=0)
        for at in places:
            self._keep(keys[at])
        last = blocks[places[-1]]
        return read, last.tokens - read, last.ttl or "5m"

    def _keep(self, prefix: int) -> None:
        if len(self.prefixes) >= FULL:
            self.prefixes.clear()
        self.prefixes.add(prefix)
