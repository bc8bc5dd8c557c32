"""The plain forward pass through a model's own code, nothing shared: for other architectures, and to check ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lm.rows import Tokens


@torch.no_grad()
def log_probabilities(model: Any, sequences: Sequence[Tokens]) -> Tensor:
    """Log-probabilities of the token after each sequence, (len(sequences), V) in fp32. Padded at the right.

    The model's own logits, with whatever it does to them (scaling, soft caps).
    """
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    last = torch.tensor([len(sequence) - 1 for sequence in sequences])
    kept = torch.tensor(sorted({len(sequence) - 1 for sequence in sequences}))
    out = model(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        logits_to_keep=kept.to(model.device),
        use_cache=False,
    )
    rows = out.logits[torch.arange(len(sequences)), torch.searchsorted(kept, last)]
    return rows.float().log_softmax(-1)
