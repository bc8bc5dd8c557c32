"""One token after another: rows that continue prompts, with keys and values kept.

A prompt is computed once, and its keys and values stand once for all of the rows that continue it. Models whose layers
are not written out in decoder.py go through their own forward and cache.

Shapes: B rows, P prompts, L the longest prompt, T tokens of a row so far, V vocabulary; H query heads in G groups of
R = H / G, D width of a head.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lm import decoder, tree
from lm.rows import Tokens, pack

GROW = 64
"""Tokens of room that are added to rows at a time."""


class Rows(Protocol):
    """Rows under way."""

    logits: Tensor
    """Of the next token of each row, (B, V)."""

    def step(self, tokens: Tensor) -> None:
        """Write one token, (B,), to each row."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        ...


@contextmanager
def decoding(model: Any, prompts: Sequence[Tokens], of: Sequence[int]) -> Generator[Rows]:
    """Begin rows: row b continues prompt `of[b]`. The model is in evaluation mode meanwhile."""
    was = model.training
    model.eval()
    try:
        if decoder.supports(model):
            yield _Shared(model, prompts, of)
        else:
            with tree.unused(model):
                yield _Plain(model, prompts, of)
    finally:
        model.train(was)


class _Shared:
    """Rows of a model of the Llama family."""

    def __init__(self, model: Any, prompts: Sequence[Tokens], of: Sequence[int]) -> None:
        self._model, device = model, model.device
        laid = pack(prompts)
        places = [laid.path(prompt, 0) for prompt in prompts]
        longest = max(map(len, places))
        index = torch.tensor([each + [0] * (longest - len(each)) for each in places], device=device)
        self._lengths = torch.tensor([len(each) for each in places], device=device)
        self._prompts: list[tuple[Tensor, Tensor]] = []
        within = decoder.trees(laid, None, stable=True, device=device)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
            query, key = query.to(value.dtype), key.to(value.dtype)
            # (P * G, L, D), so that a step is one product over all prompts
            keys, values = (each[index].transpose(1, 2).flatten(0, 1) for each in (key, value))
            self._prompts.append((keys, values))
            return within(layer, query, key, value)

        ends = torch.tensor([laid.ends[prompt] for prompt in prompts], device=device)
        hidden = decoder.layers_of(model, *decoder.laid(model, laid.tokens, laid.positions), attend, ends)
        self._of = torch.tensor(of, device=device)
        self._own: list[tuple[Tensor, Tensor]] = []
        self._count = 0
        self._place()
        self.logits = model.lm_head(hidden)[self._of]

    def step(self, tokens: Tensor) -> None:
        positions = self._lengths[self._of] + self._count
        self._count += 1
        hidden = decoder.layers_of(self._model, tokens, positions, self._attend)
        self.logits = self._model.lm_head(hidden)

    def keep(self, rows: Tensor) -> None:
        self._of, self.logits = self._of[rows], self.logits[rows]
        self._own = [(keys[rows], values[rows]) for keys, values in self._own]
        self._place()

    def _place(self) -> None:
        """Where each row stands in a grid of prompts and the rows of each, (P, n)."""
        counts = torch.bincount(self._of, minlength=len(self._lengths))
        order = self._of.argsort(stable=True)
        first = counts.cumsum(0) - counts
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - first[self._of[order]]
        self._most = int(counts.max())
        self._cell = self._of * self._most + rank
        longest = int(self._lengths.max())
        ahead = torch.arange(longest, device=self._of.device) >= self._lengths[self._of, None]
        self._ahead = ahead[:, None, None, :] if bool(ahead.any()) else None

    def _attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each row's query sees its prompt, and what the row wrote so far."""
        query, key = query.to(value.dtype), key.to(value.dtype)
        rows, heads, width = query.shape
        groups = key.shape[1]
        repeat = heads // groups
        prompt_keys, prompt_values = self._prompts[layer]
        keys, values = self._room(layer, key, value)
        mine = query.view(rows, groups, repeat, width)
        grid = self._to_grid(mine)
        far = self._to_rows(torch.bmm(grid, prompt_keys.transpose(1, 2)), groups)
        if self._ahead is not None:
            far.masked_fill_(self._ahead, -torch.inf)
        near = torch.matmul(mine, keys.transpose(2, 3))
        length = far.shape[-1]
        weights = torch.cat([far, near], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
        mixed = self._to_rows(torch.bmm(self._to_grid(weights[..., :length]), prompt_values), groups)
        return (mixed + torch.matmul(weights[..., length:], values)).reshape(rows, -1)

    def _room(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The rows' own keys and values with this token's, (B, G, T, D)."""
        at = self._count - 1
        if layer == len(self._own):
            shape = (key.shape[0], key.shape[1], GROW, key.shape[2])
            self._own.append((value.new_empty(shape), value.new_empty(shape)))
        kept = self._own[layer]
        if at == kept[0].shape[2]:
            kept = self._own[layer] = (F.pad(kept[0], (0, 0, 0, GROW)), F.pad(kept[1], (0, 0, 0, GROW)))
        kept[0][:, :, at], kept[1][:, :, at] = key, value
        return kept[0][:, :, : self._count], kept[1][:, :, : self._count]

    def _to_grid(self, x: Tensor) -> Tensor:
        """(B, G, R, X) -> (P * G, n * R, X)."""
        _, groups, repeat, width = x.shape
        grid = x.new_zeros(len(self._lengths) * self._most, groups, repeat, width)
        grid[self._cell] = x
        grid = grid.view(-1, self._most, groups, repeat, width).transpose(1, 2)
        return grid.reshape(-1, self._most * repeat, width)

    def _to_rows(self, grid: Tensor, groups: int) -> Tensor:
        """(P * G, n * R, X) -> (B, G, R, X)."""
        width = grid.shape[-1]
        x = grid.view(-1, groups, self._most, grid.shape[1] // self._most, width).transpose(1, 2)
        return x.flatten(0, 1)[self._cell]


class _Plain:
    """Rows of any causal model, through its own forward."""

    def __init__(self, model: Any, prompts: Sequence[Tokens], of: Sequence[int]) -> None:
        self._model = model
        ids, mask = _left_padded(prompts, model.device)
        positions = (mask.cumsum(1) - 1).clamp_(min=0)
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        rows = torch.tensor(of, device=model.device)
        self._cache, self._mask, self.logits = out.past_key_values, mask[rows], out.logits[rows, -1]
        self._cache.batch_select_indices(rows)

    def step(self, tokens: Tensor) -> None:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        positions = self._mask.sum(1, keepdim=True) - 1
        out = self._model(
            tokens[:, None],
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self.logits = out.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask, self.logits = self._mask[rows], self.logits[rows]


def _left_padded(prompts: Sequence[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
