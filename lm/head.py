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
    the sum over the vocabulary takes the coarse ones. Heads that are more than one product are taken as they are.
    """
    head: Any = model.get_output_embeddings()
    logits = head(hidden)
    rows, tokens = (torch.tensor(each, device=hidden.device) for each in zip(*wanted, strict=True))
    if type(head) is not torch.nn.Linear or getattr(model.config, "final_logit_softcapping", None):
        return _capped(model, logits).float().log_softmax(-1)[rows, tokens].tolist()
    normaliser = logits.float().logsumexp(-1)
    bias: Any = head.bias
    exact = (hidden[rows].float() * head.weight[tokens].float()).sum(-1)
    if bias is not None:
        exact = exact + bias[tokens].float()
    return (exact - normaliser[rows]).tolist()


def _capped(model: Any, logits: Tensor) -> Tensor:
    """What some models do to the head's output: a soft cap (Gemma 2)."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
