"""What does the model write? Batched sampling with a key-value cache; the same prompt's samples share its encoding.

Each row draws from its own random generator, so what a row gets does not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm.rows import Tokens

TAIL = 24
"""Tokens at the end of a text that are searched for a stop string at each step."""


@dataclass(frozen=True)
class Draw:
    """One text to be written: after `prompt`, greedily at temperature 0."""

    prompt: Tokens
    max_tokens: int
    temperature: float
    top_k: int
    seed: int
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    text: str
    tokens: int


@torch.no_grad()
def write(model: Any, tokenizer: Any, draws: Sequence[Draw], *, batch: int) -> list[Written]:
    """Write all, longest prompts together, at most `batch` at once; results in the order of `draws`."""
    order = sorted(range(len(draws)), key=lambda at: (len(draws[at].prompt), draws[at].prompt))
    written: dict[int, Written] = {}
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        texts = _batch(model, tokenizer, [draws[at] for at in group])
        written.update(zip(group, texts, strict=True))
    return [written[at] for at in range(len(draws))]


def _batch(model: Any, tokenizer: Any, draws: Sequence[Draw]) -> list[Written]:
    prompts = list(dict.fromkeys(draw.prompt for draw in draws))
    ids, mask = _left_padded(prompts, model.device)
    out = model(ids, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1)
    rows = torch.tensor([prompts.index(draw.prompt) for draw in draws], device=model.device)
    cache, mask, logits = out.past_key_values, mask[rows], out.logits[rows, -1]
    cache.batch_select_indices(rows)
    generators = [torch.Generator().manual_seed(draw.seed) for draw in draws]
    ends = _ends(model, tokenizer)
    tokens: list[list[int]] = [[] for _ in draws]
    done: dict[int, Written] = {}
    alive = list(range(len(draws)))
    while True:
        drawn = [_draw(logits[row], draws[at], generators[at]) for row, at in enumerate(alive)]
        kept: list[int] = []
        for row, at in enumerate(alive):
            if drawn[row] in ends:
                done[at] = Written(_text(tokenizer, tokens[at]), len(tokens[at]) + 1)
                continue
            tokens[at].append(drawn[row])
            if len(tokens[at]) >= draws[at].max_tokens or _stopped(tokenizer, tokens[at], draws[at].stop):
                done[at] = Written(_cut(_text(tokenizer, tokens[at]), draws[at].stop), len(tokens[at]))
                continue
            kept.append(row)
        if not kept:
            return [done[at] for at in range(len(draws))]
        if len(kept) < len(alive):
            places = torch.tensor(kept, device=model.device)
            cache.batch_select_indices(places)
            mask, alive = mask[places], [alive[row] for row in kept]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        step = torch.tensor([[tokens[at][-1]] for at in alive], device=model.device)
        positions = mask.sum(1, keepdim=True) - 1
        out = model(step, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        logits = out.logits[:, -1]


def _left_padded(prompts: Sequence[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp_(min=0)


def _draw(logits: Tensor, draw: Draw, generator: torch.Generator) -> int:
    scores = logits.float().cpu()
    if bool(torch.isnan(scores).any()) or not bool(torch.isfinite(scores).any()):
        raise FloatingPointError("the model gave NaN in place of logits")
    if draw.temperature == 0:
        return int(scores.argmax())
    scores = scores / draw.temperature
    if draw.top_k:
        least = scores.topk(min(draw.top_k, scores.numel())).values[-1]
        scores = scores.masked_fill(scores < least, -torch.inf)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(each for each in [*listed, tokenizer.eos_token_id] if each is not None)


def _stopped(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str]) -> bool:
    tail = _text(tokenizer, tokens[-TAIL:])
    return any(each in tail for each in stop)


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min([at for each in stop if (at := text.find(each)) >= 0], default=len(text))]


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
