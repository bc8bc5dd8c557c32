"""What would a job ask, and cost? A dry run: the whole path of some rows up to the model, which is not asked."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from data.errors import RlaifError
from data.records import Comparison, Failure, Response
from labeler.backend import Choose, Failed, Likelihoods, Text, Usage, Write
from labeler.remote import prompt_tokens
from labeler.wrappers import Around
from prompts.render import Prompt, transcript

VOTE = 2
"""Tokens of a vote, with the one that ends it."""

STATED = 12
"""Tokens of a number in an object, with its name."""

PLACEHOLDER = "word "
"""Stands for what a model would write, one for each of its tokens."""


@dataclass
class Counted:
    """What would have been asked: the requests of one row after another."""

    requests: int = 0
    exact: bool = True
    first: Prompt | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Counting(Around):
    """Answers without asking: even likelihoods, texts of the greatest length; and counts. `grouped` says that samples
    of a prompt are one request where the backend can do that."""

    counted: Counted
    grouped: bool = True

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        even = [Likelihoods((-1.0,) * len(request.options)) for request in requests]
        await self._count(requests, 1)
        return list(even)

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        kinds = Counter(replace(request, seed=0) for request in requests)
        for request, samples in kinds.items():
            most = self.inner.samples if self.grouped else 1
            asked = -(-samples // most)  # a request may ask for several samples, and reads its prompt once
            await self._count([request] * asked, _written(request) * samples // asked)
        return [Text("1" if each.instruction else PLACEHOLDER * each.max_tokens) for each in requests]

    async def _count(self, requests: Sequence[Choose | Write], tokens_out: int) -> None:
        for request in requests:
            told = await self.inner.count(request)
            self.counted.exact = self.counted.exact and told is not None
            self.counted.first = self.counted.first or request.prompt
            self.counted.requests += 1
            self.counted.usage += Usage(prompt_tokens(request) if told is None else told, tokens_out)


def _written(request: Write) -> int:
    """Tokens of an answer, as far as they are known beforehand: a rationale may have as many as it is allowed."""
    if request.numbers:
        return STATED * len(request.numbers)
    return VOTE if request.instruction else request.max_tokens


@dataclass(frozen=True)
class Projection:
    """A job before it is run. `exact` says that the model's own tokenizer counted; where rationales are written, tokens
    and usd are what they are at most."""

    rows: int
    sampled: int
    requests: int
    tokens_in: int
    tokens_out: int
    usd: float | None
    exact: bool

    def json(self) -> dict[str, Any]:
        return {"dry_run": asdict(self)}

    def lines(self, *, cot: bool) -> list[str]:
        most = "at most " if cot else ""
        how = "by the model's own tokenizer" if self.exact else "from characters: the model's tokenizer is not known"
        cost = "no price is known: --price IN,OUT" if self.usd is None else f"{most}${self.usd:,.4f}"
        return [
            f"{self.rows:,} rows, {self.requests:,} requests; nothing was asked",
            f"{most}{self.tokens_in:,} tokens in, {self.tokens_out:,} out (counted on {self.sampled} rows, {how})",
            cost,
        ]


async def project(
    rows: Iterable[Comparison | Response | Failure],
    ask: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]],
    backend: Counting,
    sample: int,
) -> Projection:
    """Count on `sample` rows, drawn evenly from all; the rest by its length. Raises RlaifError where none is usable."""
    kept, lengths = _drawn((row for row in rows if not isinstance(row, Failure)), sample)
    if not kept:
        raise RlaifError("--dry-run: no row is usable; `rlaif check` says why")
    told: list[tuple[int, int, int]] = []
    for row in kept:
        before = (backend.counted.requests, backend.counted.usage)
        await ask([row])
        usage = backend.counted.usage
        told.append(
            (
                backend.counted.requests - before[0],
                usage.tokens_in - before[1].tokens_in,
                usage.tokens_out - before[1].tokens_out,
            )
        )
    requests = round(len(lengths) * sum(each[0] for each in told) / len(told))
    tokens_in, tokens_out = (
        _extrapolated([_length(row) for row in kept], [each[at] for each in told], lengths) for at in (1, 2)
    )
    usd = None if backend.price is None else backend.price.usd(tokens_in, tokens_out)
    return Projection(len(lengths), len(kept), requests, tokens_in, tokens_out, usd, backend.counted.exact)


def _drawn(rows: Iterable[Comparison | Response], size: int) -> tuple[list[Comparison | Response], list[int]]:
    """So many rows, each as likely as any other (reservoir sampling, always the same ones), and the length of all."""
    chance = random.Random(0)  # noqa: S311
    kept: list[Comparison | Response] = []
    lengths: list[int] = []
    for row in rows:
        lengths.append(_length(row))
        if len(kept) < size:
            kept.append(row)
        elif (place := chance.randrange(len(lengths))) < size:
            kept[place] = row
    return kept, lengths


def _length(row: Comparison | Response) -> int:
    texts = row.responses if isinstance(row, Comparison) else (row.response,)
    return len(transcript(row.prompt)) + sum(map(len, texts))


def _extrapolated(lengths: Sequence[int], told: Sequence[int], every: Sequence[int]) -> int:
    """The sum over all rows of a straight line in their length, through what was counted."""
    x, y = np.array(lengths, float), np.array(told, float)
    slope = float(np.cov(x, y, bias=True)[0, 1] / x.var()) if x.var() > 0 else 0.0
    slope = min(max(slope, 0.0), y.mean() / max(x.mean(), 1.0))  # what all prompts have in common is not below nothing
    return round(len(every) * y.mean() + slope * (sum(every) - len(every) * x.mean()))
