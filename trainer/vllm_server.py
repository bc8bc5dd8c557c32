"""A `vllm serve` that writes a run's responses: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL, which must see the folder
through which it is handed newer weights.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from lm.sample import Draw, Written
from trainer.config import TrainingError

WAIT = aiohttp.ClientTimeout(total=1800, sock_connect=30)
"""Seconds for one response, or for loading weights."""
TRIES = 10
"""Seconds in which others may finish what they are writing there."""
AT_ONCE = 512
"""Requests in flight."""


class Server:
    """An address, and the model that is served there. Raises TrainingError, also where it is none."""

    def __init__(self, url: str, key: str | None) -> None:
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url.rstrip("/").removesuffix("/v1")
        (listed,) = asyncio.run(self._answers([("GET", "/v1/models", {})]))
        try:
            self._model = str(listed["data"][0]["id"])
        except (TypeError, KeyError, IndexError):
            raise TrainingError(f"rollout.engine {self._url}: lists no model; is it a `vllm serve`?") from None

    def write(self, draws: Sequence[Draw]) -> list[Written]:
        answers = asyncio.run(self._answers([("POST", "/v1/completions", self._body(each)) for each in draws]))
        return [_written(answer, self._url) for answer in answers]

    def follow(self, weights: Path) -> None:
        """Go on with the weights of a folder (safetensors under the names of transformers)."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(weights)}}
        asyncio.run(self._answers([("POST", "/collective_rpc", body)]))
        for _ in range(TRIES):  # vLLM keeps its cache while anything is being written
            (told,) = asyncio.run(self._answers([("POST", "/reset_prefix_cache", {})]))
            if not isinstance(told, dict) or told.get("success") is not False:
                return
            time.sleep(1)
        raise TrainingError(
            f"rollout.engine {self._url}: keeps what it computed with older weights: somebody else is using it"
        )

    def close(self) -> None:
        return None

    def _body(self, draw: Draw) -> dict[str, Any]:
        """All that a model's generation_config.json might set is said: what is learned is the plain distribution."""
        return {
            "model": self._model,
            "prompt": list(draw.prompt),
            "max_tokens": draw.max_tokens,
            "temperature": draw.temperature,
            "top_p": 1.0,
            "top_k": draw.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": draw.seed % 2**31,
            "stop": list(draw.stop),
            "logprobs": 0,
            "return_token_ids": True,
        }

    async def _answers(self, requests: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Any]:
        connector = aiohttp.TCPConnector(limit=AT_ONCE)
        async with aiohttp.ClientSession(timeout=WAIT, headers=self._headers, connector=connector) as session:
            tasks = [asyncio.ensure_future(self._answer(session, *each)) for each in requests]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:  # one that failed ends the others
                    task.cancel()

    async def _answer(self, session: aiohttp.ClientSession, verb: str, path: str, body: Mapping[str, Any]) -> Any:
        try:
            async with session.request(verb, self._url + path, json=body or None) as answer:
                text = await answer.text(errors="replace")
                if answer.status == 200:
                    return json.loads(text) if text else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise TrainingError(f"rollout.engine {self._url}{path}: {error or type(error).__name__}") from None
        why = " ".join(text.split())[:300]
        if answer.status == 500 and path == "/collective_rpc":
            why = f"has not taken the weights; does it see {body['kwargs']['weights_path']}? Start it anew ({why})"
        if answer.status == 404 and path == "/collective_rpc":
            why = "takes no weights: start it with VLLM_SERVER_DEV_MODE=1 vllm serve MODEL"
        elif answer.status == 401:
            why = "wants a key: set VLLM_API_KEY"
        raise TrainingError(f"rollout.engine {self._url}{path}: {answer.status}: {why}")


def _written(answer: Any, url: str) -> Written:
    try:
        choice = answer["choices"][0]
        tokens, likelihoods = map(int, choice["token_ids"]), map(float, choice["logprobs"]["token_logprobs"])
        found = Written(str(choice["text"]), tuple(tokens), tuple(likelihoods), choice["finish_reason"] == "stop")
    except (TypeError, KeyError, IndexError, ValueError):
        found = None
    if found is None or not found.drawn or len(found.drawn) != len(found.likelihoods):
        raise TrainingError(f"rollout.engine {url}: an answer without its tokens; is it vLLM 0.32 or newer?")
    return found
