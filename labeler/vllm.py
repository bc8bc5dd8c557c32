"""A model in this process through vLLM's offline engine: for GPUs, and for more prompts than transformers can take.

The engine's prefix cache keeps what prompts begin with; likelihoods are exact for the very tokens that write an option
(`logprob_token_ids`), however unlikely they are.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from labeler.backend import BackendError, Choose, Failed, Likelihoods, Text, Usage, Write
from lm import strings
from lm.chat import Encoder
from lm.load import commit_hash, files_hash, find
from prompts.render import Prompt

if TYPE_CHECKING:
    from lm.rows import Tokens

Q = TypeVar("Q")
A = TypeVar("A")

ROOM = 4
"""Tokens that an answer may take beyond its prompt."""


class VllmBackend:
    """One batch at a time in a thread; the engine itself decides what runs together."""

    calls = 1
    priced = True
    rows = 512

    def __init__(self, name: str, identity: str, engine: Any) -> None:
        self.name, self.identity, self._engine = name, identity, engine
        self._params: Any = import_module("vllm").SamplingParams
        self._encoder = Encoder(engine.get_tokenizer())
        self._one = Lock()  # a cancelled call's thread runs to its end; the next one waits for it
        self._context = int(engine.llm_engine.model_config.max_model_len)

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        return await asyncio.to_thread(self._alone, self._likelihoods, requests)

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        return await asyncio.to_thread(self._alone, self._texts, requests)

    def overflow(self, request: Choose | Write) -> int:
        extra = request.max_tokens if isinstance(request, Write) else ROOM
        room = self._context - extra
        # A token is at least one byte, so most prompts need not be encoded to know that they fit.
        if len(request.prompt.plain().encode("utf-8", "replace")) + 128 <= room:
            return 0
        return max(0, len(self._encode(request.prompt)) - room)

    async def close(self) -> None:
        await asyncio.to_thread(self._engine.llm_engine.engine_core.shutdown)

    def _alone(self, verb: Callable[[Q], A], requests: Q) -> A:
        with self._one:
            return verb(requests)

    def _encode(self, prompt: Prompt) -> Tokens:
        return self._encoder.encode(prompt.system, prompt.user, prompt.answer)

    def _likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        started = time.perf_counter()
        prompts = [self._encode(request.prompt) for request in requests]
        asks = [
            (tokens, self._encoder.continuations(request.prompt.answer, request.options))
            for tokens, request in zip(prompts, requests, strict=True)
        ]
        places = strings.places(asks)
        known = self._look_up(places)
        found = [strings.complete(tokens, variants, known) for tokens, variants in asks]
        share = (time.perf_counter() - started) / max(1, len(requests))
        return [
            Failed("nan", "the model gave NaN in place of log-probabilities")
            if any(math.isnan(value) for value in values)
            else Likelihoods(tuple(values), Usage(len(tokens), 1, 0.0, share))
            for tokens, values in zip(prompts, found, strict=True)
        ]

    def _look_up(self, places: dict[Tokens, set[int]]) -> dict[tuple[Tokens, int], float]:
        """The log-probability of each token after each sequence; sorted, so that the cache meets like after like."""
        ordered = sorted(places)
        params = [
            self._params(max_tokens=1, temperature=1.0, logprob_token_ids=sorted(places[sequence]), detokenize=False)
            for sequence in ordered
        ]
        outputs = self._engine.generate(
            [{"prompt_token_ids": list(sequence)} for sequence in ordered], params, use_tqdm=False
        )
        known: dict[tuple[Tokens, int], float] = {}
        for sequence, output in zip(ordered, outputs, strict=True):
            first = output.outputs[0].logprobs[0]
            known |= {(sequence, token): float(first[token].logprob) for token in places[sequence]}
        return known

    def _texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        started = time.perf_counter()
        prompts = [self._encode(request.prompt) for request in requests]
        params = [
            self._params(
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_k=request.top_k,
                seed=request.seed % 2**31,
                stop=list(request.stop),
            )
            for request in requests
        ]
        outputs = self._engine.generate([{"prompt_token_ids": list(each)} for each in prompts], params, use_tqdm=False)
        share = (time.perf_counter() - started) / max(1, len(requests))
        return [
            Text(output.outputs[0].text, Usage(len(tokens), len(output.outputs[0].token_ids), 0.0, share))
            for tokens, output in zip(prompts, outputs, strict=True)
        ]


def open_vllm(name: str, *, cache: Path, dtype: str) -> VllmBackend:
    """`smollm2`, a model folder or a hub id. Raises ModelError, or BackendError where vLLM cannot start."""
    place = find(name, cache)
    # Its logs would mix with what is printed here, and some go to standard output.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        vllm: Any = import_module("vllm")  # untyped here: it is installed only where it is used
        engine: Any = vllm.LLM(
            model=str(place),
            dtype=dtype,
            enable_prefix_caching=True,
            enforce_eager=vllm.platforms.current_platform.is_cpu(),
            disable_log_stats=True,
            seed=0,
        )
    except Exception as error:  # vLLM raises many kinds for the same few causes
        raise BackendError(f"vllm:{name}: cannot be started: {' '.join(str(error).split())[:300]}") from error
    config = engine.llm_engine.model_config
    files = files_hash(place) if isinstance(place, Path) else commit_hash(config.revision)
    return VllmBackend(f"vllm:{name}", f"vllm:{name}@{files}/{str(config.dtype).removeprefix('torch.')}", engine)
