"""One request to a server over HTTP: transport, and what its errors mean.

The call itself is aiohttp, not a provider's SDK: for answers of one token the SDKs' own work takes several times as
long as the request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from labeler.attempts import AgainError, Attempts, RefusedError
from labeler.backend import BackendError, Failed
from labeler.options import Limits
from labeler.spending import Spending

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

THROTTLED = frozenset({408, 429, 503, 529})
TRANSIENT = frozenset({409, 425})
TOO_LONG = (
    *("maximum context length", "prompt is too long", "exceed context limit", "exceeds the available context size"),
    *("longer than the model's context length", "longer than the maximum model length"),
)
UNSUPPORTED = frozenset({"unsupported_parameter", "unsupported_value"})


class GoneError(BackendError):
    """What is asked about is not there."""


class Client:
    """A server behind a base URL. Opens its connections at the first request; `close` in the same event loop."""

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        limits: Limits,
        *,
        secret: str = "",
        spending: Spending | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.shown = re.sub("//[^/@]*@", "//", self.base_url)  # without a password
        self._headers = {"content-type": "application/json", **headers}
        self._limits, self._secret = limits, secret
        self._session: aiohttp.ClientSession | None = None
        self._attempts = Attempts(limits, spending or Spending())

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str) -> bytes:
        """One plain GET. Raises AgainError, RefusedError or BackendError."""
        status, headers, body = await self._exchange("GET", self.base_url + path, None)
        if status >= 400:
            raise self._meaning(status, headers, body)
        return body

    async def free(self, url: str, body: object) -> dict[str, Any] | None:
        """What an endpoint says that costs nothing and that a server need not have; None where it does not answer."""
        try:
            status, _, answer = await self._exchange("POST", url, to_json(body))
            told: Any = from_json(answer) if status == 200 else None
        except (AgainError, ValueError):
            return None
        return cast("dict[str, Any]", told) if isinstance(told, dict) else None

    async def ask(self, path: str, asked: object, tokens: int, read: Callable[[bytes], T]) -> T | Failed:
        """Post until `read` makes an answer of what comes back. `read` raises AgainError for answers of no use."""
        try:
            body = to_json(asked)
        except PydanticSerializationError:
            return Failed("bad_text", "the text has half a character (a lone surrogate), which JSON cannot carry")

        url = self.base_url + path

        async def attempt() -> T:
            status, headers, answer = await self._exchange("POST", url, body)
            self._attempts.pace.learn(headers)
            if status >= 400:
                raise self._meaning(status, headers, answer)
            return read(answer)

        return await self._attempts.ask(attempt, tokens)

    async def _exchange(self, verb: str, url: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the pace is the only limit
                timeout=aiohttp.ClientTimeout(total=self._limits.timeout, sock_connect=10),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                proxy=_proxy(self.base_url),
            )
        try:
            async with self._session.request(verb, url, data=body, allow_redirects=False) as reply:
                return reply.status, reply.headers, await reply.read()
        except TimeoutError:
            raise AgainError("timeout", f"no answer within {self._limits.timeout:g} s", throttled=True) from None
        except aiohttp.InvalidURL:
            raise BackendError(f"--base-url {self.shown}: is not a URL; expected http://HOST:PORT/v1") from None
        except (aiohttp.ClientError, OSError) as error:
            raise AgainError("connection", f"{self.shown}: {type(error).__name__}: {error}") from None

    def _meaning(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        kind, message = said(body)
        if self._secret:
            message = message.replace(self._secret, "***")
        return meaning(self.shown, status, headers, kind, message)


def _proxy(url: str) -> str | None:
    """The environment's proxy for a server, once: aiohttp would look it up for every request, in a thread."""
    place = urlsplit(url)
    return None if proxy_bypass(place.netloc) else getproxies().get(place.scheme)


def meaning(where: str, status: int, headers: Mapping[str, str], kind: str, message: str) -> Exception:
    """What an error, with a status above 399, means for this request, for the pace and for the job."""
    message = message[:300]
    text = f"{where}: status {status}" + (f": {message}" if message else "")
    if "logprobs" in message and status < 500:
        return BackendError(f"{text}; --needs votes does without log-probabilities")
    if kind in UNSUPPORTED:
        return BackendError(f"{text}; the model does not take what every request of this job has")
    if status in {401, 403}:
        return BackendError(f"{where}: the key was refused (status {status}); check the key and its rights")
    if status == 402 or kind == "insufficient_quota" or "credit balance" in message:
        return BackendError(f"{text}; nothing more can be asked with this account")
    if status == 404:
        return GoneError(f"{text}; check --model and --base-url")
    if status in THROTTLED:
        reason = "rate_limit" if status == 429 else "overloaded"
        return AgainError(reason, text, throttled=True, after=retry_after(headers))
    if status in TRANSIENT or status >= 500:
        return AgainError("server_error", text, after=retry_after(headers))
    if kind == "context_length_exceeded" or any(words in message for words in TOO_LONG):
        return RefusedError("too_long", text)
    return RefusedError("refused", text)


def said(body: bytes | object) -> tuple[str, str]:
    """The kind and message of an error body in OpenAI's or Anthropic's shape, read or as bytes; in one line."""
    try:
        told = _Said.model_validate_json(body) if isinstance(body, bytes) else _Said.model_validate(body)
    except ValidationError:
        return "", ""
    error = told.error if isinstance(told.error, _Reason) else told
    text = told.error if isinstance(told.error, str) else error.message or ""
    return str(error.code or error.type or ""), " ".join(text.split())


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms` or `retry-after`; None where they are absent, dates or nonsense."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def parsed(kind: type[M], body: bytes) -> M:
    """An answer as a record. Raises AgainError: half an answer, or none, is no reason to give up the row."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise AgainError("unparsable", f"{where}: {first['msg'][:120]}") from None


class _Reason(BaseModel):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _Said(_Reason):
    """`{"error": {...}}` as OpenAI and Anthropic write it, `{"error": "..."}`, or the parts themselves."""

    error: _Reason | str | None = None
