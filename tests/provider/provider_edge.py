"""From a request to bytes: routes, keys, faults, counters. What each route does is in the modules it calls."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import provider_anthropic
import provider_anthropic_batches
import provider_openai
import provider_openai_batches
from aiohttp import web
from provider_answers import Question, answers_to
from provider_faults import PAGE, spoiled
from provider_replies import JSON, RefusedError, Reply, json_reply
from provider_settings import REFUSALS, WIRE
from provider_state import Seen, State
from pydantic_core import from_json

GONE = "disconnect"
"""Counted in the place of a status where the connection was closed."""


@dataclass(slots=True)
class Call:
    """One request on its way."""

    state: State
    request: web.BaseRequest
    wire: ModuleType
    route: str
    kind: str
    id: str
    key: str
    seen: Seen
    """Where it is counted: a request that outlives a reset is no part of what is counted after it."""
    question: Question | None = None


Act = Callable[[Call], Coroutine[Any, Any, Reply]]


async def handle(state: State, request: web.BaseRequest) -> web.StreamResponse:
    """Answers every request, also those that steer the stand-in itself."""
    path = request.path
    if path == "/_seen":
        return _told(_seen(state, answers=request.query.get("answers") != "0"))
    if path == "/_control":
        return _told(await _control(state, request))
    headers = request.headers
    anthropic = path.startswith("/v1/messages") or "anthropic-version" in headers
    wire = provider_anthropic if anthropic else provider_openai
    route, identity = _route(request.method, path)
    kind, act = ROUTES.get(route, ("", None))
    seen = state.seen
    call = Call(state, request, wire, route, kind, identity, wire.key_of(headers), seen)
    seen.keys[call.key] += 1
    if kind == "ask":
        seen.in_flight += 1
        seen.max_in_flight = max(seen.max_in_flight, seen.in_flight)
    try:
        return await _answered(call, act)
    finally:
        if kind == "ask":
            seen.in_flight -= 1


async def _answered(call: Call, act: Act | None) -> web.StreamResponse:
    try:
        reply, fault = await _replied(call, act)
    except RefusedError as refused:
        if refused.status == 429 and call.kind == "ask":
            refused.headers.update(call.state.limit_headers(call.wire, call.key))
        reply, fault = call.wire.refusal(refused, call.state.fresh("req_")), None
    except (ConnectionError, web.RequestPayloadError):
        return _closed(call)
    except Exception:
        call.seen.bugs.append(traceback.format_exc())
        refused = RefusedError(500, "A bug of the stand-in: see /_seen", "bug")
        reply, fault = call.wire.refusal(refused, ""), None
    if fault == "slow":
        await asyncio.sleep(call.state.settings.fault_seconds)
    return await _delivered(call, reply, fault)


async def _replied(call: Call, act: Act | None) -> tuple[Reply, str | None]:
    """The reply, and what is to go wrong with it. Raises RefusedError."""
    call.wire.check_key(call.request.headers, call.state.settings)
    if act is None and call.kind != "ask":
        raise RefusedError(404, f"Unknown request URL: {call.request.method} {call.request.path}.")
    if call.kind == "ask":
        call.question = call.wire.read(await _json(call), call.state.settings, call.request.headers)
        call.seen.question(call.question.key)
    fault = _fault(call)
    if fault in REFUSALS:
        raise call.wire.fault_error(fault, call.state.settings)
    return await (act(call) if act else _ask(call, fault)), fault


async def _ask(call: Call, fault: str | None) -> Reply:
    """The model's answer to a question that is well asked."""
    state, question = call.state, call.question
    assert question is not None
    settings = state.settings
    short = state.limits.take(settings, call.key, question.tokens_in + (question.max_tokens or 0))
    if short:
        refused = call.wire.too_fast(question.model, short.unit, short.limit, short.used, short.wanted, short.wait)
        raise refused
    if settings.latency:
        await asyncio.sleep(settings.latency)
    again = call.seen.answered[question.key] if settings.vary_repeats else 0
    answers = answers_to(question, again * question.n)
    body = call.wire.body_of(question, spoiled(answers, fault), state.caches, settings)
    headers = call.wire.id_header(state.fresh("req_"))
    headers.update(state.limit_headers(call.wire, call.key))
    reply = json_reply(body, headers)
    if fault is None or fault == "slow":
        reply.answers = question.key
    return reply


