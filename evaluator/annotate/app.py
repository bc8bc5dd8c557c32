"""The page over HTTP: a route reads a form, asks the poll, answers with a page. The link is the key: no cookies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as AnyHTTPException

from data.errors import FileError, RlaifError
from evaluator.annotate import guard, pages
from evaluator.annotate.poll import Poll


def app(poll: Poll, hosts: Collection[str], lifespan: Any = None) -> FastAPI:
    """`hosts` are the names, besides addresses, that the page goes by."""
    made = FastAPI(openapi_url=None, lifespan=lifespan)
    routes = Routes(poll)
    for path, get, posts in (
        ("/", routes.start, {"": routes.enter}),
        ("/r/{token}", routes.show, {"/vote": routes.vote, "/undo": routes.undo, "/unskip": routes.unskip}),
    ):
        made.add_api_route(path, get, methods=["GET"])
        for end, post in posts.items():
            made.add_api_route(path + end, post, methods=["POST"])
    made.mount("/static", StaticFiles(directory=pages.STATIC))
    made.add_exception_handler(RlaifError, _failed)
    made.add_exception_handler(AnyHTTPException, _failed)
    made.middleware("http")(_guarding(hosts))
    return made


@dataclass(frozen=True)
class Routes:
    poll: Poll

    async def start(self) -> Response:
        return HTMLResponse(pages.start(is_open=self.poll.open))

    async def enter(self, request: Request) -> Response:
        try:
            token = self.poll.enter((await _form(request)).get("name", ""))
        except FileError:
            raise
        except RlaifError as error:
            return HTMLResponse(pages.start(is_open=self.poll.open, complaint=str(error)), 400)
        return _see(token)

    async def show(self, token: str, note: str = "") -> Response:
        rater = self._rater(token)
        now, progress, last = self.poll.ballot(rater), self.poll.progress(rater), self.poll.last(rater)
        if now is None:
            return HTMLResponse(pages.finished(rater, token, progress, last))
        return HTMLResponse(pages.ballot(rater, token, now, progress, last, note))

    async def vote(self, token: str, request: Request) -> Response:
        form = await _form(request)
        taken = self.poll.judge(self._rater(token), form.get("ballot", ""), form)
        return _see(token, "" if taken else "stale")

    async def undo(self, token: str, request: Request) -> Response:
        form = await _form(request)
        taken = self.poll.undo(self._rater(token), form.get("last", ""))
        return _see(token, "undone" if taken else "stale")

    async def unskip(self, token: str) -> Response:
        self.poll.unskip(self._rater(token))
        return _see(token)

    def _rater(self, token: str) -> str:
        rater = self.poll.rater(token)
        if rater is None:
            raise HTTPException(404, "this link is not valid here; ask whoever sent it for a new one")
        return rater


async def _form(request: Request) -> dict[str, str]:
    """The fields of a posted form; its size is bounded by `guard`."""
    try:
        return dict(parse_qsl((await request.body()).decode(), max_num_fields=20))
    except ValueError:
        raise HTTPException(400, "this form cannot be read") from None


def _see(token: str, note: str = "") -> Response:
    return RedirectResponse(f"/r/{token}" + (f"?note={note}" if note else ""), 303)


async def _failed(_: Request, error: Exception) -> Response:
    """What went wrong, as a page. A vote that could not be stored is never answered as if it had been."""
    if isinstance(error, AnyHTTPException):
        return HTMLResponse(pages.message("That did not work", str(error.detail)), error.status_code)
    if isinstance(error, FileError):
        return HTMLResponse(pages.message("Nothing was stored", f"{error}. Then go back and judge it again."), 503)
    return HTMLResponse(pages.message("That did not work", str(error)), 400)


def _guarding(hosts: Collection[str]) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Any]:
    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = guard.refusal(request.method, request.headers, hosts)
        response = PlainTextResponse(refused[1], refused[0]) if refused else await answer(request)
        response.headers.update(guard.HEADERS)
        return response

    return guarded
