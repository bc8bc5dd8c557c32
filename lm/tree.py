"""Attention over packs of rows that share prompts, with gradients: any model of transformers attends through it.

Nothing of a model is written anew: transformers lets a model's attention be named, so its own forward, adapters,
checkpointing and sharding work as they are, and only what a token may see is ours. On a CPU the products are written
out, one span of queries at a time, and nothing of a score matrix is kept for the backward pass; elsewhere FlexAttention
takes the same tree as a block mask.

Shapes: N tokens of a pack, H query heads in G groups of R = H / G, D width of a head; n queries, L keys of a span.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lm.errors import ModelError
from lm.rows import Pack, Span, pack, spans

NAME = "rlaif_tree"
"""What a model's config calls this attention."""


@dataclass(frozen=True)
class Tree:
    """Who attends to whom in one pack: `spans` for products, `mask` for FlexAttention, whichever the device takes."""

    spans: Sequence[Span]
    mask: Any = None


class Laid(NamedTuple):
    """A pack as a model takes it: `input_ids` and `position_ids` (1, N), and the tree."""

    input_ids: Tensor
    position_ids: Tensor
    tree: Tree


def lay(pack: Pack, device: torch.device) -> Laid:
    """A pack on a device."""
    ids, positions = (torch.tensor([each], device=device) for each in (pack.tokens, pack.positions))
    found = spans(pack)
    return Laid(ids, positions, Tree(found) if device.type == "cpu" else Tree(found, block_mask(found, device)))


def use(model: Any) -> None:
    """Make a model attend through trees: its forward then needs `tree`. Raises ModelError for one that cannot.

    Some layers carry what came before in other ways than attention (recurrence, convolution, distances in the scores):
    a few tokens told both ways show it, before a long run learns from wrong numbers.
    """
    config = model.config
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        raise ModelError(f"{config.model_type}: its sliding window is not supported in training; take another model")
    if getattr(config, "is_encoder_decoder", False) or not hasattr(model, "set_attn_implementation"):
        raise ModelError(f"{config.model_type}: only causal language models can be trained")
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    if _used(model):
        return
    was = model.training
    model.eval()
    try:
        plain = [_states(model, [each])[each] for each in _PROBE]
        model.set_attn_implementation(NAME)
        shared = _states(model, _PROBE)
    except Exception as error:  # transformers names what a model cannot do in many ways
        raise ModelError(f"{config.model_type}: cannot attend through trees: {error}") from error
    model.train(was)
    far = FAR if next(model.parameters()).dtype == torch.float32 else FAR_ROUNDED
    for each, expected in zip(_PROBE, plain, strict=True):
        if not float((shared[each] - expected).norm()) <= far * float(expected.norm()):
            raise ModelError(
                f"{config.model_type}: its layers do not keep texts with a common beginning apart, so it cannot be"
                " trained here; take a model with attention in every layer"
            )


@contextmanager
def unused(model: Any) -> Generator[None]:
    """The model attends plainly meanwhile."""
    used = _used(model)
    if used:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if used:
            model.set_attn_implementation(NAME)


def _used(model: Any) -> bool:
    return model.config._attn_implementation == NAME  # noqa: SLF001  transformers has no public name for it


FAR, FAR_ROUNDED = 0.01, 0.4
"""How far, of its length, a hidden state may move: rounding in bf16 moves one by up to a sixth, another text by all."""

_PROBE = ((3, 4, 5, 6, 7, 8, 9), (3, 4, 5, 10, 9))
"""Two sequences that begin alike."""


