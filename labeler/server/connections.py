"""Connections whose requests begin in time: uvicorn's own, with a bound on what comes before a request's body.

uvicorn bounds neither the size of headers nor the time that they may take, and who may ask is known only after them.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD = 64 * 1024
"""Bytes of a request's first line and headers."""

HEAD_WITHIN = 30.0
"""Seconds in which they must have come, from the first of their bytes or from the connection's beginning."""


class Connection(HttpToolsProtocol):
    """Closes without a word where a request's head is too long or too slow: there is nobody to answer yet."""

    _heard: int | None = None
    """Bytes of a head that is under way; None where none is."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # what is whole in it is read by this
        if self._heard is not None:
            self._heard += len(data)
            if self._heard > LARGEST_HEAD:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin()

    def on_headers_complete(self) -> None:
        self._end()
        super().on_headers_complete()

    def _begin(self) -> None:
        if self._heard is None:
            self._heard = 0
            self._timer = self.loop.call_later(HEAD_WITHIN, self.transport.abort)

    def _end(self) -> None:
        self._heard = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
