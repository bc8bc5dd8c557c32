"""What is this response worth? Rewards and preferences for every dialect, and what happens when there is none."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from data.records import Comparison, Failure, ModelReward, Ranking, Response, Score, hashed
from labeler.server.grading import Grader
from labeler.server.metrics import Metrics
from labeler.server.options import Policy, Shaping
from labeler.server.shaping import reward, scored

LOG = logging.getLogger("rlaif.server")

GROUPS, GROUP, FRESH = 20_000, 64, 3600.0
"""Prompts whose rewards are remembered, for the mean of a group that came one by one; how many of each, and for how
many seconds: an old mean is no word about a policy that has moved on."""

SHARE = 0.6
"""Of the patience that the first model has, where a second one is asked after it."""


Scoring: TypeAlias = Grader[Response, Score] | Grader[Response, ModelReward]
"""What a task on a model gives single responses, or a trained reward model."""


@dataclass(frozen=True)
class Item:
    """One response to be rewarded. Those of one `group` are answers to one prompt, and stand in for one another."""

    row: Response
    group: str | None = None


@dataclass(frozen=True)
class Reward:
    """`reward` in [-1, 1] (a reward model's is not `bounded`), shaped and mixed; `scores` of each task. `source` says
    where it comes from."""

    reward: float
    scores: Mapping[str, Score | ModelReward]
    cached: bool = False
    source: Literal["model", "fallback", "group-mean"] = "model"
    bounded: bool = True

    @property
    def truncated(self) -> bool:
        """Whether a prompt was longer than the model reads, and was cut."""
        return any(each.truncated for each in self.scores.values())

    @property
    def unit(self) -> float:
        """In [0, 1], for those who filter by it. A reward model's is its chance against a response of reward 0."""
        if not self.bounded:
            return 0.5 * (1 + math.tanh(self.reward / 2))
        return min(max((self.reward + 1) / 2, 0.0), 1.0)


@dataclass
class _Memory:
    """A prompt's last rewards, each different response once, and when each of them came."""

    rewards: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    bounded: bool = True

    def add(self, content: str, found: Reward, now: float) -> None:
        self.rewards.pop(content, None)
        self.rewards[content] = found.reward, now
        self.bounded = found.bounded
        if len(self.rewards) > GROUP:
            del self.rewards[next(iter(self.rewards))]

    def mean(self, now: float) -> Reward | None:
        """The mean of those that are fresh; None where none is."""
        fresh = [reward for reward, at in self.rewards.values() if now - at <= FRESH]
        if not fresh:
            return None
        return Reward(math.fsum(fresh) / len(fresh), {}, source="group-mean", bounded=self.bounded)


@dataclass
class Core:
    """Asks each task's grader and mixes; `fallback` is asked where one fails, if the policy says so.

    A failure is never a number unless the operator chose one: `group-mean` gives the mean of the other rewards of the
    same prompt, `fallback` another model's. Where neither has one, it is a failure still.
    """

    graders: Mapping[str, Scoring]
    ranker: Grader[Comparison, Ranking] | None
    fallback: Mapping[str, Scoring]
    policy: Policy
    shaping: Shaping
    metrics: Metrics
    _means: dict[str, _Memory] = field(default_factory=dict[str, _Memory])

    @property
    def every(self) -> list[Scoring | Grader[Comparison, Ranking]]:
        ranker = [self.ranker] if self.ranker else []
        return [*self.graders.values(), *self.fallback.values(), *ranker]

    def start(self) -> None:
        for grader in self.every:
            grader.start()

    async def stop(self) -> None:
        await asyncio.gather(*(grader.stop() for grader in self.every))

    async def rewards(self, items: Sequence[Item], client: str, patience: float) -> list[Reward | Failure]:
        """One answer for each item, in order, within about `patience` seconds."""
        if len(items) == 1:
            found = [await self._one(items[0], client, patience)]
        else:
            found = await asyncio.gather(*(self._one(item, client, patience) for item in items))
        if self.policy == "group-mean":
            found = self._with_means(items, found)
        for each in found:
            self.metrics.rewarded(each.reward if isinstance(each, Reward) else None, _reason(each))
            if isinstance(each, Reward) and each.truncated:
                self.metrics.truncated()
            if isinstance(each, Failure):
                LOG.info("no reward: %s: %s", each.reason, each.message)
        return found

    async def preference(self, row: Comparison, client: str, patience: float) -> tuple[Ranking | Failure, bool]:
        """The order of the responses, and whether it was known already."""
        if self.ranker is None:
            message = "this task has no question about two responses"
            return Failure(id=row.id, stage="serve", reason="no_preferences", message=message), False
        found, known = await self.ranker.grade(row, client, patience)
        self.metrics.rewarded(None, found.reason if isinstance(found, Failure) else "model")
        if isinstance(found, Ranking) and found.truncated:
            self.metrics.truncated()
        return found, known

    async def _one(self, item: Item, client: str, patience: float) -> Reward | Failure:
        end = time.monotonic() + patience
        first = SHARE * patience if self.policy == "fallback" else patience
        found = await self._scored(self.graders, item.row, client, first)
        if isinstance(found, Failure) and self.policy == "fallback":
            left = max(0.0, end - time.monotonic())
            second = await self._scored(self.fallback, item.row, client, left)
            if isinstance(second, Reward):
                return Reward(second.reward, second.scores, second.cached, "fallback")
        return found

    async def _scored(
        self, graders: Mapping[str, Scoring], row: Response, client: str, patience: float
    ) -> Reward | Failure:
        if len(graders) == 1:
            ((name, grader),) = graders.items()
            answer, cached = await grader.grade(row, client, patience)
            return answer if isinstance(answer, Failure) else self._reward({name: answer}, row, cached=cached)
        answers = await asyncio.gather(*(grader.grade(row, client, patience) for grader in graders.values()))
        scores: dict[str, Score | ModelReward] = {}
        for name, (answer, _) in zip(graders, answers, strict=True):
            if isinstance(answer, Failure):
                return answer
            scores[name] = answer
        return self._reward(scores, row, cached=all(cached for _, cached in answers))

    def _reward(self, scores: Mapping[str, Score | ModelReward], row: Response, *, cached: bool) -> Reward | Failure:
        value = reward(scores, self.shaping)
        if not math.isfinite(value):
            return Failure(id=row.id, stage="serve", reason="nan", message="the reward is not a number")
        bounded = isinstance(next(iter(scores.values())), Score)  # a reward model is alone
        return Reward(value, scores, cached, bounded=bounded)

    def _with_means(self, items: Sequence[Item], found: Sequence[Reward | Failure]) -> list[Reward | Failure]:
        """The mean of what the same prompt's other responses got, in this request or shortly before it."""
        now = time.monotonic()
        groups = [_group(each) for each in items]
        for group, item, each in zip(groups, items, found, strict=True):
            if isinstance(each, Reward):
                memory = self._means.pop(group, None) or _Memory()
                memory.add(item.row.content, each, now)
                self._means[group] = memory
        while len(self._means) > GROUPS:
            del self._means[next(iter(self._means))]
        return [
            (memory.mean(now) or each) if isinstance(each, Failure) and (memory := self._means.get(group)) else each
            for group, each in zip(groups, found, strict=True)
        ]


def expected(found: Reward, temperature: float) -> float | None:
    """The score of 1 to 10 behind a reward; None for several tasks, a mean of others, or a reward model."""
    scores = list(found.scores.values())
    return scored(scores[0], temperature) if len(scores) == 1 and isinstance(scores[0], Score) else None


def _group(item: Item) -> str:
    """The prompt, and the group that the client named under it."""
    prompt = item.row.prompt
    texts = [prompt] if isinstance(prompt, str) else [f"{each.role}:{each.content}" for each in prompt]
    return hashed([item.group or "", *texts])


def _reason(found: Reward | Failure) -> str:
    return found.reason if isinstance(found, Failure) else found.source
