"""A model in this process through vLLM's offline engine: for GPUs, and for more prompts than transformers can take.

The engine's prefix cache keeps what prompts begin with; likelihoods are exact for the very tokens that write an option
(`logprob_token_ids`), however unlikely they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from labeler.backend import BackendError
from labeler.engine import InProcess
from lm import strings
from lm.chat import Encoder
from lm.load import commit_hash, files_hash, find
from lm.rows import Tokens
from lm.sample import Draw, Written
from lm.strings import Variants

ROWS = 512
"""Rows of a job that one call carries; the engine itself decides what runs together."""


class _Vllm:
    """vLLM's `LLM` as an engine."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._params: Any = import_module("vllm").SamplingParams

    def log_probabilities(self, asks: Sequence[tuple[Tokens, Variants]]) -> list[list[float]]:
        known = self._look_up(strings.places(asks))
        return [strings.complete(tokens, variants, known) for tokens, variants in asks]

    def _look_up(self, places: Mapping[Tokens, set[int]]) -> dict[tuple[Tokens, int], float]:
        """The log-probability of each token after each sequence; sorted, so that the cache meets like after like."""
        ordered = sorted(places)
        params = [
            self._params(max_tokens=1, temperature=1.0, logprob_token_ids=sorted(places[sequence]), detokenize=False)
            for sequence in ordered
        ]
        known: dict[tuple[Tokens, int], float] = {}
        for sequence, output in zip(ordered, self._generate(ordered, params), strict=True):
            first = output.logprobs[0]
            known |= {(sequence, token): float(first[token].logprob) for token in places[sequence]}
        return known

    def write(self, draws: Sequence[Draw]) -> list[Written]:
        params = [
            self._params(
                max_tokens=draw.max_tokens,
                temperature=draw.temperature,
                top_k=draw.top_k,
                seed=draw.seed % 2**31,
                stop=list(draw.stop),
            )
            for draw in draws
        ]
        outputs = self._generate([draw.prompt for draw in draws], params)
        return [Written(each.text, tuple(each.token_ids), (), each.finish_reason == "stop") for each in outputs]

    def close(self) -> None:
        self._model.llm_engine.engine_core.shutdown()

    def _generate(self, prompts: Sequence[Tokens], params: Sequence[Any]) -> list[Any]:
        """The one output of each prompt."""
        inputs = [{"prompt_token_ids": list(each)} for each in prompts]
        return [each.outputs[0] for each in self._model.generate(inputs, params, use_tqdm=False)]


def open_vllm(name: str, *, cache: Path, dtype: str) -> InProcess:
    """`smollm2`, a model folder or a hub id. Raises ModelError, or BackendError where vLLM cannot start."""
    place = find(name, cache)
    # Its logs would mix with what is printed here, and some go to standard output.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        vllm: Any = import_module("vllm")  # untyped here: it is installed only where it is used
        model: Any = vllm.LLM(
            model=str(place),
            dtype=dtype,
            enable_prefix_caching=True,
            enforce_eager=vllm.platforms.current_platform.is_cpu(),
            disable_log_stats=True,
            seed=0,
        )
    except Exception as error:  # vLLM raises many kinds for the same few causes
        raise BackendError(f"vllm:{name}: cannot be started: {' '.join(str(error).split())[:300]}") from error
    config = model.llm_engine.model_config
    files = files_hash(place) if isinstance(place, Path) else commit_hash(config.revision)
    return InProcess(
        f"vllm:{name}",
        f"vllm:{name}@{files}/{str(config.dtype).removeprefix('torch.')}",
        _Vllm(model),
        Encoder(model.get_tokenizer()),
        context=int(config.max_model_len),
        rows=ROWS,
    )
