"""A provider's SDK, for what is not called often: its errors in our words, its own tries off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import tenacity

from labeler.attempts import BACKOFF, AgainError
from labeler.http import meaning, said
from labeler.options import Limits

T = TypeVar("T")


class Sdk:
    """Calls through one SDK's client, which raises errors with `status_code`, `body` and `response`."""

    def __init__(self, where: str, limits: Limits, secret: str) -> None:
        self._where, self._limits, self._secret = where, limits, secret

    async def once(self, call: Callable[[], Awaitable[T]]) -> T:
        """One try, for what must not be done twice. Raises AgainError, RefusedError or BackendError."""
        try:
            return await call()
        except Exception as error:
            raise self._meaning(error) from None

    async def call(self, call: Callable[[], Awaitable[T]]) -> T:
        """As many tries as it may have."""
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(AgainError),
            stop=tenacity.stop_after_attempt(self._limits.attempts),
            wait=self._wait,
            reraise=True,
        ):
            with attempt:
                return await self.once(call)
        raise AssertionError("tenacity ends with an answer or an error")

    def row(self, status: int, body: object) -> Exception:
        """What the error of a batch's row means."""
        kind, message = said(body)
        return meaning(self._where, status, {}, kind, self._hidden(message))

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, AgainError) and error.after is not None:
            return error.after
        return BACKOFF(state)

    def _meaning(self, error: Exception) -> Exception:
        # Where an SDK cannot read an answer it may give its text, which has nothing of what is looked for.
        if isinstance(error, ValueError | AttributeError) or type(error).__name__ == "APIResponseValidationError":
            return AgainError("unparsable", f"{self._where}: an answer that cannot be read")
        status: Any = getattr(error, "status_code", None)
        if not isinstance(status, int):
            transport = type(error).__module__.split(".")[0].rstrip("2") in {"httpx", "httpcore"}
            if not transport and type(error).__name__ not in {"APIConnectionError", "APITimeoutError"}:
                return error
            return AgainError("connection", f"{self._where}: {type(error).__name__}: {error}")
        kind, message = said(getattr(error, "body", None))
        headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
        found = meaning(self._where, status, headers, kind, self._hidden(message))
        if isinstance(found, AgainError) and found.after is not None:
            found.after = min(found.after, self._limits.longest_wait)
        return found

    def _hidden(self, message: str) -> str:
        return message.replace(self._secret, "***") if self._secret else message
