"""What comes next? Log-probabilities of a few tokens out of hidden states, in fp32 even where the model is bf16.

Shapes: M hidden states, C hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def log_probabilities(model: Any, hidden: Tensor, wanted: Sequence[tuple[int, int]]) -> list[float]:
    """log P(token | hidden state) for each (row, token) in `wanted`; hidden (M, C).

    bf16 logits are so coarse that "1" and "2" are often exactly equal. The wanted ones are computed again in fp32; only
    the sum over the vocabulary takes the coarse ones.
    """
    head: Any = model.get_output_embeddings()
    rows, tokens = (torch.tensor(each, device=hidden.device) for each in zip(*wanted, strict=True))
    normaliser = head(hidden).float().logsumexp(-1)
    exact = (hidden[rows].float() * head.weight[tokens].float()).sum(-1)
    bias: Any = head.bias
    if bias is not None:
        exact = exact + bias[tokens].float()
    return (exact - normaliser[rows]).tolist()
