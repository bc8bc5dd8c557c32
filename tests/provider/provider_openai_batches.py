"""OpenAI's files and batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import provider_openai as wire
from provider_answers import tokens_of
from provider_batches import Row, batch_fault, rows_of, written
from provider_replies import RefusedError
from provider_settings import Settings
from provider_state import State
from pydantic_core import from_json

ENDPOINT = "/v1/chat/completions"
DAY = 86_400
MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
MAX_ERRORS = 50

VALIDATING = 0.2
"""The share of a batch's time in which its file is checked."""

ENDED = ("failed", "completed", "expired", "cancelled")

EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
CANCELLED = {"code": "batch_cancelled", "message": "This request was not executed: the batch was cancelled."}


@dataclass(slots=True)
class File:
    id: str
    name: str
    purpose: str
    content: bytes
    created: int = field(default_factory=lambda: int(time.time()))

    def view(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created,
            "expires_at": None,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(slots=True)
class Batch:
    id: str
    input_file: str
    metadata: dict[str, str] | None
    seconds: float
    created: float = field(default_factory=time.time)
    status: str = "validating"
    times: dict[str, int] = field(default_factory=dict[str, int])
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    files: dict[str, str | None] = field(default_factory=lambda: {"output_file_id": None, "error_file_id": None})
    total: int = 0
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    usage: dict[str, Any] | None = None
    model: str | None = None
    cancel: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, status: str) -> None:
        self.status = status
        self.times[f"{status}_at"] = int(time.time())

    def progress(self) -> float:
        """The share of the rows that is done."""
        start = self.seconds * VALIDATING
        return min(max((time.time() - self.created - start) / max(self.seconds - start, 1e-6), 0.0), 1.0)

    def view(self) -> dict[str, Any]:
        completed = int(self.total * self.progress()) if self.status == "in_progress" else self.completed
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "model": self.model,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file,
            "completion_window": "24h",
            "status": self.status,
            **self.files,
            "created_at": int(self.created),
            "expires_at": int(self.created) + DAY,
            **{f"{name}_at": self.times.get(f"{name}_at") for name in names},
            "request_counts": {"total": self.total, "completed": completed, "failed": self.failed},
            "usage": self.usage,
            "metadata": self.metadata,
        }


def add_file(state: State, name: str, purpose: str, content: bytes) -> File:
    """Raises RefusedError where a batch's file is too large."""
    if purpose == "batch" and len(content) > (state.settings.max_batch_bytes or MAX_BYTES):
        raise RefusedError(400, "File is too large.")
    file = File(state.fresh("file-"), name, purpose, content)
    state.files[file.id] = file
    return file


def file_of(state: State, identity: str) -> File:
    if identity not in state.files:
        raise RefusedError(404, f"No such File object: {identity}", param="id")
    return state.files[identity]


def delete_file(state: State, identity: str) -> dict[str, Any]:
    del state.files[file_of(state, identity).id]
    return {"object": "file", "deleted": True, "id": identity}