def _fault(call: Call) -> str | None:
    """What goes wrong with this request: what `next` says, else what is drawn."""
    state = call.state
    settings = state.settings
    kinds: tuple[str, ...] = ()
    if call.kind in settings.fault_on:
        kinds = (*REFUSALS, *WIRE)
        if settings.next:
            name = settings.next.pop(0)
            return name and state.faults.counted(name)
    if not settings.faults:
        return None
    key = f"{call.request.method} {call.route}"
    if call.question is not None:
        key = call.question.key
        kinds += call.wire.content_faults(call.question)
    return state.faults.drawn(settings, key, kinds) if kinds else None


async def _delivered(call: Call, reply: Reply, fault: str | None) -> web.StreamResponse:
    """The reply as it goes over the wire; an answer counts where the connection is still open."""
    request = call.request
    transport = request.transport
    if fault == "disconnect" or transport is None or transport.is_closing():
        return _closed(call)
    if fault == "disconnect_body":
        return await _half(call, reply)
    if fault == "html_502":
        reply = Reply(502, PAGE, {"Content-Type": "text/html"})
    elif fault in ("truncated", "empty"):
        reply.body = reply.body[: len(reply.body) // 2] if fault == "truncated" else b""
    elif reply.answers:
        call.seen.answered[reply.answers] += 1
    _count(call, str(reply.status))
    return web.Response(body=reply.body, status=reply.status, headers=reply.headers)


async def _half(call: Call, reply: Reply) -> web.StreamResponse:
    """The headers promise the whole body; half of it comes."""
    _count(call, GONE)
    response = web.StreamResponse(
        status=reply.status, headers={**reply.headers, "Content-Length": str(len(reply.body))}
    )
    await response.prepare(call.request)
    await response.write(reply.body[: len(reply.body) // 2])
    if call.request.transport is not None:
        call.request.transport.close()
    return response


def _closed(call: Call) -> web.StreamResponse:
    _count(call, GONE)
    if call.request.transport is not None:
        call.request.transport.close()
    return web.Response()


def _count(call: Call, status: str) -> None:
    call.seen.requests[call.route][status] += 1


def _route(method: str, path: str) -> tuple[str, str]:
    """The name of a route, and the id in it."""
    name = f"{method} {path}"
    if name in ROUTES:
        return name, ""
    parts = path.split("/")
    for at in (-1, -2):
        if len(parts) > 3:
            changed = [*parts]
            changed[at] = "{id}"
            name = f"{method} {'/'.join(changed)}"
            if name in ROUTES:
                return name, parts[at]
    return f"{method} unknown", ""


async def _json(call: Call) -> Any:
    try:
        return from_json(await call.request.read())
    except ValueError as error:
        message = "We could not parse the JSON body of your request."
        raise RefusedError(400, message) from error


async def _count_tokens(call: Call) -> Reply:
    question = provider_anthropic.read(await _json(call), call.state.settings, call.request.headers, counting=True)
    return _json_reply(call, {"input_tokens": question.tokens_in})


async def _input_tokens(call: Call) -> Reply:
    """Of the Responses API: `input` are messages as a chat has them."""
    body = await _json(call)
    asked = {"model": body.get("model"), "messages": body.get("input")}
    question = provider_openai.read(asked, call.state.settings, call.request.headers)
    return _json_reply(call, {"object": "response.input_tokens", "input_tokens": question.tokens_in})


async def _models(call: Call) -> Reply:
    return _json_reply(call, call.wire.models_body(call.state.settings.models or call.wire.CATALOG))


async def _model(call: Call) -> Reply:
    call.wire.check_model(call.id, call.state.settings)
    return _json_reply(call, call.wire.model_body(call.id))


async def _upload(call: Call) -> Reply:
    form = await call.request.post()
    file = form.get("file")
    if not isinstance(file, web.FileField):
        raise RefusedError(400, "Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
    content = file.file.read()
    file.file.close()
    added = provider_openai_batches.add_file(call.state, file.filename, str(form.get("purpose")), content)
    return _json_reply(call, added.view())


async def _file(call: Call) -> Reply:
    return _json_reply(call, provider_openai_batches.file_of(call.state, call.id).view())


async def _content(call: Call) -> Reply:
    file = provider_openai_batches.file_of(call.state, call.id)
    return Reply(200, file.content, {"Content-Type": "application/octet-stream"})


async def _delete_file(call: Call) -> Reply:
    return _json_reply(call, provider_openai_batches.delete_file(call.state, call.id))


async def _batches(call: Call) -> Reply:
    return _json_reply(call, provider_openai_batches.listed(call.state, call.request.query))


async def _create_batch(call: Call) -> Reply:
    return _json_reply(call, provider_openai_batches.create(call.state, await _json(call)).view())


async def _batch(call: Call) -> Reply:
    return _json_reply(call, provider_openai_batches.batch_of(call.state, call.id).view())


async def _cancel_batch(call: Call) -> Reply:
    return _json_reply(call, provider_openai_batches.cancelled(call.state, call.id).view())


async def _message_batches(call: Call) -> Reply:
    return _json_reply(call, provider_anthropic_batches.listed(call.state, call.request.query))


async def _create_message_batch(call: Call) -> Reply:
    body, request = await _json(call), call.request
    size, url = len(await request.read()), f"http://{request.host}"
    batch = provider_anthropic_batches.create(call.state, body, size, request.headers, url)
    return _json_reply(call, batch.view())


async def _message_batch(call: Call) -> Reply:
    return _json_reply(call, provider_anthropic_batches.batch_of(call.state, call.id).view())


async def _message_results(call: Call) -> Reply:
    content = provider_anthropic_batches.results(call.state, call.id)
    return Reply(200, content, {"Content-Type": "application/x-jsonl"})


async def _cancel_message_batch(call: Call) -> Reply:
    return _json_reply(call, provider_anthropic_batches.canceled(call.state, call.id).view())


ROUTES: dict[str, tuple[str, Act | None]] = {
    "POST /v1/chat/completions": ("ask", None),
    "POST /v1/messages": ("ask", None),
    "POST /v1/messages/count_tokens": ("count", _count_tokens),
    "POST /v1/responses/input_tokens": ("count", _input_tokens),
    "GET /v1/models": ("models", _models),
    "GET /v1/models/{id}": ("models", _model),
    "POST /v1/files": ("batch", _upload),
    "GET /v1/files/{id}": ("batch", _file),
    "GET /v1/files/{id}/content": ("batch", _content),
    "DELETE /v1/files/{id}": ("batch", _delete_file),
    "GET /v1/batches": ("batch", _batches),
    "POST /v1/batches": ("batch", _create_batch),
    "GET /v1/batches/{id}": ("batch", _batch),
    "POST /v1/batches/{id}/cancel": ("batch", _cancel_batch),
    "GET /v1/messages/batches": ("batch", _message_batches),
    "POST /v1/messages/batches": ("batch", _create_message_batch),
    "GET /v1/messages/batches/{id}": ("batch", _message_batch),
    "GET /v1/messages/batches/{id}/results": ("batch", _message_results),
    "POST /v1/messages/batches/{id}/cancel": ("batch", _cancel_message_batch),
}


def _json_reply(call: Call, value: object) -> Reply:
    return json_reply(value, call.wire.id_header(call.state.fresh("req_")))


def _told(reply: Reply) -> web.Response:
    return web.Response(body=reply.body, status=reply.status, headers={"Content-Type": JSON})


def _seen(state: State, *, answers: bool) -> Reply:
    return json_reply({**state.seen.view(answers=answers), "faults": state.faults.counts})


async def _control(state: State, request: web.BaseRequest) -> Reply:
    if request.method != "POST":
        return json_reply(asdict(state.settings))
    try:
        state.change(from_json(await request.read()))
    except (ValueError, TypeError) as error:
        return json_reply({"error": str(error)}, status=400)
    return json_reply(asdict(state.settings))
