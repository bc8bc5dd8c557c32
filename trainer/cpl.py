"""Contrastive preference learning: pairs alone, no reference and no reward (Hejna et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from lm.branches import LogProbabilities, totals
from trainer import losses
from trainer.config import Cpl
from trainer.loop import Algorithm, Values
from trainer.pairs import laid_out, paired
from trainer.rows import Row


def cpl(policy: LogProbabilities, config: Cpl) -> Algorithm[Row]:
    """A response is one segment, its advantage alpha times its summed log-probability (gamma = 1)."""

    def values(rows: Sequence[Row]) -> Values:
        laid = laid_out(rows)
        own = totals(policy(laid), laid.lengths)
        pairs = paired(rows, own.device, hard=config.hard)
        first, second = (config.alpha * own[each] for each in (pairs.first, pairs.second))
        return {
            "loss": pairs.per_row(losses.cpl(first, second, pairs.p, config.conservative)),
            "accuracy": pairs.per_row((first > second).detach().float()),
            "logp_chosen": pairs.per_row(own.detach()[pairs.first]),
            "logp_rejected": pairs.per_row(own.detach()[pairs.second]),
        }

    return Algorithm(policy, values)
