"""Examples as tokens, and which of them one update sees: everything follows from the seed and the update's number."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from data.records import Failure, Prompt, hashed
from lm.chat import Encoder
from lm.rows import Tokens
from trainer.examples import Example, Pair


@dataclass(frozen=True)
class Row:
    """A prompt's tokens and those of its answers; what is known of which answer is better."""

    id: str
    prompt: Tokens
    answers: tuple[Tokens, ...]
    pairs: tuple[Pair, ...] = ()
    cut: bool = False
    """Whether the prompt lost its beginning."""
    left_out: int = 0
    """Responses that were too long."""

    @property
    def size(self) -> int:
        """The tokens that a model computes for it."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def key(self) -> str:
        """A fingerprint of what a model is asked by it."""
        return hashed([repr(each) for each in (self.prompt, *self.answers)], 24)


R = TypeVar("R", bound=Row)
T = TypeVar("T")


def encode(
    examples: Iterable[Example], encoder: Encoder, *, most: int, response: int | None, failures: list[Failure]
) -> list[Row]:
    """Rows of at most `most` tokens for each prompt with any one answer. Prompts are cut at their beginning. A response
    that leaves no room for one, or is longer than `response`, is left out with its pairs; where nothing is left, the
    row is a failure.
    """
    rows: list[Row] = []
    for example in examples:
        try:
            rows.append(_row(example, encoder, most, response))
        except ValueError as error:
            failures.append(Failure(id=example.id, stage="train", reason="too_long", message=str(error)))
    return rows


def _row(example: Example, encoder: Encoder, most: int, response: int | None) -> Row:
    """Raises ValueError where nothing fits."""
    said = turns(example.prompt)
    roles = [role for role, _ in said]
    answers = [encoder.answer(text, roles) for text in example.responses]
    room = most - len(encoder.fitted([(role, "") for role in roles], most)[0])
    limit = room if response is None else min(response, room)
    fits = {at for at, each in enumerate(answers) if len(each) <= limit}
    pairs = [pair for pair in example.pairs if {pair.first, pair.second} <= fits]
    kept = sorted({at for pair in pairs for at in (pair.first, pair.second)}) if example.pairs else sorted(fits)
    if not kept:
        longest = max(map(len, answers))
        if response is not None and longest > response:
            raise ValueError(f"a response has more than {response} tokens (data.max_response)")
        if longest >= most:
            raise ValueError(f"a response alone has {most} tokens or more (data.max_tokens)")
        raise ValueError("no room is left for the prompt (data.max_tokens)")
    prompt, cut = encoder.fitted(said, most - max(len(answers[at]) for at in kept))
    moved = tuple(replace(pair, first=kept.index(pair.first), second=kept.index(pair.second)) for pair in pairs)
    return Row(example.id, prompt, tuple(answers[at] for at in kept), moved, cut, len(answers) - len(fits))


def batch(rows: Sequence[T], size: int, number: int, seed: int) -> list[T]:
    """The rows of update `number`, from 0: each epoch has its own order, and an update may begin the next one."""
    found: list[T] = []
    for at in range(number * size, (number + 1) * size):
        epoch, place = divmod(at, len(rows))
        found.append(rows[_order(len(rows), seed, epoch)[place]])
    return found


def updates(count: int, size: int, epochs: float) -> int:
    """How many updates see every row `epochs` times, the last one begun included."""
    return max(1, math.ceil(round(count * epochs, 6) / size))  # 100 * 1.1 is a little more than 110


def pieces(rows: Sequence[R], tokens: int, multiple: int = 1) -> list[list[R]]:
    """Split an update's rows into passes of at most `tokens` each where rows allow, as even as can be, in a number that
    `multiple` divides (some may be empty). What the update learns does not depend on the split.
    """
    total = sum(row.size for row in rows)
    count = max(1, -(-total // tokens))
    ordered = sorted(rows, key=lambda row: -row.size)
    while True:
        bins = _even(ordered, -(-count // multiple) * multiple)
        # A row that is too large by itself stands alone: no number of passes makes it smaller.
        if all(len(each) <= 1 or sum(row.size for row in each) <= tokens for each in bins):
            return bins
        count = len(bins) + 1


def _even(ordered: Sequence[R], count: int) -> list[list[R]]:
    """The longest first, each to the emptiest."""
    bins: list[list[R]] = [[] for _ in range(count)]
    filled = [(0, at) for at in range(count)]
    for row in ordered:
        size, at = heapq.heappop(filled)
        bins[at].append(row)
        heapq.heappush(filled, (size + row.size, at))
    return bins


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)  # noqa: S311  an order, no secret
    return order


def turns(prompt: Prompt) -> list[tuple[str, str]]:
    """A prompt as (role, content)."""
    if isinstance(prompt, str):
        return [("user", prompt)]
    return [(message.role, message.content) for message in prompt]
