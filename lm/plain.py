"""The plain forward pass through a model's own code, nothing shared: for other architectures, and to check ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lm.rows import Tokens


@torch.no_grad()
def hidden_states(model: Any, sequences: Sequence[Tokens]) -> Tensor:
    """The last hidden state of each sequence, (len(sequences), C), ready for the head. Padded at the right."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    out = model.base_model(ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
    last = torch.tensor([len(sequence) - 1 for sequence in sequences])
    return out.last_hidden_state[torch.arange(len(sequences)), last]
