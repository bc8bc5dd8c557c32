"""Rewards for another process's trainer: a client, and functions in the shapes that TRL and verl call.

Imports nothing of this project, only aiohttp where it is asynchronous: copy this file, or take it from `rlaif`.
A failure is None, or an error, never a number.

Annotations are no strings here: verl executes the file without making it a module, where dataclasses cannot read those.
"""

import asyncio
import contextlib
import http.client
import io
import json
import logging
import os
import random
import socket
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import aiohttp

Prompt = str | Sequence[Mapping[str, Any]]
T = TypeVar("T")

PASSING = frozenset({"timeout", "overloaded", "stopped", "connection", "server_error", "rate_limit", "internal"})
"""Reasons of a failed item that may be gone a moment later."""

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

TOO_LARGE = 413

LONGEST_PAUSE = 10.0
MOST, LARGEST, AT_ONCE = 512, 1_000_000, 8
"""Items and bytes in one request; larger batches go as several, so many at the same time."""

LOG = logging.getLogger("rlaif.client")


@dataclass(frozen=True)
class Answer:
    """What one response got. `reward` is None where there is none, and `reason` says why."""

    reward: float | None
    score: float | None = None
    reason: str | None = None
    message: str | None = None
    cached: bool = False


UNREADABLE = Answer(None, None, "unreadable", "the completion is no text of an assistant")


class RewardError(RuntimeError):
    """There is no reward, and the caller's protocol has no word for that."""


