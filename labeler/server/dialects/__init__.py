"""One small file a framework: its words in, its words out. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from labeler.server.dialects import llama_factory, native, nemo_gym, openrlhf, pooling, slime
from labeler.server.wire import Endpoint, Serving

DIALECTS: tuple[Callable[[Serving], list[Endpoint]], ...] = (
    native.endpoints,
    openrlhf.endpoints,
    slime.endpoints,
    llama_factory.endpoints,
    nemo_gym.endpoints,
    pooling.endpoints,
)
