"""Proximal policy optimisation: a clipped policy step on sampled responses, a critic, a KL penalty in the reward.

Ziegler et al. 2019, Stiennon et al. 2020, Ouyang et al. 2022. The score stands on a response's last token, the KL on
every one; the critic is a head on the policy's trunk or a model of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from trainer import losses
from trainer.advantages import adapted, divergence, gae, placed, whitened
from trainer.config import Ppo
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
    per_row,
    seen,
    told,
    with_fields,
)
from trainer.loop import Algorithm, Values
from trainer.pairs import laid_out
from trainer.rollouts import Group

Order = Callable[[int, int, int], Sequence[int]]
"""How so many rows are ordered in a round's epoch: (rows, round, epoch)."""


def ppo(players: Players, config: Ppo, batch: int, order: Order, rescale: Callable[[Tensor], Tensor]) -> Method:
    """The method; `rescale` is what becomes of a round's scores before they are used."""
    state = {"beta": config.beta}

    def prepare(number: int, groups: Sequence[Group]) -> Round:
        rows = told(experiences(groups), players)
        metrics = seen(rows)
        ready, more = advantages(rows, config, state["beta"], rescale)
        metrics |= {**more, "beta": state["beta"]}
        if config.target is not None:
            state["beta"] = adapted(
                state["beta"], metrics["kl"], target=config.target, horizon=config.horizon, count=len(lengths(rows))
            )
        return Round(over(ready, batch, config.epochs, lambda epoch: order(len(ready), number, epoch)), metrics)

    def enough(metrics: dict[str, float]) -> bool:
        return config.stop is not None and metrics["policy_kl"] > config.stop

    return Method(algorithm(players, config), prepare, enough, state)


def advantages(
    rows: Sequence[Experience], config: Ppo, beta: float, rescale: Callable[[Tensor], Tensor]
) -> tuple[list[Experience], dict[str, float]]:
    """Rows with advantages, whitened over the round, and returns."""
    counts, values = lengths(rows), joined(rows, "values")
    penalty = divergence(log_ratios(rows), config.estimator)
    rewards = placed(rescale(joined(rows, "rewards")), counts) - beta * penalty
    if config.whiten:
        rewards = whitened(rewards, shift=False)
    advantage, returns = gae(rewards, values, counts, gamma=config.gamma, lam=config.lam)
    explained = 1 - (returns - values).var(unbiased=False) / returns.var(unbiased=False).clamp(min=1e-12)
    found = with_fields(rows, advantages=whitened(advantage), returns=returns)
    return found, {"value": float(values.mean()), "return": float(returns.mean()), "explained": float(explained)}


def algorithm(players: Players, config: Ppo) -> Algorithm[Experience]:
    """The mean over an update's tokens of the clipped surrogate and of the critic's loss."""

    def values(rows: Sequence[Experience]) -> Values:
        laid = laid_out(rows)
        said = players.actor(laid)
        now = said.values if players.critic is None else players.critic(laid)
        device = said.likelihoods.device
        old, advantage, before, returns = (
            joined(rows, name, device) for name in ("old", "advantages", "values", "returns")
        )
        log_ratio = said.likelihoods - old
        policy = losses.clipped(log_ratio, advantage, config.clip)
        critic = losses.value_clipped(now, before, returns, config.value_clip)
        loss = policy + config.value_weight * critic
        if config.entropy:
            loss = loss - config.entropy * said.entropies
        moved = log_ratio.detach()
        told = {
            "loss": loss,
            "policy_loss": policy.detach(),
            "value_loss": critic.detach(),
            "policy_kl": divergence(-moved, "k3"),
            "ratio": moved.exp(),
            "clipped": ((moved.exp() - 1).abs() > config.clip).float(),
        }
        return {name: per_row(each, rows) for name, each in told.items()}

    return Algorithm(players.actor, values, weigh=lambda row: row.tokens)
