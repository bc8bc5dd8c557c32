"""A trained reward model as a rater: `reward:DIR` of `rlaif score` and `rlaif serve`. No task is asked."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from data.records import Comparison, Failure, ModelReward, Prompt, Ranking, Response, fingerprint
from labeler.backend import Usage
from labeler.engine import AHEAD
from labeler.job import Ask
from labeler.journal import Journal
from labeler.opening import REWARD
from labeler.spending import Meter
from lm.rewards import Encoded, RewardModel

ROWS = 32
"""Rows of one call."""


class Rewarder:
    """Rewards single responses, and, by sigmoid of their differences, comparisons. Raises ModelError."""

    rows, calls, leave = ROWS, 1, False

    def __init__(self, name: str, *, dtype: str, device: str) -> None:
        self.name, self.meter = name, Meter()
        self._model = RewardModel(name.removeprefix(REWARD), dtype=dtype, device=device)
        self.digest = fingerprint(["reward", self._model.identity])
        self._one = Lock()
        self._threads = ThreadPoolExecutor(AHEAD)

    def asking(self, journal: Journal | None) -> Ask:  # noqa: ARG002
        """For a job: rewards are cheap, so no store of single answers stands before the model."""
        return self

    async def close(self) -> None:
        return None

    async def __call__(self, rows: Sequence[Response]) -> list[ModelReward | Failure]:
        """One reward or failure for each row, in order."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._rewarded, rows)

    async def rank(self, rows: Sequence[Comparison]) -> list[Ranking | Failure]:
        """Bradley-Terry as the model was trained: p[i][j] = sigmoid(r_i - r_j)."""
        single = [
            Response(id=row.id, prompt=row.prompt, response=response) for row in rows for response in row.responses
        ]
        found = iter(await self(single))
        return [self._ranking(row, [next(found) for _ in row.responses]) for row in rows]

    def _rewarded(self, rows: Sequence[Response]) -> list[ModelReward | Failure]:
        asked = [self._encoded(row) for row in rows]
        good = [each for each in asked if isinstance(each, Encoded)]
        try:
            with self._one:
                started = time.perf_counter()
                values = iter(self._model.rewards(good))
                seconds = time.perf_counter() - started
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            return [_failure(row.id, "out_of_memory", "the model's machine ran out of memory") for row in rows]
        share = seconds / max(1, len(rows))
        answers = [
            each if isinstance(each, Failure) else self._reward(row, each, next(values), share)
            for row, each in zip(rows, asked, strict=True)
        ]
        used = Usage(sum(each.size for each in good), 0, 0.0, seconds)
        self.meter.add(Meter(len(rows), len(rows) - len(good), used))
        return answers

    def _encoded(self, row: Response) -> Encoded | Failure:
        try:
            return self._model.encode(_turns(row.prompt), row.response)
        except ValueError as error:
            return _failure(row.id, "too_long" if "room" in str(error) else "bad_row", str(error))

    def _reward(self, row: Response, asked: Encoded, value: float, seconds: float) -> ModelReward | Failure:
        if not math.isfinite(value):
            return _failure(row.id, "nan", "the model gave no number")
        return ModelReward(
            id=row.id,
            reward=value,
            model=self.name,
            digest=self.digest,
            content=row.content,
            tokens_in=asked.size,
            seconds=seconds,
            truncated=asked.cut,
        )

    def _ranking(self, row: Comparison, found: Sequence[ModelReward | Failure]) -> Ranking | Failure:
        good = [each for each in found if isinstance(each, ModelReward)]
        if len(good) < len(found):
            return next(each for each in found if isinstance(each, Failure))
        rewards = [each.reward for each in good]
        return Ranking(
            id=row.id,
            order=tuple(sorted(range(len(rewards)), key=lambda at: -rewards[at])),
            strengths=tuple(rewards),
            p=tuple(tuple(_sigmoid(a - b) for b in rewards) for a in rewards),
            mass=1.0,
            model=self.name,
            task="",
            digest=self.digest,
            content=row.content,
            tokens_in=sum(each.tokens_in for each in good),
            tokens_out=0,
            usd=0.0,
            seconds=sum(each.seconds for each in good),
            method="logprobs",
            truncated=any(each.truncated for each in good),
        )


def _turns(prompt: Prompt) -> list[tuple[str, str]]:
    if isinstance(prompt, str):
        return [("user", prompt)]
    return [(message.role, message.content) for message in prompt]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _failure(row: str, reason: str, message: str) -> Failure:
    return Failure(id=row, stage="score", reason=reason, message=message)
