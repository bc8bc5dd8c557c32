"""Rejection sampling: each prompt's best response of all rounds so far is imitated (Llama 2, section 3.2.3)."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config import Rejection
from trainer.experience import Method, Players, Round, over
from trainer.ppo import Order
from trainer.rollouts import Group, Sample
from trainer.rows import Row
from trainer.sft import sft


def rejection(players: Players, config: Rejection, batch: int, order: Order) -> Method:
    """The method. Without the earlier rounds' best, Llama 2 saw its models forget."""

    def prepare(number: int, groups: Sequence[Group]) -> Round:
        rows = best(groups)
        rewards = [each.reward for group in groups for each in group.rewarded if each.reward is not None]
        kept = [
            max(r for each in group.rewarded if (r := each.reward) is not None) for group in groups if group.rewarded
        ]
        metrics = {"reward": sum(rewards) / len(rewards), "best": sum(kept) / len(kept), "rows": float(len(rows))}
        return Round(over(rows, batch, config.epochs, lambda epoch: order(len(rows), number, epoch)), metrics)

    return Method(sft(players.actor), prepare, history=True)


def best(groups: Sequence[Group]) -> list[Row]:
    """One row a prompt: the sample with the highest reward, the earliest of equals."""
    chosen: dict[str, tuple[Group, Sample]] = {}
    for group in groups:
        for sample in group.rewarded:
            known = chosen.get(group.question.id)
            if known is None or _reward(sample) > _reward(known[1]):
                chosen[group.question.id] = (group, sample)
    return [Row(name, group.question.tokens, (sample.tokens,)) for name, (group, sample) in chosen.items()]


def _reward(sample: Sample) -> float:
    assert sample.reward is not None
    return sample.reward
