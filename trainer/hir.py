"""Hindsight instruction relabeling: a bad answer is a right one to "give a bad answer" (Zhang et al. 2023).

Every response is used: the instruction is changed to the one that it fulfils. At the end the policy is asked with the
instruction for good answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from data.records import Message, Prompt
from lm.branches import totals
from lm.rows import Tokens, branches
from trainer import losses
from trainer.config import Hir
from trainer.experience import Method, Players, Round, over
from trainer.loop import Algorithm, Values
from trainer.ppo import Order
from trainer.rollouts import Group, Question
from trainer.rows import Row

Encode = Callable[[Prompt], Tokens]


@dataclass(frozen=True)
class Relabelled(Row):
    """A response under the instruction that it fulfils (`prompt`), and the opposite one."""

    opposite: Tokens = ()

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.opposite) + 2 * sum(map(len, self.answers))


def hir(players: Players, config: Hir, batch: int, order: Order, encode: Encode) -> Method:
    """The method; `encode` makes tokens of a prompt."""

    def prepare(number: int, groups: Sequence[Group]) -> Round:
        rows = relabelled(groups, config, encode)
        rewards = [each for group in groups for each in group.rewards]
        right = sum(reward > config.threshold for reward in rewards)
        metrics = {"reward": sum(rewards) / len(rewards), "right": right / len(rewards), "rows": float(len(rows))}
        return Round(over(rows, batch, config.epochs, lambda epoch: order(len(rows), number, epoch)), metrics)

    return Method(algorithm(players, config), prepare)


def instructed(prompt: Prompt, instruction: str) -> Prompt:
    """A prompt with an instruction after it, where a prompt that is too long is not cut."""
    if isinstance(prompt, str):
        return f"{prompt}\n\n{instruction}"
    *earlier, last = prompt
    return (*earlier, Message(role=last.role, content=f"{last.content}\n\n{instruction}"))


def relabelled(groups: Sequence[Group], config: Hir, encode: Encode) -> list[Relabelled]:
    """One row for each response that has a reward: all are used."""
    rows: list[Relabelled] = []
    for group in groups:
        both = [encode(instructed(group.question.prompt, each)) for each in (config.right, config.wrong)]
        for at, sample in enumerate(group.samples):
            if sample.reward is not None:
                own, other = both if sample.reward > config.threshold else both[::-1]
                rows.append(Relabelled(f"{group.question.id}#{at}", own, (sample.tokens,), opposite=other))
    return rows


def asked(question: Question, config: Hir, encode: Encode) -> Question:
    """A question as the policy is asked it: with the instruction for a good answer."""
    tokens = encode(instructed(question.prompt, config.right))
    return Question(question.id, question.prompt, tokens, question.topic, question.unsafe)


def algorithm(players: Players, config: Hir) -> Algorithm[Relabelled]:
    """Likelihood with smoothed labels, the contrast between both instructions, an entropy bonus (released code)."""

    def values(rows: Sequence[Relabelled]) -> Values:
        laid = branches((prompt, row.answers) for row in rows for prompt in (row.prompt, row.opposite))
        said = players.actor(laid, plain=True)
        counts = torch.tensor(laid.lengths, device=said.likelihoods.device)
        means = totals(said.likelihoods, laid.lengths) / counts
        spread = totals(said.entropies, laid.lengths) / counts
        right, wrong = means[0::2], means[1::2]
        contrast = losses.hindsight(right, wrong, config.smoothing)
        assert said.means is not None
        even = totals(said.means, laid.lengths)[0::2] / counts[0::2]
        smoothed = (1 - config.smoothing) * right + config.smoothing * even
        loss = -smoothed + config.contrast * contrast - config.entropy * spread[0::2]
        return {
            "loss": loss,
            "contrast": contrast.detach(),
            "right_logp": right.detach(),
            "wrong_logp": wrong.detach(),
        }

    return Algorithm(players.actor, values)
