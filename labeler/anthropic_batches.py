"""Anthropic's message batches: requests go up in one call, results come down as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from labeler.anthropic import Messages
from labeler.attempts import AgainError
from labeler.backend import Text, Write
from labeler.batches import DOWNLOADS, Lost, Request, Row
from labeler.http import GoneError
from labeler.journal import OpenBatch
from labeler.options import Limits
from labeler.sdk import Sdk

CLOCKS = 600.0
"""Seconds by which the provider's clock may differ from ours."""


class AnthropicDesk:
    requests = 100_000
    size = 256_000_000
    logprobs = False

    def __init__(self, name: str, identity: str, dialect: Messages, client: Any, limits: Limits, key: str) -> None:
        self.name, self.identity, self.price = name, identity, dialect.price
        self._dialect, self._client = dialect, client
        self._sdk = Sdk(str(client.base_url).rstrip("/"), limits, key)

    def entry(self, key: str, request: Request) -> dict[str, Any]:
        assert isinstance(request, Write), "Anthropic is asked for texts"
        return {"custom_id": key, "params": self._dialect.write(request)}

    def longest(self, request: Request) -> int:
        return request.max_tokens if isinstance(request, Write) else 1

    def read(self, options: Sequence[str] | None, answer: bytes) -> Text:  # noqa: ARG002
        return self._dialect.written(answer)[0]

    async def submit(self, entries: Sequence[Mapping[str, Any]], tag: str) -> str:  # noqa: ARG002
        async def create() -> str:
            return (await self._client.messages.batches.create(requests=entries)).id

        return await self._sdk.once(create)

    async def find(self, batch: OpenBatch, known: Sequence[str]) -> str | None:
        """Its batches have no names of ours: the newest of this size and time that no other of ours is."""

        async def look() -> str | None:
            async for each in self._client.messages.batches.list(limit=100):
                if each.created_at.timestamp() < batch.at - CLOCKS:
                    break
                if each.id not in known and sum(each.request_counts.model_dump().values()) == len(batch.keys):
                    return each.id
            return None

        return await self._sdk.call(look)

    async def results(self, name: str) -> list[Row] | Lost | None:
        try:
            status = await self._sdk.call(lambda: self._status(name))
        except GoneError as error:
            return Lost(AgainError("gone", str(error)))
        if status != "ended":
            return None
        rows: list[Row] = []
        for _ in range(DOWNLOADS):
            rows, whole = await self._sdk.call(lambda: self._download(name))
            if whole:
                break
        return rows

    async def _status(self, name: str) -> str:
        return (await self._client.messages.batches.retrieve(name)).processing_status

    async def close(self) -> None:
        await self._client.close()

    async def _download(self, name: str) -> tuple[list[Row], bool]:
        """The rows, and whether they end where they should."""
        rows: list[Row] = []
        results = await self._client.messages.batches.results(name)
        while True:
            try:
                each = await anext(results)
            except StopAsyncIteration:
                return rows, True
            except ValueError:  # half a line
                return rows, False
            rows.append(Row(each.custom_id, self._answer(each.result)))

    def _answer(self, result: Any) -> bytes | Exception:
        match result.type:
            case "succeeded":
                return result.message.model_dump_json().encode()
            case "errored":
                kind = result.error.error.type
                return self._sdk.row(STATUS.get(kind, 400), result.error.model_dump())
            case kind:
                return AgainError(kind, f"the request was {kind} before it was asked")


STATUS = {
    "api_error": 500,
    "overloaded_error": 529,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "authentication_error": 401,
    "permission_error": 403,
    "billing_error": 402,
    "not_found_error": 404,
}
"""Anthropic's kinds of errors by the status that they come with."""


def open_desk(name: str, identity: str, dialect: Messages, base_url: str, limits: Limits, key: str) -> AnthropicDesk:
    """A desk of the server at `base_url`."""
    sdk: Any = import_module("anthropic")
    place = base_url.removesuffix("/v1")  # the SDK adds it
    client = sdk.AsyncAnthropic(api_key=key, base_url=place, max_retries=0, timeout=limits.timeout)
    return AnthropicDesk(name, identity, dialect, client, limits, key)
