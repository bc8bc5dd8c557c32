"""vLLM as an engine, in a process beside this one: likelihoods of tokens, texts, and newer weights when they come.

The engine's prefix cache keeps what prompts begin with; likelihoods are exact for the very tokens that were asked for
(`logprob_token_ids`), however unlikely they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lm import strings
from lm.errors import ModelError
from lm.load import commit_hash, files_hash, find
from lm.rows import Tokens
from lm.sample import Draw, Written
from lm.strings import Ask


class Vllm:
    """vLLM's `LLM`."""

    def __init__(self, model: Any, place: Path | str, *, likelihoods: bool) -> None:
        self._model, self._likelihoods = model, likelihoods
        self._params: Any = import_module("vllm").SamplingParams
        config = model.llm_engine.model_config
        files = files_hash(place) if isinstance(place, Path) else commit_hash(config.revision)
        self.identity = f"{files}/{str(config.dtype).removeprefix('torch.')}"
        self.context = int(config.max_model_len)
        self.tokenizer = model.get_tokenizer()

    def log_probabilities(self, asks: Sequence[Ask]) -> list[list[float]]:
        known = self._look_up(strings.places(asks))
        return [strings.complete(ask, known) for ask in asks]

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
                logprobs=0 if self._likelihoods else None,  # of what was drawn, and of nothing beside
            )
            for draw in draws
        ]
        outputs = self._generate([draw.prompt for draw in draws], params)
        return [
            Written(each.text, tuple(each.token_ids), _of_drawn(each), each.finish_reason == "stop") for each in outputs
        ]

    def follow(self, weights: Path) -> None:
        """Go on with the weights of a folder (safetensors under the names of transformers)."""
        self._model.collective_rpc("newer", args=(str(weights),))
        if not self._model.reset_prefix_cache():
            raise ModelError("vllm: keeps what it computed with older weights: something is still being written")

    def close(self) -> None:
        self._model.llm_engine.engine_core.shutdown()

    def _generate(self, prompts: Sequence[Tokens], params: Sequence[Any]) -> list[Any]:
        """The one output of each prompt."""
        inputs = [{"prompt_token_ids": list(each)} for each in prompts]
        return [each.outputs[0] for each in self._model.generate(inputs, params, use_tqdm=False)]


def _of_drawn(output: Any) -> tuple[float, ...]:
    found = output.logprobs or ()
    return tuple(float(each[token].logprob) for token, each in zip(output.token_ids, found, strict=bool(found)))


def start(
    name: str,
    *,
    cache: Path,
    dtype: str,
    memory: float | None = None,
    longest: int | None = None,
    likelihoods: bool = False,
) -> Vllm:
    """`smollm2`, a model folder or a hub id; `memory` is the part of the device that vLLM takes, `longest` the most
    tokens of a prompt with what is written to it. With `likelihoods`, what is written comes with log-probabilities at
    the temperature it was drawn at. Raises ModelError.
    """
    place = find(name, cache)
    # Its logs would mix with what is printed here, and some go to standard output.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # nobody is told that it runs
    try:
        vllm: Any = import_module("vllm")  # untyped here: it is installed only where it is used
        model: Any = vllm.LLM(
            model=str(place),
            dtype=dtype,
            enable_prefix_caching=True,
            enforce_eager=vllm.platforms.current_platform.is_cpu(),
            disable_log_stats=True,
            seed=0,
            worker_extension_cls="lm.vllm_worker.Newer",
            **({} if memory is None else {"gpu_memory_utilization": memory}),
            **({} if longest is None else {"max_model_len": longest}),
            **({"logprobs_mode": "processed_logprobs"} if likelihoods else {}),
        )
    except ModuleNotFoundError as error:
        if error.name == "vllm":
            raise ModelError("vllm is not installed here: pip install 'rlaif-service[vllm]'") from None
        raise ModelError(f"vllm:{name}: cannot be started: {error}") from error
    except Exception as error:  # vLLM raises many kinds for the same few causes
        raise ModelError(f"vllm:{name}: cannot be started: {' '.join(str(error).split())[:300]}") from error
    return Vllm(model, place, likelihoods=likelihoods)
