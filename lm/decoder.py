"""A forward pass of a decoder over packs of rows, written out: norms, rotary positions, attention, gated MLP.

It runs the modules of a Hugging Face model of the Llama family (Llama, Mistral, Qwen2, Qwen3, SmolLM2, ...) in their
order but attends through `tree_attention`, so that a prompt shared by many rows is computed once. Inference only.

Shapes: N tokens of a pack, C hidden width, H query heads, G key heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lm.attention import PrefixLayer, make_plan, prefix_layer, tree_attention
from lm.rows import Pack, chain

FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""`config.model_type` of the models whose layers are as written here; others go through their own forward."""


ROPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary positions that do not depend on how long the sequence is, so that a prefix's keys hold for all."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]
"""What a layer, by its number, makes of its queries (N, H, D), which are scaled, keys and values (N, G, D): (N, H * D).
"""


@dataclass(frozen=True)
class Prefix:
    """A prefix that was computed once: its tokens, and each layer's keys and values."""

    tokens: tuple[int, ...]
    layers: list[PrefixLayer]


def supports(model: Any) -> bool:
    """Whether `forward` computes what the model's own forward does."""
    config = model.config
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (
        config.model_type in FAMILY
        and rope in ROPES
        and not windowed
        and getattr(config, "hidden_act", "silu") == "silu"
    )


@torch.no_grad()
def encode_prefix(model: Any, tokens: tuple[int, ...]) -> Prefix:
    """Keys and values of a prefix, for `forward`."""
    layers: list[PrefixLayer] = []
    pack = Pack(list(tokens), list(range(len(tokens))), [], chain(0, len(tokens), len(tokens)), [], {})
    last = len(model.model.layers) - 1
    for stable in (model.dtype == torch.float16, True):
        layers.clear()
        attend = trees(pack, None, stable=stable, device=model.device)

        def keep(index: int, query: Tensor, key: Tensor, value: Tensor, attend: Attend = attend) -> Tensor | None:
            layers.append(prefix_layer(key, value))
            return attend(index, query, key, value) if index < last else None

        layers_of(model, *laid(model, pack.tokens, pack.positions), keep)
        if bool(torch.isfinite(layers[-1].keys).all()):
            break
    return Prefix(tokens, layers)


@torch.no_grad()
def forward(model: Any, pack: Pack, prefix: Prefix | None, wanted: Sequence[int]) -> Tensor:
    """The last hidden states at the places `wanted`, (len(wanted), C), ready for the head."""
    places = torch.tensor(list(wanted), device=model.device)

    def states(*, stable: bool) -> Tensor:
        attend = trees(pack, prefix, stable=stable, device=model.device)
        return layers_of(model, *laid(model, pack.tokens, pack.positions), attend, places)

    if model.dtype == torch.float16:  # whose range is too small to go without the maximum
        return states(stable=True)
    hidden = states(stable=False)
    finite = torch.isfinite(hidden).all(-1, keepdim=True)
    # A sequence whose scores are too large does not change how those beside it are rounded.
    return hidden if bool(finite.all()) else torch.where(finite, hidden, states(stable=True))


def laid(model: Any, tokens: Sequence[int], positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Tokens and their positions as `layers_of` takes them."""
    return torch.tensor(tokens, device=model.device), torch.tensor(positions, device=model.device)


def layers_of(model: Any, tokens: Tensor, positions: Tensor, attend: Attend, places: Tensor | None = None) -> Tensor:
    """All layers and the last norm over tokens (N,) at positions (N,): hidden states (N, C), or those of `places`.

    Each layer mixes what `attend` makes of it; where that is None, the states so far come back.
    """
    decoder = model.model
    hidden = decoder.embed_tokens(tokens)
    cos, sin = (each.transpose(0, 1) for each in decoder.rotary_emb(hidden, position_ids=positions.unsqueeze(0)))
    for index, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        normed = _norm(layer.input_layernorm, hidden)
        key = _rotate(_heads(attention, "k", normed), cos, sin)
        value = _heads(attention, "v", normed)
        query = _rotate(_heads(attention, "q", normed), cos, sin).mul_(attention.scaling)
        mixed = attend(index, query, key, value)
        if mixed is None:
            return hidden
        if places is not None and index == len(decoder.layers) - 1:
            hidden, mixed = hidden[places], mixed[places]
        hidden.add_(attention.o_proj(mixed))
        normed = _norm(layer.post_attention_layernorm, hidden)
        gate = F.silu(layer.mlp.gate_proj(normed), inplace=True)
        hidden.add_(layer.mlp.down_proj(gate.mul_(layer.mlp.up_proj(normed))))
    return _norm(decoder.norm, hidden)


def trees(pack: Pack, prefix: Prefix | None, *, stable: bool, device: torch.device) -> Attend:
    """Attention within a pack, and to a prefix."""
    plan = make_plan(pack, device)

    def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        own = None if prefix is None else prefix.layers[index]
        return tree_attention(query, key, value, plan=plan, prefix=own, stable=stable)

    return attend


def _norm(module: Any, x: Tensor) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019): x / rms(x) * weight over the last dimension, the mean square in fp32."""
    weight, epsilon = module.weight, module.variance_epsilon
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    scale = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return torch.mul(x, scale.to(x.dtype)).mul_(weight)


def _heads(attention: Any, letter: str, normed: Tensor) -> Tensor:
    """Project (N, C) to heads, (N, H or G, D); Qwen3 normalises each head of q and k."""
    projected = getattr(attention, f"{letter}_proj")(normed).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{letter}_norm", None)
    if norm is not None:
        projected = _norm(norm, projected)
    return projected


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): each head's halves turn into one another. x (N, H, D); cos, sin (N, 1, D)."""
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out
