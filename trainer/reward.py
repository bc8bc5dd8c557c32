"""A reward model: how good is a response? A scalar head, Bradley-Terry on soft labels, a prompt's pairs in one row."""

from __future__ import annotations

from collections.abc import Sequence

from lm.branches import Scores
from trainer import losses
from trainer.config import Reward
from trainer.loop import Algorithm, Values
from trainer.pairs import laid_out, paired
from trainer.rows import Row


def reward(scores: Scores, config: Reward) -> Algorithm[Row]:
    """Train scores so that sigmoid of a difference is the chance of being better (Lee et al. 2023, section 2.2.1)."""

    def values(rows: Sequence[Row]) -> Values:
        found = scores(laid_out(rows))
        pairs = paired(rows, found.device, hard=config.hard)
        first, second = found[pairs.first], found[pairs.second]
        loss = losses.bradley_terry(first, second, pairs.p, pairs.margin)
        if config.centering:
            loss = loss + config.centering * losses.centering(first, second)
        ahead = (first - second).detach()
        return {
            "loss": pairs.per_row(loss),
            "accuracy": pairs.per_row((ahead > 0).float() + (ahead == 0).float() / 2),
            "difference": pairs.per_row(ahead),
            "mean_score": pairs.per_row((first + second).detach() / 2),
        }

    return Algorithm(scores, values)
