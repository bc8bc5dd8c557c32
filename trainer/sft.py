"""Supervised fine-tuning: imitate responses. Rows are packed without padding; only response tokens are learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lm.branches import Actor, LogProbabilities, totals
from trainer.loop import Algorithm, Values
from trainer.pairs import laid_out
from trainer.rows import Row


def sft(policy: LogProbabilities | Actor) -> Algorithm[Row]:
    """The mean cross-entropy of response tokens over an update; prompts are masked (Ouyang et al. 2022)."""

    def values(rows: Sequence[Row]) -> Values:
        laid = laid_out(rows)
        lengths = torch.tensor(laid.lengths, dtype=torch.float32)
        owner = torch.tensor([at for at, row in enumerate(rows) for _ in row.answers])
        said = policy(laid, plain=True).likelihoods if isinstance(policy, Actor) else policy(laid)
        own = totals(said, laid.lengths)
        summed = own.new_zeros(len(rows)).index_add(0, owner.to(own.device), own)
        tokens = lengths.new_zeros(len(rows)).index_add(0, owner, lengths)
        return {"loss": -summed / tokens.to(own.device)}

    return Algorithm(policy, values, weigh=lambda row: float(sum(map(len, row.answers))))
