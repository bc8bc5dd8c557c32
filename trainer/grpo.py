"""What is a response worth against the others to its prompt? GRPO, Dr. GRPO, DAPO and RLOO: no critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer import losses
from trainer.advantages import divergence, equal, leave_one_out, spread, standardised
from trainer.config import Grpo
from trainer.experience import (
    Experience,
    Method,
    Players,
    Round,
    experiences,
    joined,
    lengths,
    log_ratios,
    over,
    seen,
    told,
    with_fields,
)
from trainer.loop import Algorithm, Values
from trainer.pairs import laid_out
from trainer.ppo import Order
from trainer.rollouts import Group


def grpo(
    players: Players,
    config: Grpo,
    batch: int,
    order: Order,
    rescale: Callable[[Tensor], Tensor],
    longest: int,
) -> Method:
    """The method; `longest` is the most tokens of a response, which Dr. GRPO divides by."""

    def prepare(number: int, groups: Sequence[Group]) -> Round:
        rows = told(experiences(groups), players)
        metrics = seen(rows)
        metrics["equal_groups"] = sum(equal(row.rewards) for row in rows) / len(rows)
        ready = advantages(rows, config, rescale)
        return Round(over(ready, batch, config.epochs, lambda epoch: order(len(ready), number, epoch)), metrics)

    return Method(algorithm(players, config, longest), prepare)


def advantages(rows: Sequence[Experience], config: Grpo, rescale: Callable[[Tensor], Tensor]) -> list[Experience]:
    """One advantage a response, for each of its tokens."""
    counts, groups = lengths(rows), [len(row.answers) for row in rows]
    rewards = rescale(joined(rows, "rewards"))
    if config.penalty == "reward":
        penalty = divergence(log_ratios(rows), config.estimator)
        rewards = rewards - config.beta * torch.stack([each.sum() for each in penalty.split(counts)])
    if config.advantage == "rloo":
        found = leave_one_out(rewards, groups)
    else:
        scale = {"grpo": "group", "batch": "batch", "centered": "none"}[config.advantage]
        found = standardised(rewards, groups, scale)  # pyright: ignore[reportArgumentType]
    return with_fields(rows, advantages=spread(found, counts))


def algorithm(players: Players, config: Grpo, longest: int) -> Algorithm[Experience]:
    """The clipped surrogate, and the KL where it is a term of the loss."""
    weighs_tokens = config.aggregate == "token"

    def values(rows: Sequence[Experience]) -> Values:
        said = players.actor(laid_out(rows))
        device = said.likelihoods.device
        old, advantage, reference = (joined(rows, name, device) for name in ("old", "advantages", "reference"))
        log_ratio = said.likelihoods - old
        policy = losses.clipped(log_ratio, advantage, config.clip)
        loss = policy
        if config.beta and config.penalty == "loss":
            loss = loss + config.beta * divergence(said.likelihoods - reference, config.estimator)
        moved = log_ratio.detach()
        told = {
            "loss": loss,
            "policy_loss": policy.detach(),
            "policy_kl": divergence(-moved, "k3"),
            "ratio": moved.exp(),
            "clipped": ((moved.exp() - 1).abs() > config.clip).float(),
        }
        return {
            name: _per_row(each, rows, config.aggregate if name in {"loss", "policy_loss"} else "token", longest)
            for name, each in told.items()
        }

    return Algorithm(players.actor, values, weigh=lambda row: row.tokens if weighs_tokens else float(len(row.answers)))


def _per_row(values: Tensor, rows: Sequence[Experience], aggregate: str, longest: int) -> Tensor:
    """(T,) -> (R,): each row's mean, in the way that the update's mean then goes on with."""
    found: list[Tensor] = []
    start = 0
    for row in rows:
        own = values[start : start + sum(row.lengths)]
        start += len(own)
        if aggregate == "token":
            found.append(own.mean())
        elif aggregate == "response":
            found.append(torch.stack([each.mean() for each in own.split(row.lengths)]).mean())
        else:
            found.append(own.sum() / (longest * len(row.answers)))
    return torch.stack(found)
