"""Anthropic's messages: what is asked, what is refused and how it is said.

Version 2026-10-21 (which version 2 of the SDK sends) has no temperature, top_p and top_k for any model; version
2023-06-01 has them for all but the newest models, here those whose names begin with "claude-new".
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from provider_answers import Answer, Block, Question, sealed, tokens_of
from provider_caches import Caches
from provider_faults import STATUS, retry_headers
from provider_replies import RefusedError, Reply, json_reply
from provider_schema import anthropic_objection
from provider_settings import Settings

WIRE = "anthropic"

OLD = "2023-06-01"

SAMPLING = ("temperature", "top_p", "top_k")

KNOWN = frozenset(
    re.findall(
        r"\w+",
        "max_tokens messages model cache_control container diagnostics inference_geo metadata output_config "
        "service_tier speed stop_sequences stream system thinking tool_choice tools user_profile_id workspace_id",
    )
)

BREAKPOINTS = 4

CATALOG = ("claude-sonnet", "claude-haiku", "claude-new-opus")


def key_of(headers: Mapping[str, str]) -> str:
    return headers.get("x-api-key") or headers.get("Authorization", "").removeprefix("Bearer ")


def check_key(headers: Mapping[str, str], settings: Settings) -> str:
    """The API key, or a refusal."""
    key = key_of(headers)
    if not key:
        raise RefusedError(401, "x-api-key header is required", "authentication_error")
    if settings.keys and key not in settings.keys:
        raise RefusedError(401, "invalid x-api-key", "authentication_error")
    return key


def check_model(model: str, settings: Settings) -> None:
    if model not in settings.models if settings.models else model.startswith("missing"):
        raise RefusedError(404, f"model: {model}", "not_found_error")


def read(
    body: Any, settings: Settings, headers: Mapping[str, str] | None = None, *, counting: bool = False
) -> Question:
    """The question in a request's body. Raises RefusedError."""
    version = (headers or {}).get("anthropic-version", "")
    if not version:
        raise RefusedError(400, "anthropic-version: header is required")
    if not isinstance(body, dict):
        raise RefusedError(400, "The request body is not valid JSON: expected an object")
    for name in ("model", "messages") if counting else ("model", "max_tokens", "messages"):
        if body.get(name) is None:
            raise RefusedError(400, f"{name}: Field required")
    model = body["model"]
    _check_arguments(body, model, version)
    check_model(model, settings)
    if body.get("stream"):
        raise RefusedError(400, "stream: the stand-in does not stream")
    question = _messages(body, version)
    question.max_tokens = body.get("max_tokens")
    if not counting and (not isinstance(question.max_tokens, int) or question.max_tokens < 0):
        raise RefusedError(400, "max_tokens: Input should be greater than or equal to 0")
    question.temperature = body.get("temperature", 1.0)
    question.stop = tuple(body.get("stop_sequences") or ())
    if any(not stop.strip() for stop in question.stop):
        raise RefusedError(400, "stop_sequences: each stop sequence must contain non-whitespace")
    question.schema = _schema(body, continues=question.continues)
    _check_context(question, settings)
    return sealed(question, WIRE, body.get("metadata"))


def content_faults(question: Question) -> tuple[str, ...]:
    return ("outside", "refusal", "null_content")


def body_of(question: Question, answers: Sequence[Answer], caches: Caches, settings: Settings) -> dict[str, Any]:
    answer = answers[0]
    read, written, ttl = caches.marked(question.model, question.text, question.blocks, settings.cache_minimum)
    stop = {"stop": "end_turn", "length": "max_tokens"}.get(answer.finish, answer.finish)
    return {
        "id": f"msg_{question.key}",
        "type": "message",
        "role": "assistant",
        "model": question.model,
        "content": [{"type": "text", "text": answer.text}] if answer.text else [],
        "stop_reason": "refusal" if answer.refusal else stop,
        "stop_sequence": answer.stopped_by,
        "stop_details": {"type": "refusal", "category": None, "explanation": None} if answer.refusal else None,
        "usage": {
            "input_tokens": question.tokens_in - read - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written if ttl == "5m" else 0,
                "ephemeral_1h_input_tokens": written if ttl == "1h" else 0,
            },
            "output_tokens": answer.tokens,
            "service_tier": "standard",
        },
    }


def error_body(refused: RefusedError, request_id: str = "") -> dict[str, Any]:
    error = {"type": refused.kind, "message": refused.message}
    return {"type": "error", "error": error, "request_id": request_id}


def refusal(refused: RefusedError, request_id: str) -> Reply:
    again = "true" if refused.status == 429 or refused.status >= 500 else "false"
    headers = {"request-id": request_id, "x-should-retry": again, **refused.headers}
    return json_reply(error_body(refused, request_id), headers, status=refused.status)


def id_header(request_id: str) -> dict[str, str]:
    return {"request-id": request_id}


def fault_error(name: str, settings: Settings) -> RefusedError:
    """The refusal that a fault of this name is."""
    headers = retry_headers(settings, name)
    if name == "quota":
        message = "Your credit balance is too low to access the Claude API. Please go to Plans & Billing to upgrade or "
        return RefusedError(402, f"{message}purchase credits.", "billing_error")
    if name not in STATUS:
        return RefusedError(429, "This request would exceed your rate limit.", "rate_limit_error", headers=headers)
    kind, message = ("overloaded_error", "Overloaded") if name == "http_529" else ("api_error", "Internal server error")
    return RefusedError(STATUS[name], message, kind, headers=headers)


