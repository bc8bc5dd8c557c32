"""The reward server for tests: in this process without a socket (`served`), or as a process of its own (`process`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache as cached
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from data.records import Response, Score
from labeler.backend import Backend, Choose
from labeler.fake import RULES, FakeBackend
from labeler.server import serving
from labeler.server.gate import Gate
from labeler.server.options import Listening, Rewarding
from labeler.server.serving import Model
from prompts import answers
from prompts.task import load

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 30.0
"""Seconds after which a test has failed."""

MEMORY = Rewarding(kept="memory")
TASKS = cached(load)
"""Tasks are read once: their templates take longer to compile than all the rest of a server."""


def until(done: Callable[[], bool]) -> None:
    """Wait for what another thread or process will have done."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


@dataclass(frozen=True)
class Noted(FakeBackend):
    """A model that notes what it is asked, and answers when it may: `let` cleared holds all of its answers back."""

    name: str = "fake:noise"
    rule: Any = RULES["noise"]
    asked: list[Choose] = field(default_factory=list[Choose])
    let: asyncio.Event | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def likelihoods(self, requests: Sequence[Choose]) -> Any:
        self.asked.extend(requests)
        self.begun.set()
        if self.let is not None:
            await self.let.wait()
        return await super().likelihoods(requests)

    def about(self, text: str) -> int:
        """How many questions were about this text."""
        return sum(text in each.prompt.plain() for each in self.asked)


def row(response: str = "Fine.", prompt: Any = "How are you?") -> Response:
    made = Response(id="-", prompt=prompt, response=response)
    return made.model_copy(update={"id": made.content})


def score(distribution: Sequence[float] = (0.1,) * 10, *, mass: float = 1.0, about: Response | None = None) -> Score:
    """What a Scorer would say."""
    found = answers.expected_score(distribution)
    return Score(
        id=(about or row()).id,
        score=found,
        reward=answers.reward(found),
        distribution=tuple(distribution),
        mass=mass,
        model="fake:test",
        task="helpfulness",
        digest="d",
        tokens_in=7,
        tokens_out=1,
        usd=None,
        seconds=0.0,
        method="logprobs",
    )


def worth(value: float) -> tuple[float, ...]:
    """Ten probabilities whose mean is this score, on the two scores next to it."""
    low = min(int(value), 9)
    share = value - low
    return tuple(1 - share if at == low else share if at == low + 1 else 0.0 for at in range(1, 11))


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Web:
    """A server in this process: requests are handed to it as uvicorn would hand them over."""

    gate: Gate

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = b"",
        *,
        headers: Mapping[str, str] | None = None,
        parts: Iterable[bytes] | None = None,
        gone: asyncio.Event | None = None,
        client: str = "127.0.0.1",
        port: int = 50_000,
        unended: bool = False,
    ) -> Reply:
        """`parts` are a chunked body, read as it is wanted; `unended` never sends its end; `gone` is set when the
        caller hangs up."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        pieces = iter([sent] if parts is None else parts)
        sized = {"content-length": str(len(sent))} if parts is None else {"transfer-encoding": "chunked"}
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in {**sized, **(headers or {})}.items()],
            "client": (client, port),
            "server": ("127.0.0.1", 8300),
        }
        coming: bytes | None = next(pieces, b"")
        heard: list[Any] = []

        async def receive() -> dict[str, Any]:
            nonlocal coming
            if coming is not None:
                part, coming = coming, next(pieces, None)
                return {"type": "http.request", "body": part, "more_body": unended or coming is not None}
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            heard.append(message)

        async with asyncio.timeout(PATIENCE):
            await self.gate(scope, receive, send)
        if not heard:
            return Reply(0, {}, b"")
        told = {k.decode(): v.decode("latin-1") for k, v in heard[0]["headers"]}
        return Reply(heard[0]["status"], told, b"".join(each.get("body", b"") for each in heard[1:]))

    async def post(self, path: str, body: Any = b"", **more: Any) -> Reply:
        return await self.ask("POST", path, body, **more)

    async def get(self, path: str, **more: Any) -> Reply:
        return await self.ask("GET", path, **more)

    async def metric(self, sample: str) -> float:
        """A number of /metrics, 0 where it is not there yet."""
        lines = (await self.get("/metrics")).text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{sample} ")), 0.0)


@contextlib.asynccontextmanager
async def served(
    backend: Backend | None = None,
    *,
    tasks: Sequence[str] = ("helpfulness",),
    listening: Listening | None = None,
    rewarding: Rewarding = MEMORY,
    token: str | None = None,
    cache: Path | None = None,
    patience: float | None = None,
) -> AsyncIterator[Web]:
    """A server that has begun; `patience` bounds the time in which a body must come."""
    with tempfile.TemporaryDirectory() as temporary:
        model = Model(tuple(tasks), "fake:noise", cache or Path(temporary))
        with patch.object(serving, "load", TASKS):
            gate = serving.build(backend or Noted(), model, listening or Listening(), rewarding, token)
        async with living(gate if patience is None else replace(gate, patience=patience)) as web:
            yield web


@contextlib.asynccontextmanager
async def living(gate: Gate) -> AsyncIterator[Web]:
    """From a server's beginning to its end."""
    begun, ending, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not begun.is_set():
            return {"type": "lifespan.startup"}
        await ending.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        (begun if message["type"].startswith("lifespan.startup") else ended).set()

    life = asyncio.create_task(gate({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    await begun.wait()
    try:
        yield Web(gate)
    finally:
        ending.set()
        await life


def good(reply: Reply) -> Any:
    """What a good answer says."""
    assert reply.status == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    return reply.json


def native(*responses: str, prompt: Any = "How are you?", **more: Any) -> dict[str, Any]:
    """A body for /v1/rewards."""
    items = [{"id": str(at), "prompt": prompt, "response": each} for at, each in enumerate(responses)]
    return {"items": items, **more}


@dataclass
class Process:
    """`rlaif serve` as people start it."""

    url: str
    running: subprocess.Popen[str]
    said: list[str]
    reader: threading.Thread

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            try:
                connection.request(method, path, sent, {"content-type": "application/json", **headers})
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise
                # What is too large is refused unread: the answer may come before the body's end.
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def kill(self) -> None:
        self.running.kill()
        self.ended()

    def stop(self) -> int:
        """SIGTERM, and how it ended."""
        self.running.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        status = self.running.wait(PATIENCE)
        self.reader.join(PATIENCE)
        return status


def start(*words: str, cache: Path, program: Sequence[str] = (), **environment: str) -> Process:
    """`rlaif serve WORDS`, once it answers. Raises RuntimeError with what it complained of."""
    command = [*(program or [sys.executable, str(ROOT / "rlaif.py")]), "serve", *words]
    command += [] if "--port" in words else ["--port", "0"]
    known = {**os.environ, "RLAIF_CACHE": str(cache), **environment}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=known)
    assert running.stderr is not None
    said: list[str] = []
    for line in running.stderr:
        said.append(line.rstrip("\n"))
        if ": http://" in line:
            break
    else:
        running.stderr.close()
        running.wait()
        raise RuntimeError("\n".join(said))
    pipe = running.stderr

    def read() -> None:
        with pipe:
            said.extend(line.rstrip("\n") for line in pipe)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    url = next(word for word in said[-1].split() if word.startswith("http://")).rstrip("/")
    return Process(url, running, said, reader)


@contextlib.contextmanager
def process(*words: str, cache: Path, **environment: str) -> Iterator[Process]:
    it = start(*words, cache=cache, **environment)
    try:
        yield it
    finally:
        if it.running.poll() is None:
            it.kill()
