"""Direct preference optimisation on soft labels: the policy itself is the reward model, beta log(pi / pi_ref).

The reference is asked once for each row, or at each update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.branches import LogProbabilities, totals
from trainer import losses
from trainer.config import Dpo
from trainer.loop import Algorithm, Values
from trainer.losses import Hard
from trainer.pairs import laid_out, paired
from trainer.rows import Row

Reference = Callable[[Sequence[Row]], Tensor]
"""The reference's log-probability of each answer of the rows, (A,)."""


@dataclass(frozen=True)
class Objective:
    """A loss of the difference of two log-ratios; whether those are means over tokens, and relative to a reference."""

    hard: Hard
    averaged: bool = False
    referenced: bool = True


def objective(config: Dpo) -> Objective:
    """What a configuration minimises."""
    match config.loss:
        case "sigmoid":
            return Objective(losses.scaled(losses.logistic, config.beta))
        case "hinge":
            return Objective(losses.scaled(losses.hinge, config.beta))
        case "robust":
            return Objective(losses.scaled(losses.robust(config.noise), config.beta))
        case "ipo":
            return Objective(losses.squared(config.beta))
        case "ipo-averaged":
            return Objective(losses.squared(config.beta), averaged=True)
        case "simpo":
            hard = losses.scaled(losses.shifted(losses.logistic, config.gamma), config.beta)
            return Objective(hard, averaged=True, referenced=False)


def dpo(policy: LogProbabilities, reference: Reference | None, config: Dpo) -> Algorithm[Row]:
    """Rafailov et al. 2023, eq. 7, and its relatives; `reference` may be None for an objective without one."""
    aim = objective(config)
    noise = config.noise if config.loss == "sigmoid" else 0.0

    def values(rows: Sequence[Row]) -> Values:
        laid = laid_out(rows)
        own = totals(policy(laid), laid.lengths)
        ratio = own
        if aim.referenced:
            assert reference is not None, "this objective has a reference"
            ratio = own - reference(rows).to(own.device)
        if aim.averaged:
            ratio = ratio / torch.tensor(laid.lengths, device=own.device)
        pairs = paired(rows, own.device, hard=config.hard)
        ahead = ratio[pairs.first] - ratio[pairs.second]
        seen = config.beta * ahead.detach()
        return {
            "loss": pairs.per_row(losses.soft(aim.hard, ahead, losses.smoothed(pairs.p, noise))),
            "accuracy": pairs.per_row((seen > 0).float()),
            "reward_margin": pairs.per_row(seen),
            "logp_chosen": pairs.per_row(own.detach()[pairs.first]),
            "logp_rejected": pairs.per_row(own.detach()[pairs.second]),
        }

    return Algorithm(policy, values)
