"""A model in this process, through transformers and torch. Prompts that begin alike are encoded once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import TypeVar

from labeler.backend import Choose, Failed, Likelihoods, Text, Usage, Write
from lm.chat import Encoder
from lm.load import LanguageModel, load
from lm.options import Options
from lm.sample import Draw, write
from prompts.render import Prompt

Q = TypeVar("Q")
A = TypeVar("A")

WRITING = 16
"""Texts written at once: their caches share the memory."""


class LocalBackend:
    """Runs one batch at a time in a thread, so that the job's journal and progress go on beside it."""

    calls = 1
    priced = True

    def __init__(self, name: str, loaded: LanguageModel) -> None:
        self.name = name
        self.identity = loaded.identity
        self.rows = 16 if loaded.model.device.type == "cpu" else 256
        self._loaded = loaded
        self._encoder = Encoder(loaded.tokenizer)
        self._one = Lock()  # a cancelled call's thread runs to its end; the next one waits for it
        self._options = Options(loaded.model)

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        return await asyncio.to_thread(self._alone, self._likelihoods, requests)

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        return await asyncio.to_thread(self._alone, self._texts, requests)

    def overflow(self, request: Choose | Write) -> int:
        extra = request.max_tokens if isinstance(request, Write) else 4
        room = self._loaded.context - extra
        prompt = request.prompt
        # A token is at least one byte, so most prompts need not be encoded to know that they fit.
        if len(prompt.plain().encode("utf-8", "replace")) + 128 <= room:
            return 0
        return max(0, len(self._encode(prompt)) - room)

    async def close(self) -> None:
        return None

    def _alone(self, verb: Callable[[Q], A], requests: Q) -> A:
        with self._one:
            return verb(requests)

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        return self._encoder.encode(prompt.system, prompt.user, prompt.answer)

    def _likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        started = time.perf_counter()
        prompts = [self._encode(request.prompt) for request in requests]
        asks = [
            (tokens, self._encoder.continuations(request.prompt.answer, request.options))
            for tokens, request in zip(prompts, requests, strict=True)
        ]
        try:
            found = self._options.log_probabilities(asks)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            return [Failed("out_of_memory", "the model's machine ran out of memory on this batch") for _ in requests]
        share = (time.perf_counter() - started) / max(1, len(requests))
        return [
            Failed("nan", "the model gave NaN in place of log-probabilities")
            if any(math.isnan(value) for value in values)
            else Likelihoods(tuple(values), Usage(len(tokens), 1, 0.0, share))
            for tokens, values in zip(prompts, found, strict=True)
        ]

    def _texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        started = time.perf_counter()
        draws = [
            Draw(self._encode(each.prompt), each.max_tokens, each.temperature, each.top_k, each.seed, each.stop)
            for each in requests
        ]
        try:
            written = write(self._loaded.model, self._loaded.tokenizer, draws, batch=WRITING)
        except ValueError as error:
            return [Failed("nan", str(error)) for _ in requests]
        share = (time.perf_counter() - started) / max(1, len(requests))
        return [
            Text(each.text, Usage(len(draw.prompt), each.tokens, 0.0, share))
            for draw, each in zip(draws, written, strict=True)
        ]


def open_local(name: str, *, cache: Path, dtype: str, device: str) -> LocalBackend:
    """`smollm2`, a model folder or a hub id. Raises ModelError."""
    return LocalBackend(f"local:{name}", load(name, cache=cache, dtype=dtype, device=device))