def too_fast(model: str, unit: str, limit: int, used: int, wanted: int, wait: float | None) -> RefusedError:
    """`unit` is "requests" or "tokens"; a request that never fits (`wait` None) has no time to try again."""
    what = "requests" if unit == "requests" else "input tokens"
    message = f"This request would exceed your organization's rate limit of {limit} {what} per minute (model: {model})."
    headers = {} if wait is None else {"retry-after": str(-int(-wait // 1))}
    return RefusedError(429, message, "rate_limit_error", headers=headers)


def limit_headers(rows: Sequence[tuple[str, int, int, float]]) -> dict[str, str]:
    """`rows`: unit, limit, what is left, seconds until it is full again."""
    found: dict[str, str] = {}
    now = time.time()
    for name, limit, left, wait in rows:
        reset = rfc3339(now + wait)
        for unit in ("requests",) if name == "requests" else ("tokens", "input-tokens", "output-tokens"):
            found[f"anthropic-ratelimit-{unit}-limit"] = str(limit)
            found[f"anthropic-ratelimit-{unit}-remaining"] = str(left)
            found[f"anthropic-ratelimit-{unit}-reset"] = reset
    return found


def rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def model_body(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
    }


def models_body(names: Sequence[str]) -> dict[str, Any]:
    return page([model_body(name) for name in names], more=False)


def page(data: Sequence[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    ids = [each["id"] for each in data] or [None]
    return {"data": data, "has_more": more, "first_id": ids[0], "last_id": ids[-1]}


def _check_arguments(body: dict[str, Any], model: str, version: str) -> None:
    allowed = KNOWN.union(SAMPLING) if version == OLD else KNOWN
    if not allowed.issuperset(body):
        raise RefusedError(400, f"{min(set(body) - allowed)}: Extra inputs are not permitted")
    for name in SAMPLING:
        if body.get(name) is not None and model.startswith("claude-new"):
            raise RefusedError(400, f"`{name}` is deprecated for this model.")
    if not 0 <= body.get("temperature", 1.0) <= 1:
        bound = "greater than or equal to 0" if body["temperature"] < 0 else "less than or equal to 1"
        raise RefusedError(400, f"temperature: Input should be {bound}")


def _messages(body: dict[str, Any], version: str) -> Question:
    """The question without its options: texts, roles and where the blocks of content end."""
    messages = body["messages"]
    if not messages:
        raise RefusedError(400, "messages: at least one message is required")
    turns = [("system", body["system"], "system")] if body.get("system") else []
    for at, message in enumerate(messages):
        role = message.get("role")
        if role not in ("user", "assistant") and (role != "system" or version == OLD):
            advice = "The Messages API accepts a top-level `system` parameter" if role == "system" else "Try user"
            raise RefusedError(400, f'messages: Unexpected role "{role}". {advice}.')
        turns.append((role, message.get("content"), f"messages.{at}"))
    parts: list[str] = []
    blocks: list[Block] = []
    end = characters = marks = 0
    last = ""
    for role, content, place in turns:
        parts += ("\x1e", role, "\x1f")
        end += len(role) + 2
        last = ""
        for text, ttl in _texts(content, place):
            parts.append(text)
            end, characters, marks, last = (
                end + len(text),
                characters + len(text),
                marks + (ttl is not None),
                last + text,
            )
            blocks.append(Block(end, tokens_of(characters), ttl))
    if body.get("cache_control"):
        marks += blocks[-1].ttl is None
        blocks[-1] = Block(end, tokens_of(characters), body["cache_control"].get("ttl", "5m"))
    if marks > BREAKPOINTS:
        raise RefusedError(400, f"A maximum of 4 blocks with cache_control may be provided. Found {marks}.")
    continues = turns[-1][0] == "assistant"
    if continues:
        _check_prefill(body["model"], last)
    kept = tuple(blocks) if marks else ()
    return Question(body["model"], "".join(parts), last, tokens_of(characters), continues=continues, blocks=kept)


def _texts(content: Any, place: str) -> list[tuple[str, str | None]]:
    """The texts of a message's content with the cache breakpoints on them."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    found: list[tuple[str, str | None]] = []
    for at, block in enumerate(content or []):
        if block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise RefusedError(400, f"{place}.content.{at}: Input should be a text block; the stand-in has no others")
        if not block["text"]:
            raise RefusedError(400, "messages: text content blocks must be non-empty")
        mark = block.get("cache_control")
        found.append((block["text"], mark.get("ttl", "5m") if mark else None))
    if not found:
        raise RefusedError(400, f"{place}: all messages must have non-empty content")
    return found


def _check_prefill(model: str, last: str) -> None:
    if model.startswith("claude-new"):
        message = "This model does not support assistant message prefill. "
        raise RefusedError(400, f"{message}The conversation must end with a user message.")
    if last != last.rstrip():
        raise RefusedError(400, "messages: final assistant content cannot end with trailing whitespace")


def _schema(body: dict[str, Any], *, continues: bool) -> dict[str, Any] | None:
    wanted = (body.get("output_config") or {}).get("format")
    if wanted is None:
        return None
    if wanted.get("type") != "json_schema" or not isinstance(wanted.get("schema"), dict):
        raise RefusedError(400, "output_config.format: Input should be of type 'json_schema' with a schema")
    if continues:
        raise RefusedError(400, "output_config.format: not compatible with a prefilled assistant message")
    objection = anthropic_objection(wanted["schema"])
    if objection:
        raise RefusedError(400, f"output_config.format.schema: {objection}")
    return wanted["schema"]


def _check_context(question: Question, settings: Settings) -> None:
    tokens, asked, limit = question.tokens_in, question.max_tokens or 0, settings.context
    if tokens > limit:
        raise RefusedError(400, f"prompt is too long: {tokens} tokens > {limit} maximum")
    if tokens + asked > limit:
        message = f"input length and `max_tokens` exceed context limit: {tokens} + {asked} > {limit}, "
        raise RefusedError(400, f"{message}decrease input length or `max_tokens` and try again")
