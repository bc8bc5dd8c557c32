"""Reinforced self-training: a round grows a set of samples, then improves on ever better parts of it (Gulcehre et al.
2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from trainer.config import Rest, TrainingError
from trainer.experience import Lesson, Method, Players, Round
from trainer.ppo import Order
from trainer.rollouts import Group, Sample
from trainer.rows import Row
from trainer.sft import sft


def rest(players: Players, config: Rest, batch: int, order: Order) -> Method:
    """Grow is the round's sampling; each threshold is one Improve step, a pass at a lower rate."""

    def prepare(number: int, groups: Sequence[Group]) -> Round:
        told = config.kind == "absolute" or _apart(groups, config)
        steps = [improved(groups, config, at) if told else [] for at in range(len(config.thresholds))]
        rewards = [each for group in groups for each in group.rewards]
        metrics = {"reward": math.fsum(rewards) / len(rewards)}
        metrics |= {f"kept_{at}": float(len(rows)) for at, rows in enumerate(steps)}

        def lessons() -> Iterator[Lesson]:
            for at, rows in enumerate(steps if told else ()):
                ordered = [rows[place] for place in order(len(rows), number, at)]
                batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
                yield Lesson(iter(batches), config.decay**at)

        return Round(lessons(), metrics)

    return Method(sft(players.actor), prepare)


def _apart(groups: Sequence[Group], config: Rest) -> bool:
    """Whether there are better and worse ones: where all are equal, no part of them is better than the rest."""
    pools = [group.rewards for group in groups]
    pools = [[each for pool in pools for each in pool]] if config.kind == "percentile" else pools
    return any(min(pool) < max(pool) for pool in pools if pool)


def improved(groups: Sequence[Group], config: Rest, step: int) -> list[Row]:
    """One row a sample whose reward exceeds the step's threshold: the later the step, the fewer. Raises TrainingError
    where none does.
    """
    level = config.thresholds[step]
    pooled = (
        _above([each for group in groups for each in group.rewarded], level) if config.kind == "percentile" else level
    )
    rows: list[Row] = []
    for group in groups:
        least = _above(group.rewarded, level) if config.kind == "prompt" and group.rewarded else pooled
        rows += [
            Row(f"{group.question.id}#{at}", group.question.tokens, (each.tokens,))
            for at, each in enumerate(group.samples)
            if each.reward is not None and each.reward > least
        ]
    if not rows:
        raise TrainingError(
            f"algorithm.thresholds {level:g} ({config.kind}): no response has more; take a lower one, or more"
            " rollout.samples"
        )
    return rows


def _above(samples: Sequence[Sample], part: float) -> float:
    """What the reward of all but a `part` of the samples exceeds: the highest of those that are left out, so that of
    equal ones at the edge none stays. The best always do, unless all are equal.
    """
    ordered = sorted(each.reward for each in samples if each.reward is not None)
    left_out = math.floor(part * len(ordered))
    edge = ordered[left_out - 1] if left_out else -math.inf
    lesser = [each for each in ordered if each < ordered[-1]]
    return min(edge, lesser[-1]) if lesser else edge
