"""One small file a framework: its words in, its words out. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter

from labeler.server.dialects import llama_factory, native, nemo_gym, openrlhf, pooling, slime
from labeler.server.wire import Serving

DIALECTS: tuple[Callable[[Serving], APIRouter], ...] = (
    native.router,
    openrlhf.router,
    slime.router,
    llama_factory.router,
    nemo_gym.router,
    pooling.router,
)
