"""Which shape does a file have, and what does it say? One small module a shape; the first that matches reads."""

from __future__ import annotations

from data.sources import alpaca, chosen_rejected, completions, native, prompts, response_ab, tldr, transcripts
from data.sources.shape import Shape

COMPARISON_SHAPES: tuple[Shape, ...] = (
    native.COMPARISONS,
    tldr.SHAPE,
    chosen_rejected.SHAPE,
    response_ab.SHAPE,
    alpaca.SHAPE,
)
"""A new shape is one new file and one line here."""

RESPONSE_SHAPES: tuple[Shape, ...] = (native.RESPONSES, completions.SHAPE, transcripts.SHAPE)

PROMPT_SHAPES: tuple[Shape, ...] = (prompts.SHAPE,)
