"""REINFORCE with a learned baseline, as RLAIF trains its policies (Lee et al. 2023, section 2.2 and appendix F)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from trainer import losses
from trainer.advantages import divergence, placed, to_go
from trainer.config import Reinforce
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
from trainer.ppo import Order
from trainer.rollouts import Group


def reinforce(
    players: Players, config: Reinforce, batch: int, order: Order, rescale: Callable[[Tensor], Tensor]
) -> Method:
    """J = E[(1 - beta) r - beta KL]: each token's return is what comes after it of both, less the critic's value."""

    def prepare(number: int, groups: Sequence[Group]) -> Round:
        rows = told(experiences(groups), players)
        metrics = seen(rows)
        ready = advantages(rows, config, rescale)
        metrics["value"] = float(joined(rows, "values").mean())
        return Round(over(ready, batch, 1, lambda epoch: order(len(ready), number, epoch)), metrics)

    return Method(algorithm(players, config), prepare)


def advantages(rows: Sequence[Experience], config: Reinforce, rescale: Callable[[Tensor], Tensor]) -> list[Experience]:
    """Rows with Z_t - V(X_t), and the returns Z_t."""
    counts = lengths(rows)
    penalty = divergence(log_ratios(rows), "k1")
    scores = placed(rescale(joined(rows, "rewards")), counts)
    returns = to_go((1 - config.beta) * scores - config.beta * penalty, counts)
    return with_fields(rows, advantages=returns - joined(rows, "values"), returns=returns)


def algorithm(players: Players, config: Reinforce) -> Algorithm[Experience]:
    """Sums over a response's tokens, means over responses."""

    def values(rows: Sequence[Experience]) -> Values:
        laid = laid_out(rows)
        said = players.actor(laid)
        now = said.values if players.critic is None else players.critic(laid)
        advantage, returns = (joined(rows, name, now.device) for name in ("advantages", "returns"))
        policy = losses.reinforce(said.likelihoods, advantage)
        critic = (now - returns).square()
        told = {
            "loss": policy + config.value_weight * critic,
            "policy_loss": policy.detach(),
            "value_loss": critic.detach(),
        }
        sizes = said.likelihoods.new_tensor([row.tokens / len(row.answers) for row in rows])
        return {name: per_row(each, rows) * sizes for name, each in told.items()}

    return Algorithm(players.actor, values, weigh=lambda row: float(len(row.answers)))