@torch.no_grad()
def _states(model: Any, sequences: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
    """The last hidden state of each sequence, plainly where the model does not attend through trees yet."""
    device = next(model.parameters()).device
    found = pack(sequences)
    laid = lay(found, device)
    ids = {"input_ids": laid.input_ids, "position_ids": laid.position_ids, "use_cache": False}
    own = {"tree": laid.tree} if _used(model) else {}
    hidden = model.base_model(**ids, **own).last_hidden_state[0].float()
    return {each: hidden[found.ends[each]] for each in sequences}


def _attend(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Any,
    *,
    tree: Tree | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a layer of transformers calls: (1, H, N, D), (1, G, N, D) twice; returns (1, N, H, D)."""
    if tree is None:
        raise TypeError("this model attends through trees: call it with one (lm.tree.lay)")
    if kwargs.get("dropout") or any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "sliding_window")):
        raise ModelError(
            "this model caps, windows or drops out its attention, which training does not support; take another model"
        )
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary positions in fp32 widen them under autocast
    if tree.mask is None:
        return _products(query[0], key[0], value[0], tree.spans, scale).transpose(0, 1).unsqueeze(0), None
    out = _flex()(query, key, value, block_mask=tree.mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2), None


# A compiled graph would be of one tree alone, and takes minutes to make.
@torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
def _products(query: Tensor, key: Tensor, value: Tensor, tree: Sequence[Span], scale: float) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # which would round scores
        return _Products.apply(query, key, value, tree, scale)


class _Products(torch.autograd.Function):
    """Softmax attention over the spans. Backward computes scores anew from the kept log-sum-exp (Dao et al. 2022)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Sequence[Span], scale: float) -> Tensor:
        """query (H, N, D), key and value (G, N, D) -> (H, N, D)."""
        out = query.new_empty(*query.shape[:2], value.shape[-1])
        weights = query.new_empty(query.shape[:2], dtype=torch.float32)
        for span in tree:
            q, own = _rows(query, span, len(key)), slice(span.start, span.end)
            scores = _scores(q, _keys(key, span), span, scale)
            highest = scores.amax(-1, keepdim=True)
            total = scores.sub_(highest).exp_().sum(-1, keepdim=True)
            found = torch.bmm(scores.to(value.dtype), _keys(value, span)).div_(total)
            out[:, own] = found.view(len(query), -1, found.shape[-1])
            weights[:, own] = total.log_().add_(highest).view(len(query), -1)
        ctx.save_for_backward(query, key, value, out, weights)
        ctx.tree, ctx.scale = tree, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Gradients of query, key and value."""
        query, key, value, out, weights = ctx.saved_tensors
        (above,) = gradients
        d_query, d_key, d_value = (torch.zeros_like(each) for each in (query, key, value))
        delta = (above.float() * out.float()).sum(-1)
        groups = len(key)
        for span in ctx.tree:
            own = slice(span.start, span.end)
            q, down, k, v = _rows(query, span, groups), _rows(above, span, groups), _keys(key, span), _keys(value, span)
            total, less = (each[:, own].reshape(groups, -1, 1) for each in (weights, delta))
            chances = _scores(q, k, span, ctx.scale).sub_(total).exp_()
            narrow = chances.to(v.dtype)
            _add(d_value, span, torch.bmm(narrow.transpose(1, 2), down))
            slopes = torch.bmm(down, v.transpose(1, 2)).float().sub_(less).mul_(chances).mul_(ctx.scale).to(v.dtype)
            _add(d_key, span, torch.bmm(slopes.transpose(1, 2), q))
            d_query[:, own] = torch.bmm(slopes, k).view(len(query), -1, query.shape[-1])
        return d_query, d_key, d_value, None, None


def _rows(x: Tensor, span: Span, groups: int) -> Tensor:
    """A span's queries, (G, R * n, D): the heads of a group one after another."""
    return x[:, span.start : span.end].reshape(groups, -1, x.shape[-1])


def _keys(x: Tensor, span: Span) -> Tensor:
    """What a span sees, (G, L, D): what stands before it, then itself."""
    ranges = [*span.before, (span.start, span.end)]
    return torch.cat([x[:, a:b] for a, b in ranges], 1) if len(ranges) > 1 else x[:, ranges[0][0] : ranges[0][1]]


def _add(total: Tensor, span: Span, found: Tensor) -> None:
    at = 0
    for start, end in (*span.before, (span.start, span.end)):
        total[:, start:end] += found[:, at : at + end - start]
        at += end - start


def _scores(q: Tensor, k: Tensor, span: Span, scale: float) -> Tensor:
    """Scaled scores in fp32, (G, R * n, L), with what comes after a query at minus infinity."""
    size = span.end - span.start
    scores = torch.bmm(q.float(), k.float().transpose(1, 2)).mul_(scale)
    scores.view(-1, size, scores.shape[-1])[:, :, -size:].masked_fill_(_future(size), -torch.inf)
    return scores


@lru_cache(maxsize=512)
def _future(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).triu_(1)


@lru_cache(maxsize=1)
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def block_mask(tree: Sequence[Span], device: torch.device) -> Any:
    """The tree for FlexAttention: a key is seen by the queries after it, up to the last of its subtree."""
    from torch.nn.attention.flex_attention import create_block_mask

    count = tree[-1].end if tree else 0
    last = torch.zeros(count, dtype=torch.long)
    for span in tree:
        for start, end in (*span.before, (span.start, span.end)):
            last[start:end].clamp_(min=span.end)
    last = last.to(device)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < last[key])

    return create_block_mask(sees, None, None, count, count, device=str(device), _compile=device.type == "cuda")
