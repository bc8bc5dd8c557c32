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
    chosen: dict[str, tuple[Group, Sample]] = {}

    def recall(groups: Sequence[Group]) -> None:
        best(groups, chosen)

    def prepare(number: int, groups: Sequence[Group]) -> Round:
        rows = best(groups, chosen)
        rewards = [each for group in groups for each in group.rewards]
        kept = [_reward(sample) for _, sample in chosen.values()]
        metrics = {"reward": sum(rewards) / len(rewards), "best": sum(kept) / len(kept), "rows": float(len(rows))}
        return Round(over(rows, batch, config.epochs, lambda epoch: order(len(rows), number, epoch)), metrics)

    return Method(sft(players.actor), prepare, recall=recall)


def best(groups: Sequence[Group], chosen: dict[str, tuple[Group, Sample]]) -> list[Row]:
    """One row a prompt: the sample with the highest reward, the earliest of equals, also of those in `chosen`, which
    are brought up to date. In the order of their names, which does not depend on how a run came here.
    """
    for group in groups:
        for sample in group.rewarded:
            known = chosen.get(group.question.id)
            if known is None or _reward(sample) > _reward(known[1]):
                chosen[group.question.id] = (group, sample)
    return [Row(name, group.question.tokens, (sample.tokens,)) for name, (group, sample) in sorted(chosen.items())]


def _reward(sample: Sample) -> float:
    assert sample.reward is not None
    return sample.reward
