"""The server as one ASGI app: dialects, probes, metrics, a page to look at, and the gate before them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import escape
from math import isinf
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic_core import to_json

from data.errors import RlaifError
from labeler.server.dialects import DIALECTS
from labeler.server.gate import Gate
from labeler.server.wire import JSON, Endpoint, Serving, problem

ABOUT = """Rewards from an LLM's own probabilities: the expectation over the scores 1 to 10, mapped to [-1, 1].

A failure is never a number: it is a failed item, a marker, or a status, as the operator chose."""

AGAIN = 5.0
"""Seconds between two tries to warm up."""


@dataclass
class State:
    """Whether the model has answered once, and what it said where it has not."""

    ready: bool = False
    why: str = "warming up"


def app(
    serving: Serving,
    *,
    token: str | None,
    largest: int,
    patience: float,
    warm: Callable[[], Awaitable[str | None]],
    close: Callable[[], Awaitable[None]],
) -> Gate:
    """`warm` asks the model once and says what is wrong, None where nothing is; `close` ends what was opened."""
    state = State()

    async def warming() -> None:
        while (why := await tried()) is not None:
            state.why = why
            await asyncio.sleep(AGAIN)
        state.ready = True

    async def tried() -> str | None:
        try:
            return await warm()
        except Exception as error:  # a refused key, a missing model: who looks at /ready is told
            return str(error) if isinstance(error, RlaifError) else type(error).__name__

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        serving.core.start()
        task = asyncio.create_task(warming())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await serving.core.stop()
        await close()

    made = FastAPI(title="rlaif reward server", description=ABOUT, docs_url=None, redoc_url=None, lifespan=lifespan)
    made.include_router(_probes(serving, state))
    for status in (404, 405):
        made.add_exception_handler(status, _missing)
    endpoints = [each for dialect in DIALECTS for each in dialect(serving)]
    made.openapi = lambda: _document(made, endpoints, guarded=token is not None)
    answers = {(each.method, each.path): each.__call__ for each in endpoints}
    return Gate(answers, made, token, largest, patience, serving.core.metrics)


async def _missing(_request: Request, _error: Exception) -> Response:
    told = "nothing is there by this name and method; /openapi.json lists what is"
    return Response(problem(404, told), 404, media_type=JSON)


def _document(made: FastAPI, endpoints: Sequence[Endpoint], *, guarded: bool) -> dict[str, Any]:
    """FastAPI's document of the pages, with what the dialects say of themselves."""
    found = get_openapi(title=made.title, version=made.version, description=made.description, routes=made.routes)
    for each in endpoints:
        found["paths"].setdefault(each.path, {})[each.method.lower()] = each.described()
    if guarded:
        found.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def _probes(serving: Serving, state: State) -> APIRouter:
    made = APIRouter(tags=["server"])

    async def health() -> Response:
        return Response(b'{"status":"ok"}', media_type=JSON)

    async def ready() -> Response:
        told = {"ready": state.ready, "why": None if state.ready else state.why}
        return Response(to_json(told), 200 if state.ready else 503, media_type=JSON)

    async def models() -> Response:
        about = {"id": serving.model, "object": "model", "owned_by": "rlaif", "task": serving.rewards.task}
        return Response(to_json({"object": "list", "data": [about]}), media_type=JSON)

    async def metrics() -> Response:
        return Response(serving.core.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page() -> Response:
        return Response(_page(serving, state), media_type="text/html; charset=utf-8", headers=PAGE)

    probes: tuple[tuple[str, Callable[[], Awaitable[Response]], type[Response], str], ...] = (
        ("/health", health, JSONResponse, "The process lives"),
        ("/ready", ready, JSONResponse, "The model has answered"),
        ("/v1/models", models, JSONResponse, "What is served"),
        ("/metrics", metrics, PlainTextResponse, "For Prometheus"),
        ("/", page, HTMLResponse, "A page with the rewards so far"),
    )
    for path, endpoint, kind, about in probes:
        name = f"get_{path.strip('/').replace('/', '_') or 'page'}"
        made.add_api_route(path, endpoint, summary=about, operation_id=name, response_model=None, response_class=kind)
    return made


PAGE = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "Cache-Control": "no-store"}


def _page(serving: Serving, state: State) -> str:
    """The histogram of rewards as a table whose cells are as wide as they are frequent; it loads itself again."""
    counts = [(bound, count) for bound, count in serving.core.metrics.histogram() if count or -1 <= bound <= 1]
    most = max((count for _, count in counts), default=0) or 1
    bars = "".join(
        f"<tr><th>{'above' if isinf(bound) else f'{bound:+.1f}'}</th>"
        f'<td><i style="width:{100 * count / most:.1f}%"></i></td><td>{count:.0f}</td></tr>'
        for bound, count in counts
    )
    outcomes = ", ".join(f"{escape(name)} {count}" for name, count in serving.core.metrics.outcomes().items())
    status = "ready" if state.ready else f"not ready: {escape(state.why)}"
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width"><title>Rewards</title><style>:root{{color-scheme:light dark}}
body{{font:1rem/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}}
table{{width:100%;border-collapse:collapse}}th{{text-align:right;font-weight:normal;width:4rem}}td{{padding:1px .5rem}}
td:nth-child(2){{width:100%}}td:last-child{{text-align:right}}i{{display:block;height:.9rem;background:#1f5f8b}}
</style><h1>{escape(serving.rewards.task)}</h1><p>{escape(serving.model)}, {status}</p>
<p>Items so far: {outcomes or "none"}</p><h2>Rewards</h2><table>{bars}</table></html>"""