def create(state: State, body: Mapping[str, Any]) -> Batch:
    """A batch that goes its way by itself. Raises RefusedError."""
    for name, only in (("input_file_id", None), ("endpoint", ENDPOINT), ("completion_window", "24h")):
        value = body.get(name)
        if not value:
            raise RefusedError(
                400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
        if only and value != only:
            message = f"Invalid value: '{value}'. Supported values are: '{only}'."
            raise RefusedError(400, message, param=name, code="invalid_value")
    file = file_of(state, body["input_file_id"])
    if file.purpose != "batch":
        raise RefusedError(400, f"Invalid purpose of the file: '{file.purpose}', not 'batch'.", param="input_file_id")
    batch = Batch(state.fresh("batch_"), file.id, body.get("metadata"), state.settings.batch_seconds)
    state.batches[batch.id] = batch
    state.spawn(_run(state, batch, file.content))
    return batch


def batch_of(state: State, identity: str) -> Batch:
    batch = state.batches.get(identity)
    if not isinstance(batch, Batch):
        raise RefusedError(404, f"No batch found with id '{identity}'.")
    return batch


def listed(state: State, query: Mapping[str, str]) -> dict[str, Any]:
    """The newest first."""
    every = [batch for batch in reversed(state.batches.values()) if isinstance(batch, Batch)]
    names = [batch.id for batch in every]
    start = names.index(query["after"]) + 1 if query.get("after") in names else 0
    stop = start + min(int(query.get("limit", 20)), 100)
    data = [batch.view() for batch in every[start:stop]]
    ids = [each["id"] for each in data] or [None]
    more = stop < len(every)
    return {"object": "list", "data": data, "first_id": ids[0], "last_id": ids[-1], "has_more": more}


def cancelled(state: State, identity: str) -> Batch:
    batch = batch_of(state, identity)
    if batch.status in ENDED:
        message = f"Cannot cancel a batch with status '{batch.status}'."
        raise RefusedError(409, message)
    if batch.status != "cancelling":
        batch.enter("cancelling")
        batch.cancel.set()
    return batch


async def _run(state: State, batch: Batch, content: bytes) -> None:
    await asyncio.sleep(batch.seconds * VALIDATING)
    asked, batch.errors = _checked(state.settings, content)
    if not batch.errors and state.settings.max_enqueued_tokens:
        batch.errors = _enqueued(state, batch, asked)
    if batch.errors:
        batch.tokens = 0
        batch.enter("failed")
        return
    batch.total, batch.model = len(asked), asked[0][1].get("model")
    if batch.status == "validating":
        batch.enter("in_progress")
    fault = batch_fault(state, f"batch {batch.input_file}")
    try:
        async with asyncio.timeout(batch.seconds * (1 - VALIDATING)):
            await batch.cancel.wait()
        share, end, rest = batch.progress(), "cancelled", "canceled"
    except TimeoutError:
        share, end, rest = 1.0, "completed", "expired"
        if fault == "batch_expired":
            share, end = 0.5, "expired"
        batch.enter("finalizing")
    rows = await rows_of(state, wire, asked, share=share, rest=rest, headers={})
    good = [row for row in rows if row.kind == "succeeded"]
    bad = [row for row in rows if row.kind != "succeeded"]
    batch.completed, batch.failed, batch.usage = len(good), len(bad), _usage(good)
    for which, some in (("output_file_id", good), ("error_file_id", bad)):
        if some:
            cut = fault == "batch_truncated" and which == "output_file_id"
            data = written(state, some, lambda row: _line(state, row), truncated=cut)
            name = f"{batch.id}_{which.removesuffix('_file_id')}.jsonl"
            batch.files[which] = add_file(state, name, "batch_output", data).id
    batch.tokens = 0
    batch.enter(end)


def _checked(settings: Settings, content: bytes) -> tuple[list[tuple[str, Any]], list[dict[str, Any]]]:
    """The file's requests, and what is wrong with them."""
    lines = content.splitlines()
    most = settings.max_batch_requests or MAX_REQUESTS
    if not lines:
        return [], [_error("empty_file", "The batch input file is empty.", None)]
    if len(lines) > most:
        return [], [_error("too_many_requests", f"The batch has {len(lines)} requests; the limit is {most}.", None)]
    asked: dict[str, Any] = {}
    errors: list[dict[str, Any]] = []
    model = None
    for number, line in enumerate(lines, start=1):
        try:
            row = from_json(line)
            name, url, body = row["custom_id"], row["url"], row["body"]
            wrong = _wrong(name, row.get("method"), url, body, asked, model or body.get("model"))
            if model is None:
                model = body.get("model")
                wire.check_model(model, settings)
        except RefusedError as refused:
            wrong = (str(refused.code), refused.message, "body.model")
        except KeyError as missing:
            wrong = ("missing_required_parameter", f"Missing required parameter: {missing}.", str(missing).strip("'"))
        except (ValueError, AttributeError, TypeError):
            wrong = ("invalid_json_line", "This line is not parseable as valid JSON.", None)
        if wrong:
            errors.append(_error(wrong[0], wrong[1], number, wrong[2]))
        else:
            asked[name] = body
    return list(asked.items()), errors[:MAX_ERRORS]


def _wrong(
    name: str, method: str | None, url: str, body: Any, asked: Mapping[str, Any], model: str | None
) -> tuple[str, str, str | None] | None:
    if name in asked:
        message = f"The custom_id '{name}' for this request is a duplicate of another request. "
        return "duplicate_custom_id", f"{message}The custom_id parameter must be unique in a batch.", "custom_id"
    if method != "POST":
        return "invalid_method", f"Invalid HTTP method '{method}'. Only POST is supported.", "method"
    if url != ENDPOINT:
        return "mismatched_endpoint", f"The URL '{url}' does not match the batch endpoint '{ENDPOINT}'.", "url"
    if body.get("model") != model:
        message = f"The model `{body.get('model')}` for this request does not match the rest of the batch. "
        return "mismatched_model", f"{message}Each batch must contain requests for a single model.", "body.model"
    return None


def _error(code: str, message: str, line: int | None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}


def _enqueued(state: State, batch: Batch, asked: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    batch.tokens = sum(
        tokens_of(sum(len(str(message.get("content"))) for message in body.get("messages", []))) for _, body in asked
    )
    limit = state.settings.max_enqueued_tokens
    if sum(each.tokens for each in state.batches.values() if isinstance(each, Batch)) <= limit:
        return []
    message = f"Enqueued token limit reached for {asked[0][1].get('model')} in organization org-stand-in. "
    message += f"Limit: {limit:,} enqueued tokens. Please try again once some in_progress batches have been completed."
    return [_error("token_limit_exceeded", message, None)]


def _line(state: State, row: Row) -> dict[str, Any]:
    response = error = None
    if row.kind == "expired":
        error = EXPIRED
    elif row.kind == "canceled":
        error = CANCELLED
    else:
        response = {"status_code": row.status, "request_id": state.fresh("req_"), "body": row.body}
    return {"id": state.fresh("batch_req_"), "custom_id": row.name, "response": response, "error": error}


def _usage(rows: Sequence[Row]) -> dict[str, Any]:
    usages = [row.body["usage"] for row in rows if row.body]
    given = sum(usage["prompt_tokens"] for usage in usages)
    told = sum(usage["completion_tokens"] for usage in usages)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    hidden = sum(usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages)
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": told,
        "output_tokens_details": {"reasoning_tokens": hidden},
        "total_tokens": given + told,
    }
