"""What does the model write? Sampling in batches; the same prompt's samples share its encoding.

Each row draws from its own random numbers, so what a row gets does not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm.decoding import decoding
from lm.rows import Tokens

TAIL = 24
"""Tokens at the end of a text that are searched for a stop string at each step."""
LEAVE = 0.8
"""Finished rows leave when so many of the rows are left: each leaving copies the others' keys and values."""


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
    """A text; `drawn` are its tokens, with the one that ends it. `likelihoods` are log-probabilities of what was drawn,
    in the distribution that it was drawn from. `ended` is false where there were no more tokens to be had.
    """

    text: str
    drawn: Tokens
    likelihoods: tuple[float, ...]
    ended: bool

    @property
    def tokens(self) -> int:
        return len(self.drawn)


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


def ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(each for each in [*listed, tokenizer.eos_token_id] if each is not None)


def _batch(model: Any, tokenizer: Any, draws: Sequence[Draw]) -> list[Written]:
    prompts = list(dict.fromkeys(draw.prompt for draw in draws))
    place = {prompt: at for at, prompt in enumerate(prompts)}
    last = ends(model, tokenizer)
    tokens: list[list[int]] = [[] for _ in draws]
    likelihoods: list[list[float]] = [[] for _ in draws]
    done: dict[int, Written] = {}
    slots = list(range(len(draws)))  # the draw of each row
    with decoding(model, prompts, [place[draw.prompt] for draw in draws]) as rows:
        chance = _Chance(draws, model.device)
        while True:
            drawn, likely = chance.draw(rows.logits)
            for at, token, value in zip(slots, drawn.tolist(), likely.tolist(), strict=True):
                if at in done:
                    continue
                tokens[at].append(token)
                likelihoods[at].append(value)
                found = _finished(tokenizer, tokens[at], draws[at], ended=token in last)
                if found is not None:
                    done[at] = Written(found[0], tuple(tokens[at]), tuple(likelihoods[at]), found[1])
            left = [row for row, at in enumerate(slots) if at not in done]
            if not left:
                return [done[at] for at in range(len(draws))]
            if len(left) < LEAVE * len(slots):
                kept = torch.tensor(left, device=model.device)
                rows.keep(kept)
                chance.keep(kept)
                slots, drawn = [slots[row] for row in left], drawn[kept]
            rows.step(drawn)


def _finished(tokenizer: Any, tokens: Sequence[int], draw: Draw, *, ended: bool) -> tuple[str, bool] | None:
    """The text and whether it ended by itself, once nothing more is written."""
    if ended:
        return _text(tokenizer, tokens[:-1]), True
    stopped = bool(draw.stop) and _stopped(tokenizer, tokens, draw.stop)
    if stopped or len(tokens) >= draw.max_tokens:
        return _cut(_text(tokenizer, tokens), draw.stop), stopped
    return None


class _Chance:
    """The rows' random numbers: one uniform number a token, from each row's seed, so that rows do not share them."""

    def __init__(self, draws: Sequence[Draw], device: torch.device) -> None:
        most = max(draw.max_tokens for draw in draws)
        self._uniform = torch.empty(len(draws), most, dtype=torch.float64)
        for row, draw in enumerate(draws):
            self._uniform[row].uniform_(generator=torch.Generator().manual_seed(draw.seed))
        self._uniform = self._uniform.to(device)
        self._temperature = torch.tensor([draw.temperature for draw in draws], device=device)
        self._top = torch.tensor([draw.top_k for draw in draws], device=device)
        self._at = 0

    def keep(self, rows: Tensor) -> None:
        self._uniform, self._temperature, self._top = (
            each[rows] for each in (self._uniform, self._temperature, self._top)
        )

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row, (B,), and its log-probability. Raises FloatingPointError."""
        scores = logits.float()
        highest = scores.amax(-1)
        if not bool(torch.isfinite(highest).all()):
            raise FloatingPointError("the model gave NaN in place of logits")
        greedy = self._temperature == 0
        scores = scores / torch.where(greedy, 1.0, self._temperature).unsqueeze(-1)
        self._leave_out(scores)
        chances = scores.softmax(-1)
        # Inverse transform sampling: the first token whose cumulated chance exceeds the uniform number.
        reached = chances.cumsum(-1, dtype=torch.float64)
        wanted = self._uniform[:, self._at, None] * reached[:, -1:]
        self._at += 1
        drawn = torch.searchsorted(reached, wanted, right=True).squeeze(-1).clamp_(max=scores.shape[-1] - 1)
        drawn = torch.where(greedy, scores.argmax(-1), drawn)
        return drawn, chances.gather(-1, drawn[:, None]).squeeze(-1).log()

    def _leave_out(self, scores: Tensor) -> None:
        """All but each row's `top_k` likeliest tokens."""
        most = min(int(self._top.max()), scores.shape[-1])
        if most == 0:
            return
        ranked = scores.topk(most).values
        least = ranked.gather(-1, (self._top.clamp(1, most) - 1).unsqueeze(-1))
        scores.masked_fill_((scores < least) & (self._top > 0).unsqueeze(-1), -torch.inf)


def _stopped(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str]) -> bool:
    tail = _text(tokenizer, tokens[-max(TAIL, *(len(each.encode()) for each in stop)) :])  # a token is a byte at least
    return any(each in tail for each in stop)


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min([at for each in stop if (at := text.find(each)) >= 0], default=len(text))]


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
