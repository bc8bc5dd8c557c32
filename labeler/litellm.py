"""Every provider that LiteLLM knows, in OpenAI's words: litellm:PROVIDER/NAME.

LiteLLM is a package of its own (`pip install 'rlaif-service[litellm]'`), imported only when it is named. It translates
and sends; pace, tries, prices and the reading of answers are ours. It finds keys in the environment by itself.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from labeler.attempts import AgainError, Attempts
from labeler.backend import BackendError, Failed
from labeler.http import meaning
from labeler.openai import Chat, OpenAIBackend, Server
from labeler.options import Limits
from labeler.prices import Price
from labeler.spending import Spending

T = TypeVar("T")

MILLION = 1e6

UNHEATED = frozenset({"anthropic"})
"""Providers whose new models take no temperature."""


class _Transport:
    """`litellm.acompletion` as the way to a model; its own tries are off."""

    def __init__(
        self, litellm: Any, base_url: str | None, limits: Limits, secrets: tuple[str, ...], spending: Spending
    ) -> None:
        self._litellm, self._base_url, self._limits, self._secrets = litellm, base_url, limits, secrets
        self._attempts = Attempts(limits, spending)

    async def ask(self, body: Mapping[str, Any], read: Callable[[bytes], T], tokens: int) -> T | Failed:
        async def attempt() -> T:
            try:
                said = await self._litellm.acompletion(
                    **body,
                    api_base=self._base_url,
                    timeout=self._limits.timeout,
                    max_retries=0,
                    num_retries=0,
                    drop_params=True,  # what a provider does not take is left out: no seed is better than no answer
                )
            except Exception as error:
                raise self._meaning(error) from None
            return read(said.model_dump_json().encode())

        return await self._attempts.ask(attempt, tokens)

    async def count(self, body: Mapping[str, Any]) -> int | None:
        return self._litellm.token_counter(model=body["model"], messages=body["messages"])

    async def close(self) -> None:
        await self._litellm.close_litellm_async_clients()

    def _meaning(self, error: Exception) -> Exception:
        if isinstance(error, self._litellm.Timeout):
            return AgainError("timeout", f"no answer within {self._limits.timeout:g} s", throttled=True)
        status = getattr(error, "status_code", None)
        if not isinstance(status, int):
            return error
        if isinstance(error, self._litellm.ContextWindowExceededError):
            kind = "context_length_exceeded"
        else:
            kind = str(getattr(error, "code", None) or "")
        message = str(getattr(error, "message", error))
        if getattr(error, "llm_provider", "") == "openai" and "exceeded your current quota" in message:
            kind = "insufficient_quota"  # LiteLLM does not pass the code on; other providers say so of a minute's limit
        for secret in self._secrets:
            message = message.replace(secret, "***")
        headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
        return meaning("litellm", status, headers, kind, " ".join(message.split()))


def open_litellm(
    model: str,
    *,
    base_url: str | None,
    secrets: tuple[str, ...],
    limits: Limits,
    price: Price | None,
    spending: Spending | None = None,
) -> OpenAIBackend:
    """`PROVIDER/NAME` as LiteLLM writes it. Raises BackendError."""
    for table in ("MODEL_COST_MAP", "ANTHROPIC_BETA_HEADERS"):  # nothing is downloaded
        os.environ.setdefault(f"LITELLM_LOCAL_{table}", "True")
    litellm: Any = import_module("litellm")
    litellm.suppress_debug_info, litellm.telemetry = True, False
    logging.getLogger("LiteLLM").setLevel(logging.ERROR)
    # Its own logging may be left behind at the end of a job.
    warnings.filterwarnings("ignore", "coroutine 'Logging.async_success_handler' was never awaited", RuntimeWarning)
    try:
        name, provider, *_ = litellm.get_llm_provider(model)
        supported: Any = litellm.get_supported_openai_params(name, provider) or []
    except Exception as error:
        said = " ".join(str(getattr(error, "message", error)).split())[:200]
        raise BackendError(f"litellm:{model}: LiteLLM does not know it: {said}") from None
    if missing := litellm.validate_environment(model, api_base=base_url)["missing_keys"]:
        raise BackendError(f"litellm:{model} needs a key in the environment: {', '.join(missing)}")
    thinks = litellm.supports_reasoning(model)
    logprobs, sampling = "top_logprobs" in supported and not thinks, provider not in UNHEATED
    server = Server(reasoning=thinks, logprobs=logprobs, sampling=sampling)
    chat = Chat(model, server, price or _price(litellm, model))
    identity = f"litellm:{model}" + (f"@{base_url}" if base_url else "")
    transport = _Transport(litellm, base_url, limits, secrets, spending or Spending())
    return OpenAIBackend(f"litellm:{model}", identity, chat, transport, limits, samples="n" in supported)


def _price(litellm: Any, model: str) -> Price | None:
    """From LiteLLM's own table."""
    try:
        info = litellm.get_model_info(model)
    except Exception:  # it raises a plain Exception for models that it does not know
        return None
    names = ("cache_read_input_token_cost", "cache_creation_input_token_cost")
    cached, written = (None if info.get(name) is None else info[name] * MILLION for name in names)
    return Price(info["input_cost_per_token"] * MILLION, info["output_cost_per_token"] * MILLION, cached, written)
