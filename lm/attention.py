"""Attention over packs of rows that share prompts: equal to plain causal attention over each sequence.

Shapes: H query heads in G groups of R = H / G, N tokens of the pack, P tokens of the shared prefix, D per head.

Three kinds of work are added up per query: the prefix (one plain product over all rows at once), each ancestor segment
(full), and the own segment (causal). A softmax over their union is the sum of exp-weighted values over the sum of
weights, so each part adds to one numerator and one denominator and nothing is masked but the segments' own triangles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lm.rows import Block, Pack

ROWS = 1024
"""Query rows of one product: its scores against a prefix of about a thousand keys stay in the cores' caches."""


TINY = 1e-30
"""Weights that sum to less than this have lost digits."""

SPREAD = 1.25
"""How much longer the longest leaf of one padded product may be than its shortest."""


@dataclass(frozen=True)
class PrefixLayer:
    """Keys and values of the shared prefix in one layer, (G, P, D) each, and its mean key `center`, (G, 1, D).

    Softmax does not change when the same vector is taken from every key. Taking the mean key makes scores small, so
    that bf16 keeps their digits and exp needs no running maximum.
    """

    keys: Tensor
    values: Tensor
    center: Tensor


def prefix_layer(keys: Tensor, values: Tensor) -> PrefixLayer:
    """Make a layer's prefix from its keys and values, (P, G, D)."""
    keys, values = keys.transpose(0, 1).contiguous(), values.transpose(0, 1).contiguous()
    center = keys.mean(1, keepdim=True)
    return PrefixLayer(keys.sub_(center), values, center)


@dataclass(frozen=True)
class Leaves:
    """Segments of about the same length, padded to one (n, L) product: `index` names each place's token; of all n * L
    places, `real` are those that hold a token, and `tokens` is which.
    """

    index: Tensor
    real: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Plan:
    """What is multiplied with what in every layer of one pass."""

    blocks: Sequence[Block]
    leaves: Sequence[Leaves]


def make_plan(pack: Pack, device: torch.device) -> Plan:
    """Leaves of nearly equal length go together: many small products become a few large ones."""
    groups: list[list[tuple[int, int]]] = []
    for leaf in sorted(pack.leaves, key=lambda each: each[1] - each[0]):
        size = leaf[1] - leaf[0]
        if not groups or size > SPREAD * (groups[-1][0][1] - groups[-1][0][0]) + 4:
            groups.append([])
        groups[-1].append(leaf)
    return Plan(pack.blocks, [_leaves(group, len(pack.tokens), device) for group in groups])


def _leaves(group: Sequence[tuple[int, int]], count: int, device: torch.device) -> Leaves:
    starts, ends = (torch.tensor(each, device=device).unsqueeze(1) for each in zip(*group, strict=True))
    index = starts + torch.arange(int((ends - starts).max()), device=device)
    real = (index < ends).flatten().nonzero().squeeze(1)
    return Leaves(index.clamp(max=count - 1), real, index.flatten()[real])


@torch.no_grad()
def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, *, plan: Plan, prefix: PrefixLayer | None, stable: bool
) -> Tensor:
    """Attend as the plan says, and to the prefix. `query` (N, H, D) is scaled already; `key`, `value` (N, G, D).

    Returns (N, H * D). Without `stable`, exp is taken of the centered scores as they are: a row whose scores leave
    about -87..88 comes out as NaN or infinity, never as a wrong number, and the caller repeats the pass with `stable`.
    """
    count, heads, width = query.shape
    groups = key.shape[1]
    repeat = heads // groups
    # (G, N * R, D): a group's rows token by token, so that a range of tokens is a range of rows.
    rows = query.view(count, groups, repeat * width).transpose(0, 1).reshape(groups, count * repeat, width)
    key, value = key.transpose(0, 1).contiguous(), value.transpose(0, 1).contiguous()
    center = key.mean(1, keepdim=True) if prefix is None else prefix.center
    key.sub_(center)
    shift = _row_maximum(rows, key, plan, prefix, repeat) if stable else None
    top = rows.new_empty(rows.shape) if prefix is not None else rows.new_zeros(rows.shape)
    bottom = rows.new_zeros(rows.shape[:2])
    if prefix is not None:
        _add_prefix(rows, prefix, shift, top, bottom)
    for leaves in plan.leaves:
        _add_leaves(rows, key, value, leaves, repeat, shift, top, bottom)
    for block in plan.blocks:
        _add_block(rows, key, value, block, repeat, shift, top, bottom)
    # Weights that left the range make the row NaN, for the caller to see; infinity less itself is NaN.
    bottom = bottom + (bottom - bottom)
    bottom.masked_fill_(bottom < TINY, torch.nan)
    out = top.div_(bottom.unsqueeze(-1))
    return out.view(groups, count, repeat * width).transpose(0, 1).reshape(count, heads * width)


