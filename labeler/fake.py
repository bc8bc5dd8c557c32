"""A labeler without a model, for tests of what is built around one: `fake:first`, `fake:longer`, ...

Each rule maps a request to what the model would have said. It ships with the project so that users need no stub.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.records import fingerprint
from labeler.backend import BackendError, Choose, Failed, Likelihoods, Text, Usage, Write
from labeler.prices import FREE, Price

Rule = Callable[[Choose], Sequence[float]]


@dataclass(frozen=True)
class FakeBackend:
    """Answers by a rule. `limit` is the context in characters, counted as tokens; None has no end."""

    name: str
    rule: Rule
    rows: int = 8
    calls: int = 1
    samples: int = 1
    price: Price | None = FREE
    logprobs: bool = True
    limit: int | None = None
    seconds: float = 0.0
    rationale: str = " The first keeps what matters; the second wanders."

    @property
    def identity(self) -> str:
        return self.name

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        await asyncio.sleep(self.seconds)
        return [self._one(request) for request in requests]

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        await asyncio.sleep(self.seconds)
        return [Text(self.rationale, Usage(len(each.prompt.plain()), len(self.rationale), 0.0)) for each in requests]

    def overflow(self, request: Choose | Write) -> int:
        return 0 if self.limit is None else max(0, len(request.prompt.plain()) - self.limit)

    async def count(self, request: Choose | Write) -> int | None:
        return len(request.prompt.plain())

    async def close(self) -> None:
        return None

    def _one(self, request: Choose) -> Likelihoods | Failed:
        values = tuple(self.rule(request))
        if any(math.isnan(value) for value in values):
            return Failed("nan", "the model gave NaN in place of log-probabilities")
        return Likelihoods(values, Usage(len(request.prompt.plain()), 1, 0.0))


def always(index: int) -> Rule:
    """Likes the option at `index`, whatever is shown: the labeler with nothing but position bias."""

    def rule(request: Choose) -> list[float]:
        return [math.log(0.9) if at == index else math.log(0.1 / (len(request.options) - 1)) for at in _places(request)]

    return rule


def shown(request: Choose) -> tuple[str, str]:
    """The two responses of a pairwise prompt, in the order in which they are shown."""
    found = re.search(
        r"(?:Summary|Response) 1 - (.*?)\n\n(?:Summary|Response) 2 - (.*)", request.prompt.after, re.DOTALL
    )
    return (found[1], found[2]) if found else ("", "")


def by(worth: Callable[[str], float], bias: float = 0.0) -> Rule:
    """Prefers what is worth more: logit of "1" = worth(first) - worth(second) + bias."""

    def rule(request: Choose) -> list[float]:
        if len(request.options) != 2:
            return [-math.log(len(request.options))] * len(request.options)
        first, second = shown(request)
        logit = worth(first) - worth(second) + bias
        return [-math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))]

    return rule


def _places(request: Choose) -> range:
    return range(len(request.options))


def _noise(request: Choose) -> list[float]:
    weights = [1 + int(fingerprint([request.prompt.plain(), option], 8), 16) for option in request.options]
    return [math.log(weight / sum(weights)) for weight in weights]


def _longer(text: str) -> float:
    return min(len(text), 2000) / 100


RULES: dict[str, Rule] = {
    "first": always(0),
    "second": always(1),
    "longer": by(_longer),
    "noise": _noise,
    "uniform": lambda request: [-math.log(len(request.options))] * len(request.options),
    "nan": lambda request: [math.nan] * len(request.options),
}


def open_fake(rule: str) -> FakeBackend:
    """`first`, `second`, `longer`, `noise`, `uniform` or `nan`. Raises BackendError."""
    if rule not in RULES:
        raise BackendError(f"fake:{rule}: unknown rule; there are {', '.join(RULES)}")
    return FakeBackend(f"fake:{rule}", RULES[rule])
