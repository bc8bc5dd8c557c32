"""What do the top log-probabilities of a generated token say about a few options? Pure.

A server tells the likeliest tokens of a place, at most 20 of them. "1", " 1" and "▁1" write the same answer, so their
probabilities add up; tokens are compared by their bytes, which no tokenizer's spelling changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

MOST = 20
"""As many as OpenAI and vLLM give."""

NEVER = -9999.0
"""The mark for "very unlikely" (OpenAI's API reference, `logprob`; vLLM writes it for minus infinity)."""

ROUNDING = 1e-3
"""How far above 0 a log-probability may be."""

LOST = 0.01
"""More probability than this does not get lost by rounding."""

Place = Mapping[bytes, float]
"""The likeliest tokens of one place, as bytes without a leading blank, and their log-probabilities."""


class UnusableError(ValueError):
    """An answer whose log-probabilities say nothing about the options."""


def place(tokens: Iterable[tuple[bytes, float]]) -> Place:
    """The likeliest tokens, as (bytes, log-probability). Raises UnusableError for values that cannot be true."""
    found: dict[bytes, float] = {}
    dropped = False
    for token, value in tokens:
        if not value <= ROUNDING:  # NaN too
            raise UnusableError(f"{value} is not a log-probability")
        if value <= NEVER:
            dropped = True
            continue
        text = token.removeprefix(b" ") or token
        found[text] = float(np.logaddexp(found[text], value)) if text in found else value
    if dropped and _left(found) > LOST:
        # What comes next in the list must be the likeliest of what is left over, not next to impossible.
        raise UnusableError(f"tokens are marked impossible where {_left(found):.0%} of the probability is left over")
    return found


def bound(tops: Place) -> float:
    """The most that a token can have which is not listed: no more than the least of the list, nor than what is left."""
    return min(0.0, *tops.values(), log(_left(tops)))


def chance(tops: Place, token: str) -> float:
    """The probability of one token; 0 where it is not listed."""
    return min(1.0, math.exp(tops.get(token.encode(), -math.inf)))


def log(chance: float) -> float:
    """The logarithm, with that of 0 as minus infinity."""
    return math.log(chance) if chance > 0 else -math.inf


def _left(tops: Place) -> float:
    """The probability that the list leaves to all other tokens."""
    return max(0.0, 1 - math.fsum(map(math.exp, tops.values())))
