"""Rewards for another process's trainer: a client, and functions in the shapes that TRL and verl call.

Imports nothing of this project, only aiohttp where it is asynchronous: copy this file, or take it from `rlaif`.
A failure is None, or an error, never a number.

Annotations are no strings here: verl executes the file without making it a module, where dataclasses cannot read those.
"""

import asyncio
import http.client
import json
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import aiohttp

Prompt = str | Sequence[Mapping[str, Any]]

PASSING = frozenset({"timeout", "overloaded", "stopped", "connection", "server_error", "rate_limit", "internal"})
"""Reasons of a failed item that may be gone a moment later."""

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

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
    _sessions: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession]" = field(
        default_factory=lambda: weakref.WeakKeyDictionary(), repr=False
    )
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
        found = await asyncio.gather(*(self._apiece(piece) for piece in _pieces(asked)))
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
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    def _piece(self, piece: Sequence[Mapping[str, Any]], end: float) -> list[Answer]:
        asked = _Asked(piece)
        for pause in _pauses():
            left = end - time.monotonic()
            if left <= 0 or asked.take(*self._post(asked.body(left), left)):
                break
            time.sleep(max(0.0, min(pause, end - time.monotonic())))
        return asked.given_up()

    async def _apiece(self, piece: Sequence[Mapping[str, Any]]) -> list[Answer]:
        asked, end = _Asked(piece), time.monotonic() + self.timeout
        for pause in _pauses():
            left = end - time.monotonic()
            if left <= 0 or asked.take(*await self._apost(asked.body(left), left)):
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
        try:
            connection.request("POST", f"{place.path.rstrip('/')}/v1/rewards", body, self._headers())
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return 0, f"{type(error).__name__}: {error}".encode()

    async def _apost(self, body: bytes, seconds: float) -> tuple[int, bytes]:
        import aiohttp

        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.closed:
            connector = aiohttp.TCPConnector(limit=0)
            session = self._sessions[loop] = aiohttp.ClientSession(connector=connector, headers=self._headers())
        try:
            limit = aiohttp.ClientTimeout(total=seconds)
            async with session.post(f"{self.url.rstrip('/')}/v1/rewards", data=body, timeout=limit) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return 0, f"{type(error).__name__}: {error}".encode()


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
        found = await client.aask(items(prompts, [_text(each) for each in completions]))
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


def _text(completion: Prompt) -> str:
    """A completion as text: TRL hands over messages where the data set is conversational."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)


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
