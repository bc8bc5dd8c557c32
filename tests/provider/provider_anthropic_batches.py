"""Anthropic's message batches."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import provider_anthropic as wire
from provider_batches import Row, batch_fault, rows_of, written
from provider_replies import RefusedError
from provider_state import State

DAY = 86_400
MAX_REQUESTS = 100_000
MAX_BYTES = 256_000_000
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(slots=True)
class Batch:
    id: str
    url: str
    asked: list[tuple[str, Any]]
    headers: dict[str, str]
    seconds: float
    created: float = field(default_factory=time.time)
    status: str = "in_progress"
    cancel_initiated: float | None = None
    ended: float | None = None
    counts: dict[str, int] = field(default_factory=dict[str, int])
    content: bytes = b""
    cancel: asyncio.Event = field(default_factory=asyncio.Event)

    def view(self) -> dict[str, Any]:
        processing = 0 if self.ended else len(self.asked)
        kinds = ("succeeded", "errored", "canceled", "expired")
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": self.status,
            "request_counts": {"processing": processing, **{kind: self.counts.get(kind, 0) for kind in kinds}},
            "created_at": wire.rfc3339(self.created),
            "expires_at": wire.rfc3339(self.created + DAY),
            "ended_at": self.ended and wire.rfc3339(self.ended),
            "cancel_initiated_at": self.cancel_initiated and wire.rfc3339(self.cancel_initiated),
            "archived_at": None,
            "results_url": f"{self.url}/v1/messages/batches/{self.id}/results" if self.ended else None,
        }


def create(state: State, body: Mapping[str, Any], size: int, headers: Mapping[str, str], url: str) -> Batch:
    """A batch that goes its way by itself. Raises RefusedError."""
    if size > (state.settings.max_batch_bytes or MAX_BYTES):
        raise RefusedError(413, "Request exceeds the maximum size", "request_too_large")
    asked = _checked(body.get("requests"), state.settings.max_batch_requests or MAX_REQUESTS)
    version = {"anthropic-version": headers.get("anthropic-version", "")}
    batch = Batch(state.fresh("msgbatch_"), url, asked, version, state.settings.batch_seconds)
    state.batches[batch.id] = batch
    state.spawn(_run(state, batch))
    return batch


def batch_of(state: State, identity: str) -> Batch:
    batch = state.batches.get(identity)
    if not isinstance(batch, Batch):
        raise RefusedError(404, f"Message batch {identity} not found", "not_found_error")
    return batch


def results(state: State, identity: str) -> bytes:
    batch = batch_of(state, identity)
    if not batch.ended:
        raise RefusedError(404, f"Message batch {identity} has no available results", "not_found_error")
    return batch.content


def listed(state: State, query: Mapping[str, str]) -> dict[str, Any]:
    """The newest first."""
    every = [batch for batch in reversed(state.batches.values()) if isinstance(batch, Batch)]
    names = [batch.id for batch in every]
    start = names.index(query["after_id"]) + 1 if query.get("after_id") in names else 0
    stop = start + min(int(query.get("limit", 20)), 1000)
    return wire.page([batch.view() for batch in every[start:stop]], more=stop < len(every))


def canceled(state: State, identity: str) -> Batch:
    batch = batch_of(state, identity)
    if batch.status == "ended":
        raise RefusedError(400, f"Batch {identity} has already ended and cannot be canceled")
    batch.status, batch.cancel_initiated = "canceling", batch.cancel_initiated or time.time()
    batch.cancel.set()
    return batch


async def _run(state: State, batch: Batch) -> None:
    fault = batch_fault(state, f"batch {len(batch.asked)} {batch.asked[0][0]}")
    try:
        async with asyncio.timeout(batch.seconds):
            await batch.cancel.wait()
        share, rest = (time.time() - batch.created) / max(batch.seconds, 1e-6), "canceled"
    except TimeoutError:
        share, rest = (0.5 if fault == "batch_expired" else 1.0), "expired"
    rows = await rows_of(state, wire, batch.asked, share=share, rest=rest, headers=batch.headers)
    for row in rows:
        batch.counts[row.kind] = batch.counts.get(row.kind, 0) + 1
    batch.content = written(state, rows, _line, truncated=fault == "batch_truncated")
    batch.status, batch.ended = "ended", time.time()


def _checked(requests: Any, most: int) -> list[tuple[str, Any]]:
    if not isinstance(requests, list):
        raise RefusedError(400, "requests: Field required")
    if not requests:
        raise RefusedError(400, "requests: List should have at least 1 item after validation, not 0")
    if len(requests) > most:
        raise RefusedError(400, f"requests: List should have at most {most} items after validation")
    asked: dict[str, Any] = {}
    for at, each in enumerate(requests):
        name = each.get("custom_id") or ""
        if len(name) > 64:
            raise RefusedError(400, f"requests.{at}.custom_id: String should have at most 64 characters")
        if not NAME.fullmatch(name):
            raise RefusedError(400, f"requests.{at}.custom_id: String should match pattern '^{NAME.pattern}$'")
        if name in asked:
            raise RefusedError(400, f"requests.{at}.custom_id: custom_ids must be unique; '{name}' is a duplicate")
        if not isinstance(each.get("params"), dict):
            raise RefusedError(400, f"requests.{at}.params: Field required")
        asked[name] = each["params"]
    return list(asked.items())


def _line(row: Row) -> dict[str, Any]:
    result: dict[str, Any] = {"type": row.kind}
    if row.kind == "succeeded":
        result["message"] = row.body
    elif row.kind == "errored":
        result["error"] = row.body
    return {"custom_id": row.name, "result": result}
