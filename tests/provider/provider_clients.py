"""Short ways to ask the stand-in: with the real SDKs, which try once only, and with plain aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from running import Provider

PAIR = "Which is better? Output 1 or 2.\n\nResponse 1 - Yes.\n\nResponse 2 - No.\n\nPreferred Response="
SCORE = "Give it a SCORE from 1 to 10.\n\nRESPONSE: Yes.\n\nSCORE:"
OLD = {"anthropic-version": "2023-06-01"}


def with_openai(it: Provider, work: Callable[[AsyncOpenAI], Awaitable[Any]], key: str = "sk-test") -> Any:
    async def run() -> Any:
        async with AsyncOpenAI(api_key=key, base_url=f"{it.url}/v1", max_retries=0) as client:
            return await work(client)

    return asyncio.run(run())


def with_anthropic(it: Provider, work: Callable[[AsyncAnthropic], Awaitable[Any]], key: str = "sk-test") -> Any:
    async def run() -> Any:
        async with AsyncAnthropic(api_key=key, base_url=it.url, max_retries=0) as client:
            return await work(client)

    return asyncio.run(run())


def complete(it: Provider, text: str = PAIR, **options: Any) -> Any:
    """One chat completion."""
    given = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **options}
    return with_openai(it, lambda client: client.chat.completions.create(**given))


def likely(it: Provider, text: str = PAIR, **options: Any) -> dict[str, float]:
    """The 20 most likely first tokens."""
    found = complete(it, text, **{"logprobs": True, "top_logprobs": 20, "max_tokens": 1, **options})
    return {each.token: each.logprob for each in found.choices[0].logprobs.content[0].top_logprobs}


def message(it: Provider, text: str = PAIR, **options: Any) -> Any:
    """One message."""
    given = {"model": "claude-sonnet", "max_tokens": 5, "messages": [{"role": "user", "content": text}], **options}
    return with_anthropic(it, lambda client: client.messages.create(**given))


def posted(it: Provider, path: str, body: Any, **headers: str) -> tuple[int, Any, bytes]:
    """Status, headers and bytes, with plain aiohttp."""

    async def run() -> tuple[int, Any, bytes]:
        async with (
            aiohttp.ClientSession(headers={"Authorization": "Bearer sk-test", **headers}) as session,
            session.post(it.url + path, json=body) as response,
        ):
            return response.status, response.headers, await response.read()

    return asyncio.run(run())