def _add_prefix(rows: Tensor, prefix: PrefixLayer, shift: Tensor | None, top: Tensor, bottom: Tensor) -> None:
    """One product per group and piece of rows: each piece's scores are made, used and forgotten in cache."""
    buffer = rows.new_empty(ROWS, prefix.keys.shape[1])
    for group in range(rows.shape[0]):
        keys = prefix.keys[group].t()
        for start in range(0, rows.shape[1], ROWS):
            piece = slice(start, start + ROWS)
            queries = rows[group, piece]
            scores = torch.mm(queries, keys, out=buffer[: len(queries)])
            if shift is not None:
                scores.sub_(shift[group, piece, None])
            scores.exp_()
            torch.mm(scores, prefix.values[group], out=top[group, piece])
            torch.sum(scores, -1, out=bottom[group, piece])


def _add_block(
    rows: Tensor,
    key: Tensor,
    value: Tensor,
    block: Block,
    repeat: int,
    shift: Tensor | None,
    top: Tensor,
    bottom: Tensor,
) -> None:
    keys, piece = slice(block.start, block.end), slice(block.start * repeat, block.last * repeat)
    scores = torch.bmm(rows[:, piece], key[:, keys].transpose(1, 2))
    if shift is not None:
        scores.sub_(shift[:, piece, None])
    _forget_the_future(scores.exp_(), repeat, 0.0)
    top[:, piece] += torch.bmm(scores, value[:, keys])
    bottom[:, piece] += scores.sum(-1)


def _add_leaves(
    rows: Tensor,
    key: Tensor,
    value: Tensor,
    leaves: Leaves,
    repeat: int,
    shift: Tensor | None,
    top: Tensor,
    bottom: Tensor,
) -> None:
    """All leaves of a group at once. Places without a token come last in their row, so no real query sees them."""
    groups, total, width = rows.shape
    many, size = leaves.index.shape
    by_token = (groups, total // repeat, -1)
    keys, values = (each[:, leaves.index].view(groups * many, size, width) for each in (key, value))
    queries = rows.view(by_token)[:, leaves.index].view(groups * many, size * repeat, width)
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if shift is not None:
        scores.sub_(shift.view(by_token)[:, leaves.index].view(groups * many, size * repeat, 1))
    _forget_the_future(scores.exp_(), repeat, 0.0)
    found = torch.bmm(scores, values).view(groups, many * size, -1)[:, leaves.real]
    weights = scores.sum(-1).view(groups, many * size, -1)[:, leaves.real]
    top.view(by_token)[:, leaves.tokens] += found
    bottom.view(by_token)[:, leaves.tokens] += weights


def _forget_the_future(scores: Tensor, repeat: int, nothing: float) -> None:
    """Fill, in the leading square of (G, n * R, size), the keys that come after their query."""
    groups, _, size = scores.shape
    square = scores[:, : size * repeat].view(groups, size, repeat, size)
    square.masked_fill_(_future(size, scores.device), nothing)


@lru_cache(maxsize=512)
def _future(size: int, device: torch.device) -> Tensor:
    """(size, 1, size): True where the key comes after the query."""
    return torch.ones(size, size, dtype=torch.bool, device=device).triu_(1).unsqueeze(1)


def _row_maximum(rows: Tensor, key: Tensor, plan: Plan, prefix: PrefixLayer | None, repeat: int) -> Tensor:
    """The largest score of each row, (G, N * R): subtracting it keeps exp within range whatever the scores."""
    best = rows.new_full(rows.shape[:2], -torch.inf)
    if prefix is not None:
        for start in range(0, rows.shape[1], ROWS):
            piece = slice(start, start + ROWS)
            best[:, piece] = torch.bmm(rows[:, piece], prefix.keys.transpose(1, 2)).amax(-1)
    alone = [Block(start, end, end) for each in plan.leaves for start, end in _ranges(each)]
    for block in [*plan.blocks, *alone]:
        piece = slice(block.start * repeat, block.last * repeat)
        scores = torch.bmm(rows[:, piece], key[:, block.start : block.end].transpose(1, 2))
        _forget_the_future(scores, repeat, -torch.inf)
        best[:, piece] = torch.maximum(best[:, piece], scores.amax(-1))
    return best


def _ranges(leaves: Leaves) -> list[tuple[int, int]]:
    """The token ranges of a group's leaves."""
    many, size = leaves.index.shape
    lengths = torch.bincount(leaves.real // size, minlength=many).tolist()
    return [(start, start + length) for start, length in zip(leaves.index[:, 0].tolist(), lengths, strict=True)]