@dataclass
class RewardClient:
    """A reward server, asked with patience: `timeout` seconds for a call with all of its tries.

    Connections are kept, one set for each event loop (a trainer may have several) and one for each thread.
    """

    url: str
    token: str | None = None
    timeout: float = 100.0
    again: bool = True
    """Whether a server from which nothing is heard is asked again; who says something meanwhile does it itself."""
    _sessions: dict[asyncio.AbstractEventLoop, Any] = field(default_factory=dict[Any, Any], repr=False)
    """Of each event loop an aiohttp.ClientSession, and the generator that ends it."""
    _local: threading.local = field(default_factory=threading.local, repr=False)

    def __post_init__(self) -> None:
        place = urlsplit(self.url)
        if place.scheme not in {"http", "https"} or not place.hostname:
            raise ValueError(f"{self.url!r} is no address of a server; expected http://HOST:PORT")

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        """One reward in [-1, 1] for each response, None where there is none."""
        return [each.reward for each in self.ask(items(prompts, responses))]

    async def arewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        """The same, from an event loop."""
        return [each.reward for each in await self.aask(items(prompts, responses))]

    def ask(self, asked: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Items as `/v1/rewards` takes them; one answer for each, in order."""
        pieces, end = _pieces(asked), time.monotonic() + self.timeout
        if len(pieces) < 2:
            return [answer for piece in pieces for answer in self._piece(piece, end)]

        def one(piece: Sequence[Mapping[str, Any]]) -> list[Answer]:
            try:
                return self._piece(piece, end)
            finally:
                self.close()  # its thread ends with this call

        with ThreadPoolExecutor(min(len(pieces), AT_ONCE)) as threads:
            return [answer for found in threads.map(one, pieces) for answer in found]

    async def aask(self, asked: Sequence[Mapping[str, Any]]) -> list[Answer]:
        end = time.monotonic() + self.timeout
        found = await asyncio.gather(*(self._apiece(piece, end) for piece in _pieces(asked)))
        return [answer for piece in found for answer in piece]

    def close(self) -> None:
        """Close the connection of this thread."""
        connection = self._connection()
        if connection is not None:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection | None:
        """This thread's, if it was opened by this process: after a fork, parent and child would read each other's
        answers."""
        known = cast("tuple[int, http.client.HTTPConnection] | None", getattr(self._local, "known", None))
        return known[1] if known is not None and known[0] == os.getpid() else None

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        known = self._sessions.get(asyncio.get_running_loop())
        if known is not None:
            await known[1].aclose()

    def _piece(self, piece: Sequence[Mapping[str, Any]], end: float) -> list[Answer]:
        asked = _Asked(piece)
        for pause in _pauses():
            left = end - time.monotonic()
            if left <= 0:
                break
            status, body = self._post(asked.body(left), left)
            if status == TOO_LARGE and len(piece) > 1:
                return [answer for half in _halves(piece) for answer in self._piece(half, end)]
            if asked.take(status, body) or not (status or self.again):
                break
            time.sleep(max(0.0, min(pause, end - time.monotonic())))
        return asked.given_up()

    async def _apiece(self, piece: Sequence[Mapping[str, Any]], end: float) -> list[Answer]:
        asked = _Asked(piece)
        for pause in _pauses():
            left = end - time.monotonic()
            if left <= 0:
                break
            status, body = await self._apost(asked.body(left), left)
            if status == TOO_LARGE and len(piece) > 1:
                return [answer for half in _halves(piece) for answer in await self._apiece(half, end)]
            if asked.take(status, body) or not (status or self.again):
                break
            await asyncio.sleep(max(0.0, min(pause, end - time.monotonic())))
        return asked.given_up()

    def _headers(self) -> dict[str, str]:
        token = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {"Content-Type": "application/json", **token}

    def _post(self, body: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body; 0 and the reason where there was no answer."""
        place = urlsplit(self.url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        connection = self._connection()
        if connection is None:
            connection = kind(place.hostname or "", place.port)
            self._local.known = os.getpid(), connection
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        # A socket's timeout is for each of its reads, and a slow server may need many.
        late = threading.Timer(seconds, _hang_up, [connection])
        late.daemon = True
        late.start()
        try:
            try:
                connection.request("POST", f"{place.path.rstrip('/')}/v1/rewards", body, self._headers())
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise
                # A body that is too large is refused unread: what the server said of it may be there.
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return 0, f"{type(error).__name__}: {error}".encode()
        finally:
            late.cancel()

    async def _apost(self, body: bytes, seconds: float) -> tuple[int, bytes]:
        import aiohttp

        session = await self._session()
        try:
            limit = aiohttp.ClientTimeout(total=seconds)
            data = body if len(body) <= LARGEST else io.BytesIO(body)  # which aiohttp writes in parts
            async with session.post(f"{self.url.rstrip('/')}/v1/rewards", data=data, timeout=limit) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return 0, f"{type(error).__name__}: {error}".encode()

    async def _session(self) -> "aiohttp.ClientSession":
        """The connections of this event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            for ended in [each for each in self._sessions if each.is_closed()]:  # by somebody who ended nothing in it
                del self._sessions[ended]
            kept = self._kept(loop)
            self._sessions[loop] = await anext(kept), kept
        return self._sessions[loop][0]

    async def _kept(self, loop: asyncio.AbstractEventLoop) -> "AsyncGenerator[aiohttp.ClientSession]":
        """A session that ends with its event loop: asyncio.run closes the generators that were begun in it."""
        import aiohttp

        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=self._headers())
        try:
            yield session
        finally:
            self._sessions.pop(loop, None)
            await session.close()


def items(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[dict[str, Any]]:
    """Items of `/v1/rewards`; raises ValueError where the two are not of one length, TypeError for a single text."""
    if isinstance(prompts, str) or isinstance(responses, str):
        raise TypeError("expected a list of prompts and a list of responses")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses")
    return [{"prompt": prompt, "response": response} for prompt, response in zip(prompts, responses, strict=True)]


def trl_reward(
    url: str, *, token: str | None = None, timeout: float = 100.0, name: str = "rlaif"
) -> Callable[..., Awaitable[list[float | None]]]:
    """A reward function for TRL's GRPOTrainer and RLOOTrainer: `reward_funcs=[trl_reward("http://127.0.0.1:8300")]`.

    A real coroutine function, as TRL looks for one; it opens its connections in the loop that calls it. None for a
    response without a reward, which TRL leaves out. Metrics: `rewards/NAME/mean`, and how many failed or were known.
    """
    client = RewardClient(url, token, timeout)

    async def reward(
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        log_metric: Callable[[str, float], None] | None = None,
        **_: object,
    ) -> list[float | None]:
        said = [_text(each) for each in completions]
        open_ = [at for at, each in enumerate(said) if each is not None]
        asked = items(prompts, [each or "" for each in said])
        answers = dict(zip(open_, await client.aask([asked[at] for at in open_]), strict=True))
        found = [answers.get(at, UNREADABLE) for at in range(len(said))]
        if log_metric is not None and found:
            log_metric(f"{name}/failed", sum(each.reward is None for each in found) / len(found))
            log_metric(f"{name}/cached", sum(each.cached for each in found) / len(found))
        return [each.reward for each in found]

    reward.__name__ = name
    return reward


async def verl_score(
    data_source: str,  # noqa: ARG001
    solution_str: str,
    ground_truth: object = None,  # noqa: ARG001
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str,
    prompt_key: str = "question",
    token: str | None = None,
    timeout: float = 100.0,
    **_: object,
) -> dict[str, float]:
    """verl's `compute_score`; `reward_kwargs` are url, prompt_key, token and timeout. verl does not hand over the
    prompt: the data set must have it in `extra_info[prompt_key]`.

    The same keys each time. Raises RewardError where there is no reward, and KeyError without the prompt: verl knows
    no mark for a failure, and a 0 would be a wrong reward.
    """
    prompt = (extra_info or {})[prompt_key]
    (found,) = await _client(url, token, timeout).aask(items([prompt], [solution_str]))
    if found.reward is None:
        raise RewardError(f"{found.reason}: {found.message}")
    unit = (found.reward + 1) / 2
    return {"score": found.reward, "acc": unit, "judge_cached": float(found.cached)}


_clients: dict[tuple[str, str | None, float], RewardClient] = {}


def _client(url: str, token: str | None, timeout: float) -> RewardClient:
    """One a server: verl calls a plain function for every sample, and connections should be kept."""
    return _clients.setdefault((url, token, timeout), RewardClient(url, token, timeout))


def _hang_up(connection: http.client.HTTPConnection) -> None:
    """End what another thread waits for."""
    with contextlib.suppress(OSError, AttributeError):  # it may be closed, or close, already
        connection.sock.shutdown(socket.SHUT_RDWR)  # pyright: ignore[reportOptionalMemberAccess]


def _text(completion: Prompt) -> str | None:
    """What the policy says in a completion; None where that is more than text. TRL hands over messages where the data
    set is conversational, and those of tools between them.
    """
    if isinstance(completion, str):
        return completion
    said = [_content(message.get("content")) for message in completion if message.get("role") == "assistant"]
    return None if None in said or not said else "".join(each for each in said if each is not None)


def _content(content: Any) -> str | None:
    if not isinstance(content, list):
        return "" if content is None else str(content)
    parts: list[Any] = [
        cast("Mapping[str, Any]", each).get("text") if isinstance(each, Mapping) else each
        for each in cast("list[Any]", content)
    ]
    return "".join(parts) if all(isinstance(each, str) for each in parts) else None


def _pieces(asked: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    pieces: list[list[Mapping[str, Any]]] = []
    size = 0
    for each in asked:
        more = len(json.dumps(each))
        if not pieces or len(pieces[-1]) == MOST or size + more > LARGEST:
            pieces.append([])
            size = 0
        pieces[-1].append(each)
        size += more
    return pieces


def _halves(piece: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Of what a server takes only in smaller pieces."""
    middle = len(piece) // 2
    return piece[:middle], piece[middle:]


def _pauses() -> Any:
    """Seconds before the next try: doubled, with jitter, for ever; the time that is left ends it."""
    pause = 0.25
    while True:
        yield pause * (0.5 + random.random())  # noqa: S311
        pause = min(2 * pause, LONGEST_PAUSE)


_told: set[str] = set()


def _tell(message: str) -> None:
    """Into the log, once: enough for a wrong token, however many batches meet it."""
    if message not in _told:
        _told.add(message)
        LOG.warning("no rewards: %s", message)


class _Asked:
    """Items that are asked about until each has an answer, or a failure that will not pass."""

    def __init__(self, piece: Sequence[Mapping[str, Any]]) -> None:
        self.answers = [Answer(None, None, "server", "no answer in time")] * len(piece)
        self._piece, self._open = piece, list(range(len(piece)))

    def body(self, left: float) -> bytes:
        """The server is told to be done a little before the caller gives up."""
        wanted = [self._piece[at] for at in self._open]
        told = json.dumps({"items": wanted, "timeout_s": max(0.1, 0.95 * left)}, ensure_ascii=False)
        return told.encode("utf-8", "replace")  # a lone surrogate has no UTF-8 form; a question mark stands for it

    def given_up(self) -> list[Answer]:
        """The answers, when nothing more is tried; the log hears of a server that never gave one."""
        for reason in {self.answers[at].message for at in self._open if self.answers[at].reason == "server"}:
            _tell(str(reason))
        return self.answers

    def take(self, status: int, body: bytes) -> bool:
        """Whether nothing is to be asked again."""
        found = _read(status, body, len(self._open))
        if isinstance(found, str):
            lasting = bool(status) and status not in AGAIN
            if lasting:
                _tell(found)
            for at in self._open:
                self.answers[at] = Answer(None, None, "refused" if lasting else "server", found)
            return lasting
        for at, answer in zip(self._open, found, strict=True):
            self.answers[at] = answer
        self._open = [at for at in self._open if self.answers[at].reason in PASSING]
        return not self._open


def _read(status: int, body: bytes, count: int) -> list[Answer] | str:
    """Answers, or why there are none."""
    if status != 200:
        return f"status {status}: {body[:500].decode(errors='replace')}" if status else body.decode(errors="replace")
    try:
        told = json.loads(body)["items"]
        found = [
            Answer(each["reward"], each["score"], each["reason"], each["message"], bool(each["cached"]))
            for each in told
        ]
    except (ValueError, KeyError, TypeError) as error:
        return f"the answer cannot be read: {error}"
    return found if len(found) == count else f"{len(found)} answers for {count} items"
