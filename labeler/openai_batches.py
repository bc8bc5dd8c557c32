"""OpenAI's batches: a file of requests goes up, a file of answers and one of errors come down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, cast

from pydantic_core import from_json, to_json

from labeler.attempts import AgainError
from labeler.backend import Choose, Likelihoods, Text
from labeler.batches import DOWNLOADS, Lost, Request, Row, SpoiltError
from labeler.http import GoneError
from labeler.journal import OpenBatch
from labeler.openai import PATH, Chat
from labeler.options import Limits
from labeler.sdk import Sdk

FULL = 60.0
"""Seconds until a batch is handed in again for which the account's queue has no room."""

TAG = "rlaif"


class OpenAIDesk:
    requests = 50_000
    size = 200_000_000

    def __init__(self, name: str, identity: str, chat: Chat, client: Any, limits: Limits, key: str) -> None:
        self.name, self.identity, self.price = name, identity, chat.price
        self.logprobs = chat.server.logprobs
        self._chat, self._client = chat, client
        self._sdk = Sdk(str(client.base_url).rstrip("/"), limits, key)

    def entry(self, key: str, request: Request) -> dict[str, Any]:
        body = self._chat.choose(request) if isinstance(request, Choose) else self._chat.write(request)
        return {"custom_id": key, "method": "POST", "url": f"/v1{PATH}", "body": body}

    def longest(self, request: Request) -> int:
        return self._chat.longest(request)

    def read(self, options: Sequence[str] | None, answer: bytes) -> Likelihoods | Text:
        if options is not None:
            return self._chat.chosen(options, answer)
        (text,) = self._chat.written(answer)[:1]
        assert isinstance(text, Text), "one sample that is no text raises"
        return text

    async def submit(self, entries: Sequence[Mapping[str, Any]], tag: str) -> str:
        content = b"\n".join(map(to_json, entries))

        async def upload() -> str:
            return (await self._client.files.create(file=("requests.jsonl", content), purpose="batch")).id

        async def create() -> str:
            about = {"endpoint": f"/v1{PATH}", "completion_window": "24h", "metadata": {TAG: tag}}
            return (await self._client.batches.create(input_file_id=file, **about)).id

        file = await self._sdk.call(upload)
        return await self._sdk.once(create)

    async def find(self, batch: OpenBatch, known: Sequence[str]) -> str | None:  # noqa: ARG002
        async def look() -> str | None:
            async for each in self._client.batches.list(limit=100):
                metadata: Any = each.metadata or {}
                if metadata.get(TAG) == batch.tag:
                    return each.id
                if each.created_at < batch.at - 3600:
                    break
            return None

        return await self._sdk.call(look)

    async def results(self, name: str) -> list[Row] | Lost | None:
        try:
            batch, status = await self._sdk.call(lambda: self._state(name))
        except GoneError as error:
            return Lost(AgainError("gone", str(error)))
        if status == "failed":
            return _failed(name, [(each.code, each.message) for each in (batch.errors and batch.errors.data) or ()])
        if status not in {"completed", "expired", "cancelled"}:
            return None
        files = [each for each in (batch.output_file_id, batch.error_file_id) if each]
        return [row for file in files for row in self._rows(await self._lines(file))]

    async def _state(self, name: str) -> tuple[Any, str]:
        batch = await self._client.batches.retrieve(name)
        return batch, batch.status

    async def close(self) -> None:
        await self._client.close()

    async def _lines(self, file: str) -> list[bytes]:
        lines: list[bytes] = []
        for _ in range(DOWNLOADS):
            content = await self._sdk.call(lambda: self._client.files.content(file))
            lines = content.content.splitlines()
            if lines and _parsed(lines[-1]) is not None:
                break
        return lines

    def _rows(self, lines: Iterable[bytes]) -> Iterable[Row]:
        """A line that cannot be read is no row: its request goes on missing."""
        for told in map(_parsed, lines):
            if told is None:
                continue
            reply: Any = told.get("response") or {}
            if reply.get("status_code") == 200:
                yield Row(told["custom_id"], to_json(reply["body"]))
            elif reply:
                yield Row(told["custom_id"], self._sdk.row(reply["status_code"], reply.get("body")))
            else:
                error: Any = told.get("error") or {}
                yield Row(told["custom_id"], AgainError(error.get("code", "unknown"), error.get("message", "")))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        told: Any = from_json(line)
    except ValueError:
        return None
    if not isinstance(told, dict) or "custom_id" not in told:
        return None
    return cast("dict[str, Any]", told)


def _failed(name: str, errors: Sequence[tuple[str | None, str | None]]) -> Lost:
    """Raises SpoiltError: what is wrong with a whole file is wrong with the next one too, but a queue empties."""
    code, message = errors[0] if errors else (None, None)
    if code == "token_limit_exceeded":
        return Lost(AgainError("rate_limit", f"batch {name}: {message}", throttled=True, after=FULL), full=True)
    raise SpoiltError(f"batch {name} failed: {message or 'no reason was given'}")


def open_desk(name: str, identity: str, chat: Chat, base_url: str, limits: Limits, key: str) -> OpenAIDesk:
    """A desk of the server at `base_url`."""
    sdk: Any = import_module("openai")
    client = sdk.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=limits.timeout)
    return OpenAIDesk(name, identity, chat, client, limits, key)
