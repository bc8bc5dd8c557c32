"""Who may ask, how much, and how long may it take to say it? The server's outer layer, as an ASGI application.

Bodies are read whole, bounded in size and in time, before anything is done with them; a caller who hangs up cancels
what was begun for it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from labeler.server.metrics import Metrics, defect
from labeler.server.wire import problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Answering = Callable[[bytes, str], Coroutine[Any, Any, tuple[int, bytes]]]

OPEN = frozenset({"/health", "/ready"})
"""Probes of orchestrators: they carry no token, and nothing is told there."""

UNREAD = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE})
"""Answers to a body that was not read to its end: what comes after it on the connection cannot be told apart."""

DISCARDED, DISCARDING = 8 << 20, 1.0
"""A body with at most so many bytes too many is, after the answer, read and thrown away for so many seconds: who sends
all before it listens would see the connection break, and not the answer."""

DIGITS = 18
"""Of a length that is worth reading."""

LOG = logging.getLogger("rlaif.server")


@dataclass(frozen=True)
class Gate:
    """`token` None lets everybody in. The token comes as `Authorization: Bearer`, `X-API-Key`, `?key=`, or as the path
    `/k/TOKEN/...`, for clients that can send no headers."""

    answers: Mapping[tuple[str, str], Answering]
    """By method and path: bytes and the client's name in, status and bytes out."""
    pages: App
    """Whatever else there is: probes, metrics, documents, and saying that there is nothing."""
    token: str | None
    largest: int
    patience: float
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.pages(scope, receive, send)
            return
        asked = secrets.token_hex(8)
        started, status = time.perf_counter(), 499  # nginx's number for a caller who hung up
        self.metrics.entered()

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", asked.encode())]
            await send(message)

        refused = self._admit(scope)
        path = scope["path"]
        answering = self.answers.get((scope["method"], path))
        try:
            if refused is not None:
                await _answer(sending, refused[0], problem(*refused))
            elif answering is None:
                await self.pages(scope, receive, sending)
            elif isinstance(body := await self._body(scope, receive), bytes):
                if (found := await _attended(answering(body, client(scope)), receive)) is not None:
                    await _answer(sending, *found)
            else:
                await _answer(sending, body[0], problem(*body), receive if self._nearly(scope) else None)
        except Exception as error:  # a defect of ours: the caller hears of it, and the server goes on
            LOG.error("request %s: %s", asked, defect(error))  # noqa: TRY400  its message may quote the body
            await _answer(sending, 500, problem(500, f"{type(error).__name__}; request {asked}"))
        finally:
            self.metrics.left()
            seconds = time.perf_counter() - started
            self.metrics.request(path if answering or status < 400 else "other", status, seconds)
            if LOG.isEnabledFor(logging.INFO):
                told = {"request": asked, "path": path, "status": status, "seconds": round(seconds, 4)}
                LOG.info(json.dumps(told | {"client": client(scope)}))

    def _admit(self, scope: Scope) -> tuple[int, str] | None:
        """Takes a token out of the path; says why a request may not come in."""
        given = None
        path = "/" + "/".join(part for part in scope["path"].split("/") if part)
        parts = path.split("/", 3)
        if parts[1] == "k" and len(parts) >= 3:
            given, path = parts[2], "/" + (parts[3] if len(parts) > 3 else "")
        scope["path"], scope["raw_path"] = path, path.encode()
        headers = dict(scope["headers"])
        if headers.get(b"origin") and self.token is None:
            return 403, "a page in a browser may not ask a server without a token"
        if self.token is None or scope["path"] in OPEN:
            return None
        scheme, _, bearer = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        told = [given or "", headers.get(b"x-api-key", b"").decode("latin-1")]
        told += [bearer.strip()] if scheme.lower() == "bearer" else []
        told += parse_qs(scope["query_string"].decode("latin-1")).get("key", [])
        if any(hmac.compare_digest(each.encode(), self.token.encode()) for each in told):
            return None
        return 401, "a token is needed: Authorization: Bearer TOKEN, X-API-Key, ?key=TOKEN, or the path /k/TOKEN/..."

    def _nearly(self, scope: Scope) -> bool:
        """Whether a body says of itself that it is not much too large."""
        length = _length(scope)
        return length is not None and length <= self.largest + DISCARDED

    async def _body(self, scope: Scope, receive: Receive) -> bytes | tuple[int, str]:
        too_large = 413, f"the body is larger than {self.largest} bytes; send fewer items, or raise --largest-body"
        if (_length(scope) or 0) > self.largest:
            return too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return 400, "the caller hung up"
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self.largest:
                        return too_large
                    parts.append(part)
                    if not message.get("more_body"):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            return 408, f"the body did not come within {self.patience:g} s"


def _length(scope: Scope) -> float | None:
    """Bytes of the body by its header; None where there is no such header, endless where it makes no sense."""
    told = dict(scope["headers"]).get(b"content-length")
    if told is None:
        return None
    return int(told) if told.isdigit() and len(told) <= DIGITS else math.inf


async def _attended(work: Coroutine[Any, Any, tuple[int, bytes]], receive: Receive) -> tuple[int, bytes] | None:
    """The answer; None where the caller hung up, and what was begun for it is cancelled."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def client(scope: Scope) -> str:
    """Who asks, for taking turns: a connection. Trainers on one machine, or behind one proxy, share an address."""
    host, port = scope.get("client") or ("?", 0)
    return f"{host}:{port}"


async def _answer(send: Send, status: int, body: bytes, unread: Receive | None = None) -> None:
    """`unread` is where the rest of a body comes from that was not read to its end."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", b"1"))
    if status in UNREAD:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if unread is not None and status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await _discard(unread)
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _discard(receive: Receive) -> None:
    end = time.monotonic() + DISCARDING
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARDING):
            while time.monotonic() < end and (await receive()).get("more_body"):  # one that never waits ends, too
                pass
