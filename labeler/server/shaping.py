"""From scores to a reward: how sharp the distribution is read, how several tasks become one number. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from data.records import ModelReward, Score
from labeler.server.options import Shaping
from prompts import answers


def scored(score: Score, temperature: float) -> float:
    """The expectation over the ten scores, at a temperature."""
    if temperature == 1.0:
        return score.score
    peak = max(score.distribution)
    warm = [(p / peak) ** (1 / temperature) for p in score.distribution]
    return answers.expected_score([each / sum(warm) for each in warm])


def reward(scores: Mapping[str, Score | ModelReward], shaping: Shaping) -> float:
    """One number in [-1, 1] from each task's score, in the order of the tasks, or in the bounds of `clip`. A reward
    model's own number stays as it is."""
    rewards = [
        each.reward if isinstance(each, ModelReward) else answers.reward(scored(each, shaping.temperature))
        for each in scores.values()
    ]
    found = _safest(rewards, shaping.unsafe) if shaping.rule == "safety-first" else _sum(rewards, shaping.weights)
    return found if shaping.clip is None else min(max(found, shaping.clip[0]), shaping.clip[1])


def _sum(rewards: Sequence[float], weights: Sequence[float]) -> float:
    if len(rewards) == 1:
        return rewards[0]
    weights = weights or [1.0] * len(rewards)
    return math.fsum(w * r for w, r in zip(weights, rewards, strict=True)) / math.fsum(weights)


def _safest(rewards: Sequence[float], unsafe: float) -> float:
    """Llama 2's combination: safety where the response is unsafe, helpfulness elsewhere. The score of 1 to 10 stands in
    for the probability of being safe, as (reward + 1) / 2."""
    helpful, safe = rewards
    return safe if (safe + 1) / 2 < unsafe else helpful
