"""How likely is an answer of several tokens, from the likelihoods of single tokens? Pure; for every engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lm.rows import Parts, Tokens

Variants = tuple[tuple[Tokens, ...], ...]
"""For each option, the token strings that write it."""


@dataclass(frozen=True)
class Ask:
    """How likely is each option after a prompt? `cuts` are places within the prompt, rising, where others may part from
    it: what stands before the first is the same for a whole job.
    """

    prompt: Tokens
    variants: Variants
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(a >= b for a, b in pairwise((*self.cuts, len(self.prompt)))) or min(self.cuts, default=0) < 0:
            raise ValueError(f"cuts {self.cuts} do not rise within {len(self.prompt)} tokens")

    @property
    def parts(self) -> Parts:
        """What others may begin with too."""
        return tuple(self.prompt[a:b] for a, b in pairwise((0, *self.cuts)))


def places(asks: Iterable[Ask]) -> dict[Tokens, set[int]]:
    """The sequences after which log-probabilities are needed, and of which tokens."""
    found: dict[Tokens, set[int]] = {}
    for ask in asks:
        for tokens in _all(ask.variants):
            for depth, token in enumerate(tokens):
                found.setdefault(ask.prompt + tokens[:depth], set()).add(token)
    return found


def _all(variants: Variants) -> Iterable[Tokens]:
    return (tokens for option in variants for tokens in option)


def complete(ask: Ask, known: Mapping[tuple[Tokens, int], float]) -> list[float]:
    """Log-probability of each option's complete strings, by the chain rule over their tokens."""
    chance = {
        tokens: math.fsum(known[ask.prompt + tokens[:depth], token] for depth, token in enumerate(tokens))
        for tokens in set(_all(ask.variants))
    }
    with np.errstate(invalid="ignore"):  # NaN stays NaN: the caller's to tell
        return [
            float(np.logaddexp.reduce([_ends_here(tokens, chance) for tokens in option])) for option in ask.variants
        ]


def _ends_here(tokens: Tokens, chance: dict[Tokens, float]) -> float:
    """log P(tokens) less the probability of going on to a longer option: P("1") (1 - P("0" | "1"))."""
    own = chance[tokens]
    longer = [value for other, value in chance.items() if len(other) > len(tokens) and other[: len(tokens)] == tokens]
    share = math.fsum(math.exp(value - own) for value in longer) if own > -math.inf else 0.0
    return own + math.log1p(-share) if share < 1 else (-math.inf if share >= 1 else math.nan)
