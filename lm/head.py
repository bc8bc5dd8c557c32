"""What comes next? Log-probabilities of a few tokens out of hidden states, in fp32 even where the model is bf16.

Shapes: M hidden states, C hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PIECE = 1 << 25
"""Logits that exist at once in training: those of a larger vocabulary are made for fewer tokens at a time."""


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


def is_plain(model: Any) -> bool:
    """Whether logits are the head's product and nothing else: no soft cap, no scale."""
    config = model.config
    scaled = ("final_logit_softcapping", "logits_scaling", "logit_scale")
    head = model.get_output_embeddings()
    return isinstance(head, torch.nn.Linear) and not any(getattr(config, name, None) for name in scaled)


def token_log_probabilities(hidden: Tensor, head: torch.nn.Linear, tokens: Tensor) -> Tensor:
    """log P(token | hidden state), with gradients: hidden (M, C), tokens (M,) -> (M,) in fp32.

    Only a piece of the logits exists at a time, in the forward pass and again in the backward one.
    """
    return _foretold(hidden, head, tokens, entropic=False)[0]


def foretold(hidden: Tensor, head: torch.nn.Linear, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the entropy of each distribution in nats, (M,), with gradients too."""
    return _foretold(hidden, head, tokens, entropic=True)


def _foretold(hidden: Tensor, head: torch.nn.Linear, tokens: Tensor, *, entropic: bool) -> tuple[Tensor, Tensor]:
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
    own: Any = head.bias
    bias = None if own is None else own.to(dtype)
    with torch.autocast(kind, enabled=False):
        return _Foretold.apply(hidden.to(dtype), head.weight.to(dtype), bias, tokens, entropic)


def mean_log_probability(hidden: Tensor, head: torch.nn.Linear, tokens: Tensor, likelihoods: Tensor) -> Tensor:
    """The mean of log P over the whole vocabulary, (M,), from what is known of one token each: the mean logit is one
    product, and the normaliser is that token's logit less its log-probability.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        wide, weight = hidden.float(), head.weight.float()
        ahead = wide @ weight.mean(0) - (wide * weight[tokens]).sum(-1)
        own: Any = head.bias
        return likelihoods + ahead if own is None else likelihoods + ahead + own.float().mean() - own.float()[tokens]


class _Foretold(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        entropic: bool,  # noqa: FBT001  apply takes no names
    ) -> tuple[Tensor, Tensor]:
        found, total = (hidden.new_empty(len(tokens), dtype=torch.float32) for _ in range(2))
        entropy = hidden.new_empty(len(tokens) if entropic else 0, dtype=torch.float32)
        for piece in _pieces(len(tokens), len(weight)):
            logits = F.linear(hidden[piece], weight, bias).float()
            total[piece] = logits.logsumexp(-1)
            found[piece] = logits.gather(1, tokens[piece, None]).squeeze(1) - total[piece]
            if entropic:  # H = log Z - E[logit]
                chances = logits.sub(total[piece, None]).exp_()
                entropy[piece] = total[piece] - torch.linalg.vecdot(chances, logits)
        ctx.save_for_backward(hidden, weight, bias, tokens, total, entropy)
        ctx.entropic = entropic
        ctx.set_materialize_grads(False)
        return found, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """d log P(t) = d logit_t - sum_v P(v) d logit_v; d H = -sum_v P(v) (log P(v) + H) d logit_v."""
        hidden, weight, bias, tokens, total, entropy = ctx.saved_tensors
        above = total.new_zeros(len(tokens)) if gradients[0] is None else gradients[0]
        spread = gradients[1] if ctx.entropic else None
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for piece in _pieces(len(tokens), len(weight)):
            slopes = F.linear(hidden[piece], weight, bias).float().sub_(total[piece, None])  # log P
            wanted = None if spread is None else slopes.add(entropy[piece, None]).mul_(spread[piece, None])
            slopes.exp_()
            wanted = above[piece, None] if wanted is None else wanted.add_(above[piece, None])
            slopes.mul_(-wanted)
            slopes.scatter_add_(1, tokens[piece, None], above[piece, None])
            if of_bias is not None:
                of_bias += slopes.sum(0)
            slopes = slopes.to(weight.dtype)
            if of_hidden is not None:
                of_hidden[piece] = slopes @ weight
            if of_weight is not None:
                of_weight += slopes.t() @ hidden[piece]
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(weight.dtype),
            None,
            None,
        )


def _pieces(count: int, vocabulary: int) -> list[slice]:
    step = max(1, PIECE // vocabulary)
    return [slice(start, start + step) for start in range(0, count, step)]
